//! The flat form of an [`FtConfig`], shared by `--ft key=value,…` and the JSON of `vm.ft-enable`,
//! and the rules that make one of it: which fields belong to which part, which must be there.

use std::net::SocketAddr;
use std::path::PathBuf;

use ft::Compression;
use serde::{Deserialize, Deserializer, Serialize};

use super::arbiter::ArbiterFields;
use super::options::{
    Options, OptionsText, SIZE_EXPECTED, print_size, read_list, read_size, read_switch,
};
use super::{AckMode, Arbiter, ConfigError, FtConfig, FtMethod, FtMode, FtTimings, PeerAddress};

/// The name of the option, for messages.
const OPTION: &str = "--ft";
const HEARTBEAT_MS_MAX: u64 = 60_000;
const TIME_MS_MAX: u64 = 3_600_000;
/// A takeover sets the VM back by as much, and the next checkpoint is as large.
const CHECKPOINT_MS_MAX: u64 = 10_000;
const LOG_BUFFER_MIN: u64 = 1 << 20;
const LOG_BUFFER_MAX: u64 = 64 << 30;
/// Slower than this no join of a machine of any size would ever end.
const JOIN_BANDWIDTH_MIN: u64 = 64 << 10;

/// Every field a user can write, as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FtFields {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "one_or_more")]
    standby: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "switch_or_word")]
    reprotect: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ack: Option<String>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    heartbeat_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_lag_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "number_or_size")]
    log_buffer: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "number_or_size")]
    join_bandwidth: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compression: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest_every: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    udp_port: Option<u16>,
}

impl FtFields {
    /// Reads the grammar; what the fields mean together is not judged yet.
    pub(crate) fn parse(text: &str) -> Result<Self, ConfigError> {
        const MILLISECONDS: &str = "a whole number of milliseconds";
        let mut options = Options::parse_with_lists(OPTION, text, &["standby"])?;
        let arbiter = ArbiterFields::take(&mut options);
        let mut fields = FtFields {
            role: options.take("role"),
            peer: options.take("peer"),
            listen: options.take("listen"),
            standby: options.take_list("standby"),
            reprotect: options.take_optional_switch("reprotect")?,
            record: options.take("record").map(PathBuf::from),
            replay: options.take("replay").map(PathBuf::from),
            mode: options.take("mode"),
            checkpoint_ms: options.take_as("checkpoint_ms", MILLISECONDS)?,
            ack: options.take("ack"),
            heartbeat_ms: options.take_as("heartbeat_ms", MILLISECONDS)?,
            timeout_ms: options.take_as("timeout_ms", MILLISECONDS)?,
            connect_timeout_ms: options.take_as("connect_timeout_ms", MILLISECONDS)?,
            max_lag_ms: options.take_as("max_lag_ms", MILLISECONDS)?,
            log_buffer: options.take_size("log_buffer")?,
            join_bandwidth: options.take_size("join_bandwidth")?,
            compression: options.take("compression"),
            digest_every: options.take_as("digest_every", "a whole number of moments")?,
            udp_port: options.take_as("udp_port", "a port from 1 to 65535")?,
            ..FtFields::default()
        };
        fields.set_arbiter(arbiter);
        options.finish(&[])?;
        Ok(fields)
    }

    /// The grammar that reads back as the same fields.
    pub(crate) fn to_options(&self) -> String {
        let mut text = OptionsText::default();
        text.push_some("role", self.role.as_ref());
        text.push_some("peer", self.peer.as_ref());
        text.push_some("listen", self.listen.as_ref());
        for standby in self.standby.iter().flatten() {
            text.push("standby", standby);
        }
        text.push_some("reprotect", self.reprotect.map(|on| if on { "on" } else { "off" }));
        text.push_some("record", self.record.as_ref().map(|path| path.display()));
        text.push_some("replay", self.replay.as_ref().map(|path| path.display()));
        text.push_some("mode", self.mode.as_ref());
        text.push_some("checkpoint_ms", self.checkpoint_ms);
        text.push_some("ack", self.ack.as_ref());
        self.arbiter_fields().print(&mut text);
        text.push_some("heartbeat_ms", self.heartbeat_ms);
        text.push_some("timeout_ms", self.timeout_ms);
        text.push_some("connect_timeout_ms", self.connect_timeout_ms);
        text.push_some("max_lag_ms", self.max_lag_ms);
        text.push_some("log_buffer", self.log_buffer.map(print_size));
        text.push_some("join_bandwidth", self.join_bandwidth.map(print_size));
        text.push_some("compression", self.compression.as_ref());
        text.push_some("digest_every", self.digest_every);
        text.push_some("udp_port", self.udp_port);
        text.finish()
    }

