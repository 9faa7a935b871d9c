//! Loads a stock Linux kernel, its initramfs and its command line into guest memory.
//!
//! Owns the way from files to a guest that can be entered at its 32-bit PVH entry point: an ELF
//! `vmlinux` or a distribution's `bzImage`, whose time-stamp reads are rewritten so that they leave
//! the guest (see [`tsc`]). Does not own the memory map or the ACPI tables (the board's), nor the
//! registers at entry (the hypervisor's): at [`Loaded::entry`] the processor is in protected mode
//! without paging, with `%ebx` = [`Loaded::start_info`].
//!
//! One direction: [`image`] finds the ELF in a file, [`decompress`] unpacks, [`elf`] checks, [`tsc`]
//! finds what to rewrite, [`pvh`] writes the boot data.

pub mod decompress;
pub mod elf;
pub mod error;
pub mod image;
pub mod placement;
pub mod pvh;
#[cfg(test)]
mod real_kernel;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod tsc;

use std::fs::File;
use std::path::{Path, PathBuf};

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use error::{ImageError, LoaderError};
pub use tsc::{RDTSC_PORT, RDTSCP_PORT, TscSites};

/// The guest's memory, whose bitmap learns of all that is written here.
pub type GuestMemory = GuestMemoryMmap<AtomicBitmap>;

/// What a range of guest-physical memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Free for the guest to use.
    Ram,
    /// Not to be touched.
    Reserved,
    /// ACPI tables: RAM once the guest has read them.
    AcpiTables,
    /// ACPI non-volatile storage.
    AcpiNvs,
}

/// A range of guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMapEntry {
    /// First address.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// What is there.
    pub kind: MemoryKind,
}

/// What may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Rewrite `rdtsc` and `rdtscp`. A guest loaded without it cannot be replayed.
    pub rewrite_tsc: bool,
    /// Load a kernel in which they cannot be found as it is, rather than refuse it.
    pub may_leave_tsc: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { rewrite_tsc: true, may_leave_tsc: false }
    }
}

/// What to load.
#[derive(Clone, Debug)]
pub struct LoadRequest<'a> {
    /// An ELF `vmlinux` or a `bzImage`.
    pub kernel: &'a Path,
    /// The initramfs, if any, in whatever form the kernel takes.
    pub initramfs: Option<&'a Path>,
    /// The kernel command line.
    pub cmdline: &'a str,
    /// Guest-physical address of the ACPI RSDP, or 0.
    pub rsdp_address: u64,
    /// The guest's memory map, handed to the kernel as it is. Kernel and initramfs go to RAM only.
    pub memory_map: Vec<MemoryMapEntry>,
    /// What may be left out.
    pub options: LoadOptions,
}

/// Where things are once loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The 32-bit PVH entry point, guest-physical.
    pub entry: u64,
    /// Address of `hvm_start_info`, for `%ebx`.
    pub start_info: u64,
    /// How many time-stamp reads were rewritten; both 0 if the options said not to.
    pub tsc_sites: TscSites,
    /// End of the kernel in guest memory, its BSS included.
    pub kernel_end: u64,
}

/// Files that were read and checked, and where they go. Nothing is written yet.
pub struct Prepared {
    image: Vec<u8>,
    kernel: elf::Kernel,
    sites: Vec<tsc::TscSite>,
    /// All of the kernel's code was looked through for them.
    treated: bool,
    initramfs: Option<Initramfs>,
}

/// An initramfs that has a place.
struct Initramfs {
    path: PathBuf,
    file: File,
    /// Guest-physical.
    address: u64,
    size_bytes: u64,
}

/// Loads kernel, initramfs and boot data into `memory`.
///
/// All that can be checked is checked before the first byte is written, but a file that fails while
/// it is read leaves `memory` half written.
///
/// # Errors
///
/// A [`LoaderError`], each a sentence about the file, the command line or the memory at fault.
pub fn load(memory: &GuestMemory, request: &LoadRequest<'_>) -> Result<Loaded, LoaderError> {
    prepare(request)?.write(memory, request)
}

/// Reads and checks the files of `request`, for which no guest memory is needed.
///
/// # Errors
///
/// As [`load`].
pub fn prepare(request: &LoadRequest<'_>) -> Result<Prepared, LoaderError> {
    pvh::check(request.cmdline, &request.memory_map)?;
    let in_kernel = |source| LoaderError::Kernel { path: request.kernel.to_owned(), source };
    let file = image::read_kernel(request.kernel)?;
    let image = image::elf_of(&file).map_err(in_kernel)?.into_owned();
    let kernel = elf::Kernel::parse(&image).map_err(in_kernel)?;
    let LoadOptions { rewrite_tsc, may_leave_tsc } = request.options;
    let treated = rewrite_tsc && (kernel.code.is_some() || !may_leave_tsc);
    let sites = match treated {
        true => find_tsc_sites(&kernel, &image).map_err(in_kernel)?,
        false => Vec::new(),
    };
    for segment in &kernel.segments {
        check_in_ram(segment, &request.memory_map)?;
    }
    let place = |path| place_initramfs(path, kernel.end(), &request.memory_map);
    let initramfs = request.initramfs.map(place).transpose()?;
    Ok(Prepared { image, kernel, sites, treated, initramfs })
}

impl Prepared {
    /// Whether the time-stamp reads in the kernel's code are known, and rewritten once it is loaded.
    pub fn is_treated(&self) -> bool {
        self.treated
    }

