//! What the C library's heap keeps of memory that was freed.
//!
//! Owns one setting. A log is made of parts of up to 4 MiB that live for milliseconds: given back to
//! the kernel each time, they would cost a page fault for every 4 KiB of every copy on their way.

/// Larger allocations come from the kernel and go back to it at once.
const MAPPED_BYTES_MIN: libc::c_int = 16 << 20;
/// At most this much that is free at the end of a heap is kept.
const KEPT_BYTES_MAX: libc::c_int = 32 << 20;

/// Has the heap keep up to 32 MiB that were freed. To be called before there are threads. A C library
/// that knows no such setting goes on as before.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    for (setting, bytes) in
        [(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN), (libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX)]
    {
        // SAFETY: it changes two numbers of the allocator, under the allocator's own lock, and takes
        // no pointer. Values that it does not like it refuses.
        let _ = unsafe { libc::mallopt(setting, bytes) };
    }
}
