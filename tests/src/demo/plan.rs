//! What the demonstration is asked to do: its command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::vm::Acknowledgement;

/// Boots a stock Linux VM, protects it, kills what it runs on, and shows what a client outside noticed.
///
/// Two hosts are made (emulated ones with a real /dev/kvm, or network namespaces where this machine has hardware
/// virtualisation). A client outside both keeps one TCP connection to a service inside the VM that stores every request
/// on its disk before it answers. The exit status is 0 only if the connection survived and no request was lost or
/// doubled.
#[derive(Clone, Debug, Parser)]
#[command(name = "demo")]
pub struct Plan {
    /// What dies: the primary's VMM, by SIGKILL, or the whole host under it.
    #[arg(long, value_enum, default_value_t = Kill::Vmm)]
    pub kill: Kill,

    /// How long the client measures before protection, under protection and after the takeover, in seconds each.
    #[arg(long, value_name = "N", default_value_t = 8,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,

    /// When an answer may leave the VM: once the backup has received the log that leads to it, or once it has executed
    /// that log and verified that it comes to the same answer.
    #[arg(long, value_enum, default_value_t = Acknowledgement::Received)]
    pub ack: Acknowledgement,

    /// Write all numbers to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Draw the round trips over time to this file, as SVG.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// What dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kill {
    /// The primary's VMM, by SIGKILL.
    Vmm,
    /// The primary's whole host, as in a power failure.
    Host,
}

impl Kill {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::Host => "host",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_understood_or_refused() {
        let plan = Plan::try_parse_from(["demo", "--kill", "host", "--seconds", "3"]).unwrap();
        assert_eq!((plan.kill, plan.seconds, plan.ack), (Kill::Host, 3, Acknowledgement::Received));
        for wrong in [["--kill", "cat"], ["--seconds", "0"], ["--ack", "maybe"], ["--json", ""]] {
            let line = ["demo"].into_iter().chain(wrong);
            let parsed = Plan::try_parse_from(line);
            assert!(parsed.is_err_and(|error| error.exit_code() == 2), "{wrong:?}");
        }
    }
}
