//! Tests of `overrides.rs`.

use super::super::{MacAddress, PayloadConfig};
use super::*;

/// A VM as a primary sends it: completed.
fn from_primary() -> VmConfig {
    let mut config = VmConfig {
        payload: PayloadConfig { kernel: Some("/k".into()), ..Default::default() },
        disks: Some(vec![DiskConfig {
            path: Some("/primary.img".into()),
            readonly: true,
            ..Default::default()
        }]),
        net: Some(vec![NetConfig {
            tap: Some("tap0".into()),
            ip: Some("10.0.0.1".parse().unwrap()),
            mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
            mtu: Some(1400),
            ..Default::default()
        }]),
        ..Default::default()
    };
    config.complete().unwrap();
    config
}

fn overrides(disks: &[&str], nets: &[&str]) -> HostOverrides {
    HostOverrides {
        disks: disks.iter().map(|text| DiskOverride::parse(text).unwrap()).collect(),
        net: nets.iter().map(|text| NetOverride::parse(text).unwrap()).collect(),
        ..Default::default()
    }
}

fn sentence(overrides: &HostOverrides) -> String {
    apply_overrides(from_primary(), overrides).unwrap_err().to_string()
}

#[test]
fn nothing_overridden_changes_nothing() {
    assert!(HostOverrides::default().is_empty());
    let config = apply_overrides(from_primary(), &HostOverrides::default()).unwrap();
    assert_eq!(config, from_primary());
}

#[test]
fn files_and_taps_change_and_nothing_the_guest_can_see() {
    let here = overrides(&["id=_disk0,path=/mnt/x.img,direct=on"], &["id=_net1,tap=tap3"]);
    let config = apply_overrides(from_primary(), &here).unwrap();
    let mut expected = from_primary();
    let disk = &mut expected.disks.as_mut().unwrap()[0];
    (disk.path, disk.direct) = (Some("/mnt/x.img".into()), true);
    let net = &mut expected.net.as_mut().unwrap()[0];
    (net.tap, net.ip) = (Some("tap3".into()), None);
    assert_eq!(config, expected);
}

#[test]
fn entropy_and_terminals_are_the_hosts() {
    let serial = ConsoleConfig { file: Some("/l".into()), ..ConsoleConfig::of(ConsoleMode::File) };
    let here = HostOverrides {
        rng: Some(RngConfig { src: "/dev/hwrng".into() }),
        serial: Some(serial.clone()),
        console: Some(ConsoleConfig::of(ConsoleMode::Null)),
        ..Default::default()
    };
    let config = apply_overrides(from_primary(), &here).unwrap();
    assert_eq!(config.rng.src.to_str(), Some("/dev/hwrng"));
    assert_eq!(config.serial, serial);
    assert_eq!(config.console.mode, ConsoleMode::Null);
}

#[test]
fn an_unknown_id_is_answered_with_the_known_ones() {
    assert_eq!(
        sentence(&overrides(&["id=root,path=/x"], &[])),
        "The VM has no disk with the id \"root\", so nothing of this host can stand in for it. It \
         has _disk0."
    );
    assert_eq!(
        sentence(&overrides(&[], &["id=_disk0,tap=t"])),
        "The VM has no network device with the id \"_disk0\", so nothing of this host can stand \
         in for it. It has _net1."
    );
    let bare = VmConfig { disks: None, ..from_primary() };
    let error = apply_overrides(bare, &overrides(&["id=_disk0,path=/x"], &[])).unwrap_err();
    assert!(error.to_string().ends_with("It has no disk at all."), "{error}");
}

#[test]
fn a_device_is_overridden_once() {
    assert_eq!(
        sentence(&overrides(&["id=_disk0,path=/x", "id=_disk0,path=/y"], &[])),
        "--disk: the device \"_disk0\" is given twice; say once what stands in for it."
    );
}

#[test]
fn a_console_neither_appears_nor_vanishes() {
    let off = ConsoleConfig::of(ConsoleMode::Off);
    assert_eq!(
        sentence(&HostOverrides { serial: Some(off.clone()), ..Default::default() }),
        "The VM has a serial port, and this host asks for none: the guest would see the \
         difference. Only where its bytes go may differ."
    );
    let config = VmConfig { console: off, ..from_primary() };
    let console = Some(ConsoleConfig::of(ConsoleMode::Tty));
    let error = apply_overrides(config, &HostOverrides { console, ..Default::default() });
    assert!(error.unwrap_err().to_string().starts_with("The VM has no console, and this host"));
}

#[test]
fn an_override_says_which_and_what_and_nothing_the_guest_can_see() {
    assert_eq!(
        DiskOverride::parse("path=/x").unwrap_err().to_string(),
        "--disk: id= is missing. On a backup, --disk says what of this host stands in for a \
         device of the VM, as in --disk id=_disk0,path=/mnt/x.img."
    );
    assert!(DiskOverride::parse("id=a").unwrap_err().to_string().contains("path= is missing"));
    assert!(NetOverride::parse("id=a").unwrap_err().to_string().contains("tap= is missing"));
    assert!(NetOverride::parse("tap=a").unwrap_err().to_string().contains("id= is missing"));
    assert_eq!(
        NetOverride::parse("id=_net1,tap=t,mac=02:00:00:00:00:01").unwrap_err().to_string(),
        "--net: mac= cannot be overridden on this host, because the guest would see the \
         difference: it is the primary's to say."
    );
    for text in ["id=a,path=/x,readonly=on", "id=a,path=/x,serial=s"] {
        assert!(
            DiskOverride::parse(text).unwrap_err().to_string().contains("cannot be overridden")
        );
    }
    assert!(NetOverride::parse("id=a,tap=t,mtu=1500").unwrap_err().to_string().contains("mtu="));
}
