//! See `fuzz::machine_state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("machine_state", data));
