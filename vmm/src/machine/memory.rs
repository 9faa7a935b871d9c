//! Guest RAM as pages: what a delta carries and what a digest covers.

use ft::Page;
use hypervisor::GuestMemory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use xxhash_rust::xxh3::Xxh3;

use crate::error::Error;

/// Size of a guest page in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Frame numbers of all of guest RAM, ascending.
pub fn content_pages(memory: &GuestMemory) -> impl Iterator<Item = u64> + '_ {
    memory.iter().flat_map(|region| {
        let first = region.start_addr().0 / PAGE_SIZE;
        first..first + region.len() / PAGE_SIZE
    })
}

/// The page with frame number `frame`.
///
/// # Errors
/// The guest has no RAM there.
pub fn page_at(memory: &GuestMemory, frame: u64) -> Result<Page, Error> {
    let mut bytes = [0_u8; PAGE_SIZE as usize];
    memory
        .read_slice(&mut bytes, GuestAddress(frame.wrapping_mul(PAGE_SIZE)))
        .map_err(|_| Error::NoSuchPage(frame))?;
    Ok(Page::from_bytes(&bytes))
}

/// Writes pages into guest RAM. A zero page that is zero already is not touched, so that memory
/// the guest never used costs this host nothing.
///
/// # Errors
/// The guest has no RAM at one of the frame numbers.
pub fn write_pages<'a>(
    memory: &GuestMemory,
    pages: impl Iterator<Item = (u64, &'a Page)>,
) -> Result<(), Error> {
    for (frame, page) in pages {
        let address = GuestAddress(frame.wrapping_mul(PAGE_SIZE));
        let written = match page {
            Page::Data(bytes) => memory.write_slice(&bytes[..], address),
            Page::Zero if page_at(memory, frame)? == Page::Zero => Ok(()),
            Page::Zero => memory.write_slice(&[0; PAGE_SIZE as usize], address),
        };
        written.map_err(|_| Error::NoSuchPage(frame))?;
    }
    Ok(())
}

/// Digest of all of guest RAM.
///
/// # Errors
/// Guest RAM could not be read.
pub fn memory_digest(memory: &GuestMemory) -> Result<u64, Error> {
    let mut hasher = Xxh3::new();
    let mut page = [0_u8; PAGE_SIZE as usize];
    for frame in content_pages(memory) {
        memory
            .read_slice(&mut page, GuestAddress(frame * PAGE_SIZE))
            .map_err(|_| Error::NoSuchPage(frame))?;
        hasher.update(&page);
    }
    Ok(hasher.digest())
}
