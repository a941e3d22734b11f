//! See `sharelens_tests::decoders::model_config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sharelens_tests::decoders::model_config(data));