    /// The one part these fields describe.
    fn part(&self) -> Result<FtMode, ConfigError> {
        match (self.role.as_deref(), &self.record, &self.replay) {
            (None, None, None) => {
                Err(missing("role", "Say role=primary, role=backup, record=FILE or replay=FILE."))
            }
            (_, Some(_), Some(_)) => Err(ConfigError::contradiction(
                "--ft: record= and replay= contradict each other: a run is either recorded or \
                 replayed.",
            )),
            (Some(role), Some(_), None) | (Some(role), None, Some(_)) => {
                Err(ConfigError::contradiction(format!(
                    "--ft: role={role} and {}= contradict each other: a VM of a pair logs to its \
                     peer, not to a file.",
                    if self.record.is_some() { "record" } else { "replay" }
                )))
            }
            (None, Some(path), None) => Ok(FtMode::Record { path: path.clone() }),
            (None, None, Some(path)) => Ok(FtMode::Replay { path: path.clone() }),
            (Some("primary"), None, None) => Ok(FtMode::Primary {
                peer: self.read_peer()?,
                listen: self.listen.as_deref().map(read_listen).transpose()?,
            }),
            (Some("backup"), None, None) => Ok(FtMode::Backup { listen: self.must_listen()? }),
            (Some(other), None, None) => Err(bad_value("role", other, "primary or backup")),
        }
    }

    fn read_peer(&self) -> Result<PeerAddress, ConfigError> {
        let text = self.peer.as_deref().ok_or_else(|| {
            missing("peer", "A primary needs peer=HOST:PORT, where its backup listens.")
        })?;
        text.parse().map_err(|expected| bad_value("peer", text, expected))
    }

    fn must_listen(&self) -> Result<SocketAddr, ConfigError> {
        if self.peer.is_some() {
            return Err(ConfigError::contradiction(
                "--ft: role=backup and peer= contradict each other: the backup says with \
                 listen=ADDRESS:PORT where it waits, and the primary comes to it.",
            ));
        }
        let text = self.listen.as_deref().ok_or_else(|| {
            missing("listen", "A backup needs listen=ADDRESS:PORT, such as listen=0.0.0.0:7000.")
        })?;
        read_listen(text)
    }

    /// Refuses fields that mean nothing to `mode`: silence would look like consent.
    fn check_foreign_fields(&self, mode: &FtMode) -> Result<(), ConfigError> {
        const PAIR: &str = "a VM of a pair";
        const PRIMARY: &str = "role=primary; a backup takes it from its primary";
        let (primary, pair, logs) = match mode {
            FtMode::Primary { .. } => (true, true, true),
            FtMode::Backup { .. } => (false, true, true),
            FtMode::Record { .. } => (false, false, true),
            FtMode::Replay { .. } => (false, false, false),
        };
        let digests = primary || matches!(mode, FtMode::Record { .. });
        let rules = [
            ("peer", self.peer.is_some(), primary, PRIMARY),
            ("listen", self.listen.is_some(), pair, PAIR),
            ("standby", self.standby.is_some(), primary, PRIMARY),
            ("reprotect", self.reprotect.is_some(), primary, PRIMARY),
            ("mode", self.mode.is_some(), primary, PRIMARY),
            ("checkpoint_ms", self.checkpoint_ms.is_some(), primary, PRIMARY),
            ("ack", self.ack.is_some(), primary, PRIMARY),
            ("arbiter", self.arbiter.is_some(), pair, PAIR),
            ("arbiter_prefix", self.arbiter_prefix.is_some(), pair, PAIR),
            ("arbiter_ca", self.arbiter_ca.is_some(), pair, PAIR),
            ("arbiter_cert", self.arbiter_cert.is_some(), pair, PAIR),
            ("arbiter_key", self.arbiter_key.is_some(), pair, PAIR),
            ("heartbeat_ms", self.heartbeat_ms.is_some(), primary, PRIMARY),
            ("timeout_ms", self.timeout_ms.is_some(), primary, PRIMARY),
            ("connect_timeout_ms", self.connect_timeout_ms.is_some(), primary, PRIMARY),
            ("max_lag_ms", self.max_lag_ms.is_some(), primary, PRIMARY),
            ("join_bandwidth", self.join_bandwidth.is_some(), primary, "role=primary"),
            ("compression", self.compression.is_some(), primary, PRIMARY),
            ("udp_port", self.udp_port.is_some(), pair, PAIR),
            ("log_buffer", self.log_buffer.is_some(), logs, "a VM that logs or follows a log"),
            ("digest_every", self.digest_every.is_some(), digests, "role=primary or record="),
        ];
        match rules.iter().find(|(_, given, belongs, _)| *given && !belongs) {
            None => Ok(()),
            Some((key, _, _, owner)) => Err(ConfigError::contradiction(format!(
                "--ft: {key}= belongs to {owner}; leave it out here ({}).",
                name_of(mode)
            ))),
        }
    }

