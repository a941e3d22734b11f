//! What is in range for any picture at all: the worst case, layer by layer.
//!
//! A picture's numbers are known to lie between black and white. From there on an interval for each channel follows from
//! weights and operations. Real sums cancel and intervals do not, so after a few layers they are too wide to be of use;
//! what they show before is certain, also for a picture that was made to do harm.

use sharelens_protocol::ring::kernel::Conv;

use crate::arrange::Arrange;
use crate::config::Preprocess;
use crate::graph::{Graph, Node, Op, Parameters, Taps};
use crate::real::Real;

/// How far fixed point may be from what the intervals reckon with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slack {
    /// Of a weight, once rounded.
    pub weight: f64,
    /// Of a value, once rescaled.
    pub value: f64,
}

/// The smallest and the largest number.
type Interval = (f64, f64);

/// Error of the weights of averages and interpolations, which become fractions of small denominators.
const TAP_SLACK: f64 = 1.0 / 8192.0;

/// Error of the cubics that smooth functions become, and of what rounds them.
const CUBIC_SLACK: f64 = 0.02;

/// The largest magnitude of each value for any picture, infinite where nothing is known. `slack` gives the roundings of
/// each value.
pub fn worst_cases(
    graph: &Graph,
    preprocess: Option<&Preprocess>,
    slack: impl Fn(usize) -> Slack,
) -> Vec<f64> {
    let mut known: Vec<Option<Vec<Interval>>> = Vec::with_capacity(graph.nodes.len() + 1);
    let widened = |all: Vec<Interval>, slack: Slack| -> Vec<Interval> {
        all.into_iter().map(|(lo, hi)| (lo - slack.value, hi + slack.value)).collect()
    };
    let input = preprocess.and_then(|p| pixels(p, graph.input_shape.last().copied()));
    known.push(input.map(|all| widened(all, slack(0))));
    for (i, node) in graph.nodes.iter().enumerate() {
        let inputs: Option<Vec<&[Interval]>> = node.inputs.iter().map(|&v| known[v].as_deref()).collect();
        let slack = slack(i + 1);
        let out = inputs.and_then(|inputs| step(graph, node, &inputs, slack));
        known.push(out.map(|all| widened(all, slack)));
    }
    let largest = |v: &Vec<Interval>| v.iter().fold(0.0, |m: f64, (lo, hi)| m.max(-lo).max(*hi));
    known.iter().map(|v| v.as_ref().map_or(f64::INFINITY, largest)).collect()
}

/// Black to white, by channel.
fn pixels(p: &Preprocess, channels: Option<usize>) -> Option<Vec<Interval>> {
    let all = p.range();
    (Some(all.len()) == channels).then_some(all)
}

fn ordered(a: f64, b: f64) -> Interval {
    (a.min(b), a.max(b))
}

/// One interval that holds all of them.
fn hull(all: &[Interval]) -> Interval {
    all.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), (l, h)| (lo.min(*l), hi.max(*h)))
}

fn or_zero((lo, hi): Interval) -> Interval {
    (lo.min(0.0), hi.max(0.0))
}

/// By channel of a value with `channels` of them: as they are, repeated, or all alike.
fn spread(all: &[Interval], channels: usize) -> Vec<Interval> {
    if !all.is_empty() && channels.is_multiple_of(all.len()) {
        return all.iter().copied().cycle().take(channels).collect();
    }
    vec![hull(all); channels]
}

/// `weight * x` for a weight that rounding moves by at most `slack`.
fn scaled((lo, hi): Interval, weight: f64, slack: f64) -> Interval {
    let ends = [(weight - slack) * lo, (weight - slack) * hi, (weight + slack) * lo, (weight + slack) * hi];
    ends.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), &e| (a.min(e), b.max(e)))
}

