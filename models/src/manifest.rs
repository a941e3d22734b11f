//! Everything public about a prepared model. It may come from a peer, so nothing in it is believed unchecked.

use serde::{Deserialize, Serialize};
use sharelens_ops::layers::movement::transpose;
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::ring::Range;

use crate::arithmetic::Arithmetic;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::finish::Finish;
use crate::graph::{
    MAX_ELEMENTS, MAX_MACS, MAX_MOVES, MAX_NODES, MAX_ROWS, conv_fits, elements, pool_fits, pool_moves,
};
use crate::program::{Instruction, Kind, Layer, Program};

/// Most [`Instruction::Outside`] of a program; one is what preparation makes.
const MAX_LOOKS: usize = 8;

/// Version of the format.
pub const VERSION: u32 = 5;

/// Shapes, scales, moduli, preprocessing, names: all that servers, helper and client agree on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this format.
    pub version: u32,
    /// Name, task, classes and preprocessing.
    pub config: Config,
    /// The ring.
    pub arithmetic: Arithmetic,
    /// What comparisons trade rounds for, as the links between the nodes deserve.
    pub rounds: Rounds,
    /// The steps.
    pub program: Program,
    /// What the outputs are, in the program's order.
    pub outputs: Vec<OutputInfo>,
}

/// One output as the original network yields it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputInfo {
    /// Its name.
    pub name: String,
    /// Its shape, `[n, c, h, w]` for feature maps.
    pub shape: Vec<usize>,
    /// What the client applies to it.
    pub finish: Option<Finish>,
    /// Scales of the last axis, where its entries have scales of their own.
    pub columns: Vec<f64>,
    /// Whether its numbers are in range for any picture, as the model's owner says; otherwise the client looks.
    pub proved: bool,
}

impl OutputInfo {
    /// Real numbers from integers at `scale`, unless columns have their own.
    pub fn real(&self, integers: &[i64], scale: f64) -> Vec<f64> {
        let scales: &[f64] = if self.columns.is_empty() { &[scale] } else { &self.columns };
        integers.iter().zip(scales.iter().cycle()).map(|(&v, scale)| v as f64 / scale).collect()
    }

    /// What the network yields, from its numbers before the last function: shape and values.
    pub fn finished(&self, values: &[f64]) -> (Vec<usize>, Vec<f64>) {
        match &self.finish {
            None => (self.shape.clone(), values.to_vec()),
            Some(finish) => {
                (finish.shape.clone().unwrap_or_else(|| self.shape.clone()), finish.apply(values))
            }
        }
    }

    /// Numbers from storage order (`[n, h, w, c]`) to the original one.
    pub fn original<T: Copy>(&self, values: &[T]) -> Vec<T> {
        match self.shape[..] {
            [n, c, h, w] => {
                transpose(&[n, h, w, c], &[0, 3, 1, 2]).into_iter().map(|i| values[i as usize]).collect()
            }
            _ => values.to_vec(),
        }
    }
}

impl Manifest {
    /// Output `index` from opened integers: real numbers in the original order, before the last function.
    ///
    /// # Errors
    ///
    /// If there is no such output or it has another length.
    pub fn decode(&self, index: usize, integers: &[i64]) -> Result<Vec<f64>> {
        let (info, (shape, scale)) = self
            .outputs
            .get(index)
            .zip(self.program.outputs().nth(index))
            .ok_or_else(|| Error::Manifest(format!("there is no output {index}")))?;
        let expected = shape.iter().product();
        if integers.len() != expected {
            return Err(Error::Input { expected, found: integers.len() });
        }
        Ok(info.original(&info.real(integers, scale)))
    }

