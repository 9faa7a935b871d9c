//! A VM's configuration from JSON, as `vm.create` brings it.
//!
//! Cloud Hypervisor knows many more fields than we do, and its clients send them with values that
//! ask for nothing (`"iommu": false`). Those pass; a field that asks for something we cannot do
//! is refused by name instead of being ignored, at whatever depth it is.

use serde_json::{Map, Value};

use super::{ConfigError, VmConfig};

/// One JSON object we read: where it may be found, our fields, and Cloud Hypervisor's fields
/// that may also hold the given values.
struct Shape {
    ours: &'static [&'static str],
    harmless: &'static [(&'static str, &'static [Harmless])],
}

/// A value that asks for nothing beyond what we do.
enum Harmless {
    Number(u64),
    Text(&'static str),
    True,
}

const VM: Shape = Shape {
    ours: &["cpus", "memory", "payload", "disks", "net", "rng", "serial", "console", "ft"],
    harmless: &[],
};
const CPUS: Shape = Shape {
    ours: &["boot_vcpus", "max_vcpus"],
    harmless: &[
        ("max_phys_bits", &[Harmless::Number(46)]),
        ("nested", &[Harmless::True]),
        ("core_scheduling", &[Harmless::Text("Vm"), Harmless::Text("Vcpu"), Harmless::Text("Off")]),
    ],
};
const MEMORY: Shape = Shape {
    ours: &["size"],
    harmless: &[("thp", &[Harmless::True]), ("hotplug_method", &[Harmless::Text("Acpi")])],
};
const PAYLOAD: Shape =
    Shape { ours: &["firmware", "kernel", "cmdline", "initramfs"], harmless: &[] };
const DISK: Shape = Shape {
    ours: &["path", "readonly", "direct", "id", "serial"],
    harmless: &[
        ("num_queues", &[Harmless::Number(1)]),
        ("queue_size", &[Harmless::Number(128)]),
        ("sparse", &[Harmless::True]),
        ("image_type", &[Harmless::Text("Raw"), Harmless::Text("Unknown")]),
        ("lock_granularity", &[Harmless::Text("ByteRange"), Harmless::Text("Full")]),
    ],
};
const NET: Shape = Shape {
    ours: &["tap", "ip", "mask", "mac", "mtu", "id"],
    harmless: &[
        ("num_queues", &[Harmless::Number(2)]),
        ("queue_size", &[Harmless::Number(256)]),
        ("vhost_mode", &[Harmless::Text("Client")]),
        ("offload_tso", &[Harmless::True]),
        ("offload_ufo", &[Harmless::True]),
        ("offload_csum", &[Harmless::True]),
    ],
};
const RNG: Shape = Shape { ours: &["src"], harmless: &[] };
const CONSOLE: Shape = Shape { ours: &["mode", "file", "socket"], harmless: &[] };
const DEBUG_CONSOLE: Shape = Shape {
    ours: &[],
    harmless: &[("mode", &[Harmless::Text("Off")]), ("iobase", &[Harmless::Number(0xe9)])],
};
const PLATFORM: Shape = Shape {
    ours: &[],
    harmless: &[
        ("num_pci_segments", &[Harmless::Number(1)]),
        ("iommu_address_width_bits", &[Harmless::Number(64)]),
        ("vfio_p2p_dma", &[Harmless::True]),
    ],
};

impl VmConfig {
    /// Reads the JSON of `vm.create`. Whether the values make sense together is
    /// [`VmConfig::validate`]'s question.
    ///
    /// # Errors
    /// A sentence for broken JSON, values of the wrong type, and fields that ask for what we do
    /// not do.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let wrong = |reason: serde_json::Error| ConfigError::Json {
            what: "VM configuration",
            reason: reason.to_string(),
        };
        let mut value: Value = serde_json::from_slice(json).map_err(wrong)?;
        let Value::Object(vm) = &mut value else {
            return Err(ConfigError::Json {
                what: "VM configuration",
                reason: "an object is needed".into(),
            });
        };
        // Clients may say `null` for "the default".
        vm.retain(|_, part| !part.is_null());
        check_vm(vm)?;
        serde_json::from_value(value).map_err(wrong)
    }
}

fn check_vm(vm: &Map<String, Value>) -> Result<(), ConfigError> {
    for (name, part) in vm {
        let shape = match name.as_str() {
            "cpus" => &CPUS,
            "memory" => &MEMORY,
            "payload" => &PAYLOAD,
            "disks" => &DISK,
            "net" => &NET,
            "rng" => &RNG,
            "serial" | "console" => &CONSOLE,
            "debug_console" => &DEBUG_CONSOLE,
            "platform" => &PLATFORM,
            _ => {
                check_field(name, name, part, &VM)?;
                continue;
            }
        };
        match part {
            Value::Object(object) => check_object(name, object, shape)?,
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    if let Value::Object(object) = item {
                        check_object(&format!("{name}[{index}]"), object, shape)?;
                    }
                }
            }
            // A part of the wrong type is the deserialiser's to refuse.
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    Ok(())
}

/// Refuses what the entropy source and the consoles of a description cannot be.
pub(super) fn check_host_parts(description: &Map<String, Value>) -> Result<(), ConfigError> {
    for (name, shape) in [("rng", &RNG), ("serial", &CONSOLE), ("console", &CONSOLE)] {
        if let Some(Value::Object(part)) = description.get(name) {
            check_object(name, part, shape)?;
        }
    }
    Ok(())
}

fn check_object(
    place: &str,
    object: &Map<String, Value>,
    shape: &Shape,
) -> Result<(), ConfigError> {
    object
        .iter()
        .try_for_each(|(name, value)| check_field(&format!("{place}.{name}"), name, value, shape))
}

fn check_field(place: &str, name: &str, value: &Value, shape: &Shape) -> Result<(), ConfigError> {
    let harmless = shape.harmless.iter().find(|(known, _)| *known == name).map(|(_, list)| *list);
    let passes = shape.ours.contains(&name)
        || asks_for_nothing(value)
        || harmless.unwrap_or_default().iter().any(|one| one.is(value));
    if passes {
        return Ok(());
    }
    Err(ConfigError::Unsupported { place: place.to_owned(), value: shortened(value) })
}

impl Harmless {
    fn is(&self, value: &Value) -> bool {
        match self {
            Harmless::Number(number) => value.as_u64() == Some(*number),
            Harmless::Text(text) => value.as_str() == Some(text),
            Harmless::True => value.as_bool() == Some(true),
        }
    }
}

/// Nothing, no, zero, and containers of these.
fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_u64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(asks_for_nothing),
    }
}

/// The value as JSON, cut where a sentence would drown in it.
fn shortened(value: &Value) -> String {
    const LENGTH_MAX: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LENGTH_MAX) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
