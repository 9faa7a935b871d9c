//! A guest's accesses to the ports and registers of the platform: PIC, PIT, RTC, UART, local APIC,
//! I/O APIC, power management, PCI configuration.

use arbitrary::{Arbitrary, Unstructured};
use vmm::devices::{Clock, Effect, Platform, PlatformConfig};

const STEPS_MAX: usize = 2000;
/// Machine time at which a fuzzed machine stops ageing: 146 years.
const NOW_MAX_NS: u64 = 1 << 62;

/// Ports where something is.
const PORTS: &[u16] = &[
    0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x64, 0x70, 0x71, 0x80,
    0x92, 0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x600, 0x602, 0x604, 0x608,
    0x60b, 0x620, 0x622, 0xcf8, 0xcf9, 0xcfc, 0xcfd, 0xcff,
];

/// What happens to a platform.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Step {
    In {
        port: u8,
        length: u8,
    },
    Out {
        port: u8,
        data: [u8; 4],
        length: u8,
    },
    AnyIn {
        port: u16,
        length: u8,
    },
    AnyOut {
        port: u16,
        data: Vec<u8>,
    },
    Load {
        apic: Apic,
        offset: u16,
        length: u8,
    },
    Store {
        apic: Apic,
        register: u8,
        value: u32,
    },
    AnyStore {
        address: u64,
        data: Vec<u8>,
    },
    Wait {
        nanoseconds: u32,
    },
    WaitLong {
        seconds: u32,
    },
    WaitForDeadline,
    /// Any time at all, backwards too: a log may say so.
    Clock(u64),
    Line {
        gsi: u8,
        level: bool,
    },
    Msi {
        address: u32,
        data: u32,
    },
    Acknowledge,
    Priority(u8),
    Input(Vec<u8>),
    PowerButton,
    PowerCycle,
}

/// Whose registers.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Apic {
    Local,
    Io,
}

impl Apic {
    fn address(self) -> u64 {
        match self {
            Apic::Local => 0xfee0_0000,
            Apic::Io => 0xfec0_0000,
        }
    }
}

struct Now(u64);

impl Clock for Now {
    fn now(&mut self) -> u64 {
        self.0
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut source = Unstructured::new(data);
    let config = PlatformConfig { serial: true, boot_time_unix_ns: 1_700_000_000_000_000_000 };
    let mut platform = Platform::new(config);
    let mut copied = platform.clone();
    let mut now = 0;
    for number in 0..STEPS_MAX {
        if source.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut source) else { break };
        let mut copied_now = now;
        let seen = take(&mut platform, &step, &mut now);
        assert_eq!(take(&mut copied, &step, &mut copied_now), seen);
        assert_eq!(platform, copied);
        if number % 16 == 0 {
            copied = Platform::restore(platform.state()).expect("a state that was reached");
        }
    }
}

/// Takes a step; returns all that can be seen of it.
pub(crate) fn take(platform: &mut Platform, step: &Step, now: &mut u64) -> (Vec<u8>, Vec<Effect>) {
    let mut effects = Vec::new();
    let mut data = [0xff; 16];
    let mut length = 0;
    let mut clock = Now(*now);
    match step {
        Step::In { port, length: bytes } => {
            length = usize::from(bytes % 5);
            platform.io_read(known(*port), &mut data[..length], &mut clock);
        }
        Step::Out { port, data, length } => {
            let data = &data[..usize::from(length % 5)];
            platform.io_write(known(*port), data, &mut clock, &mut effects);
        }
        Step::AnyIn { port, length: bytes } => {
            length = usize::from(bytes % 17);
            platform.io_read(*port, &mut data[..length], &mut clock);
        }
        Step::AnyOut { port, data } => {
            platform.io_write(*port, data, &mut clock, &mut effects);
        }
        Step::Load { apic, offset, length: bytes } => {
            length = usize::from(bytes % 9);
            let address = apic.address() + u64::from(*offset);
            platform.mmio_read(address, &mut data[..length], &mut clock);
        }
        Step::Store { apic, register, value } => {
            let address = apic.address() + 16 * u64::from(*register);
            platform.mmio_write(address, &value.to_le_bytes(), &mut clock, &mut effects);
        }
        Step::AnyStore { address, data } => {
            platform.mmio_write(*address, data, &mut clock, &mut effects);
        }
        Step::Wait { .. } | Step::WaitLong { .. } | Step::WaitForDeadline => {
            wait(platform, step, now);
        }
        Step::Clock(time) => {
            *now = *time;
            platform.advance(*now);
        }
        Step::Acknowledge => {
            let pending = platform.pending_interrupt();
            let vector = platform.acknowledge();
            assert_eq!(pending, vector.is_some());
            data[0] = vector.unwrap_or(0);
            length = 1;
        }
        Step::Line { gsi, level } => platform.set_line(*gsi, *level),
        Step::Msi { address, data } => platform.msi((*address).into(), *data),
        Step::Priority(priority) => platform.set_tpr(*priority),
        Step::Input(bytes) => {
            assert!(platform.serial_input(bytes) <= bytes.len());
        }
        Step::PowerButton => platform.power_button(),
        Step::PowerCycle => platform.power_cycle(),
    }
    (data[..length].to_vec(), effects)
}

fn known(port: u8) -> u16 {
    PORTS[usize::from(port) % PORTS.len()]
}

fn wait(platform: &mut Platform, step: &Step, now: &mut u64) {
    let until = match step {
        Step::Wait { nanoseconds } => now.saturating_add((*nanoseconds).into()),
        Step::WaitLong { seconds } => now.saturating_add(u64::from(*seconds) * 1_000_000_000),
        _ => platform.next_deadline().unwrap_or(0).max(*now),
    };
    *now = until.min(NOW_MAX_NS.max(*now));
    platform.advance(*now);
    let deadline = platform.next_deadline();
    assert!(
        *now > NOW_MAX_NS || deadline.is_none_or(|deadline| deadline > *now),
        "a deadline stays in the past"
    );
}
