//! From a network with calibrated ranges to a program, and from real weights to integers.

use sharelens_ops::Linear;
use sharelens_ops::layers::WeightedSum;
use sharelens_ops::plain::{Bounds, Weights};
use sharelens_protocol::ring::Range;
use sharelens_protocol::ring::kernel::Conv;

use crate::arrange::Arrange;
use crate::detect;
use crate::error::{Error, Result};
use crate::graph::{Graph, Op, Parameters};
use crate::program::{Instruction, Layer, Program, Register};
use crate::real::{Ranged, Real};
use crate::scales::{IntegerSum, Scales};

/// A layer of at most so many elements is watched as a whole.
const WATCHED_WHOLE: usize = 1024;
/// Of a larger one at least so many,
const WATCHED_LEAST: usize = 512;
/// and one of so many.
const WATCHED_SHARE: usize = 128;
/// Layers watched, as many as one instruction reads.
const MOST_WATCHED: usize = 1 << 10;

/// The program of a network at these scales, and its secret weights by index, still real.
///
/// # Errors
///
/// If the network still holds what [`crate::passes::simplify`] removes.
pub fn lower(
    graph: &Graph,
    scales: &Scales,
    bounds: &Bounds,
    (peaks, margin, smooth): (&[f64], f64, f64),
    proved: &[bool],
) -> Result<(Program, Vec<Parameters>)> {
    let mut l = Lowering {
        graph,
        scales,
        peaks,
        margin,
        smooth,
        layers: Vec::new(),
        weights: Vec::new(),
        native: vec![0],
        bounded: Vec::new(),
        lifted: vec![None; graph.nodes.len() + 1],
    };
    for i in 0..graph.nodes.len() {
        let register = l.node(i, bounds)?;
        l.native.push(register);
    }
    let outputs: Vec<Register> = graph.outputs.iter().map(|o| l.native[o.value]).collect();
    let certain: Vec<Register> = (0..proved.len()).filter(|&v| proved[v]).map(|v| l.native[v]).collect();
    let watched = l.watch(bounds, &[outputs.as_slice(), &certain].concat());
    let program = Program {
        input_shape: graph.input_shape.clone(),
        input_scale: scales.scale[0],
        bounds: *bounds,
        outputs,
        watched,
        layers: l.layers,
    };
    Ok((program, l.weights))
}

struct Lowering<'a> {
    graph: &'a Graph,
    scales: &'a Scales,
    /// Calibrated magnitudes by value, and how many times over stages have to reckon with them.
    peaks: &'a [f64],
    margin: f64,
    /// What cubics may miss of smooth functions.
    smooth: f64,
    layers: Vec<Layer>,
    weights: Vec<Parameters>,
    /// Register of each value, as computed.
    native: Vec<Register>,
    /// Registers that have to stay in a range of their own, with the function that reads them.
    bounded: Vec<(Register, Ranged)>,
    /// Register of each value in `Full`, where it was computed in `Reduced`.
    lifted: Vec<Option<Register>>,
}

