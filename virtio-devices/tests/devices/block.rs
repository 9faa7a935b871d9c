//! The disk.

use crate::driver::{Buffer, Driver, INDIRECT, SLOT, VERSION_1};
use virtio_devices::backend::BlockBackend;
use virtio_devices::backend::memory::MemoryDisk;
use virtio_devices::{BlockConfig, BlockKind, BlockRequest, BlockStatus, Effect, VirtioPci};

const FLUSH: u64 = 1 << 9;
const READ: u32 = 0;
const WRITE: u32 = 1;
const IDENTIFY: u32 = 8;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
const UNTOUCHED: u8 = 0xee;

fn config(capacity_sectors: u64, read_only: bool) -> BlockConfig {
    BlockConfig { capacity_sectors, read_only, serial: "disk-0".to_owned() }
}

fn started_with(config: BlockConfig, features: u64) -> Driver {
    Driver::started(VirtioPci::new_block(6, config, SLOT).unwrap(), VERSION_1 | features, 128)
}

fn started() -> Driver {
    started_with(config(100, false), FLUSH | INDIRECT)
}

/// Puts a request into the queue; returns where its status will be.
fn submit(driver: &mut Driver, kind: u32, sector: u64, data: &[Buffer]) -> u64 {
    let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    let header = driver.place(&header);
    let status = driver.place(&[UNTOUCHED]);
    let chain = [&[(header, 16, false)][..], data, &[(status, 1, true)]].concat();
    driver.add(0, &chain);
    driver.kick(0);
    status
}

fn requests(driver: &mut Driver) -> Vec<BlockRequest> {
    let request = |effect| match effect {
        Effect::Block { device: 6, request } => Some(request),
        _ => None,
    };
    driver.take_effects().into_iter().filter_map(request).collect()
}

fn complete(driver: &mut Driver, token: u64, status: BlockStatus, data: &[u8]) {
    driver.device.complete(&driver.memory, token, status, data, &mut driver.effects);
}

/// Carries out everything that was asked for.
fn serve(driver: &mut Driver, disk: &mut MemoryDisk) {
    for request in requests(driver) {
        let (status, data) = disk.execute(&request.kind);
        complete(driver, request.token, status, &data);
    }
}

#[test]
fn what_is_written_is_read_back() {
    let mut driver = started();
    let mut disk = MemoryDisk::new(100);
    let text: Vec<u8> = (0..1024).map(|place| (place % 253) as u8).collect();
    let source = driver.place(&text);
    let split = [(source, 100, false), (source + 100, 924, false)];
    let written = submit(&mut driver, WRITE, 98, &split);
    assert_eq!(driver.peek(written, 1), [UNTOUCHED], "not complete before the disk says so");
    serve(&mut driver, &mut disk);
    assert_eq!(driver.peek(written, 1), [OK]);
    assert_eq!(disk.bytes[98 * 512..], text);

    let target = driver.allocate(1024);
    let split = [(target, 1000, true), (target + 1000, 24, true)];
    let read = submit(&mut driver, READ, 98, &split);
    let flushed = submit(&mut driver, 4, 0, &[]);
    driver.used(0);
    serve(&mut driver, &mut disk);
    assert_eq!(driver.peek(target, 1024), text);
    assert_eq!((driver.peek(read, 1), driver.peek(flushed, 1)), (vec![OK], vec![OK]));
    assert_eq!(disk.flushes, 1);
    assert_eq!(driver.used(0).iter().map(|(_, length)| *length).collect::<Vec<_>>(), [1025, 1]);
    assert_eq!(driver.interrupts(), [1, 1]);
}

#[test]
fn data_and_status_may_share_a_buffer() {
    let mut driver = started();
    let header = driver.place(&[0; 16]);
    let target = driver.place(&[UNTOUCHED; 513]);
    driver.add_indirect(0, &[(header, 7, false), (header + 7, 9, false), (target, 513, true)]);
    driver.kick(0);
    serve(&mut driver, &mut MemoryDisk::new(100));
    assert_eq!(driver.peek(target, 513), [0; 513]);
    assert_eq!(driver.used(0), [(0, 513)]);
}

#[test]
fn the_configuration_keeps_a_driver_within_the_bounds() {
    let mut driver = started();
    let device = driver.areas.device.unwrap();
    assert_eq!(u64::from_le_bytes(driver.read(device)), 100);
    let segment_bytes = u32::from_le_bytes(driver.read(device + 8));
    let segments = u32::from_le_bytes(driver.read(device + 12));
    assert_eq!(u32::from_le_bytes(driver.read(device + 20)), 512);
    assert!(u64::from(segment_bytes) * u64::from(segments) <= 4 << 20);
}

