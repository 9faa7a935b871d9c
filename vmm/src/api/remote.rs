//! The command line of `ch-remote`: Cloud Hypervisor's commands, and ours for the protection. Each
//! is one request; what comes back is printed as readable JSON.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ArgAction::{Append, SetTrue};
use clap::{Arg, ArgMatches, Command};
use thiserror::Error;

use super::client::{ClientError, request};
use super::watch::{Watch, watch};
use crate::config::{
    ConfigError, DiskOverride, FtConfig, HostOverrides, NetOverride, ReceiveMigration, RngConfig,
    SendMigration, console_from_options,
};

/// Why a command failed.
#[derive(Debug, Error)]
pub enum RemoteError {
    /// The command line cannot be read; clap's own text.
    #[error("{0}")]
    Usage(clap::Error),
    /// The configuration given with the command is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The configuration's file cannot be read.
    #[error("The VM configuration {name} cannot be read: {source}.")]
    ReadConfig {
        /// The file, or `on standard input`.
        name: String,
        /// The host's reason.
        source: io::Error,
    },
    /// The VMM refused or is not there.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Commands without arguments: name, HTTP method, path, help.
const PLAIN: &[(&str, &str, &str, &str)] = &[
    ("ping", "GET", "vmm.ping", "Ask the VMM who it is"),
    ("shutdown-vmm", "PUT", "vmm.shutdown", "End the VM, then the VMM"),
    ("boot", "PUT", "vm.boot", "Boot the VM that was created"),
    ("info", "GET", "vm.info", "The VM's configuration and state"),
    ("counters", "GET", "vm.counters", "What the VM's devices counted"),
    ("pause", "PUT", "vm.pause", "Stop the VM where it is"),
    ("resume", "PUT", "vm.resume", "Let a paused VM go on"),
    ("shutdown", "PUT", "vm.shutdown", "End the VM and keep its configuration"),
    ("reboot", "PUT", "vm.reboot", "Reset the VM"),
    ("power-button", "PUT", "vm.power-button", "Press the VM's power button"),
    ("delete", "PUT", "vm.delete", "End the VM and forget its configuration"),
    ("ft-disable", "PUT", "vm.ft-disable", "Let the VM run on without its backup"),
    ("ft-failover", "PUT", "vm.ft-failover", "Hand the VM over to its backup and end here"),
    ("ft-info", "GET", "vm.ft-info", "How the VM's protection is"),
    ("ft-metrics", "GET", "vm.ft-metrics", "The same as Prometheus reads it"),
];

/// Cloud Hypervisor's commands that are not there yet.
const NOT_YET: &[&str] = &[
    "add-device",
    "add-disk",
    "add-fs",
    "add-generic-vhost-user",
    "add-net",
    "add-pmem",
    "add-user-device",
    "add-vdpa",
    "add-vsock",
    "coredump",
    "nmi",
    "remove-device",
    "resize",
    "resize-disk",
    "resize-zone",
    "restore",
    "snapshot",
];

/// The command line's grammar.
pub fn command() -> Command {
    let socket = Arg::new("api-socket")
        .long("api-socket")
        .value_name("PATH")
        .help("The Unix socket of the VMM's API")
        .value_parser(clap::value_parser!(PathBuf))
        .required(true);
    let create = Command::new("create")
        .about("Create a VM from a JSON configuration")
        .arg(Arg::new("path").default_value("-").help("The configuration's file; - is stdin"));
    let enable = Command::new("ft-enable")
        .about("Protect the VM that runs")
        .arg(Arg::new("config").required(true).help(FtConfig::SYNTAX));
    let standbys = Command::new("ft-standbys")
        .about("Say which hosts are joined when the VM has no backup")
        .arg(
            Arg::new("standby").num_args(0..).value_name("HOST:PORT").help("All of them, in turn"),
        );
    let move_backup = Command::new("ft-move-backup")
        .about("Let the backup go and join another standby instead")
        .arg(Arg::new("peer").required(true).value_name("HOST:PORT").help("Where it waits"));
    let not_yet = NOT_YET.iter().map(|name| {
        Command::new(*name)
            .hide(true)
            .disable_help_flag(true)
            .arg(Arg::new("rest").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true))
    });
    Command::new("ch-remote")
        .about("Control a running VMM through its API socket")
        .version(concat!("v", env!("CARGO_PKG_VERSION")))
        .subcommand_required(true)
        .arg(socket)
        .subcommand(create)
        .subcommands(migration_commands())
        .subcommand(enable)
        .subcommand(watch_command())
        .subcommand(standbys)
        .subcommand(move_backup)
        .subcommands(PLAIN.iter().map(|(name, _, _, help)| Command::new(*name).about(*help)))
        .subcommands(not_yet)
}

