//! The exponential function over a public range.
//!
//! Functionality  [x] to [e^c] with c = min(max(x, lo), hi).
//! Range          any x (clamped); e^hi * `scale` must fit P/4.
//! Error          relative 1e-4 plus 2 units of the scale of the result, for Q of at least 2^20; relative 4e-4
//!                plus 2 units for smaller Q, including Z_2^64. Measured over the whole range
//!                (`ops/tests/real.rs`). The polynomial's share, 4.8e-5, is proved by the test below.
//! Cost           [`ROUNDS`]: ReLUs with signs of (2 + T) n elements, T = ceil((hi - lo)/2.04) - 1; products 2n, n, n;
//!                lifts 3n, n. In Z_2^64 the lifts are free and four rescales take a round. An argument too
//!                fine for the ring costs a lift of n more: [`finest`].
//! Source         derived here. [lo, hi] is cut into T + 1 pieces of width below 2.04; c_j is the middle of
//!                piece j. With b_j = [x >= t_j] = relu(x - t_j + 1) - relu(x - t_j) in integers,
//!                r = clamp(x) - c_j and E = e^(c_j) are sums of bits with public factors, and the same ReLU call
//!                clamps. e^r is the polynomial of degree 5 with least relative error on |r| <= 1.02, as
//!                C (r + a)(r^2 + b r + c)(r^2 + b' r + c').

use sharelens_protocol::ring::{Full, Reduced};
use sharelens_protocol::{Error, Result};

use super::fold::{Cuts, fold};
use super::{check_range, exp_of, fineness, lift_all, mul_all, rescale_all, staircase};
use crate::engine::Engine;
use crate::number::{Number, Scope};

/// Rounds: the ReLU, two products with their lifts, the last product.
pub const ROUNDS: u64 = super::SIGN + 5;

/// Largest |r|.
const HALF: f64 = 1.02;
/// C, the leading coefficient.
const LEADING: f64 = 0.008_028_876_7;
/// a.
const LINEAR: f64 = 2.334_844_844_4;
/// (b, c), then least and largest value on |r| <= 1.02.
const QUADRATICS: [(f64, f64, f64, f64); 2] =
    [(-0.415_872_433_3, 9.319_751_877_5, 9.276, 10.785), (3.526_615_691_0, 5.723_952_661_9, 3.167, 10.362)];

/// The finest scale of an argument that needs no further round.
pub fn finest(scope: &Scope) -> f64 {
    let divisor = scope.bounds().divisor as f64;
    // r^2 comes at the square of its scale, and the coarser quadratic wants four times as fine at least.
    (quadratic_scale(divisor, 0) * divisor / 4.0).sqrt()
}

/// The scale for quadratic `i`: both are equally exact where they are least, and their product has the
/// wanted fineness after a rescale.
fn quadratic_scale(divisor: f64, i: usize) -> f64 {
    (fineness(divisor) * divisor).sqrt() / QUADRATICS[i].2
}

/// Ends of pieces of equal width, each narrower than twice [`HALF`].
fn ends(lo: f64, hi: f64, scale: f64) -> Result<Vec<f64>> {
    check_range(lo, hi, scale)?;
    let widest = 2.0 * HALF - 4.0 / scale;
    let count = ((hi - lo) / widest).ceil();
    if widest <= 0.0 || count > 64.0 {
        return Err(Error::Config(format!("an exponential over [{lo}, {hi}] at scale {scale:.1}")));
    }
    Ok((0..=count as usize).map(|j| lo + (hi - lo) * j as f64 / count).collect())
}

/// e^min(max(x, lo), hi) at about `scale`, before it is lifted.
///
/// # Errors
/// [`Error::Config`] if the range or the scale has no room in the ring, and as the engine.
pub async fn exp<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Reduced>,
    lo: f64,
    hi: f64,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    let n = x.len(e);
    let cuts = Cuts::new(&ends(lo, hi, x.scale())?, x.scale())?;
    let folded = fold(e, scope, x, &cuts, finest(scope)).await?;
    let r = folded.rest.within(HALF);
    let divisor = scope.bounds().divisor as f64;

    // The product of the quadratics is a factor near 30 of the fineness that the ring allows; what is left of
    // the divisor goes to the other factor.
    let quadratics = fineness(divisor);
    let least = QUADRATICS[0].2 * QUADRATICS[1].2;
    // It is no finer than can be lifted; an integer factor makes up for that in the end.
    let room = 0.9 * scope.bounds().lift as f64 / (exp_of(hi) * LEADING * (LINEAR + HALF));
    let steep = (scale * divisor * least / quadratics).min(room);
    let values: Vec<f64> = folded.centres.iter().map(|&c| exp_of(c) * LEADING).collect();
    // As fine as fits beside r; finer than the result only helps.
    let staircase = staircase(e, scope, &folded.bits, &values, steep * divisor / r.scale(), n)?;
    let shifted = r.add_public(e, scope, &[LINEAR])?;
    let [square, factor] = mul_all(e, scope, [(&r, &r), (&staircase, &shifted)]).await?;
    let mut halves = Vec::with_capacity(2);
    for (i, &(b, c, _, largest)) in QUADRATICS.iter().enumerate() {
        let times = (quadratic_scale(divisor, i) * divisor / square.scale()).round().max(1.0);
        let total = square.scale() * times;
        let linear = e.scale(r.integers(), (b * total / r.scale()).round() as i64);
        let v = e.scale(square.integers(), times as i64);
        let v = e.add(&v, &linear);
        let v = e.add_public(&v, &[(c * total).round() as i64]);
        halves.push(Number::<E, Full>::new(scope, v, total, largest)?);
    }
    let parts = [&halves[0], &halves[1], &factor];
    let parts = rescale_all(e, scope, parts.map(|p| (p, p.scale() / divisor))).await?;
    let [first, second, factor] = lift_all(e, scope, [&parts[0], &parts[1], &parts[2]]).await?;
    let product = first.mul(e, scope, &second).await?;
    let product = product.rescale(e, scope, quadratics / least).await?;
    let product = product.lift(e, scope).await?;
    let y = product.mul(e, scope, &factor).await?;
    // The factors' bounds are taken at different places.
    let y = y.within(exp_of(hi) * 1.01 + 2.0 / scale);
    y.rescale(e, scope, scale).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomial_is_within_its_error() {
        let mut worst = 0f64;
        let mut extremes = [(f64::MAX, 0f64); 2];
        for i in -10_000..=10_000 {
            let r = HALF * f64::from(i) / 10_000.0;
            let mut y = LEADING * (r + LINEAR);
            for (q, seen) in QUADRATICS.iter().zip(&mut extremes) {
                let value = r * r + q.0 * r + q.1;
                y *= value;
                *seen = (seen.0.min(value), seen.1.max(value));
            }
            worst = worst.max((y / r.exp() - 1.0).abs());
        }
        assert!(worst < 4.8e-5, "{worst}");
        for (q, seen) in QUADRATICS.iter().zip(extremes) {
            assert!(
                q.2 <= seen.0 && q.2 > seen.0 - 0.001 && q.3 >= seen.1 && q.3 < seen.1 + 0.001,
                "{seen:?}"
            );
        }
    }
}
