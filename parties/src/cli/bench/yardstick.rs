//! The same network in the clear, by a runtime that is not ours.

use anyhow::Result;
use serde_json::{Value, json};

use super::subject::Subject;

/// What to print where there is no runtime.
#[cfg(not(feature = "yardstick"))]
const MISSING: &str =
    "not measured: build with `cargo build --profile measure --features yardstick` for tract-onnx";

/// Seconds of plain float inference of the subject's ONNX file, or why there are none.
pub fn measure(subject: &Subject, threads: Option<usize>, runs: usize) -> Value {
    let outcome = match &subject.onnx {
        None => Err(anyhow::anyhow!("no ONNX file at hand")),
        Some(file) => seconds(file, subject, threads, runs),
    };
    outcome.unwrap_or_else(|e| json!({ "unavailable": format!("{e:#}") }))
}

#[cfg(not(feature = "yardstick"))]
fn seconds(_: &[u8], _: &Subject, _: Option<usize>, _: usize) -> Result<Value> {
    anyhow::bail!(MISSING)
}

#[cfg(feature = "yardstick")]
fn seconds(file: &[u8], subject: &Subject, threads: Option<usize>, runs: usize) -> Result<Value> {
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
    let spread = super::report::Spread::of(all.get(1..).context("no run")?);
    Ok(json!({ "runtime": "tract-onnx", "threads": threads, "seconds": spread.json() }))
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
