//! Tests of the harness itself, with nothing of the VMM in them: when they pass, a failure elsewhere is not the harness's.
//!
//! Owns a guest under plain QEMU, against which services and client are tried. They need root, and take the tests'
//! dependencies for granted like the others.

mod cuts;
mod guest;
mod hosts;
mod nfs;
