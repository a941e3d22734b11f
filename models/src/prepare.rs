//! From an imported network to one that is ready to be shared: ranges, moduli, scales, and the proof that the
//! fixed-point twin agrees.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sharelens_ops::Linear;
use sharelens_ops::plain::{Bounds, Peak, Plain, Rounding, Weights};
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::ring::Full;

use crate::arithmetic::{Arithmetic, Z64_FRACTION_BITS};
use crate::calibrate;
use crate::config::Config;
use crate::detect;
use crate::error::{Error, Result};
use crate::float;
use crate::graph::{Graph, Op};
use crate::lower::{lower, quantise};
use crate::manifest::{Manifest, OutputInfo, VERSION};
use crate::model::Model;
use crate::passes::{self, Changes};
use crate::program::detect::Stage;
use crate::program::{Instruction, run};
use crate::proof;
use crate::scales::Scales;

/// Sets of moduli to choose from, smallest first: how many for comparisons, how many for scales.
pub const CANDIDATES: [(usize, usize); 6] = [(2, 2), (3, 2), (3, 3), (4, 2), (4, 3), (4, 4)];
/// Largest scales to try, in bits, finest first.
const CAPS: [i32; 5] = [20, 17, 15, 13, 11];
/// What the cubics of smooth functions may miss, coarsest first: fewer pieces are fewer comparisons.
const SMOOTH: [f64; 3] = [2e-3, 4e-4, 1e-4];
/// Inputs that each choice is tried on.
const TRIALS: usize = 8;

/// How to prepare.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// How many times over the calibrated range has to fit.
    pub margin: f64,
    /// Largest error of an output that is accepted from fixed-point numbers, rounded at random as the servers do.
    /// Errors over many inputs have been seen to reach four times those of the few that are tried.
    pub tolerance: f64,
    /// Ring to use; the smallest set of moduli that is safe and precise enough, if none is given.
    pub arithmetic: Option<Arithmetic>,
    /// Whether to calibrate on synthetic pictures, too.
    pub stress: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { margin: 2.0, tolerance: 0.004, arithmetic: None, stress: true }
    }
}

/// A network ready to be shared. Holds the weights: the model owner's alone.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub(crate) config: Config,
    pub(crate) graph: Graph,
    pub(crate) calibration: Calibration,
}

/// What preparation found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Largest magnitude by value, over all calibration inputs.
    pub peaks: Vec<f64>,
    /// How many times over they fit.
    pub margin: f64,
    /// The ring.
    pub arithmetic: Arithmetic,
    /// Largest scale.
    pub cap: f64,
    /// What the cubics of smooth functions may miss.
    pub smooth: f64,
}

/// What [`prepare`] says about its choice.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The ring, in words.
    pub arithmetic: String,
    /// Bytes per element where products live.
    pub bytes_per_element: usize,
    /// Pictures given, and made up.
    pub inputs: [usize; 2],
    /// Largest difference of an output between fixed point and floats, rounding at random as the servers do,
    /// over the inputs tried.
    pub error: f64,
    /// The same as a share of how far the numbers of an output are apart, where there are several.
    pub relative: Option<f64>,
    /// What was rewritten.
    pub changes: Changes,
    /// Range and room of each value.
    pub values: Vec<ValueReport>,
    /// Choices that were turned down, and why.
    pub refused: Vec<String>,
}

/// Range and room of one value.
#[derive(Clone, Debug, Serialize)]
pub struct ValueReport {
    /// Name of the layer that yields it.
    pub name: String,
    /// What that is.
    pub op: String,
    /// Largest magnitude over all calibration inputs.
    pub peak: f64,
    /// Its scale, in bits.
    pub scale_bits: f64,
    /// How many times over the range fits.
    pub headroom: f64,
    /// Whether it is in range for any picture, by the weights alone; otherwise as far as calibration saw.
    pub proved: bool,
}

