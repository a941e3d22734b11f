//! See `sharelens_tests::decoders::card_toml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sharelens_tests::decoders::card_toml(data));
