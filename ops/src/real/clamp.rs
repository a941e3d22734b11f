//! Bounds on a number: clamp, and the larger or smaller of two.
//!
//! Functionality  [x] to [min(max(x, lo), hi)]; [a], [b] to [max(a, b)], [min(a, b)].
//! Range          |x| + |lo|, |x| + |hi| and |a - b| below P/2 in integers, which planning checks.
//! Error          none, beyond the rounding of `lo` and `hi` to the scale of x.
//! Cost           one ReLU over 2n elements (clamp) or 3n (max, min): [`ROUNDS`].
//! Source         lo + relu(x - lo) - relu(x - hi).

use sharelens_protocol::Result;
use sharelens_protocol::ring::{Full, Reduced};

use super::check_range;
use crate::engine::Engine;
use crate::layers::split;
use crate::number::{Number, Scope};

/// Rounds of each function here.
pub const ROUNDS: u64 = super::SIGN;

/// min(max(x, lo), hi), in the larger range.
///
/// # Errors
/// [`sharelens_protocol::Error::Config`] if lo >= hi or a difference leaves the range, and as the engine.
pub async fn clamp<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Reduced>,
    lo: f64,
    hi: f64,
) -> Result<Number<E, Full>> {
    check_range(lo, hi, x.scale())?;
    let n = x.len(e);
    let above = x.add_public(e, scope, &[-lo])?;
    let beyond = x.add_public(e, scope, &[-hi])?;
    let both = Number::join(e, &[&above, &beyond])?;
    let both = both.relu(e, scope).await?;
    let [above, beyond] = split(e, both.integers(), [n, n]);
    let inside = e.sub(&above, &beyond);
    let inside = e.add_public(&inside, &[(lo * x.scale()).round() as i64]);
    Number::new(scope, inside, x.scale(), lo.abs().max(hi.abs()) + 0.5 / x.scale())
}

/// max(a, b), in the larger range, as relu(a - b) + relu(b) - relu(-b): ReLUs of 3n elements and no round for
/// a lift of b. Scales must agree.
///
/// # Errors
/// As [`clamp`], and if the scales differ.
pub async fn max<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    a: &Number<E, Reduced>,
    b: &Number<E, Reduced>,
) -> Result<Number<E, Full>> {
    let n = a.len(e);
    let rise = a.sub(e, scope, b)?;
    let negative = b.times(e, scope, -1)?;
    let all = Number::join(e, &[&rise, b, &negative])?;
    let all = all.relu(e, scope).await?;
    let [rise, plus, minus] = split(e, all.integers(), [n; 3]);
    let b_full = e.sub(&plus, &minus);
    let v = e.add(&b_full, &rise);
    Number::new(scope, v, a.scale(), a.bound().max(b.bound()))
}

/// min(a, b), as [`max`].
///
/// # Errors
/// As [`max`].
pub async fn min<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    a: &Number<E, Reduced>,
    b: &Number<E, Reduced>,
) -> Result<Number<E, Full>> {
    let (a, b) = (a.times(e, scope, -1)?, b.times(e, scope, -1)?);
    let largest = max(e, scope, &a, &b).await?;
    largest.times(e, scope, -1)
}
