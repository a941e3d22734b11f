//! A network as data: single-output nodes in order of execution, feature maps as `[n, h, w, c]`.

use serde::{Deserialize, Serialize};
use sharelens_ops::layers::MaxPool;
use sharelens_protocol::ring::kernel::Conv;

use crate::arrange::Arrange;
use crate::detect::Stage;
use crate::error::{Error, Result};
use crate::finish::Finish;
use crate::real::Real;
use crate::smooth::Smooth;

/// Elements that one value or weight may have.
pub const MAX_ELEMENTS: usize = 1 << 27;
/// Nodes that a network may have.
pub const MAX_NODES: usize = 1 << 14;
/// Axes that a value may have.
pub const MAX_RANK: usize = 8;
/// Elements that one run may move, over all layers: seconds of planning. A U-Net on 32 pictures of 256x256 takes half.
pub const MAX_MOVES: u64 = 1 << 32;
/// Multiply-accumulates that one run may take.
pub const MAX_MACS: u64 = 1 << 43;
/// Most rows of lists that the stages of a detector go through one by one, also when they are planned.
pub const MAX_ROWS: u64 = 1 << 21;

/// A value: 0 is the network's input, `i + 1` the output of node `i`.
pub type ValueId = usize;

/// A network of one input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Graph {
    /// Name of the network.
    pub name: String,
    /// Name of the input.
    pub input_name: String,
    /// Shape of the input, in storage order.
    pub input_shape: Vec<usize>,
    /// Nodes; each reads only the input and earlier ones.
    pub nodes: Vec<Node>,
    /// What the network yields.
    pub outputs: Vec<Output>,
}

/// One step of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Name, after the ONNX node.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<ValueId>,
    /// Shape of its output.
    pub shape: Vec<usize>,
}

/// One result of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Which value it is.
    pub value: ValueId,
    /// Shape under which the original network yields it (`[n, c, h, w]` for feature maps).
    pub original_shape: Vec<usize>,
    /// What the client applies to it, having opened it.
    pub finish: Option<Finish>,
}

/// Secret weights of a linear map. Their numbers travel apart from the structure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Parameters {
    /// `[c_out, kh, kw, c_in / groups]`.
    #[serde(skip)]
    pub weight: Vec<f32>,
    /// `[c_out]`.
    #[serde(skip)]
    pub bias: Vec<f32>,
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Convolution, dense layer or per-channel factor, with bias. One input.
    Linear {
        /// Its shape; the input has `conv.in_len()` elements.
        conv: Conv,
        /// Weights and bias.
        parameters: Parameters,
    },
    /// `x * weight + bias`, both repeated along the value: what folding leaves becomes a [`Op::Linear`].
    Affine {
        /// Factors and summands, equally many.
        parameters: Parameters,
    },
    /// max(x, 0).
    Relu,
    /// min(max(x, lo), hi).
    Clip {
        /// Lower bound.
        lo: Option<f32>,
        /// Upper bound.
        hi: Option<f32>,
    },
    /// x or alpha*x.
    LeakyRelu {
        /// Slope of the negative side.
        alpha: f32,
    },
    /// x or slope*x with learned slopes, `weight`, repeated along the value; there is no bias.
    PRelu {
        /// The slopes.
        parameters: Parameters,
    },
    /// A smooth function of each number.
    Smooth(Smooth),
    /// Product of two values of one shape.
    Mul,
    /// A root, a quotient, a softmax.
    Real(Real),
    /// `[groups, m, k]` times `[groups, n, k]` transposed, both computed.
    MatMul(ProductSize),
    /// Max-pool.
    MaxPool(MaxPool),
    /// Average-pool or linear interpolation: a weighted sum along rows and columns.
    Weighted {
        /// From top to bottom.
        rows: Taps,
        /// From left to right.
        columns: Taps,
    },
    /// Sums, differences and movements of numbers.
    Arrange(Arrange),
    /// A stage of a detector.
    Detect(Stage),
}

/// Sizes of products of two computed matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProductSize {
    /// Products side by side.
    pub groups: usize,
    /// Rows of the left operand.
    pub m: usize,
    /// Length of a row.
    pub k: usize,
    /// Rows of the right operand.
    pub n: usize,
}

