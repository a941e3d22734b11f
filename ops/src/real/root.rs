//! Square root and its reciprocal.
//!
//! Functionality  [x] to [x^(1/2)], [x] to [x^(-1/2)].
//! Range          lo <= x <= hi, both positive.
//! Error          relative 1e-4 plus 2 units of the scale of the result for Q of at least 2^20, relative 4e-4
//!                plus 2 units for smaller Q, including Z_2^64. Measured over the whole range
//!                (`ops/tests/real.rs`). The polynomial's share is below 5.8e-5, proved by the test below.
//! Cost           [`ROUNDS`]: T signs, products n, 2n, n, lifts n, 2n; T = ceil(ln(hi/lo)/0.61) - 1 for the
//!                root, ceil(ln(hi/lo)/0.40) - 1 for its reciprocal.
//! Source         x p = 1 - d, so the root is p^(-1/2) (1 - d)^(1/2), and its reciprocal p^(1/2) (1 - d)^(-1/2);
//!                the powers of 1 - d are the cubics with the least relative error, as products.

use sharelens_protocol::Result;
use sharelens_protocol::ring::{Full, Reduced};

use super::normalise;
use super::normalise::Cubic;
use crate::engine::Engine;
use crate::number::{Number, Scope};

/// Rounds of either function: the normalisation, two products and a lift.
pub const ROUNDS: u64 = super::normalise::ROUNDS + Cubic::ROUNDS;

/// (1 - d)^(1/2) for |d| <= the number beside it.
const ROOT: (Cubic, f64) =
    (Cubic { lead: 0.067_441_484, a: 1.286_913_306, sign: -1, b: 3.194_714_731, c: 11.522_362_880 }, 0.3);
/// (1 - d)^(-1/2), in the same way.
const INVERSE: (Cubic, f64) =
    (Cubic { lead: 0.324_968_422, a: 1.514_511_183, sign: 1, b: -0.325_827_223, c: 2.031_709_494 }, 0.2);

/// x^(1/2) at about `scale`, before it is lifted.
///
/// # Errors
/// [`sharelens_protocol::Error::Config`] if the range or the scale has no room in the ring, and as the engine.
pub async fn sqrt<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Full>,
    lo: f64,
    hi: f64,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    let normal = normalise(e, scope, x, lo, hi, ROOT.1).await?;
    let largest = 1.01 * hi.sqrt() + 2.0 / scale;
    normal.cubic(e, scope, &ROOT.0, |p| 1.0 / p.sqrt(), largest, scale).await
}

/// x^(-1/2) at about `scale`, before it is lifted.
///
/// # Errors
/// As [`sqrt`].
pub async fn rsqrt<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Full>,
    lo: f64,
    hi: f64,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    let normal = normalise(e, scope, x, lo, hi, INVERSE.1).await?;
    let largest = 1.01 / lo.sqrt() + 2.0 / scale;
    normal.cubic(e, scope, &INVERSE.0, f64::sqrt, largest, scale).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_are_within_their_error() {
        for ((f, reach), power) in [(&ROOT, 0.5), (&INVERSE, -0.5)] {
            for i in -1000..=1000 {
                let d = reach * f64::from(i) / 1000.0;
                let y = f.lead * (f.a + f.sign as f64 * d) * (d * d + f.b * d + f.c);
                assert!((y / (1.0 - d).powf(power) - 1.0).abs() < 5.8e-5, "{d} to {power}");
            }
        }
    }
}
