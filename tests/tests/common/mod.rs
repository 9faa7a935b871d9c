//! What the tests of the pair share.

pub mod load;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tests::runner::Cluster;
use tests::vm::PairOptions;

/// Emulated hosts stand still for up to 1.5 s when the machine below them is busy: silence of this length is a loss even
/// there.
pub const TIMEOUT_MS: u64 = 3000;

/// A takeover after silence takes the timeout, twice if both sides have to see it; the rest is patience.
pub const TAKEOVER_TIMEOUT: Duration = Duration::from_secs(30);

/// A pair that is small, so that it joins soon.
pub fn small_pair() -> PairOptions {
    let mut options = PairOptions { timeout_ms: Some(TIMEOUT_MS), ..PairOptions::default() };
    options.vm.memory_mib = 192;
    options
}

/// Ends a test; if it failed, what all VMMs wrote is kept, and the message says where.
pub fn conclude(cluster: &Cluster, result: Result<()>) {
    let Err(error) = result else { return };
    let kept = keep_logs(cluster);
    panic!("{:?}", error.context(format!("all logs are in {kept:?}")));
}

fn keep_logs(cluster: &Cluster) -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("ft-failed-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    for entry in fs::read_dir(cluster.shared_dir())? {
        let path = entry?.path();
        let name = path.file_name().ok_or_else(|| anyhow!("a file without a name"))?;
        let wanted = ["log", "console", "events"];
        if path.extension().is_some_and(|extension| wanted.iter().any(|kind| extension == *kind)) {
            fs::copy(&path, folder.join(name))?;
        }
    }
    for (index, host) in cluster.hosts().iter().enumerate() {
        fs::write(folder.join(format!("host-{index}.console")), host.console())?;
    }
    Ok(folder)
}
