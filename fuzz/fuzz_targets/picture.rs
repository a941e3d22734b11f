//! See `sharelens_tests::decoders::picture`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sharelens_tests::decoders::picture(data));
