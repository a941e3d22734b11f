//! See `sharelens_tests::decoders::key_file`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sharelens_tests::decoders::key_file(data));