fn step(graph: &Graph, node: &Node, inputs: &[&[Interval]], slack: Slack) -> Option<Vec<Interval>> {
    let x = inputs[0];
    let channels = *node.shape.last()?;
    let each = |f: &dyn Fn(Interval) -> Interval| Some(x.iter().map(|&v| f(v)).collect());
    match &node.op {
        Op::Linear { conv, parameters } => Some(linear(conv, parameters, x, slack.weight)),
        Op::Affine { parameters: Parameters { weight, bias } } => {
            let period = weight.len().max(1);
            let n = if period.is_multiple_of(x.len()) { period } else { x.len() };
            if !n.is_multiple_of(period) || !channels.is_multiple_of(n) && !n.is_multiple_of(channels) {
                return None;
            }
            let x = spread(x, n);
            let one = |i: usize| {
                let (lo, hi) = scaled(x[i], weight[i % period].into(), slack.weight);
                (lo + f64::from(bias[i % period]), hi + f64::from(bias[i % period]))
            };
            let all: Vec<Interval> = (0..n).map(one).collect();
            Some(if n == channels { all } else { vec![hull(&all); channels] })
        }
        Op::Relu => each(&|(lo, hi)| (lo.max(0.0), hi.max(0.0))),
        Op::Clip { lo: least, hi: most } => {
            let clip = |v: f64| {
                v.max(least.map_or(f64::NEG_INFINITY, f64::from)).min(most.map_or(f64::INFINITY, f64::from))
            };
            each(&|(lo, hi)| (clip(lo), clip(hi)))
        }
        Op::LeakyRelu { alpha } => {
            let slope = f64::from(*alpha);
            each(&|(lo, hi)| bent((lo, hi), slope, slack.weight))
        }
        Op::PRelu { parameters } => {
            let (low, high) =
                hull(&parameters.weight.iter().map(|&w| (w.into(), w.into())).collect::<Vec<_>>());
            each(&|v| {
                let (a, b) = (bent(v, low, slack.weight), bent(v, high, slack.weight));
                (a.0.min(b.0), a.1.max(b.1))
            })
        }
        // Cubics miss the function by a little, and so does what rounds them.
        Op::Smooth(f) => each(&|v| {
            let (lo, hi) = f.interval(v);
            (lo - CUBIC_SLACK, hi + CUBIC_SLACK)
        }),
        Op::Mul => {
            let (a, b) = (spread(x, channels), spread(inputs[1], channels));
            let product =
                |(a, b): (&Interval, &Interval)| hull(&[scaled(*b, a.0, 0.0), scaled(*b, a.1, 0.0)]);
            Some(a.iter().zip(&b).map(product).collect())
        }
        // A softmax is a share of one.
        Op::Real(Real::Softmax { .. }) => Some(vec![(0.0, 1.0 + CUBIC_SLACK); channels]),
        Op::Real(_) => None,
        Op::MatMul(size) => {
            let (a, b) = (hull(x), hull(inputs[1]));
            let (lo, hi) = hull(&[scaled(b, a.0, 0.0), scaled(b, a.1, 0.0)]);
            Some(vec![(lo * size.k as f64, hi * size.k as f64); channels])
        }
        Op::MaxPool(_) => Some(x.to_vec()),
        Op::Weighted { rows, columns } => each(&|v| tapped(tapped(v, rows), columns)),
        Op::Arrange(arrange) => arranged(graph, node, arrange, inputs, channels),
        // What stages compute is bounded by their own rules.
        Op::Detect(_) => None,
    }
}

/// x above zero, `slope * x` below.
fn bent((lo, hi): Interval, slope: f64, slack: f64) -> Interval {
    let below = scaled((lo.min(0.0), hi.min(0.0)), slope, slack);
    let above = (lo.max(0.0), hi.max(0.0));
    (below.0.min(above.0), below.1.max(above.1))
}

fn linear(conv: &Conv, p: &Parameters, x: &[Interval], slack: f64) -> Vec<Interval> {
    let x = spread(x, conv.c_in);
    // At an edge some taps meet padding.
    let padded = conv.pad.iter().any(|&p| p > 0);
    let (inputs, outputs) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
    let taps = conv.kernel[0] * conv.kernel[1];
    let of = |o: usize| {
        let bias = f64::from(p.bias[o]);
        let mut sum = (bias, bias);
        for tap in 0..taps {
            let row = &p.weight[(o * taps + tap) * inputs..][..inputs];
            for (i, &w) in row.iter().enumerate() {
                let term = scaled(x[o / outputs * inputs + i], w.into(), slack);
                let (lo, hi) = if padded { or_zero(term) } else { term };
                sum = (sum.0 + lo, sum.1 + hi);
            }
        }
        sum
    };
    (0..conv.c_out).map(of).collect()
}

/// A weighted sum of numbers of the same interval.
fn tapped((lo, hi): Interval, taps: &Taps) -> Interval {
    let sums = taps.entries.iter().map(|entries| {
        entries.iter().fold((0.0, 0.0), |sum: Interval, &(_, w)| {
            let (l, h) = scaled((lo, hi), w.into(), TAP_SLACK);
            (sum.0 + l, sum.1 + h)
        })
    });
    hull(&sums.collect::<Vec<_>>())
}

