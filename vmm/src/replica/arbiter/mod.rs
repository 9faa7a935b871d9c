//! Who goes on with a VM when its two replicas lose each other: the question, and who answers it.
//!
//! Owns what every arbiter promises ([`Arbiter`]) and which one a configuration means. Does not own
//! when to ask, and how often (`ft`), nor what follows from an answer (`crate::shell`).

mod bounded;
mod credentials;
mod etcd;
mod file;

use std::fmt::Debug;
use std::sync::Arc;

pub use bounded::BoundedArbiter;
pub use etcd::EtcdArbiter;
pub use file::FileArbiter;

use crate::config;
use crate::error::Error;
use crate::identity::hex;

/// *Who goes on with this VM in this generation?* asked by somebody who would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The VM, whatever host it is on.
    pub vm_id: [u8; 16],
    /// The generation that is to begin.
    pub generation: u64,
    /// Who asks. Nobody else may ask with the same name.
    pub claimant: [u8; 16],
}

/// The answer to a [`Question`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The asker goes on.
    Won,
    /// Somebody else does.
    Lost,
}

/// An atomic test-and-set for each generation of each VM.
///
/// The first who claims a generation has it for ever. Whoever asks again gets the same answer,
/// also if the first answer never arrived. An answer is durable before it is given.
pub trait Arbiter: Debug + Send + Sync {
    /// Where it is, in the words of `arbiter=`.
    fn place(&self) -> String;

    /// Asks. May take as long as whatever lies below takes.
    ///
    /// # Errors
    /// There is no answer, which is different from *no*: the claim may or may not have been made.
    /// Ask again.
    fn claim(&self, question: &Question) -> Result<Verdict, Error>;

    /// Finds out whether it could be asked now. Claims nothing.
    ///
    /// # Errors
    /// A sentence that says why not, and what to do.
    fn check(&self) -> Result<(), Error>;
}

/// The arbiter that `config` means; `None` where the user wants none.
///
/// # Errors
/// What it needs on this host cannot be read.
pub fn open_arbiter(
    config: Option<&config::Arbiter>,
) -> Result<Option<Arc<BoundedArbiter>>, Error> {
    let arbiter: Arc<dyn Arbiter> = match config {
        Some(config::Arbiter::File { path }) => Arc::new(FileArbiter::new(path)),
        Some(config::Arbiter::Etcd(etcd)) => Arc::new(EtcdArbiter::new(etcd)?),
        Some(config::Arbiter::None) | None => return Ok(None),
    };
    Ok(Some(Arc::new(BoundedArbiter::new(arbiter))))
}

impl Question {
    /// What is written down for whoever wins: the claimant's name.
    fn claim_text(&self) -> String {
        hex(&self.claimant)
    }

    /// Reads what was written down. What nobody could have written down is no answer.
    fn judge(&self, written: &[u8]) -> Result<Verdict, Error> {
        let own = self.claim_text();
        if written == own.as_bytes() {
            return Ok(Verdict::Won);
        }
        if written.len() == own.len() && written.iter().all(u8::is_ascii_hexdigit) {
            return Ok(Verdict::Lost);
        }
        Err(Error::Arbiter(format!(
            "what is written down for generation {} of VM {} names nobody who could have asked \
             ({} bytes)",
            self.generation,
            hex(&self.vm_id),
            written.len()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_is_an_answer() {
        let question = Question { vm_id: [1; 16], generation: 7, claimant: [0xab; 16] };
        let own = "ab".repeat(16);
        assert_eq!(question.judge(own.as_bytes()).unwrap(), Verdict::Won);
        assert_eq!(question.judge(&[b'0'; 32]).unwrap(), Verdict::Lost);
        for written in [&b""[..], b"ab", &[b'g'; 32], &[0; 32], &[b'a'; 33]] {
            let error = question.judge(written).unwrap_err().to_string();
            assert!(error.contains("generation 7 of VM 0101"), "{error}");
        }
    }
}
