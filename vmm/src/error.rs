//! The crate's errors: each a sentence that says what was wrong, where, and what to do.

use std::path::PathBuf;

/// What can go wrong in the VMM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM.
    #[error(transparent)]
    Hypervisor(#[from] hypervisor::Error),
    /// A virtio device or its back end.
    #[error(transparent)]
    Device(#[from] virtio_devices::Error),
    /// The kernel or initramfs.
    #[error(transparent)]
    Loader(#[from] crate::loader::LoaderError),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// A state that does not decode.
    #[error("a saved machine state cannot be read: {0}; both sides must run the same build")]
    State(String),
    /// The host's kernel does not filter system calls.
    #[error(
        "the system calls of this process cannot be restricted: {0}; a host without seccomp needs \
         --seccomp false"
    )]
    Seccomp(String),
    /// A description of a VM that does not decode, or of a VM that cannot be.
    #[error("the VM that is described cannot be built here: {0}")]
    Description(String),
    /// Something that does not fit into a log.
    #[error(transparent)]
    Record(#[from] ft::RecordError),
    /// A page outside guest RAM.
    #[error("guest RAM has no page {0:#x}: memory sizes of the two sides differ")]
    NoSuchPage(u64),
    /// Guest RAM.
    #[error("guest RAM of {size} bytes cannot be set up: {reason}; give --memory a smaller size")]
    Memory {
        /// Bytes asked for.
        size: u64,
        /// Why not.
        reason: String,
    },
    /// The vCPU stopped.
    #[error("the guest cannot go on: {0}")]
    GuestFault(String),
    /// No thread.
    #[error("a thread cannot be started: {0}")]
    Thread(#[source] std::io::Error),
    /// No event.
    #[error("an event file descriptor cannot be made: {0}; is the limit of open files reached?")]
    EventFd(#[source] std::io::Error),
    /// The event loop.
    #[error("the event loop failed: {0}")]
    Poll(#[source] std::io::Error),
    /// The engine's thread vanished before it was ready.
    #[error("the vCPU's thread ended before it was ready; see the log")]
    EngineGone,
    /// A file.
    #[error("{what} {path}: {source}")]
    File {
        /// What the file is for, and what failed.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A log file's content.
    #[error("log {path}: {reason}")]
    Log {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Text that nobody takes.
    #[error("the output cannot be written: {0}")]
    Output(#[source] std::io::Error),
    /// A recorded run and its replay differ.
    #[error("the replay diverged from its log\n{0}")]
    Diverged(String),
    /// The channel between primary and backup.
    #[error("{0}")]
    Channel(String),
    /// An arbiter that gives no answer, which is not the same as *no*; or one that cannot be used.
    #[error("{0}")]
    Arbiter(String),
    /// A request that does not fit the VM's state.
    #[error("{0}")]
    Refused(String),
    /// The API socket.
    #[error("{0}")]
    Api(String),
}
