//! PCI configuration space: identity, BAR, MSI-X and virtio capabilities.
//!
//! Owns what the guest reads and writes in the first 256 bytes. Only the few fields that can change
//! are state; the image is made from them on every access, so a saved state can't contradict it.
//! The window of the PCI configuration access capability is kept here; the transport carries its
//! accesses out.

use serde::{Deserialize, Serialize};

use super::{BAR_BYTES, layout};

/// Where the board put the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciSlot {
    /// Device number on its bus, below 32. The transport only keeps it for the board.
    pub number: u8,
    /// Address of BAR 0 until the guest moves it: a multiple of [`BAR_BYTES`].
    pub bar_address: u32,
}

/// The window through which the guest may reach the BAR without mapping it (virtio 1.2, section
/// 4.1.4.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigWindow {
    /// Which BAR; only 0 leads anywhere.
    pub bar: u8,
    /// Offset in the BAR.
    pub offset: u32,
    /// Width of the access in bytes; only 1, 2 and 4 lead anywhere.
    pub length: u32,
}

/// The part of configuration space that can change, MSI-X excepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// Where the device sits.
    pub slot: PciSlot,
    /// Command register, writable bits only.
    pub command: u16,
    /// BAR 0, address bits only.
    pub bar_address: u32,
    /// Cache line size, kept for the guest.
    pub cache_line_size: u8,
    /// Interrupt line, kept for the guest.
    pub interrupt_line: u8,
    /// Window of the PCI configuration access capability.
    pub window: ConfigWindow,
}

/// Bytes of configuration space.
pub(crate) const CONFIG_BYTES: usize = 256;

/// Offset of the data register of the configuration window.
pub(crate) const WINDOW_DATA: usize = WINDOW + 16;

const COMMAND_MEMORY: u16 = 1 << 1;
/// Memory decoding, bus master, INTx disable.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;
const REVISION: u8 = 1;

// Offsets of the registers that can be written.
const COMMAND: usize = 0x04;
const CACHE_LINE_SIZE: usize = 0x0c;
const BAR0: usize = 0x10;
const INTERRUPT_LINE: usize = 0x3c;

// Offsets of the capabilities, in the order of their list.
const COMMON: usize = 0x40;
const ISR: usize = 0x50;
const DEVICE: usize = 0x60;
const NOTIFY: usize = 0x70;
const WINDOW: usize = 0x84;
const MSIX: usize = 0x98;
const MSIX_CONTROL: usize = MSIX + 2;

const MSIX_ENABLE: u16 = 1 << 15;
const MSIX_MASK: u16 = 1 << 14;

/// What the image shows besides [`PciState`].
pub(crate) struct Identity {
    /// Virtio device type (virtio 1.2, section 5).
    pub device_type: u16,
    /// PCI class, subclass and programming interface.
    pub class: u32,
    /// Bytes of device configuration, 0 for none.
    pub device_config_bytes: u32,
    /// Number of MSI-X vectors.
    pub vectors: u16,
    /// Whether MSI-X is enabled.
    pub msix_enabled: bool,
    /// Whether MSI-X is masked as a whole.
    pub msix_masked: bool,
}

/// What a write changed that this file does not own.
#[derive(Default)]
pub(crate) struct Written {
    /// New MSI-X enable and function mask bits.
    pub msix: Option<(bool, bool)>,
    /// An access through the configuration window: where in the BAR, and the bytes.
    pub window: Option<(u64, [u8; 4], usize)>,
}

impl PciState {
    /// Configuration space after power-on.
    pub(crate) fn new(slot: PciSlot) -> Self {
        Self {
            slot,
            command: 0,
            bar_address: slot.bar_address,
            cache_line_size: 0,
            interrupt_line: 0,
            window: ConfigWindow::default(),
        }
    }

    /// Address of BAR 0 while the guest has memory decoding enabled.
    pub(crate) fn decoded_bar(&self) -> Option<u64> {
        (self.command & COMMAND_MEMORY != 0).then_some(u64::from(self.bar_address))
    }

    /// Whether a guest's accesses can lead here.
    pub(crate) fn is_consistent(&self) -> bool {
        self.command & !COMMAND_WRITABLE == 0
            && self.bar_address.is_multiple_of(BAR_BYTES)
            && self.slot.is_possible()
    }

    /// Where an access through the window leads, if anywhere.
    pub(crate) fn window_target(&self) -> Option<(u64, usize)> {
        let ConfigWindow { bar, offset, length } = self.window;
        let fits = offset.checked_add(length).is_some_and(|end| end <= BAR_BYTES);
        let possible = bar == 0 && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        (possible && fits).then_some((u64::from(offset), length as usize))
    }

    /// All of configuration space as the guest reads it. The window's data reads as zeros.
    pub(crate) fn image(&self, identity: &Identity) -> [u8; CONFIG_BYTES] {
        let mut image = [0; CONFIG_BYTES];
        self.put_header(&mut image, identity);
        put_virtio_capabilities(&mut image, identity);
        self.put_window(&mut image);
        put_msix_capability(&mut image, identity);
        image
    }

