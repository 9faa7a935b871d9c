//! A VM whose log is a file: recorded into one, or replayed from one.
//!
//! Owns what the shell does with chunks and outputs in both cases.

use std::io::{IsTerminal, Write, stderr, stdout};
use std::path::Path;
use std::time::{Duration, Instant};

use ft::recorder::Noted;
use ft::{
    Assumptions, Chunk, DigestMode, EndReason, KeptPages, Output, Prologue, Settings, Trail,
    prologue::LogStart,
};
use hypervisor::Kvm;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::console::Console;
use super::protection::Protection;
use super::vm::{Running, host_cpuid};
use super::{Awaits, Outcome, Shell};
use crate::api::ApiError;
use crate::cli::DebugUndo;
use crate::config::{ConsoleConfig, ConsoleMode, FtConfig, VmConfig, apply_overrides};
use crate::description::{Description, Unreplayable};
use crate::engine::{JoinKind, Message, Origin, RecordPlan};
use crate::error::Error;
use crate::identity::{build_id, random_id};
use crate::logfile::{LogReader, LogWriter, end_text, seconds};

/// Chunks of a log file handed to the engine ahead of what it has executed.
const CHUNKS_AHEAD: u64 = 16;
/// How often people who watch a replay are told how far it is.
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// A log file that is followed.
pub(super) struct ReplayedLog {
    reader: LogReader,
    serial: Console,
    /// Chunks handed to the engine.
    sent: u64,
    executed: u64,
    at_end: bool,
    progress: Progress,
}

/// How far a replay is.
struct Progress {
    begun: Instant,
    shown: Instant,
    /// Bytes of the file, for a share of it.
    file_bytes: u64,
    moment: u64,
    /// Machine time at the first and at the last chunk, ns.
    times_ns: Option<(u64, u64)>,
    outputs: Trail,
}

impl ReplayedLog {
    /// The log's file.
    pub(super) fn path(&self) -> &Path {
        self.reader.path()
    }
}

impl Progress {
    fn new(file_bytes: u64) -> Self {
        let now = Instant::now();
        Self {
            begun: now,
            shown: now,
            file_bytes,
            moment: 0,
            times_ns: None,
            outputs: Trail::default(),
        }
    }

    /// Notes where the replay is; tells people who watch.
    fn advance(&mut self, moment: u64, now_ns: u64, outputs: Trail, read_bytes: u64) {
        self.moment = moment;
        self.outputs = outputs;
        if now_ns > 0 {
            let first = self.times_ns.map_or(now_ns, |(first, _)| first);
            self.times_ns = Some((first, now_ns));
        }
        if self.shown.elapsed() >= SHOW_EVERY && stderr().is_terminal() {
            self.shown = Instant::now();
            let percent = read_bytes * 100 / self.file_bytes.max(1);
            let time = seconds(self.machine_ns());
            // A terminal that went away is no reason to stop.
            let _ = write!(
                stderr(),
                "\rreplay: moment {moment}, {time} of machine time, {percent} % of the log "
            );
        }
    }

    fn machine_ns(&self) -> u64 {
        self.times_ns.map_or(0, |(first, last)| last.saturating_sub(first))
    }
}

/// What a log of this VM says about itself.
///
/// # Errors
/// The configuration cannot be written as JSON.
pub(super) fn prologue(
    config: &VmConfig,
    running: &Running,
    digest_mode: DigestMode,
    settings: Settings,
    (ft, unreplayable): (Option<&FtConfig>, Option<&Unreplayable>),
) -> Result<Prologue, Error> {
    let description = Description {
        config: config.clone(),
        cpuid: running.cpuid.clone(),
        disk_sectors: running.disk_sectors.clone(),
        protection: ft.cloned(),
        unreplayable: unreplayable.cloned(),
    };
    let (machine, cpuid) = description.encode()?;
    Ok(Prologue {
        assumptions: Assumptions::new(&build_id(), xxh3_64(&cpuid)),
        vm_id: random_id()?,
        generation: 0,
        start: LogStart::Delta,
        digest_mode,
        settings,
        arbiter: String::new(),
        machine,
        cpuid,
    })
}

/// The VM that a prologue describes.
///
/// # Errors
/// The other side's build is another, or its description cannot be read or built.
pub(super) fn described(prologue: &Prologue) -> Result<Description, Error> {
    let mine = Assumptions::new(&build_id(), xxh3_64(&prologue.cpuid));
    prologue.check(&mine).map_err(|mismatch| Error::Refused(mismatch.to_string()))?;
    Description::decode(&prologue.machine, &prologue.cpuid)
}

impl Shell {
    pub(super) fn begin_recording(&mut self, ft: &FtConfig, path: &Path) -> Result<(), Error> {
        let (Some(config), Some(running)) = (&self.config, &self.running) else {
            return Err(Error::Refused("there is no VM to record".into()));
        };
        if let Some(Unreplayable { why, by_nature: true }) = &self.succession.unreplayable
            && self.invocation.debug_undo.is_empty()
        {
            return Err(Error::Refused(format!(
                "a recording of this VM could not be replayed: {why}"
            )));
        }
        let settings = Settings::default();
        let prologue = prologue(config, running, DigestMode::Registers, settings, (None, None))?;
        self.protection = Protection::Recording(LogWriter::create(path, &prologue)?);
        self.statistics.begin(Instant::now());
        let plan = RecordPlan {
            kind: JoinKind::File,
            digest_every: ft.digest_every,
            checkpoint_ns: None,
            bytes_per_second: None,
        };
        self.send(Message::Record(plan, KeptPages::default()));
        self.statistics.happened(format!("Recording into {}", path.display()));
        self.events.report("ft", "recording", &json!({ "log": path }));
        Ok(())
    }

