//! The best of a list, in order: shuffle, then compare in the open.
//!
//! Functionality  from rows and their keys deliver the `k` rows with the largest keys, in order; reveals nothing.
//! Security       the order of a list that was shuffled by a uniform permutation is a uniform permutation,
//!                whatever the keys are, so opening comparisons shows nothing. That needs keys that are all
//!                different and whose differences do not wrap, for every word a peer may have shared: see [`Keys`].
//!                Which rows are compared depends on orders opened before, so only on that permutation; so does
//!                whether the run ends with an error.
//! Cost           2 rounds for the shuffle, 4 for each level and 4 for the last order; before that 5 for the keys.
//!
//! Comparing all pairs of a long list is dear. Levels first keep the best of each group: a group of g of n
//! shuffled rows holds more than `keep` of the best `k` with a probability below 2^-40 over all groups
//! (hypergeometric tail, exact). When it may have happened, which is seen in the open, the run ends with an error.

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::{Full, Reduced};
use sharelens_protocol::{Error, Result};

use super::rows;
use crate::engine::Engine;
use crate::layers::zeros;
use crate::number::{Number, Scope};
use crate::opened::{Keyed, Keys, ShuffledKeys};

/// One pass over the list: groups of `group` rows, of which the best `keep` stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Level {
    /// Rows compared with each other.
    pub group: usize,
    /// Rows that stay.
    pub keep: usize,
}

/// Probability, as a power of two, that a level loses one of the best.
const FAILURE: f64 = -41.0;
/// What four rounds are worth, in comparisons.
const LEVEL_COST: u64 = 40_000;
/// Longest list that is put in order.
pub const MAX_ROWS: usize = 1 << 18;

/// The levels that find the best `k` of `n` with the fewest comparisons.
pub fn levels(n: usize, k: usize) -> Vec<Level> {
    let pairs = |n: usize, g: usize| (n as u64) * (g.min(n) as u64) / 2;
    let kept = |n: usize, level: &Level| (n / level.group) * level.keep + (n % level.group).min(level.keep);
    let mut best = (pairs(n, n), Vec::new());
    let sizes = |from: usize| (4..12).flat_map(move |b| [1 << b, 3 << (b - 1)]).filter(move |&g| g > from);
    for g in sizes(0).filter(|&g| g < n) {
        let first = Level { group: g, keep: keep(n, k, g) };
        if first.keep >= g {
            continue;
        }
        let (m, cost) = (kept(n, &first), pairs(n, g) + LEVEL_COST);
        if cost + pairs(m, m) < best.0 {
            best = (cost + pairs(m, m), vec![first]);
        }
        // Whole groups of the first level join to groups of the second.
        for joined in [2, 3, 4, 6, 8, 12, 16] {
            let second = Level { group: joined * first.keep, keep: keep(n, k, joined * g) };
            if joined * g >= n || second.keep >= second.group {
                continue;
            }
            let (m2, cost) = (kept(m, &second), cost + pairs(m, second.group) + LEVEL_COST);
            if cost + pairs(m2, m2) < best.0 {
                best = (cost + pairs(m2, m2), vec![first, second]);
            }
        }
    }
    best.1
}

/// How many of the best `k` of `n` a group of `g` may hold, but for a negligible probability over all groups.
fn keep(n: usize, k: usize, g: usize) -> usize {
    let log_factorial: Vec<f64> = (0..=n)
        .scan(0.0, |sum, i| {
            *sum += (i.max(1) as f64).log2();
            Some(*sum)
        })
        .collect();
    let choose = |n: usize, k: usize| log_factorial[n] - log_factorial[k] - log_factorial[n - k];
    let limit = FAILURE - ((n.div_ceil(g)) as f64).log2();
    let most = k.min(g);
    let mut tail = 0f64;
    for x in (1..=most).rev() {
        if g - x > n - k {
            return x;
        }
        tail += (choose(k, x) + choose(n - k, g - x) - choose(n, g)).exp2();
        if tail.log2() > limit {
            return x;
        }
    }
    1
}

/// Whether `levels` fit a list of `n` rows of which `k` are wanted.
pub fn are_valid(levels: &[Level], n: usize, k: usize) -> bool {
    let mut left = n;
    for level in levels {
        if level.group < 2 || level.keep == 0 || level.keep > level.group || level.group > left {
            return false;
        }
        left = (left / level.group) * level.keep + (left % level.group).min(level.keep);
    }
    k > 0 && k <= left && n <= MAX_ROWS && levels.len() <= 8 && left <= 1 << 13
}

/// The `k` rows with the largest keys, in order. `list` holds `width` numbers for each key.
///
/// # Errors
/// [`Error::Ended`] with a probability below 2^-40, if a level may have lost a row; as the engine.
pub async fn best<E: Engine, D: Keyed>(
    e: &mut E,
    scope: &mut Scope,
    keys: &Keys<E>,
    list: &E::V<D>,
    width: usize,
    (k, levels): (usize, &[Level]),
) -> Result<E::V<D>> {
    let n = e.len(list) / width;
    if !are_valid(levels, n, k) {
        return Err(Error::Config(format!("the best {k} of {n} rows cannot be found by {levels:?}")));
    }
    let (list, keys) = keys.shuffle(e, scope.step(), list, width).await?;
    let mut left: Vec<u32> = (0..n as u32).collect();
    let mut groups: Vec<Vec<u32>> = Vec::new();
    for level in levels {
        let order = order(e, scope, &keys, &left, level.group).await?;
        left.clear();
        for group in order.chunks(level.group) {
            let kept = &group[..level.keep.min(group.len())];
            left.extend(kept);
            if kept.len() < group.len() {
                groups.push(kept.to_vec());
            }
        }
    }
    let all = left.len();
    let mut first = order(e, scope, &keys, &left, all).await?;
    first.truncate(k);
    let mut chosen = vec![false; n];
    first.iter().for_each(|&i| chosen[i as usize] = true);
    if groups.iter().any(|g| g.iter().all(|&i| chosen[i as usize])) {
        let what = "too many of the best rows met in one group, which happens once in 2^40 runs; run again";
        return Err(Error::Ended(what.into()));
    }
    Ok(e.gather(&[&list], &rows(&first, width)))
}

