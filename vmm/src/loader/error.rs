//! What can be wrong with a kernel, an initramfs or a command line, as sentences for the user.

use std::io;
use std::path::PathBuf;

use super::placement::{COMMAND_LINE_BYTES_MAX, MEMORY_MAP_ENTRIES_MAX};

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    /// The file could not be opened or read.
    #[error("The {what} '{}' cannot be read: {source}. Check the path and its permissions.", path.display())]
    Read {
        /// `kernel` or `initramfs`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The path names a directory, a device or a pipe.
    #[error("The {what} '{}' is not a regular file.", path.display())]
    NotAFile {
        /// `kernel` or `initramfs`.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("The {what} '{}' is empty.", path.display())]
    Empty {
        /// `kernel` or `initramfs`.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The kernel file is larger than any kernel.
    #[error("The kernel '{}' is larger than {limit_bytes} bytes: this is no Linux kernel.", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// Something in the kernel image itself.
    #[error("The kernel '{}' cannot be loaded: {source}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ImageError,
    },
    /// A segment of the kernel lies outside the guest's RAM.
    #[error(
        "The kernel does not fit into the guest's memory: it needs {start:#x}..{end:#x}, which is \
         not all RAM. Give the virtual machine more memory."
    )]
    KernelOutsideMemory {
        /// First guest-physical address of the segment.
        start: u64,
        /// End of the segment, exclusive.
        end: u64,
    },
    /// No room for the initramfs between the kernel and the top of low memory.
    #[error(
        "The initramfs '{}' does not fit into the guest's memory: it has {size_bytes} bytes, and \
         {free_bytes} are free above the kernel. Give the virtual machine more memory.",
        path.display()
    )]
    InitramfsTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size_bytes: u64,
        /// The room there is, in bytes.
        free_bytes: u64,
    },
    /// The command line is longer than Linux takes.
    #[error(
        "The kernel command line has {length_bytes} bytes, and Linux takes at most {}: shorten it.",
        COMMAND_LINE_BYTES_MAX
    )]
    CommandLineTooLong {
        /// Its length in bytes.
        length_bytes: usize,
    },
    /// The command line would be cut at the zero byte.
    #[error("The kernel command line has a zero byte at position {position}: remove it.")]
    CommandLineZeroByte {
        /// Offset of the first zero byte.
        position: usize,
    },
    /// The memory map given to the loader has too many entries.
    #[error(
        "The memory map has {entries} entries, and the guest takes at most {}.",
        MEMORY_MAP_ENTRIES_MAX
    )]
    MemoryMapTooLong {
        /// How many there are.
        entries: usize,
    },
    /// The boot structures could not be written to guest memory.
    #[error(
        "The boot data at {address:#x} cannot be written to the guest's memory: {reason}. The guest \
         needs RAM below 640 KiB."
    )]
    WriteBootData {
        /// Guest-physical address.
        address: u64,
        /// What the memory said.
        reason: String,
    },
}

/// What is wrong with a kernel image.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Neither an ELF file nor a bzImage.
    #[error("it is neither an ELF 'vmlinux' nor a 'bzImage'.")]
    NotAKernel,
    /// The file ends before what its headers announce.
    #[error(
        "it is truncated: its headers announce {needed_bytes} bytes and there are {present_bytes}."
    )]
    Truncated {
        /// Where the announced content ends, in bytes.
        needed_bytes: u64,
        /// Where the file (or the unpacked image) ends, in bytes.
        present_bytes: u64,
    },
    /// The boot protocol is older than the one that tells where the payload lies.
    #[error(
        "its boot protocol {}.{:02} is too old: 2.08 (Linux 2.6.26) or later is needed.",
        version >> 8,
        version & 0xff
    )]
    OldBootProtocol {
        /// `version` of the setup header.
        version: u16,
    },
    /// A compression that is known and not supported.
    #[error(
        "it is compressed with {name}, which is not supported: use a kernel built with LZ4, zstd, \
         gzip or xz, or its 'vmlinux'."
    )]
    UnsupportedCompression {
        /// Name of the compression.
        name: &'static str,
    },
    /// The payload of the bzImage begins with no known magic.
    #[error("the payload of this bzImage is in no format known here.")]
    UnknownPayload,
    /// The decompressor refused the data.
    #[error("its {format} payload is damaged: {reason}.")]
    Damaged {
        /// Name of the compression.
        format: &'static str,
        /// What the decompressor said.
        reason: String,
    },
    /// The payload unpacks to more than a kernel can have.
    #[error(
        "its {format} payload unpacks to more than {limit_bytes} bytes: this is no Linux kernel."
    )]
    UnpacksTooLarge {
        /// Name of the compression.
        format: &'static str,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// An ELF file for another machine, class or byte order.
    #[error("it is not for this machine: a 64-bit little-endian x86-64 ELF file is needed.")]
    WrongMachine,
    /// An ELF file whose headers contradict themselves.
    #[error("its ELF headers are damaged: {reason}.")]
    BadElf {
        /// What is wrong.
        reason: &'static str,
    },
    /// No `XEN_ELFNOTE_PHYS32_ENTRY`.
    #[error(
        "it has no PVH entry point: build it with CONFIG_PVH=y (distributions' kernels have it)."
    )]
    NoPvhEntry,
    /// A segment below 1 MiB, where the boot structures are.
    #[error("its segment at {address:#x} lies below 1 MiB, where no kernel may be loaded.")]
    SegmentTooLow {
        /// Guest-physical address of the segment.
        address: u64,
    },
    /// The entry point is not in any loaded segment.
    #[error("its PVH entry point {entry:#x} lies outside of its segments.")]
    EntryOutsideSegments {
        /// The entry point, guest-physical.
        entry: u64,
    },
    /// Code and data cannot be told apart, so `rdtsc` cannot be rewritten.
    #[error(
        "it has no section headers, so that its time-stamp instructions cannot be found safely, and \
         the guest cannot be replayed: use a kernel stripped by 'strip' or 'objcopy', which keep \
         them, or have the VM kept by checkpoints (--ft mode=checkpoint)."
    )]
    NoSections,
}
