//! Orders to move a VM from one host to another: the bodies of `vm.send-migration` and
//! `vm.receive-migration`, and the texts of `ch-remote` that mean the same.
//!
//! Cloud Hypervisor's field names. What of its fields is not there yet is refused by name, unless
//! the value asks for nothing beyond what is done anyway.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::arbiter::ArbiterFields;
use super::json::check_host_parts;
use super::options::Options;
use super::{
    Arbiter, ConfigError, ConsoleConfig, DiskOverride, HostOverrides, NetOverride, PeerAddress,
    RngConfig,
};

const SEND: &str = "send-migration";
const RECEIVE: &str = "receive-migration";
/// A copy aims at no longer a stop than this, milliseconds.
const DOWNTIME_MS: u64 = 20;
/// Cloud Hypervisor's own limit of a whole migration, seconds.
const TIMEOUT_S: u64 = 3600;
/// The longest limit: a week.
const TIMEOUT_S_MAX: u64 = 7 * 24 * 3600;
/// Characters of a user's value in a message.
const SHOWN_MOST: usize = 80;

/// Where the VM is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SendMigration {
    /// Where its receiver waits.
    pub destination: PeerAddress,
    /// The copy is given up after this time.
    pub timeout: Duration,
    /// Who decides where the VM is if the word that it arrived is lost; the user if nobody does.
    pub arbiter: Option<Arbiter>,
}

/// Where a VM is awaited, and what of this host stands in for its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiveMigration {
    /// Address and port of this host.
    pub listen: SocketAddr,
    /// What belongs to this host and not to the VM.
    pub overrides: HostOverrides,
}

/// The fields of `vm.send-migration`, as written.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SendFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    downtime_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_strategy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connections: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arbiter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arbiter_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arbiter_ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arbiter_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arbiter_key: Option<PathBuf>,
}

/// The fields of `vm.receive-migration`, as written.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ReceiveFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    receiver_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disks: Option<Vec<DiskOverride>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    net: Option<Vec<NetOverride>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rng: Option<RngConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    serial: Option<ConsoleConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    console: Option<ConsoleConfig>,
}

impl SendMigration {
    /// What `ch-remote send-migration` takes, for help texts.
    pub const SYNTAX: &'static str = "tcp:<host>:<port>, or destination_url=tcp:<host>:<port>\
        [,timeout_s=3600][,arbiter=file:<absolute path>|etcd:<url>]";

    /// Reads the JSON of `vm.send-migration`.
    ///
    /// # Errors
    /// A sentence for broken JSON and for what cannot be done.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let fields: SendFields = serde_json::from_slice(json).map_err(|error| wrong(&error))?;
        fields.read()
    }

    /// The JSON for what a user of `ch-remote` wrote: a URL, or `key=value` pairs.
    ///
    /// # Errors
    /// A sentence for everything that cannot be read or done.
    pub fn json_of_text(text: &str) -> Result<String, ConfigError> {
        let fields = SendFields::parse(text)?;
        fields.read()?;
        serde_json::to_string(&fields).map_err(|error| wrong(&error))
    }
}

impl ReceiveMigration {
    /// What `ch-remote receive-migration` takes, for help texts.
    pub const SYNTAX: &'static str =
        "tcp:<address>:<port>, or receiver_url=tcp:<address>:<port>: where to wait";

    /// Reads the JSON of `vm.receive-migration`.
    ///
    /// # Errors
    /// A sentence for broken JSON and for what cannot be done.
    pub fn from_json(json: &[u8]) -> Result<Self, ConfigError> {
        let value: Value = serde_json::from_slice(json).map_err(|error| wrong(&error))?;
        if let Value::Object(object) = &value {
            check_host_parts(object)?;
        }
        let fields: ReceiveFields = serde_json::from_value(value).map_err(|error| wrong(&error))?;
        fields.read()
    }

