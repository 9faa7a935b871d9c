//! Everything that can go wrong here, as sentences for the user of the VMM.
//!
//! What a guest does wrong is not in this list: it is answered in the device's own terms (an error
//! status, or the NEEDS_RESET bit), never with an `Err`.

use std::io;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A configuration that no device can have.
    #[error("the configuration of virtio device {device} is not possible: {reason}")]
    Config {
        /// Number of the device.
        device: u16,
        /// What is wrong, as the rest of a sentence.
        reason: &'static str,
    },
    /// A saved state that no device can be in.
    #[error("the saved state of virtio device {device} can't be restored: {reason}")]
    Restore {
        /// Number of the device.
        device: u16,
        /// What is wrong, as the rest of a sentence.
        reason: &'static str,
    },
    /// A disk image could not be opened.
    #[error(
        "can't open the disk image {path} for {access}: {source}; check the path and its \
         permissions"
    )]
    DiskOpen {
        /// The image.
        path: PathBuf,
        /// "reading" or "reading and writing".
        access: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The path does not name something that can be a disk.
    #[error("{path} can't be a disk: it is neither a regular file nor a block device")]
    DiskKind {
        /// The path.
        path: PathBuf,
    },
    /// A disk was to be written that can't be.
    #[error(
        "the disk image {path} can only be read: attach it with readonly=on or make it writable"
    )]
    DiskReadOnly {
        /// The image.
        path: PathBuf,
    },
    /// A disk smaller than one sector.
    #[error("the disk image {path} has {bytes} bytes, but a disk needs at least one sector of 512")]
    DiskTooSmall {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A disk that ends inside a sector.
    #[error(
        "the disk image {path} has {bytes} bytes, which is no whole number of sectors of 512: make \
         it one (truncate -s %512), if it is a raw image at all"
    )]
    DiskSize {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The host can't do direct I/O in units of sectors.
    #[error(
        "direct I/O on {path} is not possible in units of 512 bytes ({source}): use direct=off"
    )]
    DiskDirect {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else holds the disk.
    #[error(
        "the disk image {path} is in use by another process, which holds a lock on it: end that \
         process, or use another image"
    )]
    DiskBusy {
        /// The image.
        path: PathBuf,
    },
    /// The lock on a disk could not be asked for.
    #[error("can't lock the disk image {path}: {source}")]
    DiskLock {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something about a disk image that should always work did not.
    #[error("can't {action} the disk image {path}: {source}")]
    Disk {
        /// The image.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The worker of a disk has ended.
    #[error("the thread that executes disk requests has ended")]
    WorkerGone,
    /// The worker of a disk could not be started.
    #[error("can't start the thread that executes disk requests: {0}")]
    WorkerStart(io::Error),
    /// The name of a network interface is not one.
    #[error(
        "{name:?} can't be the name of a network interface: it needs 1 to 15 bytes, no space or slash"
    )]
    TapName {
        /// The name.
        name: String,
    },
    /// The tun driver is not there.
    #[error("can't open /dev/net/tun: {0} (is the tun module loaded, and may this user open it?)")]
    TapDriver(io::Error),
    /// The tap is used by somebody else.
    #[error("the tap {name} is in use by another process: end that process, or use another tap")]
    TapBusy {
        /// The tap.
        name: String,
    },
    /// The user may not use or create the tap.
    #[error(
        "no permission to open the tap {name}: create it for this user (ip tuntap add dev {name} \
         mode tap user USER vnet_hdr) or give the VMM CAP_NET_ADMIN"
    )]
    TapPermission {
        /// The tap.
        name: String,
    },
    /// The interface has another kind than a tap with virtio-net headers.
    #[error("the network interface {name} exists but is not a single-queue tap")]
    TapKind {
        /// The interface.
        name: String,
    },
    /// Something about a tap that should always work did not.
    #[error("can't {action} the tap {name}: {source}")]
    Tap {
        /// The tap.
        name: String,
        /// What was tried, as a verb.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
}
