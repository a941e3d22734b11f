//! Manifests that an attacker might write: any instruction on any register, with any constants.
//!
//! Bytes are read as decisions, so that a fuzzer's changes change decisions. Shapes are made to fit most of the time,
//! since what validation refuses at once teaches nothing; one decision in sixteen is left as it comes.

use sharelens_models::config::{Config, Task};
use sharelens_models::manifest::{OutputInfo, VERSION};
use sharelens_models::program::detect::Stage;
use sharelens_models::program::{Arrange, Instruction, Kind, Layer, ProductSize, Program, Ranged, Register};
use sharelens_models::real::Real;
use sharelens_models::smooth::Smooth;
use sharelens_models::{Arithmetic, Manifest};
use sharelens_ops::Linear;
use sharelens_ops::detect::{
    Decode, DecodeClasses, Extent, KeepFirst, RankDetections, RoiAlign, Suppress, TopAnchors, Unsettled, rank,
};
use sharelens_ops::layers::{Axis, MaxPool, Select, WeightedSum, Window};
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::ring::kernel::Conv;
use sharelens_protocol::ring::{Moduli, Range};

/// Most layers.
const LAYERS: usize = 8;
/// Most elements of a value: runs are many, so programs are small.
const ELEMENTS: usize = 96;

/// Decisions, one byte each; zeros once they are used up.
struct Decisions<'a>(&'a [u8]);

impl Decisions<'_> {
    fn byte(&mut self) -> usize {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first.into()
    }

    fn below(&mut self, n: usize) -> usize {
        self.byte() % n.max(1)
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Whether to leave something as it comes.
    fn wild(&mut self) -> bool {
        self.byte() >= 240
    }

    /// Numbers at the edges of what is accepted, and beyond.
    fn number(&mut self) -> i64 {
        self.one_of(&[
            0,
            1,
            2,
            -1,
            7,
            100,
            255,
            256,
            -1000,
            65_537,
            1 << 20,
            -(1 << 30),
            1 << 39,
            1 << 60,
            i64::MIN,
        ])
    }

    fn real(&mut self) -> f64 {
        self.one_of(&[0.0, 1.0, 0.5, -1.0, 1e-3, 3.0, 8.0, 64.0, 1000.0, 1e6, 1e9, f64::NAN, f64::INFINITY])
    }
}

/// The manifest that these bytes describe. It may be refused.
pub fn manifest(data: &[u8]) -> Manifest {
    let d = &mut Decisions(data);
    let arithmetic = match d.below(8) {
        0 => Arithmetic::Rns(Moduli { p: vec![7, 5, 3], q: vec![11, 13] }),
        1 => Arithmetic::Rns(Moduli { p: vec![251, 3], q: vec![253] }),
        2 => Arithmetic::Z64,
        3 => Arithmetic::usual(2, 2).expect("usual"),
        4 => Arithmetic::usual(3, 2).expect("usual"),
        _ => Arithmetic::usual(4, 3).expect("usual"),
    };
    let bounds = arithmetic.bounds().expect("usable");
    let input_shape = match d.below(4) {
        0 => vec![1, 4, 4, 1 + d.below(3)],
        1 => vec![2, 1 + d.below(8)],
        2 => vec![1 + d.below(6), 1 + d.below(8)],
        _ => vec![1 + d.below(6), 4],
    };
    let input_scale = d.one_of(&[1.0, 255.0, 1024.0, 65_536.0]);
    let rounds = d.one_of(&[Rounds::Balanced, Rounds::Fewest]);
    let mut p =
        Program { input_shape, input_scale, bounds, layers: Vec::new(), outputs: Vec::new(), watched: None };
    let mut weights = 0;
    for _ in 0..1 + d.below(LAYERS) {
        if let Some(layer) = layer(d, &mut p, &mut weights) {
            p.layers.push(layer);
        }
    }
    let last = p.layers.len() as Register;
    let counts = |l: &Layer| l.op == Instruction::Outside;
    p.watched = p.layers.iter().rposition(counts).map(|i| i as Register + 1);
    p.outputs = vec![if d.wild() { d.below(1 + last as usize) as Register } else { last }];
    let mut shape = p.shape(p.outputs[0]).to_vec();
    if let [n, h, w, c] = shape[..] {
        shape = vec![n, c, h, w];
    }
    let outputs =
        vec![OutputInfo { name: "out".into(), shape, finish: None, columns: Vec::new(), proved: false }];
    let config = Config {
        name: "hostile".into(),
        task: Task::Other,
        classes: Vec::new(),
        preprocess: None,
        detection: None,
    };
    Manifest { version: VERSION, config, arithmetic, rounds, program: p, outputs }
}