/// Carries out one command line (`arguments` begins with the program's name); what is to be
/// printed.
///
/// # Errors
/// Everything that can go wrong, as a sentence.
pub fn run<I, T>(arguments: I) -> Result<String, RemoteError>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if !error.use_stderr() => return Ok(error.to_string()),
        Err(error) => return Err(RemoteError::Usage(error)),
    };
    let Some(socket) = matches.get_one::<PathBuf>("api-socket") else {
        unreachable!("clap refuses a command line without --api-socket");
    };
    let answer = match matches.subcommand() {
        Some(("create", arguments)) => {
            let config = read_config(text_of(arguments, "path"))?;
            request(socket, "PUT", "vm.create", Some(&config))?
        }
        Some(("send-migration", arguments)) => {
            let body = send_migration(arguments)?;
            request(socket, "PUT", "vm.send-migration", Some(&body))?
        }
        Some(("receive-migration", arguments)) => {
            let body = receive_migration(arguments)?;
            request(socket, "PUT", "vm.receive-migration", Some(&body))?
        }
        Some(("ft-watch", arguments)) => {
            watch(&what_to_watch(socket, arguments))?;
            None
        }
        Some(("ft-standbys", arguments)) => {
            let list = arguments.get_many::<String>("standby").into_iter().flatten();
            let body = serde_json::json!({ "standbys": list.collect::<Vec<_>>() });
            request(socket, "PUT", "vm.ft-standbys", Some(&body.to_string()))?
        }
        Some(("ft-move-backup", arguments)) => {
            let body = serde_json::json!({ "peer": text_of(arguments, "peer") });
            request(socket, "PUT", "vm.ft-move-backup", Some(&body.to_string()))?
        }
        Some(("ft-enable", arguments)) => ft_enable(socket, text_of(arguments, "config"))?,
        Some((name, _)) => plain(socket, name)?,
        None => unreachable!("clap refuses a command line without a command"),
    };
    Ok(answer.map(|json| readable(&json)).unwrap_or_default())
}

fn migration_commands() -> [Command; 2] {
    let one = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("OPTIONS").num_args(1).help(help)
    };
    let several =
        |name: &'static str, help: &'static str| one(name, help).num_args(1..).action(Append);
    let send = Command::new("send-migration")
        .about("Move the VM to another VMM, and end this one")
        .arg(Arg::new("local").long("local").num_args(0).action(SetTrue).hide(true))
        .arg(Arg::new("destination").required(true).help(SendMigration::SYNTAX));
    let receive = Command::new("receive-migration")
        .about("Wait for a VM that moves here, until it runs here")
        .arg(Arg::new("receiver").required(true).help(ReceiveMigration::SYNTAX))
        .arg(several("disk", "id=<id>,path=<path>: this host's image for a disk of the VM"))
        .arg(several("net", "id=<id>,tap=<tap>: this host's tap for a network device of the VM"))
        .arg(one("rng", "src=<path>: this host's source of entropy"))
        .arg(one("serial", "Where the serial port's bytes go on this host"))
        .arg(one("console", "Where the console's bytes go on this host"));
    [send, receive]
}

