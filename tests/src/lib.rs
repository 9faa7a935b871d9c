//! The harness of the end-to-end tests: emulated hosts, the guest they run, and the client outside both.
//!
//! Owns what tests and the demo share. Does not own the tests themselves (`tests/tests/`), nor anything that a
//! user of the VMM needs.

pub mod bench;
pub mod client;
pub mod demo;
pub mod etcd;
pub mod flipping;
pub mod guest;
pub mod initramfs;
pub mod runner;
pub mod stranger;
pub mod vm;

#[cfg(test)]
mod selftest;
