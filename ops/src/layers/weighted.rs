//! Sums of inputs with public weights, separable along rows and columns: average-pooling and interpolation.
//!
//! Weights are integers at a scale of their own, so the result is at the scale of the input times theirs:
//! exact and without a round where the weights have a small common denominator (as averages over equal windows
//! and doubling by interpolation have), to be rescaled otherwise.

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::Full;

use crate::engine::Engine;
use crate::layers::movement::Select;

/// For each output position along an axis, input positions and their weights. All positions have equally many
/// entries; one with a weight of zero fills up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Axis {
    /// Input positions.
    pub input: usize,
    /// `[output][entry]`: input position and weight.
    pub entries: Vec<Vec<(u32, i64)>>,
}

impl Axis {
    /// Whether positions lie inside the input, and all outputs have equally many.
    pub fn is_valid(&self) -> bool {
        let count = self.entries.first().map_or(0, Vec::len);
        count > 0
            && self.entries.iter().all(|e| {
                e.len() == count
                    && e.iter().all(|&(i, w)| (i as usize) < self.input && w.unsigned_abs() < 1 << 31)
            })
    }

    fn count(&self) -> usize {
        self.entries.first().map_or(0, Vec::len)
    }
}

/// `out[n, y, x, c] = sum over entries of rows.weight * columns.weight * in[n, y', x', c]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedSum {
    /// Images.
    pub n: usize,
    /// Channels.
    pub c: usize,
    /// From top to bottom.
    pub rows: Axis,
    /// From left to right.
    pub columns: Axis,
}

impl WeightedSum {
    /// `[n, rows.input, columns.input, c]` to `[n, rows, columns, c]`. Local.
    pub fn run<E: Engine>(&self, e: &mut E, x: &E::V<Full>) -> E::V<Full> {
        let all = |d: usize| (0..d as u32).collect::<Vec<_>>();
        let [h, w] = [self.rows.input, self.columns.input];
        let narrow = |taps: Vec<u32>| Select { axes: vec![all(self.n), all(h), taps, all(self.c)] };
        let x = sum(e, x, &self.columns, &[self.n, h, w, self.c], self.c, narrow);
        let w = self.columns.entries.len();
        let narrow = |taps: Vec<u32>| Select { axes: vec![all(self.n), taps, all(w), all(self.c)] };
        sum(e, &x, &self.rows, &[self.n, h, w, self.c], w * self.c, narrow)
    }
}

/// One axis: gather each entry, weigh it, add up.
fn sum<E: Engine>(
    e: &mut E,
    x: &E::V<Full>,
    axis: &Axis,
    shape: &[usize],
    inner: usize,
    select: impl Fn(Vec<u32>) -> Select,
) -> E::V<Full> {
    let mut total: Option<E::V<Full>> = None;
    for tap in 0..axis.count() {
        let taps = axis.entries.iter().map(|t| t[tap].0).collect();
        let select = select(taps);
        let mut part = e.gather_by(&[x], select.shape().iter().product(), || select.index(shape));
        let weights: Vec<i64> = axis.entries.iter().map(|t| t[tap].1).collect();
        if weights.iter().any(|&w| w != weights[0]) {
            let each = || weights.iter().flat_map(|&w| std::iter::repeat_n(w, inner)).collect();
            part = e.scale_by(&part, each);
        } else if weights[0] != 1 {
            part = e.scale(&part, weights[0]);
        }
        total = Some(match total {
            Some(t) => e.add(&t, &part),
            None => part,
        });
    }
    total.expect("an axis has entries")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{numbers, plain};
    use super::*;
    use crate::plain::Values;

    #[test]
    fn equals_the_double_sum() {
        let rows = Axis { input: 3, entries: vec![vec![(0, 1), (1, 3)], vec![(2, 4), (0, 0)]] };
        let columns = Axis {
            input: 2,
            entries: vec![vec![(0, 1), (1, 1)], vec![(1, 1), (1, 1)], vec![(0, 1), (0, 1)]],
        };
        assert!(rows.is_valid() && columns.is_valid());
        let layer = WeightedSum { n: 2, c: 2, rows: rows.clone(), columns: columns.clone() };
        let x = numbers(2 * 3 * 2 * 2);
        let out = layer.run(&mut plain(), &Values::from(x.clone()));
        let mut expected = Vec::new();
        for n in 0..2 {
            for r in &rows.entries {
                for q in &columns.entries {
                    for c in 0..2 {
                        let terms = r.iter().flat_map(|&(y, a)| q.iter().map(move |&(z, b)| (y, z, a * b)));
                        expected.push(
                            terms
                                .map(|(y, z, f)| f * x[((n * 3 + y as usize) * 2 + z as usize) * 2 + c])
                                .sum::<i64>(),
                        );
                    }
                }
            }
        }
        assert_eq!(out.as_slice(), expected);
    }
}
