//! See `fuzz::log_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("log_file", data));
