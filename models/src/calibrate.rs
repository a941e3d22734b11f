//! Ranges of values, from pictures given and from pictures nobody hopes to see.

use rayon::prelude::*;

use crate::config::Preprocess;
use crate::error::{Error, Result};
use crate::float;
use crate::graph::Graph;
use crate::image::normalise;

/// Largest magnitude of each value of the network over these inputs.
///
/// # Errors
///
/// If an input has another size than the network's, or a value is not finite.
pub fn peaks<S: AsRef<[f32]> + Sync>(graph: &Graph, inputs: &[S]) -> Result<Vec<f64>> {
    Ok(observe(graph, inputs, |_| false)?.0)
}

/// Outputs of one run.
type Outputs = Vec<Vec<f64>>;

/// The same, and the outputs for the inputs that are to be `kept`.
pub(crate) fn observe<S: AsRef<[f32]> + Sync>(
    graph: &Graph,
    inputs: &[S],
    kept: impl Fn(usize) -> bool + Sync,
) -> Result<(Vec<f64>, Vec<Outputs>)> {
    let one = |(i, input): (usize, &S)| {
        let input: Vec<f64> = input.as_ref().iter().map(|&v| v.into()).collect();
        let mut peaks = vec![0f64; graph.nodes.len() + 1];
        // The largest first turns a NaN into an infinity, which is refused below.
        let size = |v: f64| if v.is_finite() { v.abs() } else { f64::INFINITY };
        let outputs =
            float::visit(graph, &input, |v, x| peaks[v] = x.iter().fold(0.0, |a: f64, &x| a.max(size(x))))?;
        Ok((peaks, kept(i).then_some(outputs)))
    };
    let all: Vec<(Vec<f64>, Option<_>)> = inputs.par_iter().enumerate().map(one).collect::<Result<_>>()?;
    let largest = |v: usize| all.iter().map(|(p, _)| p[v]).fold(0.0, f64::max);
    let peaks: Vec<f64> = (0..graph.nodes.len() + 1).map(largest).collect();
    match peaks.iter().position(|p| !p.is_finite()) {
        Some(v) => {
            Err(Error::Range(format!("{}: a calibration input makes a value infinite", graph.value_name(v))))
        }
        None => Ok((peaks, all.into_iter().filter_map(|(_, outputs)| outputs).collect())),
    }
}

/// Inputs that no calibration set holds: black, white, grey, noise, checkerboards, and `samples` inverted.
pub fn stress(p: &Preprocess, samples: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let [rows, columns] = p.size;
    let c = p.channels.count();
    let picture = |f: &mut dyn FnMut(usize, usize) -> f64| -> Vec<f32> {
        let pixels: Vec<f64> =
            (0..rows * columns * c).map(|i| f(i / (columns * c), i / c % columns)).collect();
        normalise(&pixels, p)
    };
    let mut out: Vec<Vec<f32>> = [0.0, 255.0, 127.5].into_iter().map(|v| picture(&mut |_, _| v)).collect();
    for side in [1, 8] {
        out.push(picture(&mut |y, x| if (y / side + x / side) % 2 == 0 { 255.0 } else { 0.0 }));
    }
    // Uniform noise by a fixed congruential sequence: the same on every machine.
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as f64
    };
    out.push(picture(&mut |_, _| noise()));
    let statistics = || p.mean.iter().zip(&p.std).cycle();
    for sample in samples {
        let pixels: Vec<f64> = sample
            .iter()
            .zip(statistics())
            .map(|(&v, (m, s))| 255.0 - (f64::from(v) * s + m) / p.scale)
            .collect();
        out.push(normalise(&pixels, p));
    }
    out
}