    /// Writes log. A log that cannot be written any more ends; the VM runs on.
    pub(super) fn write_log(&mut self, chunks: &[Chunk]) {
        let Protection::Recording(log) = &mut self.protection else { return };
        let written = chunks.iter().try_for_each(|chunk| log.append(chunk));
        let ended = chunks.last().is_some_and(ends);
        match written {
            Err(error) => {
                log::error!("{error}");
                self.statistics.happened(format!("Recording ended: {error}"));
                self.events.report("ft", "recording-failed", &json!({ "why": error.to_string() }));
                self.protection = Protection::None;
                self.send(Message::StopRecording(None));
                // Whoever asked for the log's beginning or end must not wait for ever.
                let failed = Err(ApiError::failed(format!("The recording ended early: {error}")));
                self.answer(Awaits::Protected, &failed);
                self.answer(Awaits::Unprotected, &failed);
                if self.invocation.ft.is_some() {
                    self.failure = Some(format!("the recording ended early: {error}"));
                }
            }
            Ok(()) if ended => {
                self.leave_protection();
                self.statistics.happened("Recording ended");
                self.answer(Awaits::Unprotected, &Ok(()));
            }
            Ok(()) => {}
        }
    }

    pub(super) fn begin_replay(&mut self, path: &Path) -> Result<(), Error> {
        let reader = LogReader::open(path)?;
        let Description { config, mut cpuid, disk_sectors, .. } =
            described(reader.prologue()).map_err(|error| reader.broken(&error))?;
        let undo = &self.invocation.debug_undo;
        if undo.contains(&DebugUndo::ApicId) {
            // Without the treatment a guest gets what its host has.
            cpuid = host_cpuid(&Kvm::open()?, undo)?;
        }
        let config = apply_overrides(config, &self.invocation.overrides)?;
        let nothing = ConsoleConfig { mode: ConsoleMode::Null, ..config.serial.clone() };
        let serial = self.invocation.overrides.serial.clone().unwrap_or(nothing);
        let running =
            Running::follow(&config, &cpuid, disk_sectors, (Origin::Log, None), self.poller())?;
        self.running = Some(running);
        self.config = Some(config);
        self.booted = true;
        self.protection = Protection::Replaying(Box::new(ReplayedLog {
            reader,
            serial: Console::open(&serial)?,
            sent: 0,
            executed: 0,
            at_end: false,
            progress: Progress::new(std::fs::metadata(path).map_or(0, |file| file.len())),
        }));
        self.feed_replay()
    }

    /// Hands the engine chunks, some ahead of what it has executed.
    fn feed_replay(&mut self) -> Result<(), Error> {
        let (Protection::Replaying(log), Some(running)) = (&mut self.protection, &self.running)
        else {
            return Ok(());
        };
        while !log.at_end && log.sent < log.executed + CHUNKS_AHEAD {
            match log.reader.next_chunk()? {
                Some(chunk) => {
                    log.sent += 1;
                    self.statistics.read(&chunk, Instant::now());
                    let batch = chunk.decode().map_err(|error| log.reader.broken(&error))?;
                    running.engine.send(Message::Log(batch));
                }
                None => {
                    log.at_end = true;
                    running.engine.send(Message::Drain);
                }
            }
        }
        Ok(())
    }

    /// Everything in the file was replayed. A log that ends on purpose has said so before.
    pub(super) fn on_replay_drained(&mut self) {
        let Protection::Replaying(log) = &self.protection else { return };
        let text = format!(
            "the log ends without an end, as after a crash or on a full disk ({} bytes of an \
             unfinished frame); up to moment {} the replay was equal",
            log.reader.torn_bytes(),
            log.progress.moment
        );
        self.outcome.get_or_insert(Outcome::Badly(text));
    }

    pub(super) fn on_replayed(
        &mut self,
        moment: u64,
        now_ns: u64,
        outputs: Trail,
    ) -> Result<(), Error> {
        if let Protection::Replaying(log) = &mut self.protection {
            log.executed += 1;
            log.progress.advance(moment, now_ns, outputs, log.reader.whole_bytes());
        }
        self.feed_replay()
    }

    pub(super) fn on_replay_end(&mut self, reason: EndReason) {
        let Protection::Replaying(log) = &mut self.protection else { return };
        let Progress { begun, moment, outputs, .. } = log.progress;
        let took_ms = begun.elapsed().as_millis();
        let text = format!(
            "replayed up to moment {moment}, where {}: every comparison was equal\n\
             {} of machine time replayed in {}.{:03} s; {} bytes of log; {} deltas with {} pages; \
             {} outputs\n",
            end_text(reason),
            seconds(log.progress.machine_ns()),
            took_ms / 1000,
            took_ms % 1000,
            log.reader.whole_bytes(),
            self.statistics.deltas,
            self.statistics.delta_pages,
            outputs.count,
        );
        self.outcome = Some(Outcome::Well);
        // That the replay was equal is in the exit code, whoever reads this or not.
        if let Err(error) = stdout().write_all(text.as_bytes()) {
            log::warn!("the end of the replay cannot be told: {error}");
        }
    }

    /// Only the serial port's bytes of a replay are shown, and only where the user asked.
    pub(super) fn show_replayed(&mut self, outputs: Vec<(Noted, Output)>) {
        let Protection::Replaying(log) = &mut self.protection else { return };
        for (_, output) in outputs {
            if let Output::Serial { bytes } = output {
                log.serial.write(&bytes);
            }
        }
    }
}

fn ends(chunk: &Chunk) -> bool {
    let mut decoder = ft::Decoder::new(chunk.start_moment, &chunk.records);
    while let Ok(Some((_, record))) = decoder.next_record() {
        if matches!(record, ft::Record::End { .. }) {
            return true;
        }
    }
    false
}
