//! Tests of `device_options.rs`.
