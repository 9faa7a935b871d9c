//! The journal: a request is on the disk before it is answered.
//!
//! Owns the file and the order of its records.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::Guest;
use crate::guest::protocol::{Acknowledgement, PAYLOAD_SIZE_MAX, Record, read_number};

/// The journal on the disk.
pub(super) struct Journal {
    path: PathBuf,
    end: Mutex<JournalEnd>,
}

struct JournalEnd {
    file: File,
    /// Size of the file, in bytes.
    size: u64,
    count: u64,
    history: u64,
}

/// The file grows by this many bytes. Between times a record is one write and one flush, as in any data base: nothing of
/// the file system's own has to follow.
const ROOM: usize = 256 << 10;

impl Journal {
    /// Opens the journal and reads what it has: it goes on where it stopped before a reboot.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let records = read(path)?;
        // What does not follow was being written when all stopped, and was never acknowledged.
        let mut history = 0;
        let mut count = 0;
        for record in &records {
            if !record.follows(history) {
                break;
            }
            history = record.history;
            count += 1;
        }
        let mut options = File::options();
        options.write(true).create(true).truncate(false).custom_flags(libc::O_DSYNC);
        let file = options.open(path)?;
        let size = file.metadata()?.len();
        let mut end = JournalEnd { file, size, count, history };
        end.make_room()?;
        Ok(Self { path: path.to_owned(), end: Mutex::new(end) })
    }

    /// Appends a record; returns when it is on the disk.
    fn append(&self, id: u64, payload: &[u8]) -> io::Result<Acknowledgement> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.make_room()?;
        let record = Record::next(end.history, id, payload);
        end.file.write_all_at(&record.to_bytes(), end.count * Record::SIZE as u64)?;
        end.count += 1;
        end.history = record.history;
        Ok(Acknowledgement { id, count: end.count, history: end.history })
    }

    /// How many records there are.
    pub(super) fn count(&self) -> u64 {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).count
    }
}

impl JournalEnd {
    /// Makes sure that the next record has a place in the file.
    fn make_room(&mut self) -> io::Result<()> {
        if (self.count + 1) * Record::SIZE as u64 > self.size {
            self.file.write_all_at(&vec![0; ROOM], self.size)?;
            self.size += ROOM as u64;
        }
        Ok(())
    }
}

/// The records in the file.
fn read(path: &Path) -> io::Result<Vec<Record>> {
    let content = match std::fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(Record::read_all(&content))
}

/// Serves requests of one client.
pub(super) fn serve(mut stream: TcpStream, guest: &Guest) -> io::Result<()> {
    let mut payload = Vec::new();
    loop {
        let mut header = [0; 12];
        stream.read_exact(&mut header)?;
        let [id @ .., a, b, c, d] = header;
        let length = u32::from_le_bytes([a, b, c, d]);
        if length > PAYLOAD_SIZE_MAX {
            return Err(io::Error::other(format!("a request of {length} bytes")));
        }
        payload.resize(length as usize, 0);
        stream.read_exact(&mut payload)?;
        let acknowledgement = guest.journal.append(u64::from_le_bytes(id), &payload)?;
        stream.write_all(&acknowledgement.to_bytes())?;
    }
}

/// Tells what is on the disk.
pub(super) fn serve_history(mut stream: TcpStream, guest: &Guest) -> io::Result<()> {
    super::writer::drop_caches()?;
    let records = read(&guest.journal.path)?;
    let mut bytes = (records.len() as u64).to_le_bytes().to_vec();
    bytes.extend(records.iter().flat_map(|record| record.to_bytes()));
    stream.write_all(&bytes)?;
    // The client closes first, so that no time-wait is left here.
    let _ = read_number(&mut stream);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_outgrows_its_room_gets_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::open(&path).unwrap();
        journal.end.lock().unwrap().size = 2 * Record::SIZE as u64;
        for id in 0..3 {
            journal.append(id, b"").unwrap();
        }
        assert_eq!(read(&path).unwrap().len(), 3);
        assert_eq!(Journal::open(&path).unwrap().count(), 3);
    }

    #[test]
    fn a_journal_goes_on_where_it_stopped_and_forgets_a_torn_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let first = Journal::open(&path).unwrap().append(5, b"a").unwrap();
        assert_eq!(first.count, 1);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"torn", Record::SIZE as u64).unwrap();
        let journal = Journal::open(&path).unwrap();
        let second = journal.append(6, b"b").unwrap();
        assert_eq!(second.count, 2);
        let records = read(&path).unwrap();
        assert_eq!(records.iter().map(|record| record.id).collect::<Vec<_>>(), [5, 6]);
        assert!(records[0].follows(0) && records[1].follows(first.history));
        assert_eq!(second.history, records[1].history);
    }
}
