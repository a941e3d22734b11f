//! The same network in the clear, by a runtime that is not ours.

use std::fmt;

use anyhow::Result;
use serde::Serialize;
use sharelens::text;

use super::report::Spread;
use super::subject::Subject;

/// What to print where there is no runtime.
#[cfg(not(feature = "yardstick"))]
const MISSING: &str =
    "not measured: build with `cargo build --profile measure --features yardstick` for tract-onnx";

/// Plain float inference of the same network, or why it was not measured.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Yardstick {
    /// Seconds of another runtime.
    #[cfg_attr(not(feature = "yardstick"), expect(dead_code, reason = "the runtime is not built in"))]
    Measured {
        runtime: &'static str,
        threads: usize,
        seconds: Spread,
        /// How many times as long the online phase takes.
        #[serde(skip_serializing_if = "Option::is_none")]
        online_ratio: Option<f64>,
    },
    /// Why there are none.
    Unavailable { unavailable: String },
}

impl Yardstick {
    /// The same beside an online phase of so many seconds.
    #[must_use]
    pub fn against(mut self, online: f64) -> Self {
        if let Self::Measured { seconds, online_ratio, .. } = &mut self {
            *online_ratio = seconds.median.map(|median| online / median);
        }
        self
    }
}

impl fmt::Display for Yardstick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Measured { runtime, threads, seconds, online_ratio } => write!(
                f,
                "plain floats by {runtime}, {threads} threads:{seconds}; online takes {:.1} times as long",
                online_ratio.unwrap_or(f64::NAN),
            ),
            Self::Unavailable { unavailable } => {
                write!(f, "plain floats: {}", text::one_line(unavailable))
            }
        }
    }
}

/// Seconds of plain float inference of the subject's ONNX file, or why there are none.
pub fn measure(subject: &Subject, threads: Option<usize>, runs: usize) -> Yardstick {
    let outcome = match &subject.onnx {
        None => Err(anyhow::anyhow!("no ONNX file at hand")),
        Some(file) => seconds(file, subject, threads, runs),
    };
    outcome.unwrap_or_else(|e| Yardstick::Unavailable { unavailable: format!("{e:#}") })
}

#[cfg(not(feature = "yardstick"))]
fn seconds(_: &[u8], _: &Subject, _: Option<usize>, _: usize) -> Result<Yardstick> {
    anyhow::bail!(MISSING)
}

#[cfg(feature = "yardstick")]
fn seconds(file: &[u8], subject: &Subject, threads: Option<usize>, runs: usize) -> Result<Yardstick> {
    use anyhow::Context;
    use tract_linalg::multithread::{Executor, multithread_tract_scope};
    use tract_onnx::prelude::*;

    let mut model = tract_onnx::onnx().model_for_read(&mut std::io::Cursor::new(file))?;
    let (shape, values) = original(&subject.manifest.program.input_shape, &subject.input);
    model.set_input_fact(0, f32::fact(&shape).into())?;
    let runnable = model.into_optimized()?.into_runnable()?;
    let input = Tensor::from_shape(&shape, &values)?;
    let threads = threads.unwrap_or_else(rayon::current_num_threads);
    let all: Vec<f64> = multithread_tract_scope(Executor::multithread(threads), || {
        let one = |_| {
            let input = tvec!(input.clone().into());
            let start = std::time::Instant::now();
            runnable.run(input).map(|_| start.elapsed().as_secs_f64())
        };
        (0..=runs).map(one).collect::<Result<_, _>>()
    })?;
    // The first one warms up.
    let seconds = Spread::of(all.get(1..).context("no run")?);
    Ok(Yardstick::Measured { runtime: "tract-onnx", threads, seconds, online_ratio: None })
}

/// An input in storage order as ONNX has it: shape and numbers.
#[cfg(feature = "yardstick")]
fn original(shape: &[usize], input: &[f32]) -> (Vec<usize>, Vec<f32>) {
    match *shape {
        [n, h, w, c] => {
            let index = sharelens_ops::layers::movement::transpose(&[n, h, w, c], &[0, 3, 1, 2]);
            (vec![n, c, h, w], index.into_iter().map(|i| input[i as usize]).collect())
        }
        _ => (shape.to_vec(), input.to_vec()),
    }
}
