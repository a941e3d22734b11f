//! A network as the list of steps that servers, helper and twin run: shapes, scales and moduli, and no weight.

pub mod detect;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::{Deserialize, Serialize};
use sharelens_ops::engine::ProductShape;
use sharelens_ops::layers::{self, MaxPool, WeightedSum, activation};
use sharelens_ops::number::{Number, Scope};
use sharelens_ops::opened::Bits;
use sharelens_ops::plain::Bounds;
use sharelens_ops::real::{Piecewise, piecewise};
use sharelens_ops::{Engine, Linear};
use sharelens_protocol::ring::{Domain, Full, Range, Reduced};
use sharelens_protocol::{Error, Result, Step};

pub use crate::arrange::Arrange;
pub use crate::graph::ProductSize;
pub use crate::real::{Argument, Ranged};
pub use crate::stage::Kind;

/// A register: 0 holds the input, `i + 1` what step `i` computes.
pub type Register = u32;

/// Steps of one inference, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// Shape of the input, `[n, h, w, c]` for pictures.
    pub input_shape: Vec<usize>,
    /// Scale of the input, which enters in `Full`.
    pub input_scale: f64,
    /// The ranges of its ring.
    pub bounds: Bounds,
    /// Steps; each reads earlier registers only. Its index is its layer in [`Step`] and in the ledger.
    pub layers: Vec<Layer>,
    /// Registers that are the result, in order; they are yielded in `Reduced`.
    pub outputs: Vec<Register>,
    /// The register with the counts of an [`Instruction::Outside`], which the client gets behind the outputs.
    pub watched: Option<Register>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Name, after the ONNX node.
    pub name: String,
    /// What it does.
    pub op: Instruction,
    /// What it reads.
    pub inputs: Vec<Register>,
    /// Shape of what it yields.
    pub shape: Vec<usize>,
    /// Domain of what it yields.
    pub range: Range,
    /// Scale of what it yields.
    pub scale: f64,
}

impl Layer {
    /// What it yields.
    pub fn kind(&self) -> Kind {
        match &self.op {
            Instruction::Detect { stage, .. } => stage.kind().yields(),
            _ => self.range.into(),
        }
    }
}

/// What a step does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instruction {
    /// A linear map with secret weights, and the rescale after it.
    Linear {
        /// The map.
        map: Linear,
        /// Scale of its weights; that of its bias is this times the input's.
        weight_scale: f64,
    },
    /// max(x, 0).
    Relu,
    /// min(max(x, lo), hi), bounds at the scale of x.
    Clip {
        /// Lower bound.
        lo: Option<i64>,
        /// Upper bound.
        hi: Option<i64>,
    },
    /// x or `negative * x / divisor`.
    LeakyRelu {
        /// Slope of the negative side, times the divisor.
        negative: i64,
    },
    /// relu(x) and relu(-x) side by side: a PReLU is this and a linear map.
    Halves,
    /// The first `m` rows of the input times the other `n` rows, transposed: both are secret. Then a factor and a
    /// rescale.
    Product {
        /// Rows of the left operand.
        m: usize,
        /// Length of a row.
        k: usize,
        /// Rows of the right operand.
        n: usize,
        /// The factor.
        factor: i64,
    },
    /// Cubics on pieces, at the scale of the layer.
    Smooth {
        /// The function.
        function: Box<Piecewise>,
        /// Largest magnitude that its planning has to reckon with, in units.
        limit: f64,
    },
    /// The product of two secrets, number by number. Then a factor and a rescale.
    Mul {
        /// The factor.
        factor: i64,
    },
    /// A root, a quotient or a softmax.
    Real(Ranged),
    /// Products of two secret matrices. Then a factor and a rescale.
    MatMul {
        /// Their sizes.
        size: ProductSize,
        /// The factor.
        factor: i64,
    },
    /// Max-pool.
    MaxPool(MaxPool),
    /// Average-pool or interpolation.
    Weighted {
        /// The sums.
        sum: WeightedSum,
        /// Factor of a rescale after them, if there is one.
        rescale: Option<i64>,
    },
    /// Another scale: a factor and a rescale.
    Requantise {
        /// The factor.
        factor: i64,
    },
    /// The same number in `Full`.
    Lift,
    /// Sums, differences and movements of numbers, all of them local.
    Arrange(Arrange),
    /// Every `stride`-th element, to be looked at by [`Instruction::Outside`].
    Sample {
        /// From one element to the next.
        stride: usize,
        /// What is subtracted from each, at its scale.
        shift: i64,
        /// What the difference is multiplied with: a range of its own becomes the one that is looked at.
        factor: i64,
    },
    /// How many elements of each input are outside the middle half of the smaller range, where nothing that was
    /// calibrated should be.
    Outside,
    /// A stage of a detector.
    Detect {
        /// Which.
        stage: Box<detect::Stage>,
        /// Largest magnitude of each input.
        limits: Vec<f64>,
    },
}

