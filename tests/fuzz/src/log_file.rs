//! A log file, as `ft-log` and a replay read it.
//!
//! As with the channel, the bytes are tried as they are and as the description of a file whose
//! checksums are right.

use std::ffi::OsString;
use std::path::Path;

use arbitrary::{Arbitrary, Unstructured};
use ft::record::PAGE_SIZE;
use ft::recorder::DigestMode;
use ft::{Assumptions, FrameWriter, Kind, Prologue, Settings, prologue::LogStart};
use vmm::logfile::{LogReader, tool};

use crate::scratch::with_file;

/// A log with an honest prologue and a chain of frames that holds.
#[derive(Arbitrary, Debug)]
struct Log {
    machine: Vec<u8>,
    chunks: Vec<ChunkText>,
    /// Bytes cut off the end.
    cut: u8,
}

/// A chunk: its head is right, its records are anything.
#[derive(Arbitrary, Debug)]
struct ChunkText {
    moments: u8,
    outputs: u8,
    records: Vec<RecordText>,
}

#[derive(Arbitrary, Debug)]
enum RecordText {
    Raw(Vec<u8>),
    /// Pages are too long for a fuzzer to come upon.
    Page {
        number: u8,
        byte: u8,
    },
}

pub(crate) fn run(data: &[u8]) {
    with_file(data, read);
    if let Ok(log) = Log::arbitrary(&mut Unstructured::new(data)) {
        let mut bytes = written(&log);
        bytes.truncate(bytes.len().saturating_sub(usize::from(log.cut)));
        with_file(&bytes, read);
    }
}

fn written(log: &Log) -> Vec<u8> {
    let mut writer = FrameWriter::new();
    let prologue = Prologue {
        assumptions: Assumptions::new("a build", 1),
        vm_id: [1; 16],
        generation: 1,
        start: LogStart::Delta,
        digest_mode: DigestMode::Registers,
        settings: Settings::default(),
        arbiter: String::new(),
        machine: log.machine.clone(),
        cpuid: Vec::new(),
    };
    let mut bytes = writer.frame(Kind::Prologue, 1, 0, &prologue.to_body().expect("it is short"));
    let mut moment = 0;
    for (number, chunk) in (1..).zip(&log.chunks) {
        let mut records = Vec::new();
        for record in &chunk.records {
            match record {
                RecordText::Raw(bytes) => records.extend_from_slice(bytes),
                // Kind 18 with one page that has bytes.
                RecordText::Page { number, byte } => {
                    records.extend([18, 1, 1, number & 0x7f]);
                    records.extend([*byte; PAGE_SIZE]);
                }
            }
        }
        let chunk = ft::Chunk {
            number,
            start_moment: moment,
            end_moment: moment + u64::from(chunk.moments),
            outputs: ft::Trail { count: chunk.outputs.into(), digest: 0 },
            records,
        };
        bytes.extend(writer.frame(Kind::Append, 1, moment, &chunk.to_body()));
        moment = chunk.end_moment;
    }
    bytes
}

/// Everything that reads a log file reads it.
fn read(path: &Path) {
    let Ok(mut log) = LogReader::open(path) else { return tool(&["verify"], path) };
    let prologue = log.prologue();
    let _ = vmm::description::Description::decode(&prologue.machine, &prologue.cpuid);
    while let Ok(Some(chunk)) = log.next_chunk() {
        let entries = log.entries(&chunk);
        let batch = chunk.decode();
        if let (Ok(batch), Ok(entries)) = (&batch, &entries) {
            assert_eq!(batch.records.len(), entries.len());
        }
    }
    tool(&["verify"], path);
    tool(&["summary"], path);
    tool(&["summary", "--json"], path);
    tool(&["dump", "--full"], path);
}

/// `ft-log` on the file, which gets its exit code and a text for it, whatever the file holds.
fn tool(words: &[&str], path: &Path) {
    let mut arguments: Vec<OsString> = vec!["ft-log".into()];
    arguments.extend(words.iter().map(OsString::from));
    arguments.push(path.into());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = tool::run(arguments, &mut out, &mut err);
    assert!(code <= 2);
    assert!(!out.is_empty() || !err.is_empty(), "not a word");
}
