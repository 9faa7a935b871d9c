//! A mapping of our own of the page that KVM and user space share for one virtual CPU.
//!
//! `kvm-ioctls` has a mapping too, and hands out `&mut` into it. Writes that may come at any time,
//! from a signal handler, must not go through that one, so they go through this: another address
//! of the same memory, only ever touched through raw pointers.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use kvm_bindings::kvm_run;

/// The shared page, and what lies behind it (the data of port I/O).
#[derive(Debug)]
pub(crate) struct RunPage {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping belongs to this value alone, and all access goes through raw pointers to
// memory that the kernel also writes: no reference to it ever exists, whatever the thread.
unsafe impl Send for RunPage {}
// SAFETY: as above; the one field written concurrently is a byte, written with one instruction.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps `size` bytes of `file`, a virtual CPU.
    pub(crate) fn map(file: &impl AsRawFd, size: usize) -> io::Result<Self> {
        if size < size_of::<kvm_run>() {
            return Err(io::Error::other("KVM's shared page is smaller than its own header"));
        }
        // SAFETY: a new mapping at a place of the kernel's choosing; it overlaps nothing of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { start, size }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Makes the next `KVM_RUN` return at once, or not. Safe to call in a signal handler.
    pub(crate) fn set_immediate_exit(&self, on: bool) {
        let offset = offset_of!(kvm_run, immediate_exit);
        // SAFETY: the offset is inside `kvm_run`, which `map` checked to be inside the mapping.
        let place = unsafe { self.start.add(offset) };
        // SAFETY: a byte in a live mapping; bytes are always aligned.
        unsafe { place.write_volatile(u8::from(on)) };
    }

    /// Copies bytes out of the page; false if they are not inside it.
    pub(crate) fn read(&self, offset: usize, bytes: &mut [u8]) -> bool {
        let Some(place) = self.place(offset, bytes.len()) else { return false };
        // SAFETY: `place` checked that all these bytes are inside the mapping, and `bytes` is
        // memory of the caller's, so the two cannot overlap.
        unsafe { place.copy_to_nonoverlapping(NonNull::from(&mut *bytes).cast(), bytes.len()) };
        true
    }

    /// Copies bytes into the page; false if they do not fit inside it.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(place) = self.place(offset, bytes.len()) else { return false };
        // SAFETY: `place` checked that all these bytes are inside the mapping, and `bytes` is
        // memory of the caller's, so the two cannot overlap.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        true
    }

    /// One byte of the header.
    pub(crate) fn byte(&self, offset: usize) -> u8 {
        assert!(offset < size_of::<kvm_run>(), "only for the header");
        // SAFETY: the offset is inside `kvm_run`, which `map` checked to be inside the mapping.
        let place = unsafe { self.start.add(offset) };
        // SAFETY: a byte in a live mapping; bytes are always aligned.
        unsafe { place.read_volatile() }
    }

    /// Sets bytes of the page, as far as they are inside it.
    pub(crate) fn fill(&self, offset: usize, length: usize, value: u8) {
        let length = length.min(self.size.saturating_sub(offset));
        let Some(place) = self.place(offset, length) else { return };
        // SAFETY: `place` checked that all these bytes are inside the mapping.
        unsafe { place.write_bytes(value, length) };
    }

    fn place(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(length)?;
        if end > self.size {
            return None;
        }
        // SAFETY: the offset is inside the mapping, as just checked.
        Some(unsafe { self.start.add(offset) })
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: this value made the mapping, owns it, and is gone after this.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.size) };
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A page over an ordinary anonymous file, for tests without KVM.
    pub(crate) fn page_without_kvm() -> RunPage {
        let size = 3 * 4096;
        // SAFETY: the name is a NUL-terminated literal and the call touches no memory of ours.
        let fd = unsafe { libc::memfd_create(c"run".as_ptr(), 0) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor is fresh and owned by nobody else.
        let file = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        file.set_len(size as u64).expect("a file of three pages");
        RunPage::map(&file, size).expect("a mapping")
    }

    #[test]
    fn bytes_written_are_read_back() {
        let page = page_without_kvm();
        assert!(page.write(4096, &[1, 2, 3]));
        let mut bytes = [0; 3];
        assert!(page.read(4096, &mut bytes));
        assert_eq!(bytes, [1, 2, 3]);
    }

    #[test]
    fn nothing_outside_the_page_is_touched() {
        let page = page_without_kvm();
        assert!(page.write(page.size() - 1, &[1]));
        assert!(!page.write(page.size() - 1, &[1, 2]));
        assert!(!page.read(usize::MAX, &mut [0; 2]));
    }

    #[test]
    fn filling_stops_at_the_end() {
        let page = page_without_kvm();
        page.fill(page.size() - 2, usize::MAX, 7);
        page.fill(usize::MAX, 1, 9);
        let mut bytes = [0; 3];
        assert!(page.read(page.size() - 3, &mut bytes));
        assert_eq!(bytes, [0, 7, 7]);
    }

    #[test]
    fn immediate_exit_is_the_second_byte() {
        let page = page_without_kvm();
        page.set_immediate_exit(true);
        let mut bytes = [0; 3];
        assert!(page.read(0, &mut bytes));
        assert_eq!(bytes, [0, 1, 0]);
    }
}
