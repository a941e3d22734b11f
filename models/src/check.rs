//! Fixed point against floats, over a set of inputs.

use rayon::prelude::*;
use serde::Serialize;
use sharelens_ops::plain::Rounding;
use sharelens_protocol::ring::Range;

use crate::config::Task;
use crate::error::{Error, Result};
use crate::prepare::Prepared;

/// How well a prepared model agrees with its floats.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Inputs tried.
    pub inputs: usize,
    /// Largest difference of any output.
    pub max_error: f64,
    /// Mean over inputs of the largest difference.
    pub mean_error: f64,
    /// Inputs with the same largest class; for classifiers.
    pub same_class: Option<usize>,
    /// The layer that came closest to the end of its range.
    pub tightest: Tightest,
}

/// How close a layer came to the end of its range.
#[derive(Clone, Debug, Serialize)]
pub struct Tightest {
    /// Its name.
    pub layer: String,
    /// How many times over its largest number would have fitted.
    pub headroom: f64,
}

/// Position of the largest number; the first of equals.
pub fn top(v: &[f64]) -> Option<usize> {
    (0..v.len()).reduce(|a, b| if v[b] > v[a] { b } else { a })
}

/// Runs twin and floats on each input.
///
/// # Errors
///
/// [`Error::Overflow`] names the layer where a value leaves its range.
pub fn check(prepared: &Prepared, inputs: &[Vec<f32>]) -> Result<Check> {
    if inputs.is_empty() {
        return Err(Error::Image("no inputs to check were given".into()));
    }
    let twin = prepared.twin(prepared.arithmetic())?;
    let program = &twin.manifest().program;
    let bounds = prepared.arithmetic().bounds()?;
    let one = |input: &Vec<f32>| -> Result<(f64, bool, (f64, usize))> {
        let (fixed, peaks) = twin.run_storage(input, Rounding::Nearest)?;
        let wide: Vec<f64> = input.iter().map(|&v| v.into()).collect();
        let float = crate::float::run(prepared.graph(), &wide)?;
        let pairs = fixed.iter().flatten().zip(float.iter().flatten());
        let error = pairs.fold(0f64, |a, (x, y)| a.max((x - y).abs()));
        let headroom = peaks.iter().map(|(&layer, peak)| {
            let i = layer as usize;
            let reduced = program.layers.get(i).is_some_and(|l| l.range == Range::Reduced);
            let room = |found: u64, allowed: i64| allowed as f64 / (found.max(1)) as f64;
            let smaller = room(peak.reduced, bounds.reduced);
            (if reduced { smaller } else { smaller.min(room(peak.full, bounds.full)) }, i)
        });
        let tightest = headroom.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, 0));
        Ok((error, top(&fixed[0]) == top(&float[0]), tightest))
    };
    let all: Vec<_> = inputs.par_iter().map(one).collect::<Result<_>>()?;
    let (headroom, layer) =
        all.iter().map(|r| r.2).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, 0));
    let classifies = prepared.config().task == Task::Classification;
    Ok(Check {
        inputs: inputs.len(),
        max_error: all.iter().map(|r| r.0).fold(0.0, f64::max),
        mean_error: all.iter().map(|r| r.0).sum::<f64>() / all.len() as f64,
        same_class: classifies.then(|| all.iter().filter(|r| r.1).count()),
        tightest: Tightest {
            layer: program.layers.get(layer).map_or_else(|| "input".into(), |l| l.name.clone()),
            headroom,
        },
    })
}