fn send_migration(arguments: &ArgMatches) -> Result<String, ConfigError> {
    let text = text_of(arguments, "destination");
    match arguments.get_flag("local") {
        true => SendMigration::json_of_text(&format!("destination_url={text},local=on")),
        false => SendMigration::json_of_text(text),
    }
}

fn receive_migration(arguments: &ArgMatches) -> Result<String, ConfigError> {
    let many = |name| arguments.get_many::<String>(name).unwrap_or_default();
    let given = |name| arguments.get_one::<String>(name);
    let console = |name: &'static str| {
        given(name).map(|text| console_from_options(&format!("--{name}"), text)).transpose()
    };
    let overrides = HostOverrides {
        disks: many("disk").map(|text| DiskOverride::parse(text)).collect::<Result<_, _>>()?,
        net: many("net").map(|text| NetOverride::parse(text)).collect::<Result<_, _>>()?,
        rng: given("rng").map(|text| RngConfig::parse(text)).transpose()?,
        serial: console("serial")?,
        console: console("console")?,
    };
    ReceiveMigration::json_of_text(text_of(arguments, "receiver"), overrides)
}

fn watch_command() -> Command {
    let interval = Arg::new("interval-ms")
        .long("interval-ms")
        .value_name("N")
        .help("Milliseconds from one question to the next")
        .value_parser(clap::value_parser!(u64).range(100..=60_000))
        .default_value("1000");
    let once = Arg::new("once").long("once").num_args(0).help("Show it once and end");
    let other = Arg::new("other")
        .value_name("PATH")
        .value_parser(clap::value_parser!(PathBuf))
        .help("The API socket of the pair's other side, where this host can reach it");
    Command::new("ft-watch")
        .about("Watch the VM's protection until q is pressed")
        .args([interval, once, other])
}

fn what_to_watch(socket: &Path, arguments: &ArgMatches) -> Watch {
    let other = arguments.get_one::<PathBuf>("other").cloned();
    let interval_ms = arguments.get_one::<u64>("interval-ms").copied().unwrap_or(1000);
    Watch {
        sockets: std::iter::once(socket.to_owned()).chain(other).collect(),
        interval: Duration::from_millis(interval_ms),
        once: arguments.get_flag("once"),
    }
}

fn text_of<'a>(arguments: &'a ArgMatches, name: &str) -> &'a str {
    arguments.get_one::<String>(name).map(String::as_str).unwrap_or_default()
}

fn plain(socket: &Path, name: &str) -> Result<Option<String>, RemoteError> {
    match PLAIN.iter().find(|(command, ..)| *command == name) {
        Some((_, method, path, _)) => Ok(request(socket, method, path, None)?),
        None => Err(ConfigError::Contradiction(format!(
            "{name} is one of Cloud Hypervisor's commands but not there yet in this VMM."
        ))
        .into()),
    }
}

fn ft_enable(socket: &Path, text: &str) -> Result<Option<String>, RemoteError> {
    let config = FtConfig::parse(text)?;
    let Ok(json) = serde_json::to_string(&config) else {
        unreachable!("a configuration that was parsed from text is JSON, too");
    };
    Ok(request(socket, "PUT", "vm.ft-enable", Some(&json))?)
}

fn read_config(path: &str) -> Result<String, RemoteError> {
    let mut text = String::new();
    let (name, read) = match path {
        "-" => ("on standard input".to_owned(), io::stdin().read_to_string(&mut text).map(|_| ())),
        path => (path.to_owned(), fs::read_to_string(path).map(|read| text = read)),
    };
    read.map_err(|source| RemoteError::ReadConfig { name, source })?;
    Ok(text)
}

/// JSON with indentation; anything else as it came.
fn readable(answer: &str) -> String {
    let value = serde_json::from_str::<serde_json::Value>(answer);
    match value.and_then(|value| serde_json::to_string_pretty(&value)) {
        Ok(json) => json + "\n",
        Err(_) => answer.to_owned(),
    }
}
