//! At which scale and in which domain each value of a network lives.
//!
//! A linear layer sets the scale of its output freely, by the scale of its weights; everything else ties the
//! scales of its inputs and output together by a fixed ratio. A union-find over these ratios leaves groups of
//! values with one free scale each, which is taken as large as the calibrated ranges allow, up to a cap.

use std::collections::BTreeMap;

use sharelens_ops::layers::Axis;
use sharelens_ops::plain::Bounds;
use sharelens_protocol::ring::Range;

use crate::arrange::Arrange;
use crate::detect::{COORDINATES, Stage, lower};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Op, Taps, ValueId};
use crate::real::{Ranged, Real};
use crate::smooth::Smooth;

/// Smallest scale that a value may have.
const MIN_SCALE: f64 = 32.0;
/// Largest common denominator of the weights along an axis.
const MAX_DENOMINATOR: i64 = 4096;

/// Scales and domains of all values of a network.
#[derive(Clone, Debug)]
pub struct Scales {
    /// By value.
    pub scale: Vec<f64>,
    /// In which domain each value is computed.
    pub range: Vec<Range>,
    /// Which values are needed in `Full` although computed in `Reduced`.
    pub lifted: Vec<bool>,
    /// Inputs that have to be brought to another scale first, as `(node, which of its inputs)`.
    pub requantised: Vec<(usize, usize)>,
    /// How many times the calibrated range fits into what is allowed, by value.
    pub headroom: Vec<f64>,
    /// Functions whose scale was found by planning them, by node.
    pub ranged: BTreeMap<usize, Ranged>,
}

/// Scales that are given, by value.
type Pins = BTreeMap<ValueId, f64>;

/// What an input of a node has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Full,
    Reduced,
    Either,
}

fn want(op: &Op, input: usize) -> Want {
    match op {
        Op::Detect(stage) => match stage.kind().wants(input).range() {
            Range::Full => Want::Full,
            Range::Reduced => Want::Reduced,
        },
        Op::Real(f) if f.wants() == Range::Reduced => Want::Reduced,
        Op::Linear { .. }
        | Op::Affine { .. }
        | Op::Weighted { .. }
        | Op::Mul
        | Op::MatMul(_)
        | Op::Real(_) => Want::Full,
        Op::Smooth(_)
        | Op::Relu
        | Op::Clip { .. }
        | Op::LeakyRelu { .. }
        | Op::PRelu { .. }
        | Op::MaxPool(_) => Want::Reduced,
        _ => Want::Either,
    }
}

/// Integer weights of an average or interpolation, their common denominator, and the factor of the rescale
/// that follows where the denominator is too large to stay in the scale.
#[derive(Clone, Debug)]
pub struct IntegerSum {
    /// From top to bottom.
    pub rows: Axis,
    /// From left to right.
    pub columns: Axis,
    /// Scale of the output over scale of the input.
    pub ratio: f64,
    /// Factor before the rescale, if there is one.
    pub rescale: Option<i64>,
}

impl IntegerSum {
    /// Of these weights, with rescales by `divisor`.
    pub fn new(rows: &Taps, columns: &Taps, divisor: i64) -> Self {
        let ((rows, a), (columns, b)) = (integers(rows), integers(columns));
        let denominator = a * b;
        // Weights of the next linear layer lose the bits that the denominator takes.
        if denominator <= (divisor >> 10).max(1) {
            return Self { rows, columns, ratio: denominator as f64, rescale: None };
        }
        let factor = ((divisor as f64 / denominator as f64).round() as i64).max(1);
        let ratio = (denominator * factor) as f64 / divisor as f64;
        Self { rows, columns, ratio, rescale: Some(factor) }
    }
}

/// Weights times their smallest common denominator, or rounded to the largest allowed one.
fn integers(taps: &Taps) -> (Axis, i64) {
    let weights = || taps.entries.iter().flatten().map(|&(_, w)| f64::from(w));
    // A weight that is not zero must not become zero: of many places each counts for little.
    let close =
        |w: f64, whole: f64| (w - whole).abs() < 1e-4 * whole.abs().max(1.0) && (whole != 0.0 || w == 0.0);
    let exact = |d: i64| weights().all(|w| close(w * d as f64, (w * d as f64).round()));
    let d = (1..=MAX_DENOMINATOR).find(|&d| exact(d)).unwrap_or(MAX_DENOMINATOR);
    let whole = |&(i, w): &(u32, f32)| (i, (f64::from(w) * d as f64).round() as i64);
    let entries = taps.entries.iter().map(|e| e.iter().map(whole).collect()).collect();
    (Axis { input: taps.input, entries }, d)
}

