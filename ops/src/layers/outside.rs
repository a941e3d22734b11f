//! How many numbers left the range in which they are to be trusted.

use sharelens_protocol::ring::{Full, Reduced};
use sharelens_protocol::{Result, Step};

use super::Calls;
use crate::ZERO;
use crate::engine::Engine;

/// For each part, how many of its numbers are outside `[-quarter, quarter)`, by one comparison for all of them: `[parts]`.
/// A count stays secret like any other number.
pub async fn outside<E: Engine>(
    e: &mut E,
    at: Step,
    parts: &[&E::V<Reduced>],
    quarter: i64,
) -> Result<E::V<Full>> {
    let lengths: Vec<usize> = parts.iter().map(|part| e.len(*part)).collect();
    let all =
        e.gather_by(parts, lengths.iter().sum(), || (0..lengths.iter().sum::<usize>() as u32).collect());
    let bits = e.is_outside(Calls::new(at).step(), &all, quarter).await?;
    let mut sums = Vec::new();
    let mut start = 0;
    for mut len in lengths {
        let from = start;
        let mut rest = e.gather_by(&[&bits], len, || (from as u32..(from + len) as u32).collect());
        start += len;
        while len > 1 {
            let half = len.div_ceil(2);
            let low = e.gather_by(&[&rest], half, || (0..half as u32).collect());
            let other = |i: usize| if half + i < len { (half + i) as u32 } else { ZERO };
            let high = e.gather_by(&[&rest], half, || (0..half).map(other).collect());
            (rest, len) = (e.add(&low, &high), half);
        }
        sums.push(rest);
    }
    let sums: Vec<&E::V<Full>> = sums.iter().collect();
    Ok(e.gather_by(&sums, sums.len(), || (0..sums.len() as u32).collect()))
}
