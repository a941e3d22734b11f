//! Bits: comparisons with zero, choice, and what groups of bits say together.
//!
//! Functionality  bits are 0 or 1 at scale 1, in the larger range. All results are exact.
//! Range          |x| and |a - b| below P/2 in integers; groups of fewer than P/2.
//! Cost           [`SIGN`](super::SIGN) rounds for a sign (n elements; 2n for equality; one element a group
//!                for any and all), one for a choice. The rest is local.
//! Source         x = 0 unless x < 0 or -x < 0; a sum of bits against a public number.

use sharelens_protocol::ring::{Full, Reduced};
use sharelens_protocol::{Error, Result};

use crate::engine::Engine;
use crate::layers::{prefix_sums, split};
use crate::number::{Number, Scope};

/// 1 - bit. Local.
///
/// # Errors
/// As [`Number::new`].
pub fn not<E: Engine>(e: &mut E, scope: &Scope, bit: &Number<E, Full>) -> Result<Number<E, Full>> {
    let v = e.scale(bit.integers(), -1);
    let v = e.add_public(&v, &[1]);
    Number::new(scope, v, 1.0, 1.0)
}

/// 1 where x = 0 in integers.
///
/// # Errors
/// As the engine.
pub async fn is_zero<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Reduced>,
) -> Result<Number<E, Full>> {
    let n = x.len(e);
    let negated = x.times(e, scope, -1)?;
    let both = Number::join(e, &[x, &negated])?;
    let both = both.is_negative(e, scope).await?;
    let [below, above] = split(e, both.integers(), [n, n]);
    let either = e.add(&below, &above);
    let either = Number::new(scope, either, 1.0, 1.0)?;
    not(e, scope, &either)
}

/// 1 where a = b in integers. Scales must agree.
///
/// # Errors
/// If the scales differ, and as the engine.
pub async fn equal<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    a: &Number<E, Reduced>,
    b: &Number<E, Reduced>,
) -> Result<Number<E, Full>> {
    let difference = a.sub(e, scope, b)?;
    is_zero(e, scope, &difference).await
}

/// `a` where the bit is 1, `b` where it is 0, as b + bit (a - b). Scales must agree. One round.
///
/// # Errors
/// If the scales differ, and as the engine.
pub async fn select<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    bit: &Number<E, Full>,
    a: &Number<E, Full>,
    b: &Number<E, Full>,
) -> Result<Number<E, Full>> {
    let gap = a.sub(e, scope, b)?;
    let part = bit.mul(e, scope, &gap).await?;
    let v = e.add(part.integers(), b.integers());
    Number::new(scope, v, a.scale(), a.bound().max(b.bound()))
}

/// Running sums of each run of `group`: entry i is x_0 + ... + x_i. Local.
///
/// # Errors
/// If x is not made of such runs, or a sum may leave the range.
pub fn prefix_sum<E: Engine>(
    e: &mut E,
    scope: &Scope,
    x: &Number<E, Full>,
    group: usize,
) -> Result<Number<E, Full>> {
    let n = x.len(e);
    groups(n, group)?;
    let v = prefix_sums(e, x.integers(), group);
    Number::new(scope, v, x.scale(), x.bound() * group as f64)
}

/// 1 for each run of `group` bits of which at least one is 1.
///
/// # Errors
/// If the bits are not made of such runs, and as the engine.
pub async fn any<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    bits: &Number<E, Full>,
    group: usize,
) -> Result<Number<E, Full>> {
    at_least(e, scope, bits, group, 1).await
}

/// 1 for each run of `group` bits that are all 1.
///
/// # Errors
/// As [`any`].
pub async fn all<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    bits: &Number<E, Full>,
    group: usize,
) -> Result<Number<E, Full>> {
    at_least(e, scope, bits, group, group).await
}