impl Lowering<'_> {
    fn push(&mut self, layer: Layer) -> Register {
        self.layers.push(layer);
        self.layers.len() as Register
    }

    /// A register that holds `value` in `Full`.
    fn full(&mut self, value: usize) -> Register {
        if self.scales.range[value] == Range::Full {
            return self.native[value];
        }
        if let Some(register) = self.lifted[value] {
            return register;
        }
        let lift = Layer {
            name: format!("{} (lift)", self.graph.value_name(value)),
            op: Instruction::Lift,
            inputs: vec![self.native[value]],
            shape: self.graph.shape(value).to_vec(),
            range: Range::Full,
            scale: self.scales.scale[value],
        };
        let register = self.push(lift);
        self.lifted[value] = Some(register);
        register
    }

    /// Name, elements and scale of a register.
    fn register(&self, register: Register) -> (&str, usize, f64) {
        match (register as usize).checked_sub(1) {
            None => (&self.graph.input_name, self.graph.len(0), self.scales.scale[0]),
            Some(i) => {
                let Layer { name, shape, scale, .. } = &self.layers[i];
                (name, shape.iter().product(), *scale)
            }
        }
    }

    fn weight(&mut self, parameters: Parameters) -> u32 {
        self.weights.push(parameters);
        self.weights.len() as u32 - 1
    }

    /// Looks at a sample of all that a picture may drive out of its range, and counts what is outside. `known` need no
    /// sample: outputs, which the client sees whole, and what is in range for any picture.
    fn watch(&mut self, bounds: &Bounds, known: &[Register]) -> Option<Register> {
        let mut bent = vec![false; self.layers.len() + 1];
        for layer in &self.layers {
            if matches!(
                layer.op,
                Instruction::Relu
                    | Instruction::Clip { .. }
                    | Instruction::LeakyRelu { .. }
                    | Instruction::Halves
                    | Instruction::Smooth { .. }
                    | Instruction::Real(_)
                    | Instruction::MaxPool(_)
                    | Instruction::Lift
            ) {
                layer.inputs.iter().for_each(|&r| bent[r as usize] = true);
            }
        }
        let computed = |layer: &Layer| {
            matches!(
                layer.op,
                Instruction::Linear { .. }
                    | Instruction::Product { .. }
                    | Instruction::Mul { .. }
                    | Instruction::MatMul { .. }
                    | Instruction::Smooth { .. }
                    | Instruction::Real(_)
                    | Instruction::Requantise { .. }
                    | Instruction::Weighted { .. }
                    | Instruction::LeakyRelu { .. }
                    | Instruction::Arrange(Arrange::Add | Arrange::Sub)
            )
        };
        let registers = (1..=self.layers.len() as Register).filter(|r| {
            let layer = &self.layers[*r as usize - 1];
            let small = layer.range == Range::Reduced || bent[*r as usize];
            computed(layer) && small && !known.contains(r)
        });
        let mut samples = Vec::new();
        let registers: Vec<Register> = registers.take(MOST_WATCHED / 2).collect();
        let stretched =
            self.bounded.iter().take(MOST_WATCHED / 2).map(|(register, function)| {
                (*register, stretch(function, self.register(*register).2, bounds))
            });
        let all: Vec<(Register, Stretch)> =
            registers.into_iter().map(|r| (r, Stretch { shift: 0, factor: 1 })).chain(stretched).collect();
        for (register, Stretch { shift, factor }) in all {
            let (name, n, scale) = self.register(register);
            let most = usize::try_from(bounds.lift / 2).unwrap_or(usize::MAX);
            let wanted = if n <= WATCHED_WHOLE { n } else { WATCHED_LEAST.max(n / WATCHED_SHARE) };
            let stride = n.div_ceil(wanted.min(most).max(1));
            let layer = Layer {
                name: format!("{name} (sample)"),
                op: Instruction::Sample { stride, shift, factor },
                inputs: vec![register],
                shape: vec![n.div_ceil(stride)],
                range: Range::Reduced,
                scale: scale * factor as f64,
            };
            samples.push(self.push(layer));
        }
        (!samples.is_empty()).then(|| {
            self.push(Layer {
                name: "range check".into(),
                op: Instruction::Outside,
                shape: vec![samples.len()],
                inputs: samples,
                range: Range::Full,
                scale: 1.0,
            })
        })
    }

    fn node(&mut self, i: usize, bounds: &Bounds) -> Result<Register> {
        let graph = self.graph;
        let node = &graph.nodes[i];
        let (scale, range) = (self.scales.scale[i + 1], self.scales.range[i + 1]);
        let source = node.inputs[0];
        let scale_in = self.scales.scale[source];
        let layer = |op, inputs| Layer {
            name: node.name.clone(),
            op,
            inputs,
            shape: node.shape.clone(),
            range,
            scale,
        };
        let divisor = bounds.divisor as f64;
        let weight_scale = divisor * scale / scale_in;
        let fixed = |v: f32| (f64::from(v) * scale_in).round() as i64;
        let done = match &node.op {
            Op::Linear { conv, parameters } => {
                let map = Linear { conv: *conv, weight: self.weight(parameters.clone()) };
                layer(Instruction::Linear { map, weight_scale }, vec![self.full(source)])
            }
            Op::Detect(stage) => {
                let inputs =
                    node.inputs.iter().enumerate().map(|(j, &v)| match stage.kind().wants(j).range() {
                        Range::Full => self.full(v),
                        Range::Reduced => self.native[v],
                    });
                let inputs = inputs.collect();
                let stage = Box::new(detect::lower::stage(graph, i, self.scales, bounds)?);
                let limits = detect::lower::limits(graph, i, self.peaks, self.margin);
                layer(Instruction::Detect { stage, limits }, inputs)
            }
            Op::Affine { .. } => {
                let reason = "a factor was left over after folding".into();
                return Err(Error::Graph { node: node.name.clone(), reason });
            }
            Op::PRelu { parameters } => {
                let n = graph.len(source);
                let period = parameters.weight.len();
                let mut shape = node.shape.clone();
                if let Some(last) = shape.last_mut() {
                    *last *= 2;
                }
                let halves = self.push(Layer {
                    name: format!("{} (halves)", node.name),
                    op: Instruction::Halves,
                    inputs: vec![self.native[source]],
                    shape,
                    range: Range::Full,
                    scale: scale_in,
                });
                let conv = Conv { groups: period, ..Conv::dense(n / period, 2 * period, period) };
                let weight = parameters.weight.iter().flat_map(|&s| [1.0, -s]).collect();
                let weights = Parameters { weight, bias: vec![0.0; period] };
                let map = Linear { conv, weight: self.weight(weights) };
                layer(Instruction::Linear { map, weight_scale }, vec![halves])
            }
            Op::Relu => layer(Instruction::Relu, vec![self.native[source]]),
            Op::Clip { lo, hi } => {
                layer(Instruction::Clip { lo: lo.map(fixed), hi: hi.map(fixed) }, vec![self.native[source]])
            }
            Op::LeakyRelu { alpha } => {
                let negative = (f64::from(*alpha) * divisor).round() as i64;
                layer(Instruction::LeakyRelu { negative }, vec![self.native[source]])
            }
            Op::Smooth(f) => {
                let function = Box::new(f.fit(self.smooth)?);
                // No more than scales left room for.
                let limit = self.margin * self.peaks[source];
                layer(Instruction::Smooth { function, limit }, vec![self.native[source]])
            }
            Op::Real(_) => {
                let function = *self.scales.ranged.get(&i).ok_or_else(|| Error::Graph {
                    node: node.name.clone(),
                    reason: "its scale is not known".into(),
                })?;
                let input = match function.function.wants() {
                    Range::Full => self.full(source),
                    Range::Reduced => self.native[source],
                };
                if function.function.range([0.0; 2], 1.0).is_some() {
                    self.bounded.push((input, function));
                }
                layer(Instruction::Real(function), vec![input])
            }
            Op::MatMul(size) => {
                let factors = scale_in * self.scales.scale[node.inputs[1]];
                let factor = (divisor * scale / factors).round() as i64;
                let inputs = node.inputs.iter().map(|&v| self.full(v)).collect();
                layer(Instruction::MatMul { size: *size, factor }, inputs)
            }
            Op::Mul => {
                let factors = scale_in * self.scales.scale[node.inputs[1]];
                let factor = (divisor * scale / factors).round() as i64;
                let inputs = node.inputs.iter().map(|&v| self.full(v)).collect();
                layer(Instruction::Mul { factor }, inputs)
            }
            Op::MaxPool(pool) => layer(Instruction::MaxPool(*pool), vec![self.native[source]]),
            Op::Weighted { rows, columns } => {
                let shape = graph.shape(source);
                let IntegerSum { rows, columns, rescale, .. } =
                    IntegerSum::new(rows, columns, bounds.divisor);
                let sum = WeightedSum { n: shape[0], c: shape[3], rows, columns };
                layer(Instruction::Weighted { sum, rescale }, vec![self.full(source)])
            }
            Op::Arrange(arrange) => {
                let inputs = (0..node.inputs.len()).map(|j| self.operand(i, j, bounds)).collect();
                layer(Instruction::Arrange(arrange.clone()), inputs)
            }
        };
        Ok(self.push(done))
    }

    /// Input `j` of node `i` in the node's domain and at its scale.
    fn operand(&mut self, i: usize, j: usize, bounds: &Bounds) -> Register {
        let value = self.graph.nodes[i].inputs[j];
        let range = self.scales.range[i + 1];
        if self.scales.requantised.contains(&(i, j)) {
            let (from, to) = (self.scales.scale[value], self.scales.scale[i + 1]);
            let factor = ((bounds.divisor as f64 * to / from).round() as i64).max(1);
            let inputs = vec![self.full(value)];
            let name = format!("{} (requantise)", self.graph.value_name(value));
            let shape = self.graph.shape(value).to_vec();
            let op = Instruction::Requantise { factor };
            let at = self.push(Layer {
                name: name.clone(),
                op,
                inputs,
                shape: shape.clone(),
                range: Range::Reduced,
                scale: to,
            });
            if range == Range::Reduced {
                return at;
            }
            let name = format!("{name} (lift)");
            return self.push(Layer {
                name,
                op: Instruction::Lift,
                inputs: vec![at],
                shape,
                range,
                scale: to,
            });
        }
        match range {
            Range::Full => self.full(value),
            Range::Reduced => self.native[value],
        }
    }
}

