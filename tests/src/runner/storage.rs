//! Storage that hosts share over the network: one more emulated host, small, whose stock kernel exports a file system over
//! NFS.
//!
//! Owns the export and the way to the files in it from outside. Mounting it is a host's matter.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::emulated::Emulation;
use super::folders::Cache;
use super::host::{Body, Host};

/// Where hosts mount it.
pub const MOUNT_POINT: &str = "/run/nfs";

/// What a host's kernel needs to mount it.
pub(super) const CLIENT_MODULES: [&str; 1] = ["nfsv4"];
/// What the server's kernel needs. ext4 asks for a checksum by name.
const SERVER_MODULES: [&str; 4] = ["nfsd", "virtio_blk", "crc32c_generic", "ext4"];
/// It does little else than move bytes.
const MEMORY_MIB: u32 = 384;
const SIZE_MIB: u64 = 1024;
const EXPORT: &str = "/run/export";

/// A server of NFS version 4.
pub struct Storage {
    host: Host,
}

impl Storage {
    /// Makes an empty file system and starts the server, as what `emulation` says of every host.
    pub(super) fn start(emulation: &Emulation, cache: &Cache) -> Result<Self> {
        let image = emulation.run.join("storage.image");
        make_file_system(&image)?;
        let place = emulation.place;
        let emulation = Emulation {
            memory_mib: MEMORY_MIB,
            modules: &SERVER_MODULES,
            disk: Some(&image),
            ..*emulation
        };
        let (body, agent) = emulation.start(cache)?.wait()?;
        let host = Host::new(place, agent, Body::Emulated(body));
        host.shell(include_str!("storage.sh")).context("the storage cannot be exported")?;
        Ok(Self { host })
    }

    /// The server itself: to be stopped in its tracks, or ended.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The path of a file, as hosts see it that have mounted the storage.
    pub fn mounted(name: &str) -> PathBuf {
        Path::new(MOUNT_POINT).join(name)
    }

    /// Copies a file into it. The file must be visible on hosts.
    pub fn put(&self, file: &Path, name: &str) -> Result<()> {
        self.copy(file, &Path::new(EXPORT).join(name))
    }

    /// Copies what a file in it has now to a path outside.
    pub fn get(&self, name: &str, file: &Path) -> Result<()> {
        self.copy(&Path::new(EXPORT).join(name), file)
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let line = format!("cp --sparse=always '{}' '{}'", from.display(), to.display());
        self.host.shell(&line).map(drop)
    }

    /// Makes a folder in it.
    pub fn make_folder(&self, name: &str) -> Result<()> {
        self.host.shell(&format!("mkdir '{EXPORT}/{name}'")).map(drop)
    }
}

fn make_file_system(image: &Path) -> Result<()> {
    let file = std::fs::File::create(image)
        .with_context(|| format!("cannot create {}", image.display()))?;
    file.set_len(SIZE_MIB << 20)?;
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"])
        .arg(image)
        .env("PATH", path)
        .output()
        .context("cannot run mkfs.ext4; scripts/lib/deps.sh installs it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mkfs.ext4 made no file system: {}", said.trim());
    Ok(())
}
