//! Arithmetic.

pub mod kernel;
