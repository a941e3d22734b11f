//! See `sharelens_tests::openings::check`: whether a manifest makes the servers open what depends on the input.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let seed = data.iter().fold(7u64, |h, &b| h.wrapping_mul(31).wrapping_add(b.into())) % 1_000_003;
    sharelens_tests::openings::check(&sharelens_tests::hostile::manifest(data), seed);
});