#[test]
fn requests_outside_the_disk_fail_at_once() {
    let mut driver = started();
    let buffer = driver.allocate(1024);
    let (out, into) = ([(buffer, 1024, false)], [(buffer, 1024, true)]);
    for sector in [99, 100, u64::MAX] {
        for (kind, data) in [(WRITE, &out), (READ, &into)] {
            let status = submit(&mut driver, kind, sector, data);
            assert_eq!(driver.peek(status, 1), [IO_ERROR], "sector {sector}");
        }
    }
    assert_eq!(requests(&mut driver), []);
    assert_eq!(driver.used(0).len(), 6);
}

#[test]
fn requests_of_bad_form_fail_at_once() {
    let mut driver = started_with(config(1 << 20, false), FLUSH);
    let buffer = driver.allocate(1 << 20);
    let cases: [(u32, &[Buffer], u8); 7] = [
        (READ, &[(buffer, 511, true)], IO_ERROR),
        (READ, &[], IO_ERROR),
        (WRITE, &[(buffer, 100, false)], IO_ERROR),
        (WRITE, &[(1 << 40, 512, false)], IO_ERROR),
        (WRITE, &[(buffer, 1 << 20, false); 5], IO_ERROR),
        (IDENTIFY, &[(buffer, 19, true)], IO_ERROR),
        (99, &[], UNSUPPORTED),
    ];
    for (kind, data, expected) in cases {
        let status = submit(&mut driver, kind, 0, data);
        assert_eq!(driver.peek(status, 1), [expected], "{kind} {data:?}");
    }
    // No room for a whole header.
    let status = driver.place(&[UNTOUCHED]);
    driver.add(0, &[(buffer, 15, false), (status, 1, true)]);
    driver.kick(0);
    assert_eq!(driver.peek(status, 1), [IO_ERROR]);
    assert_eq!(requests(&mut driver), []);
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_request_without_room_for_its_status_breaks_the_device() {
    let mut driver = started();
    let header = driver.place(&[0; 16]);
    driver.add(0, &[(header, 16, false)]);
    driver.kick(0);
    assert_eq!(driver.status(), 15 | 64);
}

#[test]
fn a_read_into_nowhere_fails_when_it_completes() {
    let mut driver = started();
    let status = submit(&mut driver, READ, 0, &[(1 << 40, 512, true)]);
    serve(&mut driver, &mut MemoryDisk::new(100));
    assert_eq!(driver.peek(status, 1), [IO_ERROR]);
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_disk_that_can_only_be_read_refuses_writes() {
    let mut driver = started_with(config(100, true), FLUSH | 1 << 5);
    assert_ne!(driver.device.state.common.driver_features & 1 << 5, 0, "offered as read-only");
    let buffer = driver.allocate(512);
    let status = submit(&mut driver, WRITE, 0, &[(buffer, 512, false)]);
    assert_eq!(driver.peek(status, 1), [IO_ERROR]);
}

#[test]
fn the_serial_number_is_answered_at_once() {
    let mut driver = started();
    let buffer = driver.place(&[UNTOUCHED; 20]);
    let status = submit(&mut driver, IDENTIFY, 0, &[(buffer, 20, true)]);
    assert_eq!(driver.peek(buffer, 20), *b"disk-0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(driver.peek(status, 1), [OK]);
}

#[test]
fn errors_of_the_disk_reach_the_guest() {
    let mut driver = started();
    let buffer = driver.allocate(512);
    let mut disk = MemoryDisk::new(100);
    disk.broken = true;
    let status = submit(&mut driver, READ, 0, &[(buffer, 512, true)]);
    serve(&mut driver, &mut disk);
    assert_eq!(driver.peek(status, 1), [IO_ERROR]);

    let status = submit(&mut driver, READ, 0, &[(buffer, 512, true)]);
    let token = requests(&mut driver)[0].token;
    complete(&mut driver, token, BlockStatus::Ok, &[1; 511]);
    assert_eq!(driver.peek(status, 1), [IO_ERROR], "a short read is none");

    let status = submit(&mut driver, 4, 0, &[]);
    let token = requests(&mut driver)[0].token;
    complete(&mut driver, token, BlockStatus::Unsupported, &[]);
    assert_eq!(driver.peek(status, 1), [UNSUPPORTED]);
}

#[test]
fn tokens_that_are_not_open_change_nothing() {
    let mut driver = started();
    submit(&mut driver, 4, 0, &[]);
    let token = requests(&mut driver)[0].token;
    complete(&mut driver, token, BlockStatus::Ok, &[]);
    driver.take_effects();
    let before = driver.device.clone();
    for token in [token, token + 1, u64::MAX] {
        complete(&mut driver, token, BlockStatus::Ok, &[]);
    }
    assert_eq!(driver.device, before);
    assert_eq!(driver.take_effects(), []);
}

#[test]
fn open_requests_are_issued_again_byte_for_byte() {
    let mut driver = started();
    let buffer = driver.place(&[1; 512]);
    submit(&mut driver, WRITE, 3, &[(buffer, 512, false)]);
    submit(&mut driver, READ, 4, &[(buffer, 512, true)]);
    let status = submit(&mut driver, 4, 0, &[]);
    let issued = requests(&mut driver);
    // The guest may scribble over the buffer meanwhile: what it handed over counts.
    vm_memory::Bytes::write_slice(&driver.memory, &[9; 512], vm_memory::GuestAddress(buffer))
        .unwrap();
    driver.device = VirtioPci::restore(driver.device.state.clone()).unwrap();
    assert_eq!(driver.device.reissue(), issued);
    let tokens: Vec<_> = issued.iter().map(|request| request.token).collect();
    assert_eq!(driver.device.open_requests(), tokens);
    assert_eq!(driver.device.open_request(tokens[2]), Some(&BlockKind::Flush));

    complete(&mut driver, tokens[2], BlockStatus::Ok, &[]);
    assert_eq!(driver.peek(status, 1), [OK], "completion finds its way after a restore");
    assert_eq!(driver.device.open_requests(), tokens[..2]);
}

#[test]
fn without_flush_every_write_is_made_durable_first() {
    let mut driver = started_with(config(100, false), 0);
    let buffer = driver.place(&[1; 512]);
    let status = submit(&mut driver, WRITE, 0, &[(buffer, 512, false)]);
    let mut disk = MemoryDisk::new(100);
    serve(&mut driver, &mut disk);
    assert_eq!(driver.peek(status, 1), [UNTOUCHED]);
    serve(&mut driver, &mut disk);
    assert_eq!((driver.peek(status, 1), disk.flushes), (vec![OK], 1));
}

#[test]
fn requests_beyond_the_bound_wait_in_the_queue() {
    let mut driver = started_with(config(1 << 20, false), FLUSH);
    let buffer = driver.allocate(1 << 20);
    let mut statuses = Vec::new();
    for _ in 0..30 {
        statuses.push(submit(&mut driver, WRITE, 0, &[(buffer, 1 << 20, false)]));
    }
    let first = requests(&mut driver);
    assert!((4..=16).contains(&first.len()), "{} MiB are open", first.len());
    assert!(driver.device.state.model != VirtioPci::new_rng(0, SLOT).unwrap().state.model);
    let mut done = 0;
    let mut waiting = first;
    while let Some(request) = waiting.first().cloned() {
        waiting.remove(0);
        complete(&mut driver, request.token, BlockStatus::Ok, &[]);
        done += 1;
        waiting.extend(requests(&mut driver));
        assert!(waiting.len() <= 16);
    }
    assert_eq!(done, 30);
    assert!(statuses.iter().all(|status| driver.peek(*status, 1) == [OK]));
}

#[test]
fn a_reset_lets_open_requests_run_out_and_tells_nobody() {
    let mut driver = started();
    let buffer = driver.place(&[5; 512]);
    submit(&mut driver, WRITE, 0, &[(buffer, 512, false)]);
    let open = requests(&mut driver);
    driver.set_status(0);
    assert_eq!(driver.device.reissue(), open, "a write that was handed over still happens");
    driver.negotiate(VERSION_1 | FLUSH);
    driver.set_up_queues(128);
    driver.set_status(15);
    let before = driver.peek(0, 0x40000);
    complete(&mut driver, open[0].token, BlockStatus::Ok, &[]);
    assert!(driver.peek(0, 0x40000) == before);
    assert_eq!(driver.take_effects(), []);
    let status = submit(&mut driver, 4, 0, &[]);
    let next = requests(&mut driver);
    assert!(next[0].token > open[0].token, "tokens are never used twice");
    complete(&mut driver, next[0].token, BlockStatus::Ok, &[]);
    assert_eq!(driver.peek(status, 1), [OK]);
}

#[test]
fn resets_can_not_pile_up_open_requests() {
    let mut driver = started_with(config(1 << 20, false), FLUSH);
    let buffer = driver.allocate(1 << 20);
    let mut handed_out = 0;
    for _ in 0..20 {
        for _ in 0..4 {
            let header = driver.rings[0].descriptors + 0x6000;
            let header_bytes = [&WRITE.to_le_bytes()[..], &[0; 12]].concat();
            vm_memory::Bytes::write_slice(
                &driver.memory,
                &header_bytes,
                vm_memory::GuestAddress(header),
            )
            .unwrap();
            driver.add(0, &[(header, 16, false), (buffer, 1 << 20, false), (header, 1, true)]);
        }
        driver.kick(0);
        handed_out += requests(&mut driver).len();
        driver.negotiate(VERSION_1 | FLUSH);
        driver.set_up_queues(128);
        driver.set_status(15);
    }
    assert!(handed_out <= 16, "{handed_out} MiB under way");
    assert_eq!(driver.device.open_requests().len(), handed_out);
    assert!(VirtioPci::restore(driver.device.state).is_ok());
}
