//! Two-stage detection as part of a network: the nodes between and behind the two imported graphs.
//!
//! A detector is one [`crate::Graph`]: backbone and region proposal network, stages, box head, stages. Stages hold
//! public settings only, in units of the feature stride. They run on any engine (`program`), and in floating
//! point (`reference`), where they follow torchvision step by step.

pub mod compare;
pub mod compose;
pub mod lower;
pub mod precision;
pub mod reference;
pub mod settings;

use serde::{Deserialize, Serialize};
use sharelens_ops::detect::rank::{self, Level};

pub use compare::{Agreement, Detections, compare};
pub use settings::Settings;

use crate::stage::StageKind;

/// Scale of coordinates: 1/16384 of a feature cell.
pub const COORDINATES: f64 = 16_384.0;
/// Columns of a row of detections: corners, score, class.
pub const COLUMNS: usize = 6;

/// What a stage computes. Boxes are corners x1, y1, x2, y2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Logits `[1, h, w, a]` and deltas `[1, h, w, 4 a]` to `[k, 8]`: dx, dy, dw, dh and the anchor's centre and
    /// size, best first.
    TopAnchors {
        /// Offset of the centre from the grid point, and size.
        anchors: Vec<[f64; 4]>,
        /// How many stay.
        k: usize,
        /// How they are found.
        levels: Vec<Level>,
    },
    /// The rows of `TopAnchors` to boxes `[k, 4]`.
    Decode {
        /// Width and height of the picture.
        extent: [f64; 2],
        /// Largest exponent.
        limit: f64,
        /// Largest side of an anchor.
        side: f64,
    },
    /// Rows by descending score to bits, `[2, rows]`: which rows stay, and which ones did a step before.
    Suppress {
        /// Width and height of the picture.
        extent: [f64; 2],
        /// Smallest side of a valid box.
        least_side: f64,
        /// Largest overlap that is not suppressed.
        threshold: f64,
        /// Steps of the iteration.
        steps: usize,
        /// For rows of `RankDetections`: scores up to this are not valid, and so many classes do not see each
        /// other.
        score: Option<(f64, usize)>,
    },
    /// The bits of `Suppress` to the number of rows that are not settled.
    Unsettled {
        /// Steps that it took.
        steps: usize,
    },
    /// Rows and the bits of `Suppress` to the first `k` kept rows, then zeros.
    KeepFirst {
        /// How many.
        k: usize,
        /// Columns of the result: the first ones.
        columns: usize,
    },
    /// Features `[1, h, w, c]` and boxes `[k, 4]` to `[k, bins, bins, c]`.
    RoiAlign {
        /// Width and height of the picture.
        extent: [f64; 2],
        /// Bins along each axis.
        bins: usize,
        /// Samples along each axis of a bin.
        samples: usize,
        /// torchvision's `aligned`.
        aligned: bool,
    },
    /// Logits `[n, c]` to softmax probabilities `[n, c - 1]` of all classes but the first.
    Scores {
        /// Probabilities below need not be exact.
        floor: f64,
    },
    /// Proposals `[n, 4]` and deltas `[n, 4 c]` to boxes `[n (c - 1), 4]`.
    DecodeClasses {
        /// Width and height of the picture.
        extent: [f64; 2],
        /// What dx, dy and dw, dh are divided by.
        weights: [f64; 2],
        /// Largest exponent.
        limit: f64,
    },
    /// Scores `[n, c - 1]`, boxes `[n (c - 1), 4]` and proposals `[n, 4]` to rows of 7 by descending score:
    /// corners, score, class, side of the proposal.
    RankDetections,
}

impl Stage {
    /// Which one it is.
    pub const fn kind(&self) -> StageKind {
        match self {
            Self::TopAnchors { .. } => StageKind::TopAnchors,
            Self::Decode { .. } => StageKind::Decode,
            Self::Suppress { .. } => StageKind::Suppress,
            Self::Unsettled { .. } => StageKind::Unsettled,
            Self::KeepFirst { .. } => StageKind::KeepFirst,
            Self::RoiAlign { .. } => StageKind::RoiAlign,
            Self::Scores { .. } => StageKind::Scores,
            Self::DecodeClasses { .. } => StageKind::DecodeClasses,
            Self::RankDetections => StageKind::RankDetections,
        }
    }

    /// Largest magnitude that comparisons of input `j`, of this magnitude and `n` elements, see.
    pub fn compared(&self, j: usize, peak: f64, n: usize) -> f64 {
        match (self, j) {
            // Keys hold a place, too, and differences of keys are compared.
            (Self::TopAnchors { .. }, 0) => 2.0 * peak * (n + 1) as f64,
            // Differences of logits, beyond a limit.
            (Self::Scores { .. }, _) => 4.0 * peak + 16.0,
            (Self::DecodeClasses { weights, .. }, 1) => peak + 16.0 * weights[1],
            (Self::Decode { .. }, _) => peak + 16.0,
            _ => peak,
        }
    }

