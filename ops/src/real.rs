//! Functions of real numbers in fixed point, on vectors of [`Number`]s.
//!
//! All of them work elementwise with all elements in parallel, fold or normalise the argument with one batch of
//! signs, and leave a polynomial of low degree: few rounds whatever the length. Scales inside a function are
//! chosen from the ring, so each states its error once for divisors of at least 2^20 (three moduli of Q) and
//! once for smaller ones (two moduli, Z_2^64). An argument outside of the stated range gives a number without
//! meaning or, where the range says "clamped", the value at the end of the range.
//!
//! Rounds are those of the residue number system with four comparison moduli, where a sign takes [`SIGN`].

#![allow(rustdoc::broken_intra_doc_links, reason = "square brackets denote shared values and truth values")]

use sharelens_protocol::ring::{Domain, Full, Reduced};
use sharelens_protocol::{Error, Result};

use crate::engine::Engine;
use crate::layers::split;
use crate::number::{Number, Scope};

pub mod clamp;
pub mod exp;
mod fold;
pub mod log;
pub mod logic;
pub mod normalise;
pub mod piecewise;
pub mod reciprocal;
pub mod root;
pub mod softmax;

pub use clamp::{clamp, max, min};
pub use exp::exp;
pub use log::log;
pub use normalise::{Normalised, normalise};
pub use piecewise::{Piecewise, piecewise, sigmoid, tanh};
pub use reciprocal::{divide, reciprocal};
pub use root::{rsqrt, sqrt};
pub use softmax::{scores, softmax};

/// Rounds of a ReLU or a sign with four comparison moduli, or in Z_2^64.
pub const SIGN: u64 = 4;

/// How large the integers of a factor near one are made: 2^19, or a quarter of a smaller divisor, so that the
/// other factor of a last product is left with room below the unit of the result.
fn fineness(divisor: f64) -> f64 {
    (divisor / 4.0).min(524_288.0)
}

/// Two factors.
type Pair<'a, E> = (&'a Number<E, Full>, &'a Number<E, Full>);

