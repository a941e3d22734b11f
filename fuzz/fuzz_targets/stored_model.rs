//! See `sharelens_tests::decoders::stored_model`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sharelens_tests::decoders::stored_model(data));
