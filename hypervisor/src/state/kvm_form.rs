//! The state of a virtual CPU in the structures that KVM takes and gives.

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, kvm_dtable, kvm_segment,
    kvm_sregs, kvm_vcpu_events, kvm_xsave,
};

use super::{DescriptorTable, Events, FloatingPoint, Segment, SystemRegisters};

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment() -> impl Strategy<Value = Segment> {
        (any::<(u64, u32, u16)>(), any::<[u8; 9]>()).prop_map(|((base, limit, selector), bytes)| {
            let [kind, present, dpl, db, s, l, g, avl, unusable] = bytes;
            Segment { base, limit, selector, kind, present, dpl, db, s, l, g, avl, unusable }
        })
    }

    proptest! {
        #[test]
        fn segments_come_back(segment in segment()) {
            prop_assert_eq!(Segment::from(&kvm_segment::from(&segment)), segment);
        }

        #[test]
        fn system_registers_come_back(
            segments in proptest::collection::vec(segment(), 8),
            (gdt, idt) in any::<((u64, u16), (u64, u16))>(),
            [cr0, cr2, cr3, cr4, cr8, efer, apic_base] in any::<[u64; 7]>(),
        ) {
            let system = SystemRegisters {
                cs: segments[0], ds: segments[1], es: segments[2], fs: segments[3],
                gs: segments[4], ss: segments[5], tr: segments[6], ldt: segments[7],
                gdt: DescriptorTable { base: gdt.0, limit: gdt.1 },
                idt: DescriptorTable { base: idt.0, limit: idt.1 },
                cr0, cr2, cr3, cr4, cr8, efer, apic_base,
            };
            prop_assert_eq!(SystemRegisters::from(&kvm_sregs::from(&system)), system);
        }

        #[test]
        fn floating_point_comes_back(
            (fcw, fsw, ftw, fop) in any::<(u16, u16, u8, u16)>(),
            (fip, fdp, mxcsr) in any::<(u64, u64, u32)>(),
            st: [[u8; 10]; 8],
            xmm: [[u8; 16]; 16],
        ) {
            let state = FloatingPoint { fcw, fsw, ftw, fop, fip, fdp, mxcsr, st, xmm };
            prop_assert_eq!(FloatingPoint::from(&kvm_xsave::from(&state)), state);
        }

        #[test]
        fn events_come_back(
            exception: Option<(u8, Option<u32>)>,
            interrupt: Option<(u8, bool)>,
            shadow in 0_u8..4,
            nmi: (bool, bool, bool),
        ) {
            let events = Events { exception, interrupt, shadow, nmi };
            prop_assert_eq!(Events::from(&kvm_vcpu_events::from(&events)), events);
        }
    }

    #[test]
    fn the_image_has_the_places_of_fxsave() {
        let state = FloatingPoint {
            fcw: 0x037f,
            mxcsr: 0x1f80,
            st: [[1; 10]; 8],
            xmm: [[2; 16]; 16],
            ..Default::default()
        };
        let xsave = kvm_xsave::from(&state);
        assert_eq!(xsave.region[0], 0x037f);
        assert_eq!(xsave.region[6], 0x1f80);
        assert_eq!(xsave.region[8], 0x0101_0101, "the first x87 register");
        assert_eq!(xsave.region[10], 0x0000_0101, "has ten bytes");
        assert_eq!(xsave.region[40], 0x0202_0202, "the first SSE register");
        assert_eq!(xsave.region[128], 3, "both parts are in use");
    }

    #[test]
    fn a_pending_interrupt_is_kept_in_one_place_only() {
        let sregs = kvm_sregs { interrupt_bitmap: [1, 0, 0, 0], ..Default::default() };
        assert_eq!(kvm_sregs::from(&SystemRegisters::from(&sregs)).interrupt_bitmap, [0; 4]);
    }
}