impl ProductSize {
    /// Elements of the left operand, the right one, and the result; none if they are beyond the limits.
    pub fn elements(&self) -> Option<[usize; 3]> {
        let Self { groups, m, k, n } = *self;
        Some([elements(&[groups, m, k])?, elements(&[groups, n, k])?, elements(&[groups, m, n])?])
    }

    /// Multiply-accumulates.
    pub fn macs(&self) -> u64 {
        product(&[self.groups, self.m, self.k, self.n])
    }
}

/// For each output position along an axis, the input positions it sums and their weights; equally many for all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Taps {
    /// Input positions.
    pub input: usize,
    /// `[output][entry]`.
    pub entries: Vec<Vec<(u32, f32)>>,
}

impl Op {
    /// A word for reports.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Linear { conv, .. } if conv.h == 1 && conv.n == 1 && conv.groups == 1 => "dense",
            Self::Linear { conv, .. } if conv.groups == conv.c_in && conv.groups > 1 => "depthwise conv",
            Self::Linear { .. } => "conv",
            Self::Affine { .. } => "affine",
            Self::Relu => "relu",
            Self::Clip { .. } => "clip",
            Self::LeakyRelu { .. } => "leaky relu",
            Self::PRelu { .. } => "prelu",
            Self::Smooth(f) => f.label(),
            Self::Mul => "mul",
            Self::Real(f) => f.label(),
            Self::MatMul(_) => "matmul",
            Self::MaxPool(_) => "max-pool",
            Self::Weighted { .. } => "weighted sum",
            Self::Arrange(a) => a.label(),
            Self::Detect(stage) => stage.kind().label(),
        }
    }

    /// At least how many elements it moves to yield a value of this shape.
    fn moves(&self, shape: &[usize]) -> u64 {
        let out = product(shape);
        match self {
            Self::MaxPool(p) => out.saturating_add(pool_moves(p)),
            Self::Weighted { rows, columns } => {
                let count = |t: &Taps| t.entries.first().map_or(0, Vec::len) as u64;
                let wide = product(&[shape.first().copied().unwrap_or(1), rows.input])
                    .saturating_mul(product(&[columns.entries.len(), shape.last().copied().unwrap_or(1)]));
                out.saturating_mul(count(rows)).saturating_add(wide.saturating_mul(count(columns)))
            }
            _ => out,
        }
    }

    /// Secret weights, if it has any.
    pub fn parameters(&self) -> Option<&Parameters> {
        match self {
            Self::Linear { parameters, .. } | Self::Affine { parameters } | Self::PRelu { parameters } => {
                Some(parameters)
            }
            _ => None,
        }
    }

    /// Secret weights, if it has any.
    pub fn parameters_mut(&mut self) -> Option<&mut Parameters> {
        match self {
            Self::Linear { parameters, .. } | Self::Affine { parameters } | Self::PRelu { parameters } => {
                Some(parameters)
            }
            _ => None,
        }
    }
}

impl Graph {
    /// Shape of a value.
    pub fn shape(&self, value: ValueId) -> &[usize] {
        match value {
            0 => &self.input_shape,
            _ => &self.nodes[value - 1].shape,
        }
    }

    /// Elements of a value.
    pub fn len(&self, value: ValueId) -> usize {
        self.shape(value).iter().product()
    }

    /// Name of a value: of the input or of the node that yields it.
    pub fn value_name(&self, value: ValueId) -> &str {
        match value {
            0 => &self.input_name,
            _ => &self.nodes[value - 1].name,
        }
    }

    /// How many nodes and outputs read each value.
    pub fn uses(&self) -> Vec<usize> {
        let mut uses = vec![0; self.nodes.len() + 1];
        let reads = self.nodes.iter().flat_map(|n| &n.inputs).chain(self.outputs.iter().map(|o| &o.value));
        reads.for_each(|&v| uses[v] += 1);
        uses
    }

    /// Trainable numbers.
    pub fn parameter_count(&self) -> usize {
        self.nodes.iter().filter_map(|n| n.op.parameters()).map(|p| p.weight.len() + p.bias.len()).sum()
    }

