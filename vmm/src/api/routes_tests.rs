//! Tests of `routes.rs`.
