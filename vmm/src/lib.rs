//! placeholder

pub mod board;
pub mod devices;
