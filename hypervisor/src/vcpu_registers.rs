//! The registers and addresses of a virtual CPU.
//!
//! KVM copies the general registers into the page it shares with us at every exit, so reading them
//! costs no system call. That copy is kept right whenever we change them.

use kvm_bindings::{KVM_SYNC_X86_REGS, kvm_regs, kvm_segment};
use vm_memory::{Bytes, GuestAddress};

use crate::{Error, GuestMemory, Registers, Result, Vcpu};

/// The longest instruction there is, in bytes.
const INSTRUCTION_BYTES_MAX: usize = 15;
const PAGE_BYTES: u64 = 4096;

impl Vcpu {
    /// The general registers as of the last exit. At an exit for input the register that receives
    /// it is still the old one ([`settle`](Vcpu::settle)).
    ///
    /// # Errors
    ///
    /// None at present.
    pub fn registers(&self) -> Result<Registers> {
        Ok(Registers::from(&self.fd.sync_regs().regs))
    }

    /// Replaces the general registers. The CPU must be settled.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn set_registers(&mut self, registers: &Registers) -> Result<()> {
        let regs = kvm_regs::from(registers);
        self.fd.set_regs(&regs).map_err(Error::request("set registers"))?;
        self.fd.sync_regs_mut().regs = regs;
        self.fd.get_kvm_run().kvm_dirty_regs = 0;
        Ok(())
    }

    /// Sets `edx` as a 32-bit instruction does: the upper half of `rdx` becomes zero. Meant for the
    /// exit of an `in` instruction, beside its answer.
    pub fn set_edx(&mut self, value: u32) {
        self.fd.sync_regs_mut().regs.rdx = u64::from(value);
        self.fd.get_kvm_run().kvm_dirty_regs = u64::from(KVM_SYNC_X86_REGS);
    }

    /// Sets `ecx`, as [`set_edx`](Vcpu::set_edx) sets `edx`.
    pub fn set_ecx(&mut self, value: u32) {
        self.fd.sync_regs_mut().regs.rcx = u64::from(value);
        self.fd.get_kvm_run().kvm_dirty_regs = u64::from(KVM_SYNC_X86_REGS);
    }

    pub(crate) fn rip(&self) -> u64 {
        self.fd.sync_regs().regs.rip
    }

    /// The guest physical address of a linear one, if it has one.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn translate(&self, address: u64) -> Result<Option<u64>> {
        let translation =
            self.fd.translate_gva(address).map_err(Error::request("translate an address"))?;
        Ok((translation.valid != 0).then_some(translation.physical_address))
    }

    /// The linear address of an instruction pointer.
    pub(crate) fn linear_address(&self, rip: u64) -> Result<u64> {
        // Only in 64-bit mode can it be that large, and there the code segment has no base.
        if rip > u64::from(u32::MAX) {
            return Ok(rip);
        }
        let sregs = self.fd.get_sregs().map_err(Error::request("read system registers"))?;
        Ok(if sregs.cs.l != 0 { rip } else { sregs.cs.base.wrapping_add(rip) & 0xffff_ffff })
    }

    /// The bytes at the instruction pointer: up to 15, fewer where memory ends.
    ///
    /// # Errors
    ///
    /// KVM refuses to translate the address.
    pub fn instruction_bytes(&self, memory: &GuestMemory) -> Result<Vec<u8>> {
        self.instruction_bytes_at(self.rip(), memory)
    }

    /// As [`instruction_bytes`](Vcpu::instruction_bytes), for any instruction pointer.
    ///
    /// # Errors
    ///
    /// KVM refuses to translate the address.
    pub fn instruction_bytes_at(&self, rip: u64, memory: &GuestMemory) -> Result<Vec<u8>> {
        let start = self.linear_address(rip)?;
        let mut bytes = Vec::with_capacity(INSTRUCTION_BYTES_MAX);
        while bytes.len() < INSTRUCTION_BYTES_MAX {
            let address = start.wrapping_add(bytes.len() as u64);
            let Some(physical) = self.translate(address)? else { break };
            let to_page_end = (PAGE_BYTES - address % PAGE_BYTES) as usize;
            let mut part = [0; INSTRUCTION_BYTES_MAX];
            let length = to_page_end.min(INSTRUCTION_BYTES_MAX - bytes.len());
            if memory.read_slice(&mut part[..length], GuestAddress(physical)).is_err() {
                break;
            }
            bytes.extend_from_slice(&part[..length]);
        }
        Ok(bytes)
    }

    /// Prepares the CPU for the entry of a kernel by the PVH boot protocol: 32-bit protected mode
    /// without paging, flat segments, `ebx` with the address of the start information.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn set_pvh_entry(&mut self, entry: u64, start_info: u64) -> Result<()> {
        let flat = |selector, kind| kvm_segment {
            base: 0,
            limit: u32::MAX,
            selector,
            type_: kind,
            present: 1,
            db: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        // Types: code, readable, accessed; data, writable, accessed; busy 32-bit task segment.
        let (code, data) = (flat(0x8, 0xb), flat(0x10, 0x3));
        let task = kvm_segment {
            limit: 0x67,
            selector: 0x18,
            type_: 0xb,
            present: 1,
            ..Default::default()
        };
        let mut sregs = self.fd.get_sregs().map_err(Error::request("read system registers"))?;
        sregs.cs = code;
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = task;
        // Protected mode; the bit of the numeric coprocessor is always one.
        sregs.cr0 = 1 | 1 << 4;
        sregs.cr4 = 0;
        sregs.efer = 0;
        self.fd.set_sregs(&sregs).map_err(Error::request("set system registers"))?;
        self.set_registers(&Registers {
            rip: entry,
            rbx: start_info,
            rflags: 2,
            ..Default::default()
        })
    }
}
