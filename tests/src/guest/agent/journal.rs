//! The journal: a request is on the disk before it is answered.
//!
//! Owns the file and the order of its records.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
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
    count: u64,
    history: u64,
}

impl Journal {
    /// Opens the journal and reads what it has: it goes on where it stopped before a reboot.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let records = read(path)?;
        let file =
            File::options().append(true).create(true).custom_flags(libc::O_DSYNC).open(path)?;
        let count = records.len() as u64;
        file.set_len(count * Record::SIZE as u64)?;
        let history = records.last().map_or(0, |record| record.history);
        let end = Mutex::new(JournalEnd { file, count, history });
        Ok(Self { path: path.to_owned(), end })
    }

    /// Appends a record; returns when it is on the disk.
    fn append(&self, id: u64, payload: &[u8]) -> io::Result<Acknowledgement> {
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        let record = Record::next(end.history, id, payload);
        end.file.write_all(&record.to_bytes())?;
        end.count += 1;
        end.history = record.history;
        Ok(Acknowledgement { id, count: end.count, history: end.history })
    }

    /// How many records there are.
    pub(super) fn count(&self) -> u64 {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).count
    }
}

/// The whole records in the file; a torn one at its end was never acknowledged.
fn read(path: &Path) -> io::Result<Vec<Record>> {
    let content = match std::fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let (records, _torn) = content.as_chunks::<{ Record::SIZE }>();
    Ok(records.iter().map(|bytes| Record::from_bytes(*bytes)).collect())
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
    fn a_journal_goes_on_where_it_stopped_and_forgets_a_torn_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let first = Journal::open(&path).unwrap().append(5, b"a").unwrap();
        assert_eq!(first.count, 1);
        File::options().append(true).open(&path).unwrap().write_all(b"torn").unwrap();
        let journal = Journal::open(&path).unwrap();
        let second = journal.append(6, b"b").unwrap();
        assert_eq!(second.count, 2);
        let records = read(&path).unwrap();
        assert_eq!(records.iter().map(|record| record.id).collect::<Vec<_>>(), [5, 6]);
        assert!(records[0].follows(0) && records[1].follows(first.history));
        assert_eq!(second.history, records[1].history);
    }
}
