//! The backends that meet the real world: disk images and taps.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use virtio_devices::backend::file::FileDisk;
use virtio_devices::backend::tap::Tap;
use virtio_devices::backend::{BlockBackend, NetBackend};
use virtio_devices::{BlockKind, BlockStatus, Error};

fn image(bytes: usize) -> (TempDir, PathBuf) {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("disk.img");
    fs::write(&path, vec![0; bytes]).unwrap();
    (directory, path)
}

fn round_trip(disk: &mut FileDisk) {
    let data: Vec<u8> = (0..1536).map(|place| (place % 255) as u8).collect();
    let write = BlockKind::Write { sector: 2, data: data.clone() };
    assert_eq!(disk.execute(&write), (BlockStatus::Ok, vec![]));
    assert_eq!(disk.execute(&BlockKind::Flush), (BlockStatus::Ok, vec![]));
    let read = BlockKind::Read { sector: 2, length: 1536 };
    assert_eq!(disk.execute(&read), (BlockStatus::Ok, data));
}

#[test]
fn an_image_is_a_disk() {
    let (_directory, path) = image(8 * 512);
    let mut disk = FileDisk::open(&path, false, false).unwrap();
    assert_eq!(disk.capacity_sectors(), 8);
    round_trip(&mut disk);
    // Part of a sector is none: the guest would not see what lies there.
    let (_directory, path) = image(8 * 512 + 100);
    assert!(FileDisk::open(&path, false, false).is_err());
}

#[test]
fn direct_io_reads_and_writes_the_same() {
    let (_directory, path) = image(8 * 512);
    match FileDisk::open(&path, false, true) {
        Ok(mut disk) => round_trip(&mut disk),
        // Where the file system can't, the user is told what to do instead.
        Err(error) => assert!(error.to_string().ends_with("use direct=off"), "{error}"),
    }
}

#[test]
fn requests_beyond_the_end_fail_and_do_not_grow_the_image() {
    let (_directory, path) = image(8 * 512);
    let mut disk = FileDisk::open(&path, false, false).unwrap();
    for sector in [7, 8, u64::MAX / 512, u64::MAX] {
        let write = BlockKind::Write { sector, data: vec![1; 1024] };
        assert_eq!(disk.execute(&write), (BlockStatus::IoError, vec![]));
        let read = BlockKind::Read { sector, length: 1024 };
        assert_eq!(disk.execute(&read), (BlockStatus::IoError, vec![]));
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), 8 * 512);
}

#[test]
fn a_writer_shares_its_disk_with_nobody_and_readers_share() {
    let (_directory, path) = image(4096);
    let open = |read_only| FileDisk::open(&path, read_only, false).unwrap();
    let (first, second) = (open(true), open(true));
    first.lock().unwrap();
    second.lock().unwrap();
    let writer = open(false);
    let error = writer.lock().unwrap_err();
    assert!(matches!(error, Error::DiskBusy { .. }), "{error}");
    assert!(error.to_string().contains("in use by another process"));
    drop((first, second));
    writer.lock().unwrap();
    assert!(open(true).lock().is_err());
    assert!(open(false).lock().is_err(), "opening is possible, owning is not");
    drop(writer);
    open(false).lock().unwrap();
}

/// Tests run on no NFS; that it is told from others is seen end to end.
#[test]
fn writes_to_a_local_image_end_with_their_process() {
    let (_folder, path) = image(4096);
    let disk = FileDisk::open(&path, false, false).unwrap();
    assert!(!disk.lock_handle().unwrap().writes_outlive_their_process());
}

#[test]
fn what_can_not_be_a_disk_is_refused_in_a_sentence() {
    let (directory, path) = image(511);
    let small = FileDisk::open(&path, false, false).unwrap_err();
    assert!(matches!(small, Error::DiskTooSmall { bytes: 511, .. }), "{small}");
    let missing = FileDisk::open(&directory.path().join("none"), false, false).unwrap_err();
    assert!(missing.to_string().contains("for reading and writing: No such file"), "{missing}");
    let folder = FileDisk::open(directory.path(), true, false).unwrap_err();
    assert!(matches!(folder, Error::DiskKind { .. }), "{folder}");
    let device = FileDisk::open(std::path::Path::new("/dev/null"), false, false).unwrap_err();
    assert!(matches!(device, Error::DiskKind { .. }), "{device}");
}

#[test]
fn names_that_no_interface_can_have_are_refused() {
    for name in ["", "a-name-of-16-byte", "a/b", "a b", ".."] {
        let error = Tap::open(Some(name)).unwrap_err();
        assert!(matches!(error, Error::TapName { .. }), "{name:?}: {error}");
    }
}

/// Needs the tun driver and the right to make interfaces; without them it checks that the error
/// says which of the two is missing. Runs in a network namespace of its thread's own.
#[test]
fn a_tap_is_made_used_and_not_shared() {
    // SAFETY: only this thread changes its network namespace; it holds no descriptor that depends
    // on the one it leaves.
    let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    let mut tap = match Tap::open(Some("test-tap")) {
        Ok(tap) if alone => tap,
        Ok(_) => panic!("a tap was made in the namespace of the whole process"),
        Err(error) => {
            let clear = matches!(error, Error::TapPermission { .. } | Error::TapDriver(_));
            assert!(clear, "{error}");
            return;
        }
    };
    assert_eq!(tap.name(), "test-tap");
    assert!(matches!(Tap::open(Some("test-tap")).unwrap_err(), Error::TapBusy { .. }));
    assert!(matches!(Tap::open(Some("lo")).unwrap_err(), Error::TapKind { .. }));
    assert_eq!(Tap::open(None).unwrap().name(), "vmtap0");

    let packet = virtio_devices::backend::announcement::announcement([2, 0, 0, 0, 0, 1]);
    assert!(!tap.send(&packet).unwrap(), "down: lost");
    tap.set_address([10, 9, 8, 1].into(), [255, 255, 255, 0].into()).unwrap();
    tap.bring_up().unwrap();
    tap.bring_up().unwrap();
    assert!(tap.send(&packet).unwrap());
    tap.set_offloads(1 | 2 | 4 | 8).unwrap();
    tap.set_offloads(0).unwrap();

    // What the host sends arrives: it asks who has the address next to its own.
    let socket = std::net::UdpSocket::bind("10.9.8.1:0").unwrap();
    socket.send_to(b"x", "10.9.8.2:9").unwrap();
    let deadline = std::time::Duration::from_secs(10);
    let mut waited = std::time::Duration::ZERO;
    loop {
        match tap.receive().unwrap() {
            Some(packet) if packet[24..26] == [8, 6] => break,
            Some(_) => {}
            None => {
                assert!(waited < deadline, "no ARP request arrived");
                std::thread::sleep(std::time::Duration::from_millis(1));
                waited += std::time::Duration::from_millis(1);
            }
        }
    }
}
