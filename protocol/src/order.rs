//! Which pairs are compared to put a list in order, and the order that follows.
//!
//! Only for lists that were shuffled: the order of different keys in a uniformly random order is itself uniformly
//! random, whatever the keys, so that opening it tells nothing (Hamada et al., ICISC 2012).

use crate::error::{Error, Result};
use crate::step::Step;

/// All pairs `(i, j)`, `i < j`, within each run of `group` out of `n`; the last run may be shorter.
///
/// # Errors
/// [`Error::Config`] if `group` is 0 or there are too many pairs.
pub fn pairs(group: usize, n: usize) -> Result<Vec<(u32, u32)>> {
    check(group, n)?;
    let of = |from: usize| {
        let to = (from + group).min(n) as u32;
        (from as u32..to).flat_map(move |i| (i + 1..to).map(move |j| (i, j)))
    };
    Ok((0..n).step_by(group).flat_map(of).collect())
}

/// How many [`pairs`] there are.
///
/// # Errors
/// As [`pairs`].
pub fn count(group: usize, n: usize) -> Result<usize> {
    check(group, n)?;
    let of = |n: usize| n * n.saturating_sub(1) / 2;
    let group = group.min(n.max(1));
    Ok(n / group * of(group) + of(n % group))
}

fn check(group: usize, n: usize) -> Result<()> {
    if group == 0 || n > 1 << 20 || n.saturating_mul(group) > 1 << 26 {
        return Err(Error::Config(format!("an order of {n} keys in groups of {group}")));
    }
    Ok(())
}

/// The indices of each group by descending key. Bit `i` of `smaller` (bit `i % 64` of word `i / 64`) says that
/// the first of the `i`-th of [`pairs`] is smaller than the second.
///
/// # Errors
/// [`Error::Peer`] if no order has these bits, [`Error::Config`] as [`pairs`].
pub fn descending(step: Step, group: usize, n: usize, smaller: &[u64]) -> Result<Vec<u32>> {
    let mut above = vec![0; n];
    for (bit, (i, j)) in pairs(group, n)?.into_iter().enumerate() {
        let first_is_smaller = smaller.get(bit / 64).is_some_and(|w| w >> (bit % 64) & 1 == 1);
        above[if first_is_smaller { i } else { j } as usize] += 1;
    }
    let mut order = vec![u32::MAX; n];
    for (i, above) in above.into_iter().enumerate() {
        let slot = &mut order[i / group * group + above];
        if *slot != u32::MAX {
            return Err(Error::Peer {
                step,
                expected: "the signs of an order".into(),
                found: "a cycle".into(),
            });
        }
        *slot = i as u32;
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{AT, numbers};

    fn bits(group: usize, keys: &[i64]) -> Vec<u64> {
        let pairs = pairs(group, keys.len()).unwrap();
        let mut bits = vec![0u64; pairs.len().div_ceil(64)];
        for (bit, (i, j)) in pairs.into_iter().enumerate() {
            bits[bit / 64] |= u64::from(keys[i as usize] < keys[j as usize]) << (bit % 64);
        }
        bits
    }

    #[test]
    fn every_group_is_put_in_order() {
        for (group, n) in [(1, 3), (2, 2), (3, 7), (5, 5), (9, 4), (40, 100), (7, 0)] {
            let mut keys = numbers(3, n, 1 << 40);
            keys.iter_mut().enumerate().for_each(|(i, k)| *k = *k * 128 + i as i64);
            let mut want: Vec<u32> = (0..n as u32).collect();
            for part in want.chunks_mut(group) {
                part.sort_by_key(|&i| std::cmp::Reverse(keys[i as usize]));
            }
            assert_eq!(descending(AT, group, n, &bits(group, &keys)), Ok(want), "{n} in groups of {group}");
        }
    }

    #[test]
    fn signs_of_no_order_are_refused() {
        // 0 < 1, 1 < 2, 2 < 0: pairs are (0, 1), (0, 2), (1, 2).
        for (bits, good) in [(0b101, false), (0b010, false), (0b111, true), (0, true), (0b001, true)] {
            let got = descending(AT, 3, 3, &[bits]);
            assert_eq!(got.is_ok(), good, "{bits:b}");
            assert!(good || matches!(got, Err(Error::Peer { .. })));
        }
        // Any one bit of four keys that are not neighbours breaks the order.
        let keys = [4, 3, 2, 1];
        for (bit, (i, j)) in pairs(4, 4).unwrap().into_iter().enumerate() {
            let mut bits = bits(4, &keys);
            bits[0] ^= 1 << bit;
            assert_eq!(descending(AT, 4, 4, &bits).is_ok(), j == i + 1, "{i} and {j}");
        }
    }

    #[test]
    fn too_many_pairs_are_refused() {
        for (group, n) in [(0, 4), (1, (1 << 20) + 1), (1 << 7, 1 << 20), (usize::MAX, 2)] {
            assert!(matches!(pairs(group, n), Err(Error::Config(_))), "{n} in groups of {group}");
        }
        assert_eq!(pairs(2, 5).unwrap(), [(0, 1), (2, 3)]);
        for (group, n) in (1..9).flat_map(|g| (0..30).map(move |n| (g, n))) {
            assert_eq!(count(group, n), pairs(group, n).map(|p| p.len()), "{n} in groups of {group}");
        }
    }
}
