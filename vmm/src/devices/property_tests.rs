//! Whatever a guest does, at whatever time: no panic, no difference between two platforms that are
//! told the same, no state that a copy does not hold, no deadline that stays in the past.

use proptest::prelude::*;

use super::{Clock, Effect, Platform, PlatformConfig, PlatformState};

#[derive(Clone, Debug)]
enum Step {
    In { port: u16, length: usize },
    Out { port: u16, data: Vec<u8> },
    Load { address: u64, length: usize },
    Store { address: u64, data: Vec<u8> },
    Wait(u64),
    WaitForDeadline,
    Line { gsi: u8, level: bool },
    Msi { address: u64, data: u32 },
    Acknowledge,
    Priority(u8),
    Input(Vec<u8>),
    PowerButton,
}

struct Now(u64);

impl Clock for Now {
    fn now(&mut self) -> u64 {
        self.0
    }
}

/// Ports where something is, and now and then any port.
fn port() -> impl Strategy<Value = u16> {
    let known = [
        0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x64, 0x70, 0x71, 0x92,
        0x3f8, 0x3f9, 0x3fa, 0x3fb, 0x3fc, 0x3fd, 0x3fe, 0x3ff, 0x600, 0x602, 0x604, 0x608, 0x60b,
        0x620, 0x622, 0xcf8, 0xcf9, 0xcfc, 0xcfd, 0xcff,
    ];
    prop_oneof![9 => prop::sample::select(known.to_vec()), 1 => any::<u16>()]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0u64..0x40).prop_map(|register| 0xfee0_0000 + 16 * register),
        3 => prop::sample::select(vec![0xfec0_0000u64, 0xfec0_0010, 0xfec0_0040]),
        1 => prop_oneof![0xfee0_0000u64..0xfee0_1000, 0xfec0_0000u64..0xfec0_1000, any::<u64>()],
    ]
}

fn access() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        5 => any::<u8>().prop_map(|value| vec![value]),
        4 => any::<u32>().prop_map(|value| value.to_le_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..10),
    ]
}

/// Register values that make things happen more often than random ones do.
fn store() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just(0x1ff),
        0u32..0x100,
        (0u32..0x100).prop_map(|vector| 0x2_0000 | vector),
        (0u32..0x100).prop_map(|vector| 0x8000 | vector),
        any::<u32>(),
    ];
    prop_oneof![9 => word.prop_map(|word| word.to_le_bytes().to_vec()), 1 => access()]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (port(), prop::sample::select(vec![0usize, 1, 1, 1, 2, 4, 8]))
            .prop_map(|(port, length)| Step::In { port, length }),
        8 => (port(), access()).prop_map(|(port, data)| Step::Out { port, data }),
        2 => (address(), 0usize..9).prop_map(|(address, length)| Step::Load { address, length }),
        6 => (address(), store()).prop_map(|(address, data)| Step::Store { address, data }),
        3 => prop_oneof![0u64..1000, 0u64..10_000_000, 0u64..1 << 40, Just(1 << 58)]
            .prop_map(Step::Wait),
        3 => Just(Step::WaitForDeadline),
        1 => (any::<u8>(), any::<bool>()).prop_map(|(gsi, level)| Step::Line { gsi, level }),
        1 => (address(), any::<u32>()).prop_map(|(address, data)| Step::Msi { address, data }),
        4 => Just(Step::Acknowledge),
        1 => any::<u8>().prop_map(Step::Priority),
        1 => prop::collection::vec(any::<u8>(), 0..100).prop_map(Step::Input),
        1 => Just(Step::PowerButton),
    ]
}

