//! Stages of a detector with everything public that they need, run on any engine.

use serde::{Deserialize, Serialize};
use sharelens_ops::Engine;
use sharelens_ops::detect::rank::Level;
use sharelens_ops::detect::{
    Decode, DecodeClasses, KeepFirst, RankDetections, RoiAlign, Suppress, TopAnchors, Unsettled,
};
use sharelens_ops::number::{Number, Scope};
use sharelens_ops::plain::Bounds;
use sharelens_ops::real;
use sharelens_protocol::ring::{Full, Reduced};
use sharelens_protocol::{Error, Result, Step};

use super::{Value, bits, full, reduced};
use crate::stage::StageKind;

/// A stage. [`StageKind`] says what each reads and yields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The best anchors.
    TopAnchors(TopAnchors),
    /// Anchors to boxes.
    Decode(Decode),
    /// Which rows stay.
    Suppress(Suppress),
    /// How many rows a suppression has not settled.
    Unsettled(Unsettled),
    /// The rows that stay, in front.
    KeepFirst(KeepFirst),
    /// Features of boxes.
    RoiAlign(RoiAlign),
    /// Probabilities of all classes but the first.
    Scores {
        /// Classes.
        classes: usize,
        /// Probabilities below need not be exact.
        floor: f64,
        /// About which scale they should have.
        scale: f64,
    },
    /// Proposals to boxes of each class.
    DecodeClasses(DecodeClasses),
    /// Candidates by descending score.
    RankDetections(RankDetections),
}

/// Most proposals that are decoded: their boxes are then ranked, which bounds them further.
const MAX_PROPOSALS: usize = 1 << 12;

/// An input of a stage: how large it can be, and its scale.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// Largest magnitude.
    pub bound: f64,
    /// Integers per unit.
    pub scale: f64,
}

impl Stage {
    /// Which one it is.
    pub const fn kind(&self) -> StageKind {
        match self {
            Self::TopAnchors(_) => StageKind::TopAnchors,
            Self::Decode(_) => StageKind::Decode,
            Self::Suppress(_) => StageKind::Suppress,
            Self::Unsettled(_) => StageKind::Unsettled,
            Self::KeepFirst(_) => StageKind::KeepFirst,
            Self::RoiAlign(_) => StageKind::RoiAlign,
            Self::Scores { .. } => StageKind::Scores,
            Self::DecodeClasses(_) => StageKind::DecodeClasses,
            Self::RankDetections(_) => StageKind::RankDetections,
        }
    }

    /// Shapes of the inputs and of the result.
    pub fn shapes(&self) -> (Vec<Vec<usize>>, Vec<usize>) {
        match self {
            Self::TopAnchors(s) => {
                let [h, w] = s.grid;
                let a = s.anchors.len();
                (vec![vec![1, h, w, a], vec![1, h, w, 4 * a]], vec![s.k, TopAnchors::WIDTH])
            }
            Self::Decode(s) => (vec![vec![s.rows, TopAnchors::WIDTH]], vec![s.rows, 4]),
            Self::Suppress(s) => (vec![vec![s.rows, s.width]], vec![2, s.rows]),
            Self::Unsettled(s) => (vec![vec![2, s.rows]], vec![1]),
            Self::KeepFirst(s) => (vec![vec![s.rows, s.width], vec![2, s.rows]], vec![s.k, s.columns]),
            Self::RoiAlign(s) => {
                let [h, w, c] = s.map;
                (vec![vec![1, h, w, c], vec![s.boxes, 4]], vec![s.boxes, s.bins, s.bins, c])
            }
            // The number of rows follows from the input.
            Self::Scores { .. } => (Vec::new(), Vec::new()),
            Self::DecodeClasses(s) => {
                let n = s.proposals;
                (vec![vec![n, 4], vec![n, 4 * s.classes]], vec![n * s.classes.saturating_sub(1), 4])
            }
            Self::RankDetections(s) => {
                let (n, c) = (s.proposals, s.classes);
                (vec![vec![n, c], vec![n * c, 4], vec![n, 4]], vec![n * c, RankDetections::WIDTH])
            }
        }
    }

