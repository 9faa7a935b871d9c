//! What can go wrong between the VMM and KVM, in sentences for the person who started the VM.

use std::io;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why KVM could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device of KVM cannot be opened.
    #[error(
        "{path} cannot be opened: {source}; load the kernel modules kvm and kvm_intel or kvm_amd, \
         switch virtualisation on in the firmware, or run as a user of the group kvm"
    )]
    Open {
        /// The device's path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// KVM speaks another version of its interface.
    #[error("this kernel's KVM has interface version {found}, but only version 12 is known")]
    ApiVersion {
        /// The version that KVM reports.
        found: i32,
    },
    /// KVM lacks a capability that the VMM cannot do without.
    #[error("this kernel's KVM lacks {name} ({purpose}); Linux 5.10 or newer has it")]
    Capability {
        /// The capability's name in the KVM documentation.
        name: &'static str,
        /// What the VMM needs it for.
        purpose: &'static str,
    },
    /// A request to KVM failed.
    #[error("KVM refused to {action}: {source}")]
    Request {
        /// What was asked, as the end of a sentence.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The guest's memory layout cannot be given to KVM.
    #[error("guest memory at {start:#x} with {size:#x} bytes cannot be mapped: {reason}")]
    Memory {
        /// Guest physical address of the region.
        start: u64,
        /// Its size in bytes.
        size: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The guest was promised a processor feature that this host does not have.
    #[error("this host cannot run the guest: {0}")]
    Cpuid(String),
    /// KVM took or gave fewer MSRs than asked.
    #[error("KVM cannot {action} the model-specific register {index:#x}")]
    Msr {
        /// "read" or "write".
        action: &'static str,
        /// The register's index.
        index: u32,
    },
    /// A virtual CPU would not come to rest.
    #[error("the virtual CPU did not finish its pending input or output, so its state cannot {0}")]
    Unsettled(&'static str),
    /// The signal or the timer that interrupts the virtual CPU cannot be set up.
    #[error("the virtual CPU's thread cannot {action}: {source}")]
    Kick {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Wraps the error number of a failed request.
    pub(crate) fn request(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| Self::Request { action, source: errno.into() }
    }
}