fn arranged(
    graph: &Graph,
    node: &Node,
    arrange: &Arrange,
    inputs: &[&[Interval]],
    channels: usize,
) -> Option<Vec<Interval>> {
    let x = inputs[0];
    let last = |j: usize| graph.shape(node.inputs[j]).len() - 1;
    Some(match arrange {
        Arrange::Add | Arrange::Sub => {
            let sign = if matches!(arrange, Arrange::Add) { 1.0 } else { -1.0 };
            let (a, b) = (spread(x, channels), spread(inputs[1], channels));
            let sum = |(a, b): (&Interval, &Interval)| {
                let (lo, hi) = ordered(sign * b.0, sign * b.1);
                (a.0 + lo, a.1 + hi)
            };
            a.iter().zip(&b).map(sum).collect()
        }
        Arrange::Concat { axis } if *axis == last(0) => {
            let parts = inputs.iter().enumerate();
            let parts = parts.flat_map(|(j, x)| {
                let n = graph.shape(node.inputs[j]).last().copied().unwrap_or(1);
                spread(x, n)
            });
            parts.collect()
        }
        Arrange::Concat { .. } => {
            let parts: Vec<Vec<Interval>> = inputs.iter().map(|x| spread(x, channels)).collect();
            (0..channels).map(|c| hull(&parts.iter().map(|p| p[c]).collect::<Vec<_>>())).collect()
        }
        Arrange::Reshape if graph.shape(node.inputs[0]).last() == Some(&x.len()) => {
            // Numbers stay in their order, so channels come round again and again.
            spread(x, channels)
        }
        // Places that are not told apart, zeros between them.
        _ => vec![or_zero(hull(x)); channels],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Channels, Resize};
    use crate::float;

    fn preprocess() -> Preprocess {
        Preprocess {
            channels: Channels::Rgb,
            size: [6, 6],
            resize: Resize::Triangle,
            scale: 1.0 / 255.0,
            mean: vec![0.5, 0.25, 0.0],
            std: vec![0.5, 0.25, 0.125],
        }
    }

    #[test]
    fn black_and_white_bound_what_enters() {
        let all = pixels(&preprocess(), Some(3)).expect("three channels");
        for ((lo, hi), (l, h)) in all.into_iter().zip([(-1.0, 1.0), (-1.0, 3.0), (0.0, 8.0)]) {
            assert!((lo - l).abs() < 1e-12 && (hi - h).abs() < 1e-12);
        }
        assert_eq!(pixels(&preprocess(), Some(1)), None);
    }

    #[test]
    fn a_worst_case_is_reached_and_never_exceeded() {
        // One convolution with padding: the picture that follows the signs of the weights reaches the bound.
        let conv = Conv {
            n: 1,
            h: 6,
            w: 6,
            c_in: 3,
            c_out: 2,
            kernel: [3, 3],
            stride: [1, 1],
            pad: [1, 1, 1, 1],
            dilation: [1, 1],
            groups: 1,
        };
        let weight: Vec<f32> = (0..conv.weight_len()).map(|i| ((i * 37 % 23) as f32 - 11.0) / 8.0).collect();
        let parameters = Parameters { weight: weight.clone(), bias: vec![0.5, -0.25] };
        let node = |op, input, shape: [usize; 4]| Node {
            name: "n".into(),
            op,
            inputs: vec![input],
            shape: shape.to_vec(),
        };
        let nodes = vec![
            node(Op::Linear { conv, parameters }, 0, [1, 6, 6, 2]),
            node(Op::LeakyRelu { alpha: -0.5 }, 1, [1, 6, 6, 2]),
        ];
        let graph = Graph {
            name: "g".into(),
            input_name: "x".into(),
            input_shape: vec![1, 6, 6, 3],
            nodes,
            outputs: vec![],
        };
        let worst = worst_cases(&graph, Some(&preprocess()), |_| Slack::default());
        let (low, high) = ([-1.0f64, -1.0, 0.0], [1.0, 3.0, 8.0]);
        // The interior pixel (2, 2) of output channel o, for both signs.
        let mut reached = 0.0f64;
        for (o, sign) in [(0, 1.0), (0, -1.0), (1, 1.0), (1, -1.0)] {
            let mut x = vec![0.0; 6 * 6 * 3];
            for (ky, kx, c) in (0..27).map(|i| (i / 9, i / 3 % 3, i % 3)) {
                let w = f64::from(weight[((o * 3 + ky) * 3 + kx) * 3 + c]) * sign;
                x[((1 + ky) * 6 + 1 + kx) * 3 + c] = if w > 0.0 { high[c] } else { low[c] };
            }
            let probe = Graph {
                outputs: vec![crate::graph::Output {
                    name: "y".into(),
                    value: 1,
                    original_shape: vec![1, 2, 6, 6],
                    finish: None,
                }],
                ..graph.clone()
            };
            let found = float::run(&probe, &x).expect("runs").remove(0);
            reached = found.iter().fold(reached, |m, v| m.max(v.abs()));
        }
        // Zero is inside all channels' intervals or at their edge, so padding does not widen the bound.
        assert!((reached / worst[1] - 1.0).abs() < 1e-6, "{reached} of {}", worst[1]);
        // Both branches of the bend: -0.5 x is at most half as large.
        assert!(worst[2] <= worst[1] && worst[2] > 0.0);
    }

    #[test]
    fn without_preprocessing_nothing_is_known() {
        let graph = Graph {
            name: "g".into(),
            input_name: "x".into(),
            input_shape: vec![1, 4],
            nodes: vec![],
            outputs: vec![],
        };
        assert_eq!(worst_cases(&graph, None, |_| Slack::default()), [f64::INFINITY]);
    }
}