    fn read_ack(&self) -> Result<AckMode, ConfigError> {
        match self.ack.as_deref() {
            None => Ok(AckMode::default()),
            Some("received") => Ok(AckMode::Received),
            Some("verified") => Ok(AckMode::Verified),
            Some(other) => Err(bad_value("ack", other, "received or verified")),
        }
    }

    fn read_method(&self) -> Result<FtMethod, ConfigError> {
        let Some(text) = self.mode.as_deref() else { return Ok(FtMethod::default()) };
        let method = FtMethod::ALL.into_iter().find(|method| method.name() == text);
        let method = method.ok_or_else(|| bad_value("mode", text, "auto, replay or checkpoint"))?;
        if method == FtMethod::Replay && self.checkpoint_ms.is_some() {
            return Err(ConfigError::contradiction(
                "--ft: mode=replay and checkpoint_ms= contradict each other: no checkpoint is taken \
                 then. Leave one of them out.",
            ));
        }
        Ok(method)
    }

    fn read_compression(&self) -> Result<Compression, ConfigError> {
        let Some(text) = self.compression.as_deref() else { return Ok(Compression::default()) };
        let compression = Compression::ALL.into_iter().find(|kind| kind.name() == text);
        compression.ok_or_else(|| bad_value("compression", text, "off or lz4"))
    }

    fn read_arbiter(&self, mode: &FtMode) -> Result<Option<Arbiter>, ConfigError> {
        let arbiter = self.arbiter_fields().read()?;
        let needed = match mode {
            FtMode::Primary { .. } => true,
            FtMode::Backup { .. } | FtMode::Record { .. } | FtMode::Replay { .. } => false,
        };
        if needed && arbiter.is_none() {
            return Err(missing(
                "arbiter",
                "Say arbiter=file:PATH with a path on storage both hosts share, or \
                 arbiter=etcd:https://HOST:PORT, so that never two VMs live. arbiter=none does \
                 without, at your own risk.",
            ));
        }
        Ok(arbiter)
    }

    fn arbiter_fields(&self) -> ArbiterFields {
        ArbiterFields {
            arbiter: self.arbiter.clone(),
            prefix: self.arbiter_prefix.clone(),
            ca: self.arbiter_ca.clone(),
            cert: self.arbiter_cert.clone(),
            key: self.arbiter_key.clone(),
        }
    }

    fn set_arbiter(&mut self, fields: ArbiterFields) {
        let ArbiterFields { arbiter, prefix, ca, cert, key } = fields;
        (self.arbiter, self.arbiter_prefix) = (arbiter, prefix);
        (self.arbiter_ca, self.arbiter_cert, self.arbiter_key) = (ca, cert, key);
    }

    fn read_standbys(&self) -> Result<Vec<PeerAddress>, ConfigError> {
        let standbys = self.standby.iter().flatten();
        let standbys: Vec<PeerAddress> = standbys
            .map(|text| text.parse().map_err(|expected| bad_value("standby", text, expected)))
            .collect::<Result<_, _>>()?;
        check_standbys(&standbys)?;
        Ok(standbys)
    }

