//! See `sharelens_tests::decoders::node_toml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sharelens_tests::decoders::node_toml(data));