    /// Shape of its result for inputs of these shapes.
    ///
    /// # Errors
    ///
    /// What does not fit, in words.
    pub fn shape(&self, inputs: &[&[usize]]) -> Result<Vec<usize>, String> {
        let arity = self.kind().arity();
        if inputs.len() != arity {
            return Err(format!("it has {} inputs, expected {arity}", inputs.len()));
        }
        let x = inputs[0];
        let ensure = |ok: bool, why: &str| if ok { Ok(()) } else { Err(format!("{why}; inputs {inputs:?}")) };
        let fine = |v: &f64, most: f64| v.is_finite() && *v >= 0.0 && *v <= most;
        let picture =
            |e: &[f64; 2]| ensure(e.iter().all(|v| (1.0..=65_536.0).contains(v)), "its picture has no size");
        match self {
            Self::TopAnchors { anchors, k, levels } => {
                let &[1, h, w, a] = x else { return Err(format!("logits of shape {x:?}")) };
                ensure(a == anchors.len() && inputs[1] == [1, h, w, 4 * a], "anchors do not match")?;
                let sane = |v: &[f64; 4]| {
                    v.iter().all(|v| v.is_finite() && v.abs() < 1e5) && v[2] > 0.0 && v[3] > 0.0
                };
                ensure(anchors.iter().all(sane), "anchors are not acceptable")?;
                let n = h.checked_mul(w).and_then(|n| n.checked_mul(a));
                ensure(n.is_some_and(|n| rank::are_valid(levels, n, *k)), "its levels do not match")?;
                Ok(vec![*k, 8])
            }
            Self::Decode { extent, limit, side } => {
                picture(extent)?;
                ensure(
                    x.len() == 2 && x[1] == 8 && fine(limit, 8.0) && fine(side, 1e5),
                    "rows do not match",
                )?;
                Ok(vec![x[0], 4])
            }
            Self::Suppress { extent, least_side, threshold, steps, score } => {
                picture(extent)?;
                let width = if score.is_some() { 7 } else { 4 };
                let rows = x.len() == 2 && x[1] == width && x[0] <= sharelens_ops::detect::suppress::MAX_ROWS;
                ensure(rows && (1..=x[0].max(2)).contains(steps), "rows or steps do not match")?;
                ensure(fine(least_side, 1e4) && fine(threshold, 1.0), "its limits are not acceptable")?;
                ensure(
                    score.is_none_or(|(s, c)| fine(&s, 1.0) && (1..4096).contains(&c)),
                    "its limits are not acceptable",
                )?;
                Ok(vec![2, x[0]])
            }
            Self::Unsettled { steps } => {
                let fits = x.len() == 2 && x[0] == 2 && (1..=x[1].max(2)).contains(steps);
                ensure(fits, "bits or steps do not match")?;
                Ok(vec![1])
            }
            Self::KeepFirst { k, columns } => {
                let fits = x.len() == 2 && inputs[1] == [2, x[0]] && *k > 0 && *k <= x[0];
                ensure(fits && *columns > 0 && *columns <= x[1] && x[1] <= 64, "rows do not match")?;
                Ok(vec![*k, *columns])
            }
            Self::RoiAlign { extent, bins, samples, .. } => {
                picture(extent)?;
                let &[1, h, w, c] = x else { return Err(format!("features of shape {x:?}")) };
                let boxes = inputs[1];
                let fits = boxes.len() == 2
                    && boxes[1] == 4
                    && h > 1
                    && w > 1
                    && extent[0] <= w as f64
                    && extent[1] <= h as f64;
                let sizes = (1..=64).contains(bins) && (1..=16).contains(samples);
                ensure(fits && sizes, "features, boxes or bins do not match")?;
                Ok(vec![boxes[0], *bins, *bins, c])
            }
            Self::Scores { floor } => {
                let fits = x.len() == 2 && (2..=4096).contains(&x[1]);
                ensure(fits && fine(floor, 0.5) && *floor >= 1e-3, "logits or floor do not match")?;
                Ok(vec![x[0], x[1] - 1])
            }
            Self::DecodeClasses { extent, weights, limit } => {
                picture(extent)?;
                let d = inputs[1];
                let fits = x.len() == 2
                    && x[1] == 4
                    && d.len() == 2
                    && d[0] == x[0]
                    && d[1].is_multiple_of(4)
                    && d[1] >= 8;
                let sane = weights.iter().all(|w| (1e-2..=1e3).contains(w)) && fine(limit, 8.0);
                ensure(fits && sane, "proposals and deltas do not match")?;
                Ok(vec![x[0] * (d[1] / 4 - 1), 4])
            }
            Self::RankDetections => {
                let (boxes, proposals) = (inputs[1], inputs[2]);
                let fits = x.len() == 2 && x[0] * x[1] <= rank::MAX_ROWS.min(1 << 12);
                let fits = fits && boxes == [x[0] * x[1], 4] && proposals == [x[0], 4];
                ensure(fits, "scores, boxes and proposals do not match")?;
                Ok(vec![x[0] * x[1], 7])
            }
        }
    }
}
