//! `ft-log` against small logs: whole, torn, damaged, and files that are none.

use std::path::{Path, PathBuf};

use ft::prologue::LogStart;
use ft::record::REGISTERS;
use ft::{
    Assumptions, BlockOp, DigestMode, EndReason, Input, Output, PAGE_SIZE, Page, Prologue,
    Recorder, Settings,
};
use tempfile::TempDir;

use super::{LogWriter, tool};

fn prologue(build: &str) -> Prologue {
    Prologue {
        assumptions: Assumptions::new(build, 7),
        vm_id: [1; 16],
        generation: 0,
        start: LogStart::Delta,
        digest_mode: DigestMode::Registers,
        settings: Settings::default(),
        arbiter: String::new(),
        machine: b"{}".to_vec(),
        cpuid: Vec::new(),
    }
}

fn exit(log: &mut Recorder, moment: u64, rip: u64) {
    let mut registers = [3; REGISTERS];
    registers[16] = rip;
    log.register_digest(moment, 0);
    log.registers(moment, &registers);
}

/// A first state at moment 1, some moments, a delta at 5, an end at 6. `byte` is what differs.
fn small_log(path: &Path, byte: u8, end: bool) {
    let mut log = Recorder::new(0, DigestMode::Registers);
    log.pages(0, [(0, Page::Zero), (1, Page::from_bytes(&[1; PAGE_SIZE]))]);
    log.delta(1, vec![1], Some(vec![2])).unwrap();
    let mut chunks = log.cut(1);
    for moment in 2..=4 {
        exit(&mut log, moment, 0x1000 + moment);
        log.input(moment, &Input::TimeRead { now_ns: moment * 1_000_000_000 }).unwrap();
        log.input(moment, &Input::Tick { now_ns: moment * 1_000_000_000 }).unwrap();
    }
    log.input(4, &Input::Packet { device: 1, bytes: vec![byte; 60] }).unwrap();
    log.output(&Output::Block { device: 0, token: 1, op: BlockOp::Flush });
    chunks.extend(log.cut(4));
    log.pages(4, [(1, Page::from_bytes(&[2; PAGE_SIZE]))]);
    log.delta(5, vec![1], None).unwrap();
    exit(&mut log, 6, 0x2000);
    log.state_digest(6, 1, Some(2));
    if end {
        log.end(6, EndReason::PowerOff);
    }
    chunks.extend(log.cut(6));
    let mut writer = LogWriter::create(path, &prologue("build-1")).unwrap();
    for chunk in &chunks {
        writer.append(chunk).unwrap();
    }
    writer.finish().unwrap();
}

/// A folder with a whole log in it.
fn with_log() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    small_log(&path, 0xaa, true);
    (folder, path)
}

/// Runs the tool; its exit code, what it printed, and its complaint.
fn run(words: &[&str], files: &[&Path]) -> (u8, String, String) {
    let words = ["ft-log"].iter().chain(words).map(Into::into);
    let files = files.iter().map(|file| file.as_os_str().to_owned());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = tool::run(words.chain(files), &mut out, &mut err);
    (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn a_dump_has_a_line_a_record_and_tells_registers_by_what_changed() {
    let (_folder, path) = with_log();
    let (code, text, _) = run(&["dump"], &[&path]);
    assert_eq!(code, 0);
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), 2 + 3 * 3 + 1 + 2 + 3, "{text}");
    assert!(lines[0].contains("pages         2 pages, 1 of them zero, 0x0 to 0x1000"), "{text}");
    assert!(lines[2].contains("rax 3") && lines[2].contains("rip 1002"), "{text}");
    assert_eq!(lines[5], "         3  registers     rip 1003");
    assert_eq!(lines[6], "         3  time-read     3.000000000 s");
    assert!(lines[11].contains("packet        device 1, 60 bytes: aaaa"), "{text}");
    assert!(lines[16].ends_with("end           the guest powered itself off or was shut down"));
}

#[test]
fn a_dump_can_be_cut_to_some_moments_and_widened() {
    let (_folder, path) = with_log();
    let (_, text, _) = run(&["dump", "--from", "3", "--to", "3"], &[&path]);
    assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 3, "{text}");
    let (_, text, _) = run(&["dump", "--from", "2", "--to", "2", "--full"], &[&path]);
    assert!(text.contains("rip 0000000000001002"), "{text}");
    let (_, text, _) = run(&["dump", "--full", "--to", "1"], &[&path]);
    assert!(text.contains("0x0 (zero)") && text.contains("0x1000\n"), "{text}");
}

#[test]
fn a_summary_counts_moments_deltas_and_bytes_by_kind() {
    let (_folder, path) = with_log();
    let (code, text, _) = run(&["summary", "--json"], &[&path]);
    assert_eq!(code, 0);
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (field, value) in [
        ("first_moment", 1_u64),
        ("last_moment", 6),
        ("moments", 5),
        ("duration_ns", 2_000_000_000),
        ("deltas", 1),
        ("delta_pages", 1),
        ("start_pages", 2),
        ("outputs", 1),
        ("chunks", 3),
        ("torn_bytes", 0),
        ("bytes", std::fs::metadata(&path).unwrap().len()),
    ] {
        assert_eq!(summary[field], value, "{field} of {text}");
    }
    assert_eq!(summary["records"]["tick"]["count"], 3);
    assert_eq!(summary["end"], "power-off");
    let kinds = summary["records"].as_object().unwrap();
    let bytes: u64 = kinds.values().map(|kind| kind["bytes"].as_u64().unwrap()).sum();
    let framing = summary["framing_bytes"].as_u64().unwrap();
    assert!(framing >= 3 * 64 && bytes + framing < summary["bytes"].as_u64().unwrap(), "{text}");
    let (code, text, _) = run(&["summary"], &[&path]);
    assert!(code == 0 && text.contains("moments 1 to 6: 5"), "{text}");
    assert!(text.contains("deltas: 1 with 1 pages"), "{text}");
}

