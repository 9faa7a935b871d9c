//! The state of a split virtqueue and the walk over what the driver made available.
//!
//! The walk itself is `virtio-queue`'s. This file adds what that crate leaves to its user: a state
//! that can be saved, bounds on what one chain may hold, telling a broken chain from a finished
//! one, and interrupt suppression by flag. It knows no device.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use crate::GuestMemory;
use crate::interrupt::NO_VECTOR;
use crate::segments::{Chain, Segment};

/// The driver broke the rules of the queue in a way that leaves no way to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Most descriptors that one chain may hold, those of an indirect table included. A driver may not
/// exceed the queue's size (virtio 1.2, section 2.7.5.3.1); small queues get some room beyond it.
const CHAIN_SEGMENTS_MAX: usize = 1024;

/// One virtqueue as its device and its driver set it up (virtio 1.2, section 2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// The largest size the device offers, in descriptors.
    pub size_max: u16,
    /// The size the driver chose.
    pub size: u16,
    /// Whether the driver enabled the queue.
    pub ready: bool,
    /// Whether both sides use `avail_event` and `used_event`.
    pub event_index: bool,
    /// MSI-X vector of the queue, or 0xffff for none.
    pub vector: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptor_table: u64,
    /// Guest-physical address of the available ring.
    pub available_ring: u64,
    /// Guest-physical address of the used ring.
    pub used_ring: u64,
    /// Position of the next chain to take, modulo 2^16.
    pub next_available: u16,
    /// Position of the next chain to return, modulo 2^16.
    pub next_used: u16,
}

impl QueueState {
    /// A queue as it is after a reset.
    pub(crate) fn new(size_max: u16) -> Self {
        Self {
            size_max,
            size: size_max,
            ready: false,
            event_index: false,
            vector: NO_VECTOR,
            descriptor_table: 0,
            available_ring: 0,
            used_ring: 0,
            next_available: 0,
            next_used: 0,
        }
    }

    /// Whether the rings are aligned and lie in guest memory.
    pub(crate) fn is_usable(&self, memory: &GuestMemory) -> bool {
        let size = usize::from(self.size);
        let rings = [
            (self.descriptor_table, 16 * size, Permissions::Read),
            (self.available_ring, 6 + 2 * size, Permissions::Read),
            (self.used_ring, 6 + 8 * size, Permissions::Write),
        ];
        self.queue().is_ok()
            && rings.into_iter().all(|(address, length, access)| {
                address.checked_add(length as u64).is_some()
                    && memory.check_range(GuestAddress(address), length, access)
            })
    }

    /// Whether the queue can be walked without harm, as far as its own numbers tell.
    pub(crate) fn is_consistent(&self) -> bool {
        self.size.is_power_of_two()
            && self.size <= self.size_max
            && (!self.ready || self.queue().is_ok())
    }

    /// Starts a walk. Nothing changes in `self` until [`Walk::finish`].
    pub(crate) fn walk<'m>(&self, memory: &'m GuestMemory) -> Result<Walk<'m>, Malformed> {
        let queue = self.queue()?;
        Ok(Walk { memory, queue, available_ring: self.available_ring, returned: 0 })
    }

    /// Whether the driver has made a chain available that was not taken yet.
    pub(crate) fn has_available(&self, memory: &GuestMemory) -> bool {
        self.walk(memory).and_then(|walk| walk.remaining()).is_ok_and(|remaining| remaining > 0)
    }

    fn queue(&self) -> Result<Queue, Malformed> {
        let state = virtio_queue::QueueState {
            max_size: self.size_max,
            next_avail: self.next_available,
            next_used: self.next_used,
            event_idx_enabled: self.event_index,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptor_table,
            avail_ring: self.available_ring,
            used_ring: self.used_ring,
        };
        Queue::try_from(state).map_err(|_| Malformed)
    }
}

/// A burst of work on one queue.
pub(crate) struct Walk<'m> {
    memory: &'m GuestMemory,
    queue: Queue,
    available_ring: u64,
    returned: u16,
}

impl Walk<'_> {
    /// The size of the queue: no burst takes more chains than this.
    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// How many chains the driver has made available that were not taken yet.
    pub(crate) fn remaining(&self) -> Result<u16, Malformed> {
        let index = self.queue.avail_idx(self.memory, Ordering::Acquire).map_err(|_| Malformed)?.0;
        let remaining = index.wrapping_sub(self.queue.next_avail());
        if remaining > self.queue.size() { Err(Malformed) } else { Ok(remaining) }
    }

    /// Takes the next chain, if there is one.
    pub(crate) fn pop(&mut self) -> Result<Option<Chain>, Malformed> {
        let memory = self.memory;
        let Some(descriptors) = self.queue.iter(memory).map_err(|_| Malformed)?.next() else {
            // The iterator also ends where the ring can't be read: then something remains.
            return if self.remaining()? == 0 { Ok(None) } else { Err(Malformed) };
        };
        let mut chain = Chain { head: descriptors.head_index(), ..Chain::default() };
        let mut whole = false;
        for (number, descriptor) in descriptors.enumerate() {
            if number >= CHAIN_SEGMENTS_MAX {
                return Err(Malformed);
            }
            let segment = Segment { address: descriptor.addr().0, length: descriptor.len() };
            if descriptor.is_write_only() {
                chain.writable.push(segment);
            } else if chain.writable.is_empty() {
                chain.readable.push(segment);
            } else {
                // What the device reads comes first (virtio 1.2, section 2.7.4.2).
                return Err(Malformed);
            }
            // The iterator ends at a broken link as it does at the last descriptor; only the
            // latter promises no next one.
            whole = !descriptor.has_next();
        }
        if whole { Ok(Some(chain)) } else { Err(Malformed) }
    }

    /// Returns a chain to the driver; `length` bytes were written to it.
    pub(crate) fn push(&mut self, head: u16, length: u32) -> Result<(), Malformed> {
        self.queue.add_used(self.memory, head, length).map_err(|_| Malformed)?;
        self.returned = self.returned.wrapping_add(1);
        Ok(())
    }

    /// Ends the walk: the queue moves on, the driver learns when to notify next. Returns whether
    /// the driver wants an interrupt.
    ///
    /// With event indices the driver notifies when it adds to a queue that has run empty, or, where
    /// fewer than `low_water` chains are left, at once with the next it adds.
    pub(crate) fn finish(
        mut self,
        state: &mut QueueState,
        low_water: u16,
    ) -> Result<bool, Malformed> {
        state.next_available = self.queue.next_avail();
        state.next_used = self.queue.next_used();
        if state.event_index {
            let remaining = self.remaining()?;
            let ahead = if remaining < low_water { remaining } else { 0 };
            self.set_available_event(state, state.next_available.wrapping_add(ahead))?;
        }
        if self.returned == 0 {
            return Ok(false);
        }
        if state.event_index {
            return self.queue.needs_notification(self.memory).map_err(|_| Malformed);
        }
        let flags: u16 = self
            .memory
            .load(GuestAddress(self.available_ring), Ordering::Acquire)
            .map_err(|_| Malformed)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    fn set_available_event(&self, state: &QueueState, position: u16) -> Result<(), Malformed> {
        let address =
            state.used_ring.checked_add(4 + 8 * u64::from(state.size)).ok_or(Malformed)?;
        self.memory
            .store(position.to_le(), GuestAddress(address), Ordering::Release)
            .map_err(|_| Malformed)
    }
}
