//! A raw image file or a block device as a disk.
//!
//! Owns opening, locking and executing. The lock is separate from opening because a backup looks at
//! its disk (is it there, how big is it) long before it may own it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::mem;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::BlockBackend;
use crate::effect::{BlockKind, BlockStatus, SECTOR_BYTES};
use crate::{Error, Result};

/// Buffers of direct I/O start at a multiple of this; no device of today asks for more.
const DIRECT_ALIGNMENT: usize = 4096;

/// A disk in a file.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    path: PathBuf,
    read_only: bool,
    capacity_sectors: u64,
    /// Present for direct I/O: memory that holds one request, with room to align it.
    bounce: Option<Vec<u8>>,
}

/// The lock of an open disk. Holds nothing until it is taken.
#[derive(Debug)]
pub struct DiskLock {
    file: File,
    path: PathBuf,
    read_only: bool,
}

impl DiskLock {
    /// Takes the advisory lock (`flock`): shared for a disk that is only read, else exclusive. It
    /// is held until disk and handle are dropped. Fails at once if somebody else holds one that
    /// conflicts.
    pub fn take(&self) -> Result<()> {
        take_lock(&self.file, &self.path, self.read_only)
    }

    /// Whether a write that is under way may take effect after the process that made it has ended.
    ///
    /// A process that is killed in a write to a local disk ends when the write has. On file systems
    /// that talk to a server it need not wait for the answer, and what it has asked for is on its
    /// way all the same. A disk that is only read has no writes. Where the kernel does not tell the
    /// file system, the worse is assumed. May wait for the storage.
    pub fn writes_outlive_their_process(&self) -> bool {
        !self.read_only && file_system(&self.file).is_none_or(|kind| SERVED.contains(&kind))
    }
}

/// The file systems of which that is true, as `statfs` numbers them: NFS, SMB, CIFS, Ceph, FUSE.
const SERVED: [u32; 5] = [0x6969, 0xfe53_4d42, 0xff53_4d42, 0x00c3_6400, 0x6573_5546];

/// The number of the file system that a file is on.
fn file_system(file: &File) -> Option<u32> {
    // SAFETY: it is made of plain numbers, for which zero is a value.
    let mut found: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: the descriptor is open for as long as `file` is borrowed, and the kernel writes no
    // more than the structure, which outlives the call.
    let done = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) };
    // The numbers have 32 bits, whatever the width and the sign of the field.
    (done == 0).then_some(found.f_type as u32)
}

fn take_lock(file: &File, path: &Path, read_only: bool) -> Result<()> {
    let tried = if read_only { file.try_lock_shared() } else { file.try_lock() };
    tried.map_err(|error| match error {
        TryLockError::WouldBlock => Error::DiskBusy { path: path.to_owned() },
        TryLockError::Error(source) => Error::DiskLock { path: path.to_owned(), source },
    })
}

