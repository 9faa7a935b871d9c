//! See `fuzz::options`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("options", data));