    fn read_timings(&self) -> Result<FtTimings, ConfigError> {
        let default = FtTimings::default();
        let timings = FtTimings {
            heartbeat_ms: self.heartbeat_ms.unwrap_or(default.heartbeat_ms),
            timeout_ms: self.timeout_ms.unwrap_or(default.timeout_ms),
            connect_timeout_ms: self.connect_timeout_ms.unwrap_or(default.connect_timeout_ms),
            max_lag_ms: self.max_lag_ms.unwrap_or(default.max_lag_ms),
            checkpoint_ms: self.checkpoint_ms.unwrap_or(default.checkpoint_ms),
        };
        in_range("heartbeat_ms", timings.heartbeat_ms, 1, HEARTBEAT_MS_MAX)?;
        in_range("timeout_ms", timings.timeout_ms, 1, TIME_MS_MAX)?;
        in_range("connect_timeout_ms", timings.connect_timeout_ms, 1, TIME_MS_MAX)?;
        in_range("max_lag_ms", timings.max_lag_ms, 1, TIME_MS_MAX)?;
        in_range("checkpoint_ms", timings.checkpoint_ms, 1, CHECKPOINT_MS_MAX)?;
        if timings.timeout_ms < 4 * timings.heartbeat_ms {
            return Err(ConfigError::contradiction(format!(
                "--ft: timeout_ms={} is less than four times heartbeat_ms={}: one late heartbeat would \
                 count as a dead host. Make the timeout longer or the heartbeats more frequent.",
                timings.timeout_ms, timings.heartbeat_ms
            )));
        }
        Ok(timings)
    }
}

impl TryFrom<FtFields> for FtConfig {
    type Error = ConfigError;

    fn try_from(fields: FtFields) -> Result<Self, ConfigError> {
        let mode = fields.part()?;
        fields.check_foreign_fields(&mode)?;
        let log_buffer = fields.log_buffer.unwrap_or(FtConfig::LOG_BUFFER_DEFAULT);
        in_range("log_buffer", log_buffer, LOG_BUFFER_MIN, LOG_BUFFER_MAX)?;
        if let Some(rate) = fields.join_bandwidth {
            in_range("join_bandwidth", rate, JOIN_BANDWIDTH_MIN, u64::MAX)?;
        }
        let digest_every = fields.digest_every.unwrap_or(FtConfig::DIGEST_EVERY_DEFAULT);
        in_range("digest_every", digest_every, 1, u64::MAX)?;
        if fields.udp_port == Some(0) {
            return Err(bad_value("udp_port", "0", "a port from 1 to 65535"));
        }
        Ok(FtConfig {
            method: fields.read_method()?,
            ack: fields.read_ack()?,
            arbiter: fields.read_arbiter(&mode)?,
            timings: fields.read_timings()?,
            standbys: fields.read_standbys()?,
            reprotect: fields.reprotect.unwrap_or(true),
            log_buffer,
            join_bandwidth: fields.join_bandwidth,
            compression: fields.read_compression()?,
            digest_every,
            udp_port: fields.udp_port,
            mode,
        })
    }
}

