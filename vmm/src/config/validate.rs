//! Whether a configuration can become a VM: values in range, names unique, nothing contradictory.
//!
//! It judges values only. Whether files and interfaces exist is found out by those who open them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::vm_config::{MEMORY_SIZE_MIN, MEMORY_SIZE_STEP};
use super::{
    ConfigError, ConsoleConfig, ConsoleMode, DiskConfig, FtMode, HostOverrides, MacAddress,
    NetConfig, VmConfig,
};

/// Most vCPUs a VM may have in this version.
const VCPUS_MAX: u8 = 1;
/// Most block and network devices together: one PCI bus, less what the board itself needs.
const DEVICES_MAX: usize = 24;
/// Bytes of a virtio block serial number (virtio 1.2, 5.2.6.2).
const SERIAL_LENGTH_MAX: usize = 20;
/// Bytes of an interface name in Linux, without the terminating zero.
const TAP_LENGTH_MAX: usize = 15;
/// Bytes of a kernel command line on x86-64, without the terminating zero.
const CMDLINE_LENGTH_MAX: usize = 2047;
/// The smallest MTU IPv4 allows (RFC 791).
const MTU_MIN: u16 = 68;
/// The guest's memory must lie below the 40 address bits every x86-64 host has.
const MEMORY_SIZE_MAX: u64 = 512 << 30;

