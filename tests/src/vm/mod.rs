//! VMs on the hosts of a cluster: one on its own, or a pair that protects it.
//!
//! Owns the VMM's processes, what they are started with, and the waiting for what they do. Does not own the hosts
//! (`runner`), what runs inside the VM (`guest`), nor what is asked of it (`client`).
//!
//! Everything here that waits gives up after a time and then says what the VMMs' logs say; everything that was started
//! is gone when it is dropped.

mod guest;
mod info;
mod options;
mod pair;
mod prepare;
mod process;
mod single;
mod wait;

pub use guest::GuestClient;
pub use info::{Delay, FtInfo, LogTraffic, Occurrence};
pub use options::{Acknowledgement, Arbiter, PairOptions, Share, VmOptions};
pub use pair::{Pair, Takeover};
pub use prepare::initramfs;
pub use process::{Event, VmmProcess};
pub use single::SingleVm;
pub use wait::{pause, wait_until};
