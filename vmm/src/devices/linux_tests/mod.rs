//! The platform as Linux programs it: the sequences of accesses of its x86 drivers, by name.
//!
//! Owns the stand-in for a guest; the sequences are in the files beside this one.

mod clock;
mod interrupts;
mod power;
mod serial;

use super::{Clock, Effect, Platform, PlatformConfig};

/// 2021-03-04 05:06:07.5 UTC, a Thursday.
const BOOT_TIME_NS: i64 = 1_614_834_367_500_000_000;

const IOAPIC: u64 = 0xfec0_0000;
const LAPIC: u64 = 0xfee0_0000;
const TASK_PRIORITY: u64 = 0x080;
const END_OF_INTERRUPT: u64 = 0x0b0;
const SPURIOUS: u64 = 0x0f0;
const LVT_TIMER: u64 = 0x320;
const LVT_LINT0: u64 = 0x350;
const INITIAL_COUNT: u64 = 0x380;
const CURRENT_COUNT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

/// Time that passes with each question, and how many there were.
struct Time {
    now: u64,
    asked: u32,
}

impl Clock for Time {
    fn now(&mut self) -> u64 {
        self.now += 1000;
        self.asked += 1;
        self.now
    }
}

/// What stands before the platform: an instruction stream that a test spells out.
struct Guest {
    platform: Platform,
    time: Time,
    effects: Vec<Effect>,
}

impl Guest {
    fn new() -> Self {
        let config = PlatformConfig { serial: true, boot_time_unix_ns: BOOT_TIME_NS };
        Self {
            platform: Platform::new(config),
            time: Time { now: 0, asked: 0 },
            effects: Vec::new(),
        }
    }

    fn outb(&mut self, port: u16, value: u8) {
        let Self { platform, time, effects } = self;
        assert!(platform.io_write(port, &[value], time, effects), "nobody at {port:#x}");
    }

    fn outw(&mut self, port: u16, value: u16) {
        let Self { platform, time, effects } = self;
        assert!(platform.io_write(port, &value.to_le_bytes(), time, effects));
    }

    fn outl(&mut self, port: u16, value: u32) {
        let Self { platform, time, effects } = self;
        assert!(platform.io_write(port, &value.to_le_bytes(), time, effects));
    }

    fn inb(&mut self, port: u16) -> u8 {
        let mut data = [0xff];
        self.platform.io_read(port, &mut data, &mut self.time);
        data[0]
    }

    fn inw(&mut self, port: u16) -> u16 {
        let mut data = [0xff; 2];
        self.platform.io_read(port, &mut data, &mut self.time);
        u16::from_le_bytes(data)
    }

    fn inl(&mut self, port: u16) -> u32 {
        let mut data = [0xff; 4];
        self.platform.io_read(port, &mut data, &mut self.time);
        u32::from_le_bytes(data)
    }

    fn apic_write(&mut self, register: u64, value: u32) {
        let Self { platform, time, effects } = self;
        assert!(platform.mmio_write(LAPIC + register, &value.to_le_bytes(), time, effects));
    }

    fn apic_read(&mut self, register: u64) -> u32 {
        let mut data = [0; 4];
        assert!(self.platform.mmio_read(LAPIC + register, &mut data, &mut self.time));
        u32::from_le_bytes(data)
    }

    fn ioapic_write(&mut self, register: u8, value: u32) {
        let Self { platform, time, effects } = self;
        let select = u32::from(register).to_le_bytes();
        platform.mmio_write(IOAPIC, &select, time, effects);
        platform.mmio_write(IOAPIC + 0x10, &value.to_le_bytes(), time, effects);
    }

    /// Routes a pin to `vector` in logical mode, as Linux does on a machine with few processors.
    fn route(&mut self, pin: u8, vector: u8, level: bool) {
        self.ioapic_write(0x11 + 2 * pin, 1 << 24);
        self.ioapic_write(0x10 + 2 * pin, 0x800 | u32::from(level) << 15 | u32::from(vector));
    }

    /// What `setup_local_APIC` writes that matters here.
    fn set_up_local_apic(&mut self) {
        self.apic_write(0x0e0, 0xffff_ffff);
        self.apic_write(0x0d0, 1 << 24);
        self.apic_write(TASK_PRIORITY, 0x10);
        self.apic_write(SPURIOUS, 0x1ff);
        self.apic_write(LVT_LINT0, 0x1_0700);
    }

    /// Takes the next interrupt and ends it at the local APIC.
    fn take_interrupt(&mut self) -> Option<u8> {
        let vector = self.platform.acknowledge()?;
        self.apic_write(END_OF_INTERRUPT, 0);
        Some(vector)
    }

    /// Sleeps until the next deadline; `None` if there is none.
    fn wait(&mut self) -> Option<u64> {
        self.time.now = self.time.now.max(self.platform.next_deadline()?);
        self.platform.advance(self.time.now);
        Some(self.time.now)
    }
}
