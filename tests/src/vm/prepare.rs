//! What must lie ready before a VM can start: initial RAM file system, disk image, taps.
//!
//! Owns their places in the storage that the hosts share.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::{Share, VmOptions};
use crate::guest::disk::DiskImage;
use crate::guest::image::write_initramfs;
use crate::runner::{Cluster, Host, Storage};

/// What a VM starts with, on whichever host.
pub(super) struct Prepared {
    /// The VMM's command line, but for what differs from one VMM to the other.
    pub words: Vec<String>,
    /// The disk, if there is one.
    pub disk: Option<VmDisk>,
}

/// The image of a VM's disk, and where it is.
pub(super) struct VmDisk {
    /// In the shared folder; where it was made, if it is used elsewhere.
    image: DiskImage,
    /// Its name on the NFS export, if that is where it is used.
    exported: Option<String>,
}

impl VmDisk {
    fn make(cluster: &Cluster, options: &VmOptions) -> Result<Self> {
        let path = new_path(cluster, "disk");
        let image = DiskImage::create(&path, options.disk_mib)?;
        let exported = match options.disk_on {
            Share::Folder => None,
            Share::Nfs => {
                let name = file_name(&path)?;
                cluster.storage()?.put(&path, &name)?;
                mount_nfs(cluster)?;
                Some(name)
            }
        };
        Ok(Self { image, exported })
    }

    /// The words of `--disk`.
    pub fn words(&self) -> String {
        match &self.exported {
            None => format!("path={}", self.image.path().display()),
            Some(name) => format!("path={},direct=on", Storage::mounted(name).display()),
        }
    }

    /// The image as it is now, for a look from outside.
    pub fn look(&self, cluster: &Cluster) -> Result<DiskImage> {
        let Some(name) = &self.exported else { return Ok(DiskImage::open(self.image.path())) };
        let path = new_path(cluster, "fetched");
        cluster.storage()?.get(name, &path)?;
        Ok(DiskImage::open(&path))
    }
}

/// A new folder for an arbiter, as the hosts see it.
pub(super) fn arbiter_folder(cluster: &Cluster, on: Share) -> Result<PathBuf> {
    let path = new_path(cluster, "arbiter");
    match on {
        Share::Folder => {
            std::fs::create_dir(&path)?;
            Ok(path)
        }
        Share::Nfs => {
            let name = file_name(&path)?;
            cluster.storage()?.make_folder(&name)?;
            mount_nfs(cluster)?;
            Ok(Storage::mounted(&name))
        }
    }
}

/// Mounts the NFS export on all hosts that live.
fn mount_nfs(cluster: &Cluster) -> Result<()> {
    let mut alive = cluster.hosts().iter().filter(|host| host.ping().is_ok());
    alive.try_for_each(Host::mount_nfs)
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    Ok(name.context("a file without a name")?.to_owned())
}

/// Makes what the VM needs, and its taps on all hosts.
pub(super) fn prepare(cluster: &Cluster, options: &VmOptions) -> Result<Prepared> {
    let initramfs = initramfs(cluster)?;
    let disk = match options.disk_mib {
        0 => None,
        _ => Some(VmDisk::make(cluster, options)?),
    };
    for index in 0..cluster.hosts().len() {
        add_tap(cluster, index, &options.tap())?;
    }
    let words = options.words(cluster, &initramfs, disk.as_ref())?;
    Ok(Prepared { words, disk })
}

/// The guest's initial RAM file system, made once for a cluster.
pub fn initramfs(cluster: &Cluster) -> Result<PathBuf> {
    let path = cluster.shared_dir().join("initramfs");
    if !path.exists() {
        write_initramfs(cluster.cache(), &path).context("cannot make the guest's image")?;
    }
    Ok(path)
}

/// A path in the shared storage that nothing has yet.
pub(super) fn new_path(cluster: &Cluster, kind: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    cluster.shared_dir().join(format!("{kind}-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Makes the tap on a host, unless an earlier VM left it there or the host is dead.
fn add_tap(cluster: &Cluster, host_index: usize, tap: &str) -> Result<()> {
    let host = cluster.host(host_index);
    if host.ping().is_err() || host.shell(&format!("ip link show {tap}")).is_ok() {
        return Ok(());
    }
    host.add_tap(tap).with_context(|| format!("cannot make the tap {tap} on host {host_index}"))
}
