//! Fixed point against floats, over a set of inputs.

use rayon::prelude::*;
use serde::Serialize;
use sharelens_ops::plain::Rounding;
use sharelens_protocol::ring::Range;

use crate::config::Task;
use crate::detect::compare::Agreement;
use crate::detect::{self, Detections};
use crate::error::{Error, Result};
use crate::float;
use crate::graph::{Graph, Op, ValueId};
use crate::prepare::Prepared;

/// How well a prepared model agrees with its floats.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Inputs tried.
    pub inputs: usize,
    /// Largest difference of any output; of a detector, of the logits and deltas that anchors are chosen by.
    pub max_error: f64,
    /// Mean over inputs of the largest difference.
    pub mean_error: f64,
    /// Inputs with the same largest class; for classifiers.
    pub same_class: Option<usize>,
    /// Detections scored at least 0.5, over all inputs; for detectors.
    pub detections: Option<Agreement>,
    /// Inputs whose suppression did not settle in its number of steps; for detectors.
    pub unsettled: Option<usize>,
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

/// Scores from which detections are compared.
pub const CONFIDENT: f64 = 0.5;

/// Whether suppression settled in a detector's run with these outputs.
pub fn settled(outputs: &[Vec<f64>]) -> bool {
    outputs.iter().skip(1).flatten().all(|v| v.abs() < 0.5)
}

/// One input's outcome.
struct One {
    error: f64,
    same_class: bool,
    agreement: Agreement,
    settled: bool,
    /// Room, and the layer that has it.
    tightest: (f64, usize),
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
    // Lists of detections may differ by two rows exchanged: error is measured before anything is chosen.
    let (part, anchors) = (twin.before_anchors(), before_anchors(prepared.graph()));
    let stride = prepared.config().detection.as_ref().map(|d| d.stride);
    let one = |input: &Vec<f32>| -> Result<One> {
        let (fixed, peaks) = twin.run_storage(input, Rounding::Nearest)?;
        let wide: Vec<f64> = input.iter().map(|&v| v.into()).collect();
        let mut before = vec![Vec::new(); anchors.len()];
        let float = float::visit(prepared.graph(), &wide, |value, x| {
            for (_, seen) in anchors.iter().zip(&mut before).filter(|(a, _)| **a == value) {
                *seen = x.to_vec();
            }
        })?;
        let difference = |a: &[Vec<f64>], b: &[Vec<f64>]| {
            let pairs = a.iter().flatten().zip(b.iter().flatten());
            pairs.fold(0f64, |m, (x, y)| m.max((x - y).abs()))
        };
        let error = match &part {
            Some(part) => difference(&part.run_storage(input, Rounding::Nearest)?.0, &before),
            None => difference(&fixed, &float),
        };
        let agreement = stride.map_or_else(Agreement::default, |stride| {
            let [a, b] = [&fixed, &float].map(|o| Detections::from_rows(&o[0], stride));
            detect::compare(&a, &b, CONFIDENT)
        });
        let headroom = peaks.iter().map(|(&layer, peak)| {
            let i = layer as usize;
            let reduced = program.layers.get(i).is_some_and(|l| l.range == Range::Reduced);
            let room = |found: u64, allowed: i64| allowed as f64 / (found.max(1)) as f64;
            let smaller = room(peak.reduced, bounds.reduced);
            (if reduced { smaller } else { smaller.min(room(peak.full, bounds.full)) }, i)
        });
        let tightest = headroom.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, 0));
        let same_class = top(&fixed[0]) == top(&float[0]);
        Ok(One { error, same_class, agreement, settled: settled(&fixed), tightest })
    };
    let all: Vec<_> = inputs.par_iter().map(one).collect::<Result<_>>()?;
    let (headroom, layer) =
        all.iter().map(|r| r.tightest).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((f64::INFINITY, 0));
    let classifies = prepared.config().task == Task::Classification;
    Ok(Check {
        inputs: inputs.len(),
        max_error: all.iter().map(|r| r.error).fold(0.0, f64::max),
        mean_error: all.iter().map(|r| r.error).sum::<f64>() / all.len() as f64,
        same_class: classifies.then(|| all.iter().filter(|r| r.same_class).count()),
        detections: stride.map(|_| all.iter().fold(Agreement::default(), |a, r| a.and(r.agreement))),
        unsettled: stride.map(|_| all.iter().filter(|r| !r.settled).count()),
        tightest: Tightest {
            layer: program.layers.get(layer).map_or_else(|| "input".into(), |l| l.name.clone()),
            headroom,
        },
    })
}

/// The values that anchors are chosen by.
fn before_anchors(graph: &Graph) -> Vec<ValueId> {
    let chooses = |op: &Op| matches!(op, Op::Detect(detect::Stage::TopAnchors { .. }));
    graph.nodes.iter().find(|n| chooses(&n.op)).map_or_else(Vec::new, |n| n.inputs.clone())
}