/// What brings a range of its own to the one that is looked at: (x - shift) * factor.
#[derive(Clone, Copy)]
struct Stretch {
    shift: i64,
    factor: i64,
}

/// For arguments of this function at this scale.
fn stretch(function: &Ranged, scale: f64, bounds: &Bounds) -> Stretch {
    let summand = match function.function {
        Real::InverseRoot { summand } | Real::Reciprocal { summand } => f64::from(summand),
        Real::Softmax { .. } => 0.0,
    };
    let [lo, hi] = function.range.map(|v| (v - summand) * scale);
    let (shift, half) = (f64::midpoint(lo, hi).round(), (hi - lo) / 2.0);
    // Rounding must not push the ends out.
    let factor = ((bounds.lift as f64 / (half + 2.0)).floor() as i64).max(1);
    Stretch { shift: shift as i64, factor }
}

/// Integers for each linear map of `program`: weights to the nearest of their scale, halves away from zero.
///
/// # Errors
///
/// Names the layer whose weights or biases do not fit.
pub fn quantise(
    program: &Program,
    weights: &[Parameters],
    bounds: &Bounds,
    margin: f64,
) -> Result<Vec<Weights>> {
    let mut out = vec![Weights { values: Vec::new(), bias: Vec::new() }; weights.len()];
    for layer in &program.layers {
        let Instruction::Linear { map, weight_scale } = &layer.op else { continue };
        let real = &weights[map.weight as usize];
        let bias_scale = weight_scale * program.scale(layer.inputs[0]);
        let integers = |what: &str, values: &[f32], scale: f64| -> Result<Vec<i64>> {
            let largest = values.iter().fold(0f64, |a, &v| a.max(f64::from(v.abs()))) * scale;
            let allowed = bounds.full as f64 / margin;
            if largest >= allowed {
                return Err(Error::Range(format!(
                    "{}: the largest {what} is {largest:.3e} as an integer, and {allowed:.3e} is allowed",
                    layer.name
                )));
            }
            Ok(values.iter().map(|&v| (f64::from(v) * scale).round() as i64).collect())
        };
        out[map.weight as usize] = Weights {
            values: integers("weight", &real.weight, *weight_scale)?,
            bias: integers("bias", &real.bias, bias_scale)?,
        };
    }
    Ok(out)
}
