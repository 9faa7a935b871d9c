//! What a VM and a pair are made of.
//!
//! Owns the translation into the words of `cloud-hypervisor`'s command line. Starts nothing.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::prepare::VmDisk;
use crate::etcd::EtcdServer;
use crate::runner::Cluster;
use crate::runner::network::{CLIENT_ADDRESS, PREFIX_LENGTH, guest_address};

/// Storage that the hosts share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Share {
    /// A folder that all of them, and the client, see at the same path.
    #[default]
    Folder,
    /// An NFS export; the cluster must have been made with one. Images on it are opened past the hosts' caches.
    Nfs,
}

/// What a VM is made of.
#[derive(Clone, Debug)]
pub struct VmOptions {
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Size of its disk, in MiB; there is none if this is zero.
    pub disk_mib: u32,
    /// Where its disk's image is.
    pub disk_on: Share,
    /// Which of the guests' addresses it has, and so which MAC address.
    pub address_index: usize,
    /// The kernel; the stock one, as ELF, if not given.
    pub kernel: Option<PathBuf>,
    /// Whether the kernel is told to leave out what costs an emulated guest ten seconds of its boot, and no test is about:
    /// the mitigations of its processor's faults, and the self-tests of its ciphers.
    pub quick_boot: bool,
    /// More words for the kernel's command line.
    pub cmdline: Vec<String>,
    /// More words for the VMM's command line.
    pub arguments: Vec<String>,
}

impl Default for VmOptions {
    fn default() -> Self {
        Self {
            memory_mib: 256,
            disk_mib: 64,
            disk_on: Share::default(),
            address_index: 0,
            kernel: None,
            quick_boot: true,
            cmdline: Vec::new(),
            arguments: Vec::new(),
        }
    }
}

impl VmOptions {
    /// The name of its tap, the same on every host.
    pub fn tap(&self) -> String {
        format!("guest{}", self.address_index)
    }

    /// The MAC address of its network card.
    pub fn mac(&self) -> [u8; 6] {
        // An address below 100 is one byte.
        [0x52, 0x54, 0x00, 0x77, 0x01, self.address_index as u8]
    }

    /// Everything but what differs from one VMM to the other.
    pub(super) fn words(
        &self,
        cluster: &Cluster,
        initramfs: &Path,
        disk: Option<&VmDisk>,
    ) -> Result<Vec<String>> {
        let kernel = self.kernel.clone().unwrap_or_else(|| cluster.cache().vmlinux());
        let mut words = vec![
            "--kernel".to_owned(),
            kernel.display().to_string(),
            "--initramfs".to_owned(),
            initramfs.display().to_string(),
            "--cmdline".to_owned(),
            self.kernel_words(),
            "--memory".to_owned(),
            format!("size={}M", self.memory_mib),
            "--console".to_owned(),
            "off".to_owned(),
            "--net".to_owned(),
            // With an address of its own choice, a guest would not be known to the client that knew the one before it.
            format!(
                "tap={},mac={}",
                self.tap(),
                self.mac().map(|byte| format!("{byte:02x}")).join(":")
            ),
        ];
        if let Some(disk) = disk {
            words.extend(["--disk".to_owned(), disk.words()]);
        }
        words.extend(self.arguments.iter().cloned());
        Ok(words)
    }

    fn kernel_words(&self) -> String {
        let address = guest_address(self.address_index);
        // Every byte on the serial console is an exit, which costs 40 µs in the virtual runner. Without lpj= the kernel
        // counts how often it can do nothing within a tick.
        let mut words = format!(
            "console=ttyS0 quiet panic=-1 lpj=4000000 ft.ip={address}/{PREFIX_LENGTH} ft.gw={CLIENT_ADDRESS}"
        );
        let quick: &[&str] =
            if self.quick_boot { &["mitigations=off", "cryptomgr.notests"] } else { &[] };
        for word in quick.iter().copied().chain(self.cmdline.iter().map(String::as_str)) {
            words.push(' ');
            words.push_str(word);
        }
        words
    }
}

/// When an output may leave the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Acknowledgement {
    /// Once the backup holds the log.
    #[default]
    Received,
    /// Once the backup has executed it.
    Verified,
}

impl Acknowledgement {
    /// Its name in `--ft`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Verified => "verified",
        }
    }
}

