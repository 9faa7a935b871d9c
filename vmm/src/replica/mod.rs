//! The world around the replica protocol: the stream and the heartbeats between two replicas, and
//! threads for what may take its time.
//!
//! Owns sockets and helper threads. Does not own the protocol (`ft`), nor what its actions do to
//! the VM (`crate::shell`).

mod arbiter;
mod channel;
mod heartbeats;
mod helpers;
mod lease;

pub use arbiter::{
    Arbiter, BoundedArbiter, EtcdArbiter, FileArbiter, Question, Verdict, open_arbiter,
};
pub use channel::{Channel, Received};
pub use heartbeats::Heartbeats;
pub use helpers::{Helped, Helpers, Whom};
pub use lease::{Lease, LeasedDisk};