    /// Checks everything that running relies on.
    ///
    /// # Errors
    ///
    /// The first thing that does not hold together.
    pub fn validate(&self) -> Result<()> {
        let bad = |why: String| Err(Error::Manifest(why));
        if self.version != VERSION {
            let found = self.version;
            return bad(format!(
                "version {found}, this release takes version {VERSION}: share the model again"
            ));
        }
        let bounds = self.arithmetic.bounds().map_err(|e| Error::Manifest(e.to_string()))?;
        let p = &self.program;
        if p.bounds != bounds {
            return bad(format!("its ranges are {:?}, those of its ring {bounds:?}", p.bounds));
        }
        if p.layers.len() > 4 * MAX_NODES {
            return bad(format!("{} layers", p.layers.len()));
        }
        if elements(&p.input_shape).is_none() || !is_scale(p.input_scale) {
            return bad(format!("input of shape {:?} at scale {}", p.input_shape, p.input_scale));
        }
        self.config.validate(&p.input_shape).map_err(|e| Error::Manifest(e.to_string()))?;
        // Before anything else is computed from it: a few bytes can ask for days of work.
        let sum = |cost: fn(&Layer) -> u64| p.layers.iter().fold(0, |a: u64, l| a.saturating_add(cost(l)));
        let moves = p.results().fold(sum(moves), |a, r| {
            let shape = p.layers.get((r as usize).wrapping_sub(1)).map_or(&p.input_shape, |l| &l.shape);
            a.saturating_add(product(shape))
        });
        if moves > MAX_MOVES {
            return bad(format!("a run would move {moves} elements, and at most {MAX_MOVES} are accepted"));
        }
        let rows = sum(rows);
        if rows > MAX_ROWS {
            return bad(format!("its stages go through {rows} rows, and at most {MAX_ROWS} are accepted"));
        }
        // Sums by halves are planned step by step, for each of many inputs.
        let looks = p.layers.iter().filter(|l| l.op == Instruction::Outside).count();
        if looks > MAX_LOOKS {
            return bad(format!("it looks at ranges {looks} times, and at most {MAX_LOOKS} are accepted"));
        }
        let mut weights = Vec::new();
        for (i, layer) in p.layers.iter().enumerate() {
            if let Err(why) = check(p, i, layer) {
                return bad(format!(
                    "layer {i} ({}): {why}",
                    layer.name.chars().take(80).collect::<String>()
                ));
            }
            if let Instruction::Linear { map, .. } = &layer.op {
                weights.push(map.weight);
            }
        }
        let macs = sum(macs);
        if macs > MAX_MACS {
            return bad(format!("a run would take {macs} products, and at most {MAX_MACS} are accepted"));
        }
        weights.sort_unstable();
        if !weights.iter().copied().eq(0..weights.len() as u32) {
            return bad("weights are not numbered from zero, each used once".into());
        }
        if p.outputs.is_empty() || p.outputs.len() != self.outputs.len() || p.outputs.len() > 64 {
            return bad(format!("{} outputs with {} names", p.outputs.len(), self.outputs.len()));
        }
        if let Some(r) = p.watched {
            let counts = p.layers.get((r as usize).wrapping_sub(1)).map(|l| &l.op);
            if counts != Some(&Instruction::Outside) {
                return bad("what is watched is no count".into());
            }
        }
        for (&register, info) in p.outputs.iter().zip(&self.outputs) {
            if register as usize > p.layers.len() || elements(&info.shape) != elements(p.shape(register)) {
                return bad(format!("output {} does not fit its register", info.name));
            }
            if info.finish.as_ref().is_some_and(|f| !f.fits(info.shape.iter().product())) {
                return bad(format!("the last function of output {} does not fit its size", info.name));
            }
            let columns = &info.columns;
            if !columns.is_empty()
                && (info.shape.last() != Some(&columns.len()) || !columns.iter().all(|&s| is_scale(s)))
            {
                return bad(format!("the columns of output {} do not match", info.name));
            }
            if let [n, c, h, w] = info.shape[..]
                && p.shape(register) != [n, h, w, c]
            {
                return bad(format!("output {} is not stored as [n, h, w, c]", info.name));
            }
        }
        Ok(())
    }
}

fn product(shape: &[usize]) -> u64 {
    shape.iter().fold(1u64, |a, &d| a.saturating_mul(d as u64))
}

/// How many elements a layer moves, in any order of magnitude that it claims; intermediate results that are too
/// large count as more than everything.
fn moves(layer: &Layer) -> u64 {
    let out = product(&layer.shape);
    let wide = |n: usize, rows: usize, columns: usize, c: usize| match product(&[n, rows, columns, c]) {
        wide if wide <= MAX_ELEMENTS as u64 => wide,
        _ => u64::MAX,
    };
    match &layer.op {
        Instruction::MaxPool(p) => {
            out.saturating_add(pool_moves(p)).saturating_add(wide(p.n, p.rows.input, p.columns.output, p.c))
        }
        Instruction::Weighted { sum, .. } => {
            let count = |a: &sharelens_ops::layers::Axis| a.entries.first().map_or(0, Vec::len) as u64;
            let wide = wide(sum.n, sum.rows.input, sum.columns.entries.len(), sum.c);
            out.saturating_mul(count(&sum.rows)).saturating_add(wide.saturating_mul(count(&sum.columns)))
        }
        Instruction::Detect { stage, .. } => stage.moves().saturating_add(out),
        // Compared with the ends of all pieces at once.
        Instruction::Real(function) => match out.saturating_mul(function.pieces()) {
            compared if compared <= MAX_ELEMENTS as u64 => compared.saturating_mul(4),
            _ => u64::MAX,
        },
        Instruction::Smooth { function, .. } => match out.saturating_mul(function.pieces() as u64 + 1) {
            compared if compared <= MAX_ELEMENTS as u64 => compared.saturating_mul(4),
            _ => u64::MAX,
        },
        // Its inputs were counted where they were made; sums by halves move twice as many again.
        _ => out,
    }
}

