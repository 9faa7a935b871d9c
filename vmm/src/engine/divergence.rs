//! What people read when a replay differs from its log: both states, side by side.
//!
//! Owns the words. Does not own the comparison (`ft::Replay`, `replaying`).

use std::fmt::Write;

use ft::RegisterValues;
use hypervisor::Registers;
use serde_json::Value;

use crate::error::Error;
use crate::machine::MachineState;

/// Parts of the device state that are listed; more are only counted.
const PARTS_SHOWN: usize = 40;
/// Characters of one value that are shown.
const VALUE_SHOWN: usize = 60;

/// Recorded and replayed registers; those that differ are marked.
pub(super) fn registers_text(recorded: &RegisterValues, replayed: &RegisterValues) -> String {
    let mut text = format!("{:>8} {:>16}  {:>16}\n", "", "recorded", "replayed");
    let pairs = Registers::from_values(recorded).named().into_iter().zip(replayed);
    for ((name, recorded), replayed) in pairs {
        let mark = if recorded == *replayed { "" } else { "  <-- differs" };
        let _ = writeln!(text, "{name:>8} {recorded:016x}  {replayed:016x}{mark}");
    }
    text
}

/// The parts of two device states that differ, by their names.
///
/// # Errors
/// The recorded state cannot be read.
pub(super) fn devices_text(recorded: &[u8], replayed: &MachineState) -> Result<String, Error> {
    let value = |state: &MachineState| {
        serde_json::to_value(state).map_err(|error| Error::State(error.to_string()))
    };
    let mut differences = Vec::new();
    let (recorded, replayed) = (value(&MachineState::decode(recorded)?)?, value(replayed)?);
    collect("", &recorded, &replayed, &mut differences);
    let mut text = String::new();
    for (path, recorded, replayed) in differences.iter().take(PARTS_SHOWN) {
        let _ = writeln!(text, "  {path}: recorded {recorded}, replayed {replayed}");
    }
    if let Some(more) = differences.len().checked_sub(PARTS_SHOWN + 1) {
        let _ = writeln!(text, "  and {} more", more + 1);
    }
    Ok(text)
}

/// A part's path, and what it is on either side.
type Difference = (String, String, String);

fn collect(path: &str, recorded: &Value, replayed: &Value, found: &mut Vec<Difference>) {
    match (recorded, replayed) {
        (one, other) if one == other => {}
        (Value::Object(one), Value::Object(other)) => {
            let keys = one.keys().chain(other.keys().filter(|key| !one.contains_key(*key)));
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let part = |map: &serde_json::Map<String, Value>| {
                    map.get(key).cloned().unwrap_or(Value::Null)
                };
                collect(&path, &part(one), &part(other), found);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (place, (one, other)) in one.iter().zip(other).enumerate() {
                collect(&format!("{path}[{place}]"), one, other, found);
            }
        }
        (one, other) => found.push((path.to_owned(), shown(one), shown(other))),
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(VALUE_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{Platform, PlatformConfig};

    #[test]
    fn registers_that_differ_are_marked_and_the_others_are_not() {
        let recorded: RegisterValues = std::array::from_fn(|place| place as u64);
        let mut replayed = recorded;
        replayed[16] = 0xbeef;
        let text = registers_text(&recorded, &replayed);
        let marked: Vec<&str> = text.lines().filter(|line| line.contains("differs")).collect();
        assert_eq!(marked, ["     rip 0000000000000010  000000000000beef  <-- differs"]);
        assert_eq!(text.lines().count(), 19);
    }

    #[test]
    fn the_part_of_the_devices_that_differs_is_named() {
        let platform = Platform::new(PlatformConfig { serial: true, boot_time_unix_ns: 0 });
        let replayed =
            MachineState { halted: false, platform: platform.state(), virtio: Vec::new() };
        let mut recorded = replayed.clone();
        recorded.halted = true;
        recorded.platform.lapic.requested[2] = 5;
        let text = devices_text(&recorded.encode().unwrap(), &replayed).unwrap();
        assert_eq!(
            text,
            "  halted: recorded true, replayed false\n  \
             platform.lapic.requested[2]: recorded 5, replayed 0\n"
        );
        assert_eq!(devices_text(&replayed.encode().unwrap(), &replayed).unwrap(), "");
        assert!(devices_text(&[1, 2], &replayed).is_err());
    }
}
