//! Tests of `json.rs`.

use super::super::{ConsoleMode, FtMode, MacAddress};
use super::*;

fn read(json: &str) -> VmConfig {
    VmConfig::from_json(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"))
}

fn sentence(json: &str) -> String {
    VmConfig::from_json(json.as_bytes()).expect_err(json).to_string()
}

#[test]
fn the_smallest_configuration_has_cloud_hypervisors_defaults() {
    let config = read(r#"{"payload":{"kernel":"/boot/vmlinux"}}"#);
    assert_eq!(config.cpus.boot_vcpus, 1);
    assert_eq!(config.memory.size, 512 << 20);
    assert_eq!(config.serial.mode, ConsoleMode::Null);
    assert_eq!(config.console.mode, ConsoleMode::Tty);
    assert_eq!(config.rng.src.to_str(), Some("/dev/urandom"));
    assert_eq!((config.disks, config.net, config.ft), (None, None, None));
}

#[test]
fn a_whole_configuration_is_read_and_written_back_the_same() {
    let json = r#"{
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
        "memory": {"size": 1073741824},
        "payload": {"kernel": "/k", "cmdline": "console=ttyS0", "initramfs": "/i"},
        "disks": [{"path": "/a.img", "readonly": true, "direct": false, "id": "root",
                   "serial": "S"}],
        "net": [{"tap": "tap0", "ip": "10.0.0.1", "mask": "255.0.0.0",
                 "mac": "52:54:00:00:00:01", "mtu": 1400, "id": "_net1"}],
        "rng": {"src": "/dev/random"},
        "serial": {"mode": "File", "file": "/log"},
        "console": {"mode": "Off"},
        "ft": {"role": "primary", "peer": "b:7000", "arbiter": "none"}
    }"#;
    let config = read(json);
    assert_eq!(config.nets()[0].mac, Some(MacAddress([0x52, 0x54, 0, 0, 0, 1])));
    assert!(matches!(&config.ft.as_ref().unwrap().mode, FtMode::Primary { .. }));
    assert_eq!(read(&serde_json::to_string(&config).unwrap()), config);
}

#[test]
fn a_client_that_sends_every_default_is_understood() {
    let config = read(
        r#"{
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "topology": null, "kvm_hyperv": false,
                 "max_phys_bits": 46, "nested": true, "affinity": null,
                 "features": {"amx": false}, "core_scheduling": "Vm"},
        "memory": {"size": 536870912, "mergeable": false, "hotplug_method": "Acpi",
                   "hotplug_size": null, "shared": false, "hugepages": false, "prefault": false,
                   "zones": null, "thp": true},
        "payload": {"kernel": "/k", "firmware": null, "igvm": null},
        "disks": [{"path": "/a", "readonly": false, "direct": false, "iommu": false,
                   "num_queues": 1, "queue_size": 128, "vhost_user": false, "pci_segment": 0,
                   "rate_limiter_config": null, "sparse": true, "image_type": "Raw",
                   "lock_granularity": "ByteRange"}],
        "net": [{"tap": null, "num_queues": 2, "queue_size": 256, "vhost_mode": "Client",
                 "offload_tso": true, "offload_ufo": true, "offload_csum": true}],
        "rng": {"src": "/dev/urandom", "iommu": false},
        "balloon": null, "fs": null, "devices": [], "vsock": null, "iommu": false,
        "watchdog": false, "pvpanic": false, "landlock_enable": false,
        "debug_console": {"mode": "Off", "iobase": 233},
        "platform": {"num_pci_segments": 1, "tdx": false},
        "serial": null, "console": {"mode": "Null", "iommu": false}
    }"#,
    );
    assert_eq!(config.disks().len(), 1);
    assert_eq!(config.serial.mode, ConsoleMode::Null);
}

#[test]
fn what_we_cannot_do_is_refused_with_its_place() {
    for (json, place) in [
        (r#"{"balloon":{"size":1048576}}"#, "balloon is set to {\"size\":1048576},"),
        (r#"{"watchdog":true}"#, "watchdog is set to true,"),
        (r#"{"cpus":{"boot_vcpus":1,"max_vcpus":1,"kvm_hyperv":true}}"#, "cpus.kvm_hyperv is"),
        (r#"{"memory":{"size":1,"hugepages":true}}"#, "memory.hugepages is set to true,"),
        (r#"{"disks":[{"path":"/a"},{"path":"/b","vhost_user":true}]}"#, "disks[1].vhost_user is"),
        (r#"{"disks":[{"path":"/a","image_type":"Qcow2"}]}"#, "disks[0].image_type is set to"),
        (r#"{"net":[{"num_queues":4}]}"#, "net[0].num_queues is set to 4,"),
        (r#"{"console":{"mode":"Tty","iommu":true}}"#, "console.iommu is set to true,"),
        (r#"{"platform":{"oem_strings":["a"]}}"#, "platform.oem_strings is set to"),
        (r#"{"disk":[{"path":"/typo"}]}"#, "disk is set to"),
    ] {
        let said = sentence(json);
        assert!(said.starts_with(place), "{said}");
        assert!(
            said.ends_with(
                "which this VMM cannot do (docs/COMPATIBILITY.md says what it can). Leave it out."
            ),
            "{said}"
        );
    }
}

#[test]
fn a_long_value_does_not_drown_the_sentence() {
    let json = format!(r#"{{"pmem":[{{"file":"{}"}}]}}"#, "ä".repeat(5000));
    assert!(sentence(&json).chars().count() < 220);
}

#[test]
fn broken_json_is_told_with_its_line() {
    assert_eq!(
        sentence("{\"cpus\": }"),
        "The VM configuration is not valid JSON for it: expected value at line 1 column 10."
    );
    assert_eq!(
        sentence("[]"),
        "The VM configuration is not valid JSON for it: an object is needed."
    );
    assert!(sentence(r#"{"cpus":[]}"#).contains("is not valid JSON for it"));
    assert!(sentence(r#"{"net":[{"mac":"x"}]}"#).contains("a MAC address such as"));
    assert!(sentence(r#"{"ft":{"role":"primary"}}"#).contains("peer= is missing"));
    assert!(sentence(r#"{"memory":{"size":-1}}"#).contains("is not valid JSON for it"));
    assert!(sentence(&"[".repeat(100_000)).contains("recursion limit"));
}