impl Instruction {
    /// A word for reports.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Linear { map, .. } if map.conv.h == 1 && map.conv.n == 1 && map.conv.groups == 1 => "dense",
            Self::Linear { map, .. } if map.conv.groups > 1 && map.conv.groups == map.conv.c_out => {
                "depthwise"
            }
            Self::Linear { .. } => "conv",
            Self::Relu => "relu",
            Self::Clip { .. } => "clip",
            Self::LeakyRelu { .. } => "leaky relu",
            Self::Halves => "prelu",
            Self::Product { .. } => "product",
            Self::Smooth { .. } => "smooth",
            Self::Mul { .. } => "mul",
            Self::Real(f) => f.function.label(),
            Self::MatMul { .. } => "matmul",
            Self::MaxPool(_) => "max-pool",
            Self::Weighted { .. } => "weighted sum",
            Self::Requantise { .. } => "requantise",
            Self::Lift => "lift",
            Self::Arrange(a) => a.label(),
            Self::Sample { .. } => "sample",
            Self::Outside => "range check",
            Self::Detect { stage, .. } => stage.kind().label(),
        }
    }
}

/// A value of one [`Kind`].
pub enum Value<E: Engine> {
    /// Input of products.
    Full(E::V<Full>),
    /// Output of a rescale.
    Reduced(E::V<Reduced>),
    /// Output of a sign.
    Bits(Bits<E>),
}

impl<E: Engine> Clone for Value<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Full(v) => Self::Full(v.clone()),
            Self::Reduced(v) => Self::Reduced(v.clone()),
            Self::Bits(v) => Self::Bits(v.clone()),
        }
    }
}

/// What [`run`] reports after each layer.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Which layer has been computed.
    pub index: usize,
    /// The layer.
    pub layer: &'a Layer,
    /// Wall-clock time since the layer before it was computed, or since the start.
    pub elapsed: Duration,
}

