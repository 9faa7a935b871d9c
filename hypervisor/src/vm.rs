//! A virtual machine: its memory, the log of dirty pages, and the making of its processor.
//!
//! There is no interrupt controller in the kernel: all of the platform is in user space.

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MEM_LOG_DIRTY_PAGES, KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::{Cpuid, Error, GuestMemory, Result, Vcpu, msr};

/// Where KVM keeps pages of its own on some Intel processors: below the firmware, above the APICs,
/// where no machine of ours has memory or a device.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
const TSS_ADDRESS: usize = 0xfffb_d000;

const PAGE_SHIFT: u32 = 12;
const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;

/// A virtual machine.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    slots_max: usize,
    memory: Option<GuestMemory>,
}

impl Vm {
    pub(crate) fn new(fd: VmFd, slots_max: usize) -> Result<Self> {
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(Error::request("place its identity map"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(Error::request("place its task segment"))?;
        let reasons =
            KVM_MSR_EXIT_REASON_FILTER | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL;
        let mut capability =
            kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
        capability.args[0] = u64::from(reasons);
        fd.enable_cap(&capability)
            .map_err(Error::request("let user space answer model-specific registers"))?;
        msr::install_filter(&fd)?;
        Ok(Self { fd, slots_max, memory: None })
    }

    /// Gives the guest its memory: one slot for each region. The virtual machine keeps the memory
    /// alive. To be called once, before [`Vm::create_vcpu`].
    ///
    /// # Errors
    ///
    /// The machine has memory already, a region is not made of whole pages, there are too many
    /// regions, or KVM refuses one.
    pub fn map_memory(&mut self, memory: &GuestMemory) -> Result<()> {
        for (slot, region) in memory.iter().enumerate() {
            let (start, size) = (region.start_addr().raw_value(), region.len());
            let refuse = |reason| Err(Error::Memory { start, size, reason });
            if self.memory.is_some() {
                return refuse("the virtual machine already has memory");
            }
            if slot >= self.slots_max {
                return refuse("KVM has no slots left for more regions");
            }
            if start % PAGE_BYTES != 0 || size % PAGE_BYTES != 0 {
                return refuse("it is not made of whole pages of 4096 bytes");
            }
        }
        self.set_slots(memory, 0)?;
        self.memory = Some(memory.clone());
        Ok(())
    }

    fn set_slots(&self, memory: &GuestMemory, flags: u32) -> Result<()> {
        for (slot, region) in (0..).zip(memory.iter()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the range is a mapping of `memory`; the caller keeps a clone of it in
            // `self.memory` as long as the virtual machine lives, regions of one `GuestMemory` do
            // not overlap, and guest memory is only ever accessed as volatile memory.
            unsafe { self.fd.set_user_memory_region(slot) }
                .map_err(Error::request("map guest memory"))?;
        }
        Ok(())
    }

    /// Begins or ends logging the pages that are written. It begins with all pages clean.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn track_dirty(&mut self, on: bool) -> Result<()> {
        let Some(memory) = self.memory.clone() else { return Ok(()) };
        self.set_slots(&memory, if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 })?;
        if on {
            self.take_dirty()?;
        }
        Ok(())
    }

    /// The frames (guest physical address divided by 4096), in ascending order, of all pages
    /// written since the last call: by the guest, and by user space through [`GuestMemory`]. Both
    /// logs begin anew. The guest must not run and nobody write to its memory during the call.
    ///
    /// # Errors
    ///
    /// KVM refuses, for example because dirty pages are not being tracked.
    pub fn take_dirty(&mut self) -> Result<Vec<u64>> {
        let mut frames = Vec::new();
        let Some(memory) = &self.memory else { return Ok(frames) };
        for (slot, region) in (0..).zip(memory.iter()) {
            let by_guest = self
                .fd
                .get_dirty_log(slot, region.size())
                .map_err(Error::request("report which pages the guest wrote"))?;
            let by_user_space = region.get_mmap().bitmap().get_and_reset();
            let first = region.start_addr().raw_value() >> PAGE_SHIFT;
            let pages = region.len() >> PAGE_SHIFT;
            collect_frames(first, pages, &by_guest, &by_user_space, &mut frames);
        }
        Ok(frames)
    }

    /// Makes the virtual machine's processor: in real mode at the reset vector, until registers
    /// are set. It has the APIC switched on at its usual address, and is the boot processor.
    ///
    /// # Errors
    ///
    /// KVM refuses, or the processor's features in `cpuid` cannot be had.
    pub fn create_vcpu(&self, cpuid: &Cpuid) -> Result<Vcpu> {
        let fd = self.fd.create_vcpu(0).map_err(Error::request("create a virtual CPU"))?;
        Vcpu::new(fd, self.fd.run_size(), cpuid, self.memory.clone())
    }
}

/// Appends the frames whose bit is set in either bitmap of a region with `pages` pages.
fn collect_frames(first: u64, pages: u64, one: &[u64], other: &[u64], frames: &mut Vec<u64>) {
    for place in 0..one.len().max(other.len()) {
        let word = |bitmap: &[u64]| bitmap.get(place).copied().unwrap_or(0);
        let mut bits = word(one) | word(other);
        while bits != 0 {
            let page = place as u64 * 64 + u64::from(bits.trailing_zeros());
            if page < pages {
                frames.push(first + page);
            }
            bits &= bits - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn user_space_writes_are_found_in_the_bitmap() {
        let ranges = [(GuestAddress(0x10_0000), 0x10_0000)];
        let memory = GuestMemory::from_ranges(&ranges).expect("memory");
        memory.write_slice(&[1; 0x1001], GuestAddress(0x10_4fff)).expect("inside");
        let region = memory.iter().next().expect("one region");
        let mut frames = Vec::new();
        let bits = region.get_mmap().bitmap().get_and_reset();
        collect_frames(0x100, 0x100, &[], &bits, &mut frames);
        assert_eq!(frames, [0x104, 0x105]);
        assert!(region.get_mmap().bitmap().get_and_reset().iter().all(|word| *word == 0));
    }

    proptest! {
        #[test]
        fn frames_are_the_union_in_ascending_order(
            first in 0_u64..1 << 40,
            pages in 1_u64..400,
            guest in proptest::collection::btree_set(0_u64..400, 0..40),
            user in proptest::collection::btree_set(0_u64..400, 0..40),
        ) {
            let bitmap = |set: &BTreeSet<u64>| {
                let mut words = vec![0_u64; 7];
                for page in set {
                    words[(page / 64) as usize] |= 1 << (page % 64);
                }
                words
            };
            let mut frames = Vec::new();
            collect_frames(first, pages, &bitmap(&guest), &bitmap(&user), &mut frames);
            let expected: Vec<u64> =
                guest.union(&user).filter(|page| **page < pages).map(|page| first + page).collect();
            prop_assert_eq!(frames, expected);
        }
    }
}
