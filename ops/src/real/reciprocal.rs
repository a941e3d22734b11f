//! Reciprocal and division.
//!
//! Functionality  [x] to [1/x]; [a], [b] to [a/b].
//! Range          lo <= x <= hi, both positive, hi/lo up to what integers at the scale of x resolve.
//! Error          relative 1e-4 plus 2 units of the scale of the result, for Q of at least 2^20; relative 3e-4
//!                plus 2 units for smaller Q, including Z_2^64. Measured over the whole range
//!                (`ops/tests/real.rs`). The polynomial's share is below 6e-5, proved by the formula below.
//!                A quotient adds 2 |a| units of its reciprocal, whose scale is the quotient's times
//!                Q / scale(a).
//! Cost           [`ROUNDS`]: T = ceil(ln(hi/lo)/0.29) - 1 signs, products n, 2n, n, lifts n, 2n.
//!                A quotient: [`DIVIDE_ROUNDS`], one lift and one product more.
//! Source         derived here. With x p = 1 - d, |d| <= e, V = e^2: 1/x = p/(1 - d), and
//!                A p (1 + d)(1 - V + d^2) with A = 8/(8 - 8V + V^2) has the relative error
//!                T_4(d/e)/T_4(1/e) for the Chebyshev polynomial T_4 - the least that degree 3 can have - below
//!                V^2/(8 - 8V + V^2).

use sharelens_protocol::Result;
use sharelens_protocol::ring::{Full, Reduced};

use super::normalise;
use super::normalise::Cubic;
use crate::engine::Engine;
use crate::number::{Number, Scope};

/// Rounds: the normalisation, two products and a lift.
pub const ROUNDS: u64 = super::normalise::ROUNDS + Cubic::ROUNDS;

/// Rounds of a quotient: the reciprocal, its lift, a product.
pub const DIVIDE_ROUNDS: u64 = ROUNDS + 2;

/// e, for a relative error of 5.8e-5.
const REACH: f64 = 0.146;

/// 1/x at about `scale`, before it is lifted.
///
/// # Errors
/// [`sharelens_protocol::Error::Config`] if the range or the scale has no room in the ring, and as the engine.
pub async fn reciprocal<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Full>,
    lo: f64,
    hi: f64,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    let v = REACH * REACH;
    let cubic = Cubic { lead: 8.0 / (8.0 - 8.0 * v + v * v), a: 1.0, sign: 1, b: 0.0, c: 1.0 - v };
    let normal = normalise(e, scope, x, lo, hi, REACH).await?;
    normal.cubic(e, scope, &cubic, |p| p, 1.01 / lo + 2.0 / scale, scale).await
}

/// a/b at about `scale`, for b in [lo, hi] and |a/b| <= `largest`.
///
/// # Errors
/// As [`reciprocal`].
pub async fn divide<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    a: &Number<E, Full>,
    b: &Number<E, Full>,
    [lo, hi]: [f64; 2],
    scale: f64,
) -> Result<Number<E, Reduced>> {
    // As fine as the product with a allows.
    let divisor = scope.bounds().divisor as f64;
    let room = 0.9 * lo * scope.bounds().lift as f64;
    let finest = (scale * divisor / a.scale()).min(room).max(1.0);
    let inverse = reciprocal(e, scope, b, lo, hi, finest).await?;
    let inverse = inverse.lift(e, scope).await?;
    let y = a.mul(e, scope, &inverse).await?;
    y.rescale(e, scope, scale).await
}
