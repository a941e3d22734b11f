//! Piecewise linear functions of one variable, beyond ReLU itself.

use sharelens_protocol::ring::{Full, Reduced};
use sharelens_protocol::{Result, Step};

use super::{Calls, join, range};
use crate::engine::Engine;

/// min(max(x, lo), hi) for public integers `lo <= hi`, either of them optional, as
/// lo + relu(x - lo) - relu(x - hi): one batched ReLU over `2n` elements, or `n` for one bound.
/// Needs |x| + |bound| < P/2.
pub async fn clip<E: Engine>(
    e: &mut E,
    at: Step,
    x: &E::V<Reduced>,
    lo: Option<i64>,
    hi: Option<i64>,
) -> Result<E::V<Full>> {
    let n = e.len(x);
    let step = Calls::new(at).step();
    match (lo, hi) {
        (None, None) => e.lift(step, x).await,
        (Some(lo), None) => {
            let above = e.add_public(x, &[-lo]);
            let above = e.relu(step, &above).await?;
            Ok(e.add_public(&above, &[lo]))
        }
        (None, Some(hi)) => {
            // min(x, hi) = hi - relu(hi - x).
            let below = e.scale(x, -1);
            let below = e.add_public(&below, &[hi]);
            let below = e.relu(step, &below).await?;
            let negated = e.scale(&below, -1);
            Ok(e.add_public(&negated, &[hi]))
        }
        (Some(lo), Some(hi)) => {
            let above = e.add_public(x, &[-lo]);
            let beyond = e.add_public(x, &[-hi]);
            let both = join(e, &[&above, &beyond]);
            let both = e.relu(step, &both).await?;
            let (above, beyond) = (range(e, &both, 0, n), range(e, &both, n, 2 * n));
            let inside = e.sub(&above, &beyond);
            Ok(e.add_public(&inside, &[lo]))
        }
    }
}

/// x where x >= 0 and `negative * x / one` elsewhere: slopes at scale `one` (the divisor of a rescale), then
/// the rescale that removes it.
pub async fn leaky_relu<E: Engine>(
    e: &mut E,
    at: Step,
    x: &E::V<Reduced>,
    one: i64,
    negative: i64,
) -> Result<E::V<Reduced>> {
    let mut calls = Calls::new(at);
    let sloped = e.slopes(calls.step(), x, one, negative).await?;
    e.rescale(calls.step(), &sloped).await
}

/// relu(x) and relu(-x) side by side, `[rows, 2 * channels]` with the pair of a channel adjacent, ready for a
/// grouped linear map with weights (1, -slope): that is PReLU with secret slopes. One batched ReLU.
pub async fn halves<E: Engine>(e: &mut E, at: Step, x: &E::V<Reduced>) -> Result<E::V<Full>> {
    let n = e.len(x) as u32;
    let negated = e.scale(x, -1);
    let pairs = e.gather_by(&[x, &negated], 2 * n as usize, || (0..n).flat_map(|i| [i, n + i]).collect());
    e.relu(Calls::new(at).step(), &pairs).await
}

#[cfg(test)]
mod tests {
    use super::super::tests::{plain, reduced};
    use super::*;
    use futures::executor::block_on;

    const X: [i64; 7] = [-900, -101, -5, 0, 5, 99, 1234];

    #[test]
    fn clip_on_either_side() {
        for (lo, hi) in
            [(None, None), (Some(-100), None), (None, Some(60)), (Some(-6), Some(6)), (Some(0), Some(7))]
        {
            let mut e = plain();
            let out = block_on(clip(&mut e, Step::layer(1), &reduced(&X), lo, hi)).expect("in range");
            let expected: Vec<i64> =
                X.iter().map(|&x| x.max(lo.unwrap_or(i64::MIN)).min(hi.unwrap_or(i64::MAX))).collect();
            assert_eq!(out.as_slice(), expected, "{lo:?} {hi:?}");
        }
    }

    #[test]
    fn leaky_slope_is_exact_to_a_unit() {
        let mut e = plain();
        let one = 247 * 241;
        let out =
            block_on(leaky_relu(&mut e, Step::layer(1), &reduced(&X), one, one / 10)).expect("in range");
        assert_eq!(out.as_slice(), [-90, -10, 0, 0, 5, 99, 1234]);
    }

    #[test]
    fn halves_stand_side_by_side() {
        let out = block_on(halves(&mut plain(), Step::layer(1), &reduced(&[3, -4, 0]))).expect("in range");
        assert_eq!(out.as_slice(), [3, 0, 0, 4, 0, 0]);
    }
}
