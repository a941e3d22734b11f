//! Test suites of ShareLens that span crates.
#![forbid(unsafe_code)]

pub mod decoders;
pub mod hostile;
pub mod openings;
pub mod pictures;