/// Calibrates, chooses moduli and scales, and checks the result against floats.
///
/// # Errors
///
/// [`Error::Range`] names the worst layer when nothing is safe or precise enough.
pub fn prepare(model: &Model, samples: &[Vec<f32>], options: &Options) -> Result<(Prepared, Report)> {
    if samples.is_empty() {
        return Err(Error::Range("no inputs to calibrate on were given".into()));
    }
    if !(1.0..=1e6).contains(&options.margin) || options.tolerance.is_nan() || options.tolerance <= 0.0 {
        return Err(Error::Range("margin has to be at least 1 and tolerance positive".into()));
    }
    let mut graph = model.graph.clone();
    let changes = passes::simplify(&mut graph)?;
    let mut inputs = samples.to_vec();
    if let (true, Some(p)) = (options.stress, &model.config.preprocess) {
        inputs.extend(calibrate::stress(p, &samples[..samples.len().min(TRIALS)]));
    }
    // Spread over the set, which is often sorted by class.
    let step = samples.len().div_ceil(TRIALS);
    let (peaks, expected) = calibrate::observe(&graph, &inputs, |i| i < samples.len() && i % step == 0)?;
    let trials: Vec<&[f32]> = samples.iter().step_by(step).map(Vec::as_slice).collect();
    let detects = graph.nodes.iter().any(|n| matches!(n.op, Op::Detect(_)));
    let expected = match detects {
        true => trials.iter().map(|t| watched(&graph, t)).collect::<Result<Vec<_>>>()?,
        false => expected,
    };
    let choices = match &options.arithmetic {
        Some(a) => vec![a.clone()],
        // Keys of rankings and areas of boxes need the largest range of comparisons.
        None => CANDIDATES
            .iter()
            .filter(|c| !detects || c.0 == 4)
            .map(|&(k, l)| Arithmetic::usual(k, l))
            .collect::<Result<_>>()?,
    };
    let mut refused = Vec::new();
    // Room for any picture first, where it costs nothing that is missed.
    let raised = secured(&graph, &model.config, &peaks, options.margin);
    // Outputs that hardly differ must keep their ranking, too; where no ring does that, the usual tolerance has to do.
    let spread = spread(&expected);
    let close = options.tolerance.min(RELATIVE * options.tolerance * spread);
    let mut goals = if close < options.tolerance { vec![close, options.tolerance] } else { vec![close] };
    // Numbers that are far apart need not be as exact: a quarter of one per cent, where nothing more exact is to be had.
    let wide = LEAST_RELATIVE * options.tolerance * spread;
    if spread.is_finite() && wide > options.tolerance && options.arithmetic.is_none() {
        goals.push(wide);
    }
    let smooths = graph.nodes.iter().any(|n| matches!(n.op, Op::Smooth(_)));
    let smooths = if smooths { &SMOOTH[..] } else { &SMOOTH[SMOOTH.len() - 1..] };
    let tries = goals
        .iter()
        .flat_map(|goal| choices.iter().flat_map(move |c| [(*goal, c, true), (*goal, c, false)]))
        .filter(|(_, _, secured)| !secured || raised != peaks)
        .flat_map(|(goal, c, secured)| smooths.iter().map(move |smooth| (goal, c, secured, *smooth)));
    for (tolerance, arithmetic, secured, smooth) in tries {
        let (options, peaks) =
            (&Options { tolerance, ..options.clone() }, if secured { &raised } else { &peaks });
        let choice = (arithmetic.clone(), smooth);
        let settled = settle(&graph, &model.config, peaks, options, choice, &trials, &expected);
        // What is coarser than need be leaves half of the tolerance.
        let coarse = secured || Some(&smooth) != smooths.last();
        if coarse && settled.as_ref().map_or(true, |(error, _)| *error > tolerance / 2.0) {
            continue;
        }
        match settled {
            Ok((error, prepared)) if error <= tolerance || options.arithmetic.is_some() => {
                let values = value_reports(&prepared)?;
                let report = Report {
                    arithmetic: arithmetic.to_string(),
                    bytes_per_element: arithmetic.bytes(),
                    inputs: [samples.len(), inputs.len() - samples.len()],
                    error,
                    relative: spread.is_finite().then(|| error / spread),
                    changes,
                    values,
                    refused,
                };
                return Ok((prepared, report));
            }
            Ok((error, _)) => refused.push(format!(
                "{arithmetic}: outputs are off by {error:.2e} and more, {tolerance:.2e} is allowed"
            )),
            Err(e @ (Error::Range(_) | Error::Overflow { .. })) => refused.push(format!("{arithmetic}: {e}")),
            Err(e) => return Err(e),
        }
    }
    Err(Error::Range(format!("no choice of moduli is safe and precise enough; {}", refused.join("; "))))
}