/// The rows `left` by descending key within each run of `group`.
async fn order<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    keys: &ShuffledKeys<E::V<Reduced>>,
    left: &[u32],
    group: usize,
) -> Result<Vec<u32>> {
    let keys = keys.select(e, left);
    let order = e.open_order(scope.step(), group, &keys).await?;
    Ok(order.into_iter().map(|i| left[i as usize]).collect())
}

/// Candidates of all classes in the order of their scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankDetections {
    /// Proposals.
    pub proposals: usize,
    /// Classes without the background.
    pub classes: usize,
}

impl RankDetections {
    /// Columns of a row of the result: x1, y1, x2, y2, score, class, side of the proposal.
    pub const WIDTH: usize = 7;

    /// From scores `[proposals, classes]`, boxes `[proposals * classes, 4]` and proposals `[proposals, 4]` to
    /// rows by descending score, equal scores in their first order. Classes are integers from 1, the side is that of the proposal: zero
    /// where the list of proposals was padded. 11 rounds.
    ///
    /// # Errors
    /// As [`best`].
    pub async fn run<E: Engine>(
        &self,
        e: &mut E,
        scope: &mut Scope,
        scores: &Number<E, Reduced>,
        boxes: &E::V<Full>,
        proposals: &E::V<Full>,
    ) -> Result<E::V<Full>> {
        let (n, classes) = (self.proposals * self.classes, self.classes);
        let keys = Keys::of(e, scope, scores).await?;
        let scores = keys.numbers();
        let nothing = zeros(e, scores.integers());
        let class: Vec<i64> = (0..n).map(|i| (i % classes) as i64 + 1).collect();
        let class = e.add_public(&nothing, &class);
        let of = |c: usize| -> Vec<u32> { (0..n).map(|i| (i / classes * 4 + c) as u32).collect() };
        let (left, right) = (e.gather(&[proposals], &of(0)), e.gather(&[proposals], &of(2)));
        let side = e.sub(&right, &left);
        let index: Vec<u32> = (0..n as u32)
            .flat_map(|i| {
                let (n, corner) = (n as u32, |c: u32| 4 * i + c);
                [corner(0), corner(1), corner(2), corner(3), 4 * n + i, 5 * n + i, 6 * n + i]
            })
            .collect();
        let list = e.gather(&[boxes, scores.integers(), &class, &side], &index);
        best::<_, Full>(e, scope, &keys, &list, Self::WIDTH, (n, &[])).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::tests::plain;
    use futures::executor::block_on;
    use sharelens_protocol::Step;

    #[test]
    fn levels_are_valid_and_save_comparisons() {
        for (n, k) in [(3600, 256), (900, 128), (100, 30), (20_000, 1000), (5, 5)] {
            let found = levels(n, k);
            assert!(are_valid(&found, n, k), "{n} {k} {found:?}");
            let mut left = n as u64;
            let mut cost = 0;
            for level in &found {
                cost += left * level.group as u64 / 2;
                left = left.div_ceil(level.group as u64) * level.keep as u64;
            }
            cost += left * left / 2;
            assert!(cost <= (n * n / 2 + n) as u64, "{n} {k}: {cost}");
        }
        assert!(!levels(3600, 256).is_empty());
    }

    #[test]
    fn tails_agree_with_counting() {
        // 10 of which 3 are the best, groups of 4: all three meet in one with probability 4/120.
        assert_eq!(keep(10, 3, 4), 3);
        // By simulation, hardly any of 200,000 groups reach a limit that is meant for 2^-41.
        let (n, k, g) = (400usize, 40usize, 32usize);
        let limit = keep(n, k, g);
        let mean = (k * g) as f64 / n as f64;
        assert!(limit as f64 > 3.0 * mean && limit < g, "{limit}");
    }

    #[test]
    fn the_best_come_out_in_order() {
        let (n, k) = (900usize, 60usize);
        let numbers: Vec<i64> = (0..n as i64).map(|i| (i * 7919) % 9973 - 5000).collect();
        let mut e = plain();
        let mut scope = Scope::new(Step::layer(1), *e.bounds());
        let chosen = levels(n, k);
        let got = block_on(async {
            let x = Number::new(&scope, numbers.clone().into(), 1.0, 5000.0)?;
            let keys = Keys::of(&mut e, &mut scope, &x).await?;
            let list = (0..n as i64).collect::<Vec<_>>().into();
            best::<_, Reduced>(&mut e, &mut scope, &keys, &list, 1, (k, &chosen)).await
        });
        let got = got.expect("in range");
        let mut want: Vec<usize> = (0..n).collect();
        want.sort_by_key(|&i| std::cmp::Reverse(numbers[i]));
        assert!(got.as_slice().iter().zip(&want).all(|(&f, &w)| f == w as i64));
        assert_eq!(got.as_slice().len(), k);
    }
}
