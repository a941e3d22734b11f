//! The network in floating point: the reference that fixed-point numbers are held against.

use sharelens_ops::ZERO;
use sharelens_ops::plain::gemm::convolve;

use crate::arrange::Arrange;
use crate::detect::reference;
use crate::error::{Error, Result};
use crate::graph::{Graph, Op, Parameters, Taps, ValueId};

/// All outputs of the network for one input, in storage order, computed in `f64`.
///
/// # Errors
///
/// If the input has another size than the network's.
pub fn run(graph: &Graph, input: &[f64]) -> Result<Vec<Vec<f64>>> {
    visit(graph, input, |_, _| {})
}

/// The same, showing every value to `see` as it is computed.
///
/// # Errors
///
/// As [`run`].
pub fn visit(graph: &Graph, input: &[f64], mut see: impl FnMut(ValueId, &[f64])) -> Result<Vec<Vec<f64>>> {
    let mut walk = Walk::new(graph, input.to_vec())?;
    see(0, input);
    for i in 0..graph.nodes.len() {
        see(i + 1, walk.step(graph, i));
    }
    Ok(graph.outputs.iter().map(|o| walk.value(o.value).to_vec()).collect())
}

/// A run, node by node. Values are dropped after their last use.
pub(crate) struct Walk {
    /// How many are still to read each value.
    left: Vec<usize>,
    values: Vec<Option<Vec<f64>>>,
}

impl Walk {
    /// Before the first node.
    ///
    /// # Errors
    ///
    /// If the input has another size than the network's.
    pub(crate) fn new(graph: &Graph, input: Vec<f64>) -> Result<Self> {
        if input.len() != graph.len(0) {
            return Err(Error::Input { expected: graph.len(0), found: input.len() });
        }
        let mut values = vec![None; graph.nodes.len() + 1];
        values[0] = Some(input);
        Ok(Self { left: graph.uses(), values })
    }

    /// A value that was computed and is still to be read.
    pub(crate) fn value(&self, v: ValueId) -> &[f64] {
        self.values[v].as_deref().expect("kept until its last use")
    }

    /// Computes node `i`, the next one.
    pub(crate) fn step(&mut self, graph: &Graph, i: usize) -> &[f64] {
        let node = &graph.nodes[i];
        let shapes: Vec<&[usize]> = node.inputs.iter().map(|&v| graph.shape(v)).collect();
        let inputs: Vec<&[f64]> = node.inputs.iter().map(|&v| self.value(v)).collect();
        let out = apply(&node.op, &inputs, &shapes);
        for &v in &node.inputs {
            self.left[v] -= 1;
            if self.left[v] == 0 {
                self.values[v] = None;
            }
        }
        self.values[i + 1].insert(out)
    }
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| v.into()).collect()
}

fn gather(x: &[f64], index: &[u32]) -> Vec<f64> {
    index.iter().map(|&i| if i == ZERO { 0.0 } else { x[i as usize] }).collect()
}

fn apply(op: &Op, inputs: &[&[f64]], shapes: &[&[usize]]) -> Vec<f64> {
    let (x, shape) = (inputs[0], shapes[0]);
    let each = |f: &dyn Fn(f64) -> f64| x.iter().map(|&v| f(v)).collect::<Vec<f64>>();
    match op {
        Op::Linear { conv, parameters: p } => convolve(conv, x, &p.weight, &wide(&p.bias)),
        Op::Affine { parameters: Parameters { weight, bias } } => {
            let terms = weight.iter().zip(bias).cycle();
            x.iter().zip(terms).map(|(x, (&w, &b))| x * f64::from(w) + f64::from(b)).collect()
        }
        Op::PRelu { parameters } => {
            let slopes = parameters.weight.iter().cycle();
            x.iter().zip(slopes).map(|(&x, &s)| if x < 0.0 { x * f64::from(s) } else { x }).collect()
        }
        Op::Relu => each(&|v| v.max(0.0)),
        Op::LeakyRelu { alpha } => each(&|v| if v < 0.0 { v * f64::from(*alpha) } else { v }),
        Op::Clip { lo, hi } => {
            let (lo, hi) = (lo.map_or(f64::MIN, f64::from), hi.map_or(f64::MAX, f64::from));
            each(&|v| v.max(lo).min(hi))
        }
        Op::Smooth(f) => each(&|v| f.value(v)),
        Op::Real(f) => f.apply(x),
        Op::MatMul(size) => {
            let (m, k, n) = (size.m, size.k, size.n);
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let group = |g: usize| {
                let (a, b) = (&x[g * m * k..][..m * k], &inputs[1][g * n * k..][..n * k]);
                a.chunks(k).flat_map(move |row| b.chunks(k).map(move |column| dot(row, column)))
            };
            (0..size.groups).flat_map(group).collect()
        }
        Op::Mul => x.iter().zip(inputs[1]).map(|(a, b)| a * b).collect(),
        Op::MaxPool(pool) => {
            let (h, w, c) = (pool.rows.input, pool.columns.input, pool.c);
            let mut out = Vec::with_capacity(pool.n * pool.rows.output * pool.columns.output * c);
            for n in 0..pool.n {
                for oy in 0..pool.rows.output {
                    for ox in 0..pool.columns.output {
                        let start = out.len();
                        out.resize(start + c, f64::NEG_INFINITY);
                        for y in pool.rows.entries(oy) {
                            for xx in pool.columns.entries(ox) {
                                let from = &x[((n * h + y) * w + xx) * c..][..c];
                                out[start..].iter_mut().zip(from).for_each(|(o, &v)| *o = o.max(v));
                            }
                        }
                    }
                }
            }
            out
        }
        Op::Weighted { rows, columns } => {
            let (n, c) = (shape[0], shape[3]);
            let x = along(x, n * shape[1], c, columns);
            along(&x, n, columns.entries.len() * c, rows)
        }
        Op::Arrange(Arrange::Add) => x.iter().zip(inputs[1]).map(|(a, b)| a + b).collect(),
        Op::Arrange(Arrange::Sub) => x.iter().zip(inputs[1]).map(|(a, b)| a - b).collect(),
        Op::Arrange(moved) => {
            let joined: Vec<f64> = inputs.iter().flat_map(|v| v.iter().copied()).collect();
            match moved.index(shapes) {
                Some(index) => gather(&joined, &index),
                None => joined,
            }
        }
        Op::Detect(stage) => reference::apply(stage, inputs, shapes),
    }
}

/// Weighted sums along the middle axis of `[outer, taps.input, inner]`.
fn along(x: &[f64], outer: usize, inner: usize, taps: &Taps) -> Vec<f64> {
    let mut out = vec![0.0; outer * taps.entries.len() * inner];
    for (i, line) in out.chunks_exact_mut(inner).enumerate() {
        let (o, entries) = (i / taps.entries.len(), &taps.entries[i % taps.entries.len()]);
        for &(t, w) in entries.iter().filter(|(_, w)| *w != 0.0) {
            let from = &x[(o * taps.input + t as usize) * inner..][..inner];
            line.iter_mut().zip(from).for_each(|(o, &v)| *o += v * f64::from(w));
        }
    }
    out
}
