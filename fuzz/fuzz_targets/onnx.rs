//! See `sharelens_tests::decoders::onnx`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sharelens_tests::decoders::onnx(data));