/// Largest magnitude that comparisons see at this node, for input `j` of magnitude `peak` with `n` elements.
fn compared(node: &Node, j: usize, peak: f64, n: usize) -> f64 {
    match &node.op {
        Op::Detect(stage) => stage.compared(j, peak, n),
        Op::Clip { lo, hi } => {
            peak + lo.map_or(0.0, |v| f64::from(v.abs())).max(hi.map_or(0.0, |v| f64::from(v.abs())))
        }
        // Differences from the ends of its pieces.
        Op::Smooth(_) => peak + Smooth::FARTHEST,
        // Differences of two values, or from the end of what calibration saw.
        Op::MaxPool(_) | Op::Real(Real::Softmax { .. }) => 2.0 * peak,
        Op::Real(Real::InverseRoot { summand } | Real::Reciprocal { summand }) => {
            2.1 * peak + 2.0 * f64::from(*summand)
        }
        _ => peak,
    }
}

impl Scales {
    /// For calibrated `peaks` (largest magnitude by value), each to be allowed `margin` times over, and scales
    /// of at most `cap`.
    ///
    /// # Errors
    ///
    /// Names the value that needs more room than there is.
    pub fn solve(graph: &Graph, peaks: &[f64], bounds: &Bounds, margin: f64, cap: f64) -> Result<Self> {
        let mut pins = Pins::new();
        let mut all_ranged = BTreeMap::new();
        // What a stage yields may have a scale that follows from those of its inputs.
        for (i, node) in graph.nodes.iter().enumerate() {
            let stage = match &node.op {
                Op::Detect(stage) => stage,
                Op::Real(function) => {
                    let scales = Self::pinned(graph, peaks, bounds, margin, cap, &pins)?;
                    let v = node.inputs[0];
                    let ranged =
                        Self::ranged(*function, [peaks[v], peaks[i + 1]], margin, scales.scale[i + 1]);
                    let scale = ranged.scale(bounds, graph.len(v), scales.scale[v]);
                    pins.insert(i + 1, scale.map_err(|e| Error::Range(format!("{}: {e}", node.name)))?);
                    all_ranged.insert(i, ranged);
                    continue;
                }
                Op::Mul | Op::MatMul(_) => {
                    let scales = Self::pinned(graph, peaks, bounds, margin, cap, &pins)?;
                    let factors = scales.scale[node.inputs[0]] * scales.scale[node.inputs[1]];
                    let times = (bounds.divisor as f64 * scales.scale[i + 1] / factors).floor().max(1.0);
                    pins.insert(i + 1, factors * times / bounds.divisor as f64);
                    continue;
                }
                _ => continue,
            };
            let pin = match stage {
                Stage::TopAnchors { .. } | Stage::KeepFirst { .. } => continue,
                Stage::Suppress { .. } | Stage::Unsettled { .. } => 1.0,
                Stage::Decode { .. } | Stage::DecodeClasses { .. } | Stage::RankDetections => COORDINATES,
                Stage::RoiAlign { .. } | Stage::Scores { .. } => {
                    let scales = Self::pinned(graph, peaks, bounds, margin, cap, &pins)?;
                    let stage = lower::stage(graph, i, &scales, bounds)?;
                    lower::scale(graph, i, &stage, &scales, peaks, margin, bounds)?
                }
            };
            pins.insert(i + 1, pin);
        }
        let scales = Self::pinned(graph, peaks, bounds, margin, cap, &pins)?;
        Ok(Self { ranged: all_ranged, ..scales })
    }

    /// A function of the program, asked for at nine tenths of the scale that has room: its own is a little off.
    pub fn ranged(function: Real, peaks: [f64; 2], margin: f64, scale: f64) -> Ranged {
        Ranged::new(function, peaks, margin, 0.9 * scale)
    }

