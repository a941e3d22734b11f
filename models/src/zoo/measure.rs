//! Statistics of batch normalisations and the scale of the last layer, from pictures.

use std::collections::HashMap;

use super::builder::{EPSILON, Norm, Plan};
use super::pictures::{self, Purpose};
use crate::config::Preprocess;
use crate::error::{Error, Result};
use crate::float::Walk;
use crate::graph::{Op, Parameters};
use crate::onnx;

/// Pictures to measure on.
const PICTURES: usize = 8;
/// Smallest variance of a channel, over the mean of its layer's: a channel that is dead on these pictures is not
/// blown up on others.
const LEAST_VARIANCE: f64 = 1e-2;

/// Runs a few pictures through the network and gives each normalisation the mean and variance of what reaches it,
/// then brings the last linear layer's output to a standard deviation of `spread`.
pub(super) fn fit(mut plan: Plan, spread: f64, preprocess: &Preprocess, seed: u64) -> Result<Plan> {
    plan.set_batch(PICTURES);
    let mut graph = onnx::import_model(plan.model())?;
    let input = pictures::inputs(preprocess, PICTURES, 1, seed, Purpose::Calibration)?.remove(0);
    let mut walk = Walk::new(&graph, input.iter().map(|&v| v.into()).collect())?;
    let norms: HashMap<String, Norm> =
        std::mem::take(&mut plan.norms).into_iter().map(|n| (n.node.clone(), n)).collect();
    for i in 0..graph.nodes.len() {
        let node = &mut graph.nodes[i];
        if let (Some(norm), Op::Affine { parameters }) = (norms.get(&node.name), &mut node.op) {
            let (mean, variance) = moments(walk.value(node.inputs[0]), norm.gamma.len());
            *parameters = folded(norm, &mean, &variance);
            plan.set(&format!("{}.running_mean", norm.node), &mean);
            plan.set(&format!("{}.running_var", norm.node), &variance);
        }
        walk.step(&graph, i);
        if graph.nodes[i].name == plan.head {
            let (_, variance) = moments(walk.value(i + 1), 1);
            let factor = spread / f64::from(variance[0]).sqrt();
            if !factor.is_finite() {
                return Err(Error::Range(format!("{}: its output is the same everywhere", plan.head)));
            }
            plan.scale_head(factor);
            break;
        }
    }
    Ok(plan)
}

/// Mean and variance of each of the last axis' positions.
fn moments(x: &[f64], channels: usize) -> (Vec<f32>, Vec<f32>) {
    let count = (x.len() / channels) as f64;
    let mut sums = vec![[0.0; 2]; channels];
    for pixel in x.chunks_exact(channels) {
        sums.iter_mut().zip(pixel).for_each(|(s, v)| *s = [s[0] + v, s[1] + v * v]);
    }
    let mean = |s: &[f64; 2]| s[0] / count;
    let variances: Vec<f64> = sums.iter().map(|s| (s[1] / count - mean(s).powi(2)).max(0.0)).collect();
    let least = LEAST_VARIANCE * variances.iter().sum::<f64>() / channels as f64;
    (sums.iter().map(|s| mean(s) as f32).collect(), variances.iter().map(|v| v.max(least) as f32).collect())
}

/// Factors and summands of a normalisation.
fn folded(norm: &Norm, mean: &[f32], variance: &[f32]) -> Parameters {
    let weight: Vec<f32> = norm
        .gamma
        .iter()
        .zip(variance)
        .map(|(&g, &v)| (f64::from(g) / (f64::from(v) + EPSILON).sqrt()) as f32)
        .collect();
    let bias = norm.beta.iter().zip(weight.iter().zip(mean)).map(|(b, (w, m))| b - w * m).collect();
    Parameters { weight, bias }
}
