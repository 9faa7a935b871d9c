//! The machine's outside: taps, disks, consoles and the source of entropy, and what becomes of an
//! output once it may leave.
//!
//! Owns every back end. Never touches guest memory or a device model: whatever comes in is sent
//! to the engine as an input.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ft::{BlockOp, Input, Output};
use virtio_devices::backend::announcement::announcement;
use virtio_devices::backend::file::{DiskLock, FileDisk};
use virtio_devices::backend::tap::Tap;
use virtio_devices::backend::worker::DiskWorker;
use virtio_devices::backend::{BlockBackend, NetBackend};
use virtio_devices::{BlockKind, BlockRequest};

use super::console::{Console, RawTerminal};
use super::lifecycle::slot_name;
use super::poller::{Interest, Poller, Source};
use crate::api::VmCounters;
use crate::build::{Slot, slots};
use crate::config::{ConsoleMode, NetConfig, VmConfig};
use crate::engine::{EngineHandle, Message};
use crate::error::Error;
use crate::machine::status_byte;
use crate::replica::{Lease, LeasedDisk};
use crate::seccomp;

/// Packets read from one tap before the others have their turn.
const PACKETS_A_TURN: usize = 64;
/// Packets that may wait for the machine before the tap is read no further.
const PACKETS_WAITING_MOST: usize = 256;
/// Bytes that one request for entropy gets at most.
const ENTROPY_MOST: usize = 64 << 10;

/// The mask of a tap's address if none is given, as in Cloud Hypervisor.
const MASK_DEFAULT: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// One network device's outside.
struct Port {
    tap: Tap,
    mac: [u8; 6],
    /// Reading is suspended because the machine is behind.
    suspended: bool,
}

/// What the disks of a configuration look like, without taking them over yet.
///
/// # Errors
/// An image cannot be opened, or is there twice under two names.
pub fn disk_capacities(config: &VmConfig) -> Result<Vec<u64>, Error> {
    let mut images: BTreeMap<(u64, u64), (PathBuf, bool)> = BTreeMap::new();
    config
        .disks()
        .iter()
        .map(|disk| {
            let path = disk.path.clone().unwrap_or_default();
            let opened = FileDisk::open(&path, disk.readonly, false)?;
            if let Ok(file) = path.metadata() {
                let known = images.insert((file.dev(), file.ino()), (path.clone(), disk.readonly));
                if let Some((other, readonly)) = known
                    && !(readonly && disk.readonly)
                {
                    return Err(Error::Refused(format!(
                        "{} and {} are the same disk image: every disk needs its own, unless all \
                         of them are readonly=on",
                        other.display(),
                        path.display()
                    )));
                }
            }
            Ok(opened.capacity_sectors())
        })
        .collect()
}

/// One disk's outside.
struct OpenDisk {
    worker: DiskWorker,
    lock: DiskLock,
    /// See [`DiskLock::writes_outlive_their_process`]. Known from the start: storage that is away would
    /// not answer when it matters.
    writes_outlive: bool,
}

/// All back ends of one VM.
pub struct World {
    ports: BTreeMap<u16, Port>,
    disks: BTreeMap<u16, OpenDisk>,
    console: Option<(u16, Console)>,
    serial: Console,
    entropy: File,
    engine: EngineHandle,
    counts: BTreeMap<u16, BTreeMap<String, u64>>,
    _terminal: Option<RawTerminal>,
}

impl World {
    /// Opens everything `config` names.
    ///
    /// # Errors
    /// The first thing that cannot be opened, in a sentence.
    pub fn open(config: &VmConfig, engine: EngineHandle, lease: &Lease) -> Result<Self, Error> {
        let mut ports = BTreeMap::new();
        let mut disks = BTreeMap::new();
        let mut console = None;
        for (index, slot) in slots(config).into_iter().enumerate() {
            let index = index as u16;
            match slot {
                Slot::Console => console = Some((index, Console::open(&config.console)?)),
                Slot::Rng => {}
                Slot::Net(place) => {
                    ports.insert(index, open_port(&config.nets()[place])?);
                }
                Slot::Disk(place) => {
                    disks.insert(index, open_disk(config, place, index, engine.clone(), lease)?);
                }
            }
        }
        let entropy = open_entropy(&config.rng.src)?;
        let serial = Console::open(&config.serial)?;
        let tty = [config.serial.mode, config.console.mode].contains(&ConsoleMode::Tty);
        let terminal = tty.then(RawTerminal::enter).flatten();
        Ok(Self {
            ports,
            disks,
            console,
            serial,
            entropy,
            engine,
            counts: BTreeMap::new(),
            _terminal: terminal,
        })
    }

    /// Watches everything that can bring inputs. What piled up in the taps before is of another
    /// life and is dropped.
    ///
    /// # Errors
    /// A descriptor cannot be watched.
    pub fn watch(&mut self, poller: &Poller) -> Result<(), Error> {
        for (index, port) in &mut self.ports {
            while matches!(port.tap.receive(), Ok(Some(_))) {}
            poller.watch(port.tap.as_fd().as_raw_fd(), Source::Tap(*index), Interest::Read)?;
        }
        for (fd, source) in self.inputs() {
            // A plain file as standard input cannot be watched, and has no keys to give.
            if let Err(error) = poller.watch(fd, source, Interest::Read) {
                log::info!("standard input gives the guest no keys: {error}");
            }
        }
        Ok(())
    }

