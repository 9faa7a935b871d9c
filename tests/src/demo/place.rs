//! Where the demonstration ran: numbers mean nothing without it.
//!
//! Owns the reading of what this machine is.

use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::runner::{Cache, Kind};

/// The machine, and what the hosts were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// `virtual` if the hosts were emulated, `kvm` if VMs ran on this machine's own `/dev/kvm`.
    pub runner: &'static str,
    /// The emulator of the hosts, if there was one.
    pub emulator: Option<String>,
    /// This machine's processor.
    pub processor: String,
    /// How many processors it has.
    pub processors: usize,
    /// This machine's kernel.
    pub kernel: String,
    /// The guest's kernel.
    pub guest_kernel: String,
}

impl Place {
    /// Looks around.
    pub fn look(kind: Kind, cache: &Cache) -> Self {
        let (runner, emulator) = match kind {
            Kind::Virtual => ("virtual", Some(emulator(&cache.qemu()))),
            Kind::Direct => ("kvm", None),
        };
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            runner,
            emulator,
            processor: processor(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: format!("Linux {}", release.trim()),
            guest_kernel: guest_kernel(cache),
        }
    }

    /// What a host is, in a few words.
    pub fn host_in_words(&self) -> String {
        match &self.emulator {
            Some(emulator) => {
                format!(
                    "an AMD machine emulated by {emulator}, with a Linux kernel and a real /dev/kvm of its own"
                )
            }
            None => "a network namespace of this machine, whose /dev/kvm it uses".to_owned(),
        }
    }

    /// All of it, in a sentence.
    pub fn in_words(&self) -> String {
        let machine = format!("{} × {}, {}", self.processors, self.processor, self.kernel);
        match &self.emulator {
            Some(emulator) => format!("virtual runner ({emulator}) on {machine}"),
            None => format!("KVM on {machine}"),
        }
    }
}

fn processor() -> String {
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = information.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    name.unwrap_or_else(|| "unknown processor".to_owned())
}

fn emulator(qemu: &Path) -> String {
    let output = Command::new(qemu).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    // "QEMU emulator version 10.0.2 (Debian …)".
    let version = text.ok().and_then(|text| text.split_whitespace().nth(3).map(str::to_owned));
    format!("QEMU {}", version.unwrap_or_default()).trim().to_owned()
}

/// The folder of a kernel's modules is named after it.
fn guest_kernel(cache: &Cache) -> String {
    let folder = std::fs::canonicalize(cache.modules()).unwrap_or_default();
    let release = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    format!("Debian Linux {}", release.unwrap_or_default()).trim().to_owned()
}
