//! Smooth functions of one variable as cubics on public pieces, among them sigmoid and tanh.
//!
//! Functionality  [x] to [f(c) + s max(x - hi, 0)] with c = min(max(x, lo), hi), for a public f and a public slope s: a function
//!                that ends level on the left, and straight on the right.
//! Range          any x (clamped, or straight).
//! Error          absolute: the tolerance of the fit, plus what rounding adds. sigmoid and tanh: 1e-4 plus 2
//!                units of the scale of the result for Q of at least 2^20, 4e-4 plus 2 units for smaller Q,
//!                including Z_2^64; measured over the whole range (`ops/tests/real.rs`).
//! Cost           [`ROUNDS`] whatever f is: ReLUs with signs of (2 + T) n elements for T + 1 pieces, products of 3n and
//!                n, a lift of 2n. An argument too fine for the ring costs a lift of n more.
//! Source         as `exp`: one call clamps and says which piece; the coefficients C_k are sums of bits
//!                with public factors, and f = (C_0 + C_1 r) + r^2 (C_2 + C_3 r).

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::Reduced;
use sharelens_protocol::{Error, Result};

use super::fold::{Cuts, fold};
use super::{check_range, exp_of, lift_all, mul_all, rescale_all, staircase};
use crate::engine::Engine;
use crate::number::{Number, Scope};

/// Rounds: the ReLU, two products and a lift.
pub const ROUNDS: u64 = super::SIGN + 3;

/// Most pieces of a function.
pub const MOST: usize = 64;
/// Largest end and coefficient.
const LARGEST: f64 = 1e6;

/// A function as cubics on pieces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Piecewise {
    /// Ends of the pieces, one more than there are pieces.
    ends: Vec<f64>,
    /// About the middle of each piece, lowest degree first.
    cubics: Vec<[f64; 4]>,
    /// Slope behind the last end.
    slope: f64,
}

impl Piecewise {
    /// Fits `f` on [lo, hi] within `tolerance` at 65 places of each piece, from left to right with pieces as
    /// wide as that allows. `f` must give the same bits on every machine, so use sums, products and quotients.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty range, or if 64 pieces do not do.
    pub fn fit(f: impl Fn(f64) -> f64, lo: f64, hi: f64, tolerance: f64) -> Result<Self> {
        check_range(lo, hi, tolerance)?;
        let mut out = Self { ends: vec![lo], cubics: Vec::new(), slope: 0.0 };
        let mut from = lo;
        while from < hi {
            if out.cubics.len() == MOST {
                return Err(Error::Config(format!(
                    "{MOST} cubics on [{lo}, {hi}] miss by more than {tolerance}"
                )));
            }
            // The widest piece, to a part in a thousand of the whole.
            let (mut fits, mut too_wide) = (0.0, hi - from);
            if good(&f, from, hi, tolerance) {
                fits = too_wide;
            }
            while too_wide - fits > 1e-3 * (hi - lo) {
                let width = f64::midpoint(fits, too_wide);
                if good(&f, from, from + width, tolerance) {
                    fits = width;
                } else {
                    too_wide = width;
                }
            }
            if fits == 0.0 {
                return Err(Error::Config(format!(
                    "a function that no cubic meets to {tolerance} at {from}"
                )));
            }
            let to = if hi - from <= fits { hi } else { from + fits };
            out.cubics.push(interpolate(&f, from, to));
            out.ends.push(to);
            from = to;
        }
        Ok(out)
    }

    /// The same function, with this slope behind its last end instead of none.
    #[must_use]
    pub fn going_on(self, slope: f64) -> Self {
        Self { slope, ..self }
    }

    /// Pieces.
    pub fn pieces(&self) -> usize {
        self.cubics.len()
    }

    /// The end that is farthest from zero.
    pub fn farthest(&self) -> f64 {
        self.ends.iter().fold(0.0, |a, e| a.max(e.abs()))
    }

    /// The function at x, as the cubics have it.
    pub fn value(&self, x: f64) -> f64 {
        let (lo, hi) = (self.ends[0], self.ends[self.cubics.len()]);
        let c = x.clamp(lo, hi);
        let piece = self.ends[1..self.cubics.len()].iter().filter(|end| c >= **end).count();
        let middle = f64::midpoint(self.ends[piece], self.ends[piece + 1]);
        value(&self.cubics[piece], c - middle) + self.slope * (x - hi).max(0.0)
    }