/// All products, in one round.
async fn mul_all<E: Engine, const K: usize>(
    e: &mut E,
    scope: &mut Scope,
    pairs: [Pair<'_, E>; K],
) -> Result<[Number<E, Full>; K]> {
    let x = crate::layers::join(e, &pairs.map(|(x, _)| x.integers()));
    let y = crate::layers::join(e, &pairs.map(|(_, y)| y.integers()));
    let v = e.mul(scope.step(), &x, &y).await?;
    let parts = split(e, &v, pairs.map(|(x, _)| x.len(e)));
    numbers(scope, parts, pairs.map(|(x, y)| (x.scale() * y.scale(), x.bound() * y.bound())))
}

/// Each number at about the scale beside it, by one rescale: an integer factor and the division by Q.
async fn rescale_all<E: Engine, const K: usize>(
    e: &mut E,
    scope: &mut Scope,
    parts: [(&Number<E, Full>, f64); K],
) -> Result<[Number<E, Reduced>; K]> {
    let divisor = scope.bounds().divisor as f64;
    let mut scaled = Vec::with_capacity(K);
    let mut kinds = [(0.0, 0.0); K];
    for ((x, scale), kind) in parts.iter().zip(&mut kinds) {
        let factor = (scale * divisor / x.scale()).round().max(1.0);
        if x.bound() * x.scale() * factor > scope.bounds().full as f64 {
            return Err(Error::Config(format!(
                "numbers up to {:.4} at scale {:.1} cannot be brought to scale {scale:.1}",
                x.bound(),
                x.scale()
            )));
        }
        scaled.push(e.scale(x.integers(), factor as i64));
        let scale = x.scale() * factor / divisor;
        *kind = (scale, x.bound() + 1.0 / scale);
    }
    let x = crate::layers::join(e, &scaled.iter().collect::<Vec<_>>());
    let v = e.rescale(scope.step(), &x).await?;
    let parts = split(e, &v, parts.map(|(x, _)| x.len(e)));
    numbers(scope, parts, kinds)
}

/// All numbers in the larger range, in one round.
async fn lift_all<E: Engine, const K: usize>(
    e: &mut E,
    scope: &mut Scope,
    parts: [&Number<E, Reduced>; K],
) -> Result<[Number<E, Full>; K]> {
    if let Some(x) = parts.iter().find(|x| x.bound() * x.scale() >= scope.bounds().lift as f64) {
        let (bound, scale) = (x.bound(), x.scale());
        return Err(Error::Config(format!("numbers up to {bound:.4} at scale {scale:.1} cannot be lifted")));
    }
    let x = crate::layers::join(e, &parts.map(Number::integers));
    let v = e.lift(scope.step(), &x).await?;
    let split = split(e, &v, parts.map(|x| x.len(e)));
    numbers(scope, split, parts.map(|x| (x.scale(), x.bound())))
}

fn numbers<E: Engine, D: Domain, const K: usize>(
    scope: &Scope,
    parts: [E::V<D>; K],
    kinds: [(f64, f64); K],
) -> Result<[Number<E, D>; K]> {
    let mut out = Vec::with_capacity(K);
    for (v, (scale, bound)) in parts.into_iter().zip(kinds) {
        out.push(Number::new(scope, v, scale, bound)?);
    }
    Ok(out.try_into().unwrap_or_else(|_| unreachable!("K parts were pushed")))
}

/// The function that is `values[0]` at first and becomes `values[j]` with the j-th bit; the bits, shares of 0 or
/// 1, turn on in order. Local.
fn staircase<E: Engine>(
    e: &mut E,
    scope: &Scope,
    bits: &[E::V<Full>],
    values: &[f64],
    scale: f64,
    n: usize,
) -> Result<Number<E, Full>> {
    let bound = values.iter().fold(0f64, |a, v| a.max(v.abs())) + 0.5 / scale;
    let integers: Vec<i64> = values.iter().map(|v| (v * scale).round() as i64).collect();
    Number::new(scope, stairs(e, bits, &integers, n), scale, bound)
}

/// [`staircase`] on integers.
fn stairs<E: Engine>(e: &mut E, bits: &[E::V<Full>], values: &[i64], n: usize) -> E::V<Full> {
    let zero = e.gather_by::<Full>(&[], n, || vec![crate::ZERO; n]);
    let mut sum = e.add_public(&zero, &values[..1]);
    for (bit, pair) in bits.iter().zip(values.windows(2)) {
        let rise = e.scale(bit, pair[1] - pair[0]);
        sum = e.add(&sum, &rise);
    }
    sum
}

/// e^x to 13 digits with sums and products alone: the servers need the same constants to the last bit, and the
/// mathematical libraries of two platforms may differ there.
fn exp_of(x: f64) -> f64 {
    let z = x / 1024.0;
    let mut term = 1.0;
    let mut sum = 1.0;
    for i in 1..12 {
        term *= z / f64::from(i);
        sum += term;
    }
    (0..10).fold(sum, |y: f64, _| y * y)
}

/// ln x for x > 0, in the same way.
fn ln_of(x: f64) -> f64 {
    let (mut m, mut k) = (x, 0.0);
    while m > 1.5 {
        m /= 2.0;
        k += 1.0;
    }
    while m < 0.75 {
        m *= 2.0;
        k -= 1.0;
    }
    let z = (m - 1.0) / (m + 1.0);
    let series = (0..24).rev().fold(0.0, |sum, i| sum * z * z + 1.0 / f64::from(2 * i + 1));
    k * std::f64::consts::LN_2 + 2.0 * z * series
}

/// Refuses an empty or infinite range.
fn check_range(lo: f64, hi: f64, scale: f64) -> Result<()> {
    if lo.is_finite() && hi.is_finite() && lo < hi && scale.is_finite() && scale > 0.0 {
        return Ok(());
    }
    Err(Error::Config(format!("a function over [{lo}, {hi}] at scale {scale}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_those_of_the_library() {
        for i in -2000..2000 {
            let x = f64::from(i) / 97.0;
            assert!((exp_of(x) / x.exp() - 1.0).abs() < 1e-11, "e^{x}");
            assert!((ln_of(x.exp()) - x).abs() < 1e-11, "ln e^{x}");
        }
    }
}
