//! The natural logarithm.
//!
//! Functionality  [x] to [ln x].
//! Range          lo <= x <= hi, both positive.
//! Error          absolute 1e-4 plus 2 units of the scale of the result for Q of at least 2^20, 4e-4 plus 2
//!                units for smaller Q, including Z_2^64. Measured over the whole range (`ops/tests/real.rs`).
//!                The polynomial's share is 7.8e-5, proved by the test below.
//! Cost           [`ROUNDS`]: T = ceil(ln(hi/lo)/0.447) - 1 signs, three products of n, lifts of n and 2n.
//! Source         x p = 1 - d, so ln x = ln(1 - d) - ln p; ln(1 - d) is the cubic with the least error for
//!                |d| <= 0.22, as c0 + c1 d + d^2 (c2 + c3 d); -ln p is a sum of bits with public factors.

use sharelens_protocol::Result;
use sharelens_protocol::ring::{Full, Reduced};

use super::{fineness, lift_all, ln_of, normalise, rescale_all};
use crate::engine::Engine;
use crate::number::{Number, Scope};

/// Rounds: the normalisation, two products and a lift.
pub const ROUNDS: u64 = super::normalise::ROUNDS + 3;

/// Largest |d|.
const REACH: f64 = 0.22;
/// c0 to c3.
const COEFFICIENTS: [f64; 4] = [7.630_029_3e-5, -0.999_751_958, -0.512_479_958, -0.348_485_941];

/// ln x at about `scale`, before it is lifted.
///
/// # Errors
/// [`sharelens_protocol::Error::Config`] if the range or the scale has no room in the ring, and as the engine.
pub async fn log<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Full>,
    lo: f64,
    hi: f64,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    let divisor = scope.bounds().divisor as f64;
    let normal = normalise(e, scope, x, lo, hi, REACH).await?;
    let d = &normal.rest;
    let [c0, c1, c2, c3] = COEFFICIENTS;
    let total = scale * divisor;
    let fine = total.sqrt().min(2.0 * fineness(divisor));
    let square = d.mul(e, scope, d).await?.within(d.bound() * d.bound());
    // c2 + c3 d, as fine as the product with d^2 at the wanted scale allows.
    let times = (fine * divisor / square.scale()).round().max(1.0);
    let square_scale = square.scale() * times / divisor;
    let before = total / square_scale * divisor;
    let inner = e.scale(d.integers(), (c3 * before / d.scale()).round() as i64);
    let inner = e.add_public(&inner, &[(c2 * before).round() as i64]);
    let inner = Number::new(scope, inner, before, c2.abs() + c3.abs() * d.bound())?;
    let parts = [(&square, square_scale), (&inner, before / divisor)];
    let [square, inner] = rescale_all(e, scope, parts).await?;
    let [square, inner] = lift_all(e, scope, [&square, &inner]).await?;
    let curved = square.mul(e, scope, &inner).await?;
    let straight = e.scale(d.integers(), (c1 * total / d.scale()).round() as i64);
    let power = normal.of_power(e, scope, total, |p| c0 - ln_of(p))?;
    let v = e.add(curved.integers(), &straight);
    let v = e.add(&v, power.integers());
    let largest = ln_of(lo).abs().max(ln_of(hi).abs()) + 0.01;
    Number::new(scope, v, total, largest)?.rescale(e, scope, scale).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomial_is_within_its_error() {
        let [c0, c1, c2, c3] = COEFFICIENTS;
        for i in -1000..=1000 {
            let d = REACH * f64::from(i) / 1000.0;
            let y = c0 + c1 * d + d * d * (c2 + c3 * d);
            assert!((y - (1.0 - d).ln()).abs() < 7.8e-5, "{d}");
        }
    }
}
