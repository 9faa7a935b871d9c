//! The complete state of a virtual CPU, as plain data, and how it goes into and comes out of KVM.
//!
//! The state is complete because the processor is poor: no XSAVE, no nested virtualisation, no
//! system management mode, no performance counters, and no MSR outside the one list in `msr`.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, Msrs, kvm_debugregs, kvm_dtable,
    kvm_msr_entry, kvm_segment, kvm_sregs, kvm_vcpu_events, kvm_xsave,
};
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
        let sregs = kvm_sregs::from(&state.system);
        self.fd.set_sregs(&sregs).map_err(Error::request("set system registers"))?;
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

impl From<&kvm_segment> for Segment {
    fn from(segment: &kvm_segment) -> Self {
        let kvm_segment { base, limit, selector, type_: kind, present, dpl, .. } = *segment;
        let kvm_segment { db, s, l, g, avl, unusable, .. } = *segment;
        Self { base, limit, selector, kind, present, dpl, db, s, l, g, avl, unusable }
    }
}

impl From<&Segment> for kvm_segment {
    fn from(segment: &Segment) -> Self {
        let Segment { base, limit, selector, kind: type_, present, dpl, .. } = *segment;
        let Segment { db, s, l, g, avl, unusable, .. } = *segment;
        Self { base, limit, selector, type_, present, dpl, db, s, l, g, avl, unusable, padding: 0 }
    }
}

impl From<&kvm_sregs> for SystemRegisters {
    fn from(sregs: &kvm_sregs) -> Self {
        let table = |table: &kvm_dtable| DescriptorTable { base: table.base, limit: table.limit };
        let segment = |segment: &kvm_segment| Segment::from(segment);
        Self {
            cs: segment(&sregs.cs),
            ds: segment(&sregs.ds),
            es: segment(&sregs.es),
            fs: segment(&sregs.fs),
            gs: segment(&sregs.gs),
            ss: segment(&sregs.ss),
            tr: segment(&sregs.tr),
            ldt: segment(&sregs.ldt),
            gdt: table(&sregs.gdt),
            idt: table(&sregs.idt),
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            cr8: sregs.cr8,
            efer: sregs.efer,
            apic_base: sregs.apic_base,
        }
    }
}

impl From<&SystemRegisters> for kvm_sregs {
    fn from(system: &SystemRegisters) -> Self {
        let table = |table: &DescriptorTable| kvm_dtable {
            base: table.base,
            limit: table.limit,
            ..Default::default()
        };
        let segment = |segment: &Segment| kvm_segment::from(segment);
        Self {
            cs: segment(&system.cs),
            ds: segment(&system.ds),
            es: segment(&system.es),
            fs: segment(&system.fs),
            gs: segment(&system.gs),
            ss: segment(&system.ss),
            tr: segment(&system.tr),
            ldt: segment(&system.ldt),
            gdt: table(&system.gdt),
            idt: table(&system.idt),
            cr0: system.cr0,
            cr2: system.cr2,
            cr3: system.cr3,
            cr4: system.cr4,
            cr8: system.cr8,
            efer: system.efer,
            apic_base: system.apic_base,
            // A pending interrupt is in `Events`.
            interrupt_bitmap: [0; 4],
        }
    }
}

/// Offsets in the image that FXSAVE makes, and the word behind it that says what XSAVE holds.
mod image {
    pub(super) const FCW: usize = 0;
    pub(super) const FSW: usize = 2;
    pub(super) const FTW: usize = 4;
    pub(super) const FOP: usize = 6;
    pub(super) const FIP: usize = 8;
    pub(super) const FDP: usize = 16;
    pub(super) const MXCSR: usize = 24;
    pub(super) const ST: usize = 32;
    pub(super) const XMM: usize = 160;
    pub(super) const PARTS: usize = 512;
    /// The parts x87 and SSE.
    pub(super) const X87_AND_SSE: u64 = 3;
}

