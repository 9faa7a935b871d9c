//! What is due and when: virtual time's queue. Things due at the same time come in the order in
//! which they were put there.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::faults::Fault;
use crate::host::Inbox;
use crate::network::Port;

/// What can be due.
#[derive(Debug)]
pub enum Due {
    /// A process has something to do.
    Work { host: usize, process: u64 },
    /// Something arrives in a process's inbox.
    Arrive { host: usize, process: u64, what: Inbox },
    /// A process's attempt to connect to another host succeeds or fails.
    Connect { host: usize, process: u64, to: usize },
    /// The next segment of a stream arrives.
    Segment { stream: usize, from: usize },
    /// A datagram arrives.
    Datagram { from: Port, to: Port, bytes: Vec<u8> },
    /// A question reaches the arbiter.
    Asked { host: usize, process: u64, generation: u64 },
    /// A disk write takes effect.
    Landed(Write),
    /// The kernel of a killed process closes its sockets.
    Buried { host: usize, process: u64 },
    /// Something goes wrong, or is asked for.
    Fault(Fault),
}

#[derive(Clone, Debug)]
pub struct Write {
    pub process: u64,
    pub generation: u64,
    pub sector: u64,
    pub value: u64,
}

/// The heap holds small keys; what is due lies in slots beside it.
#[derive(Default)]
pub struct Queue {
    heap: BinaryHeap<Reverse<(u64, u64, u32)>>,
    slots: Vec<Option<Due>>,
    free: Vec<u32>,
    next: u64,
}

impl Queue {
    pub fn push(&mut self, at_us: u64, due: Due) {
        self.next += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize] = Some(due);
        self.heap.push(Reverse((at_us, self.next, slot)));
    }

    pub fn pop(&mut self) -> Option<(u64, Due)> {
        let Reverse((at_us, _, slot)) = self.heap.pop()?;
        self.free.push(slot);
        Some((at_us, self.slots[slot as usize].take()?))
    }
}