    /// Writes all of it, and what belongs to it, to `memory`. `request` is the one it was prepared
    /// for.
    ///
    /// # Errors
    ///
    /// The initramfs cannot be read, or `memory` is not what the memory map says.
    pub fn write(
        mut self,
        memory: &GuestMemory,
        request: &LoadRequest<'_>,
    ) -> Result<Loaded, LoaderError> {
        if let Some(initramfs) = &mut self.initramfs {
            initramfs.write(memory)?;
        }
        for segment in &self.kernel.segments {
            write_segment(memory, segment, &self.image)?;
        }
        let tsc_sites = rewrite(memory, &self.kernel, &self.sites)?;
        let data = pvh::BootData {
            command_line: request.cmdline,
            rsdp_address: request.rsdp_address,
            memory_map: &request.memory_map,
            initramfs: self.initramfs.as_ref().map(|one| (one.address, one.size_bytes)),
        };
        pvh::write(memory, &data)?;
        Ok(Loaded {
            entry: self.kernel.entry,
            start_info: placement::START_INFO,
            tsc_sites,
            kernel_end: self.kernel.end(),
        })
    }
}

impl Initramfs {
    fn write(&mut self, memory: &GuestMemory) -> Result<(), LoaderError> {
        memory
            .read_exact_volatile_from(
                GuestAddress(self.address),
                &mut self.file,
                self.size_bytes as usize,
            )
            .map_err(|error| LoaderError::Read {
                what: "initramfs",
                path: self.path.clone(),
                source: std::io::Error::other(error.to_string()),
            })
    }
}

/// The time-stamp reads in all code of the kernel; offsets are those in the file.
fn find_tsc_sites(kernel: &elf::Kernel, image: &[u8]) -> Result<Vec<tsc::TscSite>, ImageError> {
    let mut sites = Vec::new();
    for range in kernel.code.as_deref().ok_or(ImageError::NoSections)? {
        let code = image.get(range.clone()).unwrap_or_default();
        let found = tsc::find(code).ok_or(ImageError::BadElf {
            reason: "its code has more time-stamp instructions than any kernel",
        })?;
        sites.extend(
            found
                .into_iter()
                .map(|site| tsc::TscSite { offset: range.start + site.offset, ..site }),
        );
    }
    Ok(sites)
}

fn check_in_ram(segment: &elf::Segment, map: &[MemoryMapEntry]) -> Result<(), LoaderError> {
    let (start, end) = (segment.address, segment.end());
    let fits = map.iter().any(|entry| {
        entry.kind == MemoryKind::Ram
            && entry.start <= start
            && end <= entry.start.saturating_add(entry.size)
    });
    if fits { Ok(()) } else { Err(LoaderError::KernelOutsideMemory { start, end }) }
}

/// Copies a segment's content and clears the rest of it: memory is not fresh after a reboot.
fn write_segment(
    memory: &GuestMemory,
    segment: &elf::Segment,
    image: &[u8],
) -> Result<(), LoaderError> {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    let (start, end) = (segment.address, segment.end());
    let outside = |_| LoaderError::KernelOutsideMemory { start, end };
    let content = image.get(segment.file.clone()).unwrap_or_default();
    memory.write_slice(content, GuestAddress(start)).map_err(outside)?;
    let mut address = start + content.len() as u64;
    while address < end {
        let length = ZEROES.len().min((end - address) as usize);
        let zeroes = ZEROES.get(..length).unwrap_or_default();
        memory.write_slice(zeroes, GuestAddress(address)).map_err(outside)?;
        address += length as u64;
    }
    Ok(())
}

/// Replaces the sites in guest memory. Code that no segment loads is not there to replace.
fn rewrite(
    memory: &GuestMemory,
    kernel: &elf::Kernel,
    sites: &[tsc::TscSite],
) -> Result<TscSites, LoaderError> {
    let mut counts = TscSites::default();
    for site in sites {
        let Some(address) = kernel.address_of(site.offset) else { continue };
        let end = address + site.length as u64;
        memory
            .write_slice(&site.replacement(), GuestAddress(address))
            .map_err(|_| LoaderError::KernelOutsideMemory { start: address, end })?;
        counts.add(site.kind);
    }
    Ok(counts)
}

/// The place of the initramfs: the top of the RAM below 4 GiB, above the kernel, aligned to a page.
fn place_initramfs(
    path: &Path,
    kernel_end: u64,
    map: &[MemoryMapEntry],
) -> Result<Initramfs, LoaderError> {
    const LOW_LIMIT: u64 = 1 << 32;
    let path = path.to_owned();
    let (file, size_bytes) = image::open("initramfs", &path)?;
    let mut free_bytes = 0;
    let mut place: Option<u64> = None;
    for entry in map.iter().filter(|entry| entry.kind == MemoryKind::Ram) {
        let floor = entry.start.max(kernel_end).max(placement::HIGH_START);
        let top = entry.start.saturating_add(entry.size).min(LOW_LIMIT);
        free_bytes = free_bytes.max(top.saturating_sub(floor));
        let Some(address) = top.checked_sub(size_bytes) else { continue };
        let address = address & !(placement::PAGE_SIZE - 1);
        if address >= floor && place.is_none_or(|best| address > best) {
            place = Some(address);
        }
    }
    match place {
        Some(address) => Ok(Initramfs { path, file, address, size_bytes }),
        None => Err(LoaderError::InitramfsTooLarge { path, size_bytes, free_bytes }),
    }
}
