//! placeholder

pub mod loader;
