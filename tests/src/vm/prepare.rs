//! What must lie ready before a VM can start: initial RAM file system, disk image, taps.
//!
//! Owns their places in the storage that the hosts share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::VmOptions;
use crate::guest::disk::DiskImage;
use crate::guest::image::write_initramfs;
use crate::runner::Cluster;

/// What a VM starts with, on whichever host.
pub(super) struct Prepared {
    /// The VMM's command line, but for what differs from one VMM to the other.
    pub words: Vec<String>,
    /// The disk, if there is one.
    pub disk: Option<DiskImage>,
}

/// Makes what the VM needs, and its taps on all hosts.
pub(super) fn prepare(cluster: &Cluster, options: &VmOptions) -> Result<Prepared> {
    let initramfs = initramfs(cluster)?;
    let disk = match options.disk_mib {
        0 => None,
        size_mib => Some(DiskImage::create(&new_path(cluster, "disk"), size_mib)?),
    };
    for index in 0..cluster.hosts().len() {
        add_tap(cluster, index, &options.tap())?;
    }
    let words = options.words(cluster, &initramfs, disk.as_ref().map(DiskImage::path))?;
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
