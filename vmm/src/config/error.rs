//! Everything that can be wrong with a configuration, as sentences: what, where, and what to do.

use thiserror::Error;

/// A configuration that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A list of `key=value` pairs that is not one (open quote, bracket, missing `=`).
    #[error("{option}: \"{text}\" is not a list of key=value pairs: {reason}.")]
    Syntax {
        /// The command-line option (or JSON object) the text belongs to.
        option: String,
        /// The text as given.
        text: String,
        /// Why it cannot be read.
        reason: String,
    },
    /// A key that nobody knows.
    #[error("{option}: there is no key \"{key}\" here. The keys are: {known}.")]
    UnknownKey {
        /// The option the key was given to.
        option: String,
        /// The key.
        key: String,
        /// The keys there are, joined with commas.
        known: String,
    },
    /// A value that cannot be read as what its key needs.
    #[error("{option}: {key}={value} cannot be read: {expected} is needed.")]
    BadValue {
        /// The option the key was given to.
        option: String,
        /// The key.
        key: String,
        /// The value as given.
        value: String,
        /// What a readable value looks like.
        expected: String,
    },
    /// A key that must be there and is not.
    #[error("{option}: {key}= is missing. {advice}")]
    Missing {
        /// The option that lacks the key.
        option: String,
        /// The key.
        key: String,
        /// What to give.
        advice: String,
    },
    /// A field Cloud Hypervisor has and this VMM has not.
    #[error(
        "{place} is set to {value}, which this VMM cannot do (docs/COMPATIBILITY.md says what it \
         can). Leave it out."
    )]
    Unsupported {
        /// Where the field is, as `disks[0].vhost_user` or `--disk vhost_user`.
        place: String,
        /// What it is set to.
        value: String,
    },
    /// JSON that is not JSON, or of the wrong shape.
    #[error("The {what} is not valid JSON for it: {reason}.")]
    Json {
        /// What the JSON was to describe.
        what: &'static str,
        /// The parser's words, with line and column.
        reason: String,
    },
    /// Two wishes that contradict each other, or one that makes no sense. The text is the whole
    /// sentence.
    #[error("{0}")]
    Contradiction(String),
    /// An override for a device the VM does not have.
    #[error(
        "The VM has no {kind} with the id \"{id}\", so nothing of this host can stand in for it. \
         {known}"
    )]
    UnknownDevice {
        /// `disk` or `network device`.
        kind: &'static str,
        /// The id that was asked for.
        id: String,
        /// A sentence that lists the ids there are.
        known: String,
    },
}

impl ConfigError {
    /// A contradiction, in the words given (a whole sentence).
    pub(crate) fn contradiction(sentence: impl Into<String>) -> Self {
        ConfigError::Contradiction(sentence.into())
    }
}
