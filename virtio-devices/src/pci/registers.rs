//! Accesses to BAR 0: which register an access means and what a write sets in motion.

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::common::{CommonState, register, status};
use super::{VirtioPci, layout, read_image, vector_or_none};
use crate::GuestMemory;
use crate::effect::Effect;

impl VirtioPci {
    /// Reads BAR 0. What holds no register reads as zeros.
    pub fn bar_read(&mut self, offset: u64, data: &mut [u8]) {
        let Some((area, within)) = locate(offset) else {
            data.fill(0);
            return;
        };
        let state = &mut self.state;
        match area {
            layout::COMMON_OFFSET => {
                let offered = super::TRANSPORT_FEATURES | state.model.features();
                read_image(&state.common.image(offered, &state.queues), within, data);
            }
            layout::ISR_OFFSET => {
                read_image(&[state.common.interrupt_status], within, data);
                // Reading acknowledges (virtio 1.2, section 4.1.4.5).
                if within == 0 && !data.is_empty() {
                    state.common.interrupt_status = 0;
                }
            }
            layout::DEVICE_OFFSET => {
                read_image(state.model.config_image().as_ref(), within, data);
            }
            layout::MSIX_TABLE_OFFSET => state.msix.read_table(within, data),
            layout::MSIX_PENDING_OFFSET => {
                read_image(&state.msix.pending.to_le_bytes(), within, data);
            }
            _ => data.fill(0),
        }
    }

    /// Writes BAR 0. A write to no register, or across registers, is ignored.
    pub fn bar_write(
        &mut self,
        memory: &GuestMemory,
        offset: u64,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        let Some((area, within)) = locate(offset) else {
            return;
        };
        match area {
            layout::COMMON_OFFSET => self.common_write(memory, within, data, effects),
            layout::NOTIFY_OFFSET => {
                self.kick(memory, CommonState::notified_queue(within as u64), effects);
            }
            layout::MSIX_TABLE_OFFSET => self.state.msix.write_table(within, data, effects),
            // Interrupt status, pending bits and the configuration of our devices are read-only.
            _ => {}
        }
    }

    fn kick(&mut self, memory: &GuestMemory, queue: usize, effects: &mut Vec<Effect>) {
        let ready = self.state.queues.get(queue).is_some_and(|queue| queue.ready);
        if ready && self.state.common.is_live() {
            self.with_model(memory, effects, |model, context| model.kick(queue, context));
        }
    }

    fn common_write(
        &mut self,
        memory: &GuestMemory,
        offset: usize,
        data: &[u8],
        effects: &mut Vec<Effect>,
    ) {
        let mut bytes = [0; 8];
        let Some(place) = bytes.get_mut(..data.len()) else {
            return;
        };
        place.copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let common = &mut self.state.common;
        match (offset, data.len()) {
            (register::DEVICE_FEATURE_SELECT, 4) => common.device_feature_select = value as u32,
            (register::DRIVER_FEATURE_SELECT, 4) => common.driver_feature_select = value as u32,
            (register::DRIVER_FEATURE, 4) => common.set_driver_features(value as u32),
            (register::CONFIG_VECTOR, 2) => {
                common.config_vector = vector_or_none(&self.state.msix, value as u16);
            }
            (register::STATUS, 1) => self.write_status(memory, value as u8, effects),
            (register::QUEUE_SELECT, 2) => common.queue_select = value as u16,
            (register::QUEUE_ENABLE, 2) if value == 1 => self.enable_queue(memory, effects),
            _ => self.queue_write(offset, data.len(), value),
        }
    }

    /// Registers of the selected queue that only hold a value.
    fn queue_write(&mut self, offset: usize, length: usize, value: u64) {
        let vector = vector_or_none(&self.state.msix, value as u16);
        let selected = usize::from(self.state.common.queue_select);
        let Some(queue) = self.state.queues.get_mut(selected) else {
            return;
        };
        if (offset, length) == (register::QUEUE_VECTOR, 2) {
            queue.vector = vector;
            return;
        }
        // Everything else is settled when the queue is enabled.
        if queue.ready {
            return;
        }
        match offset {
            register::QUEUE_SIZE if length == 2 => {
                let size = value as u16;
                if size.is_power_of_two() && size <= queue.size_max {
                    queue.size = size;
                }
            }
            register::QUEUE_DESCRIPTORS..register::QUEUE_AVAILABLE => {
                let within = offset - register::QUEUE_DESCRIPTORS;
                set_address(&mut queue.descriptor_table, within, length, value);
            }
            register::QUEUE_AVAILABLE..register::QUEUE_USED => {
                let within = offset - register::QUEUE_AVAILABLE;
                set_address(&mut queue.available_ring, within, length, value);
            }
            register::QUEUE_USED.. => {
                let within = offset - register::QUEUE_USED;
                set_address(&mut queue.used_ring, within, length, value);
            }
            _ => {}
        }
    }

    fn enable_queue(&mut self, memory: &GuestMemory, effects: &mut Vec<Effect>) {
        let common = &self.state.common;
        if !common.has(status::FEATURES_OK) || common.has(status::NEEDS_RESET) {
            return;
        }
        let event_index = common.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let Some(queue) = self.state.queues.get_mut(usize::from(common.queue_select)) else {
            return;
        };
        if queue.ready {
            return;
        }
        if queue.is_usable(memory) {
            queue.event_index = event_index;
            queue.ready = true;
        } else {
            self.fail(effects);
        }
    }

    /// The steps of initialisation (virtio 1.2, section 3.1.1).
    fn write_status(&mut self, memory: &GuestMemory, value: u8, effects: &mut Vec<Effect>) {
        if value == 0 {
            self.reset(effects);
            return;
        }
        let offered = self.offered_features();
        let common = &mut self.state.common;
        let before = common.status;
        // A driver can't take bits back but by reset.
        let mut after = before | value & status::WRITABLE;
        if before & status::FEATURES_OK == 0 && !common.accepts_features(offered) {
            after &= !status::FEATURES_OK;
        }
        if after & status::FEATURES_OK == 0 {
            after &= !status::DRIVER_OK;
        }
        common.status = after;
        if before & status::DRIVER_OK == 0 && common.is_live() {
            self.with_model(memory, effects, |model, context| model.activate(context));
        }
    }
}

/// Takes over all of an address or one half of it.
fn set_address(address: &mut u64, within: usize, length: usize, value: u64) {
    match (within, length) {
        (0, 8) => *address = value,
        (0, 4) => *address = *address >> 32 << 32 | value,
        (4, 4) => *address = *address & u64::from(u32::MAX) | value << 32,
        _ => {}
    }
}

/// The area of the BAR that an offset means, and the offset within it.
fn locate(offset: u64) -> Option<(u32, usize)> {
    let offset = u32::try_from(offset).ok().filter(|offset| *offset < super::BAR_BYTES)?;
    let within = offset % layout::AREA_BYTES;
    Some((offset - within, within as usize))
}
