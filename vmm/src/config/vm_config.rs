//! The VM as plain data, with Cloud Hypervisor's JSON field names and defaults.
//!
//! Only fields that do something are here. What else Cloud Hypervisor knows is refused by
//! `json.rs` (REST) and `device_options.rs` (command line) before these types are made; whether
//! the values make sense together is `validate.rs`'s question.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{FtConfig, MacAddress};

/// The smallest memory a VM may have, in bytes.
pub(crate) const MEMORY_SIZE_MIN: u64 = 32 << 20;
/// Memory sizes are multiples of this, in bytes.
pub(crate) const MEMORY_SIZE_STEP: u64 = 1 << 20;
/// Cloud Hypervisor's default memory, in bytes.
pub(crate) const MEMORY_SIZE_DEFAULT: u64 = 512 << 20;
/// Where entropy comes from unless the user says otherwise.
pub(crate) const RNG_SOURCE_DEFAULT: &str = "/dev/urandom";

/// A whole VM: the JSON body of `vm.create`, the `config` of `vm.info`, and what a primary sends
/// to its backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Virtual processors.
    #[serde(default)]
    pub cpus: CpusConfig,
    /// Guest memory.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// What the VM boots.
    #[serde(default)]
    pub payload: PayloadConfig,
    /// Block devices, in the order of their PCI slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<DiskConfig>>,
    /// Network devices, in the order of their PCI slots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<Vec<NetConfig>>,
    /// The source of the guest's entropy.
    #[serde(default)]
    pub rng: RngConfig,
    /// The 16550 serial port at 0x3f8.
    #[serde(default = "ConsoleConfig::default_serial")]
    pub serial: ConsoleConfig,
    /// The virtio console.
    #[serde(default = "ConsoleConfig::default_console")]
    pub console: ConsoleConfig,
    /// How the VM is protected, recorded or replayed from its first instruction on. Not Cloud
    /// Hypervisor's; absent for a plain VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ft: Option<FtConfig>,
}

impl Default for VmConfig {
    fn default() -> Self {
        VmConfig {
            cpus: CpusConfig::default(),
            memory: MemoryConfig::default(),
            payload: PayloadConfig::default(),
            disks: None,
            net: None,
            rng: RngConfig::default(),
            serial: ConsoleConfig::default_serial(),
            console: ConsoleConfig::default_console(),
            ft: None,
        }
    }
}

impl VmConfig {
    /// The block devices, none if none were asked for.
    pub fn disks(&self) -> &[DiskConfig] {
        self.disks.as_deref().unwrap_or_default()
    }

    /// The network devices, none if none were asked for.
    pub fn nets(&self) -> &[NetConfig] {
        self.net.as_deref().unwrap_or_default()
    }
}

/// `--cpus boot=1,max=1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpusConfig {
    /// Processors the VM boots with.
    pub boot_vcpus: u8,
    /// Processors it may ever have.
    pub max_vcpus: u8,
}

impl Default for CpusConfig {
    fn default() -> Self {
        CpusConfig { boot_vcpus: 1, max_vcpus: 1 }
    }
}

/// `--memory size=512M`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryConfig {
    /// Bytes of guest memory.
    pub size: u64,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        MemoryConfig { size: MEMORY_SIZE_DEFAULT }
    }
}

/// What the VM boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PayloadConfig {
    /// A file Cloud Hypervisor would run as firmware; refused by validation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// An ELF `vmlinux` or a `bzImage`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The initial RAM file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
}

impl PayloadConfig {
    /// Whether nothing at all was given to boot.
    pub fn is_empty(&self) -> bool {
        *self == PayloadConfig::default()
    }
}

/// One block device: `--disk path=…,readonly=on|off,direct=on|off,id=…,serial=…`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// A raw image file or a block device of this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Whether the guest may only read.
    #[serde(default)]
    pub readonly: bool,
    /// Whether the host's page cache is passed by (`O_DIRECT`).
    #[serde(default)]
    pub direct: bool,
    /// The device's name; [`VmConfig::complete`] gives one to those without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What the guest reads as the disk's serial number, at most 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// One network device: `--net tap=…,ip=…,mask=…,mac=…,mtu=…,id=…`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The tap interface of this host; a fresh one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// The address this host's end of the tap is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<Ipv4Addr>,
    /// The mask that goes with `ip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Ipv4Addr>,
    /// The guest's MAC address; [`VmConfig::complete`] draws one for those without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The link's maximum transmission unit in bytes, told to the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// The device's name; [`VmConfig::complete`] gives one to those without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// `--rng src=/dev/urandom`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngConfig {
    /// The file of this host that entropy is read from.
    pub src: PathBuf,
}

impl Default for RngConfig {
    fn default() -> Self {
        RngConfig { src: PathBuf::from(RNG_SOURCE_DEFAULT) }
    }
}

/// Where a serial port's or console's bytes go on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleMode {
    /// The guest has no such device.
    Off,
    /// The guest has the device; its bytes are thrown away.
    Null,
    /// Standard input and output of the VMM.
    Tty,
    /// A file, written only.
    File,
    /// A pseudo terminal that the VMM opens.
    Pty,
    /// A Unix socket that the VMM listens on.
    Socket,
}

/// `--serial` and `--console`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleConfig {
    /// Where the bytes go.
    pub mode: ConsoleMode,
    /// The file, for [`ConsoleMode::File`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The socket, for [`ConsoleMode::Socket`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

impl ConsoleConfig {
    /// A console of a mode that needs neither file nor socket.
    pub fn of(mode: ConsoleMode) -> Self {
        ConsoleConfig { mode, file: None, socket: None }
    }

    /// Cloud Hypervisor's default serial port: there, and silent.
    pub fn default_serial() -> Self {
        ConsoleConfig::of(ConsoleMode::Null)
    }

    /// Cloud Hypervisor's default console: the VMM's terminal.
    pub fn default_console() -> Self {
        ConsoleConfig::of(ConsoleMode::Tty)
    }
}
