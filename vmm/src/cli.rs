//! The command line of `cloud-hypervisor`: Cloud Hypervisor's own grammar for the options there
//! are, `--ft` beside them, and a sentence for those of its options that are not there yet.
//!
//! It turns words into an [`Invocation`] and does nothing with it: it opens no file and starts
//! nothing.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use thiserror::Error;

use crate::api::ApiSocket;
use crate::config::{
    ConfigError, ConsoleConfig, CpusConfig, DiskConfig, DiskOverride, FtConfig, FtMode,
    HostOverrides, MemoryConfig, NetConfig, NetOverride, PayloadConfig, RngConfig, VmConfig,
    console_from_options,
};
use crate::words::usage_sentence;

/// What a command line asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invocation {
    /// The VM to create and boot at once, validated but not yet
    /// [completed](VmConfig::complete). Its `ft` equals [`Invocation::ft`]. Absent for a VMM that
    /// waits for its API, for a backup, and for a replay that takes the VM from its log.
    pub vm: Option<VmConfig>,
    /// What of this host stands in for the devices of a VM that comes from elsewhere: from a
    /// primary or from a log. Empty if there is a `vm`.
    pub overrides: HostOverrides,
    /// What `--ft` says.
    pub ft: Option<FtConfig>,
    /// Where the API is served.
    pub api_socket: Option<ApiSocket>,
    /// Where events are reported, one JSON object a line.
    pub event_monitor: Option<EventMonitor>,
    /// Where log messages go; standard error if absent.
    pub log_file: Option<PathBuf>,
    /// How many `-v` there are: 0 warnings, 1 information, 2 debugging, more everything.
    pub verbosity: u8,
    /// What becomes of system calls the VMM does not need.
    pub seccomp: Seccomp,
    /// Whether the VMM stays when its guest powers off.
    pub no_shutdown: bool,
    /// Treatments of non-determinism left out, for the tests that guard them.
    pub debug_undo: Vec<DebugUndo>,
}

/// `--event-monitor path=FILE` or `fd=N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventMonitor {
    /// A file to append to.
    Path(PathBuf),
    /// A descriptor that was handed to this process.
    Fd(RawFd),
}

/// `--seccomp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Seccomp {
    /// They end the VMM.
    #[default]
    Enforce,
    /// They are logged by the host's kernel and carried out.
    Log,
    /// They are carried out.
    Off,
}

/// `--debug-undo`: a treatment of non-determinism to leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugUndo {
    /// Leave `rdtsc` in the guest's kernel.
    TscRewrite,
    /// Leave the host's APIC id in the guest's CPUID.
    ApicId,
}

/// What to do about a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Go to work.
    Run(Box<Invocation>),
    /// Print this (help, version) and end well.
    Print(String),
}

/// Why a command line cannot be followed.
#[derive(Debug, Error)]
pub enum CliError {
    /// It cannot be read.
    #[error("{}", usage_sentence(.0))]
    Usage(clap::Error),
    /// What it asks for cannot be carried out.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Reads a command line (`arguments` begins with the program's name).
///
/// # Errors
/// A sentence for everything that cannot be read or done.
pub fn parse<I, T>(arguments: I) -> Result<Parsed, CliError>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    match command().try_get_matches_from(arguments) {
        Ok(matches) => Ok(Parsed::Run(Box::new(read_invocation(&matches)?))),
        Err(error) if !error.use_stderr() => Ok(Parsed::Print(error.to_string())),
        Err(error) => Err(CliError::Usage(error)),
    }
}

/// Cloud Hypervisor's options that are not there yet.
const NOT_YET: &[&str] = &[
    "balloon",
    "dbus-object-path",
    "dbus-service-name",
    "dbus-system-bus",
    "debug-console",
    "device",
    "fs",
    "fw-cfg-config",
    "gdb",
    "generic-vhost-user",
    "host-data",
    "igvm",
    "ivshmem",
    "landlock",
    "landlock-rules",
    "memory-zone",
    "numa",
    "pci-segment",
    "platform",
    "pmem",
    "pvmemcontrol",
    "pvpanic",
    "rate-limit-group",
    "restore",
    "sgx-epc",
    "tpm",
    "user-device",
    "vdpa",
    "vsock",
    "watchdog",
];

/// Options that say what the guest is, and so belong to a VM of one's own.
const VM_OPTIONS: &[&str] = &["kernel", "firmware", "initramfs", "cmdline", "cpus", "memory"];
/// Options about devices: of one's own VM, or overrides for another's.
const DEVICE_OPTIONS: &[&str] = &["disk", "net", "rng", "serial", "console"];

fn one(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help).num_args(1)
}

fn several(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    one(name, value, help).num_args(1..).action(ArgAction::Append)
}