    /// Whether it is a function at all: one that was not made by [`Piecewise::fit`] may be anything.
    pub fn is_valid(&self) -> bool {
        let numbers = self.ends.iter().chain(self.cubics.iter().flatten()).chain([&self.slope]);
        (1..=MOST).contains(&self.cubics.len())
            && self.ends.len() == self.cubics.len() + 1
            && numbers.into_iter().all(|v| v.is_finite() && v.abs() <= LARGEST)
            && self.ends.windows(2).all(|w| w[0] < w[1])
    }

    /// Largest magnitude on the pieces, by the size of the coefficients.
    fn largest(&self) -> f64 {
        let of = |(c, ends): (&[f64; 4], &[f64])| {
            let half = (ends[1] - ends[0]) / 2.0;
            c.iter().rev().fold(0.0, |sum, c| sum * half + c.abs())
        };
        self.cubics.iter().zip(self.ends.windows(2)).map(of).fold(0.0, f64::max)
    }
}

/// Chebyshev nodes of degree 4 on [-1, 1]: cos(pi/8) and cos(3 pi/8) of either sign.
const NODES: [f64; 4] =
    [-0.923_879_532_511_286_7, -0.382_683_432_365_089_8, 0.382_683_432_365_089_8, 0.923_879_532_511_286_7];

/// The cubic through f at the Chebyshev nodes, about the middle.
fn interpolate(f: impl Fn(f64) -> f64, from: f64, to: f64) -> [f64; 4] {
    let (middle, half) = (f64::midpoint(from, to), (to - from) / 2.0);
    let x = NODES.map(|z| z * half);
    let mut d = x.map(|x| f(middle + x));
    for order in 1..4 {
        for i in (order..4).rev() {
            d[i] = (d[i] - d[i - 1]) / (x[i] - x[i - order]);
        }
    }
    // Newton's form, multiplied out.
    let mut c = [0.0; 4];
    for i in (0..4).rev() {
        for k in (1..4).rev() {
            c[k] = c[k - 1] - x[i] * c[k];
        }
        c[0] = d[i] - x[i] * c[0];
    }
    c
}

fn value(c: &[f64; 4], r: f64) -> f64 {
    c[0] + r * (c[1] + r * (c[2] + r * c[3]))
}

fn good(f: impl Fn(f64) -> f64, from: f64, to: f64, tolerance: f64) -> bool {
    let c = interpolate(&f, from, to);
    let (middle, half) = (f64::midpoint(from, to), (to - from) / 2.0);
    (-32..=32).all(|i| {
        let r = half * f64::from(i) / 32.0;
        (value(&c, r) - f(middle + r)).abs() <= tolerance
    })
}