/// Takes a step; everything that could be seen of it.
fn take(platform: &mut Platform, step: &Step, now: &mut u64) -> (Vec<u8>, Vec<Effect>, bool) {
    let mut effects = Vec::new();
    let mut data = Vec::new();
    let mut clock = Now(*now);
    let seen = match step {
        Step::In { port, length } => {
            data.resize(*length, 0xff);
            platform.io_read(*port, &mut data, &mut clock)
        }
        Step::Out { port, data } => platform.io_write(*port, data, &mut clock, &mut effects),
        Step::Load { address, length } => {
            data.resize(*length, 0xff);
            platform.mmio_read(*address, &mut data, &mut clock)
        }
        Step::Store { address, data } => {
            platform.mmio_write(*address, data, &mut clock, &mut effects)
        }
        Step::Wait(span) => {
            *now = now.saturating_add(*span).min(u64::MAX / 2);
            platform.advance(*now);
            true
        }
        Step::WaitForDeadline => {
            *now = (*now).max(platform.next_deadline().unwrap_or(0)).min(u64::MAX / 2);
            platform.advance(*now);
            true
        }
        Step::Line { gsi, level } => {
            platform.set_line(*gsi, *level);
            true
        }
        Step::Msi { address, data } => {
            platform.msi(*address, *data);
            true
        }
        Step::Acknowledge => {
            let pending = platform.pending_interrupt();
            data.extend(platform.acknowledge());
            assert_eq!(pending, !data.is_empty(), "what waits can be taken, and only that");
            pending
        }
        Step::Priority(priority) => {
            platform.set_tpr(*priority);
            platform.tpr() == *priority
        }
        Step::Input(bytes) => platform.serial_input(bytes) <= bytes.len(),
        Step::PowerButton => {
            platform.power_button();
            true
        }
    };
    (data, effects, seen)
}

fn copied(platform: &Platform) -> Platform {
    let bytes = postcard::to_allocvec(&platform.state).expect("the state can be encoded");
    let state: PlatformState = postcard::from_bytes(&bytes).expect("and decoded");
    assert_eq!(state, platform.state);
    Platform::restore(state).expect("a state that was reached")
}

/// States that no guest can reach, one a device: they are refused where they come in.
#[test]
fn impossible_states_are_refused_by_the_name_of_their_device() {
    type Forge = fn(&mut serde_json::Value);
    let forgeries: [(&str, Forge); 5] = [
        ("the interrupt controller", |state| state["pic"]["second"]["first"] = 8.into()),
        ("the interval timer", |state| state["pit"]["channels"][0]["anchor_count"] = 65_537.into()),
        ("the interval timer", |state| {
            state["pit"]["channels"][2]["anchor_tick"] = u64::MAX.into();
        }),
        ("the real-time clock", |state| state["rtc"]["index"] = 128.into()),
        ("the serial line", |state| state["uart"]["received"] = vec![0; 65].into()),
    ];
    let config = PlatformConfig { serial: true, boot_time_unix_ns: 0 };
    let platform = Platform::new(config);
    for (device, forge) in forgeries {
        let mut state = serde_json::to_value(&platform.state).unwrap();
        forge(&mut state);
        assert_eq!(Platform::restore(serde_json::from_value(state).unwrap()), Err(device));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_guest_is_survived_and_repeated_exactly(
        steps in prop::collection::vec(step(), 1..200),
        copy_every in 1usize..50,
    ) {
        let config = PlatformConfig { serial: true, boot_time_unix_ns: 1_700_000_000_123_456_789 };
        let (mut first, mut second) = (Platform::new(config), Platform::new(config));
        let (mut now, mut again) = (0, 0);
        for (index, step) in steps.iter().enumerate() {
            let seen = take(&mut first, step, &mut now);
            prop_assert_eq!(seen, take(&mut second, step, &mut again));
            prop_assert_eq!(&first, &second);
            if matches!(step, Step::Wait(_) | Step::WaitForDeadline) && now < u64::MAX / 2 {
                prop_assert!(first.next_deadline().is_none_or(|deadline| deadline > now));
            }
            if index % copy_every == 0 {
                second = copied(&first);
            }
        }
    }
}
