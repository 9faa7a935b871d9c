//! What a process has, as `/proc` shows it: a thread by its name, a descriptor by what it leads to.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// The number of the one thread that has this name, of the process with this folder in `/proc`.
///
/// # Errors
/// There is none, or more than one; the message names all that there are.
pub fn thread(process: &Path, name: &str) -> Result<i32> {
    // A thread may end between the listing and the look.
    let name_of = |folder: &Path| fs::read_to_string(folder.join("comm")).ok();
    only(&process.join("task"), "thread", name, |folder| {
        name_of(folder).map(|text| text.trim_end().to_owned())
    })
}

/// The number of the one descriptor that leads to this.
///
/// # Errors
/// There is none, or more than one; the message names all that there are.
pub fn descriptor(process: &Path, target: &str) -> Result<i32> {
    only(&process.join("fd"), "descriptor", target, |link| {
        Some(fs::read_link(link).ok()?.to_string_lossy().into_owned())
    })
}

/// The number that is the name of the one entry of a folder that says `wanted`.
fn only(
    folder: &Path,
    kind: &str,
    wanted: &str,
    say: impl Fn(&Path) -> Option<String>,
) -> Result<i32> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {folder:?}"))?;
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {folder:?}"))?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
        let Some(number) = number else { continue };
        all.extend(say(&path).map(|said| (number, said)));
    }
    all.sort();
    let mut found = all.iter().filter(|(_, said)| said == wanted).map(|(number, _)| *number);
    match (found.next(), found.next()) {
        (Some(number), None) => Ok(number),
        (None, _) => bail!("in {folder:?} there is no {kind} '{wanted}', but {all:?}"),
        (Some(_), Some(_)) => bail!("in {folder:?} more than one {kind} is '{wanted}': {all:?}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc::channel;

    use tempfile::TempDir;

    use super::*;

    /// The folder of a process with these threads and descriptors.
    fn process(threads: &[(i32, &str)], descriptors: &[(i32, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (number, name) in threads {
            let thread = folder.path().join("task").join(number.to_string());
            fs::create_dir_all(&thread).unwrap();
            fs::write(thread.join("comm"), format!("{name}\n")).unwrap();
        }
        fs::create_dir(folder.path().join("fd")).unwrap();
        for (number, target) in descriptors {
            symlink(target, folder.path().join("fd").join(number.to_string())).unwrap();
        }
        folder
    }

    #[test]
    fn a_thread_is_found_by_its_name_and_a_descriptor_by_what_it_leads_to() {
        let folder = process(
            &[(70, "cloud-hypervis"), (71, "vcpu0"), (72, "disk")],
            &[(8, "anon_inode:kvm-vm"), (9, "anon_inode:kvm-vcpu:0"), (10, "/dev/net/tun")],
        );
        assert_eq!(thread(folder.path(), "vcpu0").unwrap(), 71);
        assert_eq!(descriptor(folder.path(), "anon_inode:kvm-vcpu:0").unwrap(), 9);
    }

    #[test]
    fn what_is_not_there_or_there_twice_is_not_chosen() {
        let folder = process(&[(71, "disk")], &[(9, "pipe:[1]"), (10, "pipe:[1]")]);
        let missing = thread(folder.path(), "vcpu0").unwrap_err().to_string();
        assert!(missing.contains("no thread 'vcpu0', but [(71, \"disk\")]"), "{missing}");
        let twice = descriptor(folder.path(), "pipe:[1]").unwrap_err().to_string();
        assert!(twice.contains("more than one descriptor is 'pipe:[1]'"), "{twice}");
        let gone = thread(Path::new("/proc/nobody"), "vcpu0").unwrap_err().to_string();
        assert!(gone.contains("cannot list"), "{gone}");
    }

    #[test]
    fn a_real_process_is_read_the_same_way() {
        let (done, wait) = channel::<()>();
        let (sender, number) = channel();
        let waiting = std::thread::Builder::new().name("looked-for".to_owned()).spawn(move || {
            sender.send(nix::unistd::gettid().as_raw()).unwrap();
            wait.recv().unwrap_err();
        });
        let waiting = waiting.unwrap();
        let number = number.recv().unwrap();
        assert_eq!(thread(Path::new("/proc/self"), "looked-for").unwrap(), number);
        drop(done);
        waiting.join().unwrap();
    }
}