/// A register, most of the time one of this kind or one that serves as such.
fn register(d: &mut Decisions<'_>, p: &Program, wanted: Kind) -> Register {
    let all = p.layers.len() + 1;
    let any = d.below(all) as Register;
    if d.wild() {
        return any;
    }
    let fits = |r: &Register| p.kind(*r).serves(wanted);
    let later = (any..all as Register).find(fits);
    later.or_else(|| (0..any).rev().find(fits)).unwrap_or(any)
}

fn len(shape: &[usize]) -> usize {
    shape.iter().product()
}

fn layer(d: &mut Decisions<'_>, p: &mut Program, weights: &mut u32) -> Option<Layer> {
    let mut made = match d.below(14) {
        0 => linear(d, p, weights),
        1 | 2 => pointwise(d, p),
        3..=6 => arrange(d, p),
        7 => pool(d, p),
        8 => product(d, p),
        13 => smooth_or_mul(d, p),
        _ => stage(d, p),
    }?;
    if len(&made.shape) > ELEMENTS || len(&made.shape) == 0 {
        return None;
    }
    if d.wild() {
        made.range = d.one_of(&[Range::Full, Range::Reduced]);
    }
    if d.wild() {
        made.scale = d.real();
    }
    if d.wild() && !made.shape.is_empty() {
        let axis = d.below(made.shape.len());
        made.shape[axis] += 1;
    }
    Some(made)
}

fn new(op: Instruction, inputs: &[Register], shape: Vec<usize>, range: Range, scale: f64) -> Option<Layer> {
    Some(Layer { name: "hostile".into(), op, inputs: inputs.to_vec(), shape, range, scale })
}

fn linear(d: &mut Decisions<'_>, p: &Program, weights: &mut u32) -> Option<Layer> {
    let x = register(d, p, Kind::Full);
    let (n, out) = (len(p.shape(x)), 1 + d.below(6));
    let columns = p.shape(x).last().copied()?;
    let conv = Conv::dense(n / columns, columns, out);
    let map = Linear { conv, weight: *weights };
    *weights += 1;
    let op = Instruction::Linear { map, weight_scale: d.one_of(&[1.0, 1024.0, 65_536.0]) };
    new(op, &[x], vec![n / columns, out], Range::Reduced, 1024.0)
}

fn pointwise(d: &mut Decisions<'_>, p: &Program) -> Option<Layer> {
    let (op, wanted, range) = match d.below(8) {
        0 => (Instruction::Relu, Kind::Reduced, Range::Full),
        1 => {
            let mut bound = || if d.below(3) == 0 { None } else { Some(d.number()) };
            let (lo, hi) = (bound(), bound());
            let ordered = lo.zip(hi).is_none_or(|(l, h)| l <= h);
            let (lo, hi) = if ordered { (lo, hi) } else { (hi, lo) };
            (Instruction::Clip { lo, hi }, Kind::Reduced, Range::Full)
        }
        2 => (Instruction::LeakyRelu { negative: d.number() }, Kind::Reduced, Range::Reduced),
        3 => (Instruction::Halves, Kind::Reduced, Range::Full),
        4 | 5 => (Instruction::Requantise { factor: d.number() }, Kind::Full, Range::Reduced),
        6 => (Instruction::Lift, Kind::Reduced, Range::Full),
        _ => return looked_at(d, p),
    };
    let x = register(d, p, wanted);
    let mut shape = p.shape(x).to_vec();
    if op == Instruction::Halves {
        *shape.last_mut()? *= 2;
    }
    let scale = p.scale(x);
    new(op, &[x], shape, range, scale)
}

