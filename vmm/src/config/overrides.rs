//! What of a VM belongs to a host and not to the VM: the files, taps and terminals a backup puts
//! under the devices its primary describes.
//!
//! Nothing here may change what the guest can see; that is why an override of a MAC address or of
//! `readonly` is refused.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, ConsoleConfig, ConsoleMode, DiskConfig, NetConfig, RngConfig, VmConfig};

/// Everything a backup (or a replay) says about its own host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostOverrides {
    /// By disk.
    pub disks: Vec<DiskOverride>,
    /// By network device.
    pub net: Vec<NetOverride>,
    /// Where this host's entropy comes from.
    pub rng: Option<RngConfig>,
    /// Where the serial port's bytes go on this host.
    pub serial: Option<ConsoleConfig>,
    /// Where the console's bytes go on this host.
    pub console: Option<ConsoleConfig>,
}

/// `--disk id=_disk0,path=/mnt/x.img`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskOverride {
    /// The disk of the VM.
    pub id: String,
    /// The file or block device on this host.
    pub path: PathBuf,
    /// Whether this host's page cache is passed by.
    #[serde(default)]
    pub direct: bool,
}

/// `--net id=_net1,tap=tap3`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetOverride {
    /// The network device of the VM.
    pub id: String,
    /// The tap interface on this host.
    pub tap: String,
    /// The address this host's end of the tap is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    /// The mask that goes with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Ipv4Addr>,
}

impl HostOverrides {
    /// Whether nothing is overridden.
    pub fn is_empty(&self) -> bool {
        *self == HostOverrides::default()
    }

    /// Refuses a device that is overridden twice.
    pub(super) fn refuse_doubles(&self) -> Result<(), ConfigError> {
        once("--disk", self.disks.iter().map(|one| one.id.as_str()))?;
        once("--net", self.net.iter().map(|one| one.id.as_str()))
    }
}

impl DiskOverride {
    /// Reads one value of a backup's `--disk`.
    ///
    /// # Errors
    /// A sentence if `id=` or `path=` is missing, or if the guest would see a difference.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let DiskConfig { path, readonly, direct, id, serial } = DiskConfig::parse(text)?;
        refuse_guest_visible("--disk", "readonly", readonly)?;
        refuse_guest_visible("--disk", "serial", serial.is_some())?;
        Ok(DiskOverride {
            id: id.ok_or_else(|| missing("--disk", "id", "id=_disk0,path=/mnt/x.img"))?,
            path: path.ok_or_else(|| missing("--disk", "path", "id=_disk0,path=/mnt/x.img"))?,
            direct,
        })
    }
}

impl NetOverride {
    /// Reads one value of a backup's `--net`.
    ///
    /// # Errors
    /// A sentence if `id=` or `tap=` is missing, or if the guest would see a difference.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let NetConfig { tap, ip, mask, mac, mtu, id } = NetConfig::parse(text)?;
        refuse_guest_visible("--net", "mac", mac.is_some())?;
        refuse_guest_visible("--net", "mtu", mtu.is_some())?;
        Ok(NetOverride {
            id: id.ok_or_else(|| missing("--net", "id", "id=_net1,tap=tap3"))?,
            tap: tap.ok_or_else(|| missing("--net", "tap", "id=_net1,tap=tap3"))?,
            ip,
            mask,
        })
    }
}

fn refuse_guest_visible(option: &str, key: &str, given: bool) -> Result<(), ConfigError> {
    if !given {
        return Ok(());
    }
    Err(ConfigError::contradiction(format!(
        "{option}: {key}= cannot be overridden on this host, because the guest would see the \
         difference: it is the primary's to say."
    )))
}

fn missing(option: &str, key: &str, example: &str) -> ConfigError {
    ConfigError::Missing {
        option: option.into(),
        key: key.into(),
        advice: format!(
            "On a backup, {option} says what of this host stands in for a device of the VM, as in \
             {option} {example}."
        ),
    }
}

/// The primary's configuration as it is carried out on this host.
///
/// # Errors
/// A sentence for an id the VM does not have or that is overridden twice, for a console that would
/// appear or vanish, and for a result that is no VM.
pub fn apply_overrides(
    mut config: VmConfig,
    overrides: &HostOverrides,
) -> Result<VmConfig, ConfigError> {
    overrides.refuse_doubles()?;
    for one in &overrides.disks {
        let disks = config.disks.as_deref_mut().unwrap_or_default();
        let disk = find(disks, "disk", &one.id, |disk| disk.id.as_deref())?;
        disk.path = Some(one.path.clone());
        disk.direct = one.direct;
    }
    for one in &overrides.net {
        let nets = config.net.as_deref_mut().unwrap_or_default();
        let net = find(nets, "network device", &one.id, |net| net.id.as_deref())?;
        net.tap = Some(one.tap.clone());
        // The other host's address on its tap is not this host's.
        (net.ip, net.mask) = (one.ip, one.mask);
    }
    if let Some(rng) = &overrides.rng {
        config.rng = rng.clone();
    }
    override_console("serial port", &mut config.serial, overrides.serial.as_ref())?;
    override_console("console", &mut config.console, overrides.console.as_ref())?;
    // It came from elsewhere, and two overrides may name the same thing.
    config.validate()?;
    Ok(config)
}

fn once<'a>(option: &str, ids: impl Iterator<Item = &'a str>) -> Result<(), ConfigError> {
    let mut seen = std::collections::BTreeSet::new();
    for id in ids {
        if !seen.insert(id) {
            return Err(ConfigError::contradiction(format!(
                "{option}: the device \"{id}\" is given twice; say once what stands in for it."
            )));
        }
    }
    Ok(())
}

fn find<'a, T>(
    devices: &'a mut [T],
    kind: &'static str,
    id: &str,
    id_of: impl Fn(&T) -> Option<&str>,
) -> Result<&'a mut T, ConfigError> {
    let Some(at) = devices.iter().position(|device| id_of(device) == Some(id)) else {
        let ids: Vec<_> = devices.iter().filter_map(&id_of).collect();
        let known = match ids.as_slice() {
            [] => format!("It has no {kind} at all."),
            ids => format!("It has {}.", ids.join(", ")),
        };
        return Err(ConfigError::UnknownDevice { kind, id: id.to_owned(), known });
    };
    Ok(&mut devices[at])
}

fn override_console(
    name: &str,
    console: &mut ConsoleConfig,
    here: Option<&ConsoleConfig>,
) -> Result<(), ConfigError> {
    let Some(here) = here else { return Ok(()) };
    let off = |console: &ConsoleConfig| console.mode == ConsoleMode::Off;
    if off(console) != off(here) {
        let (has, wish) = if off(console) { ("has no", "one") } else { ("has a", "none") };
        return Err(ConfigError::contradiction(format!(
            "The VM {has} {name}, and this host asks for {wish}: the guest would see the \
             difference. Only where its bytes go may differ."
        )));
    }
    *console = here.clone();
    Ok(())
}

#[cfg(test)]
#[path = "overrides_tests.rs"]
mod tests;