/// The command line's grammar.
pub fn command() -> Command {
    const CONSOLES: &str = "off, null, tty or file=<path>";
    let vm = [
        one("kernel", "PATH", "Linux kernel to boot: an ELF vmlinux or a bzImage"),
        one("initramfs", "PATH", "Initial RAM file system"),
        one("cmdline", "TEXT", "The kernel's command line"),
        one("firmware", "PATH", "Not there yet").hide(true),
        one("cpus", "OPTIONS", CpusConfig::SYNTAX).default_value("boot=1"),
        one("memory", "OPTIONS", MemoryConfig::SYNTAX).default_value("size=512M"),
        several("disk", "OPTIONS", DiskConfig::SYNTAX),
        several("net", "OPTIONS", NetConfig::SYNTAX),
        one("rng", "OPTIONS", RngConfig::SYNTAX).default_value("src=/dev/urandom"),
        one("serial", "MODE", CONSOLES).default_value("null"),
        one("console", "MODE", CONSOLES).default_value("tty"),
    ];
    let vmm = [
        one("api-socket", "PATH", "Unix socket to serve the API at: path=<path> or fd=<number>"),
        one("event-monitor", "PLACE", "Where to report events: path=<path> or fd=<number>"),
        one("log-file", "PATH", "Where log messages go; standard error if not given"),
        Arg::new("v").short('v').action(ArgAction::Count).help("More log messages; repeat it"),
        one("seccomp", "MODE", "Forbid system calls that are not needed")
            .value_parser(["true", "false", "log"])
            .default_value("true"),
        Arg::new("no-shutdown")
            .long("no-shutdown")
            .action(ArgAction::SetTrue)
            .help("Stay when the guest powers off"),
        one("debug-undo", "TREATMENT", "Leave out a treatment of non-determinism")
            .value_parser(["tsc-rewrite", "apic-id"])
            .action(ArgAction::Append)
            .hide(true),
    ];
    let not_yet = NOT_YET
        .iter()
        .map(|name| several(name, "OPTIONS", "Not there yet").num_args(0..).hide(true));
    Command::new("cloud-hypervisor")
        .about("Run a virtual machine that outlives its host")
        .version(concat!("v", env!("CARGO_PKG_VERSION")))
        .next_help_heading("The VM")
        .args(vm)
        .next_help_heading("Protection")
        .arg(one("ft", "OPTIONS", FtConfig::SYNTAX))
        .next_help_heading("The VMM")
        .args(vmm)
        .args(not_yet)
}

fn read_invocation(matches: &ArgMatches) -> Result<Invocation, ConfigError> {
    refuse_missing_options(matches)?;
    let ft = text(matches, "ft").map(FtConfig::parse).transpose()?;
    let api_socket = text(matches, "api-socket").map(read_api_socket).transpose()?;
    let mut invocation = Invocation {
        event_monitor: text(matches, "event-monitor").map(read_event_monitor).transpose()?,
        log_file: text(matches, "log-file").map(PathBuf::from),
        verbosity: matches.get_count("v"),
        seccomp: match text(matches, "seccomp") {
            Some("false") => Seccomp::Off,
            Some("log") => Seccomp::Log,
            Some(_) | None => Seccomp::Enforce,
        },
        no_shutdown: matches.get_flag("no-shutdown"),
        debug_undo: texts(matches, "debug-undo").map(read_debug_undo).collect(),
        ..Invocation::default()
    };
    if takes_vm_from_elsewhere(ft.as_ref()) {
        refuse_vm_options(matches)?;
        invocation.overrides = read_overrides(matches)?;
    } else if VM_OPTIONS.iter().chain(DEVICE_OPTIONS).any(|name| is_given(matches, name)) {
        let vm = VmConfig { ft: ft.clone(), ..read_vm(matches)? };
        vm.validate()?;
        invocation.vm = Some(vm);
    } else if ft.is_some() {
        return Err(ConfigError::Contradiction(
            "--ft needs a VM to protect or record: give its --kernel, or start without --ft and \
             protect a VM that runs with ch-remote ft-enable."
                .into(),
        ));
    } else if api_socket.is_none() {
        return Err(ConfigError::Contradiction(
            "There is nothing to do: give a VM to run (--kernel PATH …) or a socket to wait at \
             (--api-socket PATH). --help lists the options."
                .into(),
        ));
    }
    Ok(Invocation { ft, api_socket, ..invocation })
}

/// Whether the VM's configuration comes from a primary or from a log.
fn takes_vm_from_elsewhere(ft: Option<&FtConfig>) -> bool {
    match ft.map(|ft| &ft.mode) {
        Some(FtMode::Backup { .. } | FtMode::Replay { .. }) => true,
        Some(FtMode::Primary { .. } | FtMode::Record { .. }) | None => false,
    }
}