/// A smooth function with any settings, or a product of two values.
fn smooth_or_mul(d: &mut Decisions<'_>, p: &Program) -> Option<Layer> {
    let choice = d.below(4);
    if choice == 2 {
        let (lo, hi) = (d.real(), d.real());
        let function = match d.below(3) {
            0 => Real::InverseRoot { summand: d.real() as f32 },
            1 => Real::Reciprocal { summand: d.real() as f32 },
            _ => Real::Softmax { width: 1 + d.below(5) },
        };
        let kind = if function.wants() == Range::Full { Kind::Full } else { Kind::Reduced };
        let x = register(d, p, kind);
        let (range, wanted) =
            (if lo <= hi { [lo, hi] } else { [hi, lo] }, d.one_of(&[64.0, 1024.0, 65_536.0]));
        let op = Instruction::Real(Ranged { function, range, wanted });
        // The scale that planning it finds, most of the time.
        let found = Ranged { function, range, wanted }.scale(&p.bounds, len(p.shape(x)), p.scale(x));
        return new(op, &[x], p.shape(x).to_vec(), Range::Reduced, found.unwrap_or(wanted));
    }
    if choice == 3 {
        let (x, y) = (register(d, p, Kind::Full), register(d, p, Kind::Full));
        let k = 1 + d.below(4);
        let (m, n) = (len(p.shape(x)) / k, len(p.shape(y)) / k);
        let size = ProductSize { groups: 1, m, k, n };
        let op = Instruction::MatMul { size, factor: d.number() };
        return new(op, &[x, y], vec![m, n], Range::Reduced, p.scale(x));
    }
    if choice == 0 {
        let x = register(d, p, Kind::Reduced);
        let function = d.one_of(&[Smooth::HardSwish, Smooth::Sigmoid, Smooth::Gelu]).fit(0.05).ok()?;
        let function = Box::new(function.going_on(d.real()));
        let op = Instruction::Smooth { function, limit: d.real() };
        return new(op, &[x], p.shape(x).to_vec(), Range::Reduced, d.one_of(&[64.0, 1024.0, p.scale(x)]));
    }
    let x = register(d, p, Kind::Full);
    let shape = p.shape(x).to_vec();
    let same =
        (0..=p.layers.len() as Register).filter(|&r| p.shape(r) == shape && p.kind(r).serves(Kind::Full));
    let same: Vec<Register> = same.collect();
    let y = if same.is_empty() { x } else { d.one_of(&same) };
    new(Instruction::Mul { factor: d.number() }, &[x, y], shape, Range::Reduced, p.scale(x))
}

/// A sample, or a count of what is outside.
fn looked_at(d: &mut Decisions<'_>, p: &Program) -> Option<Layer> {
    let x = register(d, p, Kind::Reduced);
    if d.below(2) == 0 {
        let stride = 1 + d.below(4);
        let shape = vec![len(p.shape(x)).div_ceil(stride)];
        return new(
            Instruction::Sample { stride, shift: d.number(), factor: d.number() },
            &[x],
            shape,
            Range::Reduced,
            p.scale(x),
        );
    }
    let inputs: Vec<Register> = (0..1 + d.below(3)).map(|_| register(d, p, Kind::Reduced)).collect();
    new(Instruction::Outside, &inputs, vec![inputs.len()], Range::Full, 1.0)
}

