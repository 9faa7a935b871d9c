//! See `fuzz::tsc_scan`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("tsc_scan", data));
