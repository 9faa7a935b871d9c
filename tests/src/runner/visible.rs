//! What of this machine's files an emulated host sees at the same path.
//!
//! Owns the exception: a host has a `/tmp` and a `/run` of its own, and what is needed of the outer ones must be shown there.
//! Does not own the showing, which is the host's `/init`'s.

use std::path::{Component, Path};

use anyhow::{Context, Result, ensure};

/// Folders of which a host has its own.
const OWN_FOLDERS: [&str; 2] = ["/tmp", "/run"];

/// A file or folder that is to be shown in a host's own folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// Where it is outside, without links on the way.
    pub source: String,
    /// Where it is looked for.
    pub target: String,
}

/// What has to be shown so that this path means on a host what it means here. Nothing if it is visible anyhow; nothing
/// either for a folder that the host has its own of, as it would no longer be the host's own.
pub(super) fn shown(path: &Path) -> Result<Vec<Shown>> {
    let source = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
    let mut shown: Vec<Shown> = Vec::new();
    for target in [source.as_path(), path] {
        let plain =
            target.is_absolute() && !target.components().any(|part| part == Component::ParentDir);
        if !plain || !is_in_own_folder(target) || is_own_folder(&source) {
            continue;
        }
        let one = Shown { source: text(&source)?, target: text(target)? };
        if !shown.contains(&one) {
            shown.push(one);
        }
    }
    Ok(shown)
}

/// Whether a host has its own folder at this path.
pub fn is_own_folder(path: &Path) -> bool {
    OWN_FOLDERS.iter().any(|own| path == Path::new(own))
}

fn is_in_own_folder(path: &Path) -> bool {
    !is_own_folder(path) && OWN_FOLDERS.iter().any(|own| path.starts_with(own))
}

/// The path as a line.
fn text(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("the path {path:?} is not UTF-8"))?;
    ensure!(!text.contains('\n'), "there is a line break in the path {path:?}");
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_folder_of_the_hosts_own_is_shown_under_every_name_it_has() {
        let folder = tempfile::Builder::new().tempdir_in("/tmp").unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let file = file.display().to_string();
        let itself = Shown { source: file.clone(), target: file.clone() };
        assert_eq!(shown(Path::new(&file)).unwrap(), std::slice::from_ref(&itself));
        let linked = Shown { source: file, target: link.display().to_string() };
        assert_eq!(shown(&link).unwrap(), [itself.clone(), linked]);
        let odd = folder.path().join("../").join(folder.path().file_name().unwrap()).join("file");
        assert_eq!(shown(&odd).unwrap(), [itself]);
        std::fs::write(folder.path().join("a\nb"), "").unwrap();
        assert!(shown(&folder.path().join("a\nb")).is_err());
    }

    #[test]
    fn nothing_else_is_shown() {
        for path in ["/usr", "/", "/tmp", "/run", "/tmp/.", "/proc/self"] {
            assert_eq!(shown(Path::new(path)).unwrap(), [], "{path}");
        }
        assert!(shown(Path::new("/tmp/does/not/exist")).is_err());
    }
}