    /// Multiply-accumulates of one run.
    pub fn macs(&self) -> u64 {
        let macs = |n: &Node| match &n.op {
            Op::Linear { conv, .. } => conv.macs(),
            Op::MatMul(size) => size.macs(),
            _ => 0,
        };
        self.nodes.iter().map(macs).sum()
    }

    /// Checks every fact that running relies on.
    ///
    /// # Errors
    ///
    /// The first node that does not hold together.
    pub fn validate(&self) -> Result<()> {
        let fail = |node: &str, reason: String| Err(Error::Graph { node: node.into(), reason });
        if self.nodes.len() > MAX_NODES {
            return Err(Error::Limit {
                what: "the number of nodes".into(),
                found: self.nodes.len() as u64,
                allowed: MAX_NODES as u64,
            });
        }
        // A few bytes can ask for much work, so the sum is checked before any of it is done.
        let moves = self.nodes.iter().fold(0, |a: u64, n| a.saturating_add(n.op.moves(&n.shape)));
        if moves > MAX_MOVES {
            let what = "the number of elements that all nodes move".into();
            return Err(Error::Limit { what, found: moves, allowed: MAX_MOVES });
        }
        if elements(&self.input_shape).is_none() {
            return fail(&self.input_name, format!("shape {:?} is not acceptable", self.input_shape));
        }
        for (i, node) in self.nodes.iter().enumerate() {
            if node.inputs.iter().any(|&v| v > i) {
                return fail(&node.name, "it reads a value that does not exist yet".into());
            }
            if elements(&node.shape).is_none() {
                return fail(&node.name, format!("shape {:?} is not acceptable", node.shape));
            }
            let shapes: Vec<&[usize]> = node.inputs.iter().map(|&v| self.shape(v)).collect();
            if let Err(reason) = check(&node.op, &shapes, &node.shape) {
                return fail(&node.name, reason);
            }
            if let Some(p) = node.op.parameters()
                && p.weight.iter().chain(&p.bias).any(|v| !v.is_finite())
            {
                return fail(&node.name, "a weight is not a finite number".into());
            }
        }
        if self.outputs.is_empty() {
            return fail(&self.name, "it has no outputs".into());
        }
        for output in &self.outputs {
            if output.value > self.nodes.len() {
                return fail(&output.name, "it is no value of the network".into());
            }
            if elements(&output.original_shape) != Some(self.len(output.value)) {
                return fail(&output.name, "its original shape has another size".into());
            }
            if output.finish.as_ref().is_some_and(|f| !f.fits(self.len(output.value))) {
                return fail(&output.name, "its last function does not fit its size".into());
            }
        }
        Ok(())
    }
}

/// Elements of a shape; `None` beyond [`MAX_ELEMENTS`], and for none at all.
pub fn elements(shape: &[usize]) -> Option<usize> {
    let n = shape.iter().try_fold(1usize, |a, &d| a.checked_mul(d))?;
    (n > 0 && n <= MAX_ELEMENTS && shape.len() <= MAX_RANK).then_some(n)
}

fn product(shape: &[usize]) -> u64 {
    shape.iter().fold(1u64, |a, &d| a.saturating_mul(d as u64))
}

/// How many elements a max-pool moves, and how many steps its windows take to compare. Nothing is known of its
/// numbers yet.
pub(crate) fn pool_moves(p: &MaxPool) -> u64 {
    let wide = product(&[p.n, p.rows.input, p.columns.output, p.c, p.columns.kernel]);
    let tall = product(&[p.n, p.rows.output, p.columns.output, p.c, p.rows.kernel]);
    let windows = [&p.rows, &p.columns].map(|w| product(&[w.kernel, w.kernel, w.output]));
    windows.into_iter().fold(wide.saturating_add(tall), u64::saturating_add)
}

/// Whether a convolution is valid and its padded input within limits.
pub fn conv_fits(conv: &Conv) -> bool {
    conv.is_valid()
        && elements(&[
            conv.n,
            conv.h + conv.pad[0] + conv.pad[2],
            conv.w + conv.pad[1] + conv.pad[3],
            conv.c_in,
        ])
        .is_some()
        && elements(&[conv.weight_len()]).is_some()
        && elements(&[conv.out_len()]).is_some()
}