    /// The JSON for what a user of `ch-remote` wrote: a URL or `receiver_url=…`, and what of this
    /// host stands in for the VM's devices.
    ///
    /// # Errors
    /// A sentence for everything that cannot be read or done.
    pub fn json_of_text(text: &str, overrides: HostOverrides) -> Result<String, ConfigError> {
        let mut fields = ReceiveFields::parse(text)?;
        let HostOverrides { disks, net, rng, serial, console } = overrides;
        fields.disks = (!disks.is_empty()).then_some(disks);
        fields.net = (!net.is_empty()).then_some(net);
        (fields.rng, fields.serial, fields.console) = (rng, serial, console);
        fields.read()?;
        serde_json::to_string(&fields).map_err(|error| wrong(&error))
    }
}

impl SendFields {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        if is_url(text) {
            return Ok(Self { destination_url: Some(text.to_owned()), ..Self::default() });
        }
        let mut options = Options::parse(SEND, text)?;
        let arbiter = ArbiterFields::take(&mut options);
        let fields = Self {
            destination_url: options.take("destination_url"),
            local: options.take_optional_switch("local")?,
            downtime_ms: options.take_as("downtime_ms", "a whole number of milliseconds")?,
            timeout_s: options.take_as("timeout_s", "a whole number of seconds")?,
            timeout_strategy: options.take("timeout_strategy"),
            connections: options.take_as("connections", "a whole number")?,
            memory_mode: options.take("memory_mode"),
            tls_dir: options.take("tls_dir"),
            arbiter: arbiter.arbiter,
            arbiter_prefix: arbiter.prefix,
            arbiter_ca: arbiter.ca,
            arbiter_cert: arbiter.cert,
            arbiter_key: arbiter.key,
        };
        options.finish(&[])?;
        Ok(fields)
    }

    fn read(&self) -> Result<SendMigration, ConfigError> {
        let address = tcp_address(SEND, "destination_url", self.destination_url.as_deref())?;
        let destination = address.parse().map_err(|_| ConfigError::BadValue {
            option: SEND.into(),
            key: "destination_url".into(),
            value: shown(&format!("tcp:{address}")),
            expected: "tcp:HOST:PORT, such as tcp:10.0.0.2:7000 or tcp:[fd00::2]:7000,".into(),
        })?;
        self.refuse_what_is_not_there()?;
        let timeout_s = self.timeout_s.unwrap_or(TIMEOUT_S);
        if !(1..=TIMEOUT_S_MAX).contains(&timeout_s) {
            return Err(ConfigError::BadValue {
                option: SEND.into(),
                key: "timeout_s".into(),
                value: timeout_s.to_string(),
                expected: format!("a number of seconds from 1 to {TIMEOUT_S_MAX}"),
            });
        }
        let arbiter = ArbiterFields {
            arbiter: self.arbiter.clone(),
            prefix: self.arbiter_prefix.clone(),
            ca: self.arbiter_ca.clone(),
            cert: self.arbiter_cert.clone(),
            key: self.arbiter_key.clone(),
        };
        let arbiter = arbiter.read()?.filter(|arbiter| *arbiter != Arbiter::None);
        Ok(SendMigration { destination, timeout: Duration::from_secs(timeout_s), arbiter })
    }

    fn refuse_what_is_not_there(&self) -> Result<(), ConfigError> {
        if self.local == Some(true) {
            return Err(ConfigError::contradiction(
                "send-migration: local=true would share the VM's memory with a VMM on the same \
                 host, which is not there yet. Leave it out: tcp: works on one host, too.",
            ));
        }
        let strategy = self.timeout_strategy.as_deref().unwrap_or("cancel");
        let connections = self.connections.unwrap_or(1);
        let downtime_ms = self.downtime_ms.unwrap_or(DOWNTIME_MS);
        let unsupported = |place: &str, value: &dyn std::fmt::Display| {
            let (place, value) = (format!("{SEND} {place}"), shown(&value.to_string()));
            Err(ConfigError::Unsupported { place, value })
        };
        if !strategy.eq_ignore_ascii_case("cancel") {
            return unsupported("timeout_strategy", &strategy);
        }
        if connections != 1 {
            return unsupported("connections", &connections);
        }
        if downtime_ms < DOWNTIME_MS {
            return Err(ConfigError::contradiction(format!(
                "send-migration: downtime_ms={downtime_ms} cannot be aimed at; a copy stops the \
                 VM for {DOWNTIME_MS} ms or less if it can. Leave it out.",
            )));
        }
        refuse_mode_and_tls(SEND, self.memory_mode.as_deref(), self.tls_dir.as_deref())
    }
}

