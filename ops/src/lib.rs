//! Tensors and layers on shares, each with a plaintext twin.
#![forbid(unsafe_code)]

pub mod detect;
pub mod engine;
pub mod layers;
pub mod number;
pub mod opened;
pub mod plain;
pub mod planner;
pub mod real;
pub mod secure;

pub use engine::{Engine, Linear, ZERO};
pub use plain::Plain;
pub use planner::Planner;
pub use secure::Secure;