impl FileDisk {
    /// Opens the image file or block device at `path`. `direct` bypasses the host's page cache.
    ///
    /// Nothing is locked: see [`lock`](Self::lock). Fails if there is no such file, if it is of
    /// another kind, not of whole sectors or not writable, or if the host can't do direct I/O in
    /// units of 512 bytes.
    pub fn open(path: &Path, read_only: bool, direct: bool) -> Result<Self> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // A FIFO in place of an image must not make us wait for a writer.
            .custom_flags(flags | libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| open_error(path, read_only, direct, source))?;
        let disk_error =
            |action| move |source| Error::Disk { path: path.to_owned(), action, source };
        let kind = file.metadata().map_err(disk_error("examine"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(Error::DiskKind { path: path.to_owned() });
        }
        // Seeking works where metadata does not tell: a block device has no length there.
        let bytes = file.seek(SeekFrom::End(0)).map_err(disk_error("measure"))?;
        if bytes < SECTOR_BYTES {
            return Err(Error::DiskTooSmall { path: path.to_owned(), bytes });
        }
        // The guest would never see the rest, and nobody would know.
        if !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Error::DiskSize { path: path.to_owned(), bytes });
        }
        let mut disk = Self {
            file,
            path: path.to_owned(),
            read_only,
            capacity_sectors: bytes / SECTOR_BYTES,
            bounce: direct.then(Vec::new),
        };
        if direct {
            disk.probe_direct()?;
        }
        Ok(disk)
    }

    /// Takes the advisory lock, see [`DiskLock::take`].
    pub fn lock(&self) -> Result<()> {
        take_lock(&self.file, &self.path, self.read_only)
    }

    /// A handle on the disk's lock, for who takes it only after the disk has gone to a worker: a
    /// backup locks when it goes live.
    pub fn lock_handle(&self) -> Result<DiskLock> {
        let file = self.file.try_clone().map_err(|source| Error::Disk {
            path: self.path.clone(),
            action: "share",
            source,
        })?;
        Ok(DiskLock { file, path: self.path.clone(), read_only: self.read_only })
    }

    /// Whether the disk was opened for reading only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The path the disk was opened at.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn probe_direct(&mut self) -> Result<()> {
        self.read(0, SECTOR_BYTES as usize)
            .map(drop)
            .map_err(|source| Error::DiskDirect { path: self.path.clone(), source })
    }

    fn read(&mut self, sector: u64, length: usize) -> io::Result<Vec<u8>> {
        let position = byte_position(sector)?;
        let Some(bounce) = &mut self.bounce else {
            let mut data = vec![0; length];
            self.file.read_exact_at(&mut data, position)?;
            return Ok(data);
        };
        let aligned = aligned(bounce, length);
        self.file.read_exact_at(aligned, position)?;
        Ok(aligned.to_vec())
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> io::Result<()> {
        let position = byte_position(sector)?;
        let end = position.checked_add(data.len() as u64);
        // The size is fixed when the disk is opened: a write must never make an image grow.
        if end.is_none_or(|end| end > self.capacity_sectors * SECTOR_BYTES) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let Some(bounce) = &mut self.bounce else {
            return self.file.write_all_at(data, position);
        };
        let aligned = aligned(bounce, data.len());
        aligned.copy_from_slice(data);
        self.file.write_all_at(aligned, position)
    }
}

impl BlockBackend for FileDisk {
    fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors
    }

    fn execute(&mut self, kind: &BlockKind) -> (BlockStatus, Vec<u8>) {
        let done = match kind {
            BlockKind::Read { sector, length } => self.read(*sector, *length as usize),
            BlockKind::Write { sector, data } => self.write(*sector, data).map(|()| Vec::new()),
            BlockKind::Flush if self.read_only => Ok(Vec::new()),
            BlockKind::Flush => self.file.sync_data().map(|()| Vec::new()),
        };
        match done {
            Ok(data) => (BlockStatus::Ok, data),
            Err(error) => {
                log::warn!("a request to the disk image {} failed: {error}", self.path.display());
                (BlockStatus::IoError, Vec::new())
            }
        }
    }
}

fn byte_position(sector: u64) -> io::Result<u64> {
    sector.checked_mul(SECTOR_BYTES).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// `length` bytes of `buffer` that start at an aligned address; the buffer grows as needed.
fn aligned(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buffer.len() < length + DIRECT_ALIGNMENT {
        buffer.resize(length + DIRECT_ALIGNMENT, 0);
    }
    let start = buffer.as_ptr().addr().next_multiple_of(DIRECT_ALIGNMENT) - buffer.as_ptr().addr();
    &mut buffer[start..start + length]
}

fn open_error(path: &Path, read_only: bool, direct: bool, source: io::Error) -> Error {
    let path = path.to_owned();
    if direct && source.raw_os_error() == Some(libc::EINVAL) {
        return Error::DiskDirect { path, source };
    }
    if source.raw_os_error() == Some(libc::EROFS)
        || !read_only && source.kind() == io::ErrorKind::PermissionDenied && is_readable(&path)
    {
        return Error::DiskReadOnly { path };
    }
    let access = if read_only { "reading" } else { "reading and writing" };
    Error::DiskOpen { path, access, source }
}

fn is_readable(path: &Path) -> bool {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).is_ok()
}