/// How many times the tolerance an error may be, as a share of an output's spread: one per cent at the usual tolerance.
const RELATIVE: f64 = 2.5;

/// The same where no ring is more exact.
const LEAST_RELATIVE: f64 = RELATIVE / 4.0;

/// How far the numbers of one output of one picture are apart: of the output for which that is least. Infinite where none
/// has several.
fn spread(expected: &[Vec<Vec<f64>>]) -> f64 {
    let mut least = f64::INFINITY;
    for output in 0..expected.first().map_or(0, Vec::len) {
        let of = |values: &Vec<f64>| {
            let (lo, hi) =
                values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), &v| (l.min(v), h.max(v)));
            hi - lo
        };
        let widest = expected.iter().map(|outputs| of(&outputs[output])).fold(0.0, f64::max);
        if widest > 0.0 {
            least = least.min(widest);
        }
    }
    least
}

/// How far a worst case may be beyond what was calibrated, to be made room for.
const FARTHEST: f64 = 64.0;

/// Peaks that leave room for any picture, from the input on as far as that is within reach; the calibrated ones behind.
fn secured(graph: &Graph, config: &Config, peaks: &[f64], margin: f64) -> Vec<f64> {
    // For roundings, which are not known before there are scales.
    const SLACK: f64 = 1.02;
    let worst = proof::worst_cases(graph, config.preprocess.as_ref(), |_| proof::Slack::default());
    let mut out = peaks.to_vec();
    let mut reached = vec![false; peaks.len()];
    for v in 0..peaks.len() {
        let due = SLACK * worst[v] / margin;
        let inputs = v.checked_sub(1).map_or(&[][..], |i| &graph.nodes[i].inputs);
        reached[v] = inputs.iter().all(|&i| reached[i]) && due <= FARTHEST * peaks[v];
        if reached[v] {
            out[v] = out[v].max(due);
        }
    }
    out
}

/// What fixed point is held against: the outputs, or what precedes the choice of anchors, since after it a
/// difference however small may exchange two of them.
fn watched(graph: &Graph, input: &[f32]) -> Result<Vec<Vec<f64>>> {
    let anchors = graph.nodes.iter().find(|n| matches!(n.op, Op::Detect(detect::Stage::TopAnchors { .. })));
    let Some(anchors) = anchors else { return reference(graph, input) };
    let mut graph = graph.clone();
    let output = |&value: &usize| crate::graph::Output {
        name: graph.value_name(value).into(),
        value,
        original_shape: graph.shape(value).to_vec(),
        finish: None,
    };
    graph.outputs = anchors.inputs.iter().map(output).collect();
    graph.nodes.truncate(anchors.inputs.iter().copied().max().unwrap_or(0));
    reference(&graph, input)
}

fn reference(graph: &Graph, input: &[f32]) -> Result<Vec<Vec<f64>>> {
    float::run(graph, &input.iter().map(|&v| v.into()).collect::<Vec<_>>())
}

