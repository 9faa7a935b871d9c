//! What protection costs, and what a join and a failover cost, each as a ratio within one run.
//!
//! Owns the order of the measurements: what is unprotected is measured before and after, so that a machine that gets
//! slower or faster meanwhile is seen. Asserts nothing: a machine may be busy with other things.

mod channel;
mod moves;
mod passes;
mod table;

use std::time::Duration;

use anyhow::Result;

use crate::runner::{Cluster, Kind, Options};
use crate::vm::{Pair, PairOptions, VmOptions, pause};

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Section {
    /// Work for the CPU: a loop, gzip, sort.
    Work,
    /// Round trips, and sending and receiving in bulk.
    Network,
    /// The log of a VM that does nothing.
    Idle,
    /// Protection of a running VM of 1 GiB, of which 256 MiB are being rewritten.
    Join,
    /// The death of the primary.
    Failover,
}

/// A guest that has just booted has work of its own.
const SETTLING: Duration = Duration::from_secs(8);
/// Emulated hosts stall for longer than the default timeout.
const TIMEOUT_MS: u64 = 4_000;

/// Measures these sections and prints what they say.
///
/// # Errors
/// The hosts or the VM did not do what they were told.
pub fn run(sections: &[Section]) -> Result<()> {
    let wanted = |section: &Section| sections.is_empty() || sections.contains(section);
    let options = Options::new(2)?;
    println!("hosts: {}, 2 of them with one CPU each", host_name(options.kind));
    let cluster = Cluster::start(&options)?;
    if [Section::Work, Section::Network, Section::Idle].iter().any(wanted) {
        compare(&cluster, sections, &wanted)?;
    }
    if [Section::Join, Section::Failover].iter().any(wanted) {
        let mut pair = Pair::start_unprotected(&cluster, pair_options(1024))?;
        pause(SETTLING)?;
        moves::join(&mut pair)?;
        if wanted(&Section::Failover) {
            moves::failover(&mut pair)?;
        }
    }
    Ok(())
}

fn compare(
    cluster: &Cluster,
    sections: &[Section],
    wanted: &impl Fn(&Section) -> bool,
) -> Result<()> {
    let mut pair = Pair::start_unprotected(cluster, pair_options(256))?;
    pause(SETTLING)?;
    let channel =
        if wanted(&Section::Network) { Some(channel::round_trips(cluster)?) } else { None };
    let before = passes::measure(&pair, sections)?;
    pair.reprotect()?;
    if wanted(&Section::Idle) {
        pause(SETTLING)?;
        table::print_idle(&passes::idle(&pair)?);
    }
    let during = passes::measure(&pair, sections)?;
    let info = pair.ft_info()?;
    pair.primary().ask(&["ft-disable"])?;
    let after = passes::measure(&pair, sections)?;
    table::print(&before, &during, &after);
    if let Some(channel) = &channel {
        table::print_output_delay([&before, &during, &after], channel);
    }
    table::print_log(&during, &info);
    Ok(())
}

fn pair_options(memory_mib: u32) -> PairOptions {
    let vm = VmOptions { memory_mib, quick_boot: false, ..VmOptions::default() };
    PairOptions { vm, timeout_ms: Some(TIMEOUT_MS), ..PairOptions::default() }
}

fn host_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Virtual => {
            "emulated by QEMU without hardware virtualisation (an exit costs some 40 us)"
        }
        Kind::Direct => "network namespaces on this machine's own /dev/kvm",
    }
}
