//! The virtual runner: hosts with a real `/dev/kvm`, joined by a network, on a machine that may have neither.
//!
//! Owns hosts, network and what is left of them (nothing). Does not own what runs on the hosts.
//!
//! ```text
//!   client (this process)          host 0                       host 1
//!   10.77.0.1 on bridge "lan" ──── port0 ═ eth0 in br0, .11     port1 ═ eth0 in br0, .12
//!                                          └ tap of a guest             └ tap of a guest
//!
//!   storage: an NFS server, .2 on port "storage", if asked for
//! ```

pub mod agent;
mod cuts;
pub(crate) mod direct;
mod emulated;
mod folders;
mod host;
mod namespace;
pub mod network;
mod storage;
mod visible;
mod witness;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};

pub use agent::{Ended, Order};
pub use cuts::{Cut, Cuts, Party, Traffic, can_cut};
pub use folders::{Cache, binaries, repository};
pub use host::{Host, Output, RemoteProcess};
pub use namespace::Namespace;
pub use network::{Network, Place};
pub use storage::{MOUNT_POINT, Storage};
pub use visible::is_own_folder;
pub use witness::{Speech, Witness};

use direct::DirectHost;
use emulated::Emulation;
use folders::RunFolder;
use host::Body;

/// How hosts are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each is a QEMU that emulates an AMD host.
    Virtual,
    /// Each is a network namespace of this machine, whose own `/dev/kvm` is used.
    Direct,
}

impl Kind {
    /// What `FT_RUNNER` says, else what this machine can do.
    pub fn choose() -> Result<Self> {
        match std::env::var("FT_RUNNER").as_deref() {
            Ok("virtual") => Ok(Self::Virtual),
            Ok("direct") => Ok(Self::Direct),
            Ok("") | Err(_) => Ok(if kvm_is_usable() { Self::Direct } else { Self::Virtual }),
            Ok(other) => bail!("FT_RUNNER is '{other}'; it can be 'virtual' or 'direct'"),
        }
    }
}

/// Whether stock KVM can run VMs on this machine itself.
fn kvm_is_usable() -> bool {
    // KVM exists on machines without hardware virtualisation, too, with patches no user has.
    let Ok(processor) = std::fs::read_to_string("/proc/cpuinfo") else { return false };
    let flags = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
        && std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok_and(|kvm| {
            use std::os::fd::AsRawFd;
            const KVM_CREATE_VM: libc::c_ulong = 0xae01;
            // SAFETY: the ioctl takes a plain number, and returns a descriptor that is closed at once.
            unsafe {
                let vm = libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0);
                vm >= 0 && libc::close(vm) == 0
            }
        })
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes the starting of hosts fail, now and from now on: this process is to end.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether this process is to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// What hosts to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many.
    pub hosts: usize,
    /// The memory of an emulated host, in MiB.
    pub memory_mib: u32,
    /// The CPUs of an emulated host. With more than one, only one VM may run at a time: two of them corrupt the emulated
    /// host's kernel.
    pub cpus: u32,
    /// How they are made.
    pub kind: Kind,
    /// Whether there is an NFS server, which the hosts can mount. They are emulated then.
    pub nfs: bool,
    /// Files and folders that must be visible on the hosts even if they are in `/tmp` or `/run`, of which each
    /// emulated host has its own. All others are visible anyhow.
    pub visible: Vec<PathBuf>,
}

impl Options {
    /// So many hosts, made as this machine can.
    pub fn new(hosts: usize) -> Result<Self> {
        let (memory_mib, cpus, kind) = (2048, 1, Kind::choose()?);
        Ok(Self { hosts, memory_mib, cpus, kind, nfs: false, visible: Vec::new() })
    }

    /// With an NFS server. A machine's own kernel is not asked to mount it, let alone to serve it: the hosts are emulated,
    /// whatever this machine can do.
    pub fn with_nfs(self) -> Self {
        Self { nfs: true, kind: Kind::Virtual, ..self }
    }

    /// Makes sure that this file or folder is visible on the hosts.
    pub fn show(&mut self, path: PathBuf) {
        self.visible.push(path);
    }
}

/// Hosts in a network. All of it is gone when this is dropped.
pub struct Cluster {
    // Dropped in this order: the hosts before the network they are in, the folder last.
    hosts: Vec<Host>,
    storage: Option<Storage>,
    network: Network,
    cache: Cache,
    folder: RunFolder,
}

impl Cluster {
    /// Starts the hosts and waits until all of them are up.
    pub fn start(options: &Options) -> Result<Self> {
        ensure!(
            (1..=9).contains(&options.hosts),
            "there can be 1 to 9 hosts, not {}",
            options.hosts
        );
        // SAFETY: geteuid(2) cannot fail and touches no memory.
        let root = unsafe { libc::geteuid() } == 0;
        ensure!(root, "only root can make hosts and the network between them");
        let cache = Cache::open()?;
        let folder = RunFolder::create(&cache)?;
        let network = Network::create().context("cannot make the network of the hosts")?;
        let (hosts, storage) = match options.kind {
            Kind::Virtual => start_virtual(options, &cache, &folder, &network)?,
            Kind::Direct => (start_direct(options, &network)?, None),
        };
        Ok(Self { hosts, storage, network, cache, folder })
    }

    /// The hosts.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A host, by its index.
    pub fn host(&self, index: usize) -> &Host {
        &self.hosts[index]
    }

    /// The storage that they share over NFS.
    pub fn storage(&self) -> Result<&Storage> {
        self.storage.as_ref().context("this cluster was made without NFS")
    }

    /// The network between them.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The namespace in which the client is, outside all hosts.
    pub fn client_namespace(&self) -> &Namespace {
        self.network.namespace()
    }

    /// A folder that all hosts and the client see at the same path, in place of storage that hosts share.
    pub fn shared_dir(&self) -> PathBuf {
        self.folder.shared()
    }

    /// The folder of this run, with the consoles of its hosts.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The cache of packages.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }
}

fn start_virtual(
    options: &Options,
    cache: &Cache,
    folder: &RunFolder,
    network: &Network,
) -> Result<(Vec<Host>, Option<Storage>)> {
    let emulation = |place| Emulation {
        place,
        memory_mib: options.memory_mib,
        cpus: options.cpus,
        namespace: network.namespace(),
        run: folder.path(),
        visible: &options.visible,
        modules: if options.nfs { &storage::CLIENT_MODULES } else { &[] },
        disk: None,
    };
    let boot = |index| {
        network.add_tap(Place::Host(index))?;
        emulation(Place::Host(index)).start(cache)
    };
    let booting: Vec<_> = (0..options.hosts).map(boot).collect::<Result<_>>()?;
    let storage = if options.nfs {
        network.add_tap(Place::Storage)?;
        Some(Storage::start(&emulation(Place::Storage), cache)?)
    } else {
        None
    };
    let host = |(index, host): (usize, emulated::Booting)| {
        let (body, agent) = host.wait()?;
        Ok(Host::new(Place::Host(index), agent, Body::Emulated(body)))
    };
    let hosts = booting.into_iter().enumerate().map(host).collect::<Result<_>>()?;
    Ok((hosts, storage))
}

fn start_direct(options: &Options, network: &Network) -> Result<Vec<Host>> {
    ensure!(!options.nfs, "there is an NFS server for emulated hosts only");
    let host = |index| {
        let (body, agent) = DirectHost::start(index, network)?;
        Ok(Host::new(Place::Host(index), agent, Body::Direct(body)))
    };
    (0..options.hosts).map(host).collect()
}