    /// The same, with some scales given.
    fn pinned(
        graph: &Graph,
        peaks: &[f64],
        bounds: &Bounds,
        margin: f64,
        cap: f64,
        pins: &Pins,
    ) -> Result<Self> {
        let values = graph.nodes.len() + 1;
        let (range, lifted) = domains(graph, bounds.divisor);
        let mut groups = Groups::new(values);
        let mut products = Products::new();
        let mut requantised = Vec::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            let out = i + 1;
            match &node.op {
                Op::Linear { .. } | Op::Affine { .. } | Op::PRelu { .. } | Op::Smooth(_) => {}
                Op::Mul | Op::MatMul(_) | Op::Real(_) => products.add(&node.inputs, out),
                Op::Detect(Stage::TopAnchors { .. }) => _ = groups.tie(node.inputs[1], out, 1.0),
                Op::Detect(Stage::KeepFirst { .. }) => _ = groups.tie(node.inputs[0], out, 1.0),
                Op::Detect(_) => {}
                Op::Weighted { rows, columns } => {
                    let ratio = IntegerSum::new(rows, columns, bounds.divisor).ratio;
                    groups.tie(node.inputs[0], out, ratio);
                }
                _ => {
                    for (j, &v) in node.inputs.iter().enumerate() {
                        if !products.may_tie(&groups, v, out) || !groups.tie(v, out, 1.0) {
                            requantised.push((i, j));
                        }
                    }
                }
            }
        }
        // Requantising starts from `Full`.
        let mut lifted = lifted;
        for &(i, j) in &requantised {
            let v = graph.nodes[i].inputs[j];
            lifted[v] |= range[v] == Range::Reduced;
        }
        let room = rooms(graph, peaks, bounds, &range, &lifted);
        let given: Vec<usize> = pins.keys().map(|&v| groups.find(v).0).collect();
        let mut largest = vec![f64::INFINITY; values];
        for (v, room) in room.iter().enumerate() {
            let (root, ratio) = groups.find(v);
            let cap = if given.contains(&root) { f64::INFINITY } else { cap };
            largest[root] = largest[root].min(room / (margin * ratio)).min(cap / ratio.min(1.0)).min(cap);
        }
        for (&v, &pin) in pins {
            let (root, ratio) = groups.find(v);
            if pin > 1.000_001 * largest[root] * ratio {
                return Err(Error::Range(format!(
                    "{}: its scale is {pin:.1}, and {:.1} would fit",
                    graph.value_name(v),
                    largest[root] * ratio
                )));
            }
            largest[root] = pin / ratio;
        }
        let scale: Vec<f64> = (0..values)
            .map(|v| {
                let (root, ratio) = groups.find(v);
                largest[root] * ratio
            })
            .collect();
        // Below this, rounding of values alone is an error of a hundredth.
        let stage = |v: usize| v > 0 && matches!(graph.nodes[v - 1].op, Op::Detect(_));
        let staged: Vec<usize> = pins.keys().filter(|v| stage(**v)).map(|&v| groups.find(v).0).collect();
        let free = (0..values).filter(|&v| !staged.contains(&groups.find(v).0));
        let worst = free.min_by(|&a, &b| scale[a].total_cmp(&scale[b])).unwrap_or(0);
        if scale[worst] < MIN_SCALE {
            return Err(Error::Range(format!(
                "{}: values reach {:.3}, which with a margin of {margin} leaves a scale of {:.1}, and {MIN_SCALE} is needed",
                graph.value_name(worst),
                peaks[worst],
                scale[worst]
            )));
        }
        let headroom = (0..values).map(|v| room[v] / scale[v]).collect();
        Ok(Self { scale, range, lifted, requantised, headroom, ranged: BTreeMap::new() })
    }
}

/// By value: the largest scale at which it just fits.
fn rooms(graph: &Graph, peaks: &[f64], bounds: &Bounds, range: &[Range], lifted: &[bool]) -> Vec<f64> {
    // Half of it is what a run calls in range: roundings of what calibration saw must not push it out.
    let half = (bounds.reduced as f64).min(1.98 * bounds.lift as f64);
    let mut room: Vec<f64> = (0..peaks.len())
        .map(|v| {
            let allowed = match (range[v], lifted[v]) {
                (_, true) => bounds.lift as f64,
                (Range::Reduced, _) => half,
                (Range::Full, _) => bounds.full as f64,
            };
            allowed / peaks[v].max(1e-6)
        })
        .collect();
    let mut reduced = |v: ValueId, peak: f64| room[v] = room[v].min(half / peak.max(1e-6));
    for (i, node) in graph.nodes.iter().enumerate() {
        for (j, &v) in node.inputs.iter().enumerate() {
            let want = want(&node.op, j);
            let compares = want == Want::Reduced || matches!(node.op, Op::Real(_));
            if compares || range[i + 1] == Range::Reduced && want == Want::Either {
                reduced(v, compared(node, j, peaks[v], graph.len(v)));
            }
        }
    }
    for output in &graph.outputs {
        reduced(output.value, peaks[output.value]);
    }
    room
}

