//! placeholder
pub mod api;
pub mod cli;
pub mod config;