impl VmConfig {
    /// Checks everything that can be checked without touching the host.
    ///
    /// # Errors
    /// The first thing that is wrong, as a sentence.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_cpus_and_memory()?;
        self.validate_payload()?;
        self.validate_consoles()?;
        self.validate_devices()?;
        self.validate_ft()
    }

    fn validate_cpus_and_memory(&self) -> Result<(), ConfigError> {
        let cpus = &self.cpus;
        if cpus.boot_vcpus == 0 || cpus.max_vcpus < cpus.boot_vcpus {
            return Err(ConfigError::contradiction(format!(
                "A VM cannot boot with {} vCPUs of at most {}: both must be at least 1, and max at \
                 least boot.",
                cpus.boot_vcpus, cpus.max_vcpus
            )));
        }
        if cpus.max_vcpus > VCPUS_MAX {
            return Err(ConfigError::contradiction(format!(
                "{} vCPUs are asked for, but this version runs VMs with one vCPU only: say \
                 boot=1,max=1.",
                cpus.max_vcpus
            )));
        }
        let size = self.memory.size;
        if !(MEMORY_SIZE_MIN..=MEMORY_SIZE_MAX).contains(&size)
            || !size.is_multiple_of(MEMORY_SIZE_STEP)
        {
            return Err(ConfigError::contradiction(format!(
                "A memory size of {size} bytes cannot be used: it must be a whole number of MiB \
                 from {}M to {}G.",
                MEMORY_SIZE_MIN >> 20,
                MEMORY_SIZE_MAX >> 30
            )));
        }
        Ok(())
    }

    fn validate_payload(&self) -> Result<(), ConfigError> {
        let payload = &self.payload;
        if let Some(firmware) = &payload.firmware {
            return Err(ConfigError::contradiction(format!(
                "Booting a firmware ({}) is not there yet: give a Linux kernel as the payload's \
                 kernel.",
                firmware.display()
            )));
        }
        if payload.kernel.is_none() {
            return Err(ConfigError::contradiction(
                "The VM has nothing to boot: give a kernel (--kernel PATH, or \"payload\": \
                 {\"kernel\": \"PATH\"}).",
            ));
        }
        let cmdline = payload.cmdline.as_deref().unwrap_or_default();
        if cmdline.len() > CMDLINE_LENGTH_MAX || cmdline.contains('\0') {
            return Err(ConfigError::contradiction(format!(
                "The kernel command line has {} bytes; it may have at most {CMDLINE_LENGTH_MAX}, \
                 none of them zero.",
                cmdline.len()
            )));
        }
        Ok(())
    }

    fn validate_consoles(&self) -> Result<(), ConfigError> {
        validate_console("serial port", &self.serial)?;
        validate_console("console", &self.console)?;
        if self.serial.mode == ConsoleMode::Tty && self.console.mode == ConsoleMode::Tty {
            return Err(ConfigError::contradiction(
                "The serial port and the console cannot both be the terminal: give one of them \
                 another mode (--console off, for example).",
            ));
        }
        Ok(())
    }

    fn validate_devices(&self) -> Result<(), ConfigError> {
        let count = self.disks().len() + self.nets().len();
        if count > DEVICES_MAX {
            return Err(ConfigError::contradiction(format!(
                "{count} disks and network devices are asked for; there is room for {DEVICES_MAX}."
            )));
        }
        let disk_ids = self.disks().iter().filter_map(|disk| disk.id.as_deref());
        let net_ids = self.nets().iter().filter_map(|net| net.id.as_deref());
        let mut seen = BTreeSet::new();
        for id in disk_ids.chain(net_ids) {
            validate_id(id)?;
            if !seen.insert(id) {
                return Err(ConfigError::contradiction(format!(
                    "Two devices have the id \"{id}\": every device needs its own."
                )));
            }
        }
        self.disks().iter().enumerate().try_for_each(|(at, disk)| validate_disk(at, disk))?;
        for (at, net) in self.nets().iter().enumerate() {
            validate_net(&format!("net[{at}]"), net)?;
        }
        self.validate_shared_names()
    }

    /// Two devices must not stand on one image or tap, or answer to one MAC.
    fn validate_shared_names(&self) -> Result<(), ConfigError> {
        let mut images = BTreeMap::new();
        for disk in self.disks() {
            let Some(path) = &disk.path else { continue };
            let readers_only = *images.get(path).unwrap_or(&true) && disk.readonly;
            if images.insert(path, disk.readonly).is_some() && !readers_only {
                return Err(ConfigError::contradiction(format!(
                    "Two disks use the image {}: every one needs its own, unless all of them are \
                     readonly=on.",
                    path.display()
                )));
            }
        }
        let (mut taps, mut macs) = (BTreeSet::new(), BTreeSet::new());
        for net in self.nets() {
            if let Some(tap) = net.tap.as_deref().filter(|tap| !taps.insert(*tap)) {
                return Err(ConfigError::contradiction(format!(
                    "Two network devices use the tap {tap}: every one needs its own."
                )));
            }
            if let Some(mac) = net.mac.filter(|mac| !macs.insert(*mac)) {
                return Err(ConfigError::contradiction(format!(
                    "Two network devices have the MAC address {mac}: every one needs its own."
                )));
            }
        }
        Ok(())
    }

    fn validate_ft(&self) -> Result<(), ConfigError> {
        match self.ft.as_ref().map(|ft| &ft.mode) {
            Some(FtMode::Backup { .. }) => Err(ConfigError::contradiction(
                "A backup gets its VM from its primary: start it without a VM of its own.",
            )),
            Some(FtMode::Replay { .. }) => Err(ConfigError::contradiction(
                "A replay takes its VM from its log: start it without a VM of its own.",
            )),
            Some(FtMode::Primary { .. } | FtMode::Record { .. }) | None => Ok(()),
        }
    }
}

impl HostOverrides {
    /// Checks what can be checked before a VM comes.
    ///
    /// # Errors
    /// The first thing that is wrong, as a sentence.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.refuse_doubles()?;
        for id in self.disks.iter().map(|one| &one.id).chain(self.net.iter().map(|one| &one.id)) {
            validate_id(id)?;
        }
        for one in &self.net {
            let tap = Some(one.tap.clone());
            let net = NetConfig { tap, ip: one.ip, mask: one.mask, ..NetConfig::default() };
            validate_net(&format!("--net id={}", one.id), &net)?;
        }
        for (name, console) in [("serial port", &self.serial), ("console", &self.console)] {
            console.iter().try_for_each(|console| validate_console(name, console))?;
        }
        Ok(())
    }
}

