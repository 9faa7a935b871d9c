//! Virtio devices as plain state: block, net, console and rng behind the modern PCI transport.
//!
//! This crate owns what the guest sees of a virtio device: PCI configuration space, BAR registers,
//! virtqueues and the behaviour of each device. A device here is a value. It holds no thread, file,
//! clock or source of randomness, and it changes only because the guest accessed a register or
//! because an input (a packet, a finished disk request, ...) was applied. What a device wants of the
//! world it returns as [`Effect`]s, in order. Two devices with equal state that see equal accesses,
//! inputs and guest memory stay equal for ever: record and replay rest on that.
//!
//! [`backend`] holds the other half, used by the shell of the VMM only: files, taps and the thread
//! that executes disk requests. A backend never sees guest memory; a model never sees a backend.
//!
//! What this crate does not own: where a device sits in the address space (the board decides), when
//! an input is applied (the machine decides) and when an effect may leave (the output gate decides).

pub mod backend;
mod effect;
mod error;
mod interrupt;
mod model;
mod pci;
mod queue;
mod segments;

pub use effect::{
    BlockKind, BlockRequest, BlockStatus, Effect, NET_HEADER_BYTES, NET_PACKET_BYTES_MAX,
    SECTOR_BYTES,
};
pub use error::Error;
pub use interrupt::{MsixEntry, MsixState};
pub use model::DeviceModel;
pub use model::block::{BlockConfig, BlockState, OpenRequest};
pub use model::console::ConsoleState;
pub use model::net::{NetConfig, NetState};
pub use model::rng::{PendingEntropy, RngState};
pub use pci::common::CommonState;
pub use pci::config::{ConfigWindow, PciSlot, PciState};
pub use pci::{BAR_BYTES, VirtioPci, VirtioPciState};
pub use queue::QueueState;
pub use segments::{Chain, Segment};

/// Guest memory as every part of the machine sees it. All writes of the devices go through it, so
/// that its bitmap knows which pages they dirtied.
pub type GuestMemory = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;
