//! See `fuzz::kernel_image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::run("kernel_image", data));
