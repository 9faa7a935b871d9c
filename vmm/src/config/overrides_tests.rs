//! Tests of `overrides.rs`.
