//! The prologue: every assumption that the two ends of a log share, stated before the first event.
//!
//! It is the first frame of every log file and of every channel. What the machine's configuration
//! and CPUID blobs mean belongs to their owners.

use alloc::{format, string::String, string::ToString, vec::Vec};
use serde::{Deserialize, Serialize};

use crate::error::Mismatch;
use crate::frame::FORMAT_VERSION;
use crate::recorder::DigestMode;
use crate::settings::Settings;

/// Which exits count as moments. To be raised whenever that rule changes.
pub const MOMENT_SEMANTICS: u16 = 1;
/// Bytes that the machine's configuration, or its CPUID, may have.
pub const BLOB_BYTES_MAX: usize = 1 << 20;
/// No pair gets here; a prologue that claims to is not believed.
const GENERATION_MAX: u64 = 1 << 48;
/// Bytes of the build and arbiter strings.
const STRING_BYTES_MAX: usize = 4096;

/// What must be equal on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assumptions {
    /// Version of frames, records and messages: [`FORMAT_VERSION`].
    pub format_version: u16,
    /// Which exits count as moments: [`MOMENT_SEMANTICS`].
    pub moment_semantics: u16,
    /// The build of the VMM.
    pub build: String,
    /// Hash of the CPUID that the guest sees on this host.
    pub cpuid_hash: u64,
}

impl Assumptions {
    /// This build's, for a guest that sees the CPUID with this hash.
    #[must_use]
    pub fn new(build: &str, cpuid_hash: u64) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            moment_semantics: MOMENT_SEMANTICS,
            build: build.to_string(),
            cpuid_hash,
        }
    }
}

/// How the machine looks where the log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogStart {
    /// As built from `machine`; the log starts at moment 0.
    Built,
    /// As the log's first delta says.
    Delta,
}

/// What a log says about itself before anything else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prologue {
    /// What must be equal on both sides.
    pub assumptions: Assumptions,
    /// Names the virtual machine, whatever host it is on.
    pub vm_id: [u8; 16],
    /// The generation of the pair, raised by every takeover.
    pub generation: u64,
    /// How the machine looks where the log begins.
    pub start: LogStart,
    /// How often the log holds register digests.
    pub digest_mode: DigestMode,
    /// Timers and limits of the pair.
    pub settings: Settings,
    /// Where the arbiter is, as the user gave it.
    pub arbiter: String,
    /// The machine's configuration, opaque here.
    pub machine: Vec<u8>,
    /// The CPUID that the guest sees, opaque here.
    pub cpuid: Vec<u8>,
}

impl Prologue {
    /// The body of a prologue frame.
    ///
    /// # Errors
    ///
    /// When a part is larger than it may be.
    pub fn to_body(&self) -> Result<Vec<u8>, Mismatch> {
        self.check_sizes()?;
        postcard::to_allocvec(self).map_err(|error| unreadable(&error))
    }

    /// Reads a prologue frame's body. Checks sizes and settings, not yet the assumptions.
    ///
    /// # Errors
    ///
    /// When the body is not a prologue or its settings cannot work.
    pub fn from_body(body: &[u8]) -> Result<Self, Mismatch> {
        let (prologue, rest): (Self, _) =
            postcard::take_from_bytes(body).map_err(|error| unreadable(&error))?;
        if !rest.is_empty() {
            return Err(Mismatch::Unreadable { why: String::from("it is too long") });
        }
        prologue.check_sizes()?;
        prologue.settings.check().map_err(|why| Mismatch::Settings { why })?;
        Ok(prologue)
    }

    /// Whether this side can follow the log.
    ///
    /// # Errors
    ///
    /// The first assumption that is not shared.
    pub fn check(&self, mine: &Assumptions) -> Result<(), Mismatch> {
        let theirs = &self.assumptions;
        if theirs.format_version != mine.format_version {
            let (theirs, mine) = (theirs.format_version, mine.format_version);
            return Err(Mismatch::Format { theirs, mine });
        }
        if theirs.moment_semantics != mine.moment_semantics {
            let (theirs, mine) = (theirs.moment_semantics, mine.moment_semantics);
            return Err(Mismatch::Moments { theirs, mine });
        }
        if theirs.build != mine.build {
            let (theirs, mine) = (theirs.build.clone(), mine.build.clone());
            return Err(Mismatch::Build { theirs, mine });
        }
        if theirs.cpuid_hash != mine.cpuid_hash {
            let (theirs, mine) = (theirs.cpuid_hash, mine.cpuid_hash);
            return Err(Mismatch::Cpuid { theirs, mine });
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), Mismatch> {
        if self.generation > GENERATION_MAX {
            let why = format!("generation {} is impossible", self.generation);
            return Err(Mismatch::Unreadable { why });
        }
        let parts = [
            ("the machine's configuration", self.machine.len(), BLOB_BYTES_MAX),
            ("the CPUID", self.cpuid.len(), BLOB_BYTES_MAX),
            ("the arbiter", self.arbiter.len(), STRING_BYTES_MAX),
            ("the build", self.assumptions.build.len(), STRING_BYTES_MAX),
        ];
        match parts.into_iter().find(|(_, length, max)| length > max) {
            Some((what, length, max)) => Err(Mismatch::Unreadable {
                why: format!("{what} has {length} bytes, more than the {max} allowed"),
            }),
            None => Ok(()),
        }
    }
}

fn unreadable(error: &postcard::Error) -> Mismatch {
    Mismatch::Unreadable { why: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    fn prologue() -> Prologue {
        Prologue {
            assumptions: Assumptions::new("1.0", 5),
            vm_id: [1; 16],
            generation: 1,
            start: LogStart::Built,
            digest_mode: DigestMode::EveryMoment,
            settings: Settings::default(),
            arbiter: String::from("file:/shared"),
            machine: vec![1; 1000],
            cpuid: vec![2; 100],
        }
    }

    #[test]
    fn a_prologue_comes_back_as_it_was() {
        let body = prologue().to_body().unwrap();
        assert_eq!(Prologue::from_body(&body), Ok(prologue()));
        for cut in 0..body.len() {
            assert!(Prologue::from_body(&body[..cut]).is_err());
        }
    }

    #[test]
    fn every_assumption_that_is_not_shared_is_named() {
        let mine = Assumptions::new("1.0", 5);
        assert_eq!(prologue().check(&mine), Ok(()));
        let cases = [
            (Assumptions { format_version: 9, ..mine.clone() }, "reads 9"),
            (Assumptions { moment_semantics: 9, ..mine.clone() }, "by rule 9"),
            (Assumptions { build: String::from("2.0"), ..mine.clone() }, "build 2.0"),
            (Assumptions { cpuid_hash: 9, ..mine }, "0000000000000009 here"),
        ];
        for (mine, part) in cases {
            let message = prologue().check(&mine).unwrap_err().to_string();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn what_is_too_large_or_cannot_work_is_refused() {
        let large = Prologue { machine: vec![0; BLOB_BYTES_MAX + 1], ..prologue() };
        let message = large.to_body().unwrap_err().to_string();
        assert!(message.contains("configuration has 1048577 bytes"), "{message}");
        let absurd = Prologue { generation: u64::MAX, ..prologue() };
        assert!(absurd.to_body().is_err());
        let settings = Settings { lease_ms: 10_000, ..Settings::default() };
        let body = Prologue { settings, ..prologue() }.to_body().unwrap();
        assert!(matches!(Prologue::from_body(&body), Err(Mismatch::Settings { .. })));
    }
}
