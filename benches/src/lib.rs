//! Benchmarks of ShareLens.
