//! Properties that hold whatever the guest and the world do: no panic, bounded effects, every state
//! can be saved and restored, and equal histories make equal devices.

use crate::driver::{Driver, SLOT};
use proptest::collection::vec;
use proptest::prelude::*;
use virtio_devices::{BlockConfig, BlockStatus, Effect, NetConfig, VirtioPci};
use vm_memory::{Bytes, GuestAddress};

/// Something that happens to a device.
#[derive(Clone, Debug)]
enum Step {
    BarRead { offset: u64, length: usize },
    BarWrite { offset: u64, data: Vec<u8> },
    ConfigWrite { offset: u16, data: Vec<u8> },
    MemoryWrite { address: u64, data: Vec<u8> },
    Descriptor { queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16 },
    Publish { queue: usize, heads: Vec<u16> },
    Kick { queue: usize },
    Receive { length: usize },
    Complete { number: usize, status: BlockStatus, honest: bool },
    ConsoleInput { length: usize },
    Entropy { length: usize },
    Announce,
    Restart,
    SaveAndRestore,
}

/// Mostly places where something is, sometimes none.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => 0x10_0000_u64..0x10_1000,
        2 => 0x1_0000_u64..0x4_0000,
        1 => (8_u64 << 20) - 64..(8 << 20) + 64,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![Just(16), Just(1), Just(512), 0_u32..5000, any::<u32>()]
}

fn bar_offset() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0_u64..0x40, 2 => 0x4000_u64..0x4050, 1 => 0_u64..0x8100, 1 => any::<u64>()]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..10), vec(0_u8..4, 1..=2), vec(0_u8..4, 4..=4)]
}

fn status() -> impl Strategy<Value = BlockStatus> {
    prop_oneof![Just(BlockStatus::Ok), Just(BlockStatus::IoError), Just(BlockStatus::Unsupported)]
}