impl From<&kvm_xsave> for FloatingPoint {
    fn from(xsave: &kvm_xsave) -> Self {
        Self {
            fcw: u16::from_le_bytes(bytes(xsave, image::FCW)),
            fsw: u16::from_le_bytes(bytes(xsave, image::FSW)),
            ftw: u8::from_le_bytes(bytes(xsave, image::FTW)),
            fop: u16::from_le_bytes(bytes(xsave, image::FOP)),
            fip: u64::from_le_bytes(bytes(xsave, image::FIP)),
            fdp: u64::from_le_bytes(bytes(xsave, image::FDP)),
            mxcsr: u32::from_le_bytes(bytes(xsave, image::MXCSR)),
            st: std::array::from_fn(|place| bytes(xsave, image::ST + place * 16)),
            xmm: std::array::from_fn(|place| bytes(xsave, image::XMM + place * 16)),
        }
    }
}

impl From<&FloatingPoint> for kvm_xsave {
    fn from(state: &FloatingPoint) -> Self {
        let mut xsave = Self::default();
        put(&mut xsave, image::FCW, &state.fcw.to_le_bytes());
        put(&mut xsave, image::FSW, &state.fsw.to_le_bytes());
        put(&mut xsave, image::FTW, &state.ftw.to_le_bytes());
        put(&mut xsave, image::FOP, &state.fop.to_le_bytes());
        put(&mut xsave, image::FIP, &state.fip.to_le_bytes());
        put(&mut xsave, image::FDP, &state.fdp.to_le_bytes());
        put(&mut xsave, image::MXCSR, &state.mxcsr.to_le_bytes());
        for (place, register) in state.st.iter().enumerate() {
            put(&mut xsave, image::ST + place * 16, register);
        }
        for (place, register) in state.xmm.iter().enumerate() {
            put(&mut xsave, image::XMM + place * 16, register);
        }
        put(&mut xsave, image::PARTS, &image::X87_AND_SSE.to_le_bytes());
        xsave
    }
}

fn bytes<const N: usize>(xsave: &kvm_xsave, offset: usize) -> [u8; N] {
    std::array::from_fn(|place| {
        let place = offset + place;
        xsave.region[place / 4].to_le_bytes()[place % 4]
    })
}

fn put(xsave: &mut kvm_xsave, offset: usize, bytes: &[u8]) {
    for (place, byte) in (offset..).zip(bytes) {
        let word = &mut xsave.region[place / 4];
        let mut parts = word.to_le_bytes();
        parts[place % 4] = *byte;
        *word = u32::from_le_bytes(parts);
    }
}

impl From<&kvm_vcpu_events> for Events {
    fn from(events: &kvm_vcpu_events) -> Self {
        // KVM reports a pending exception as injected, too, as nobody asked it for the difference.
        let code = (events.exception.has_error_code != 0).then_some(events.exception.error_code);
        Self {
            exception: (events.exception.injected != 0).then_some((events.exception.nr, code)),
            interrupt: (events.interrupt.injected != 0)
                .then_some((events.interrupt.nr, events.interrupt.soft != 0)),
            shadow: events.interrupt.shadow,
            nmi: (events.nmi.injected != 0, events.nmi.pending != 0, events.nmi.masked != 0),
        }
    }
}

impl From<&Events> for kvm_vcpu_events {
    fn from(state: &Events) -> Self {
        let mut events = Self {
            flags: KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING,
            ..Default::default()
        };
        if let Some((vector, code)) = state.exception {
            events.exception.injected = 1;
            events.exception.nr = vector;
            events.exception.has_error_code = u8::from(code.is_some());
            events.exception.error_code = code.unwrap_or(0);
        }
        if let Some((vector, soft)) = state.interrupt {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
            events.interrupt.soft = u8::from(soft);
        }
        events.interrupt.shadow = state.shadow;
        let (injected, pending, masked) = state.nmi;
        events.nmi.injected = u8::from(injected);
        events.nmi.pending = u8::from(pending);
        events.nmi.masked = u8::from(masked);
        events
    }
}