/// How many rows of lists a layer goes through, as it claims.
fn rows(layer: &Layer) -> u64 {
    match &layer.op {
        Instruction::Detect { stage, .. } => stage.rows(),
        _ => 0,
    }
}

/// Multiply-accumulates of a layer that was checked.
fn macs(layer: &Layer) -> u64 {
    match &layer.op {
        Instruction::Detect { stage, .. } => stage.macs(),
        &Instruction::Product { m, k, n, .. } => product(&[m, k, n]),
        Instruction::MatMul { size, .. } => size.macs(),
        Instruction::Linear { map, .. } => product(&[map.conv.n, map.conv.out_h(), map.conv.out_w()])
            .saturating_mul(map.conv.weight_len() as u64),
        _ => 0,
    }
}

fn is_scale(s: f64) -> bool {
    s.is_finite() && (1e-3..=1e15).contains(&s)
}

/// One layer against the registers it reads.
fn check(p: &Program, i: usize, layer: &Layer) -> Result<(), String> {
    let ensure = |ok: bool, why: &str| if ok { Ok(()) } else { Err(why.to_owned()) };
    ensure(layer.inputs.iter().all(|&r| r as usize <= i), "it reads what is not computed yet")?;
    ensure(!layer.inputs.is_empty() && layer.inputs.len() <= 1 << 10, "it reads none or too many registers")?;
    ensure(layer.name.len() <= 1 << 12, "its name is too long")?;
    ensure(elements(&layer.shape).is_some(), "its shape is not acceptable")?;
    ensure(is_scale(layer.scale), "its scale is not acceptable")?;
    let shapes: Vec<&[usize]> = layer.inputs.iter().map(|&r| p.shape(r)).collect();
    let kinds: Vec<Kind> = layer.inputs.iter().map(|&r| p.kind(r)).collect();
    let (x, out) = (shapes[0], layer.shape.as_slice());
    let len = |s: &[usize]| s.iter().product::<usize>();
    let full = kinds.iter().all(|k| k.serves(Kind::Full));
    let yields = |range: Range| ensure(layer.range == range, "it yields the other domain");
    let arity = match layer.op {
        Instruction::Arrange(ref a) => a.arity().unwrap_or(layer.inputs.len()),
        Instruction::Detect { ref stage, .. } => stage.kind().arity(),
        Instruction::Outside => layer.inputs.len(),
        Instruction::Mul { .. } | Instruction::MatMul { .. } => 2,
        _ => 1,
    };
    ensure(layer.inputs.len() == arity, "it reads too few or too many registers")?;
    match &layer.op {
        Instruction::Linear { map, weight_scale } => {
            yields(Range::Reduced)?;
            ensure(full, "its input is not in the larger domain")?;
            ensure(is_scale(*weight_scale), "its weight scale is not acceptable")?;
            ensure(conv_fits(&map.conv), "its convolution is not acceptable")?;
            ensure(map.conv.in_len() == len(x) && map.conv.out_len() == len(out), "its shapes do not match")
        }
        &Instruction::Product { m, k, n, factor } => {
            yields(Range::Reduced)?;
            ensure(full && (1..1 << 40).contains(&factor), "its input or factor is not acceptable")?;
            let fits = elements(&[m, n]).is_some() && k > 0;
            let rows = m.checked_add(n).and_then(|r| r.checked_mul(k));
            ensure(fits && rows == Some(len(x)) && out == [m, n], "its shapes do not match")
        }
        Instruction::Relu => yields(Range::Full).and(ensure(x == out, "its shapes do not match")),
        Instruction::Clip { lo, hi } => {
            yields(Range::Full)?;
            let sane = |b: &Option<i64>| b.is_none_or(|b| b.unsigned_abs() < 1 << 61);
            ensure(
                sane(lo) && sane(hi) && lo.zip(*hi).is_none_or(|(l, h)| l <= h),
                "its bounds are not ordered",
            )?;
            ensure(x == out, "its shapes do not match")
        }
        Instruction::LeakyRelu { negative } => {
            yields(Range::Reduced)?;
            ensure(negative.unsigned_abs() < 1 << 40, "its slope is too large")?;
            ensure(x == out, "its shapes do not match")
        }
        Instruction::Halves => {
            yields(Range::Full)?;
            let doubled = x.split_last().map(|(l, rest)| [rest, &[2 * l]].concat());
            ensure(doubled.as_deref() == Some(out), "its shapes do not match")
        }
        Instruction::Smooth { function, limit } => {
            yields(Range::Reduced)?;
            ensure(function.is_valid(), "its function is not acceptable")?;
            ensure(limit.is_finite() && (0.0..=1e9).contains(limit), "its limit is not acceptable")?;
            ensure(x == out, "its shapes do not match")
        }
        Instruction::Real(function) => {
            yields(Range::Reduced)?;
            ensure(function.is_valid(len(x)), "its function is not acceptable")?;
            ensure(
                function.function.wants() == Range::Reduced || full,
                "its input is not in the larger domain",
            )?;
            ensure(x == out, "its shapes do not match")
        }
        Instruction::MatMul { size, factor } => {
            yields(Range::Reduced)?;
            ensure(full && (1..1 << 40).contains(factor), "an input or its factor is not acceptable")?;
            ensure(size.elements() == Some([len(x), len(shapes[1]), len(out)]), "its shapes do not match")
        }
        Instruction::Mul { factor } => {
            yields(Range::Reduced)?;
            ensure(full && (1..1 << 40).contains(factor), "an input or its factor is not acceptable")?;
            ensure(x == shapes[1] && x == out, "its shapes do not match")
        }
        Instruction::MaxPool(pool) => {
            yields(Range::Reduced)?;
            ensure(pool.rows.is_valid() && pool.columns.is_valid(), "its windows are not acceptable")?;
            ensure(
                x == [pool.n, pool.rows.input, pool.columns.input, pool.c]
                    && out == [pool.n, pool.rows.output, pool.columns.output, pool.c]
                    && pool_fits(pool),
                "its windows do not match",
            )
        }
        Instruction::Weighted { sum, rescale } => {
            yields(if rescale.is_some() { Range::Reduced } else { Range::Full })?;
            ensure(full, "its input is not in the larger domain")?;
            ensure(rescale.is_none_or(|f| (1..1 << 40).contains(&f)), "its factor is not acceptable")?;
            ensure(
                sum.rows.is_valid()
                    && sum.columns.is_valid()
                    && x == [sum.n, sum.rows.input, sum.columns.input, sum.c]
                    && elements(&[sum.n, sum.rows.input, sum.columns.entries.len(), sum.c]).is_some()
                    && out == [sum.n, sum.rows.entries.len(), sum.columns.entries.len(), sum.c],
                "its sums do not match",
            )
        }
        Instruction::Requantise { factor } => {
            yields(Range::Reduced)?;
            ensure(full && (1..1 << 40).contains(factor), "its input or factor is not acceptable")?;
            ensure(x == out, "its shapes do not match")
        }
        Instruction::Lift => yields(Range::Full).and(ensure(x == out, "its shapes do not match")),
        Instruction::Arrange(arrange) => {
            ensure(layer.range == Range::Reduced || full, "an input is not in the larger domain")?;
            arrange.check(&shapes, out)
        }
        &Instruction::Sample { stride, shift, factor } => {
            yields(Range::Reduced)?;
            ensure(
                shift.unsigned_abs() < 1 << 61 && (1..1 << 40).contains(&factor),
                "its range is not acceptable",
            )?;
            ensure(stride > 0 && out == [len(x).div_ceil(stride)], "its shapes do not match")
        }
        Instruction::Outside => {
            yields(Range::Full)?;
            ensure(out == [layer.inputs.len()], "its shapes do not match")?;
            let all = shapes.iter().try_fold(0usize, |a, s| a.checked_add(len(s)));
            ensure(all.is_some_and(|n| elements(&[n]).is_some()), "it looks at too many elements")?;
            let most = shapes.iter().map(|s| len(s)).max().unwrap_or(0);
            ensure(i64::try_from(most).is_ok_and(|n| n < p.bounds.lift), "its counts leave their range")
        }
        Instruction::Detect { stage, limits } => {
            yields(stage.kind().yields().range())?;
            stage.check(&shapes, out)?;
            for (j, kind) in kinds.iter().enumerate() {
                let wanted = stage.kind().wants(j);
                let why = match wanted {
                    // Places follow from these bits and are opened.
                    Kind::Bits => "it takes numbers for bits that no sign made",
                    _ => "an input is not in the larger domain",
                };
                ensure(kind.serves(wanted), why)?;
            }
            let sane = |l: &f64| l.is_finite() && (0.0..=1e9).contains(l);
            ensure(limits.len() == shapes.len() && limits.iter().all(sane), "its limits are not acceptable")
        }
    }
}
