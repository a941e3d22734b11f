//! Runs cases against what another runtime yields, one a line on standard input:
//!
//!     {"name": "relu", "model": "relu.onnx", "input": [0.5, -1.0], "outputs": [[0.5, 0.0]]}
//!
//! with numbers in the order of the file. Prints for each whether it was `right`, `refused` (and why) or `wrong` (and by how much), in
//! floats and in fixed point, and at the end how many were which. `models/scripts/onnx_cases.py` makes such lines from the
//! cases that the ONNX project ships; `models/scripts/networks.py` from networks of other projects.

use std::io::BufRead;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sharelens_models::{Error, Model, Options, prepare};

/// What floats may miss: some cases have four digits.
const FLOAT: f64 = 5e-4;

#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    input: Vec<f32>,
    outputs: Vec<Vec<f64>>,
    /// Inputs to calibrate on; the one above, if there are none.
    #[serde(default)]
    calibration: Vec<Vec<f32>>,
}

#[derive(Serialize)]
struct Outcome {
    name: String,
    /// right, refused or wrong.
    outcome: &'static str,
    why: Option<String>,
    /// Largest error of floats and of fixed point, as a share of how far the numbers of an output are apart.
    float: Option<f64>,
    fixed: Option<f64>,
    arithmetic: Option<String>,
    seconds: f64,
}

/// Of the order of the file to that of storage.
fn storage(x: &[f32], shape: &[usize]) -> Vec<f32> {
    let [n, h, w, c] = shape[..] else { return x.to_vec() };
    let mut out = Vec::with_capacity(x.len());
    for i in 0..n {
        for p in 0..h * w {
            out.extend((0..c).map(|k| x[(i * c + k) * h * w + p]));
        }
    }
    out
}

/// Largest difference of any output, as a share of its spread; infinite for one of another length.
fn difference(found: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let mut worst = 0f64;
    for (f, e) in found.iter().zip(expected) {
        if f.len() != e.len() {
            return f64::INFINITY;
        }
        let (lo, hi) = e.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
        // Of numbers that are all alike, their size.
        let spread = if hi - lo > 1e-6 { hi - lo } else { hi.abs().max(lo.abs()).max(1e-3) };
        let diff = f
            .iter()
            .zip(e)
            .fold(0f64, |a, (f, e)| if (f - e).is_nan() { f64::INFINITY } else { a.max((f - e).abs()) });
        worst = worst.max(diff / spread);
    }
    worst
}

fn run(case: &Case) -> Result<(f64, f64, String), Error> {
    let model = Model::import(Path::new(&case.model), None)?;
    let input = storage(&case.input, &model.graph().input_shape);
    if input.len() != model.graph().input_shape.iter().product::<usize>() {
        return Err(Error::Input {
            expected: model.graph().input_shape.iter().product(),
            found: input.len(),
        });
    }
    let finished = |manifest: &sharelens_models::Manifest, values: &[Vec<f64>]| -> Vec<Vec<f64>> {
        manifest.outputs.iter().zip(values).map(|(info, v)| info.finished(v).1).collect()
    };
    let options = Options { stress: false, ..Options::default() };
    let mut samples: Vec<Vec<f32>> =
        case.calibration.iter().map(|x| storage(x, &model.graph().input_shape)).collect();
    if samples.is_empty() {
        samples.push(input.clone());
    }
    let (prepared, _) = prepare(&model, &samples, &options)?;
    let manifest = prepared.manifest()?;
    let float = difference(&finished(&manifest, &prepared.float(&input)?), &case.outputs);
    let twin = prepared.twin(prepared.arithmetic())?;
    let fixed = difference(&finished(&manifest, &twin.run(&input)?), &case.outputs);
    Ok((float, fixed, prepared.arithmetic().to_string()))
}

fn main() {
    let limit = std::env::args().nth(1).and_then(|l| l.parse().ok()).unwrap_or(0.01);
    let mut counts = [0usize; 3];
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("lines of text");
        let case: Case = serde_json::from_str(&line).expect("a case");
        let started = Instant::now();
        let mut out = Outcome {
            name: case.name.clone(),
            outcome: "right",
            why: None,
            float: None,
            fixed: None,
            arithmetic: None,
            seconds: 0.0,
        };
        match run(&case) {
            Ok((float, fixed, arithmetic)) => {
                (out.float, out.fixed, out.arithmetic) = (Some(float), Some(fixed), Some(arithmetic));
                if !(float <= FLOAT && fixed <= limit) {
                    out.outcome = "wrong";
                }
            }
            Err(e) => {
                (out.outcome, out.why) = ("refused", Some(e.to_string()));
            }
        }
        out.seconds = started.elapsed().as_secs_f64();
        counts[["right", "refused", "wrong"].iter().position(|o| *o == out.outcome).unwrap_or(2)] += 1;
        println!("{}", serde_json::to_string(&out).expect("JSON"));
    }
    eprintln!("{} right, {} refused, {} wrong", counts[0], counts[1], counts[2]);
    if counts[2] > 0 {
        std::process::exit(1);
    }
}
