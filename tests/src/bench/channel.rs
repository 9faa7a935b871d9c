//! The way between the hosts, by itself: what an output of a protected VM has to wait for at least.
//!
//! Owns the measurement. It is taken while no VM is protected, so that the log is not in its way.

use anyhow::{Result, bail};

use crate::client::Percentiles;
use crate::runner::{Cluster, Order, binaries};

/// Beside the ports of pairs.
const PORT: u16 = 7099;

/// Round trips of 64 bytes over TCP from the first host to the second.
pub(super) fn round_trips(cluster: &Cluster) -> Result<Percentiles> {
    let program = binaries()?.join("round-trip").display().to_string();
    let (asking, answering) = (cluster.host(0), cluster.host(1));
    let mut other = answering.spawn(Order::new([&program, "answer", &PORT.to_string()]))?;
    let address = format!("{}:{PORT}", answering.address());
    let output = asking.run(Order::new([&program, "ask", &address]))?;
    if !output.ended.success() {
        // Nobody asks it any more; it may have found out itself.
        let _ = other.kill(libc::SIGKILL);
        bail!("the channel was not measured: {}", output.stderr.trim());
    }
    other.wait()?;
    Ok(serde_json::from_str(&output.stdout)?)
}