/// Runs a program on an engine. The outputs are in `Reduced`, at the scales of their layers; what was watched comes last. Layers run as soon as
/// their inputs are there: those that do not depend on each other share rounds. Values are dropped after their last
/// use. The program must have been validated.
///
/// # Errors
///
/// Whatever the engine reports; [`Error::Config`] if the input has another length than the program's.
pub async fn run<E: Engine>(
    program: &Program,
    engine: &mut E,
    input: E::V<Full>,
    mut on_layer: impl FnMut(Progress<'_>),
) -> Result<Vec<E::V<Reduced>>> {
    let expected: usize = program.input_shape.iter().product();
    let found = engine.len(&input);
    if found != expected {
        return Err(Error::Config(format!("an input of {found} numbers, expected {expected}")));
    }
    let mut flow = Flow::new(program, Value::Full(input));
    let mut running = FuturesUnordered::new();
    let mut since = Instant::now();
    loop {
        while let Some(index) = flow.sample(engine) {
            let elapsed = std::mem::replace(&mut since, Instant::now()).elapsed();
            on_layer(Progress { index, layer: &program.layers[index], elapsed });
        }
        while let Some(index) = flow.ready.pop_first() {
            let (layer, at) = (&program.layers[index], Step::layer(index as u32));
            let inputs = flow.take_inputs(layer);
            let mut fork = engine.fork();
            running.push(async move {
                fork.enter(at);
                let shapes: Vec<&[usize]> = layer.inputs.iter().map(|&r| program.shape(r)).collect();
                let value = step(&mut fork, at, program, layer, inputs, &shapes).await;
                (index, fork, value)
            });
        }
        let Some((index, fork, value)) = running.next().await else { break };
        engine.join(fork);
        flow.put(index as Register + 1, value?);
        let elapsed = std::mem::replace(&mut since, Instant::now()).elapsed();
        on_layer(Progress { index, layer: &program.layers[index], elapsed });
    }
    engine.enter(Step::layer(program.layers.len().saturating_sub(1) as u32));
    let lacking = || Error::Config("a program whose outputs are not computed".into());
    let outputs = program.results().map(|r| flow.registers[r as usize].clone().ok_or_else(lacking));
    outputs.map(|v| Ok(reduced(engine, v?))).collect()
}

/// Values on their way through a program.
struct Flow<'a, E: Engine> {
    program: &'a Program,
    registers: Vec<Option<Value<E>>>,
    /// Layers that read a register.
    readers: Vec<Vec<usize>>,
    /// How many reads of a register are still to come; an output is never read for the last time.
    reads: Vec<usize>,
    /// How many registers a layer waits for.
    awaits: Vec<usize>,
    /// Layers that wait for nothing.
    ready: BTreeSet<usize>,
    /// Samples that wait for nothing. They come first, since they only look at a value that others then move out.
    samples: Vec<usize>,
}

impl<'a, E: Engine> Flow<'a, E> {
    fn new(program: &'a Program, input: Value<E>) -> Self {
        let count = program.layers.len() + 1;
        let mut flow = Self {
            program,
            registers: (0..count).map(|_| None).collect(),
            readers: vec![Vec::new(); count],
            reads: vec![0; count],
            awaits: vec![0; count - 1],
            ready: BTreeSet::new(),
            samples: Vec::new(),
        };
        for (index, layer) in program.layers.iter().enumerate() {
            for &r in &layer.inputs {
                flow.readers[r as usize].push(index);
                flow.reads[r as usize] += 1;
                flow.awaits[index] += 1;
            }
        }
        program.results().for_each(|r| flow.reads[r as usize] += 1);
        flow.put(0, input);
        flow
    }

    fn put(&mut self, register: Register, value: Value<E>) {
        let register = register as usize;
        for &reader in &self.readers[register] {
            self.awaits[reader] -= 1;
            if self.awaits[reader] > 0 {
                continue;
            }
            match self.program.layers[reader].op {
                Instruction::Sample { .. } => self.samples.push(reader),
                _ => drop(self.ready.insert(reader)),
            }
        }
        if self.reads[register] > 0 {
            self.registers[register] = Some(value);
        }
    }

    /// What the next ready sample picks of its register.
    fn sample(&mut self, engine: &mut E) -> Option<usize> {
        let index = self.samples.pop()?;
        let layer = &self.program.layers[index];
        let (r, len) = (layer.inputs[0] as usize, layer.shape.iter().product());
        let &Instruction::Sample { stride, shift, factor } = &layer.op else { return None };
        let register = self.registers[r].as_ref().expect("there, and kept until its last use");
        let places = || (0..len).map(|i| (i * stride) as u32).collect();
        let picked = match register {
            Value::Full(x) => {
                let picked = engine.gather_by(&[x], len, places);
                engine.reduce(&picked)
            }
            Value::Reduced(x) => engine.gather_by(&[x], len, places),
            Value::Bits(x) => {
                let picked = engine.gather_by(&[x.numbers()], len, places);
                engine.reduce(&picked)
            }
        };
        self.reads[r] -= 1;
        if self.reads[r] == 0 {
            self.registers[r] = None;
        }
        let moved = match (shift, factor) {
            (0, 1) => picked,
            _ => {
                let moved = engine.add_public(&picked, &[-shift]);
                engine.scale(&moved, factor)
            }
        };
        self.put(index as Register + 1, Value::Reduced(moved));
        Some(index)
    }

