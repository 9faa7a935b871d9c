//! Initial RAM file systems, for the emulated hosts and for the guests alike.
//!
//! Owns the archive and the choice of kernel modules. Does not own what `/init` does in either.

mod archive;
mod modules;

pub use archive::Archive;
pub use modules::{Module, ModuleTree};
