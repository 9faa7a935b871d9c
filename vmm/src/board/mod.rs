//! The board: which address, port and interrupt everything has, and the tables that tell the guest.
//!
//! Pure functions from a configuration to bytes and addresses. Nothing here has state, opens a file
//! or knows a device model; the only thing it touches is guest memory, before the guest runs.

pub mod acpi;
pub mod layout;