/// `f` of each number, clamped to the range of the fit, at about `scale`, before it is lifted.
///
/// # Errors
/// [`Error::Config`] if the range or the scale has no room in the ring, and as the engine.
pub async fn piecewise<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Reduced>,
    f: &Piecewise,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    let n = x.len(e);
    let divisor = scope.bounds().divisor as f64;
    let total = scale * divisor;
    let wanted = total.sqrt().min(524_288.0);
    let cuts = Cuts::new(&f.ends, x.scale())?;
    let folded = fold(e, scope, x, &cuts, (wanted * divisor / 4.0).sqrt()).await?;
    let r = &folded.rest;
    // r^2 as near to half of the digits as an integer factor brings it; C_2 + C_3 r has the other half.
    let times = (wanted * divisor / (r.scale() * r.scale())).round().max(1.0);
    let square_scale = r.scale() * r.scale() * times / divisor;
    let outer = total / square_scale;
    // Middles of the pieces move to integers, and the cubics with them.
    let cubics: Vec<[f64; 4]> = f
        .cubics
        .iter()
        .zip(f.ends.windows(2))
        .zip(&folded.centres)
        .map(|((c, ends), &centre)| moved(c, centre - f64::midpoint(ends[0], ends[1])))
        .collect();
    let column = |k: usize| cubics.iter().map(|c| c[k]).collect::<Vec<_>>();
    let c3 = staircase(e, scope, &folded.bits, &column(3), outer * divisor / r.scale(), n)?;
    let c2 = staircase(e, scope, &folded.bits, &column(2), outer * divisor, n)?;
    let c1 = staircase(e, scope, &folded.bits, &column(1), total / r.scale(), n)?;
    let c0 = staircase(e, scope, &folded.bits, &column(0), total, n)?;
    let [square, cubed, linear] = mul_all(e, scope, [(r, r), (&c3, r), (&c1, r)]).await?;
    let inner = cubed.add(e, scope, &c2)?;
    let parts = [(&square, square_scale), (&inner, outer)];
    let [square, inner] = rescale_all(e, scope, parts).await?;
    let [square, inner] = lift_all(e, scope, [&square, &inner]).await?;
    let curved = square.mul(e, scope, &inner).await?;
    let straight = linear.add(e, scope, &c0)?;
    let level = curved.add(e, scope, &straight)?.within(1.01 * f.largest() + 1.0 / scale);
    let y = if f.slope == 0.0 {
        level
    } else {
        let factor = (f.slope * total / folded.beyond.scale()).round();
        // Rounding the factor is an error of that share of the slope.
        if !(1024.0..1e15).contains(&factor.abs()) {
            return Err(Error::Config(format!("a slope of {} has no room at scale {scale:.1}", f.slope)));
        }
        let risen = e.scale(folded.beyond.integers(), factor as i64);
        let risen = Number::new(scope, risen, total, folded.beyond.bound() * f.slope.abs() * 1.001)?;
        level.add(e, scope, &risen)?
    };
    y.rescale(e, scope, scale).await
}

/// c(r + by).
fn moved(c: &[f64; 4], by: f64) -> [f64; 4] {
    [value(c, by), c[1] + by * (2.0 * c[2] + 3.0 * by * c[3]), c[2] + 3.0 * by * c[3], c[3]]
}

/// Where sigmoid and tanh are within 6e-5 of their ends.
const FAR: f64 = 9.8;

/// What the cubics of sigmoid and tanh may miss.
const TOLERANCE: f64 = 6e-5;

/// 1/(1 + e^-x) at about `scale`, before it is lifted.
///
/// # Errors
/// As [`piecewise`].
pub async fn sigmoid<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Reduced>,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    let f = Piecewise::fit(|x| 1.0 / (1.0 + exp_of(-x)), -FAR, FAR, TOLERANCE)?;
    let y = piecewise(e, scope, x, &f, scale).await?;
    Ok(y.within(1.001 + 2.0 / scale))
}

/// tanh x at about `scale`, before it is lifted.
///
/// # Errors
/// As [`piecewise`].
pub async fn tanh<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Reduced>,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    let f = Piecewise::fit(|x| 1.0 - 2.0 / (1.0 + exp_of(2.0 * x)), -FAR / 2.0, FAR / 2.0, TOLERANCE)?;
    let y = piecewise(e, scope, x, &f, scale).await?;
    Ok(y.within(1.001 + 2.0 / scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cubics_meet_the_function() {
        let f = |x: f64| 1.0 / (1.0 + (-x).exp());
        let fit = Piecewise::fit(f, -FAR, FAR, TOLERANCE).expect("fits");
        assert!(fit.pieces() <= 12, "{}", fit.pieces());
        for (ends, c) in fit.ends.windows(2).zip(&fit.cubics) {
            let middle = f64::midpoint(ends[0], ends[1]);
            for i in 0..=200 {
                let x = ends[0] + (ends[1] - ends[0]) * f64::from(i) / 200.0;
                assert!((value(c, x - middle) - f(x)).abs() < 1.01 * TOLERANCE, "{x}");
                let by = 0.01;
                assert!((value(&moved(c, by), x - middle - by) - value(c, x - middle)).abs() < 1e-12);
            }
        }
        assert!(Piecewise::fit(|x| if x < 0.3 { 0.0 } else { 1.0 }, 0.0, 1.0, 1e-3).is_err());
    }
}
