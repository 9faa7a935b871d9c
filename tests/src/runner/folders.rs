//! The folders a run needs: the cache of packages, and one folder for the run itself.
//!
//! Owns their places and their removal. The run's folder is removed at the end; if this process was killed, a process that
//! waits for just that removes it. Where that was killed, too, the next run does: a lock that the kernel drops with its
//! holder tells which folders are nobody's.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{fs, io};

use anyhow::{Context, Result, ensure};

/// The root of the repository this harness was built in.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

/// The folder of this executable's build, where the other binaries of the workspace are.
pub fn binaries() -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let folder = executable.parent().context("this executable lies nowhere")?;
    // A test lies one level deeper.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.to_owned())
}

/// The program that runs commands inside a host.
pub(super) fn host_agent() -> Result<PathBuf> {
    let agent = binaries()?.join("host-agent");
    ensure!(agent.exists(), "{} is not there; 'cargo build --bins' makes it", agent.display());
    Ok(agent)
}

/// The cache that `scripts/lib/deps.sh` fills.
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens the cache; fetches what is missing first.
    pub fn open() -> Result<Self> {
        let folder = match std::env::var_os("FT_CACHE").filter(|folder| !folder.is_empty()) {
            Some(folder) => std::path::absolute(PathBuf::from(folder))?,
            None => repository().join(".cache"),
        };
        let script = repository().join("scripts/lib/deps.sh");
        let status = Command::new(&script)
            .env("FT_CACHE", &folder)
            .status()
            .with_context(|| format!("cannot run {}", script.display()))?;
        ensure!(status.success(), "{} failed; what it said is above", script.display());
        Ok(Self { folder })
    }

    /// The cache itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// QEMU 10 or later.
    pub fn qemu(&self) -> PathBuf {
        self.folder.join("qemu/qemu-system-x86_64")
    }

    /// A static busybox.
    pub fn busybox(&self) -> PathBuf {
        self.folder.join("busybox/bin/busybox")
    }

    /// The stock kernel as distributed, a bzImage.
    pub fn vmlinuz(&self) -> PathBuf {
        self.folder.join("kernel/vmlinuz")
    }

    /// The ELF inside the stock kernel.
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("kernel/vmlinux")
    }

    /// An etcd server.
    pub fn etcd(&self) -> PathBuf {
        self.folder.join("etcd/etcd")
    }

    /// The folder of the stock kernel's modules.
    pub fn modules(&self) -> PathBuf {
        self.folder.join("kernel/modules")
    }
}

/// The folder of one run, gone when this is dropped, unless `FT_KEEP` is set.
pub struct RunFolder {
    path: PathBuf,
    /// Who removes it if this process cannot.
    heir: Option<Child>,
    _lock: File,
}

impl RunFolder {
    /// Makes the folder, and removes those of runs that are no more.
    pub fn create(cache: &Cache) -> Result<Self> {
        let runs = cache.folder.join("runs");
        Self::create_in(&runs)
            .with_context(|| format!("cannot make a folder for this run in {}", runs.display()))
    }

    fn create_in(runs: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        fs::create_dir_all(runs)?;
        let order = File::create(runs.join("lock"))?;
        ensure!(lock(&order, libc::LOCK_EX), "it cannot be locked");
        remove_abandoned(runs)?;
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = runs.join(name);
        fs::create_dir_all(path.join("shared"))?;
        let held = File::create(path.join("lock"))?;
        ensure!(lock(&held, libc::LOCK_EX), "it cannot be locked");
        let keep = std::env::var_os("FT_KEEP").is_some();
        let heir = if keep { None } else { Some(leave_to_heir(&path)?) };
        Ok(Self { path, heir, _lock: held })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it that all hosts see at this path, in place of storage that they share.
    pub fn shared(&self) -> PathBuf {
        self.path.join("shared")
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if std::env::var_os("FT_KEEP").is_some() {
            eprintln!("kept {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
        if let Some(mut heir) = self.heir.take() {
            // There is nothing left for it to do.
            let _ = heir.kill();
            let _ = heir.wait();
        }
    }
}

/// Starts a process that waits until this one is gone, however it goes, and then removes the folder.
fn leave_to_heir(path: &Path) -> io::Result<Child> {
    // Its standard input ends with this process. What was started on the hosts may take a moment longer to end, and to
    // write no more. It needs no folder to be in, and no terminal that could end it.
    const WILL: &str = "read -r _; for _ in 1 2 3 4 5; do rm -rf \"$0\" && exit; sleep 0.2; done";
    let mut command = Command::new("sh");
    command.args(["-c", WILL]).arg(path).current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

fn remove_abandoned(runs: &Path) -> io::Result<()> {
    for entry in fs::read_dir(runs)? {
        let folder = entry?.path();
        if !folder.is_dir() {
            continue;
        }
        // A folder without a lock is what is left of a removal that was interrupted.
        let abandoned = File::open(folder.join("lock"))
            .map_or(true, |held| lock(&held, libc::LOCK_EX | libc::LOCK_NB));
        if abandoned && std::env::var_os("FT_KEEP").is_none() {
            // Another run may be at it, too.
            let _ = fs::remove_dir_all(&folder);
        }
    }
    Ok(())
}

fn lock(file: &File, operation: i32) -> bool {
    // SAFETY: flock(2) takes plain numbers; the descriptor is open while `file` is borrowed.
    unsafe { libc::flock(file.as_raw_fd(), operation) == 0 }
}
