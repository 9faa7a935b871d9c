//! The command line's form of each part of a VM: `--cpus`, `--memory`, `--disk`, `--net`, `--rng`,
//! `--serial`, `--console`, read as Cloud Hypervisor reads them and written back the same way.
//!
//! The tables `*_FOREIGN` name Cloud Hypervisor's keys that we have no use for, each with the
//! values that ask for nothing beyond what we do; any other value is refused.

use std::path::PathBuf;

use super::options::{Options, OptionsText, print_size};
use super::{
    ConfigError, ConsoleConfig, ConsoleMode, CpusConfig, DiskConfig, MemoryConfig, NetConfig,
    RngConfig,
};

const CPUS_FOREIGN: &[(&str, &[&str])] = &[
    ("topology", &["1:1:1:1"]),
    ("kvm_hyperv", &[]),
    ("max_phys_bits", &["46"]),
    ("affinity", &[]),
    ("features", &[]),
    ("nested", &["on", "true"]),
    ("core_scheduling", &["vm", "vcpu"]),
];
const MEMORY_FOREIGN: &[(&str, &[&str])] = &[
    ("mergeable", &[]),
    ("shared", &[]),
    ("hugepages", &[]),
    ("hugepage_size", &[]),
    ("hotplug_method", &["acpi"]),
    ("hotplug_size", &[]),
    ("hotplugged_size", &[]),
    ("prefault", &[]),
    ("thp", &["on", "true"]),
];
const DISK_FOREIGN: &[(&str, &[&str])] = &[
    ("iommu", &[]),
    ("num_queues", &["1"]),
    ("queue_size", &["128"]),
    ("vhost_user", &[]),
    ("socket", &[]),
    ("bw_size", &[]),
    ("bw_one_time_burst", &[]),
    ("bw_refill_time", &[]),
    ("ops_size", &[]),
    ("ops_one_time_burst", &[]),
    ("ops_refill_time", &[]),
    ("pci_segment", &[]),
    ("pci_device_id", &[]),
    ("rate_limit_group", &[]),
    ("queue_affinity", &[]),
    ("backing_files", &[]),
    ("sparse", &["on", "true"]),
    ("image_type", &["raw"]),
    ("lock_granularity", &["byte-range", "full"]),
];
const NET_FOREIGN: &[(&str, &[&str])] = &[
    ("fd", &[]),
    ("host_mac", &[]),
    ("iommu", &[]),
    ("num_queues", &["2"]),
    ("queue_size", &["256"]),
    ("vhost_user", &[]),
    ("socket", &[]),
    ("vhost_mode", &["client"]),
    ("bw_size", &[]),
    ("bw_one_time_burst", &[]),
    ("bw_refill_time", &[]),
    ("ops_size", &[]),
    ("ops_one_time_burst", &[]),
    ("ops_refill_time", &[]),
    ("pci_segment", &[]),
    ("pci_device_id", &[]),
    ("offload_tso", &["on", "true"]),
    ("offload_ufo", &["on", "true"]),
    ("offload_csum", &["on", "true"]),
];
const RNG_FOREIGN: &[(&str, &[&str])] =
    &[("iommu", &[]), ("id", &[]), ("pci_segment", &[]), ("pci_device_id", &[])];

impl CpusConfig {
    /// For help texts.
    pub const SYNTAX: &'static str = "boot=<number of vCPUs>,max=<most it may ever have>";

    /// Reads `--cpus`.
    ///
    /// # Errors
    /// A sentence for what cannot be read or done.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        const NUMBER: &str = "a number of vCPUs";
        let mut options = Options::parse("--cpus", text)?;
        let boot_vcpus = options.take_as("boot", NUMBER)?.unwrap_or(1);
        let max_vcpus = options.take_as("max", NUMBER)?.unwrap_or(boot_vcpus);
        options.finish(CPUS_FOREIGN)?;
        Ok(CpusConfig { boot_vcpus, max_vcpus })
    }

    /// The text [`CpusConfig::parse`] reads back.
    pub fn to_options(&self) -> String {
        let mut text = OptionsText::default();
        text.push("boot", self.boot_vcpus);
        text.push("max", self.max_vcpus);
        text.finish()
    }
}

impl MemoryConfig {
    /// For help texts.
    pub const SYNTAX: &'static str = "size=<bytes, with K, M or G>";

    /// Reads `--memory`.
    ///
    /// # Errors
    /// A sentence for what cannot be read or done.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut options = Options::parse("--memory", text)?;
        let size = options.take_size("size")?.unwrap_or(MemoryConfig::default().size);
        options.finish(MEMORY_FOREIGN)?;
        Ok(MemoryConfig { size })
    }

    /// The text [`MemoryConfig::parse`] reads back.
    pub fn to_options(&self) -> String {
        let mut text = OptionsText::default();
        text.push("size", print_size(self.size));
        text.finish()
    }
}

impl DiskConfig {
    /// For help texts.
    pub const SYNTAX: &'static str = "path=<raw image or block device>,readonly=on|off,\
        direct=on|off,id=<name>,serial=<serial number>";