/// The best cap on scales for this ring, with the error it leaves.
fn settle(
    graph: &Graph,
    config: &Config,
    peaks: &[f64],
    options: &Options,
    (arithmetic, smooth): (Arithmetic, f64),
    trials: &[&[f32]],
    expected: &[Vec<Vec<f64>>],
) -> Result<(f64, Prepared)> {
    let calibration =
        Calibration { peaks: peaks.to_vec(), margin: options.margin, arithmetic, cap: 0.0, smooth };
    let mut prepared = Prepared { config: config.clone(), graph: graph.clone(), calibration };
    let arithmetic = prepared.arithmetic().clone();
    // Error and cap.
    let mut best: Option<(f64, f64)> = None;
    let mut failure = None;
    let mut tried: Vec<Vec<f64>> = Vec::new();
    for bits in CAPS {
        prepared.calibration.cap = f64::from(bits).exp2();
        // Ranges may leave less room than the cap.
        if let Ok(scales) = prepared.scales(&arithmetic) {
            if tried.contains(&scales.scale) {
                continue;
            }
            tried.push(scales.scale);
        }
        // Where there is a choice of rings, an error beyond what is accepted need not be known exactly.
        let enough = if options.arithmetic.is_none() { options.tolerance } else { f64::INFINITY };
        let enough = best.map_or(enough, |(e, _)| e.min(enough));
        match prepared.twin(&arithmetic).and_then(|t| {
            t.fits(trials[0])?;
            deviation(&t, trials, expected, enough)
        }) {
            Ok(error) if best.is_none_or(|(e, _)| error < e) => {
                best = Some((error, prepared.calibration.cap))
            }
            Ok(_) => {}
            Err(e @ (Error::Range(_) | Error::Overflow { .. })) => failure = Some(e),
            // Functions of real numbers find out what has no room when they are run.
            Err(Error::Protocol(e @ sharelens_protocol::Error::Config(_))) => {
                failure = Some(Error::Range(e.to_string()))
            }
            Err(e) => return Err(e),
        }
        if best.is_some_and(|(e, _)| e < options.tolerance / 4.0) {
            break;
        }
    }
    let nothing = || failure.unwrap_or_else(|| Error::Range("nothing was tried".into()));
    let (error, cap) = best.ok_or_else(nothing)?;
    prepared.calibration.cap = cap;
    Ok((error, prepared))
}

/// Largest error over all trials, or over the first of them that go beyond `enough`.
fn deviation(twin: &Twin, trials: &[&[f32]], expected: &[Vec<Vec<f64>>], enough: f64) -> Result<f64> {
    let part = twin.before_anchors();
    let twin = part.as_ref().unwrap_or(twin);
    let mut worst = 0f64;
    for (input, expected) in trials.iter().zip(expected) {
        let found = twin.run_storage(input, Rounding::Random(1))?.0;
        let pairs = found.iter().flatten().zip(expected.iter().flatten());
        worst = pairs.fold(worst, |a, (f, e)| a.max((f - e).abs()));
        if worst > enough {
            break;
        }
    }
    Ok(worst)
}

fn value_reports(prepared: &Prepared) -> Result<Vec<ValueReport>> {
    let c = &prepared.calibration;
    let scales = prepared.scales(&c.arithmetic)?;
    let proved = prepared.proved(&scales, c.arithmetic.bounds()?.divisor);
    let graph = &prepared.graph;
    let report = |v: usize| ValueReport {
        name: graph.value_name(v).to_owned(),
        op: if v == 0 { "input".into() } else { graph.nodes[v - 1].op.label().to_owned() },
        peak: c.peaks[v],
        scale_bits: scales.scale[v].log2(),
        headroom: scales.headroom[v],
        proved: proved[v],
    };
    Ok((0..graph.nodes.len() + 1).map(report).collect())
}

impl Prepared {
    /// The ring that was chosen.
    pub fn arithmetic(&self) -> &Arithmetic {
        &self.calibration.arithmetic
    }

