//! `file:`: an arbiter in a directory of storage that both hosts share.
//!
//! Owns one file a question. The claim is a hard link: a file of our own is written and fsynced,
//! then linked to the question's name. `link` is atomic on local file systems and NFS alike; where
//! the server's reply is lost, the link count of our own file tells whether it happened.
//!
//! Does not own how long that may take: storage that hangs does so for as long as it likes.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Arbiter, Question, Verdict};
use crate::error::Error;
use crate::identity::{hex, random_id};

/// An arbiter in a directory.
#[derive(Debug)]
pub struct FileArbiter {
    directory: PathBuf,
}

impl FileArbiter {
    /// The arbiter in `directory`, which is looked at when it is asked.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Where the answer to `question` is, or will be.
    fn answer_path(&self, question: &Question) -> PathBuf {
        let Question { vm_id, generation, .. } = question;
        self.directory.join(format!("{}.generation-{generation}", hex(vm_id)))
    }

    /// Tries to be the one whose claim is at `answer`. Whether it was ours is known only where this
    /// is `true`.
    fn put(&self, question: &Question, answer: &Path) -> io::Result<bool> {
        let Question { vm_id, generation, .. } = question;
        let claim = question.claim_text();
        let own = self.directory.join(format!(".{}.{generation}.{claim}", hex(vm_id)));
        // One that is left from before may be the answer itself under its second name; it must not
        // be written to.
        match fs::remove_file(&own) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        write_durably(&own, claim.as_bytes())?;
        let linked = fs::hard_link(&own, answer);
        let won = linked.is_ok() || fs::metadata(&own).is_ok_and(|own| own.nlink() == 2);
        let _ = fs::remove_file(&own);
        match linked {
            Err(error) if !won && error.kind() != ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(won),
        }
    }

    fn ask(&self, question: &Question) -> Result<Verdict, Error> {
        let path = self.answer_path(question);
        let verdict = match decided(&path, question)? {
            Some(verdict) => verdict,
            None if self.put(question, &path).map_err(no_answer)? => Verdict::Won,
            // Somebody else's is there, but a cache may not show it yet.
            None => decided(&path, question)?
                .ok_or_else(|| no_answer(io::Error::from(ErrorKind::NotFound)))?,
        };
        // Also for an answer that was found: whoever put it there may not have got this far.
        File::open(&self.directory).and_then(|folder| folder.sync_all()).map_err(no_answer)?;
        Ok(verdict)
    }

    /// Makes a file and a hard link to it, and removes both.
    fn try_claiming(&self) -> io::Result<()> {
        let attempt = random_id().map_err(|error| io::Error::other(error.to_string()))?;
        let own = self.directory.join(format!(".{}.attempt", hex(&attempt)));
        let linked = own.with_extension("link");
        write_durably(&own, b"can a claim be made here?")?;
        let made = fs::hard_link(&own, &linked);
        let removed = fs::remove_file(&own);
        made.and_then(|()| fs::remove_file(&linked)).and(removed)
    }
}

impl Arbiter for FileArbiter {
    fn place(&self) -> String {
        format!("file:{}", self.directory.display())
    }

    fn claim(&self, question: &Question) -> Result<Verdict, Error> {
        self.ask(question)
    }

    fn check(&self) -> Result<(), Error> {
        self.try_claiming().map_err(|error| {
            Error::Arbiter(format!(
                "the arbiter's directory {} cannot be used: {error}; mount the storage that both \
                 hosts share, or make the directory and let this user write there",
                self.directory.display()
            ))
        })
    }
}

/// The answer that was given before, if one was.
fn decided(path: &Path, question: &Question) -> Result<Option<Verdict>, Error> {
    match fs::read(path) {
        Ok(written) => question.judge(&written).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(no_answer(error)),
    }
}

fn write_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[expect(clippy::needless_pass_by_value, reason = "it is handed to map_err")]
fn no_answer(error: io::Error) -> Error {
    Error::Arbiter(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(claimant: u8) -> Question {
        Question { vm_id: [7; 16], generation: 2, claimant: [claimant; 16] }
    }

    #[test]
    fn a_claim_leaves_one_file_behind_and_a_check_none() {
        let directory = tempfile::tempdir().unwrap();
        let arbiter = FileArbiter::new(directory.path());
        arbiter.check().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        assert_eq!(arbiter.claim(&question(1)).unwrap(), Verdict::Won);
        assert_eq!(arbiter.claim(&question(2)).unwrap(), Verdict::Lost);
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, [format!("{}.generation-2", "07".repeat(16))]);
    }

    #[test]
    fn a_claim_whose_reply_was_lost_is_found_again_and_not_written_to() {
        let directory = tempfile::tempdir().unwrap();
        let arbiter = FileArbiter::new(directory.path());
        let own =
            directory.path().join(format!(".{}.2.{}", "07".repeat(16), question(1).claim_text()));
        // As a process leaves it that ended between linking and cleaning up.
        write_durably(&own, question(1).claim_text().as_bytes()).unwrap();
        fs::hard_link(&own, arbiter.answer_path(&question(1))).unwrap();
        assert!(!arbiter.put(&question(1), &arbiter.answer_path(&question(1))).unwrap());
        assert_eq!(arbiter.claim(&question(2)).unwrap(), Verdict::Lost);
        assert_eq!(arbiter.claim(&question(1)).unwrap(), Verdict::Won);
    }

    #[test]
    fn a_file_that_names_nobody_is_no_answer() {
        let directory = tempfile::tempdir().unwrap();
        let arbiter = FileArbiter::new(directory.path());
        fs::write(arbiter.answer_path(&question(1)), b"").unwrap();
        assert!(arbiter.claim(&question(1)).unwrap_err().to_string().contains("names nobody"));
        assert!(arbiter.claim(&question(2)).is_err());
    }

    #[test]
    fn a_directory_that_could_not_be_asked_is_noticed_before_it_has_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        File::create(&file).unwrap();
        for bad in [file, directory.path().join("gone")] {
            let arbiter = FileArbiter::new(&bad);
            let said = arbiter.check().unwrap_err().to_string();
            let begin = format!("the arbiter's directory {} cannot be used: ", bad.display());
            assert!(said.starts_with(&begin) && said.contains("make the directory"), "{said}");
            assert!(arbiter.claim(&question(1)).is_err());
        }
    }
}
