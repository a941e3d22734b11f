//! Functions of real numbers whose scale follows from the ring: roots, quotients, softmax.
//!
//! Each stands here once, for the network (what it is) and for the program (with the range that calibration saw).

use futures::executor::block_on;
use serde::{Deserialize, Serialize};
use sharelens_ops::engine::Engine;
use sharelens_ops::number::{Number, Scope};
use sharelens_ops::plain::Bounds;
use sharelens_ops::planner::Length;
use sharelens_ops::{Planner, real};
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::ring::{Full, Range, Reduced, Z64};
use sharelens_protocol::{Error, Result, Step};

/// A function of a network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Real {
    /// 1 / sqrt(x + summand), for x + summand > 0.
    InverseRoot {
        /// What is added.
        summand: f32,
    },
    /// 1 / (x + summand), for x + summand > 0.
    Reciprocal {
        /// What is added.
        summand: f32,
    },
    /// e^x over the sum of e^x, over runs of so many numbers.
    Softmax {
        /// How many belong together.
        width: usize,
    },
}

impl Real {
    /// A word for reports.
    pub const fn label(self) -> &'static str {
        match self {
            Self::InverseRoot { .. } => "inverse root",
            Self::Reciprocal { .. } => "reciprocal",
            Self::Softmax { .. } => "softmax",
        }
    }

    /// In which domain its argument has to be.
    pub const fn wants(self) -> Range {
        match self {
            Self::InverseRoot { .. } | Self::Reciprocal { .. } => Range::Full,
            Self::Softmax { .. } => Range::Reduced,
        }
    }

    /// Whether its settings are numbers that are used, for `len` numbers.
    pub fn is_valid(self, len: usize) -> bool {
        match self {
            Self::InverseRoot { summand } | Self::Reciprocal { summand } => (0.0..=1e6).contains(&summand),
            Self::Softmax { width } => (2..=1 << 16).contains(&width) && len.is_multiple_of(width),
        }
    }

    /// The function in floats.
    pub fn apply(self, x: &[f64]) -> Vec<f64> {
        match self {
            Self::InverseRoot { summand } => {
                x.iter().map(|x| 1.0 / (x + f64::from(summand)).sqrt()).collect()
            }
            Self::Reciprocal { summand } => x.iter().map(|x| 1.0 / (x + f64::from(summand))).collect(),
            Self::Softmax { width } => {
                let row = |row: &[f64]| {
                    let largest = row.iter().fold(f64::NEG_INFINITY, |a, &v| a.max(v));
                    let terms: Vec<f64> = row.iter().map(|v| (v - largest).exp()).collect();
                    let sum: f64 = terms.iter().sum();
                    terms.into_iter().map(move |t| t / sum).collect::<Vec<_>>()
                };
                x.chunks(width).flat_map(row).collect()
            }
        }
    }

    /// Arguments that it is made for, from the largest argument and the largest value that calibration saw, each `margin`
    /// times over. None for functions of any argument.
    pub fn range(self, peaks: [f64; 2], margin: f64) -> Option<[f64; 2]> {
        let [x, y] = peaks.map(|p| p.max(1e-9));
        let (summand, least) = match self {
            Self::InverseRoot { summand } => (summand, 1.0 / (margin * y * y)),
            Self::Reciprocal { summand } => (summand, 1.0 / (margin * y)),
            Self::Softmax { .. } => return None,
        };
        let hi = margin * x + f64::from(summand);
        // Never below what is added to something that is not negative.
        let least = least.max(0.99 * f64::from(summand)).min(hi / 2.0);
        Some([least, hi])
    }
}

/// A function of a program.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ranged {
    /// Which.
    pub function: Real,
    /// Least and largest of the argument with what is added to it; of a softmax the largest magnitude twice.
    pub range: [f64; 2],
    /// Scale that is asked for; about that of the result.
    pub wanted: f64,
}

impl Ranged {
    /// Of a network's function with these peaks.
    pub fn new(function: Real, peaks: [f64; 2], margin: f64, wanted: f64) -> Self {
        let range = function.range(peaks, margin).unwrap_or([margin * peaks[0]; 2]);
        Self { function, range, wanted }
    }

    /// Whether it can be planned, for `len` numbers.
    pub fn is_valid(&self, len: usize) -> bool {
        let sane = |v: f64| v.is_finite() && (1e-12..=1e12).contains(&v);
        let ordered = self.range[0] <= self.range[1];
        self.function.is_valid(len) && self.range.iter().all(|v| sane(*v)) && ordered && sane(self.wanted)
    }

