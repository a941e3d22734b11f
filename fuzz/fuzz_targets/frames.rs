//! See `sharelens_tests::decoders::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sharelens_tests::decoders::frames(data));
