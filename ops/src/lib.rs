//! Tensors and layers on shares, each with a plaintext twin.
#![forbid(unsafe_code)]

pub mod engine;

pub use engine::{Engine, Linear, ZERO};
