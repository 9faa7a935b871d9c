//! How a VM is protected, recorded or replayed: the types. The flat form in which users write
//! them (`--ft key=value,…`, the JSON of `vm.ft-enable`) and every rule about it is
//! `ft_fields.rs`'s.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ft::Compression;
use serde::{Deserialize, Serialize};

use super::ft_fields::FtFields;
use super::{Arbiter, ConfigError};

/// Everything `--ft` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FtFields", into = "FtFields")]
pub struct FtConfig {
    /// Which part this VMM plays.
    pub mode: FtMode,
    /// How the VM is kept twice. Only a primary's word counts; a backup takes its primary's.
    pub method: FtMethod,
    /// When an output may leave. Only a primary's word counts; a backup takes its primary's.
    pub ack: AckMode,
    /// Who decides which replica goes on after a loss. Always there for a primary; for a backup
    /// only if it overrides what its primary says; never for a recording or a replay.
    pub arbiter: Option<Arbiter>,
    /// The pair's times. Only a primary's word counts; a backup takes its primary's.
    pub timings: FtTimings,
    /// Bytes of log that may wait in memory to be sent, written or executed.
    pub log_buffer: u64,
    /// Hosts that are joined, in turn, when there is no backup. The peer is one of them, said or
    /// not. Only a primary's.
    pub standbys: Vec<PeerAddress>,
    /// Whether the VM looks for a new backup by itself when it has none. Only a primary's.
    pub reprotect: bool,
    /// Bytes a second that a join may copy at most; as fast as it goes if absent.
    pub join_bandwidth: Option<u64>,
    /// What the primary does with large parts of the stream. Only a primary's.
    pub compression: Compression,
    /// Moments from one digest of the device state in the log to the next.
    pub digest_every: u64,
    /// The port of the UDP heartbeats; that of the TCP channel if absent.
    pub udp_port: Option<u16>,
}

/// Which part a VMM plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FtMode {
    /// Runs the VM and logs it to a backup.
    Primary {
        /// Where the backup listens.
        peer: PeerAddress,
        /// Where this process waits as a standby once the VM lives elsewhere; without it, it ends
        /// then.
        listen: Option<SocketAddr>,
    },
    /// Follows a primary and takes over when it dies.
    Backup {
        /// Where to wait for the primary.
        listen: SocketAddr,
    },
    /// Runs the VM and logs it to a file.
    Record {
        /// The log to write.
        path: PathBuf,
    },
    /// Runs a recorded VM again and compares.
    Replay {
        /// The log to read.
        path: PathBuf,
    },
}

/// How a VM is kept twice: `mode` to users.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FtMethod {
    /// By replay, and by checkpoints once it is known that replay does not work for this VM.
    #[default]
    Auto,
    /// By replay, come what may.
    Replay,
    /// By checkpoints.
    Checkpoint,
}

impl FtMethod {
    /// Every method there is.
    pub const ALL: [FtMethod; 3] = [FtMethod::Auto, FtMethod::Replay, FtMethod::Checkpoint];

    /// Its name in options and JSON.
    pub fn name(self) -> &'static str {
        match self {
            FtMethod::Auto => "auto",
            FtMethod::Replay => "replay",
            FtMethod::Checkpoint => "checkpoint",
        }
    }
}

/// When an output may leave the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckMode {
    /// As soon as the backup holds the log that leads to it.
    #[default]
    Received,
    /// Once the backup has executed that log and computed the same output.
    Verified,
}

impl AckMode {
    /// Its name in options and JSON.
    pub fn name(self) -> &'static str {
        match self {
            AckMode::Received => "received",
            AckMode::Verified => "verified",
        }
    }
}

/// The pair's times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FtTimings {
    /// Milliseconds from one heartbeat to the next.
    pub heartbeat_ms: u64,
    /// Milliseconds of silence after which the peer counts as lost.
    pub timeout_ms: u64,
    /// Milliseconds a primary tries to reach its backup.
    pub connect_timeout_ms: u64,
    /// Milliseconds the backup may be behind before the primary slows down.
    pub max_lag_ms: u64,
    /// Milliseconds from one checkpoint to the next while no output waits for one.
    pub checkpoint_ms: u64,
}

impl Default for FtTimings {
    fn default() -> Self {
        FtTimings {
            heartbeat_ms: 50,
            timeout_ms: 500,
            connect_timeout_ms: 5_000,
            max_lag_ms: 100,
            checkpoint_ms: 25,
        }
    }
}

impl FtConfig {
    /// Bytes of log buffer unless the user says otherwise.
    pub const LOG_BUFFER_DEFAULT: u64 = 64 << 20;
    /// Moments between digests of the device state unless the user says otherwise.
    pub const DIGEST_EVERY_DEFAULT: u64 = 10_000;

