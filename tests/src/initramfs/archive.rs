//! The archive format the kernel unpacks at boot: cpio with the "new ASCII" headers
//! (kernel documentation, `driver-api/early-userspace/buffer-format`).
//!
//! Owns the encoding. Reads no file and compresses nothing: an emulated CPU unpacks plain bytes fastest.

/// An archive under construction. Folders must be added before what lies in them.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const ALIGNMENT: usize = 4;

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder; `path` has no leading slash.
    pub fn folder(&mut self, path: &str) -> &mut Self {
        self.entry(path, FOLDER, &[])
    }

    /// Adds a file that anyone may read and execute; `path` has no leading slash.
    pub fn file(&mut self, path: &str, content: &[u8]) -> &mut Self {
        self.entry(path, PROGRAM, content)
    }

    /// Adds a symbolic link to `target`; `path` has no leading slash.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(path, LINK, target.as_bytes())
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> &mut Self {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("a file of an initramfs is below 4 GiB");
        let name_size = u32::try_from(path.len() + 1).expect("a path is short");
        // Inode, mode, owner, group, links, modification time, size, four device numbers, name size, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_entry_is_aligned() {
        let mut archive = Archive::new();
        archive.folder("bin").file("bin/a", b"12345").link("bin/b", "a");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % ALIGNMENT, 0);
        let headers = bytes.windows(6).enumerate().filter(|(_, window)| *window == b"070701");
        let offsets: Vec<usize> = headers.map(|(offset, _)| offset).collect();
        assert_eq!(offsets.len(), 4);
        assert!(offsets.iter().all(|offset| offset % ALIGNMENT == 0));
    }

    #[test]
    fn a_header_has_the_size_and_the_name() {
        let mut archive = Archive::new();
        archive.file("init", b"hello");
        let bytes = archive.finish();
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[94..102], b"00000005");
        assert_eq!(&bytes[110..115], b"init\0");
        assert_eq!(&bytes[116..121], b"hello");
    }
}
