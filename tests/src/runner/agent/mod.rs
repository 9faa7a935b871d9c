//! How the outside tells an emulated host what to run.
//!
//! Owns the agent's protocol and both of its ends. The bytes go over a virtio serial port, not over the network: tests
//! cut a host's network and still want to talk to it.

mod client;
mod frame;
mod server;

pub use client::{Agent, Event, Events, Input, NotStarted};
pub use frame::{Ended, Order};
pub use server::serve;
