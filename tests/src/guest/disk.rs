//! The guest's disk, seen from outside: a raw image with an ext4 file system.
//!
//! Owns making, checking and reading it with the tools of e2fsprogs, which need no mount and so no privilege.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::protocol::Record;

/// A raw image.
pub struct DiskImage {
    path: PathBuf,
}

impl DiskImage {
    /// Makes an image of this size with an empty file system.
    pub fn create(path: &Path, size_mib: u32) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        file.set_len(u64::from(size_mib) << 20)?;
        // Tables that the guest would write lazily, in the background, are written now.
        tool("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"], path)?;
        Ok(Self { path: path.to_owned() })
    }

    /// An image that exists.
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A copy of it as it would be after the power failed now and the file system's journal was replayed; it must have no
    /// fault.
    pub fn recovered(&self, copy: &Path) -> Result<Self> {
        std::fs::copy(&self.path, copy).with_context(|| {
            format!("cannot copy {} to {}", self.path.display(), copy.display())
        })?;
        // Replays the journal, and nothing else.
        tool("e2fsck", &["-E", "journal_only", "-y"], copy)?;
        tool("e2fsck", &["-f", "-n"], copy)?;
        Ok(Self { path: copy.to_owned() })
    }

    /// The content of a file in it; `path` is absolute, within the image.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let folder = tempfile::tempdir()?;
        let content = folder.path().join("content");
        let request = format!("dump {path} {}", content.display());
        tool("debugfs", &["-R", &request], &self.path)?;
        std::fs::read(&content)
            .with_context(|| format!("there is no file {path} in {}", self.path.display()))
    }

    /// The records of the guest's journal in it.
    pub fn journal(&self) -> Result<Vec<Record>> {
        Ok(Record::read_all(&self.read("/journal")?))
    }
}

fn tool(name: &str, arguments: &[&str], image: &Path) -> Result<()> {
    let output = Command::new(name)
        .args(arguments)
        .arg(image)
        .env("PATH", format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default()))
        .output()
        .with_context(|| format!("cannot run {name}; scripts/lib/deps.sh installs it"))?;
    ensure!(
        output.status.success(),
        "{name} found {} faulty: {}{}",
        image.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_image_is_sound_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let image = DiskImage::create(&folder.path().join("disk"), 16).unwrap();
        image.recovered(&folder.path().join("copy")).unwrap();
        assert!(image.read("/journal").is_err());
        let mut bytes = std::fs::read(image.path()).unwrap();
        bytes[4096..65536].fill(0x55);
        std::fs::write(image.path(), bytes).unwrap();
        assert!(image.recovered(&folder.path().join("copy")).is_err());
    }
}