fn arrange(d: &mut Decisions<'_>, p: &Program) -> Option<Layer> {
    let kind = d.one_of(&[Kind::Full, Kind::Full, Kind::Reduced, Kind::Bits]);
    let x = register(d, p, kind);
    let shape = p.shape(x).to_vec();
    let full = p.kind(x).serves(Kind::Full);
    let range = if full { Range::Full } else { Range::Reduced };
    let (op, inputs, shape) = match d.below(6) {
        choice @ (0 | 1) => {
            let same = (0..=p.layers.len() as Register)
                .filter(|&r| p.shape(r) == shape && p.kind(r).serves(p.kind(x)));
            let same: Vec<Register> = same.collect();
            let y = d.one_of(&same);
            (if choice == 0 { Arrange::Add } else { Arrange::Sub }, vec![x, y], shape)
        }
        2 => {
            let mut joined = shape.clone();
            let axis = d.below(shape.len());
            joined[axis] *= 2;
            (Arrange::Concat { axis }, vec![x, x], joined)
        }
        3 => {
            let mut axis = |n: usize| -> Vec<u32> {
                let count = if d.below(2) == 0 { n } else { 1 + d.below(4) };
                (0..count).map(|i| if d.below(3) == 0 { d.below(n) as u32 } else { (i % n) as u32 }).collect()
            };
            let axes: Vec<Vec<u32>> = shape.iter().map(|&n| axis(n)).collect();
            let shape = axes.iter().map(Vec::len).collect();
            (Arrange::Select(Select { axes }), vec![x], shape)
        }
        4 => {
            let mut permutation: Vec<usize> = (0..shape.len()).collect();
            let by = d.below(shape.len());
            permutation.rotate_left(by);
            let turned = permutation.iter().map(|&a| shape[a]).collect();
            (Arrange::Transpose { permutation }, vec![x], turned)
        }
        _ => {
            let n = len(&shape);
            let divisors: Vec<usize> = (1..=n).filter(|k| n.is_multiple_of(*k)).collect();
            let k = d.one_of(&divisors);
            let shapes = [vec![n], vec![k, n / k], vec![1, k, n / k, 1], vec![1, k, 1, n / k]];
            (Arrange::Reshape, vec![x], shapes[d.below(shapes.len())].clone())
        }
    };
    new(Instruction::Arrange(op), &inputs, shape, range, p.scale(x))
}

fn pool(d: &mut Decisions<'_>, p: &Program) -> Option<Layer> {
    let x = register(d, p, Kind::Full);
    let &[n, h, w, c] = p.shape(x) else { return None };
    let window = |input: usize| Window {
        input,
        kernel: 2,
        stride: 1,
        dilation: 1,
        before: 0,
        output: input.max(2) - 1,
    };
    let scale = p.scale(x);
    if d.below(2) == 0 {
        let pool = MaxPool { n, c, rows: window(h), columns: window(w) };
        return new(
            Instruction::MaxPool(pool),
            &[x],
            vec![n, h.max(2) - 1, w.max(2) - 1, c],
            Range::Reduced,
            scale,
        );
    }
    let mut axis = |input: usize| {
        let entries =
            (0..input).map(|i| vec![(i as u32, d.number() % (1 << 31)), ((i / 2) as u32, 1)]).collect();
        Axis { input, entries }
    };
    let sum = WeightedSum { n, c, rows: axis(h), columns: axis(w) };
    let rescale = if d.below(2) == 0 { None } else { Some(d.number()) };
    let range = if rescale.is_some() { Range::Reduced } else { Range::Full };
    new(Instruction::Weighted { sum, rescale }, &[x], vec![n, h, w, c], range, scale)
}

fn product(d: &mut Decisions<'_>, p: &Program) -> Option<Layer> {
    let x = register(d, p, Kind::Full);
    let n = len(p.shape(x));
    let divisors: Vec<usize> = (1..=n / 2).filter(|k| n.is_multiple_of(*k)).collect();
    let k = d.one_of(if divisors.is_empty() { &[1] } else { &divisors });
    let rows = n / k;
    let m = 1 + d.below(rows.max(2) - 1);
    let shape = vec![m, rows.saturating_sub(m)];
    let op = Instruction::Product { m, k, n: shape[1], factor: d.number() };
    new(op, &[x], shape, Range::Reduced, p.scale(x))
}