fn descriptor() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![8 => 0_u16..4, 2 => 4_u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0_u16..8, 1 => any::<u16>()];
    (0..3_usize, 0_u16..8, address(), length(), flags, next).prop_map(
        |(queue, index, address, length, flags, next)| Step::Descriptor {
            queue,
            index,
            address,
            length,
            flags,
            next,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let head = prop_oneof![10 => 0_u16..8, 1 => any::<u16>()];
    let packet = prop_oneof![0_usize..2000, 0_usize..70_000];
    prop_oneof![
        1 => (bar_offset(), 0_usize..12)
            .prop_map(|(offset, length)| Step::BarRead { offset, length }),
        2 => (bar_offset(), bytes()).prop_map(|(offset, data)| Step::BarWrite { offset, data }),
        1 => (any::<u16>(), bytes())
            .prop_map(|(offset, data)| Step::ConfigWrite { offset: offset % 300, data }),
        1 => (address(), vec(any::<u8>(), 0..64))
            .prop_map(|(address, data)| Step::MemoryWrite { address, data }),
        12 => descriptor(),
        8 => (0..3_usize, vec(head, 1..6)).prop_map(|(queue, heads)| Step::Publish { queue, heads }),
        8 => (0..4_usize).prop_map(|queue| Step::Kick { queue }),
        3 => packet.prop_map(|length| Step::Receive { length }),
        3 => (0..4_usize, status(), any::<bool>())
            .prop_map(|(number, status, honest)| Step::Complete { number, status, honest }),
        2 => (0_usize..200).prop_map(|length| Step::ConsoleInput { length }),
        2 => (0_usize..5000).prop_map(|length| Step::Entropy { length }),
        1 => Just(Step::Announce),
        1 => Just(Step::Restart),
        2 => Just(Step::SaveAndRestore),
    ]
}

fn device(kind: usize) -> VirtioPci {
    let net = NetConfig { mac: [2, 0, 0, 0, 0, 1], mtu: None };
    let serial = "x".to_owned();
    let block = BlockConfig { capacity_sectors: 16, read_only: false, serial };
    match kind {
        0 => VirtioPci::new_net(0, net, SLOT),
        1 => VirtioPci::new_block(0, block, SLOT),
        2 => VirtioPci::new_console(0, SLOT),
        _ => VirtioPci::new_rng(0, SLOT),
    }
    .unwrap()
}

fn start(driver: &mut Driver, features: u64) {
    driver.enable_interrupts();
    driver.negotiate(features | 1 << 32);
    driver.set_up_queues(8);
    driver.set_status(15);
}

fn apply(driver: &mut Driver, step: &Step, features: u64) {
    let memory = driver.memory.clone();
    match step {
        Step::BarRead { offset, length } => {
            driver.device.bar_read(*offset, &mut vec![0; *length]);
        }
        Step::BarWrite { offset, data } => driver.write(*offset, data),
        Step::ConfigWrite { offset, data } => driver.config_write(*offset, data),
        // A write that leaves memory half-way is one as well.
        Step::MemoryWrite { address, data } => drop(memory.write(data, GuestAddress(*address))),
        Step::Descriptor { queue, index, address, length, flags, next } => {
            let place = 0x1_0000 * (*queue as u64 + 1) + 16 * u64::from(*index);
            memory.write_obj(*address, GuestAddress(place)).unwrap();
            memory.write_obj(*length, GuestAddress(place + 8)).unwrap();
            memory.write_obj(*flags, GuestAddress(place + 12)).unwrap();
            memory.write_obj(*next, GuestAddress(place + 14)).unwrap();
        }
        Step::Publish { queue, heads } => {
            if let Some(ring) = driver.rings.get_mut(*queue) {
                heads.iter().for_each(|head| ring.publish(&memory, *head));
            }
        }
        Step::Kick { queue } => driver.kick(*queue),
        Step::Receive { length } => refuse_without_change(driver, &vec![7; *length]),
        Step::Complete { number, status, honest } => {
            let open = driver.device.open_requests();
            let token = open.get(*number).copied().unwrap_or(*number as u64);
            let length = driver.device.open_request(token).map_or(0, |kind| kind.transfer_bytes());
            let data = vec![3; if *honest { length as usize } else { 100 }];
            driver.device.complete(&memory, token, *status, &data, &mut driver.effects);
        }
        Step::ConsoleInput { length } => {
            let bytes = vec![b'x'; *length];
            let taken = driver.device.console_input(&memory, &bytes, &mut driver.effects);
            assert!(taken <= bytes.len());
        }
        Step::Entropy { length } => {
            driver.device.entropy(&memory, &vec![5; *length], &mut driver.effects);
        }
        Step::Announce => driver.device.announce(&mut driver.effects),
        Step::Restart => start(driver, features),
        Step::SaveAndRestore => {
            let bytes = postcard::to_allocvec(&driver.device.state).unwrap();
            let state = postcard::from_bytes(&bytes).unwrap();
            let restored = VirtioPci::restore(state).expect("a state that was reached");
            assert_eq!(restored, driver.device);
            driver.device = restored;
        }
    }
}

/// Receives a packet; checks that the questions asked before tell the truth, and that a refusal
/// leaves no trace: the machine does not log it.
fn refuse_without_change(driver: &mut Driver, packet: &[u8]) {
    let before = driver.device.clone();
    let (rings, effects) = (driver.peek(0, 0x4_0000), driver.effects.len());
    let can = driver.device.can_receive_packet(&driver.memory, packet.len());
    let taken = driver.receive(packet);
    assert_eq!(can, taken);
    if !taken {
        assert_eq!(driver.device, before);
        assert!(driver.peek(0, 0x4_0000) == rings);
        assert_eq!(driver.effects.len(), effects);
    }
}

/// More than any single step may ask for: a full queue's worth of the largest effects.
fn assert_bounded(effects: &[Effect]) {
    // Every chain of the largest queue and every vector, with some room.
    assert!(effects.len() <= 256 + 64 + 16, "{} effects of one step", effects.len());
    for effect in effects {
        match effect {
            Effect::Packet { bytes, .. } => assert!((12..=65562).contains(&bytes.len())),
            Effect::Console { bytes, .. } => assert!((1..=65536).contains(&bytes.len())),
            Effect::Entropy { length, .. } => assert!((1..=4096).contains(length)),
            Effect::Block { request, .. } => {
                assert!(request.kind.transfer_bytes() <= 16 * 512, "within the disk");
            }
            Effect::NetOffloads { offloads, .. } => assert_eq!(offloads & !0xf, 0),
            Effect::Msi { .. } => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, max_shrink_iters: 4000, ..Default::default() })]

    #[test]
    fn equal_histories_make_equal_devices_and_none_harms_the_machine(
        kind in 0..4_usize,
        features in prop_oneof![Just(u64::MAX), Just(0), any::<u64>()],
        steps in vec(step(), 1..60),
    ) {
        let mut one = Driver::new(device(kind));
        let mut other = Driver::new(device(kind));
        start(&mut one, features);
        start(&mut other, features);
        for step in &steps {
            one.effects.clear();
            other.effects.clear();
            apply(&mut one, step, features);
            // The other is never saved: a save must not change what follows.
            if !matches!(step, Step::SaveAndRestore) {
                apply(&mut other, step, features);
            }
            assert_bounded(&one.effects);
            prop_assert_eq!(&one.effects, &other.effects);
            prop_assert_eq!(&one.device, &other.device);
        }
        prop_assert!(one.peek(0, 8 << 20) == other.peek(0, 8 << 20));
    }
}
