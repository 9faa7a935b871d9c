//! The common configuration registers (virtio 1.2, section 4.1.4.3): their state and their image.
//!
//! Owns the registers that only hold a value. What a write sets in motion (reset, activation, a
//! queue that comes up) is in the transport.

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::layout::{COMMON_BYTES, NOTIFY_MULTIPLIER};
use crate::interrupt::NO_VECTOR;
use crate::queue::QueueState;

/// Device status bits (virtio 1.2, section 2.1).
pub(crate) mod status {
    pub(crate) const ACKNOWLEDGE: u8 = 1;
    pub(crate) const DRIVER: u8 = 2;
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 64;
    pub(crate) const FAILED: u8 = 128;
    /// What a driver may set.
    pub(crate) const WRITABLE: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;
}

/// Offsets of the registers.
pub(crate) mod register {
    pub(crate) const DEVICE_FEATURE_SELECT: usize = 0x00;
    pub(crate) const DEVICE_FEATURE: usize = 0x04;
    pub(crate) const DRIVER_FEATURE_SELECT: usize = 0x08;
    pub(crate) const DRIVER_FEATURE: usize = 0x0c;
    pub(crate) const CONFIG_VECTOR: usize = 0x10;
    pub(crate) const QUEUE_COUNT: usize = 0x12;
    pub(crate) const STATUS: usize = 0x14;
    pub(crate) const CONFIG_GENERATION: usize = 0x15;
    pub(crate) const QUEUE_SELECT: usize = 0x16;
    pub(crate) const QUEUE_SIZE: usize = 0x18;
    pub(crate) const QUEUE_VECTOR: usize = 0x1a;
    pub(crate) const QUEUE_ENABLE: usize = 0x1c;
    pub(crate) const QUEUE_NOTIFY_OFFSET: usize = 0x1e;
    pub(crate) const QUEUE_DESCRIPTORS: usize = 0x20;
    pub(crate) const QUEUE_AVAILABLE: usize = 0x28;
    pub(crate) const QUEUE_USED: usize = 0x30;
}

/// The transport's own registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommonState {
    /// Device status.
    pub status: u8,
    /// Which 32 feature bits the driver reads.
    pub device_feature_select: u32,
    /// Which 32 feature bits the driver writes.
    pub driver_feature_select: u32,
    /// The features the driver accepted; negotiated once FEATURES_OK is set.
    pub driver_features: u64,
    /// Which queue the queue registers mean.
    pub queue_select: u16,
    /// MSI-X vector for configuration changes, or 0xffff for none.
    pub config_vector: u16,
    /// Counts changes of the device's configuration, modulo 256.
    pub config_generation: u8,
    /// Interrupt status, used while MSI-X is disabled: bit 0 queues, bit 1 configuration.
    pub interrupt_status: u8,
}

impl CommonState {
    /// The registers after a reset.
    pub(crate) fn new() -> Self {
        Self {
            status: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
            config_generation: 0,
            interrupt_status: 0,
        }
    }

    /// Whether all of `bits` are set in the device status.
    pub(crate) fn has(&self, bits: u8) -> bool {
        self.status & bits == bits
    }

    /// Whether the driver runs the device and the device can still be run.
    pub(crate) fn is_live(&self) -> bool {
        self.has(status::DRIVER_OK) && !self.has(status::NEEDS_RESET)
    }

    /// Whether the features the driver chose are a set that the device can work with.
    pub(crate) fn accepts_features(&self, offered: u64) -> bool {
        let version_1 = 1 << VIRTIO_F_VERSION_1;
        self.driver_features & !offered == 0 && self.driver_features & version_1 != 0
    }

    /// Takes over 32 feature bits from the driver.
    pub(crate) fn set_driver_features(&mut self, bits: u32) {
        // Once negotiated, features stay (virtio 1.2, section 3.1.1).
        if self.has(status::FEATURES_OK) {
            return;
        }
        let (mask, value) = match self.driver_feature_select {
            0 => (u64::from(u32::MAX), u64::from(bits)),
            1 => (u64::from(u32::MAX) << 32, u64::from(bits) << 32),
            _ => return,
        };
        self.driver_features = self.driver_features & !mask | value;
    }

    /// All registers as the driver reads them.
    pub(crate) fn image(&self, offered: u64, queues: &[QueueState]) -> [u8; COMMON_BYTES as usize] {
        let mut image = [0; COMMON_BYTES as usize];
        let mut put = |at: usize, bytes: &[u8]| {
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let window = |select: u32, features: u64| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let device_feature = window(self.device_feature_select, offered);
        let driver_feature = window(self.driver_feature_select, self.driver_features);
        put(register::DEVICE_FEATURE_SELECT, &self.device_feature_select.to_le_bytes());
        put(register::DEVICE_FEATURE, &device_feature.to_le_bytes());
        put(register::DRIVER_FEATURE_SELECT, &self.driver_feature_select.to_le_bytes());
        put(register::DRIVER_FEATURE, &driver_feature.to_le_bytes());
        put(register::CONFIG_VECTOR, &self.config_vector.to_le_bytes());
        put(register::QUEUE_COUNT, &(queues.len() as u16).to_le_bytes());
        put(register::STATUS, &[self.status]);
        put(register::CONFIG_GENERATION, &[self.config_generation]);
        put(register::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // The registers of a queue that does not exist read as zeros: its size says so.
        if let Some(queue) = queues.get(usize::from(self.queue_select)) {
            put(register::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(register::QUEUE_VECTOR, &queue.vector.to_le_bytes());
            put(register::QUEUE_ENABLE, &u16::from(queue.ready).to_le_bytes());
            put(register::QUEUE_NOTIFY_OFFSET, &self.queue_select.to_le_bytes());
            put(register::QUEUE_DESCRIPTORS, &queue.descriptor_table.to_le_bytes());
            put(register::QUEUE_AVAILABLE, &queue.available_ring.to_le_bytes());
            put(register::QUEUE_USED, &queue.used_ring.to_le_bytes());
        }
        image
    }

    /// Which queue a write to the notify area means.
    pub(crate) fn notified_queue(offset: u64) -> usize {
        (offset / u64::from(NOTIFY_MULTIPLIER)) as usize
    }
}