impl From<FtConfig> for FtFields {
    fn from(config: FtConfig) -> Self {
        let mut fields = FtFields {
            udp_port: config.udp_port,
            log_buffer: Some(config.log_buffer),
            ..FtFields::default()
        };
        if let Some(arbiter) = &config.arbiter {
            fields.set_arbiter(ArbiterFields::from(arbiter));
        }
        match config.mode {
            FtMode::Primary { peer, listen } => {
                fields.role = Some("primary".into());
                fields.listen = listen.map(|listen| listen.to_string());
                fields.reprotect = Some(config.reprotect);
                let standbys = config.standbys.iter().map(ToString::to_string);
                fields.standby = Some(standbys.collect()).filter(|list: &Vec<_>| !list.is_empty());
                fields.peer = Some(peer.to_string());
                fields.mode = Some(config.method.name().to_owned());
                fields.checkpoint_ms =
                    (config.method != FtMethod::Replay).then_some(config.timings.checkpoint_ms);
                fields.ack = Some(config.ack.to_string());
                fields.heartbeat_ms = Some(config.timings.heartbeat_ms);
                fields.timeout_ms = Some(config.timings.timeout_ms);
                fields.connect_timeout_ms = Some(config.timings.connect_timeout_ms);
                fields.max_lag_ms = Some(config.timings.max_lag_ms);
                fields.digest_every = Some(config.digest_every);
                fields.join_bandwidth = config.join_bandwidth;
                fields.compression = Some(config.compression.name().to_owned());
            }
            FtMode::Backup { listen } => {
                fields.role = Some("backup".into());
                fields.listen = Some(listen.to_string());
            }
            FtMode::Record { path } => {
                fields.record = Some(path);
                fields.digest_every = Some(config.digest_every);
            }
            FtMode::Replay { path } => {
                fields.replay = Some(path);
                fields.log_buffer = None;
            }
        }
        fields
    }
}

fn read_listen(text: &str) -> Result<SocketAddr, ConfigError> {
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    address.ok_or_else(|| {
        bad_value("listen", text, "ADDRESS:PORT, such as 0.0.0.0:7000 or [::]:7000,")
    })
}

/// Refuses a list of standbys that is too long or names one twice.
///
/// # Errors
/// A sentence that says which.
pub(crate) fn check_standbys(standbys: &[PeerAddress]) -> Result<(), ConfigError> {
    let mut list = ft::Standbys::new(ft::Patience::default());
    let addresses: Vec<String> = standbys.iter().map(ToString::to_string).collect();
    list.replace(addresses.iter().map(String::as_str))
        .map_err(|error| ConfigError::contradiction(format!("--ft: {error}.")))
}

fn name_of(mode: &FtMode) -> &'static str {
    match mode {
        FtMode::Primary { .. } => "this is a primary",
        FtMode::Backup { .. } => "this is a backup",
        FtMode::Record { .. } => "this is a recording",
        FtMode::Replay { .. } => "this is a replay",
    }
}

fn in_range(key: &str, value: u64, min: u64, max: u64) -> Result<(), ConfigError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let expected = if max == u64::MAX {
        format!("at least {min}")
    } else {
        format!("a number from {min} to {max}")
    };
    Err(bad_value(key, &value.to_string(), &expected))
}

fn missing(key: &str, advice: &str) -> ConfigError {
    ConfigError::Missing { option: OPTION.into(), key: key.into(), advice: advice.into() }
}

fn bad_value(key: &str, value: &str, expected: &str) -> ConfigError {
    ConfigError::BadValue {
        option: OPTION.into(),
        key: key.into(),
        value: value.into(),
        expected: expected.into(),
    }
}

/// A size in JSON: bytes as a number, or the command line's `"64M"`.
fn number_or_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum NumberOrText {
        Number(u64),
        Text(String),
    }
    match Option::<NumberOrText>::deserialize(deserializer)? {
        None => Ok(None),
        Some(NumberOrText::Number(bytes)) => Ok(Some(bytes)),
        Some(NumberOrText::Text(text)) => read_size(&text)
            .map(Some)
            .ok_or_else(|| serde::de::Error::custom(format!("\"{text}\" is not {SIZE_EXPECTED}"))),
    }
}

/// A switch in JSON, or the command line's `"on"` and `"off"`.
fn switch_or_word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum SwitchOrWord {
        Switch(bool),
        Word(String),
    }
    match Option::<SwitchOrWord>::deserialize(deserializer)? {
        None => Ok(None),
        Some(SwitchOrWord::Switch(on)) => Ok(Some(on)),
        Some(SwitchOrWord::Word(word)) => read_switch(&word)
            .map(Some)
            .ok_or_else(|| serde::de::Error::custom(format!("\"{word}\" is not on or off"))),
    }
}

/// A list in JSON, or a single text.
fn one_or_more<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(Option::<OneOrMore>::deserialize(deserializer)?.map(|given| match given {
        OneOrMore::One(text) => read_list(&text),
        OneOrMore::More(list) => list,
    }))
}

#[cfg(test)]
#[path = "ft_fields_tests.rs"]
mod tests;