/// 1 for each run of `group` bits of which at least `least` are 1.
///
/// # Errors
/// As [`any`].
pub async fn at_least<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    bits: &Number<E, Full>,
    group: usize,
    least: usize,
) -> Result<Number<E, Full>> {
    let groups = groups(bits.len(e), group)?;
    let sums = prefix_sum(e, scope, bits, group)?;
    let last: Vec<u32> = (0..groups).map(|g| ((g + 1) * group - 1) as u32).collect();
    let sums = sums.gather(e, &last).reduce(e, scope)?;
    let sums = sums.add_public(e, scope, &[-(least as f64)])?;
    let fewer = sums.is_negative(e, scope).await?;
    not(e, scope, &fewer)
}

fn groups(n: usize, group: usize) -> Result<usize> {
    if group == 0 || !n.is_multiple_of(group) {
        return Err(Error::Config(format!("{n} numbers are not runs of {group}")));
    }
    Ok(n / group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain::{Bounds, Plain, Values};
    use futures::executor::block_on;
    use sharelens_protocol::Step;
    use std::sync::Arc;

    const X: [i64; 12] = [0, -1, 1, 0, 0, 5, -5, 0, 1, 1, 1, 1];

    fn engine() -> (Plain, Scope) {
        let bounds = Bounds::rns(&[255, 253, 251, 239], &[247, 241]).expect("fits 64 bits");
        (Plain::new(bounds, Arc::default()), Scope::new(Step::layer(1), bounds))
    }

    fn bits(scope: &Scope, v: &[i64]) -> Number<Plain, Full> {
        Number::new(scope, Values::from(v.to_vec()), 1.0, 1.0).expect("in range")
    }

    #[test]
    fn zeros_and_equals() {
        let (mut e, mut scope) = engine();
        let x = Number::<Plain, Reduced>::new(&scope, X.to_vec().into(), 8.0, 1.0).expect("in range");
        let got = block_on(is_zero(&mut e, &mut scope, &x)).expect("in range");
        assert_eq!(got.integers().as_slice(), X.map(|x| i64::from(x == 0)));
        let y: Vec<i64> = X.iter().map(|x| x * x).collect();
        let y = Number::new(&scope, y.into(), 8.0, 4.0).expect("in range");
        let got = block_on(equal(&mut e, &mut scope, &x, &y)).expect("in range");
        assert_eq!(got.integers().as_slice(), X.map(|x| i64::from(x == x * x)));
    }

    #[test]
    fn groups_of_bits() {
        let (mut e, mut scope) = engine();
        let v = [0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 1];
        let b = bits(&scope, &v);
        let got = block_on(any(&mut e, &mut scope, &b, 4)).expect("in range");
        assert_eq!(got.integers().as_slice(), [0, 1, 1]);
        let got = block_on(all(&mut e, &mut scope, &b, 4)).expect("in range");
        assert_eq!(got.integers().as_slice(), [0, 0, 1]);
        let got = block_on(at_least(&mut e, &mut scope, &b, 4, 3)).expect("in range");
        assert_eq!(got.integers().as_slice(), [0, 0, 1]);
        let got = prefix_sum(&mut e, &scope, &b, 6).expect("in range");
        assert_eq!(got.integers().as_slice(), [0, 0, 0, 0, 0, 1, 1, 1, 2, 3, 4, 5]);
        assert!(prefix_sum(&mut e, &scope, &b, 5).is_err());
    }

    #[test]
    fn selection() {
        let (mut e, mut scope) = engine();
        let b = bits(&scope, &[1, 0, 1]);
        let of =
            |v: [i64; 3]| Number::<Plain, Full>::new(&scope, v.to_vec().into(), 16.0, 8.0).expect("fits");
        let (x, y) = (of([7, 8, -9]), of([-70, 80, 90]));
        let got = block_on(select(&mut e, &mut scope, &b, &x, &y)).expect("in range");
        assert_eq!(got.integers().as_slice(), [7, 80, -9]);
        let got = not(&mut e, &scope, &b).expect("in range");
        assert_eq!(got.integers().as_slice(), [0, 1, 0]);
    }
}