    /// Checks it against the shapes of its inputs and of its result.
    ///
    /// # Errors
    ///
    /// What does not fit, in words.
    pub fn check(&self, inputs: &[&[usize]], out: &[usize]) -> std::result::Result<(), String> {
        let sane = match self {
            Self::TopAnchors(s) => s.is_valid(),
            Self::Decode(s) => s.rows > 0 && s.extent.is_valid() && decodes(s.limit, s.reach) && fine(s.side),
            Self::Suppress(s) => s.is_valid(),
            Self::Unsettled(s) => s.is_valid(),
            Self::KeepFirst(s) => s.is_valid(),
            Self::RoiAlign(s) => s.is_valid(),
            Self::Scores { classes, floor, scale } => {
                (2..=4096).contains(classes) && (1e-3..=0.5).contains(floor) && (16.0..=1e9).contains(scale)
            }
            Self::DecodeClasses(s) => {
                let weights = s.weights.iter().all(|w| (1e-2..=1e3).contains(w));
                (1..=MAX_PROPOSALS).contains(&s.proposals)
                    && (2..=4096).contains(&s.classes)
                    && s.extent.is_valid()
                    && decodes(s.limit, s.reach)
                    && weights
            }
            Self::RankDetections(s) => {
                s.proposals > 0 && s.classes > 0 && s.proposals.saturating_mul(s.classes) <= 1 << 12
            }
        };
        if !sane {
            return Err("its settings are not acceptable".into());
        }
        let fits = match self {
            Self::Scores { classes, .. } => match (inputs, out) {
                ([[n, c]], [m, d]) => c == classes && n == m && d + 1 == *c,
                _ => false,
            },
            _ => {
                let (wanted, yielded) = self.shapes();
                inputs.len() == wanted.len()
                    && inputs.iter().zip(&wanted).all(|(a, b)| a == b)
                    && out == yielded
            }
        };
        if fits { Ok(()) } else { Err("its shapes do not match".into()) }
    }

    /// How many elements a run moves, about.
    pub fn moves(&self) -> u64 {
        match self {
            Self::TopAnchors(s) => {
                let n = product(&[s.grid[0], s.grid[1], s.anchors.len()]);
                let level = |sum: u64, l: &Level| sum.saturating_add(n.saturating_mul(l.group as u64));
                s.levels.iter().fold(1 << 25, level).saturating_add(n.saturating_mul(32))
            }
            Self::Suppress(s) => product(&[s.rows, s.rows, s.steps.saturating_add(16)]),
            Self::RoiAlign(s) => {
                let line = s.map[0].saturating_add(s.map[1]).saturating_add(4);
                let samples = product(&[s.boxes, s.bins, s.samples, line, 8]);
                let lines = product(&[s.boxes, s.bins, s.map[1], s.map[2], 4]);
                samples.saturating_add(lines).saturating_add(product(&s.map))
            }
            Self::RankDetections(s) => {
                let n = s.proposals.saturating_mul(s.classes) as u64;
                n.saturating_mul(n)
            }
            _ => 1 << 16,
        }
    }

    /// How many rows are gone through one by one, also by who only plans: everything else of a plan takes no longer than
    /// its description.
    pub fn rows(&self) -> u64 {
        match self {
            Self::TopAnchors(s) => product(&[s.grid[0], s.grid[1], s.anchors.len()]),
            Self::Decode(s) => product(&[s.rows, 4]),
            Self::Suppress(s) => product(&[s.rows, 4]).saturating_add(s.steps as u64),
            Self::Unsettled(s) => s.rows as u64,
            Self::KeepFirst(s) => product(&[s.rows, s.width]),
            Self::RoiAlign(s) => product(&[s.boxes, 4]).saturating_add(product(&[s.bins, s.samples])),
            Self::Scores { .. } => 1,
            Self::DecodeClasses(s) => product(&[s.proposals, s.classes, 4]),
            Self::RankDetections(s) => product(&[s.proposals, s.classes, 8]),
        }
    }