/// A value of this shape made of the elements of `x`, in a layer of its own.
fn repeated(p: &mut Program, x: Register, shape: &[usize]) -> Option<Register> {
    if len(shape) > ELEMENTS || len(shape) == 0 || len(p.shape(x)) == 0 {
        return None;
    }
    let (from, range) = (p.shape(x).to_vec(), p.kind(x).range());
    let axes = if from.len() == shape.len() { from } else { vec![1; shape.len()] };
    let flat = |n: usize, k: usize| (0..k).map(|i| (i % n) as u32).collect::<Vec<_>>();
    let select = Select { axes: axes.iter().zip(shape).map(|(&n, &k)| flat(n, k)).collect() };
    if p.shape(x).len() != shape.len() {
        // One element, under as many axes.
        let one = Select { axes: p.shape(x).iter().map(|_| vec![0]).collect() };
        let ones = vec![1; p.shape(x).len()];
        let scale = p.scale(x);
        p.layers.extend(new(Instruction::Arrange(Arrange::Select(one)), &[x], ones, range, scale));
        let at = p.layers.len() as Register;
        p.layers.extend(new(
            Instruction::Arrange(Arrange::Reshape),
            &[at],
            vec![1; shape.len()],
            range,
            scale,
        ));
        let at = p.layers.len() as Register;
        p.layers.extend(new(
            Instruction::Arrange(Arrange::Select(select)),
            &[at],
            shape.to_vec(),
            range,
            scale,
        ));
    } else {
        let scale = p.scale(x);
        p.layers.extend(new(
            Instruction::Arrange(Arrange::Select(select)),
            &[x],
            shape.to_vec(),
            range,
            scale,
        ));
    }
    Some(p.layers.len() as Register)
}

/// A value of this kind and shape: one that is there, or one made for it.
fn having(p: &mut Program, kind: Kind, shape: &[usize]) -> Option<Register> {
    let fits = |r: &Register| p.shape(*r) == shape && p.kind(*r).serves(kind);
    let there = (0..=p.layers.len() as Register).rev().find(fits);
    there.or_else(|| repeated(p, 0, shape))
}

