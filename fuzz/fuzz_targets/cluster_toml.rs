//! See `sharelens_tests::decoders::cluster_toml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sharelens_tests::decoders::cluster_toml(data));
