//! Tests of `cli.rs`.
