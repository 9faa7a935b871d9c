//! Whether this host can stand in for the primary's: what a takeover needs is looked for before
//! the join, when its lack costs nothing but a sentence.
//!
//! Owns the questions about disks, taps and the arbiter's storage. Does not own opening them.

use super::world::disk_capacities;
use crate::config::VmConfig;
use crate::error::Error;
use crate::replica::BoundedArbiter;

/// Checks what this host has to offer for `config`, whose disks have `disk_sectors` where the VM
/// runs now.
///
/// # Errors
/// The first thing that is missing or different.
pub(super) fn check_host(
    config: &VmConfig,
    disk_sectors: &[u64],
    arbiter: Option<&BoundedArbiter>,
) -> Result<(), Error> {
    check_disks(config, disk_sectors)?;
    check_taps(config)?;
    // Nothing runs here yet that would miss the event loop for the seconds that this may take.
    arbiter.map_or(Ok(()), BoundedArbiter::check).map_err(here)
}

/// Says where it was found; the sentence is read at the primary.
#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
pub(super) fn here(error: Error) -> Error {
    Error::Refused(format!("on the backup's host {error}"))
}

/// A disk of another size would be found out by the guest, after a takeover.
fn check_disks(config: &VmConfig, disk_sectors: &[u64]) -> Result<(), Error> {
    let here = disk_capacities(config).map_err(here)?;
    if here.len() != disk_sectors.len() {
        return Err(Error::Refused(format!(
            "the primary describes {} disks and the sizes of {}; both sides must run the same build",
            here.len(),
            disk_sectors.len()
        )));
    }
    for ((disk, here), there) in config.disks().iter().zip(here).zip(disk_sectors) {
        if here != *there {
            let id = disk.id.as_deref().unwrap_or_default();
            return Err(Error::Refused(format!(
                "the disk {id} has {} bytes on the backup's host ({}), and {} on the primary's: \
                 give the backup --disk id={id},path=… for the storage that both hosts share",
                here * 512,
                disk.path.clone().unwrap_or_default().display(),
                there * 512
            )));
        }
    }
    Ok(())
}

/// Opening a tap that is not there makes one: without a bridge, it would lead nowhere.
fn check_taps(config: &VmConfig) -> Result<(), Error> {
    // This lists the interfaces of the process's own network namespace, which /sys need not do.
    let Ok(interfaces) = std::fs::read_to_string("/proc/net/dev") else { return Ok(()) };
    match config
        .nets()
        .iter()
        .find(|net| net.tap.as_deref().is_some_and(|tap| !has_interface(&interfaces, tap)))
    {
        None => Ok(()),
        Some(net) => {
            let id = net.id.as_deref().unwrap_or_default();
            Err(Error::Refused(format!(
                "the tap {} is not there on the backup's host: make it and put it into a bridge, or \
                 give the backup --net id={id},tap=… for another one",
                net.tap.as_deref().unwrap_or_default()
            )))
        }
    }
}

fn has_interface(table: &str, name: &str) -> bool {
    table.lines().filter_map(|line| line.split_once(':')).any(|(here, _)| here.trim() == name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::config::{DiskConfig, NetConfig};
    use crate::replica::FileArbiter;

    fn sentence(config: &VmConfig, sectors: &[u64], arbiter: Option<&Path>) -> String {
        check(config, sectors, arbiter).unwrap_err().to_string()
    }

    fn check(config: &VmConfig, sectors: &[u64], arbiter: Option<&Path>) -> Result<(), Error> {
        let arbiter = arbiter.map(|path| BoundedArbiter::new(Arc::new(FileArbiter::new(path))));
        check_host(config, sectors, arbiter.as_ref())
    }

    #[test]
    fn a_disk_must_be_there_and_as_large() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, [0; 1024]).unwrap();
        let mut config = VmConfig {
            disks: Some(vec![DiskConfig { path: Some(path.clone()), ..DiskConfig::default() }]),
            ..VmConfig::default()
        };
        config.complete().unwrap();
        assert!(check(&config, &[2], None).is_ok());
        let said = sentence(&config, &[4], None);
        assert!(said.starts_with("the disk _disk0 has 1024 bytes on the backup's host"), "{said}");
        assert!(said.contains("--disk id=_disk0,path=…"), "{said}");
        assert!(sentence(&config, &[], None).contains("the sizes of 0"));
        std::fs::remove_file(path).unwrap();
        let said = sentence(&config, &[2], None);
        assert!(said.starts_with("on the backup's host can't open the disk image"), "{said}");
    }

    #[test]
    fn a_tap_must_be_there() {
        let net = |tap: &str| VmConfig {
            net: Some(vec![NetConfig { tap: Some(tap.into()), ..NetConfig::default() }]),
            ..VmConfig::default()
        };
        assert!(check(&net("lo"), &[], None).is_ok());
        let said = sentence(&net("no-such-tap"), &[], None);
        assert!(
            said.starts_with("the tap no-such-tap is not there on the backup's host"),
            "{said}"
        );
    }

    #[test]
    fn the_arbiters_storage_must_take_claims() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check(&VmConfig::default(), &[], Some(folder.path())).is_ok());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let gone = folder.path().join("gone");
        let said = sentence(&VmConfig::default(), &[], Some(&gone));
        assert!(said.starts_with("on the backup's host the arbiter's directory"), "{said}");
    }
}
