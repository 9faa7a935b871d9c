//! The complete state of a virtual CPU, as plain data, and how it goes into and comes out of KVM.
//!
//! The state is complete because the processor is poor: no XSAVE, no nested virtualisation, no
//! system management mode, no performance counters, and no MSR outside the one list in `msr`.

mod kvm_form;

use kvm_bindings::{Msrs, kvm_debugregs, kvm_msr_entry, kvm_sregs, kvm_vcpu_events, kvm_xsave};
use serde::{Deserialize, Serialize};

use crate::{Error, Registers, Result, Vcpu, msr};

/// All that the guest can tell about its processor, between two instructions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General registers.
    pub registers: Registers,
    /// Segments, tables and control registers.
    pub system: SystemRegisters,
    /// x87, MMX and SSE.
    pub floating_point: FloatingPoint,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// What is on its way into the guest.
    pub events: Events,
    /// Model-specific registers, in ascending order.
    pub msrs: Vec<Msr>,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are those of a segment descriptor
pub struct Segment {
    pub base: u64,
    pub limit: u32,
    pub selector: u16,
    pub kind: u8,
    pub present: u8,
    pub dpl: u8,
    pub db: u8,
    pub s: u8,
    pub l: u8,
    pub g: u8,
    pub avl: u8,
    pub unusable: u8,
}

/// The place of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are the register's own
pub struct DescriptorTable {
    pub base: u64,
    pub limit: u16,
}

/// Segments, descriptor tables and control registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are the registers' own names
pub struct SystemRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}

/// The floating-point state in the form of the FXSAVE instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are named as in the manual of FXSAVE
pub struct FloatingPoint {
    pub fcw: u16,
    pub fsw: u16,
    pub ftw: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    pub mxcsr: u32,
    pub st: [[u8; 10]; 8],
    pub xmm: [[u8; 16]; 16],
}

/// Debug registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are the registers' own names
pub struct DebugRegisters {
    pub db: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

/// Exceptions and interrupts that the guest has yet to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// The vector and, if it has one, the error code of an exception.
    pub exception: Option<(u8, Option<u32>)>,
    /// The vector of an interrupt, and whether an instruction raised it.
    pub interrupt: Option<(u8, bool)>,
    /// The shadow of `sti` (bit 1) and of a move to `ss` (bit 0).
    pub shadow: u8,
    /// Whether a non-maskable interrupt is half delivered, waits, or is blocked by another.
    pub nmi: (bool, bool, bool),
}

/// A model-specific register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// Which.
    pub index: u32,
    /// Its value.
    pub value: u64,
}

impl Vcpu {
    /// Reads the complete state. The CPU must be settled ([`Vcpu::settle`]).
    ///
    /// # Errors
    ///
    /// The CPU is not settled, or KVM refuses.
    pub fn save(&mut self) -> Result<VcpuState> {
        if !self.is_settled() {
            return Err(Error::Unsettled("be saved"));
        }
        let fd = &self.fd;
        let sregs = fd.get_sregs().map_err(Error::request("read system registers"))?;
        let xsave = fd.get_xsave().map_err(Error::request("read floating-point registers"))?;
        let debug = fd.get_debug_regs().map_err(Error::request("read debug registers"))?;
        let events = fd.get_vcpu_events().map_err(Error::request("read pending exceptions"))?;
        let mut system = SystemRegisters::from(&sregs);
        // KVM takes CR8 from the shared page when it enters the guest.
        system.cr8 = u64::from(self.tpr());
        Ok(VcpuState {
            registers: self.registers()?,
            system,
            floating_point: FloatingPoint::from(&xsave),
            debug: DebugRegisters { db: debug.db, dr6: debug.dr6, dr7: debug.dr7 },
            events: Events::from(&events),
            msrs: self.read_msrs()?,
        })
    }

    /// Replaces the complete state. What the last exit left unfinished is finished and thrown away
    /// first. Afterwards the CPU is settled and [`Vcpu::can_inject`] is right.
    ///
    /// # Errors
    ///
    /// KVM refuses a part of the state; the CPU is then not usable.
    pub fn restore(&mut self, state: &VcpuState) -> Result<()> {
        self.abandon("be replaced")?;
        self.fd.get_kvm_run().request_interrupt_window = 0;
        self.set_system_registers(&state.system)?;
        self.set_registers(&state.registers)?;
        let xsave = kvm_xsave::from(&state.floating_point);
        // SAFETY: the structure is larger than what KVM reads only if a feature was enabled for
        // this process that needs more (AMX, by `arch_prctl`), which nothing here does.
        unsafe { self.fd.set_xsave(&xsave) }
            .map_err(Error::request("set floating-point registers"))?;
        self.write_msrs(&state.msrs)?;
        let DebugRegisters { db, dr6, dr7 } = state.debug;
        let debug = kvm_debugregs { db, dr6, dr7, ..Default::default() };
        self.fd.set_debug_regs(&debug).map_err(Error::request("set debug registers"))?;
        let events = kvm_vcpu_events::from(&state.events);
        self.fd.set_vcpu_events(&events).map_err(Error::request("set pending exceptions"))?;
        self.fd.get_kvm_run().cr8 = state.system.cr8;
        self.forget_past();
        // KVM renews what it says about the interrupt flag only on the way out of a run.
        match self.settle()? {
            None => Ok(()),
            Some(_) => Err(Error::Unsettled("be replaced")),
        }
    }

    /// Sets the system registers and makes the processor forget every translation of an address.
    ///
    /// The state may come with memory whose page tables are others. KVM flushes nothing while the
    /// registers of paging stay the same, so they are given another value first.
    fn set_system_registers(&self, state: &SystemRegisters) -> Result<()> {
        let sregs = kvm_sregs::from(state);
        let other = kvm_sregs { cr3: sregs.cr3 ^ 1 << 12, ..sregs };
        for sregs in [&other, &sregs] {
            self.fd.set_sregs(sregs).map_err(Error::request("set system registers"))?;
        }
        Ok(())
    }

    fn read_msrs(&self) -> Result<Vec<Msr>> {
        let entries: Vec<_> = msr::saved_indices()
            .map(|index| kvm_msr_entry { index, ..Default::default() })
            .collect();
        let mut msrs =
            Msrs::from_entries(&entries).map_err(|_| Error::Msr { action: "read", index: 0 })?;
        let done =
            self.fd.get_msrs(&mut msrs).map_err(Error::request("read model-specific registers"))?;
        if let Some(entry) = entries.get(done) {
            return Err(Error::Msr { action: "read", index: entry.index });
        }
        Ok(msrs
            .as_slice()
            .iter()
            .map(|entry| Msr { index: entry.index, value: entry.data })
            .collect())
    }

    fn write_msrs(&self, msrs: &[Msr]) -> Result<()> {
        // A state from elsewhere must not reach registers that are not part of a state.
        if let Some(msr) =
            msrs.iter().find(|msr| !msr::saved_indices().any(|index| index == msr.index))
        {
            return Err(Error::Msr { action: "write", index: msr.index });
        }
        let entries: Vec<_> = msrs
            .iter()
            .map(|msr| kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() })
            .collect();
        let list =
            Msrs::from_entries(&entries).map_err(|_| Error::Msr { action: "write", index: 0 })?;
        let done =
            self.fd.set_msrs(&list).map_err(Error::request("write model-specific registers"))?;
        match entries.get(done) {
            Some(entry) => Err(Error::Msr { action: "write", index: entry.index }),
            None => Ok(()),
        }
    }
}