    /// What a ready layer reads. A value is moved out at its last use: copying a share costs as much as adding to it.
    fn take_inputs(&mut self, layer: &Layer) -> Vec<Value<E>> {
        let take = |&r: &Register| {
            let (register, reads) = (&mut self.registers[r as usize], &mut self.reads[r as usize]);
            *reads -= 1;
            let value = if *reads > 0 { register.clone() } else { register.take() };
            value.expect("there, and kept until its last use")
        };
        layer.inputs.iter().map(take).collect()
    }
}

impl Program {
    /// Shape of a register.
    pub fn shape(&self, register: Register) -> &[usize] {
        match register {
            0 => &self.input_shape,
            r => &self.layers[r as usize - 1].shape,
        }
    }

    /// What a register holds. It follows from the instruction alone, so that no manifest can claim it.
    pub fn kind(&self, register: Register) -> Kind {
        match register {
            0 => Kind::Full,
            r => self.layers[r as usize - 1].kind(),
        }
    }

    /// Scale of a register.
    pub fn scale(&self, register: Register) -> f64 {
        match register {
            0 => self.input_scale,
            r => self.layers[r as usize - 1].scale,
        }
    }

    /// Rounds of a run whose layers take `rounds`: those of the longest chain, since layers that do not depend on
    /// each other share theirs.
    pub fn rounds(&self, rounds: impl Fn(u32) -> u64) -> u64 {
        let mut depth = vec![0; self.layers.len() + 1];
        for (i, layer) in self.layers.iter().enumerate() {
            let before = layer.inputs.iter().map(|&r| depth[r as usize]).max().unwrap_or(0);
            depth[i + 1] = before + rounds(i as u32);
        }
        depth.into_iter().max().unwrap_or(0)
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.input_shape.iter().product()
    }

    /// The part that yields these registers.
    #[must_use]
    pub fn until(&self, outputs: Vec<Register>) -> Self {
        let layers = outputs.iter().copied().max().unwrap_or(0) as usize;
        Self { layers: self.layers[..layers].to_vec(), outputs, watched: None, ..self.clone() }
    }

    /// All registers whose shares the client gets.
    pub fn results(&self) -> impl Iterator<Item = Register> {
        self.outputs.iter().copied().chain(self.watched)
    }

    /// Elements of all results.
    pub fn results_len(&self) -> usize {
        self.results().map(|r| self.shape(r).iter().product::<usize>()).sum()
    }

    /// What is watched: the names of layers with the number of elements that are looked at.
    pub fn watched(&self) -> Vec<(&str, usize)> {
        let Some(counts) = self.watched.and_then(|r| self.layers.get((r as usize).checked_sub(1)?)) else {
            return Vec::new();
        };
        let sample = |&r: &Register| {
            let source = match (r as usize).checked_sub(1).and_then(|i| self.layers.get(i)) {
                Some(Layer { op: Instruction::Sample { .. }, inputs, .. }) => inputs[0],
                _ => r,
            };
            let name = (source as usize)
                .checked_sub(1)
                .and_then(|i| self.layers.get(i))
                .map_or("input", |l| &l.name);
            (name, self.shape(r).iter().product())
        };
        counts.inputs.iter().map(sample).collect()
    }

    /// Shape and scale of each output.
    pub fn outputs(&self) -> impl Iterator<Item = (&[usize], f64)> {
        self.outputs.iter().map(|&r| (self.shape(r), self.scale(r)))
    }

    /// The linear maps, by the index of their weights.
    pub fn linear_maps(&self) -> Vec<Linear> {
        let map = |l: &Layer| match &l.op {
            Instruction::Linear { map, .. } => Some(*map),
            _ => None,
        };
        let mut maps: Vec<Linear> = self.layers.iter().filter_map(map).collect();
        maps.sort_by_key(|m| m.weight);
        maps
    }