/// Domain of each value, and which are to be lifted.
fn domains(graph: &Graph, divisor: i64) -> (Vec<Range>, Vec<bool>) {
    let values = graph.nodes.len() + 1;
    let mut wants_full = vec![false; values];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        for (j, &v) in node.inputs.iter().enumerate() {
            wants_full[v] |= match want(&node.op, j) {
                Want::Full => true,
                Want::Reduced => false,
                Want::Either => wants_full[i + 1],
            };
        }
    }
    let mut range = vec![Range::Full; values];
    for (i, node) in graph.nodes.iter().enumerate() {
        let inputs = || node.inputs.iter().map(|&v| range[v]);
        range[i + 1] = match &node.op {
            Op::Relu | Op::Clip { .. } => Range::Full,
            Op::Detect(stage) => stage.kind().yields().range(),
            Op::Weighted { rows, columns } => match IntegerSum::new(rows, columns, divisor).rescale {
                Some(_) => Range::Reduced,
                None => Range::Full,
            },
            // Lifting the parts that need it is cheaper than lifting the whole.
            Op::Arrange(Arrange::Concat { .. }) if wants_full[i + 1] => Range::Full,
            Op::Arrange(_) => {
                if inputs().all(|r| r == Range::Full) {
                    Range::Full
                } else {
                    Range::Reduced
                }
            }
            _ => Range::Reduced,
        };
    }
    let mut lifted = vec![false; values];
    for (i, node) in graph.nodes.iter().enumerate() {
        for (j, &v) in node.inputs.iter().enumerate() {
            let full = match want(&node.op, j) {
                Want::Full => true,
                Want::Reduced => false,
                Want::Either => range[i + 1] == Range::Full,
            };
            lifted[v] |= full && range[v] == Range::Reduced;
        }
    }
    (range, lifted)
}

/// Which values are products and which are their factors. The scale of a product follows from those of its factors, so it
/// may not decide on theirs: a group of values with one scale has at most one product, and then none that is a factor of an
/// earlier one.
struct Products {
    products: Vec<ValueId>,
    factors: Vec<ValueId>,
}

impl Products {
    const fn new() -> Self {
        Self { products: Vec::new(), factors: Vec::new() }
    }

    fn add(&mut self, factors: &[ValueId], product: ValueId) {
        self.factors.extend(factors);
        self.products.push(product);
    }

    /// Whether the groups of two values may become one.
    fn may_tie(&self, groups: &Groups, a: ValueId, b: ValueId) -> bool {
        let roots = [groups.find(a).0, groups.find(b).0];
        let has = |of: &[ValueId], root: usize| of.iter().any(|&v| groups.find(v).0 == root);
        let clash =
            |p: usize, q: usize| has(&self.products, p) && (has(&self.products, q) || has(&self.factors, q));
        roots[0] == roots[1] || !clash(roots[0], roots[1]) && !clash(roots[1], roots[0])
    }
}

/// Union-find in which each member knows its ratio to the root.
struct Groups {
    parent: Vec<usize>,
    ratio: Vec<f64>,
}

impl Groups {
    fn new(n: usize) -> Self {
        Self { parent: (0..n).collect(), ratio: vec![1.0; n] }
    }

    /// Root of `v`, and scale of `v` over that of the root.
    fn find(&self, mut v: usize) -> (usize, f64) {
        let mut ratio = 1.0;
        while self.parent[v] != v {
            ratio *= self.ratio[v];
            v = self.parent[v];
        }
        (v, ratio)
    }

    /// States that the scale of `b` is `ratio` times that of `a`; false if that contradicts what was stated.
    fn tie(&mut self, a: usize, b: usize, ratio: f64) -> bool {
        let ((ra, qa), (rb, qb)) = (self.find(a), self.find(b));
        if ra == rb {
            return (qb / (qa * ratio) - 1.0).abs() < 1e-9;
        }
        // scale(b) = qb * root b = ratio * qa * root a
        self.parent[rb] = ra;
        self.ratio[rb] = ratio * qa / qb;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_add_up_along_paths() {
        let mut g = Groups::new(4);
        assert!(g.tie(0, 1, 2.0) && g.tie(2, 3, 5.0) && g.tie(1, 3, 3.0));
        let ratio = |v: usize| g.find(v).1;
        assert!((ratio(3) / ratio(0) - 6.0).abs() < 1e-12);
        assert!((ratio(2) / ratio(0) - 1.2).abs() < 1e-12);
        assert!(g.tie(0, 3, 6.0) && !g.tie(0, 3, 7.0));
    }

    #[test]
    fn thirds_and_quarters_are_exact() {
        let taps = Taps { input: 4, entries: vec![vec![(0, 1.0 / 3.0), (1, 0.75)]] };
        let (axis, d) = integers(&taps);
        assert_eq!((axis.entries[0].as_slice(), d), (&[(0, 4), (1, 9)][..], 12));
        // The mean of many places is no sum of zeros.
        let many = Taps { input: 2048, entries: vec![(0..2048).map(|i| (i, 1.0 / 2048.0)).collect()] };
        let (axis, d) = integers(&many);
        assert!(d == 2048 && axis.entries[0].iter().all(|(_, w)| *w == 1), "{d}");
    }
}