    /// Name, task, classes, preprocessing.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The folded network, weights included.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    fn scales(&self, arithmetic: &Arithmetic) -> Result<Scales> {
        let c = &self.calibration;
        // There is room for everything in Z_2^64; its weights have 16 bits, and so have its values.
        let cap = if *arithmetic == Arithmetic::Z64 { f64::from(1 << Z64_FRACTION_BITS) } else { c.cap };
        Scales::solve(&self.graph, &c.peaks, &arithmetic.bounds()?, c.margin, cap)
    }

    /// Which values are in range for any picture, roundings included.
    fn proved(&self, scales: &Scales, divisor: i64) -> Vec<bool> {
        let (graph, peaks) = (&self.graph, &self.calibration.peaks);
        let slack = |v: usize| {
            let value = 2.5 / scales.scale[v];
            let Some(node) = v.checked_sub(1).map(|i| &graph.nodes[i]) else {
                return proof::Slack { weight: 0.0, value };
            };
            let weight = match node.op {
                Op::LeakyRelu { .. } => 0.5 / divisor as f64,
                _ => 0.5 * scales.scale[node.inputs[0]] / (divisor as f64 * scales.scale[v]),
            };
            proof::Slack { weight, value }
        };
        let worst = proof::worst_cases(graph, self.config.preprocess.as_ref(), slack);
        let mut proved = vec![false; worst.len()];
        for v in 0..worst.len() {
            let inputs = v.checked_sub(1).map_or(&[][..], |i| &graph.nodes[i].inputs);
            proved[v] =
                inputs.iter().all(|&i| proved[i]) && worst[v] <= scales.headroom[v] * peaks[v].max(1e-6);
        }
        proved
    }

    /// What may be public, for the ring that was chosen.
    ///
    /// # Errors
    ///
    /// As [`Prepared::manifest_for`].
    pub fn manifest(&self) -> Result<Manifest> {
        self.manifest_for(&self.calibration.arithmetic)
    }

    /// What may be public, for any ring.
    ///
    /// # Errors
    ///
    /// If the calibrated ranges do not fit that ring.
    pub fn manifest_for(&self, arithmetic: &Arithmetic) -> Result<Manifest> {
        Ok(self.lowered(arithmetic)?.0)
    }

    fn lowered(&self, arithmetic: &Arithmetic) -> Result<(Manifest, Arc<Vec<Weights>>)> {
        let bounds = arithmetic.bounds()?;
        let (c, scales) = (&self.calibration, self.scales(arithmetic)?);
        let proved = self.proved(&scales, bounds.divisor);
        let (program, parameters) =
            lower(&self.graph, &scales, &bounds, (&c.peaks, c.margin, c.smooth), &proved)?;
        let weights = quantise(&program, &parameters, &bounds, self.calibration.margin)?;
        let info = |o: &crate::graph::Output| OutputInfo {
            name: o.name.clone(),
            shape: o.original_shape.clone(),
            finish: o.finish.clone(),
            columns: detect::lower::columns(&self.graph, &scales, o.value),
            proved: proved[o.value],
        };
        let manifest = Manifest {
            version: VERSION,
            config: self.config.clone(),
            arithmetic: arithmetic.clone(),
            rounds: Rounds::default(),
            program,
            outputs: self.graph.outputs.iter().map(info).collect(),
        };
        manifest.validate()?;
        Ok((manifest, Arc::new(weights)))
    }

    /// The secret weights as integers, by the index of the linear maps of [`Prepared::manifest_for`].
    ///
    /// # Errors
    ///
    /// If ranges or weights do not fit that ring.
    pub fn quantised(&self, arithmetic: &Arithmetic) -> Result<Arc<Vec<Weights>>> {
        Ok(self.lowered(arithmetic)?.1)
    }

    /// The outputs in floating point, in the original order, for an input in storage order.
    ///
    /// # Errors
    ///
    /// If the input has another size than the network's.
    pub fn float(&self, input: &[f32]) -> Result<Vec<Vec<f64>>> {
        let outputs = reference(&self.graph, input)?;
        let original = |(o, v): (&crate::graph::Output, Vec<f64>)| {
            let shape = o.original_shape.clone();
            OutputInfo { name: String::new(), shape, finish: None, columns: Vec::new(), proved: false }
                .original(&v)
        };
        Ok(self.graph.outputs.iter().zip(outputs).map(original).collect())
    }

    /// The fixed-point twin for a ring.
    ///
    /// # Errors
    ///
    /// If ranges or weights do not fit that ring.
    pub fn twin(&self, arithmetic: &Arithmetic) -> Result<Twin> {
        let (manifest, weights) = self.lowered(arithmetic)?;
        Ok(Twin { bounds: arithmetic.bounds()?, manifest, weights })
    }

    /// The outputs of the twin in the ring that was chosen, in the original order.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] names the layer where a value leaves its range.
    pub fn plain(&self, input: &[f32]) -> Result<Vec<Vec<f64>>> {
        self.twin(&self.calibration.arithmetic)?.run(input)
    }
}

/// The network on integers in the clear: the very arithmetic of the secure run, with nearest rounding.
#[derive(Clone, Debug)]
pub struct Twin {
    bounds: Bounds,
    manifest: Manifest,
    weights: Arc<Vec<Weights>>,
}

/// Largest magnitudes seen in a run, by layer.
pub type Peaks = std::collections::BTreeMap<u32, Peak>;