    /// A real input as integers at the input's scale.
    pub fn encode(&self, input: &[f32]) -> Vec<i64> {
        input.iter().map(|&v| (f64::from(v) * self.input_scale).round() as i64).collect()
    }
}

fn full<E: Engine>(value: Value<E>) -> Result<E::V<Full>> {
    match value {
        Value::Full(v) => Ok(v),
        Value::Bits(v) => Ok(v.into_numbers()),
        Value::Reduced(_) => Err(Error::Config("a step got a number of the smaller range".into())),
    }
}

fn bits<E: Engine>(value: Value<E>) -> Result<Bits<E>> {
    match value {
        Value::Bits(v) => Ok(v),
        _ => Err(Error::Config("a step got numbers where bits are due".into())),
    }
}

fn reduced<E: Engine>(e: &mut E, value: Value<E>) -> E::V<Reduced> {
    match value {
        Value::Full(v) => e.reduce(&v),
        Value::Bits(v) => e.reduce(v.numbers()),
        Value::Reduced(v) => v,
    }
}

/// Adds or moves numbers within the domain in which they are.
fn arranged<E: Engine, D: Domain>(
    e: &mut E,
    arrange: &Arrange,
    layer: &Layer,
    shapes: &[&[usize]],
    mut values: Vec<E::V<D>>,
) -> Result<E::V<D>> {
    Ok(match (arrange, &values[..]) {
        (Arrange::Add, [x, y]) => e.add(x, y),
        (Arrange::Sub, [x, y]) => e.sub(x, y),
        (Arrange::Reshape, [_]) => values.swap_remove(0),
        (Arrange::Add | Arrange::Sub | Arrange::Reshape, _) => {
            return Err(Error::Config("a step lacks an input".into()));
        }
        (moved, parts) => {
            let index = || moved.index(shapes).expect("the others move nothing");
            let parts: Vec<&E::V<D>> = parts.iter().collect();
            e.gather_by(&parts, layer.shape.iter().product(), index)
        }
    })
}

/// A layer says the scale of what it yields, and a function finds its own.
fn same_scale(found: f64, said: f64) -> Result<()> {
    if (found / said - 1.0).abs() <= 1e-6 {
        return Ok(());
    }
    Err(Error::Config(format!("a function yields numbers at scale {found}, not {said}")))
}

