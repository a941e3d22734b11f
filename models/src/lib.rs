//! Networks as data: import, folding, quantisation, planning.
#![forbid(unsafe_code)]

pub mod error;
pub mod graph;
pub mod onnx;

pub use error::{Error, Result};
pub use graph::Graph;