    fn put_header(&self, image: &mut [u8; CONFIG_BYTES], identity: &Identity) {
        let device = DEVICE_BASE + identity.device_type;
        put(image, 0x00, &VENDOR.to_le_bytes());
        put(image, 0x02, &device.to_le_bytes());
        put(image, COMMAND, &self.command.to_le_bytes());
        put(image, 0x06, &STATUS_CAPABILITIES.to_le_bytes());
        put(image, 0x08, &(identity.class << 8 | u32::from(REVISION)).to_le_bytes());
        put(image, CACHE_LINE_SIZE, &[self.cache_line_size]);
        put(image, BAR0, &self.bar_address.to_le_bytes());
        put(image, 0x2c, &VENDOR.to_le_bytes());
        put(image, 0x2e, &device.to_le_bytes());
        put(image, 0x34, &[COMMON as u8]);
        put(image, INTERRUPT_LINE, &[self.interrupt_line]);
    }

    fn put_window(&self, image: &mut [u8; CONFIG_BYTES]) {
        let ConfigWindow { bar, offset, length } = self.window;
        put_capability(image, WINDOW, MSIX, 20, [5, 0], offset, length);
        put(image, WINDOW + 4, &[bar]);
    }

    /// Applies a write. Bytes outside the writable registers are ignored.
    pub(crate) fn write(&mut self, identity: &Identity, offset: usize, data: &[u8]) -> Written {
        let mut image = self.image(identity);
        let Some(place) = image.get_mut(offset..offset.saturating_add(data.len())) else {
            return Written::default();
        };
        place.copy_from_slice(data);
        let touched = |register: usize, length: usize| {
            offset < register + length && register < offset + data.len()
        };
        self.command = word(&image, COMMAND) & COMMAND_WRITABLE;
        self.cache_line_size = image[CACHE_LINE_SIZE];
        self.interrupt_line = image[INTERRUPT_LINE];
        self.bar_address = long(&image, BAR0) & !(BAR_BYTES - 1);
        self.window = ConfigWindow {
            bar: image[WINDOW + 4],
            offset: long(&image, WINDOW + 8),
            length: long(&image, WINDOW + 12),
        };
        let mut written = Written::default();
        if touched(MSIX_CONTROL, 2) {
            let control = word(&image, MSIX_CONTROL);
            written.msix = Some((control & MSIX_ENABLE != 0, control & MSIX_MASK != 0));
        }
        if touched(WINDOW_DATA, 4)
            && let Some((target, length)) = self.window_target()
        {
            written.window = Some((target, long(&image, WINDOW_DATA).to_le_bytes(), length));
        }
        written
    }
}

impl PciSlot {
    /// Whether a board can have such a place.
    pub(crate) fn is_possible(&self) -> bool {
        self.number < 32 && self.bar_address.is_multiple_of(BAR_BYTES)
    }
}

fn put_virtio_capabilities(image: &mut [u8; CONFIG_BYTES], identity: &Identity) {
    use layout::{COMMON_BYTES, COMMON_OFFSET, DEVICE_OFFSET, ISR_OFFSET};
    use layout::{NOTIFY_MULTIPLIER, NOTIFY_OFFSET};
    let notify_bytes = NOTIFY_MULTIPLIER * u32::from(identity.vectors - 1);
    put_capability(image, COMMON, ISR, 16, [1, 0], COMMON_OFFSET, COMMON_BYTES);
    put_capability(image, ISR, DEVICE, 16, [3, 0], ISR_OFFSET, 1);
    // A device without configuration has no such capability; the list goes around it.
    if identity.device_config_bytes > 0 {
        let length = identity.device_config_bytes;
        put_capability(image, DEVICE, NOTIFY, 16, [4, 0], DEVICE_OFFSET, length);
    } else {
        put(image, ISR + 1, &[NOTIFY as u8]);
    }
    put_capability(image, NOTIFY, WINDOW, 20, [2, 0], NOTIFY_OFFSET, notify_bytes);
    put(image, NOTIFY + 16, &NOTIFY_MULTIPLIER.to_le_bytes());
}

/// Writes a `struct virtio_pci_cap` (virtio 1.2, section 4.1.4): `kind` is its type and BAR.
fn put_capability(
    image: &mut [u8; CONFIG_BYTES],
    at: usize,
    next: usize,
    bytes: u8,
    kind: [u8; 2],
    offset: u32,
    length: u32,
) {
    const VENDOR_SPECIFIC: u8 = 0x09;
    put(image, at, &[VENDOR_SPECIFIC, next as u8, bytes, kind[0], kind[1], 0, 0, 0]);
    put(image, at + 8, &offset.to_le_bytes());
    put(image, at + 12, &length.to_le_bytes());
}

fn put_msix_capability(image: &mut [u8; CONFIG_BYTES], identity: &Identity) {
    const MSIX_ID: u8 = 0x11;
    let mut control = identity.vectors - 1;
    if identity.msix_enabled {
        control |= MSIX_ENABLE;
    }
    if identity.msix_masked {
        control |= MSIX_MASK;
    }
    put(image, MSIX, &[MSIX_ID, 0]);
    put(image, MSIX_CONTROL, &control.to_le_bytes());
    // The low three bits name the BAR: 0.
    put(image, MSIX + 4, &layout::MSIX_TABLE_OFFSET.to_le_bytes());
    put(image, MSIX + 8, &layout::MSIX_PENDING_OFFSET.to_le_bytes());
}

fn put(image: &mut [u8; CONFIG_BYTES], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn word(image: &[u8; CONFIG_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([image[at], image[at + 1]])
}

fn long(image: &[u8; CONFIG_BYTES], at: usize) -> u32 {
    u32::from(word(image, at)) | u32::from(word(image, at + 2)) << 16
}
