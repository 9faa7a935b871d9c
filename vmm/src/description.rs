//! The VM as a prologue describes it to whoever follows: configuration, the guest's CPUID, disks.
//!
//! Owns the encoding, and that only what can be built is decoded: the bytes come from another host or
//! from a file. Does not own the prologue around it (`ft`) or what of this host stands in for the
//! devices (`crate::config`).

use hypervisor::Cpuid;
use serde::{Deserialize, Serialize};

use crate::cli::DebugUndo;
use crate::config::{FtConfig, FtMode, VmConfig};
use crate::error::Error;

/// More leaves than any processor has: KVM takes no more.
const CPUID_LEAVES_MAX: usize = 256;

/// All that is needed to build a VM that waits for its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// What the VM is made of.
    pub config: VmConfig,
    /// What the guest knows of its processor.
    pub cpuid: Cpuid,
    /// Sectors of each disk, in the configuration's order: the guest knows them.
    pub disk_sectors: Vec<u64>,
    /// How its primary protects it, for a backup that takes over; absent in a recording.
    pub protection: Option<FtConfig>,
    /// Why it cannot be followed by replay, if its primary knows that.
    pub unreplayable: Option<Unreplayable>,
}

/// Why a VM cannot be followed by replay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreplayable {
    /// Part of a sentence, for the user.
    pub why: String,
    /// It never could, as opposed to: its copies have differed again and again.
    pub by_nature: bool,
}

impl Unreplayable {
    /// What is known of a VM that boots: whether its kernel was treated, and what was left out.
    pub fn of(treated: bool, undone: &[DebugUndo]) -> Option<Self> {
        let why = match undone.first() {
            Some(DebugUndo::TscRewrite) => "its kernel's time-stamp reads were not rewritten",
            Some(DebugUndo::ApicId) => "its guest sees the APIC id of its host",
            None if treated => return None,
            None => "its kernel has no section headers, so its time-stamp reads were not rewritten",
        };
        Some(Self { why: why.to_owned(), by_nature: true })
    }
}

/// The encoding of all but the CPUID.
#[derive(Serialize, Deserialize)]
struct Encoded {
    /// The configuration: a whole JSON object, read by its own rules.
    vm: serde_json::Value,
    disk_sectors: Vec<u64>,
    /// As `--ft` would say it.
    protection: Option<String>,
    unreplayable: Option<Unreplayable>,
}

impl Description {
    /// The two parts as a prologue has them: the machine, and the CPUID.
    ///
    /// # Errors
    /// The configuration has a path that is not text.
    pub fn encode(&self) -> Result<(Vec<u8>, Vec<u8>), Error> {
        let failed = |error: serde_json::Error| Error::Description(error.to_string());
        let config = VmConfig { ft: None, ..self.config.clone() };
        let vm = serde_json::to_value(&config).map_err(failed)?;
        let disk_sectors = self.disk_sectors.clone();
        let protection = self.protection.as_ref().map(FtConfig::to_options);
        let unreplayable = self.unreplayable.clone();
        let encoded = Encoded { vm, disk_sectors, protection, unreplayable };
        let machine = serde_json::to_vec(&encoded).map_err(failed)?;
        Ok((machine, serde_json::to_vec(&self.cpuid).map_err(failed)?))
    }

    /// The opposite of [`Description::encode`].
    ///
    /// # Errors
    /// The bytes are no description, or one of a VM that cannot be.
    pub fn decode(machine: &[u8], cpuid: &[u8]) -> Result<Self, Error> {
        let failed = |error: serde_json::Error| Error::Description(error.to_string());
        let Encoded { vm, disk_sectors, protection, unreplayable } =
            serde_json::from_slice(machine).map_err(failed)?;
        let config = VmConfig::from_json(vm.to_string().as_bytes())?;
        config.validate()?;
        if config.ft.is_some() {
            return Err(Error::Description(
                "the VM's configuration says how it is protected, which is no part of it".into(),
            ));
        }
        if disk_sectors.len() != config.disks().len() {
            return Err(Error::Description(format!(
                "it has {} disks and the sizes of {}",
                config.disks().len(),
                disk_sectors.len()
            )));
        }
        let cpuid: Cpuid = serde_json::from_slice(cpuid).map_err(failed)?;
        if cpuid.0.len() > CPUID_LEAVES_MAX {
            return Err(Error::Description(format!("its CPUID has {} leaves", cpuid.0.len())));
        }
        let protection = protection.as_deref().map(FtConfig::parse).transpose()?;
        if protection.as_ref().is_some_and(|ft| !matches!(ft.mode, FtMode::Primary { .. })) {
            return Err(Error::Description("it is protected as no primary could be".into()));
        }
        Ok(Self { config, cpuid, disk_sectors, protection, unreplayable })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_known_to_be_unreplayable_by_what_was_left_undone() {
        assert_eq!(Unreplayable::of(true, &[]), None);
        let why = |treated, undone: &[DebugUndo]| Unreplayable::of(treated, undone).unwrap().why;
        assert!(why(false, &[]).contains("no section headers"));
        assert!(why(true, &[DebugUndo::TscRewrite]).contains("were not rewritten"));
        assert!(why(true, &[DebugUndo::ApicId]).contains("APIC id"));
    }
}