async fn step<E: Engine>(
    e: &mut E,
    at: Step,
    program: &Program,
    layer: &Layer,
    inputs: Vec<Value<E>>,
    shapes: &[&[usize]],
) -> Result<Value<E>> {
    if let Instruction::Detect { stage, limits } = &layer.op {
        let scales = layer.inputs.iter().map(|&r| program.scale(r));
        let given: Vec<_> =
            scales.zip(limits).map(|(scale, &bound)| detect::Given { bound, scale }).collect();
        return Ok(stage.run(e, at, &program.bounds, inputs, &given).await?.0);
    }
    let mut calls = layers::Calls::new(at);
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().ok_or_else(|| Error::Config("a step lacks an input".into()));
    let x = next()?;
    Ok(match &layer.op {
        Instruction::Linear { map, .. } => {
            let product = e.linear(calls.step(), map, &full(x)?).await?;
            Value::Reduced(e.rescale(calls.step(), &product).await?)
        }
        Instruction::Relu => {
            let x = reduced(e, x);
            Value::Full(e.relu(calls.step(), &x).await?)
        }
        Instruction::Clip { lo, hi } => {
            let x = reduced(e, x);
            Value::Full(layers::clip(e, at, &x, *lo, *hi).await?)
        }
        Instruction::LeakyRelu { negative } => {
            let x = reduced(e, x);
            Value::Reduced(layers::leaky_relu(e, at, &x, program.bounds.divisor, *negative).await?)
        }
        Instruction::Halves => {
            let x = reduced(e, x);
            Value::Full(activation::halves(e, at, &x).await?)
        }
        &Instruction::Product { m, k, n, factor } => {
            let x = full(x)?;
            let mut rows = |from: usize, to: usize| {
                e.gather_by(&[&x], (to - from) * k, || ((from * k) as u32..(to * k) as u32).collect())
            };
            let (left, right) = (rows(0, m), rows(m, m + n));
            let shape = ProductShape { groups: 1, m, k, n, uses: 1 };
            let mut operand = e.operand(calls.step(), shape, right)?;
            let product = e.product(calls.step(), &mut operand, &left).await?;
            let scaled = e.scale(&product, factor);
            Value::Reduced(e.rescale(calls.step(), &scaled).await?)
        }
        Instruction::Smooth { function, limit } => {
            let mut scope = Scope::new(at, program.bounds);
            let x = Number::new(&scope, reduced(e, x), program.scale(layer.inputs[0]), *limit)?;
            let y = piecewise(e, &mut scope, &x, function, layer.scale).await?;
            same_scale(y.scale(), layer.scale)?;
            Value::Reduced(y.into_integers())
        }
        Instruction::Real(function) => {
            let mut scope = Scope::new(at, program.bounds);
            let argument = match function.function.wants() {
                Range::Full => Argument::Full(full(x)?),
                Range::Reduced => Argument::Reduced(reduced(e, x)),
            };
            let y = function.run(e, &mut scope, argument, program.scale(layer.inputs[0])).await?;
            same_scale(y.scale(), layer.scale)?;
            Value::Reduced(y.into_integers())
        }
        Instruction::MatMul { size, factor } => {
            let (x, y) = (full(x)?, full(next()?)?);
            let shape = ProductShape { groups: size.groups, m: size.m, k: size.k, n: size.n, uses: 1 };
            let mut operand = e.operand(calls.step(), shape, y)?;
            let product = e.product(calls.step(), &mut operand, &x).await?;
            let scaled = e.scale(&product, *factor);
            Value::Reduced(e.rescale(calls.step(), &scaled).await?)
        }
        Instruction::Mul { factor } => {
            let (x, y) = (full(x)?, full(next()?)?);
            let product = e.mul(calls.step(), &x, &y).await?;
            let scaled = e.scale(&product, *factor);
            Value::Reduced(e.rescale(calls.step(), &scaled).await?)
        }
        Instruction::MaxPool(pool) => {
            let x = reduced(e, x);
            Value::Reduced(pool.run(e, at, &x).await?)
        }
        Instruction::Weighted { sum, rescale } => {
            let total = sum.run(e, &full(x)?);
            match rescale {
                None => Value::Full(total),
                Some(factor) => {
                    let total = e.scale(&total, *factor);
                    Value::Reduced(e.rescale(calls.step(), &total).await?)
                }
            }
        }
        Instruction::Requantise { factor } => {
            let scaled = e.scale(&full(x)?, *factor);
            Value::Reduced(e.rescale(calls.step(), &scaled).await?)
        }
        Instruction::Lift => {
            let x = reduced(e, x);
            Value::Full(e.lift(calls.step(), &x).await?)
        }
        Instruction::Arrange(arrange) => {
            let values = std::iter::once(x).chain(inputs);
            match layer.range {
                Range::Full => {
                    let values = values.map(full::<E>).collect::<Result<Vec<_>>>()?;
                    Value::Full(arranged(e, arrange, layer, shapes, values)?)
                }
                Range::Reduced => {
                    let values = values.map(|v| reduced(e, v)).collect();
                    Value::Reduced(arranged(e, arrange, layer, shapes, values)?)
                }
            }
        }
        Instruction::Outside => {
            let parts: Vec<_> = std::iter::once(x).chain(inputs).map(|v| reduced(e, v)).collect();
            let parts: Vec<_> = parts.iter().collect();
            Value::Full(layers::outside(e, at, &parts, program.bounds.lift).await?)
        }
        Instruction::Sample { .. } | Instruction::Detect { .. } => {
            return Err(Error::Config("a step of another kind".into()));
        }
    })
}