    /// Stops watching.
    pub fn forget(&self, poller: &Poller) {
        for port in self.ports.values() {
            poller.forget(port.tap.as_fd().as_raw_fd());
        }
        for (fd, _) in self.inputs() {
            poller.forget(fd);
        }
    }

    fn inputs(&self) -> Vec<(RawFd, Source)> {
        let serial = self.serial.input().map(|fd| (fd, Source::SerialInput));
        let console = self.console.as_ref().and_then(|(index, console)| {
            console.input().map(|fd| (fd, Source::ConsoleInput(*index)))
        });
        // One terminal has one reader.
        serial.or(console).into_iter().collect()
    }

    /// Reads packets of one tap and hands them to the machine.
    ///
    /// # Errors
    /// The tap cannot be watched any more.
    pub fn on_tap(&mut self, index: u16, poller: &Poller) -> Result<(), Error> {
        let Some(port) = self.ports.get_mut(&index) else { return Ok(()) };
        for _ in 0..PACKETS_A_TURN {
            if self.engine.packets_waiting() >= PACKETS_WAITING_MOST {
                port.suspended = true;
                poller.watch(
                    port.tap.as_fd().as_raw_fd(),
                    Source::Tap(index),
                    Interest::Nothing,
                )?;
                break;
            }
            match port.tap.receive() {
                Ok(Some(packet)) => {
                    let bytes = packet.to_vec();
                    let counts = self.counts.entry(index).or_default();
                    *counts.entry("rx_bytes".to_owned()).or_default() += bytes.len() as u64;
                    *counts.entry("rx_frames".to_owned()).or_default() += 1;
                    self.engine.send(Message::Input(Input::Packet { device: index, bytes }));
                }
                Ok(None) => break,
                Err(error) => {
                    log::warn!("a packet was lost: {error}");
                    break;
                }
            }
        }
        Ok(())
    }

    /// Reads suspended taps again, once the machine has caught up.
    ///
    /// # Errors
    /// A tap cannot be watched any more.
    pub fn resume_taps(&mut self, poller: &Poller) -> Result<(), Error> {
        if self.engine.packets_waiting() >= PACKETS_WAITING_MOST / 2 {
            return Ok(());
        }
        for (index, port) in &mut self.ports {
            if std::mem::take(&mut port.suspended) {
                poller.watch(port.tap.as_fd().as_raw_fd(), Source::Tap(*index), Interest::Read)?;
            }
        }
        Ok(())
    }

    /// Whether a tap waits for the machine to catch up.
    pub fn suspended(&self) -> bool {
        self.ports.values().any(|port| port.suspended)
    }

    /// Reads keys for the serial port or the console.
    pub fn on_keys(&mut self, source: Source, poller: &Poller) {
        let (keys, fd) = match (source, &mut self.console) {
            (Source::ConsoleInput(_), Some((_, console))) => (console.read(), console.input()),
            _ => (self.serial.read(), self.serial.input()),
        };
        match (keys, source) {
            (Some(bytes), Source::ConsoleInput(device)) => {
                self.engine.send(Message::Input(Input::Console { device, bytes }));
            }
            (Some(bytes), _) => self.engine.send(Message::Input(Input::Serial { bytes })),
            (None, _) => {
                if let Some(fd) = fd {
                    poller.forget(fd);
                }
            }
        }
    }

    /// Carries out one output.
    pub fn carry_out(&mut self, output: Output) {
        self.count_output(&output);
        match output {
            Output::Packet { device, bytes } => {
                if let Some(port) = self.ports.get_mut(&device)
                    && let Err(error) = port.tap.send(&bytes)
                {
                    log::debug!("a packet was not taken: {error}");
                }
            }
            Output::Block { device, token, op } => self.submit(device, token, op),
            Output::Console { bytes, .. } => {
                if let Some((_, console)) = &mut self.console {
                    console.write(&bytes);
                }
            }
            Output::Serial { bytes } => self.serial.write(&bytes),
            Output::Entropy { device, length } => self.answer_entropy(device, length),
            Output::NetOffloads { device, offloads } => {
                if let Some(port) = self.ports.get_mut(&device)
                    && let Err(error) = port.tap.set_offloads(offloads)
                {
                    log::warn!("offloads of a tap cannot be set: {error}");
                }
            }
            // The machine carries these out itself.
            Output::Reset | Output::PowerOff => {}
        }
    }