    /// At most how many numbers are compared for one of its own.
    pub const fn pieces(&self) -> u64 {
        match self.function {
            // As many as normalising may have, or the exponential of a softmax.
            Real::InverseRoot { .. } | Real::Reciprocal { .. } => 256,
            Real::Softmax { .. } => 32,
        }
    }

    /// The function of `x`, at a scale that is known exactly. The one vector is in the domain that the function
    /// [wants](Real::wants).
    ///
    /// # Errors
    /// [`Error::Config`] if something has no room in the ring, and as the engine.
    pub async fn run<E: Engine>(
        &self,
        e: &mut E,
        scope: &mut Scope,
        x: Argument<E>,
        scale: f64,
    ) -> Result<Number<E, Reduced>> {
        // Coarser than this an argument says nothing, and what is smaller counts as this.
        let [lo, hi] = [self.range[0].max(LEAST / scale), self.range[1]];
        match (self.function, x) {
            (Real::InverseRoot { summand }, Argument::Full(x)) => {
                let x = at_least::<E>(e, scope, x, scale, summand, [lo, hi]).await?;
                real::rsqrt(e, scope, &x, lo, hi, self.wanted).await
            }
            (Real::Reciprocal { summand }, Argument::Full(x)) => {
                let x = at_least::<E>(e, scope, x, scale, summand, [lo, hi]).await?;
                real::reciprocal(e, scope, &x, lo, hi, self.wanted).await
            }
            (Real::Softmax { width }, Argument::Reduced(x)) => {
                let x = Number::new(scope, x, scale, hi)?;
                real::softmax(e, scope, &x, width, self.wanted).await
            }
            _ => Err(Error::Config("a function got numbers of the other domain".into())),
        }
    }

    /// The scale of what it yields for `len` numbers at `scale`, found by planning it.
    ///
    /// # Errors
    /// [`Error::Config`] if something has no room in the ring.
    pub fn scale(&self, bounds: &Bounds, len: usize, scale: f64) -> Result<f64> {
        let mut planner = Planner::<Z64>::new(Rounds::Balanced);
        let x = match self.function.wants() {
            Range::Full => Argument::Full(Length::new(len)),
            Range::Reduced => Argument::Reduced(Length::new(len)),
        };
        let mut scope = Scope::new(Step::layer(0), *bounds);
        Ok(block_on(self.run(&mut planner, &mut scope, x, scale))?.scale())
    }
}

/// What a function is applied to.
pub enum Argument<E: Engine> {
    /// In the larger range.
    Full(E::V<Full>),
    /// In the smaller range.
    Reduced(E::V<Reduced>),
}

/// Least argument of a root or a quotient, in units of its scale.
const LEAST: f64 = 64.0;

/// max(x + summand, lo), known to be at most `hi`. Below `lo` a function would yield numbers without meaning.
async fn at_least<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: E::V<Full>,
    scale: f64,
    summand: f32,
    [lo, hi]: [f64; 2],
) -> Result<Number<E, Full>> {
    let x = Number::<E, Full>::new(scope, x, scale, hi)?.reduce(e, scope)?;
    let above = x.add_public(e, scope, &[f64::from(summand) - lo])?;
    let above = above.relu(e, scope).await?;
    Ok(above.add_public(e, scope, &[lo])?.within(hi))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_was_seen() {
        // Variances from 0.25 to 9, with 0.01 added.
        let f = Real::InverseRoot { summand: 0.01 };
        let y = 1.0 / (0.26f64).sqrt();
        let [lo, hi] = f.range([9.0, y], 2.0).expect("a range");
        assert!((lo - 0.13).abs() < 1e-6 && (hi - 18.01).abs() < 1e-6, "[{lo}, {hi}]");
        // Constant rows: nothing but what is added.
        let [lo, _] = f.range([9.0, 10.0], 2.0).expect("a range");
        assert!((lo - 0.0099).abs() < 1e-6, "{lo}");
        assert_eq!(Real::Softmax { width: 3 }.range([9.0, 1.0], 2.0), None);
    }

    #[test]
    fn floats_are_those_of_the_formula() {
        let soft = Real::Softmax { width: 2 }.apply(&[0.0, 3f64.ln(), 5.0, 5.0]);
        assert!(soft.iter().zip([0.25, 0.75, 0.5, 0.5]).all(|(a, b)| (a - b).abs() < 1e-12), "{soft:?}");
        assert_eq!(Real::Reciprocal { summand: 1.0 }.apply(&[1.0, 3.0]), [0.5, 0.25]);
    }
}