/// Whether all taps of a max-pool, which are in memory at once, are within limits.
pub fn pool_fits(p: &MaxPool) -> bool {
    let taps = |outer: usize, kernel: usize, inner: &[usize]| elements(&[&[outer, kernel], inner].concat());
    taps(p.n, p.columns.kernel, &[p.rows.input, p.columns.output, p.c]).is_some()
        && taps(p.n, p.rows.kernel, &[p.rows.output, p.columns.output, p.c]).is_some()
}

fn check(op: &Op, inputs: &[&[usize]], out: &[usize]) -> Result<(), String> {
    let arity = match op {
        Op::Arrange(a) => a.arity().unwrap_or(inputs.len().max(1)),
        Op::Detect(stage) => stage.kind().arity(),
        Op::Mul | Op::MatMul(_) => 2,
        _ => 1,
    };
    if inputs.len() != arity {
        return Err(format!("it has {} inputs, expected {arity}", inputs.len()));
    }
    let x = inputs[0];
    let len = |s: &[usize]| s.iter().product::<usize>();
    let unless =
        |ok: bool, why: &str| if ok { Ok(()) } else { Err(format!("{why}; input {x:?}, output {out:?}")) };
    match op {
        Op::Linear { conv, parameters } => {
            unless(conv_fits(conv), "its shape is not a convolution within limits")?;
            unless(
                conv.in_len() == len(x) && conv.out_len() == len(out),
                "shapes do not match the convolution",
            )?;
            unless(
                parameters.weight.len() == conv.weight_len() && parameters.bias.len() == conv.c_out,
                "the number of weights does not match",
            )
        }
        Op::Affine { parameters: p } => unless(
            x == out
                && p.weight.len() == p.bias.len()
                && !p.weight.is_empty()
                && len(x).is_multiple_of(p.weight.len()),
            "the number of factors does not match",
        ),
        Op::PRelu { parameters: p } => unless(
            x == out && p.bias.is_empty() && !p.weight.is_empty() && len(x).is_multiple_of(p.weight.len()),
            "the number of slopes does not match",
        ),
        Op::Relu => unless(x == out, "shape changes"),
        Op::Smooth(f) => unless(x == out && f.is_valid(), "shape changes, or its settings are out of range"),
        Op::Real(f) => {
            unless(x == out && f.is_valid(len(x)), "shape changes, or its settings are out of range")
        }
        Op::MatMul(size) => unless(
            size.elements() == Some([len(x), len(inputs[1]), len(out)]),
            "shapes do not match the product",
        ),
        Op::Mul => unless(x == inputs[1] && x == out, "factors differ in shape"),
        Op::LeakyRelu { alpha } => {
            unless(x == out && alpha.is_finite(), "shape changes, or its slope is not finite")
        }
        Op::Clip { lo, hi } => unless(
            x == out
                && lo.is_none_or(f32::is_finite)
                && hi.is_none_or(f32::is_finite)
                && lo.zip(*hi).is_none_or(|(l, h)| l <= h),
            "bounds are not ordered finite numbers",
        ),
        Op::MaxPool(p) => unless(
            p.rows.is_valid()
                && p.columns.is_valid()
                && pool_fits(p)
                && x == [p.n, p.rows.input, p.columns.input, p.c]
                && out == [p.n, p.rows.output, p.columns.output, p.c],
            "windows do not match",
        ),
        Op::Weighted { rows, columns } => unless(
            x.len() == 4
                && rows.is_valid(x[1])
                && columns.is_valid(x[2])
                && elements(&[x[0], x[1], columns.entries.len(), x[3]]).is_some()
                && out == [x[0], rows.entries.len(), columns.entries.len(), x[3]],
            "sums do not match",
        ),
        Op::Arrange(a) => a.check(inputs, out),
        Op::Detect(stage) => unless(stage.shape(inputs)? == out, "the result of the stage has another shape"),
    }
}

impl Taps {
    fn is_valid(&self, input: usize) -> bool {
        let count = self.entries.first().map_or(0, Vec::len);
        let fine = |&(i, w): &(u32, f32)| (i as usize) < input && w.is_finite() && w.abs() <= 2.0;
        self.input == input
            && count > 0
            && self.entries.iter().all(|e| e.len() == count && e.iter().all(fine))
    }
}
