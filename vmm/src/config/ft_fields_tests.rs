//! Tests of `ft_fields.rs`.
