//! The guest the tests run: a stock kernel, busybox and one program of ours.
//!
//! Owns what is inside the guest, the language its services speak (which the client shares), and the making of its
//! initial RAM file system and its disk. Does not own the client's side: that is [`crate::client`].

pub mod agent;
pub mod blocks;
pub mod disk;
pub mod image;
pub mod pattern;
pub mod protocol;
