//! What the services of the guest say and understand. Numbers are little-endian.
//!
//! | port | service | the client sends | the guest answers |
//! |---|---|---|---|
//! | 7001 | journal | id `u64`, length `u32`, that many bytes; as often as it likes | id `u64`, count `u64`, history `u64`, once the record is on the disk |
//! | 7002 | echo | anything | the same |
//! | 7003 | source | first offset `u64`, length `u64` (all ones: for ever) | that part of the [pattern](super::pattern) |
//! | 7004 | sink | the pattern from offset 0 | the count `u64` of good bytes so far, each [`SINK_STRIDE`] and at the end; all ones at the first bad byte |
//! | 7005 | compute | rounds `u64` | duration in ns `u64` by the guest's clock, checksum `u64` |
//! | 7006 | control | a line of JSON: an [`Ask`] | a line of JSON: an [`Answer`] |
//! | 7007 | history | nothing | count `u64`, that many [`Record`]s, from the disk |

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Stores each request on the disk before it answers.
pub const JOURNAL_PORT: u16 = 7001;
/// Sends back what it gets.
pub const ECHO_PORT: u16 = 7002;
/// Sends the pattern.
pub const SOURCE_PORT: u16 = 7003;
/// Takes and checks the pattern.
pub const SINK_PORT: u16 = 7004;
/// Computes.
pub const COMPUTE_PORT: u16 = 7005;
/// Does the rest.
pub const CONTROL_PORT: u16 = 7006;
/// Tells what the journal has on the disk.
pub const HISTORY_PORT: u16 = 7007;

/// The greatest payload of a request to the journal, in bytes.
pub const PAYLOAD_SIZE_MAX: u32 = 64 << 10;
/// The sink counts aloud each time it has got this many bytes more.
pub const SINK_STRIDE: u64 = 64 << 10;
/// In place of a length: without end. In place of a count: not the pattern.
pub const ALL_ONES: u64 = u64::MAX;

/// Begins the line on the console when all services are up.
pub const READY_MARK: &str = "FT-GUEST: ready";
/// Begins the line on the console when the work asked for by `ft.run` is done; the checksum follows.
pub const DONE_MARK: &str = "FT-GUEST: done";
/// Begins a line on the console that tells what failed.
pub const FAILED_MARK: &str = "FT-GUEST: failed";

/// A stored request, as it is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The client's name for the request.
    pub id: u64,
    /// XXH3 of the payload.
    pub checksum: u64,
    /// XXH3 of the history before, the id and the checksum.
    pub history: u64,
}

impl Record {
    /// Size on the disk and on the wire, in bytes.
    pub const SIZE: usize = 24;

    /// The record that follows `history`.
    pub fn next(history: u64, id: u64, payload: &[u8]) -> Self {
        let checksum = xxh3_64(payload);
        Self { id, checksum, history: chain(history, id, checksum) }
    }

    /// Whether it is what follows `history`.
    pub fn follows(&self, history: u64) -> bool {
        self.history == chain(history, self.id, self.checksum)
    }

    /// The records in the file of a journal. It has room for more, which is blank.
    pub fn read_all(content: &[u8]) -> Vec<Self> {
        let (records, _) = content.as_chunks::<{ Self::SIZE }>();
        let written = records.iter().take_while(|bytes| **bytes != [0; Self::SIZE]);
        written.map(|bytes| Self::from_bytes(*bytes)).collect()
    }

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        words([self.id, self.checksum, self.history])
    }

    /// The record that has these bytes.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [id, checksum, history] = numbers(bytes);
        Self { id, checksum, history }
    }
}

fn chain(history: u64, id: u64, checksum: u64) -> u64 {
    xxh3_64(&words::<3, 24>([history, id, checksum]))
}

/// The journal's answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The request.
    pub id: u64,
    /// How many records the journal has, with this one.
    pub count: u64,
    /// The history, with this record.
    pub history: u64,
}

impl Acknowledgement {
    /// Size on the wire, in bytes.
    pub const SIZE: usize = 24;

    /// Its bytes.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        words([self.id, self.count, self.history])
    }

    /// The answer that has these bytes.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [id, count, history] = numbers(bytes);
        Self { id, count, history }
    }
}

