//! Which of a few public pieces of the line a secret number lies in, and where in it.
//!
//! Functionality  [x] to [r] = c - c_j with c = min(max(x, lo), hi) and c_j the middle of its piece j, and to
//!                the bits [x >= t_i] for the start t_i of each piece but the first.
//! Range          |x| + |lo|, |x| + |hi| below P/2 in integers.
//! Error          none; see [`fold`] for arguments too fine for what follows.
//! Cost           one call for ReLU and sign of (2 + T) n elements for T + 1 pieces.
//! Source         c = lo + relu(x - lo) - relu(x - hi) and [x >= t] = 1 - [x - t < 0]: one call that yields both makes one
//!                batch of comparisons of them.

use sharelens_protocol::ring::{Full, Reduced};
use sharelens_protocol::{Error, Result};

use super::stairs;
use crate::engine::Engine;
use crate::layers::range;
use crate::number::{Number, Scope};

/// Where a range is cut, in integers at the scale of the argument.
#[derive(Debug)]
pub(super) struct Cuts {
    /// Start of each piece, then the end of the last.
    ends: Vec<i64>,
    centres: Vec<i64>,
}

impl Cuts {
    /// From ends in ascending order, at least two.
    pub(super) fn new(ends: &[f64], scale: f64) -> Result<Self> {
        let largest = ends.iter().fold(0f64, |a, e| a.max(e.abs()));
        let ends: Vec<i64> = ends.iter().map(|e| (e * scale).round() as i64).collect();
        if largest * scale > 1e15 || ends.windows(2).any(|w| w[0] >= w[1]) {
            return Err(Error::Config(format!("a function cannot be cut in pieces at scale {scale:.1}")));
        }
        let centres = ends.windows(2).map(|w| w[0].midpoint(w[1])).collect();
        Ok(Self { ends, centres })
    }
}

/// What [`fold`] yields.
pub(super) struct Folded<E: Engine> {
    /// r.
    pub(super) rest: Number<E, Full>,
    /// One for each piece but the first.
    pub(super) bits: Vec<E::V<Full>>,
    /// c_j, exactly.
    pub(super) centres: Vec<f64>,
    /// max(x - hi, 0).
    pub(super) beyond: Number<E, Full>,
}

/// r and the bits. Where the scale of x is above `finest`, r is brought there, which takes a lift and makes it
/// wrong by one unit of that scale.
pub(super) async fn fold<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Reduced>,
    cuts: &Cuts,
    finest: f64,
) -> Result<Folded<E>> {
    let n = x.len(e);
    let (first, inner, last) = match cuts.ends.as_slice() {
        [first, inner @ .., last] => (*first, inner, *last),
        _ => return Err(Error::Config("a function on no pieces".into())),
    };
    // Refuses what would leave the range below.
    let farthest = first.abs().max(last.abs()) as f64 + 1.0;
    x.add_public(e, scope, &[farthest / x.scale()])?;
    let starts = [first, last].into_iter().chain(inner.iter().copied());
    let mut parts = Vec::with_capacity(2 + inner.len());
    for at in starts {
        parts.push(e.add_public(x.integers(), &[-at]));
    }
    let all = crate::layers::join(e, &parts.iter().collect::<Vec<_>>());
    let (all, signs) = e.relu_and_sign(scope.step(), &all).await?;
    let part = |e: &mut E, of: &E::V<Full>, i: usize| range(e, of, i * n, (i + 1) * n);
    let (above, beyond) = (part(e, &all, 0), part(e, &all, 1));
    let clamped = e.sub(&above, &beyond);
    let mut bits = Vec::with_capacity(inner.len());
    for j in 0..inner.len() {
        let below = part(e, &signs, 2 + j);
        let below = e.scale(&below, -1);
        bits.push(e.add_public(&below, &[1]));
    }
    let centre = stairs(e, &bits, &cuts.centres, n);
    let r = e.sub(&clamped, &centre);
    let r = e.add_public(&r, &[first]);
    let widest = cuts.ends.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
    let rest = Number::new(scope, r, x.scale(), (widest / 2 + 1) as f64 / x.scale())?;
    let rest = if x.scale() > finest {
        let coarse = rest.rescale(e, scope, finest).await?;
        coarse.lift(e, scope).await?
    } else {
        rest
    };
    let centres = cuts.centres.iter().map(|&c| c as f64 / x.scale()).collect();
    let beyond = Number::new(scope, beyond, x.scale(), x.bound() + farthest / x.scale())?;
    Ok(Folded { rest, bits, centres, beyond })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain::{Bounds, Plain};
    use futures::executor::block_on;
    use sharelens_protocol::Step;
    use std::sync::Arc;

    #[test]
    fn every_integer_falls_in_its_piece() {
        let bounds = Bounds::rns(&[255, 253, 251, 239], &[247, 241]).expect("fits 64 bits");
        let mut e = Plain::new(bounds, Arc::default());
        let mut scope = Scope::new(Step::layer(1), bounds);
        let x: Vec<i64> = (-500..500).collect();
        let number = Number::new(&scope, x.clone().into(), 100.0, 5.0).expect("in range");
        let cuts = Cuts::new(&[-3.0, -1.0, 0.55, 4.0], 100.0).expect("ascends");
        let out = block_on(fold(&mut e, &mut scope, &number, &cuts, 1e9)).expect("in range");
        for (i, &x) in x.iter().enumerate() {
            let piece = [-100, 55].iter().filter(|&&t| x >= t).count();
            let bits: usize = out.bits.iter().map(|b| b.as_slice()[i] as usize).sum();
            assert_eq!(bits, piece, "{x}");
            assert_eq!(
                out.rest.integers().as_slice()[i],
                x.clamp(-300, 400) - [-200, -22, 227][piece],
                "{x}"
            );
        }
        assert!(Cuts::new(&[0.0, 0.001, 1.0], 100.0).is_err(), "an empty piece");
    }
}