    /// Reads one value of `--disk`.
    ///
    /// # Errors
    /// A sentence for what cannot be read or done.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut options = Options::parse("--disk", text)?;
        let disk = DiskConfig {
            path: options.take("path").map(PathBuf::from),
            readonly: options.take_switch("readonly")?,
            direct: options.take_switch("direct")?,
            id: options.take("id"),
            serial: options.take("serial"),
        };
        options.finish(DISK_FOREIGN)?;
        Ok(disk)
    }

    /// The text [`DiskConfig::parse`] reads back.
    pub fn to_options(&self) -> String {
        let mut text = OptionsText::default();
        text.push_some("path", self.path.as_ref().map(|path| path.display()));
        text.push_switch("readonly", self.readonly);
        text.push_switch("direct", self.direct);
        text.push_some("id", self.id.as_ref());
        text.push_some("serial", self.serial.as_ref());
        text.finish()
    }
}

impl NetConfig {
    /// For help texts.
    pub const SYNTAX: &'static str = "tap=<interface>,ip=<address of this host's end>,\
        mask=<its mask>,mac=<the guest's MAC>,mtu=<bytes>,id=<name>";

    /// Reads one value of `--net`.
    ///
    /// # Errors
    /// A sentence for what cannot be read or done.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        const ADDRESS: &str = "an IPv4 address";
        let mut options = Options::parse("--net", text)?;
        let net = NetConfig {
            tap: options.take("tap"),
            ip: options.take_as("ip", ADDRESS)?,
            mask: options.take_as("mask", "an IPv4 mask such as 255.255.255.0")?,
            mac: options.take_as("mac", "a MAC address such as 52:54:00:12:34:56")?,
            mtu: options.take_as("mtu", "a number of bytes from 68 to 65535")?,
            id: options.take("id"),
        };
        options.finish(NET_FOREIGN)?;
        Ok(net)
    }

    /// The text [`NetConfig::parse`] reads back.
    pub fn to_options(&self) -> String {
        let mut text = OptionsText::default();
        text.push_some("tap", self.tap.as_ref());
        text.push_some("ip", self.ip);
        text.push_some("mask", self.mask);
        text.push_some("mac", self.mac);
        text.push_some("mtu", self.mtu);
        text.push_some("id", self.id.as_ref());
        text.finish()
    }
}

impl RngConfig {
    /// For help texts.
    pub const SYNTAX: &'static str = "src=<file entropy is read from>";

    /// Reads `--rng`.
    ///
    /// # Errors
    /// A sentence for what cannot be read or done.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut options = Options::parse("--rng", text)?;
        let src = options.take("src").map_or_else(|| RngConfig::default().src, PathBuf::from);
        options.finish(RNG_FOREIGN)?;
        Ok(RngConfig { src })
    }

    /// The text [`RngConfig::parse`] reads back.
    pub fn to_options(&self) -> String {
        let mut text = OptionsText::default();
        text.push("src", self.src.display());
        text.finish()
    }
}

impl ConsoleConfig {
    /// The text [`console_from_options`] reads back.
    pub fn to_options(&self) -> String {
        let path = |path: &Option<PathBuf>| {
            path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
        };
        match self.mode {
            ConsoleMode::Off => "off".into(),
            ConsoleMode::Null => "null".into(),
            ConsoleMode::Tty => "tty".into(),
            ConsoleMode::Pty => "pty".into(),
            ConsoleMode::File => format!("file={}", path(&self.file)),
            ConsoleMode::Socket => format!("socket={}", path(&self.socket)),
        }
    }
}

/// Reads the value of `option`, which is `--serial` or `--console`: a word, `file=PATH` or
/// `socket=PATH`, then perhaps `,iommu=off`. That `pty` and `socket=` are not there yet is said by
/// whoever validates.
pub(crate) fn console_from_options(option: &str, text: &str) -> Result<ConsoleConfig, ConfigError> {
    let unreadable = || ConfigError::BadValue {
        option: option.to_owned(),
        key: "mode".into(),
        value: text.to_owned(),
        expected: "off, null, tty or file=PATH".into(),
    };
    let (first, rest) = text.split_once(',').unwrap_or((text, ""));
    Options::parse(option, rest)?.finish(&[("iommu", &[])])?;
    let mut config = ConsoleConfig::of(match first {
        "off" => ConsoleMode::Off,
        "null" => ConsoleMode::Null,
        "tty" => ConsoleMode::Tty,
        "pty" => ConsoleMode::Pty,
        _ => match first.split_once('=') {
            Some(("file", path)) if !path.is_empty() => ConsoleMode::File,
            Some(("socket", path)) if !path.is_empty() => ConsoleMode::Socket,
            _ => return Err(unreadable()),
        },
    });
    let path = || first.split_once('=').map(|(_, path)| PathBuf::from(path));
    match config.mode {
        ConsoleMode::File => config.file = path(),
        ConsoleMode::Socket => config.socket = path(),
        ConsoleMode::Off | ConsoleMode::Null | ConsoleMode::Tty | ConsoleMode::Pty => {}
    }
    Ok(config)
}

#[cfg(test)]
#[path = "device_options_tests.rs"]
mod tests;
