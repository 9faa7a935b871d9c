//! The guest's initial RAM file system.
//!
//! Owns which modules and tools it has, and the building of the agent, which is linked statically: there is nothing else
//! in the guest.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::initramfs::{Archive, ModuleTree};
use crate::runner::{Cache, repository};

/// What a guest with devices on modern virtio over PCI needs.
const MODULES: [&str; 9] = [
    "virtio_pci",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "virtio_blk",
    // ext4 asks the kernel for a checksum by name, which is no dependency that could be read from it.
    "crc32c_generic",
    "ext4",
    "button",
    "evdev",
];
const TOOLS: [&str; 8] = ["mount", "umount", "insmod", "ip", "poweroff", "reboot", "cat", "ls"];
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Writes the initial RAM file system to `path`.
pub fn write_initramfs(cache: &Cache, path: &Path) -> Result<()> {
    let busybox = std::fs::read(cache.busybox()).context("cannot read busybox")?;
    let agent = build_agent()?;
    let agent =
        std::fs::read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "proc", "sys", "data", "modules"] {
        archive.folder(folder);
    }
    archive.file("bin/busybox", &busybox).file("bin/guest-agent", &agent);
    archive.link("bin/sh", "busybox");
    for tool in TOOLS {
        archive.link(&format!("bin/{tool}"), "busybox");
    }
    let mut names = String::new();
    for mut module in ModuleTree::open(&cache.modules())?.closure(&MODULES)? {
        module.strip_signature();
        archive.file(&format!("modules/{}.ko", module.name), &module.content);
        names.push_str(&format!("{}\n", module.name));
    }
    archive.file("modules.list", names.as_bytes());
    archive.file("init", include_bytes!("guest-init.sh"));
    std::fs::write(path, archive.finish())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Builds the agent if it is not up to date; returns where it is.
fn build_agent() -> Result<PathBuf> {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => std::path::absolute(PathBuf::from(folder))?,
        None => repository().join("target"),
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // A target of its own keeps the flags, and what is built with them, away from everything else.
    let output = Command::new(cargo)
        .current_dir(repository())
        .args(["build", "--quiet", "--release", "--package", "tests", "--bin", "guest-agent"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target)
        // This one would win over the next.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
        .output()
        .context("cannot run cargo to build the guest's agent")?;
    ensure!(
        output.status.success(),
        "cannot build the guest's agent: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(target.join(TARGET).join("release/guest-agent"))
}