impl ReceiveFields {
    fn parse(text: &str) -> Result<Self, ConfigError> {
        if is_url(text) {
            return Ok(Self { receiver_url: Some(text.to_owned()), ..Self::default() });
        }
        let mut options = Options::parse(RECEIVE, text)?;
        let fields = Self {
            receiver_url: options.take("receiver_url"),
            memory_mode: options.take("memory_mode"),
            tls_dir: options.take("tls_dir"),
            ..Self::default()
        };
        options.finish(&[])?;
        Ok(fields)
    }

    fn read(&self) -> Result<ReceiveMigration, ConfigError> {
        let address = tcp_address(RECEIVE, "receiver_url", self.receiver_url.as_deref())?;
        let listen = address.parse().ok().filter(|listen: &SocketAddr| listen.port() != 0);
        let listen = listen.ok_or_else(|| ConfigError::BadValue {
            option: RECEIVE.into(),
            key: "receiver_url".into(),
            value: shown(&format!("tcp:{address}")),
            expected: "tcp:ADDRESS:PORT of this host, such as tcp:0.0.0.0:7000,".into(),
        })?;
        refuse_mode_and_tls(RECEIVE, self.memory_mode.as_deref(), self.tls_dir.as_deref())?;
        let overrides = HostOverrides {
            disks: self.disks.clone().unwrap_or_default(),
            net: self.net.clone().unwrap_or_default(),
            rng: self.rng.clone(),
            serial: self.serial.clone(),
            console: self.console.clone(),
        };
        overrides.validate()?;
        Ok(ReceiveMigration { listen, overrides })
    }
}

fn is_url(text: &str) -> bool {
    text.starts_with("tcp:") || text.starts_with("unix:")
}

/// What stands behind `tcp:`.
fn tcp_address<'a>(option: &str, key: &str, url: Option<&'a str>) -> Result<&'a str, ConfigError> {
    let Some(url) = url.filter(|url| !url.is_empty()) else {
        return Err(ConfigError::Missing {
            option: option.into(),
            key: key.into(),
            advice: "Give it as tcp:HOST:PORT.".into(),
        });
    };
    if let Some(address) = url.strip_prefix("tcp:") {
        return Ok(address);
    }
    if url.starts_with("unix:") {
        return Err(ConfigError::contradiction(format!(
            "{option}: {key}={}: a VM cannot move through a Unix socket yet. Name a TCP port, \
             tcp:HOST:PORT, which works on one host, too.",
            shown(url)
        )));
    }
    Err(ConfigError::BadValue {
        option: option.into(),
        key: key.into(),
        value: shown(url),
        expected: "tcp:HOST:PORT".into(),
    })
}

fn refuse_mode_and_tls(
    option: &str,
    memory_mode: Option<&str>,
    tls_dir: Option<&str>,
) -> Result<(), ConfigError> {
    let mode = memory_mode.filter(|mode| !mode.eq_ignore_ascii_case("precopy"));
    let tls = tls_dir.filter(|path| !path.is_empty());
    let refused = mode.map(|mode| ("memory_mode", mode)).or(tls.map(|path| ("tls_dir", path)));
    match refused {
        None => Ok(()),
        Some((key, value)) => {
            Err(ConfigError::Unsupported { place: format!("{option} {key}"), value: shown(value) })
        }
    }
}

fn wrong(error: &serde_json::Error) -> ConfigError {
    ConfigError::Json { what: "order to move a VM", reason: error.to_string() }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MOST).collect()
}

#[cfg(test)]
#[path = "migration_tests.rs"]
mod tests;
