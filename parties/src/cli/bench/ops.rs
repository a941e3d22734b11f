//! Single operations, each as a program of one step.

use std::str::FromStr;
use std::sync::Arc;

use anyhow::Result;
use sharelens_models::Arithmetic;
use sharelens_models::config::{Config, Task};
use sharelens_models::manifest::{Manifest, OutputInfo, VERSION};
use sharelens_models::program::{Instruction, Layer, Program};
use sharelens_ops::Linear;
use sharelens_ops::layers::{MaxPool, Window};
use sharelens_ops::plain::Weights;
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::ring::Range;
use sharelens_protocol::ring::kernel::Conv;

use super::subject::{Subject, noise};

/// Scale of inputs, which are in -1..1.
const SCALE: f64 = 256.0;
/// Channels of pictures whose shape follows from a number of elements.
const CHANNELS: usize = 64;

/// Which operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// max(x, 0).
    Relu,
    /// min(max(x, 0), 0.5).
    Clip,
    /// From the smaller range into the larger one.
    Lift,
    /// Two secret matrices.
    Product,
    /// A matrix times weights that are shared as well and loaded beforehand.
    Matmul,
    /// 3x3, as many channels out as in, weights as above.
    Conv,
    /// 3x3, stride 2.
    MaxPool,
}

impl Kind {
    const ALL: [(&str, Self); 7] = [
        ("relu", Self::Relu),
        ("clip", Self::Clip),
        ("lift", Self::Lift),
        ("product", Self::Product),
        ("matmul", Self::Matmul),
        ("conv", Self::Conv),
        ("maxpool", Self::MaxPool),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }

    /// Numbers in a shape.
    fn rank(self) -> usize {
        match self {
            Self::Relu | Self::Clip | Self::Lift => 1,
            Self::Product | Self::Matmul | Self::Conv | Self::MaxPool => 3,
        }
    }

    /// A shape with about `n` elements in the input.
    fn shape(self, n: usize) -> Vec<usize> {
        match self {
            Self::Relu | Self::Clip | Self::Lift => vec![n],
            Self::Product | Self::Matmul => vec![n.isqrt().max(1); 3],
            Self::Conv | Self::MaxPool => {
                let side = (n / CHANNELS).isqrt().max(1);
                vec![CHANNELS, side, side]
            }
        }
    }
}

/// `OP` or `OP:SHAPE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    kind: Kind,
    shape: Option<Vec<usize>>,
}

/// An operation of a certain shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    kind: Kind,
    shape: Vec<usize>,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (word, shape) = match text.split_once(':') {
            Some((word, shape)) => (word, Some(shape)),
            None => (text, None),
        };
        let Some((_, kind)) = Kind::ALL.into_iter().find(|(name, _)| *name == word) else {
            let names: Vec<&str> = Kind::ALL.iter().map(|(name, _)| *name).collect();
            let why = match word {
                "sign" | "mul" | "top_k" | "nms" => format!("{word} is not in this version"),
                _ => format!("{word:?} is no operation"),
            };
            return Err(format!("{why}: there are {}", names.join(", ")));
        };
        let shape = shape.map(|s| s.split('x').map(size).collect::<Result<Vec<_>, _>>()).transpose()?;
        if let Some(shape) = shape.as_ref().filter(|s| s.len() != kind.rank()) {
            return Err(format!("the shape of {word} has {} numbers, here are {}", kind.rank(), shape.len()));
        }
        Ok(Self { kind, shape })
    }
}

/// A number of elements: 1000, 1e3 or 2^10.
pub fn size(text: &str) -> Result<usize, String> {
    let parsed = match text.trim().split_once('^') {
        Some((base, power)) => base.parse().ok().zip(power.parse().ok()).map(|(b, p): (f64, i32)| b.powi(p)),
        None => text.trim().parse::<f64>().ok(),
    };
    let whole = parsed.filter(|n| *n >= 1.0 && *n <= f64::from(1 << 27) && n.fract() == 0.0);
    whole.map(|n| n as usize).ok_or_else(|| format!("{text:?} is no whole number from 1 to 2^27"))
}

