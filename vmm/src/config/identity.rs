//! Names for devices without one and MAC addresses for network cards without one.
//!
//! A VM is completed once, before it first boots; from then on both hosts of a pair, every reboot
//! and every log speak of the same devices.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};

use super::vm_config::RNG_SOURCE_DEFAULT;
use super::{MacAddress, VmConfig};

impl VmConfig {
    /// Names every device and gives every network card a MAC address, drawing random bytes from
    /// this host.
    ///
    /// # Errors
    /// Fails only if the host's random source cannot be read.
    pub fn complete(&mut self) -> io::Result<()> {
        let mut source = None;
        self.complete_with(&mut || {
            let file = match &mut source {
                Some(file) => file,
                none => none.insert(File::open(RNG_SOURCE_DEFAULT)?),
            };
            let mut bytes = [0; 6];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        })
    }

    /// [`VmConfig::complete`] with the random bytes given.
    ///
    /// # Errors
    /// Only those of `random`.
    pub fn complete_with(
        &mut self,
        random: &mut dyn FnMut() -> io::Result<[u8; 6]>,
    ) -> io::Result<()> {
        self.name_devices();
        for net in self.net.iter_mut().flatten() {
            if net.mac.is_none() {
                net.mac = Some(MacAddress::local_from(random()?));
            }
        }
        Ok(())
    }

    /// Names as Cloud Hypervisor gives them: one counter over all devices, disks first, so that
    /// one disk and one network card are `_disk0` and `_net1`.
    fn name_devices(&mut self) {
        let disk_ids = self.disks.iter_mut().flatten().map(|disk| ("_disk", &mut disk.id));
        let net_ids = self.net.iter_mut().flatten().map(|net| ("_net", &mut net.id));
        let mut slots: Vec<_> = disk_ids.chain(net_ids).collect();
        let mut taken: BTreeSet<String> =
            slots.iter().filter_map(|(_, id)| id.as_ref().cloned()).collect();
        let mut counter = 0_u32;
        for (prefix, slot) in slots.iter_mut().filter(|(_, id)| id.is_none()) {
            let name = loop {
                let name = format!("{prefix}{counter}");
                counter += 1;
                if taken.insert(name.clone()) {
                    break name;
                }
            };
            **slot = Some(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DiskConfig, NetConfig};
    use super::*;

    fn ids(config: &VmConfig) -> Vec<&str> {
        let disks = config.disks().iter().map(|disk| disk.id.as_deref().unwrap());
        disks.chain(config.nets().iter().map(|net| net.id.as_deref().unwrap())).collect()
    }

    fn config(disks: &[Option<&str>], nets: &[Option<&str>]) -> VmConfig {
        let owned = |id: &Option<&str>| id.map(str::to_owned);
        VmConfig {
            disks: Some(
                disks.iter().map(|id| DiskConfig { id: owned(id), ..Default::default() }).collect(),
            ),
            net: Some(
                nets.iter().map(|id| NetConfig { id: owned(id), ..Default::default() }).collect(),
            ),
            ..Default::default()
        }
    }

    #[test]
    fn one_counter_runs_over_disks_and_then_nets() {
        let mut vm = config(&[None], &[None]);
        vm.complete().unwrap();
        assert_eq!(ids(&vm), ["_disk0", "_net1"]);
        let mut vm = config(&[None, None], &[None, None]);
        vm.complete().unwrap();
        assert_eq!(ids(&vm), ["_disk0", "_disk1", "_net2", "_net3"]);
    }

    #[test]
    fn named_devices_keep_their_names_and_take_no_number() {
        let mut vm = config(&[Some("root"), None], &[None]);
        vm.complete().unwrap();
        assert_eq!(ids(&vm), ["root", "_disk0", "_net1"]);
    }

    #[test]
    fn a_generated_name_never_collides_with_a_chosen_one() {
        let mut vm = config(&[None, Some("_disk0")], &[None, Some("_net2")]);
        vm.complete().unwrap();
        assert_eq!(ids(&vm), ["_disk1", "_disk0", "_net3", "_net2"]);
    }

    #[test]
    fn a_chosen_mac_stays_and_a_missing_one_is_drawn_once() {
        let chosen = MacAddress([0x52, 0x54, 0, 1, 2, 3]);
        let mut vm = config(&[], &[None, None]);
        vm.net.as_mut().unwrap()[0].mac = Some(chosen);
        vm.complete_with(&mut || Ok([0xff; 6])).unwrap();
        assert_eq!(vm.nets()[0].mac, Some(chosen));
        assert_eq!(vm.nets()[1].mac, Some(MacAddress([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff])));
        let completed = vm.clone();
        vm.complete_with(&mut || Ok([0; 6])).unwrap();
        assert_eq!(vm, completed);
    }
}
