//! A VM whose log is a file: recorded into one, or replayed from one.
//!
//! Owns what the shell does with chunks and outputs in both cases.

use std::path::Path;

use ft::recorder::Noted;
use ft::{
    Assumptions, Chunk, DigestMode, EndReason, Output, Prologue, Settings, Trail,
    prologue::LogStart,
};
use hypervisor::Cpuid;
use serde_json::json;
use xxhash_rust::xxh3::xxh3_64;

use super::console::Console;
use super::protection::Protection;
use super::vm::Running;
use super::{Awaits, Outcome, Shell};
use crate::config::{ConsoleConfig, ConsoleMode, FtConfig, VmConfig, apply_overrides};
use crate::engine::{JoinKind, Message};
use crate::error::Error;
use crate::identity::{build_id, random_id};
use crate::logfile::{LogReader, LogWriter};

/// Chunks of a log file handed to the engine ahead of what it has executed.
const CHUNKS_AHEAD: u64 = 16;

/// A log file that is followed.
pub(super) struct ReplayedLog {
    reader: LogReader,
    serial: Console,
    /// Chunks handed to the engine.
    sent: u64,
    executed: u64,
    moment: u64,
    outputs: Trail,
    at_end: bool,
}

/// What a log of this VM says about itself.
///
/// # Errors
/// The configuration cannot be written as JSON.
pub(super) fn prologue(
    config: &VmConfig,
    cpuid: &Cpuid,
    digest_mode: DigestMode,
    settings: Settings,
) -> Result<Prologue, Error> {
    let encoded = |error: &dyn std::fmt::Display| Error::State(error.to_string());
    let mut config = config.clone();
    // How the VM is protected is no part of what the guest is.
    config.ft = None;
    let machine = serde_json::to_vec(&config).map_err(|error| encoded(&error))?;
    let cpuid = serde_json::to_vec(cpuid).map_err(|error| encoded(&error))?;
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
/// The other side's build is another, or its description cannot be read.
pub(super) fn described(prologue: &Prologue) -> Result<(VmConfig, Cpuid), Error> {
    let mine = Assumptions::new(&build_id(), xxh3_64(&prologue.cpuid));
    prologue.check(&mine).map_err(|mismatch| Error::Refused(mismatch.to_string()))?;
    let config = VmConfig::from_json(&prologue.machine)?;
    let cpuid =
        serde_json::from_slice(&prologue.cpuid).map_err(|error| Error::State(error.to_string()))?;
    Ok((config, cpuid))
}

impl Shell {
    pub(super) fn begin_recording(&mut self, ft: &FtConfig, path: &Path) -> Result<(), Error> {
        let (Some(config), Some(running)) = (&self.config, &self.running) else {
            return Err(Error::Refused("there is no VM to record".into()));
        };
        let settings = Settings::default();
        let prologue = prologue(config, &running.cpuid, DigestMode::EveryMoment, settings)?;
        self.protection = Protection::Recording(LogWriter::create(path, &prologue)?);
        self.send(Message::Record(JoinKind::File, ft.digest_every));
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
        let (config, cpuid) = described(reader.prologue())?;
        let config = apply_overrides(config, &self.invocation.overrides)?;
        let nothing = ConsoleConfig { mode: ConsoleMode::Null, ..config.serial.clone() };
        let serial = self.invocation.overrides.serial.clone().unwrap_or(nothing);
        let running = Running::follow(&config, &cpuid, self.poller())?;
        self.running = Some(running);
        self.config = Some(config);
        self.booted = true;
        self.protection = Protection::Replaying(Box::new(ReplayedLog {
            reader,
            serial: Console::open(&serial)?,
            sent: 0,
            executed: 0,
            moment: 0,
            outputs: Trail::default(),
            at_end: false,
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
                    let batch = chunk.decode().map_err(|error| log.reader.broken(&error))?;
                    running.engine.send(Message::Log(batch));
                }
                None => log.at_end = true,
            }
        }
        if log.at_end && log.executed == log.sent {
            let text = format!(
                "the log ends without an end, as after a crash or on a full disk ({} bytes of an \
                 unfinished frame); up to moment {} the replay was equal",
                log.reader.torn_bytes(),
                log.moment
            );
            self.outcome = Some(Outcome::Badly(text));
        }
        Ok(())
    }

    pub(super) fn on_replayed(&mut self, moment: u64, outputs: Trail) -> Result<(), Error> {
        if let Protection::Replaying(log) = &mut self.protection {
            log.executed += 1;
            log.moment = moment;
            log.outputs = outputs;
        }
        self.feed_replay()
    }

    pub(super) fn on_replay_end(&mut self, reason: EndReason) {
        let Protection::Replaying(log) = &mut self.protection else { return };
        let bytes = log.reader.prologue().machine.len();
        debug_assert!(bytes > 0);
        println!(
            "replayed to moment {} ({reason:?}): registers equal at every moment, {} outputs, \
             device state and memory equal; {} deltas with {} pages",
            self.statistics.moment,
            log.outputs.count,
            self.statistics.deltas,
            self.statistics.delta_pages,
        );
        self.outcome = Some(Outcome::Well);
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