impl Spec {
    /// One operation of the shape given, or one for each size.
    pub fn sized(&self, sizes: &[usize]) -> Vec<Op> {
        let op = |shape: Vec<usize>| Op { kind: self.kind, shape };
        match &self.shape {
            Some(shape) => vec![op(shape.clone())],
            None => sizes.iter().map(|&n| op(self.kind.shape(n))).collect(),
        }
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shape: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        write!(f, "{}:{}", self.kind.word(), shape.join("x"))
    }
}

impl Op {
    /// The program with weights and an input.
    pub fn subject(&self, arithmetic: &Arithmetic) -> Result<Subject> {
        let bounds = arithmetic.bounds()?;
        // Products are rescaled to the scale of inputs.
        let weight_scale = bounds.divisor as f64;
        let (input_shape, shape, op, range) = self.step(weight_scale);
        let weights = match &op {
            Instruction::Linear { map, .. } => vec![random_weights(&map.conv, weight_scale)],
            _ => Vec::new(),
        };
        let original = match shape[..] {
            [n, h, w, c] => vec![n, c, h, w],
            _ => shape.clone(),
        };
        let input = noise(input_shape.iter().product(), 1);
        let name = self.to_string();
        let scale = match &op {
            Instruction::Product { factor, .. } => SCALE * SCALE * *factor as f64 / weight_scale,
            _ => SCALE,
        };
        let layer = Layer { name: self.kind.word().into(), op, inputs: vec![0], shape, range, scale };
        let manifest = Manifest {
            version: VERSION,
            config: Config {
                name: name.clone(),
                task: Task::Other,
                classes: Vec::new(),
                preprocess: None,
                detection: None,
            },
            arithmetic: arithmetic.clone(),
            rounds: Rounds::default(),
            program: Program {
                input_shape,
                input_scale: SCALE,
                bounds,
                layers: vec![layer],
                outputs: vec![1],
                watched: None,
            },
            outputs: vec![OutputInfo {
                name: "y".into(),
                shape: original,
                finish: None,
                columns: Vec::new(),
                proved: false,
            }],
        };
        manifest.validate()?;
        let weights = Arc::new(weights);
        let (plain, float, onnx) = (Vec::new(), None, None);
        Subject { name, manifest, weights, input, plain, float, onnx, operation: true }.with_twin()
    }

    /// Shape of the input and of the output, the step, and where its output lives.
    fn step(&self, weight_scale: f64) -> (Vec<usize>, Vec<usize>, Instruction, Range) {
        let linear = |conv| Instruction::Linear { map: Linear { conv, weight: 0 }, weight_scale };
        match (self.kind, &self.shape[..]) {
            (Kind::Matmul, &[rows, inner, columns]) => {
                let product = linear(Conv::dense(rows, inner, columns));
                (vec![rows, inner], vec![rows, columns], product, Range::Reduced)
            }
            (Kind::Product, &[m, k, n]) => {
                // Back to the scale of inputs.
                let factor = (weight_scale / SCALE).round().max(1.0) as i64;
                let product = Instruction::Product { m, k, n, factor };
                (vec![m + n, k], vec![m, n], product, Range::Reduced)
            }
            (Kind::Conv, &[c, h, w]) => {
                let conv = Conv {
                    n: 1,
                    h,
                    w,
                    c_in: c,
                    c_out: c,
                    kernel: [3, 3],
                    stride: [1, 1],
                    pad: [1, 1, 1, 1],
                    dilation: [1, 1],
                    groups: 1,
                };
                (vec![1, h, w, c], vec![1, h, w, c], linear(conv), Range::Reduced)
            }
            (Kind::MaxPool, &[c, h, w]) => {
                let window = |input: usize| Window {
                    input,
                    kernel: 3,
                    stride: 2,
                    dilation: 1,
                    before: 1,
                    output: input.div_ceil(2),
                };
                let pool = MaxPool { n: 1, c, rows: window(h), columns: window(w) };
                let out = vec![1, pool.rows.output, pool.columns.output, c];
                (vec![1, h, w, c], out, Instruction::MaxPool(pool), Range::Reduced)
            }
            (kind, shape) => {
                let n: usize = shape.iter().product();
                let op = match kind {
                    Kind::Clip => Instruction::Clip { lo: Some(0), hi: Some((SCALE / 2.0) as i64) },
                    Kind::Lift => Instruction::Lift,
                    _ => Instruction::Relu,
                };
                (vec![1, n], vec![1, n], op, Range::Full)
            }
        }
    }
}