    /// What `--ft` and `ch-remote ft-enable` take, for help texts.
    pub const SYNTAX: &'static str = "role=primary,peer=<host:port>,arbiter=file:<absolute \
        path>|etcd:<url>|etcd:[<url>,<url>]|none[,arbiter_ca=<file>][,arbiter_cert=<file>]\
        [,arbiter_key=<file>][,arbiter_prefix=/ft][,standby=<host:port>]…[,reprotect=on]\
        [,listen=<address:port>][,mode=auto|replay|checkpoint][,checkpoint_ms=25]\
        [,ack=received|verified][,heartbeat_ms=50][,timeout_ms=500]\
        [,connect_timeout_ms=5000][,max_lag_ms=100][,log_buffer=64M][,digest_every=10000]\
        [,join_bandwidth=<bytes a second>][,compression=off|lz4][,udp_port=<port>] | \
        role=backup,listen=<address:port>[,arbiter=…][,log_buffer=64M]\
        [,udp_port=<port>] | record=<file>[,log_buffer=64M][,digest_every=10000] | replay=<file>";

    /// A configuration of `mode` with every default.
    pub fn of(mode: FtMode) -> Self {
        FtConfig {
            mode,
            method: FtMethod::default(),
            ack: AckMode::default(),
            arbiter: None,
            timings: FtTimings::default(),
            log_buffer: Self::LOG_BUFFER_DEFAULT,
            standbys: Vec::new(),
            reprotect: true,
            join_bandwidth: None,
            compression: Compression::Off,
            digest_every: Self::DIGEST_EVERY_DEFAULT,
            udp_port: None,
        }
    }

    /// Reads the `key=value,…` grammar.
    ///
    /// # Errors
    /// A sentence for everything that is missing, unreadable or contradictory.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        FtFields::parse(text)?.try_into()
    }

    /// The grammar that [`FtConfig::parse`] reads back as the same configuration.
    pub fn to_options(&self) -> String {
        FtFields::from(self.clone()).to_options()
    }

    /// Where this process waits as a standby, if it does.
    pub fn listen(&self) -> Option<SocketAddr> {
        match &self.mode {
            FtMode::Primary { listen, .. } => *listen,
            FtMode::Backup { listen } => Some(*listen),
            FtMode::Record { .. } | FtMode::Replay { .. } => None,
        }
    }

    /// Whether the VM is of no use unless its guest can be replayed.
    pub fn needs_replay(&self) -> bool {
        match self.mode {
            FtMode::Primary { .. } => self.method == FtMethod::Replay,
            FtMode::Record { .. } | FtMode::Replay { .. } => true,
            FtMode::Backup { .. } => false,
        }
    }

    /// Whether this is a VM of its own whose run somebody else depends on or replays: a primary or
    /// a recording. A backup and a replay have no will of their own.
    pub fn is_source(&self) -> bool {
        match self.mode {
            FtMode::Primary { .. } | FtMode::Record { .. } => true,
            FtMode::Backup { .. } | FtMode::Replay { .. } => false,
        }
    }
}

/// `HOST:PORT` of a backup; the host may be a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// A name, an IPv4 address, or an IPv6 address without its brackets.
    pub host: String,
    /// The TCP port, never 0.
    pub port: u16,
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PeerAddress { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl FromStr for PeerAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "HOST:PORT, such as backup.example:7000 or [fd00::2]:7000,";
        let (host, port) = text.rsplit_once(':').ok_or(EXPECTED)?;
        let port = port.parse::<u16>().map_err(|_| EXPECTED)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => {
                let inner = inner.strip_suffix(']').ok_or(EXPECTED)?;
                inner.parse::<std::net::Ipv6Addr>().map_err(|_| EXPECTED)?;
                inner
            }
            None => host,
        };
        let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let readable = text.starts_with('[') || (!host.is_empty() && host.chars().all(named));
        if port == 0 || !readable {
            return Err(EXPECTED);
        }
        Ok(PeerAddress { host: host.to_owned(), port })
    }
}

impl fmt::Display for AckMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AckMode::Received => "received",
            AckMode::Verified => "verified",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_a_name_or_an_address_with_a_port() {
        for text in ["backup:7000", "10.0.0.2:1", "host-2.example.org:65535", "[fd00::2]:7000"] {
            assert_eq!(text.parse::<PeerAddress>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_peer_is_refused() {
        for text in [
            "",
            "backup",
            ":7000",
            "backup:",
            "backup:0",
            "backup:65536",
            "a b:1",
            "::1:70",
            "[x]:1",
        ] {
            assert!(text.parse::<PeerAddress>().is_err(), "{text}");
        }
    }
}
