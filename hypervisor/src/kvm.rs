//! The door to KVM: opens the device and checks that it offers what the project rests on.

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, KVM_SYNC_X86_REGS};
use kvm_ioctls::Cap;

use crate::{CpuidEntry, Error, Result, Vm};

const API_VERSION: i32 = 12;
const DEVICE: &str = "/dev/kvm";

/// An open `/dev/kvm` that has all the capabilities the project needs.
#[derive(Debug)]
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
}

/// Capabilities without which nothing works: each with its name in the KVM documentation and why.
const REQUIRED: &[(Cap, &str, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest memory"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "hiding what is not deterministic from the guest"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "room for KVM's own pages"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "room for KVM's own pages"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "interrupting a running virtual CPU"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS", "saving a virtual CPU"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS", "saving a virtual CPU"),
    (Cap::Xsave, "KVM_CAP_XSAVE", "saving a virtual CPU"),
    (Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR", "answering MSRs deterministically"),
    (Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER", "answering MSRs deterministically"),
];

impl Kvm {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    ///
    /// The device cannot be opened, or this KVM lacks something the project needs. The message
    /// tells the user what to do.
    pub fn open() -> Result<Self> {
        Self::open_path(DEVICE)
    }

    /// Opens the KVM device at `path`.
    ///
    /// # Errors
    ///
    /// See [`Kvm::open`].
    pub fn open_path(path: &str) -> Result<Self> {
        let cannot_open = |source| Error::Open { path: path.to_owned(), source };
        let c_path = std::ffi::CString::new(path).map_err(|error| cannot_open(error.into()))?;
        let kvm =
            kvm_ioctls::Kvm::new_with_path(&c_path).map_err(|errno| cannot_open(errno.into()))?;
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(if found < 0 {
                cannot_open(std::io::Error::other("it is not the device of KVM"))
            } else {
                Error::ApiVersion { found }
            });
        }
        for (capability, name, purpose) in REQUIRED {
            if !kvm.check_extension(*capability) {
                return Err(Error::Capability { name, purpose });
            }
        }
        if kvm.check_extension_int(Cap::SyncRegs) & KVM_SYNC_X86_REGS as i32 == 0 {
            return Err(Error::Capability {
                name: "KVM_CAP_SYNC_REGS",
                purpose: "reading registers at every exit",
            });
        }
        Ok(Self { kvm })
    }

    /// Makes a virtual machine without memory or processors.
    ///
    /// # Errors
    ///
    /// KVM refuses, for example because the processor's virtualisation is switched off.
    pub fn create_vm(&self) -> Result<Vm> {
        let fd = self.kvm.create_vm().map_err(Error::request("create a virtual machine"))?;
        Vm::new(fd, self.kvm.get_nr_memslots())
    }

    /// What this host's KVM can offer to a guest, before any policy.
    ///
    /// # Errors
    ///
    /// KVM refuses to tell.
    pub fn supported_cpuid(&self) -> Result<Vec<CpuidEntry>> {
        let cpuid = self
            .kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(Error::request("list the processor features it supports"))?;
        Ok(cpuid.as_slice().iter().map(CpuidEntry::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_tells_what_to_do() {
        let error = Kvm::open_path("/nonexistent/kvm").expect_err("there is no such device");
        let text = error.to_string();
        assert!(text.contains("/nonexistent/kvm cannot be opened"), "{text}");
        assert!(text.contains("load the kernel modules"), "{text}");
    }

    #[test]
    fn a_file_that_is_not_kvm_is_refused() {
        let error = Kvm::open_path("/dev/null").expect_err("not KVM");
        assert!(error.to_string().contains("not the device of KVM"), "{error}");
    }

    #[test]
    fn a_path_with_a_nul_is_refused() {
        assert!(matches!(Kvm::open_path("/dev/\0kvm"), Err(Error::Open { .. })));
    }
}
