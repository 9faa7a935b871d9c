//! The arbiter's answer for `file:`: an atomic test-and-set on storage that both hosts share.
//!
//! Owns one question: *who goes on with this VM in this generation?* The first who asks wins, for
//! ever, and whoever asks again gets the same answer. Storage that cannot be reached gives no
//! answer, which is different from *no*.
//!
//! The claim is a hard link: a file of our own is written and fsynced, then linked to the
//! question's name. `link` is atomic on local file systems and NFS alike; where the server's reply
//! is lost, the link count of our own file tells whether it happened.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::identity::{hex, random_id};

/// The arbiter's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The asker goes on.
    Won,
    /// The other side does.
    Lost,
}

/// Asks, as `claimant`, for the right to go on with VM `vm_id` in `generation`.
///
/// # Errors
/// The storage cannot be reached or written; nothing was decided then, ask again.
pub fn claim(
    directory: &Path,
    vm_id: &str,
    generation: u64,
    claimant: &str,
) -> Result<Verdict, std::io::Error> {
    let question = question_path(directory, vm_id, generation);
    if let Some(verdict) = decided(&question, claimant)? {
        return Ok(verdict);
    }
    let own = directory.join(format!(".{vm_id}.{generation}.{claimant}"));
    let mut file = File::create(&own)?;
    file.write_all(claimant.as_bytes())?;
    file.sync_all()?;
    let linked = fs::hard_link(&own, &question);
    let won = linked.is_ok() || fs::metadata(&own).is_ok_and(|own| own.nlink() == 2);
    let verdict = if won {
        File::open(directory)?.sync_all()?;
        Some(Verdict::Won)
    } else {
        decided(&question, claimant)?
    };
    let _ = fs::remove_file(&own);
    match (verdict, linked) {
        (Some(verdict), _) => Ok(verdict),
        (None, Err(error)) => Err(error),
        (None, Ok(())) => Err(ErrorKind::NotFound.into()),
    }
}

/// Whether a claim could be made in `directory`: asked while there is nothing to decide yet.
///
/// # Errors
/// A sentence: the directory is not there, is none, cannot be written, or its file system has no
/// hard links.
pub fn check_arbiter(directory: &Path) -> Result<(), String> {
    try_claiming(directory).map_err(|error| {
        format!(
            "the arbiter's directory {} cannot be used: {error}; mount the storage that both hosts \
             share, or make the directory and let this user write there",
            directory.display()
        )
    })
}

/// Makes a file and a hard link to it, and removes both.
fn try_claiming(directory: &Path) -> Result<(), std::io::Error> {
    let attempt = random_id().map_err(|error| std::io::Error::other(error.to_string()))?;
    let own = directory.join(format!(".{}.attempt", hex(&attempt)));
    let linked = own.with_extension("link");
    File::create_new(&own)?;
    let made = fs::hard_link(&own, &linked);
    let removed = fs::remove_file(&own);
    made.and_then(|()| fs::remove_file(&linked)).and(removed)
}

/// The answer that was given before, if one was.
fn decided(question: &Path, claimant: &str) -> Result<Option<Verdict>, std::io::Error> {
    match fs::read(question) {
        Ok(winner) if winner == claimant.as_bytes() => Ok(Some(Verdict::Won)),
        Ok(_) => Ok(Some(Verdict::Lost)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn question_path(directory: &Path, vm_id: &str, generation: u64) -> PathBuf {
    directory.join(format!("{vm_id}.generation-{generation}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_who_asks_wins_and_the_answer_stays() {
        let directory = tempfile::tempdir().unwrap();
        let ask = |who| claim(directory.path(), "vm", 1, who).unwrap();
        assert_eq!(ask("a"), Verdict::Won);
        assert_eq!(ask("b"), Verdict::Lost);
        assert_eq!(ask("a"), Verdict::Won);
    }

    #[test]
    fn each_generation_is_a_new_question() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(claim(directory.path(), "vm", 1, "a").unwrap(), Verdict::Won);
        assert_eq!(claim(directory.path(), "vm", 2, "b").unwrap(), Verdict::Won);
        assert_eq!(claim(directory.path(), "vm", 2, "a").unwrap(), Verdict::Lost);
    }

    #[test]
    fn storage_that_is_gone_answers_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        assert!(claim(&gone, "vm", 1, "a").is_err());
    }

    #[test]
    fn a_directory_that_could_not_be_asked_is_noticed_before_it_has_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        File::create(&file).unwrap();
        assert_eq!(check_arbiter(directory.path()), Ok(()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left behind");
        for bad in [file, directory.path().join("gone")] {
            let said = check_arbiter(&bad).unwrap_err();
            let path = bad.display().to_string();
            assert!(said.contains(&path) && said.contains("cannot be used"), "{said}");
        }
    }

    #[test]
    fn of_many_who_ask_at_once_exactly_one_wins_and_nothing_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let threads: Vec<_> = (0..8)
            .map(|index| {
                let path = directory.path().to_owned();
                std::thread::spawn(move || claim(&path, "vm", 7, &format!("asker{index}")).unwrap())
            })
            .collect();
        let won = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .filter(|verdict| *verdict == Verdict::Won)
            .count();
        assert_eq!(won, 1);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
