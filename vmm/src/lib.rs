//! The virtual machine monitor: a deterministic machine, the shell around it, the outer surface.
//!
//! The order to read it in: [`machine`] (the deterministic core: vCPU, RAM, models), [`engine`]
//! (the thread that moves it from moment to moment), [`shell`] (everything real around it),
//! [`replica`] (the driver of the replica protocol that `ft` keeps). [`board`], [`devices`],
//! [`loader`] and [`build`] say what the machine is made of; [`config`], [`cli`] and [`api`] are
//! what users see; [`logfile`] is the log on disk.
//!
//! Does not own: KVM (`hypervisor`), virtio devices (`virtio-devices`), the log and the protocol
//! (`ft`).

pub mod api;
pub mod board;
pub mod build;
pub mod cli;
pub mod config;
pub mod description;
pub mod devices;
pub mod engine;
pub mod error;
pub mod identity;
pub mod inherited;
pub mod loader;
pub mod logfile;
pub mod logger;
pub mod machine;
pub mod replica;
pub mod seccomp;
pub mod shell;
pub mod words;