    /// Multiply-accumulates of products of secrets.
    pub fn macs(&self) -> u64 {
        match self {
            Self::RoiAlign(s) => {
                let [h, w, c] = s.map;
                product(&[s.boxes, s.bins, w, c, h]).saturating_add(product(&[s.boxes, s.bins, s.bins, w, c]))
            }
            Self::Suppress(s) => product(&[s.rows, s.rows, s.steps]),
            _ => 0,
        }
    }

    /// Runs it. Yields the value and, where it depends on the ring, its scale.
    ///
    /// # Errors
    ///
    /// As the engine, and if numbers may leave their range.
    pub async fn run<E: Engine>(
        &self,
        e: &mut E,
        at: Step,
        bounds: &Bounds,
        inputs: Vec<Value<E>>,
        given: &[Given],
    ) -> Result<(Value<E>, Option<f64>)> {
        let scope = &mut Scope::new(at, *bounds);
        let mut inputs = inputs.into_iter().zip(given);
        let mut next = || inputs.next().ok_or_else(|| Error::Config("a stage lacks an input".into()));
        let (x, g) = next()?;
        Ok(match self {
            Self::TopAnchors(s) => {
                let logits = small(e, scope, x, g)?;
                let (deltas, g) = next()?;
                let deltas = small(e, scope, deltas, g)?;
                (Value::Reduced(s.run(e, scope, &logits, &deltas).await?), None)
            }
            Self::Decode(s) => {
                let rows = small(e, scope, x, g)?;
                (Value::Full(s.run(e, scope, &rows).await?), None)
            }
            Self::Suppress(s) => (Value::Bits(s.run(e, scope, &full(x)?).await?), None),
            Self::Unsettled(s) => (Value::Full(s.run(e, &bits(x)?)?), None),
            Self::KeepFirst(s) => {
                let keep = bits(next()?.0)?;
                (Value::Full(s.run(e, scope, &full(x)?, &keep).await?), None)
            }
            Self::RoiAlign(s) => {
                let features = Number::<E, Full>::new(scope, full(x)?, g.scale, g.bound)?;
                let boxes = full(next()?.0)?;
                let out = s.run(e, scope, &features, &boxes).await?;
                let scale = out.scale();
                (Value::Full(out.into_integers()), Some(scale))
            }
            Self::Scores { classes, floor, scale } => {
                let logits = small(e, scope, x, g)?;
                let out = real::scores(e, scope, &logits, *classes, *floor, *scale).await?;
                let scale = out.scale();
                (Value::Reduced(out.into_integers()), Some(scale))
            }
            Self::DecodeClasses(s) => {
                let (deltas, g) = next()?;
                let deltas = small(e, scope, deltas, g)?;
                (Value::Full(s.run(e, scope, &full(x)?, &deltas).await?), None)
            }
            Self::RankDetections(s) => {
                let scores = small(e, scope, x, g)?;
                let (boxes, proposals) = (full(next()?.0)?, full(next()?.0)?);
                (Value::Full(s.run(e, scope, &scores, &boxes, &proposals).await?), None)
            }
        })
    }
}

fn small<E: Engine>(e: &mut E, scope: &Scope, x: Value<E>, g: &Given) -> Result<Number<E, Reduced>> {
    let x = reduced(e, x);
    Number::new(scope, x, g.scale, g.bound)
}

fn product(v: &[usize]) -> u64 {
    v.iter().fold(1u64, |a, &d| a.saturating_mul(d as u64))
}

fn fine(v: f64) -> bool {
    v.is_finite() && v > 0.0 && v < 1e6
}

fn decodes(limit: f64, reach: f64) -> bool {
    (0.0..=8.0).contains(&limit) && fine(reach)
}