fn refuse_missing_options(matches: &ArgMatches) -> Result<(), ConfigError> {
    let off = |name| name == "debug-console" && texts(matches, name).all(|t| t.starts_with("off"));
    match NOT_YET.iter().find(|name| is_given(matches, name) && !off(name)) {
        None => Ok(()),
        Some(name) => Err(ConfigError::Contradiction(format!(
            "--{name} is one of Cloud Hypervisor's options but not there yet in this VMM; \
             docs/COMPATIBILITY.md says what is."
        ))),
    }
}

fn refuse_vm_options(matches: &ArgMatches) -> Result<(), ConfigError> {
    match VM_OPTIONS.iter().find(|name| is_given(matches, name)) {
        None => Ok(()),
        Some(name) => Err(ConfigError::Contradiction(format!(
            "--{name} contradicts --ft: a backup gets its VM from its primary, and a replay from \
             its log. Leave --{name} out; only what belongs to this host \
             may be said (--disk id=…,path=… --net id=…,tap=… --rng --serial --console)."
        ))),
    }
}

fn read_vm(matches: &ArgMatches) -> Result<VmConfig, ConfigError> {
    let path = |name| text(matches, name).map(PathBuf::from);
    let list = |name| is_given(matches, name).then(|| texts(matches, name));
    Ok(VmConfig {
        cpus: CpusConfig::parse(text(matches, "cpus").unwrap_or_default())?,
        memory: MemoryConfig::parse(text(matches, "memory").unwrap_or_default())?,
        payload: PayloadConfig {
            firmware: path("firmware"),
            kernel: path("kernel"),
            cmdline: text(matches, "cmdline").map(str::to_owned),
            initramfs: path("initramfs"),
        },
        disks: list("disk").map(|disks| disks.map(DiskConfig::parse).collect()).transpose()?,
        net: list("net").map(|nets| nets.map(NetConfig::parse).collect()).transpose()?,
        rng: RngConfig::parse(text(matches, "rng").unwrap_or_default())?,
        serial: read_console(matches, "serial")?,
        console: read_console(matches, "console")?,
        ft: None,
    })
}

fn read_overrides(matches: &ArgMatches) -> Result<HostOverrides, ConfigError> {
    let given = |name| text(matches, name).filter(|_| is_given(matches, name));
    let console = |name| given(name).map(|_| read_console(matches, name)).transpose();
    let overrides = HostOverrides {
        disks: texts(matches, "disk").map(DiskOverride::parse).collect::<Result<_, _>>()?,
        net: texts(matches, "net").map(NetOverride::parse).collect::<Result<_, _>>()?,
        rng: given("rng").map(RngConfig::parse).transpose()?,
        serial: console("serial")?,
        console: console("console")?,
    };
    overrides.validate()?;
    Ok(overrides)
}

fn read_console(matches: &ArgMatches, name: &str) -> Result<ConsoleConfig, ConfigError> {
    console_from_options(&format!("--{name}"), text(matches, name).unwrap_or_default())
}

fn read_api_socket(text: &str) -> Result<ApiSocket, ConfigError> {
    Ok(match read_place("--api-socket", text)? {
        Place::Path(path) => ApiSocket::Path(path),
        Place::Fd(fd) => ApiSocket::Fd(fd),
    })
}

fn read_event_monitor(text: &str) -> Result<EventMonitor, ConfigError> {
    Ok(match read_place("--event-monitor", text)? {
        Place::Path(path) => EventMonitor::Path(path),
        Place::Fd(fd) => EventMonitor::Fd(fd),
    })
}

enum Place {
    Path(PathBuf),
    Fd(RawFd),
}

/// `PATH`, `path=PATH` or `fd=N`.
fn read_place(option: &str, text: &str) -> Result<Place, ConfigError> {
    let bad = |key: &str, value: &str, expected: &str| ConfigError::BadValue {
        option: option.to_owned(),
        key: key.to_owned(),
        value: value.to_owned(),
        expected: expected.to_owned(),
    };
    if let Some(number) = text.strip_prefix("fd=") {
        let fd = number.parse().ok().filter(|fd: &RawFd| *fd > 2);
        return fd
            .map(Place::Fd)
            .ok_or_else(|| bad("fd", number, "the number of an open descriptor above 2"));
    }
    let path = text.strip_prefix("path=").unwrap_or(text);
    if path.is_empty() {
        return Err(bad("path", path, "the path of a file"));
    }
    Ok(Place::Path(PathBuf::from(path)))
}

fn read_debug_undo(text: &str) -> DebugUndo {
    match text {
        "tsc-rewrite" => DebugUndo::TscRewrite,
        "apic-id" => DebugUndo::ApicId,
        other => unreachable!("clap lets no other treatment than the two through: {other}"),
    }
}

fn is_given(matches: &ArgMatches, name: &str) -> bool {
    matches.value_source(name) == Some(ValueSource::CommandLine)
}

fn text<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches.get_one::<String>(name).map(String::as_str)
}

fn texts<'a>(matches: &'a ArgMatches, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    matches.get_many::<String>(name).unwrap_or_default().map(String::as_str)
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
