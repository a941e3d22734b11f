//! A positive number times a public-valued secret power, so that it comes near one.
//!
//! Functionality  [x] to [p], [d] with x p = 1 - d, |d| <= reach; p is one of a public list of positive numbers.
//! Range          lo <= x <= hi, both positive. Outside, d has no meaning.
//! Error          p is exact. d is off by one unit of its scale, 2^19 or a quarter of a smaller divisor.
//! Cost           [`ROUNDS`]: T signs of n elements, T + 1 = ceil(ln(hi/lo) / ln((1 + reach)/(1 - reach))) or a
//!                few more where integers are coarse; one product and one lift of n.
//! Source         threshold signs instead of the prefix-or of Catrina and Saxena, FC 2010, section 3: one
//!                batch of comparisons with public numbers instead of a chain of bits.

use sharelens_protocol::ring::{Full, Reduced};
use sharelens_protocol::{Error, Result};

use super::{check_range, exp_of, fineness, lift_all, ln_of, mul_all, rescale_all, staircase, stairs};
use crate::engine::Engine;
use crate::number::{Number, Scope};

/// Rounds: the signs, the product, the lift.
pub const ROUNDS: u64 = super::SIGN + 2;

/// Most pieces.
const MOST: usize = 256;

/// What [`normalise`] yields.
pub struct Normalised<E: Engine> {
    bits: Vec<E::V<Full>>,
    factors: Vec<f64>,
    integers: Vec<i64>,
    fine: f64,
    /// d = 1 - x p.
    pub rest: Number<E, Full>,
    /// Largest |d|, roundings aside.
    pub reach: f64,
    n: usize,
}

impl<E: Engine> Normalised<E> {
    /// p, exactly.
    ///
    /// # Errors
    /// As [`Number::new`].
    pub fn power(&self, e: &mut E, scope: &Scope) -> Result<Number<E, Full>> {
        let largest = self.factors.iter().fold(0f64, |a, &f| a.max(f));
        Number::new(scope, stairs(e, &self.bits, &self.integers, self.n), self.fine, largest)
    }

    /// g(p) at `scale`, for a public function g. Local.
    ///
    /// # Errors
    /// As [`Number::new`].
    pub fn of_power(
        &self,
        e: &mut E,
        scope: &Scope,
        scale: f64,
        g: impl Fn(f64) -> f64,
    ) -> Result<Number<E, Full>> {
        let values: Vec<f64> = self.factors.iter().map(|&f| g(f)).collect();
        staircase(e, scope, &self.bits, &values, scale, self.n)
    }
}

/// lead (a + sign d)(d^2 + b d + c), a function of d without a zero where it is used.
pub(super) struct Cubic {
    pub(super) lead: f64,
    pub(super) a: f64,
    pub(super) sign: i64,
    pub(super) b: f64,
    pub(super) c: f64,
}

impl Cubic {
    /// Two products and a lift.
    pub(super) const ROUNDS: u64 = 3;
}

impl<E: Engine> Normalised<E> {
    /// g(p) times a cubic of d, of magnitude at most `largest`, at about `scale`.
    pub(super) async fn cubic(
        &self,
        e: &mut E,
        scope: &mut Scope,
        f: &Cubic,
        g: impl Fn(f64) -> f64,
        largest: f64,
        scale: f64,
    ) -> Result<Number<E, Reduced>> {
        let divisor = scope.bounds().divisor as f64;
        let d = &self.rest;
        let flat = fineness(divisor) / f.c;
        // No finer than can be lifted; an integer factor makes up for it in the end.
        let steepest = self.factors.iter().fold(0f64, |a, &p| a.max(f.lead * g(p))) * (f.a + d.bound());
        let room = 0.9 * scope.bounds().lift as f64 / steepest;
        let steep = (scale * divisor / flat).min(room);
        let power = self.of_power(e, scope, steep * divisor / d.scale(), |p| f.lead * g(p))?;
        let linear = d.times(e, scope, f.sign)?.add_public(e, scope, &[f.a])?;
        let [square, first] = mul_all(e, scope, [(d, d), (&power, &linear)]).await?;
        let times = (flat * divisor / square.scale()).round().max(1.0);
        let total = square.scale() * times;
        let v = e.scale(square.integers(), times as i64);
        let slope = e.scale(d.integers(), (f.b * total / d.scale()).round() as i64);
        let v = e.add(&v, &slope);
        let v = e.add_public(&v, &[(f.c * total).round() as i64]);
        let reach = d.bound();
        let second = Number::new(scope, v, total, f.c + f.b.abs() * reach + reach * reach)?;
        let [first, second] = rescale_all(e, scope, [(&first, steep), (&second, total / divisor)]).await?;
        let [first, second] = lift_all(e, scope, [&first, &second]).await?;
        let y = first.mul(e, scope, &second).await?.within(largest);
        y.rescale(e, scope, scale).await
    }
}

