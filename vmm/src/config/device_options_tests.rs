//! Tests of `device_options.rs`.

use super::super::MacAddress;
use super::*;

fn sentence<T: std::fmt::Debug>(result: Result<T, ConfigError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_disk_is_read_as_cloud_hypervisor_reads_it() {
    let disk = DiskConfig::parse("path=/x/root.img,readonly=on,direct=true,id=root,serial=S1");
    assert_eq!(
        disk.unwrap(),
        DiskConfig {
            path: Some("/x/root.img".into()),
            readonly: true,
            direct: true,
            id: Some("root".into()),
            serial: Some("S1".into()),
        }
    );
    let disk = DiskConfig::parse("path=\"/x/a,b.img\"").unwrap();
    assert_eq!(disk.path, Some("/x/a,b.img".into()));
}

#[test]
fn a_net_is_read_as_cloud_hypervisor_reads_it() {
    let net =
        NetConfig::parse("tap=tap0,mac=52:54:00:12:34:56,ip=10.0.0.1,mask=255.0.0.0,mtu=1500");
    assert_eq!(
        net.unwrap(),
        NetConfig {
            tap: Some("tap0".into()),
            ip: Some("10.0.0.1".parse().unwrap()),
            mask: Some("255.0.0.0".parse().unwrap()),
            mac: Some(MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56])),
            mtu: Some(1500),
            id: None,
        }
    );
}

#[test]
fn unreadable_values_are_named_with_what_is_needed() {
    assert_eq!(
        sentence(NetConfig::parse("mac=hello")),
        "--net: mac=hello cannot be read: a MAC address such as 52:54:00:12:34:56 is needed."
    );
    assert_eq!(
        sentence(NetConfig::parse("ip=10.0.0")),
        "--net: ip=10.0.0 cannot be read: an IPv4 address is needed."
    );
    assert_eq!(
        sentence(NetConfig::parse("mtu=70000")),
        "--net: mtu=70000 cannot be read: a number of bytes from 68 to 65535 is needed."
    );
    assert_eq!(
        sentence(CpusConfig::parse("boot=many")),
        "--cpus: boot=many cannot be read: a number of vCPUs is needed."
    );
    assert_eq!(
        sentence(MemoryConfig::parse("size=1T")),
        "--memory: size=1T cannot be read: a size in bytes such as 512M or 1G is needed."
    );
    assert_eq!(
        sentence(DiskConfig::parse("path=/x,readonly=maybe")),
        "--disk: readonly=maybe cannot be read: on or off is needed."
    );
}

#[test]
fn what_cloud_hypervisor_has_and_we_have_not_is_refused_by_name() {
    let cannot = "which this VMM cannot do";
    for (text, said) in [
        ("path=/x,vhost_user=on", "--disk: vhost_user is set to on, "),
        ("path=/x,image_type=qcow2", "--disk: image_type is set to qcow2, "),
        ("path=/x,num_queues=4", "--disk: num_queues is set to 4, "),
    ] {
        let sentence = sentence(DiskConfig::parse(text));
        assert!(sentence.starts_with(said) && sentence.contains(cannot), "{sentence}");
    }
    assert!(sentence(MemoryConfig::parse("size=1G,shared=on")).contains("shared is set to on"));
    assert!(sentence(CpusConfig::parse("topology=2:1:1:1")).contains("topology"));
    assert!(sentence(NetConfig::parse("fd=[3,4]")).contains("fd is set to [3,4]"));
    assert!(sentence(RngConfig::parse("src=/dev/random,iommu=on")).contains("iommu"));
}

#[test]
fn what_asks_for_nothing_passes() {
    DiskConfig::parse("path=/x,iommu=off,num_queues=1,queue_size=128,image_type=raw,sparse=on")
        .unwrap();
    NetConfig::parse("tap=t,num_queues=2,queue_size=256,vhost_user=off,offload_tso=off").unwrap();
    MemoryConfig::parse("size=512M,mergeable=off,hotplug_method=acpi,hotplug_size=0,thp=on")
        .unwrap();
    CpusConfig::parse("boot=1,max_phys_bits=46,nested=off,topology=1:1:1:1").unwrap();
}

#[test]
fn max_follows_boot() {
    let parse = |text| CpusConfig::parse(text).unwrap();
    assert_eq!(parse("boot=3"), CpusConfig { boot_vcpus: 3, max_vcpus: 3 });
    assert_eq!(parse("boot=1,max=4"), CpusConfig { boot_vcpus: 1, max_vcpus: 4 });
    assert_eq!(parse(""), CpusConfig::default());
}

#[test]
fn consoles_are_words_files_or_sockets() {
    let parse = |text| console_from_options("--serial", text);
    for (text, mode) in [
        ("off", ConsoleMode::Off),
        ("null", ConsoleMode::Null),
        ("tty", ConsoleMode::Tty),
        ("pty", ConsoleMode::Pty),
        ("tty,iommu=off", ConsoleMode::Tty),
    ] {
        assert_eq!(parse(text).unwrap(), ConsoleConfig::of(mode));
    }
    assert_eq!(parse("file=/x/log").unwrap().file, Some("/x/log".into()));
    assert_eq!(parse("socket=/x/sock").unwrap().socket, Some("/x/sock".into()));
    for text in ["", "file", "file=", "screen", "socket=", "fille=/x"] {
        assert_eq!(
            sentence(parse(text)),
            format!("--serial: mode={text} cannot be read: off, null, tty or file=PATH is needed.")
        );
    }
    assert!(sentence(parse("tty,iommu=on")).contains("iommu is set to on"));
}
