//! The answers of `vmm.ping`, `vm.info` and `vm.counters`, with Cloud Hypervisor's JSON names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::VmConfig;

/// The answer of `vmm.ping`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmPingResponse {
    /// The exact build.
    pub build_version: String,
    /// The release.
    pub version: String,
    /// The VMM's process.
    pub pid: i64,
    /// What this build can do beyond the ordinary.
    pub features: Vec<String>,
}

impl VmmPingResponse {
    /// The answer for this build and process.
    pub fn of_this_process() -> Self {
        let version = format!("v{}", env!("CARGO_PKG_VERSION"));
        VmmPingResponse {
            build_version: option_env!("BUILD_VERSION").unwrap_or(&version).to_owned(),
            version,
            pid: i64::from(std::process::id()),
            features: vec!["ft".into(), "kvm".into()],
        }
    }
}

/// A VM's state, in Cloud Hypervisor's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// It has a configuration and was never booted.
    Created,
    /// It runs (or, on a backup, follows).
    Running,
    /// It ended and can be booted again.
    Shutdown,
    /// It stands still.
    Paused,
}

/// The answer of `vm.info`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// The VM as it was created, with the ids and MAC addresses it was given.
    pub config: VmConfig,
    /// Its state.
    pub state: VmState,
    /// Bytes of memory the guest has.
    pub memory_actual_size: u64,
    /// Its devices by id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_tree: Option<BTreeMap<String, DeviceNode>>,
}

/// One device of `vm.info`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// The device's id.
    pub id: String,
    /// Ids of devices behind this one.
    #[serde(default)]
    pub children: Vec<String>,
    /// Where it is on the PCI bus, as `0000:00:03.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pci_bdf: Option<String>,
}

/// The answer of `vm.counters`: by device id, then by counter.
pub type VmCounters = BTreeMap<String, BTreeMap<String, u64>>;