/// Numbers as bytes; `SIZE` is eight times `COUNT`.
pub fn words<const COUNT: usize, const SIZE: usize>(numbers: [u64; COUNT]) -> [u8; SIZE] {
    const { assert!(SIZE == COUNT * 8) };
    let mut bytes = [0; SIZE];
    for (word, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        word.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// Bytes as numbers; `SIZE` is eight times `COUNT`.
pub fn numbers<const COUNT: usize, const SIZE: usize>(bytes: [u8; SIZE]) -> [u64; COUNT] {
    const { assert!(SIZE == COUNT * 8) };
    let mut numbers = [0; COUNT];
    for (word, number) in bytes.as_chunks::<8>().0.iter().zip(&mut numbers) {
        *number = u64::from_le_bytes(*word);
    }
    numbers
}

/// Reads one number.
pub fn read_number(reader: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// What the control service can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// So many random bytes, from the kernel and from the hardware.
    Entropy {
        /// How many; at most 4096.
        bytes: u32,
    },
    /// Write numbered blocks to the disk, each made durable before the next, until told to stop.
    StartDisk {
        /// Size of a block, in bytes.
        block_size: u32,
        /// How many blocks the file has; the numbers go round it.
        slots: u32,
    },
    /// How far the writing of blocks has come.
    DiskProgress,
    /// Stop writing blocks.
    StopDisk,
    /// Read all blocks back from the disk and check them; the writing must have stopped.
    VerifyDisk,
    /// How the guest is.
    Statistics,
    /// The content of a file, such as one in `/proc`.
    Read {
        /// The file.
        path: String,
    },
    /// Where in the kernel's memory a symbol of it is, in hexadecimal.
    Symbol {
        /// Its name.
        name: String,
    },
    /// What the processor's time stamp counter says to a program: another number on every host.
    TimeStamp,
    /// Run a program that everybody knows, on input that is always the same.
    Run {
        /// Which.
        program: Program,
    },
    /// Write to every page of so much memory, over and over, until told to stop.
    StartRewriting {
        /// How much, in MiB.
        mib: u32,
    },
    /// Stop writing to memory.
    StopRewriting,
    /// Unmount the disk and switch off. There is no answer.
    PowerOff,
    /// Unmount the disk and boot again. There is no answer.
    Reboot,
}

/// A program whose time says something about a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// Compresses a text.
    Gzip,
    /// Sorts lines.
    Sort,
}

/// What the control service answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Random bytes, in hexadecimal.
    Entropy {
        /// From `getrandom`.
        kernel: String,
        /// From `/dev/hwrng`, if there is one.
        hardware: Option<String>,
    },
    /// So many blocks are durable: all with a lower number.
    Durable {
        /// How many.
        blocks: u64,
    },
    /// How the guest is.
    Statistics(Statistics),
    /// The content of a file.
    Text(String),
    /// How long a program ran, in ns by the guest's clock.
    Took {
        /// The time.
        duration_ns: u64,
    },
    /// So many pages were written to.
    Rewritten {
        /// How many, each counted as often as it was written to.
        pages: u64,
    },
    /// It is done.
    Done,
    /// It could not be done, and why.
    Failed(String),
}

/// How the guest is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Time since it booted, in ms.
    pub uptime_ms: u64,
    /// Interrupts it has taken.
    pub interrupts: u64,
    /// Changes from one task to another.
    pub context_switches: u64,
    /// Differs from boot to boot.
    pub boot_id: String,
    /// What the kernel reads time from.
    pub clock_source: String,
    /// Records in the journal.
    pub journal_records: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_from_its_bytes_and_follows_only_its_history() {
        let record = Record::next(7, 1, b"payload");
        assert_eq!(Record::from_bytes(record.to_bytes()), record);
        assert!(record.follows(7));
        assert!(!record.follows(8));
        assert!(!Record { id: 2, ..record }.follows(7));
    }

    #[test]
    fn records_end_where_the_file_is_blank() {
        let record = Record::next(0, 0, b"");
        let content = [record.to_bytes().as_slice(), &[0; 100]].concat();
        assert_eq!(Record::read_all(&content), [record]);
        assert_eq!(Record::read_all(&[]), []);
    }
}
