//! Test suites of ShareLens that span crates.
#![forbid(unsafe_code)]

pub mod decoders;
pub mod pictures;