#[test]
fn verifying_a_whole_log_says_where_and_why_it_ends() {
    let (folder, path) = with_log();
    let (code, text, _) = run(&["verify"], &[&path]);
    assert!(code == 0 && text.contains("up to moment 6 are whole; the end: the guest"), "{text}");
    let endless = folder.path().join("endless");
    small_log(&endless, 0, false);
    let (code, text, _) = run(&["verify"], &[&endless]);
    assert!(code == 1 && text.contains("the log stops without an end"), "{text}");
}

#[test]
fn a_torn_tail_is_told_with_the_byte_where_it_begins_wherever_it_was_cut() {
    let (folder, path) = with_log();
    let bytes = std::fs::read(&path).unwrap();
    let torn = folder.path().join("torn");
    let mut last_whole = 0;
    for length in (1..bytes.len()).rev().step_by(7) {
        std::fs::write(&torn, &bytes[..length]).unwrap();
        let (code, text, err) = run(&["verify"], &[&torn]);
        if code == 2 {
            // Inside the prologue: there is no log yet.
            assert!(err.contains("ends inside its first frame"), "{err}");
            continue;
        }
        assert_eq!(code, 1, "{text}{err}");
        if let Some((_, place)) = text.split_once("at byte ") {
            last_whole = place.split_once(' ').unwrap().0.parse::<usize>().unwrap();
            assert!(last_whole < length && length < bytes.len(), "{text}");
        }
    }
    assert!(last_whole > 0, "no cut was inside a chunk");
}

#[test]
fn any_damaged_byte_is_found() {
    let (folder, path) = with_log();
    let bytes = std::fs::read(&path).unwrap();
    let damaged = folder.path().join("damaged");
    for place in (0..bytes.len()).step_by(11) {
        let mut bytes = bytes.clone();
        bytes[place] ^= 0x40;
        std::fs::write(&damaged, &bytes).unwrap();
        for words in [&["verify"][..], &["summary"], &["dump"]] {
            let (code, text, err) = run(words, &[&damaged]);
            assert_ne!(code, 0, "byte {place} is wrong and {words:?} says: {text}");
            assert!(!err.contains("panicked"), "{err}");
        }
    }
}

#[test]
fn comparing_names_the_first_record_that_differs() {
    let (folder, path) = with_log();
    let other = folder.path().join("other");
    small_log(&other, 0xbb, true);
    let (code, text, _) = run(&["compare"], &[&path, &path]);
    assert!(code == 0 && text.contains("all 17 records are equal"), "{text}");
    let (code, text, _) = run(&["compare"], &[&path, &other]);
    assert_eq!(code, 1);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].contains("the first 11 records are equal, up to moment 4"), "{text}");
    assert!(lines[1].starts_with("< moment 4: packet") && lines[1].contains("aaaa"), "{text}");
    assert!(lines[2].starts_with("> moment 4: packet") && lines[2].contains("bbbb"), "{text}");
}

#[test]
fn comparing_with_a_shorter_log_says_that_it_has_no_more() {
    let (folder, path) = with_log();
    let shorter = folder.path().join("shorter");
    small_log(&shorter, 0xaa, false);
    let (code, text, _) = run(&["compare"], &[&path, &shorter]);
    assert!(code == 1 && text.ends_with("> the log has no more records\n"), "{text}");
}

#[test]
fn files_that_are_no_logs_get_a_sentence() {
    let (folder, path) = with_log();
    let missing = folder.path().join("missing");
    let garbage = folder.path().join("garbage");
    std::fs::write(&garbage, "not a log at all").unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "").unwrap();
    let other_version = folder.path().join("version");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4] = 99;
    std::fs::write(&other_version, &bytes).unwrap();
    for (file, expected) in [
        (&missing, "No such file"),
        (&garbage, "does not start with CHFT"),
        (&empty, "it is empty"),
        (&other_version, "format version 99"),
        (&folder.path().to_owned(), "it is no regular file"),
    ] {
        for command in ["dump", "summary", "verify"] {
            let (code, _, err) = run(&[command], &[file]);
            assert!(code == 2 && err.contains(expected), "{command} {}: {err}", file.display());
            assert_eq!(err.lines().count(), 1, "{err}");
        }
        let (code, _, err) = run(&["compare"], &[&path, file]);
        assert!(code == 2 && err.contains(expected), "{err}");
    }
    let (code, _, err) = run(&["explode"], &[]);
    assert!(code == 2 && err.contains("explode"), "{err}");
    let (code, text, _) = run(&["--help"], &[]);
    assert!(code == 0 && text.contains("compare"), "{text}");
}
