//! See `sharelens_tests::decoders::channel_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sharelens_tests::decoders::channel_header(data));
