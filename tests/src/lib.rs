//! Test suites of ShareLens that span crates.
