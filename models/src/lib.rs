//! Networks as data: import, folding, quantisation, planning.
//!
//! An ONNX file becomes a [`Model`]; calibration on pictures makes it [`Prepared`], with moduli and scales; its
//! [`Manifest`] is public and holds the [`Program`] that [`run`] executes on any [`sharelens_ops::Engine`]; its
//! quantised weights are secret.
//!
//! ```
//! use std::path::Path;
//!
//! use sharelens_models::image::Picture;
//! use sharelens_models::{Model, Options, prepare};
//!
//! # fn main() -> sharelens_models::Result<()> {
//! let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
//! let model = Model::import(&data.join("brain_mri_cnn/model.onnx"), None)?;
//! let picture = Picture::load(&data.join("brain_mri/no_tumor-image_165.jpg"))?;
//! let input = model.input(&picture)?;
//!
//! let (prepared, report) = prepare(&model, &[input.clone()], &Options::default())?;
//! let (fixed, float) = (prepared.plain(&input)?, prepared.float(&input)?);
//! assert!(report.error < 0.008 && (fixed[0][2] - float[0][2]).abs() < 0.008);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod arithmetic;
pub mod arrange;
pub mod calibrate;
pub mod check;
pub mod config;
pub mod detect;
pub mod error;
pub mod finish;
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
pub mod proof;
pub mod real;
pub mod scales;
pub mod slm;
pub mod smooth;
pub mod stage;
pub mod zoo;

pub use arithmetic::Arithmetic;
pub use check::{Check, check};
pub use error::{Error, Result};
pub use graph::Graph;
pub use inspect::{Inspection, inspect};
pub use manifest::Manifest;
pub use model::Model;
pub use prepare::{Options, Prepared, Report, Twin, prepare};
pub use program::{Program, run};