/// Who decides which of two replicas goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arbiter {
    /// Files in a folder of the storage that both hosts share.
    #[default]
    SharedFolder,
    /// Files in a folder on the NFS export; the cluster must have been made with one.
    NfsFolder,
    /// An etcd server beside the hosts ([`EtcdServer`]).
    Etcd,
    /// Nobody.
    None,
}

/// What a pair is made of.
#[derive(Clone, Debug)]
pub struct PairOptions {
    /// The VM.
    pub vm: VmOptions,
    /// When an output may leave it.
    pub ack: Acknowledgement,
    /// Who decides which replica goes on.
    pub arbiter: Arbiter,
    /// The port on which backups listen.
    pub port: u16,
    /// Silence that counts as loss, in ms; the VMM's own default if not given. Here it is longer unless chosen: on a busy
    /// machine an emulated host may be silent for a second, and a killed process is noticed at once by its closed channel.
    pub timeout_ms: Option<u64>,
    /// Whether a VM that has lost its backup looks for another by itself.
    pub reprotect: bool,
    /// More fields for `--ft role=primary`, as `key=value`.
    pub fields: Vec<String>,
    /// More words for a backup's command line.
    pub backup_arguments: Vec<String>,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            vm: VmOptions::default(),
            ack: Acknowledgement::default(),
            arbiter: Arbiter::default(),
            port: 7000,
            timeout_ms: Some(3000),
            reprotect: false,
            fields: Vec::new(),
            backup_arguments: Vec::new(),
        }
    }
}

impl PairOptions {
    /// What the primary's `--ft`, and `ch-remote ft-enable`, is told.
    pub fn primary_fields(&self, peer: &str, arbiter: &Path) -> String {
        let arbiter = match self.arbiter {
            Arbiter::SharedFolder | Arbiter::NfsFolder => format!("file:{}", arbiter.display()),
            Arbiter::Etcd => EtcdServer::arbiter(),
            Arbiter::None => "none".to_owned(),
        };
        let mut fields = format!(
            "role=primary,peer={peer}:{},arbiter={arbiter},ack={},reprotect={}",
            self.port,
            self.ack.name(),
            if self.reprotect { "on" } else { "off" }
        );
        if let Some(timeout_ms) = self.timeout_ms {
            fields.push_str(&format!(",timeout_ms={timeout_ms}"));
        }
        for field in &self.fields {
            fields.push(',');
            fields.push_str(field);
        }
        fields
    }

    /// What the backup's `--ft` is told.
    pub fn backup_fields(&self) -> String {
        format!("role=backup,listen=0.0.0.0:{}", self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_is_told_all_that_was_chosen() {
        let options = PairOptions {
            ack: Acknowledgement::Verified,
            timeout_ms: Some(700),
            fields: vec!["max_lag_ms=50".to_owned()],
            ..PairOptions::default()
        };
        assert_eq!(
            options.primary_fields("10.77.0.12", Path::new("/a")),
            "role=primary,peer=10.77.0.12:7000,arbiter=file:/a,ack=verified,reprotect=off,timeout_ms=700,max_lag_ms=50"
        );
        let none = PairOptions { arbiter: Arbiter::None, ..PairOptions::default() };
        assert!(none.primary_fields("h", Path::new("/a")).contains("arbiter=none"));
        let etcd = PairOptions { arbiter: Arbiter::Etcd, ..PairOptions::default() };
        let fields = etcd.primary_fields("h", Path::new("/a"));
        assert!(fields.contains(",arbiter=etcd:http://10.77.0.1:2379,"), "{fields}");
    }

    #[test]
    fn the_words_of_the_kernel_are_one_argument() {
        let vm =
            VmOptions { cmdline: vec!["ft.run=workload:cpu".to_owned()], ..VmOptions::default() };
        assert!(vm.kernel_words().ends_with(" ft.run=workload:cpu"));
        let words = vm.kernel_words();
        assert!(words.contains("ft.ip=10.77.0.101/24 ft.gw=10.77.0.1 mitigations=off "), "{words}");
        let whole = VmOptions { quick_boot: false, ..vm };
        assert!(whole.kernel_words().ends_with("ft.gw=10.77.0.1 ft.run=workload:cpu"));
    }
}
