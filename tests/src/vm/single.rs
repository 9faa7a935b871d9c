//! A VM that nobody protects.
//!
//! Owns its VMM's process and its disk.

use std::time::Duration;

use anyhow::{Context, Result};

use super::prepare::{Prepared, VmDisk, prepare};
use super::{GuestClient, VmOptions, VmmProcess};
use crate::guest::disk::DiskImage;
use crate::runner::network::guest_address;
use crate::runner::{Cluster, Ended};

/// A VM on one host.
pub struct SingleVm<'a> {
    cluster: &'a Cluster,
    vmm: VmmProcess<'a>,
    guest: GuestClient<'a>,
    disk: Option<VmDisk>,
}

/// A guest boots within this time, on a machine that has other work, too.
pub(super) const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// A guest switches itself off within this time.
pub(super) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(60);

impl<'a> SingleVm<'a> {
    /// Starts it on a host; does not wait for anything.
    pub fn launch(cluster: &'a Cluster, host_index: usize, options: &VmOptions) -> Result<Self> {
        let Prepared { words, disk } = prepare(cluster, options)?;
        let vmm = VmmProcess::start(cluster, host_index, "vm", &words)?;
        let guest = GuestClient::new(cluster, guest_address(options.address_index));
        Ok(Self { cluster, vmm, guest, disk })
    }

    /// Starts it on a host and waits until its services are up.
    pub fn start(cluster: &'a Cluster, host_index: usize, options: &VmOptions) -> Result<Self> {
        let mut vm = Self::launch(cluster, host_index, options)?;
        vm.vmm.wait_for_guest(1, BOOT_TIMEOUT)?;
        Ok(vm)
    }

    /// Its VMM.
    pub fn vmm(&mut self) -> &mut VmmProcess<'a> {
        &mut self.vmm
    }

    /// It lives in another VMM now; the one before.
    pub fn move_to(&mut self, vmm: VmmProcess<'a>) -> VmmProcess<'a> {
        std::mem::replace(&mut self.vmm, vmm)
    }

    /// The way to its services.
    pub fn guest(&self) -> GuestClient<'a> {
        self.guest
    }

    /// Its disk's image as it is now: for a look from outside, not to be written.
    pub fn disk(&self) -> Result<DiskImage> {
        self.disk.as_ref().context("the VM has no disk")?.look(self.cluster)
    }

    /// Has the guest switch itself off; how the VMM ended.
    pub fn shutdown(&mut self) -> Result<Ended> {
        self.guest.power_off().with_context(|| self.vmm.describe())?;
        self.vmm.wait(SHUTDOWN_TIMEOUT)
    }
}