fn validate_console(name: &str, console: &ConsoleConfig) -> Result<(), ConfigError> {
    let ConsoleConfig { mode, file, socket } = console;
    let not_yet = |what| {
        Err(ConfigError::contradiction(format!(
            "The {name} cannot be a {what} yet: use tty, file=PATH, null or off."
        )))
    };
    let needs_file = match mode {
        ConsoleMode::File => true,
        ConsoleMode::Off | ConsoleMode::Null | ConsoleMode::Tty => false,
        ConsoleMode::Pty => return not_yet("pseudo terminal"),
        ConsoleMode::Socket => return not_yet("socket"),
    };
    for (what, given, needed) in
        [("file", file.is_some(), needs_file), ("socket", socket.is_some(), false)]
    {
        if given && !needed {
            return Err(ConfigError::contradiction(format!(
                "The {name} has a {what} but its mode is {mode:?}: the mode must be the one that \
                 uses it."
            )));
        }
        if needed && !given {
            return Err(ConfigError::contradiction(format!(
                "The {name}'s mode is {mode:?} but it has no {what}: give one ({what}=PATH)."
            )));
        }
    }
    Ok(())
}

/// Ids starting with `_` are ours to give, but a user may repeat them: overrides, and a
/// configuration read back from `vm.info`, name devices that way.
fn validate_id(id: &str) -> Result<(), ConfigError> {
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !id.is_empty() && id.len() <= 64 && id.chars().all(named) && !id.starts_with("__") {
        return Ok(());
    }
    Err(ConfigError::contradiction(format!(
        "The device id \"{}\" cannot be used: an id has 1 to 64 letters, digits, _, - or ., and \
         does not start with __.",
        id.chars().take(64).collect::<String>()
    )))
}

fn validate_disk(at: usize, disk: &DiskConfig) -> Result<(), ConfigError> {
    if disk.path.is_none() {
        return Err(ConfigError::contradiction(format!(
            "disks[{at}] has no path: give a raw image file or a block device (--disk path=…)."
        )));
    }
    let serial = disk.serial.as_deref().unwrap_or_default();
    if serial.len() > SERIAL_LENGTH_MAX || !serial.is_ascii() {
        return Err(ConfigError::contradiction(format!(
            "disks[{at}] has a serial number of {} bytes; it may have at most {SERIAL_LENGTH_MAX}, \
             all ASCII.",
            serial.len()
        )));
    }
    Ok(())
}

fn validate_net(place: &str, net: &NetConfig) -> Result<(), ConfigError> {
    let refuse = |what: String| Err(ConfigError::contradiction(format!("{place}: {what}")));
    if let Some(tap) = net.tap.as_deref()
        && !is_interface_name(tap)
    {
        return refuse(format!(
            "\"{tap}\" is not the name of an interface: 1 to {TAP_LENGTH_MAX} characters, no / \
             and no space."
        ));
    }
    if let Some(mac) = net.mac
        && !MacAddress::is_unicast(mac)
    {
        return refuse(format!("{mac} is no address of a single network card."));
    }
    if let Some(mtu) = net.mtu.filter(|mtu| *mtu < MTU_MIN) {
        return refuse(format!("an MTU of {mtu} is too small; the least is {MTU_MIN}."));
    }
    if let Some(mask) = net.mask {
        if u32::from(mask).leading_ones() != u32::from(mask).count_ones() {
            return refuse(format!("{mask} is not a network mask."));
        }
        if net.ip.is_none() {
            return refuse(format!("a mask ({mask}) needs an ip= that it belongs to."));
        }
    }
    if net.ip == Some(Ipv4Addr::UNSPECIFIED) {
        return refuse("0.0.0.0 is no address this host's end of the tap can have.".into());
    }
    Ok(())
}

fn is_interface_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':');
    (1..=TAP_LENGTH_MAX).contains(&name.len())
        && name.chars().all(allowed)
        && !matches!(name, "." | "..")
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