/// In -1/2..1/2, without a bias.
fn random_weights(conv: &Conv, scale: f64) -> Weights {
    let values = noise(conv.weight_len(), 2);
    let values = values.into_iter().map(|v| (f64::from(v) * 0.5 * scale).round() as i64).collect();
    Weights { values, bias: vec![0; conv.c_out] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ops(text: &str, sizes: &[usize]) -> Vec<String> {
        text.parse::<Spec>().unwrap().sized(sizes).iter().map(Op::to_string).collect()
    }

    #[test]
    fn shapes_are_given_or_follow_from_sizes() {
        assert_eq!(ops("relu", &[1000, 1 << 20]), ["relu:1000", "relu:1048576"]);
        assert_eq!(ops("relu:2^20", &[1000]), ["relu:1048576"]);
        assert_eq!(ops("matmul", &[1_000_000]), ["matmul:1000x1000x1000"]);
        assert_eq!(ops("matmul:4x5x6", &[]), ["matmul:4x5x6"]);
        assert_eq!(ops("conv", &[200_704, 1]), ["conv:64x56x56", "conv:64x1x1"]);
        assert_eq!(ops("maxpool:64x112x112", &[]), ["maxpool:64x112x112"]);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| text.parse::<Spec>().unwrap_err();
        assert!(error("nms").contains("not in this version"));
        assert!(error("rellu").contains("relu, clip"));
        assert!(error("conv:64").contains("3 numbers"));
        for bad in ["0", "-1", "1.5", "x", "1e99", "2^28", "", "nan"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!((size("1e3"), size("2^10"), size("7")), (Ok(1000), Ok(1024), Ok(7)));
    }

    #[test]
    fn operations_compute_what_they_say() {
        for arithmetic in
            [Arithmetic::usual(3, 2).unwrap(), Arithmetic::usual(2, 2).unwrap(), Arithmetic::Z64]
        {
            let subject =
                |text: &str| text.parse::<Spec>().unwrap().sized(&[])[0].subject(&arithmetic).unwrap();
            let relu = subject("relu:100");
            let expected = relu.input.iter().map(|&x| f64::from(x).max(0.0));
            assert!(relu.plain[0].iter().zip(expected).all(|(y, x)| (y - x).abs() <= 0.5 / SCALE));
            let clip = subject("clip:100");
            assert!(clip.plain[0].iter().all(|&y| (0.0..=0.5).contains(&y)));
            let matmul = subject("matmul:3x40x5");
            let weights = noise(40 * 5, 2);
            for (i, y) in matmul.plain[0].iter().enumerate() {
                let (row, column) = (i / 5, i % 5);
                let terms = (0..40).map(|k| matmul.input[row * 40 + k] * weights[column * 40 + k] * 0.5);
                // Inputs are rounded to 1/512 at most, the result to half its unit.
                assert!((y - f64::from(terms.sum::<f32>())).abs() < 40.0 / 1024.0 + 1.0 / 256.0);
            }
            let product = subject("product:3x40x5");
            for (i, y) in product.plain[0].iter().enumerate() {
                let (left, right) = (i / 5 * 40, (3 + i % 5) * 40);
                let terms = (0..40).map(|k| product.input[left + k] * product.input[right + k]);
                let expected = f64::from(terms.sum::<f32>());
                // As above, for both operands.
                assert!((y - expected).abs() < 80.0 / 1024.0 + 1.0 / 256.0);
            }
            assert_eq!(subject("conv:4x5x6").plain[0].len(), 4 * 5 * 6);
            assert_eq!(subject("maxpool:2x7x8").plain[0].len(), 2 * 4 * 4);
        }
    }
}