fn stage(d: &mut Decisions<'_>, p: &mut Program) -> Option<Layer> {
    let extent = Extent {
        width: d.one_of(&[4.0, 1.0, 40.0, 65_536.0]),
        height: d.one_of(&[4.0, 1.0, 30.0]),
        scale: d.one_of(&[16.0, 1024.0, 16_384.0]),
    };
    let first = |d: &mut Decisions<'_>, p: &Program, kind: Kind| {
        let x = register(d, p, kind);
        (x, p.shape(x).to_vec())
    };
    let bits = (1..=p.layers.len() as Register).any(|r| p.kind(r) == Kind::Bits);
    let choice = d.below(if bits { 20 } else { 10 });
    let (stage, inputs) = match if choice >= 10 { 5 + choice % 3 } else { choice } {
        0 | 1 => {
            let (x, shape) = first(d, p, Kind::Reduced);
            let (x, shape) = match shape[..] {
                [1, _, _, 1..3] => (x, shape),
                _ => (repeated(p, x, &[1, 2, 3, 2])?, vec![1, 2, 3, 2]),
            };
            let [h, w, a] = [shape[1], shape[2], shape[3]];
            let deltas = having(p, Kind::Reduced, &[1, h, w, 4 * a])?;
            let n = h * w * a;
            let k = 1 + d.below(n);
            let group = 2 + d.below(n.max(3) - 2);
            let levels = if d.below(2) == 0 {
                Vec::new()
            } else {
                vec![rank::Level { group, keep: 1 + d.below(group) }]
            };
            (
                Stage::TopAnchors(TopAnchors {
                    grid: [h, w],
                    anchors: vec![[0.5, 0.5, 1.0, d.real()]; a],
                    k,
                    levels,
                }),
                vec![x, deltas],
            )
        }
        2 => {
            let (x, shape) = first(d, p, Kind::Reduced);
            let s = Decode { rows: shape[0], extent, limit: d.real(), reach: d.real(), side: d.real() };
            (Stage::Decode(s), vec![x])
        }
        3 | 4 => {
            let (x, shape) = first(d, p, Kind::Full);
            let (x, shape) = match shape[..] {
                [_, width] if width >= 4 => (x, shape),
                _ => (repeated(p, x, &[4, 5])?, vec![4, 5]),
            };
            let [rows, width] = [shape[0], shape[1]];
            let more = width > 4 && d.below(2) == 0;
            let s = Suppress {
                rows,
                width,
                extent,
                least_side: d.number(),
                least: if more { vec![(4, d.number())] } else { Vec::new() },
                class: (more && d.below(2) == 0).then_some(width - 1),
                classes: d.below(5),
                threshold: d.one_of(&[0.5, 0.0, 1.0, 0.3]),
                steps: 1 + d.below(rows.max(2)),
            };
            (Stage::Suppress(s), vec![x])
        }
        5 => {
            let (x, shape) = first(d, p, Kind::Bits);
            (Stage::Unsettled(Unsettled { rows: *shape.get(1)?, steps: 1 + d.below(4) }), vec![x])
        }
        6 | 7 => {
            let (bits, shape) = first(d, p, Kind::Bits);
            let rows = *shape.get(1)?;
            let fits =
                |r: &Register| matches!(p.shape(*r), [n, _] if *n == rows) && p.kind(*r).serves(Kind::Full);
            let there = (0..=p.layers.len() as Register).find(fits);
            let list = there.or_else(|| repeated(p, 0, &[rows, 2]))?;
            let width = p.shape(list)[1];
            let s = KeepFirst { rows, width, columns: 1 + d.below(width), k: 1 + d.below(rows) };
            (Stage::KeepFirst(s), vec![list, bits])
        }
        8 => {
            let (x, shape) = first(d, p, Kind::Reduced);
            let (x, shape) = match shape[..] {
                [1..8, 2..8] => (x, shape),
                _ => (repeated(p, x, &[3, 2])?, vec![3, 2]),
            };
            let [n, c] = [shape[0], shape[1]];
            match d.below(4).min(2) {
                0 => (
                    Stage::Scores { classes: c, floor: 0.01, scale: d.one_of(&[1024.0, 65_536.0, 1e9]) },
                    vec![x],
                ),
                1 => {
                    let s = RankDetections { proposals: n, classes: c };
                    let boxes = having(p, Kind::Full, &[n * c, 4])?;
                    (Stage::RankDetections(s), vec![x, boxes, having(p, Kind::Full, &[n, 4])?])
                }
                _ => {
                    let weights = [d.one_of(&[10.0, 1.0, 0.01]), 5.0];
                    let boxes = having(p, Kind::Full, &[n, 4])?;
                    let s = DecodeClasses {
                        proposals: n,
                        classes: c / 4,
                        extent,
                        weights,
                        limit: d.real(),
                        reach: d.real(),
                    };
                    (Stage::DecodeClasses(s), vec![boxes, x])
                }
            }
        }
        _ => {
            let (x, shape) = first(d, p, Kind::Full);
            let &[1, h, w, c] = &shape[..] else { return None };
            let boxes = (0..=p.layers.len() as Register)
                .find(|&r| matches!(p.shape(r), [_, 4]) && p.kind(r).serves(Kind::Full))?;
            let s = RoiAlign {
                boxes: p.shape(boxes)[0],
                map: [h, w, c],
                extent: Extent { width: w as f64, height: h as f64, ..extent },
                bins: 1 + d.below(2),
                samples: 1 + d.below(2),
                aligned: d.below(2) == 0,
                scale: d.one_of(&[1024.0, 65_536.0]),
            };
            (Stage::RoiAlign(s), vec![x, boxes])
        }
    };
    let kind = stage.kind();
    let shape = match (&stage, inputs.first()) {
        (Stage::Scores { .. }, Some(&x)) => vec![p.shape(x)[0], p.shape(x)[1].max(2) - 1],
        _ => stage.shapes().1,
    };
    let limits = inputs.iter().map(|_| d.one_of(&[0.0, 1.0, 4.0, 100.0, 1e6])).collect();
    let scale = p.scale(inputs[0]);
    new(Instruction::Detect { stage: Box::new(stage), limits }, &inputs, shape, kind.yields().range(), scale)
}