    fn count_output(&mut self, output: &Output) {
        match output {
            Output::Packet { device, bytes } => self.count(*device, "tx", bytes.len()),
            Output::Block { device, op, .. } => match op {
                BlockOp::Read { length, .. } => self.count(*device, "read", *length as usize),
                BlockOp::Write { data, .. } => self.count(*device, "write", data.len()),
                BlockOp::Flush => {}
            },
            Output::Console { .. }
            | Output::Serial { .. }
            | Output::Entropy { .. }
            | Output::NetOffloads { .. }
            | Output::Reset
            | Output::PowerOff => {}
        }
    }

    fn submit(&mut self, device: u16, token: u64, op: BlockOp) {
        let kind = match op {
            BlockOp::Read { sector, length } => BlockKind::Read { sector, length },
            BlockOp::Write { sector, data } => BlockKind::Write { sector, data },
            BlockOp::Flush => BlockKind::Flush,
        };
        if let Some(disk) = self.disks.get(&device)
            && let Err(error) = disk.worker.submit(BlockRequest { token, kind })
        {
            log::error!("a disk request is lost: {error}");
        }
    }

    fn answer_entropy(&mut self, device: u16, length: u32) {
        let mut bytes = vec![0; (length as usize).min(ENTROPY_MOST)];
        match self.entropy.read(&mut bytes) {
            Ok(count) if count > 0 => bytes.truncate(count),
            Ok(_) => return log::warn!("the source of entropy has run dry"),
            Err(error) => return log::warn!("the source of entropy cannot be read: {error}"),
        }
        self.engine.send(Message::Input(Input::Entropy { device, bytes }));
    }

    /// Takes the locks of all disks: from now on they are this VM's.
    ///
    /// # Errors
    /// The first disk that somebody else has locked.
    pub fn lock(&self) -> Result<(), Error> {
        self.disks.values().try_for_each(|disk| disk.lock.take()).map_err(Error::from)
    }

    /// Whether what another host has begun to write to these disks may take effect after the process
    /// that began it has ended.
    pub fn writes_outlive_their_process(&self) -> bool {
        self.disks.values().any(|disk| disk.writes_outlive)
    }

    /// Tells the network and the guest that this VM lives here now.
    pub fn announce(&mut self) {
        for (index, port) in &mut self.ports {
            if let Err(error) = port.tap.send(&announcement(port.mac)) {
                log::warn!("the guest's MAC cannot be announced: {error}");
            }
            self.engine.send(Message::Input(Input::Announce { device: *index }));
        }
    }

    /// What the devices counted, by name.
    pub fn counters(&self, config: &VmConfig) -> VmCounters {
        slots(config)
            .into_iter()
            .enumerate()
            .filter_map(|(index, slot)| {
                let counts = self.counts.get(&(index as u16))?;
                Some((slot_name(config, slot), counts.clone()))
            })
            .collect()
    }

    fn count(&mut self, device: u16, what: &str, bytes: usize) {
        let counts = self.counts.entry(device).or_default();
        *counts.entry(format!("{what}_bytes")).or_default() += bytes as u64;
        *counts.entry(format!("{what}_{}", unit(what))).or_default() += 1;
    }

    /// Waits until every disk request that was submitted has ended.
    pub fn drain(&mut self) {
        for disk in self.disks.values() {
            disk.worker.drain();
        }
    }
}

/// What Cloud Hypervisor calls the things that a counter counts.
fn unit(what: &str) -> &'static str {
    if what == "tx" { "frames" } else { "ops" }
}

/// What is wrong with it must be known now: a guest whose requests are never answered waits for
/// ever.
fn open_entropy(path: &Path) -> Result<File, Error> {
    let opened = File::open(path).and_then(|file| {
        let is_dir = file.metadata()?.is_dir();
        if is_dir { Err(std::io::ErrorKind::IsADirectory.into()) } else { Ok(file) }
    });
    opened.map_err(|source| Error::File {
        what: "The source of entropy (--rng src=) cannot be opened:",
        path: path.to_owned(),
        source,
    })
}

fn open_port(config: &NetConfig) -> Result<Port, Error> {
    let tap = Tap::open(config.tap.as_deref())?;
    if let Some(address) = config.ip {
        tap.set_address(address, config.mask.unwrap_or(MASK_DEFAULT))?;
    }
    tap.bring_up()?;
    Ok(Port { tap, mac: config.mac.map(|mac| mac.bytes()).unwrap_or_default(), suspended: false })
}

fn open_disk(
    config: &VmConfig,
    place: usize,
    device: u16,
    engine: EngineHandle,
    lease: &Lease,
) -> Result<OpenDisk, Error> {
    let disk = &config.disks()[place];
    let path = disk.path.clone().unwrap_or_default();
    let file = FileDisk::open(&path, disk.readonly, disk.direct)?;
    let lock = file.lock_handle()?;
    let writes_outlive = lock.writes_outlive_their_process();
    let leased = LeasedDisk::new(file, lease.clone());
    let begin = || seccomp::enter_or_warn(seccomp::Thread::Disk);
    let worker = DiskWorker::spawn(begin, leased, move |token, status, data| {
        let status = status_byte(status);
        engine.send(Message::Input(Input::BlockDone { device, token, status, data }));
    })?;
    Ok(OpenDisk { worker, lock, writes_outlive })
}