impl Twin {
    /// Of a manifest and its weights, by the index of its linear maps.
    ///
    /// # Errors
    ///
    /// If the manifest does not hold together or the weights are another model's.
    pub fn new(manifest: Manifest, weights: Arc<Vec<Weights>>) -> Result<Self> {
        manifest.validate()?;
        let maps = manifest.program.linear_maps();
        let fits = |(m, w): (&Linear, &Weights)| {
            w.values.len() == m.conv.weight_len() && w.bias.len() == m.conv.c_out
        };
        if maps.len() != weights.len() || !maps.iter().zip(weights.iter()).all(fits) {
            return Err(Error::Manifest("its weights have other shapes".into()));
        }
        Ok(Self { bounds: manifest.arithmetic.bounds()?, manifest, weights })
    }

    /// What it runs.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The twin of the part that yields these layers of the program, in storage order.
    ///
    /// # Errors
    ///
    /// If there is no such layer.
    pub fn until(&self, layers: &[&str]) -> Result<Self> {
        let program = &self.manifest.program;
        let register = |name: &&str| {
            let at = program.layers.iter().position(|l| l.name == **name);
            at.map(|i| i as u32 + 1).ok_or_else(|| Error::Manifest(format!("there is no layer {name}")))
        };
        let registers = layers.iter().map(register).collect::<Result<Vec<_>>>()?;
        Ok(self.yielding(registers))
    }

    /// The twin of what precedes the choice of anchors: logits and deltas. None if nothing is detected.
    pub(crate) fn before_anchors(&self) -> Option<Self> {
        let anchors = self.manifest.program.layers.iter().find(
            |l| matches!(&l.op, Instruction::Detect { stage, .. } if matches!(**stage, Stage::TopAnchors(_))),
        )?;
        Some(self.yielding(anchors.inputs.clone()))
    }

    /// Whether the stages of a detector have room for their numbers, which a run tells before it computes any.
    fn fits(&self, input: &[f32]) -> Result<()> {
        if self.before_anchors().is_none() {
            return Ok(());
        }
        self.run_storage(input, Rounding::Random(2)).map(|_| ()).map_err(|e| match e {
            Error::Protocol(e) => Error::Range(e.to_string()),
            other => other,
        })
    }

    fn yielding(&self, registers: Vec<u32>) -> Self {
        let program = self.manifest.program.until(registers);
        let info = |(shape, _): (&[usize], f64)| OutputInfo {
            name: String::new(),
            shape: shape.to_vec(),
            finish: None,
            columns: Vec::new(),
            proved: false,
        };
        let outputs = program.outputs().map(info).collect();
        Self { manifest: Manifest { program, outputs, ..self.manifest.clone() }, ..self.clone() }
    }

    /// The outputs in the original order, for an input in storage order.
    ///
    /// # Errors
    ///
    /// [`Error::Overflow`] names the layer where a value leaves its range.
    pub fn run(&self, input: &[f32]) -> Result<Vec<Vec<f64>>> {
        let (outputs, _) = self.run_storage(input, Rounding::Nearest)?;
        Ok(self.manifest.outputs.iter().zip(&outputs).map(|(info, v)| info.original(v)).collect())
    }

    /// The outputs in storage order, and the largest integers of each layer.
    ///
    /// # Errors
    ///
    /// As [`Twin::run`].
    pub fn run_storage(&self, input: &[f32], rounding: Rounding) -> Result<(Vec<Vec<f64>>, Peaks)> {
        let program = &self.manifest.program;
        if input.len() != program.input_len() {
            return Err(Error::Input { expected: program.input_len(), found: input.len() });
        }
        let mut engine = Plain::new(self.bounds, self.weights.clone()).with_rounding(rounding);
        let input = engine.input::<Full>(program.encode(input));
        let result = futures::executor::block_on(run(program, &mut engine, input, |_| {}));
        if let Some(o) = engine.overflow() {
            let layer = program.layers.get(o.layer as usize).map_or("input", |l| &l.name);
            return Err(Error::Overflow { layer: layer.into(), found: o.found, allowed: o.allowed });
        }
        let result = result?;
        let values = result.iter().zip(program.outputs()).zip(&self.manifest.outputs);
        let outputs = values.map(|((v, (_, scale)), info)| info.real(v.as_slice(), scale)).collect();
        Ok((outputs, engine.peaks().clone()))
    }
}