/// Pieces of [lo, hi] and p on each, as integers.
#[derive(Debug)]
struct Grid {
    /// First integer of each piece but the first.
    starts: Vec<i64>,
    /// p at scale `fine`.
    factors: Vec<i64>,
    fine: f64,
}

impl Grid {
    /// The fewest pieces with |1 - x p| <= reach, for integers x at `scale` and p at `fine`.
    fn new(lo: f64, hi: f64, scale: f64, fine: f64, reach: f64) -> Result<Self> {
        let ratio = ln_of(hi / lo);
        let least = (ratio / ln_of((1.0 + reach) / (1.0 - reach))).ceil().max(1.0) as usize;
        // Coarse integers waste some of the reach, so a few more are tried.
        (least..(least + least / 2 + 2).min(MOST))
            .find_map(|count| {
                let at = |j: usize| (lo * scale * exp_of(ratio * j as f64 / count as f64)).round() as i64;
                let starts: Vec<i64> = (1..count).map(at).collect();
                let ends = (0..count)
                    .map(|j| (at(j).max(1), if j + 1 == count { at(count) + 1 } else { at(j + 1) }));
                let mut factors = Vec::with_capacity(count);
                for (first, end) in ends {
                    let (first, last) = (first as f64, (end - 1).max(first) as f64);
                    let p = (2.0 * fine * scale / (first + last)).round();
                    let product = |x: f64| (1.0 - x * p / (fine * scale)).abs();
                    if product(first).max(product(last)) > reach || p < 1.0 {
                        return None;
                    }
                    factors.push(p as i64);
                }
                Some(Self { starts, factors, fine })
            })
            .ok_or_else(|| {
                Error::Config(format!(
                    "[{lo}, {hi}] at scale {scale:.1} is too wide or too coarse to normalise"
                ))
            })
    }
}

/// p and d for each x in [lo, hi].
///
/// # Errors
/// [`Error::Config`] if the range is not positive or has no room in the ring, and as the engine.
pub async fn normalise<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Full>,
    lo: f64,
    hi: f64,
    reach: f64,
) -> Result<Normalised<E>> {
    check_range(lo, hi, x.scale())?;
    if lo <= 0.0 || !(1e-4..0.9).contains(&reach) {
        return Err(Error::Config(format!("cannot normalise [{lo}, {hi}] to {reach} about one")));
    }
    let n = x.len(e);
    let divisor = scope.bounds().divisor as f64;
    let fine = fineness(divisor) * divisor / x.scale();
    let grid = Grid::new(lo, hi, x.scale(), fine, reach)?;

    let known = Number::<E, Full>::new(scope, x.integers().clone(), x.scale(), x.bound().min(hi))?;
    let small = known.reduce(e, scope)?;
    small.add_public(e, scope, &[hi])?;
    let mut below = Vec::new();
    for &start in &grid.starts {
        below.push(e.add_public(small.integers(), &[-start]));
    }
    let mut bits = Vec::new();
    if !below.is_empty() {
        let all = crate::layers::join(e, &below.iter().collect::<Vec<_>>());
        let all = e.is_negative(scope.step(), &all).await?;
        for j in 0..below.len() {
            let bit = crate::layers::range(e, &all, j * n, (j + 1) * n);
            let bit = e.scale(&bit, -1);
            bits.push(e.add_public(&bit, &[1]));
        }
    }
    let factors: Vec<f64> = grid.factors.iter().map(|&f| f as f64 / grid.fine).collect();
    let mut out = Normalised { bits, factors, integers: grid.factors, fine, rest: known, reach, n };
    let power = out.power(e, scope)?;
    let product = out.rest.mul(e, scope, &power).await?.within(1.0 + reach);
    let near = product.rescale(e, scope, product.scale() / divisor).await?;
    let rest = near.times(e, scope, -1)?.add_public(e, scope, &[1.0])?;
    // Two units: of the rescale, and of the one.
    let rest = Number::new(scope, rest.into_integers(), near.scale(), reach + 2.0 / near.scale())?;
    out.rest = rest.lift(e, scope).await?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_brings_every_number_near_one() {
        for (lo, hi, scale, fine) in [(1.0, 64.0, 65_536.0, 65_536.0), (0.01, 3.0, 4096.0, 1e6)] {
            let g = Grid::new(lo, hi, scale, fine, 0.14).expect("a grid");
            let (first, last) = ((lo * scale).ceil() as i64, (hi * scale) as i64);
            for x in first..=last {
                let piece = g.starts.iter().filter(|&&s| x >= s).count();
                let d = 1.0 - x as f64 * g.factors[piece] as f64 / (fine * scale);
                assert!(d.abs() <= 0.14, "{x}: {d}");
            }
        }
        assert!(Grid::new(1.0, 64.0, 4096.0, 16.0, 0.14).is_err(), "p would be too coarse");
        assert!(Grid::new(1e-9, 1e9, 4096.0, 1e6, 0.14).is_err(), "too many pieces");
    }
}
