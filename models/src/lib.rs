//! Networks as data: import, folding, quantisation, planning.
#![forbid(unsafe_code)]

pub mod arithmetic;
pub mod calibrate;
pub mod check;
pub mod config;
pub mod error;
pub mod float;
pub mod graph;
pub mod image;
pub mod inspect;
pub mod lower;
pub mod manifest;
pub mod model;
pub mod onnx;
pub mod passes;
pub mod prepare;
pub mod program;
pub mod scales;
pub mod slm;

pub use arithmetic::Arithmetic;
pub use check::{Check, check};
pub use error::{Error, Result};
pub use graph::Graph;
pub use inspect::{Inspection, inspect};
pub use manifest::Manifest;
pub use model::Model;
pub use prepare::{Options, Prepared, Report, Twin, prepare};
pub use program::{Program, run};
