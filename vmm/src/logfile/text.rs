//! Records as lines of text, for people.
//!
//! Owns the words. A line never holds a whole page or packet: the first bytes tell which it is.

use ft::{EndReason, Input, Page, Record, RegisterValues};
use hypervisor::{Registers, VcpuState};

use crate::machine::MachineState;

/// Bytes of a payload that a line shows.
const PAYLOAD_BYTES_SHOWN: usize = 24;

/// What a line says beyond its record: registers are told as what changed since the last ones.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    registers: Option<RegisterValues>,
}

impl Lines {
    /// The words for one record, without its moment.
    pub fn record(&mut self, record: &Record) -> String {
        let name = record.name();
        match record {
            Record::Input(input) => format!("{name:<13} {}", input_text(input)),
            Record::Digest { value } => format!("{name:<13} {value:016x}"),
            Record::Registers(values) => {
                let text = self.registers(values);
                self.registers = Some(**values);
                format!("{name:<13} {text}")
            }
            Record::Devices { state } => {
                let digest = xxhash_rust::xxh3::xxh3_64(state);
                format!("{name:<13} {} bytes, digest {digest:016x}", state.len())
            }
            Record::StateDigest { devices, memory: None } => {
                format!("{name:<13} devices {devices:016x}")
            }
            Record::StateDigest { devices, memory: Some(memory) } => {
                format!("{name:<13} devices {devices:016x}, memory {memory:016x}")
            }
            Record::Pages { pages } => format!("{name:<13} {}", pages_text(pages)),
            Record::Patches { patches } => {
                let bytes: usize = patches.iter().map(|(_, patch)| patch.len()).sum();
                format!("{name:<13} {} pages changed in {bytes} bytes", patches.len())
            }
            Record::Models { part } => {
                format!("{name:<13} {} bytes of the devices that follow", part.len())
            }
            Record::Heals => format!("{name:<13} the copy that follows, with the next delta"),
            Record::Delta { vcpu, machine, outputs } => {
                format!(
                    "{name:<13} {}{}; outputs so far: {} with digest {:016x}",
                    vcpu_text(vcpu),
                    machine
                        .as_ref()
                        .map_or(String::new(), |m| format!(", all devices in {} bytes", m.len())),
                    outputs.count,
                    outputs.digest
                )
            }
            Record::Released { output } => format!("{name:<13} outputs up to {output}"),
            Record::End { reason } => format!("{name:<13} {}", end_text(*reason)),
        }
    }

    fn registers(&self, values: &RegisterValues) -> String {
        let last = self.registers;
        let changed = Registers::from_values(values)
            .named()
            .into_iter()
            .enumerate()
            .filter(|(place, (name, value))| {
                *name == "rip" || last.is_none_or(|last| last[*place] != *value)
            })
            .map(|(_, (name, value))| format!("{name} {value:x}"));
        changed.collect::<Vec<_>>().join("  ")
    }
}

/// Everything about a record that takes more than a line, or `None`.
pub fn details(record: &Record) -> Option<String> {
    match record {
        Record::Registers(values) => Some(Registers::from_values(values).to_string()),
        Record::Devices { state } => Some(devices_text(state)),
        Record::Delta { vcpu, machine, .. } => {
            let vcpu = match postcard::from_bytes::<VcpuState>(vcpu) {
                Ok(state) => format!("{state:#?}"),
                Err(error) => format!("the vCPU's state cannot be read: {error}"),
            };
            let machine = machine.as_deref().map_or(String::new(), devices_text);
            Some(format!("{vcpu}\n{machine}"))
        }
        Record::Pages { pages } => {
            let numbers: Vec<String> = pages
                .iter()
                .map(|(frame, page)| {
                    format!(
                        "{:#x}{}",
                        frame << 12,
                        if *page == Page::Zero { " (zero)" } else { "" }
                    )
                })
                .collect();
            Some(numbers.join("\n"))
        }
        Record::Patches { patches } => {
            let changed = |(frame, patch): &(u64, Vec<u8>)| {
                format!("{:#x} ({} bytes)", frame << 12, patch.len())
            };
            Some(patches.iter().map(changed).collect::<Vec<_>>().join("\n"))
        }
        Record::Input(_)
        | Record::Digest { .. }
        | Record::Models { .. }
        | Record::Heals
        | Record::StateDigest { .. }
        | Record::Released { .. }
        | Record::End { .. } => None,
    }
}

fn devices_text(state: &[u8]) -> String {
    match MachineState::decode(state) {
        Ok(state) => format!("{state:#?}"),
        Err(error) => error.to_string(),
    }
}

fn vcpu_text(vcpu: &[u8]) -> String {
    match postcard::from_bytes::<VcpuState>(vcpu) {
        Ok(state) => format!("vCPU at rip {:x}", state.registers.rip),
        Err(_) => format!("vCPU in {} bytes of another build", vcpu.len()),
    }
}

/// Why a log ends, in words.
pub fn end_text(reason: EndReason) -> &'static str {
    match reason {
        EndReason::PowerOff => "the guest powered itself off or was shut down",
        EndReason::Stopped => "the recording was stopped",
        EndReason::Failover => "the machine goes on at the backup",
    }
}

fn input_text(input: &Input) -> String {
    match input {
        Input::TimeRead { now_ns } | Input::Tick { now_ns } => seconds(*now_ns),
        Input::Packet { device, bytes } => {
            format!("device {device}, {}", payload(bytes))
        }
        Input::BlockDone { device, token, status, data } => {
            let status = match status {
                0 => "done".to_owned(),
                other => format!("failed with status {other}"),
            };
            format!("device {device}, request {token} {status}, {}", payload(data))
        }
        Input::Console { device, bytes } | Input::Entropy { device, bytes } => {
            format!("device {device}, {}", payload(bytes))
        }
        Input::Serial { bytes } => payload(bytes),
        Input::Announce { device } => format!("device {device}"),
        Input::PowerButton | Input::Reset => String::new(),
    }
}

/// Machine time in seconds.
pub fn seconds(ns: u64) -> String {
    format!("{}.{:09} s", ns / 1_000_000_000, ns % 1_000_000_000)
}

fn payload(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "no data".to_owned();
    }
    let shown: String =
        bytes.iter().take(PAYLOAD_BYTES_SHOWN).map(|byte| format!("{byte:02x}")).collect();
    let rest = if bytes.len() > PAYLOAD_BYTES_SHOWN { "…" } else { "" };
    format!("{} bytes: {shown}{rest}", bytes.len())
}

fn pages_text(pages: &[(u64, Page)]) -> String {
    let zero = pages.iter().filter(|(_, page)| *page == Page::Zero).count();
    let range = match (pages.first(), pages.last()) {
        (Some((first, _)), Some((last, _))) => format!(", {:#x} to {:#x}", first << 12, last << 12),
        _ => String::new(),
    };
    format!("{} pages, {zero} of them zero{range}", pages.len())
}
