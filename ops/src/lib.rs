//! Tensors and layers on shares, each with a plaintext twin.
#![forbid(unsafe_code)]

pub mod engine;
pub mod layers;
pub mod plain;

pub use engine::{Engine, Linear, ZERO};
pub use plain::Plain;
