//! What ends a network and is left to the client, who applies it to the numbers that it opened.
//!
//! A softmax, a sigmoid or an index of the largest costs rounds on shares and nothing in the clear, and only the client
//! reads what comes of it. There is this one place where it is computed, for every task and every command.

use serde::{Deserialize, Serialize};

/// A function at the end of a network, on an output in its original order.
///
/// Example: a softmax over axis 1 of `[1, 4, 8, 8]` has 1 group before the axis, 4 numbers along it and 64 behind it: the
/// numbers at `i`, `i + 64`, `i + 128` and `i + 192` belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// Which.
    pub function: Function,
    /// Numbers that belong together.
    pub count: usize,
    /// How far they are apart.
    pub stride: usize,
    /// Shape of what comes of it, where that is another one.
    pub shape: Option<Vec<usize>>,
}

/// The functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Function {
    /// e^x over the sum of e^x.
    Softmax,
    /// Its logarithm.
    LogSoftmax,
    /// 1 / (1 + e^-x) of each.
    Sigmoid,
    /// The first index of a largest number.
    ArgMax,
}

impl Finish {
    /// `function` over the numbers of `dims` along `axis`; with `flat` over all from `axis` on.
    ///
    /// # Panics
    ///
    /// If there is no such axis.
    pub fn along(function: Function, dims: &[usize], axis: usize, flat: bool) -> Self {
        let behind: usize = dims[axis + 1..].iter().product();
        let (count, stride) = if flat { (dims[axis] * behind, 1) } else { (dims[axis], behind) };
        Self { function, count, stride, shape: None }
    }

    /// A sigmoid, which has no axis.
    pub const fn sigmoid() -> Self {
        Self { function: Function::Sigmoid, count: 1, stride: 1, shape: None }
    }

    /// Whether it can be applied to `len` numbers.
    pub fn fits(&self, len: usize) -> bool {
        let block = self.count.checked_mul(self.stride).filter(|b| *b > 0);
        let whole = block.is_some_and(|b| len.is_multiple_of(b));
        let due = if self.function == Function::ArgMax { len / self.count.max(1) } else { len };
        let product = |s: &Vec<usize>| s.iter().try_fold(1usize, |a, &d| a.checked_mul(d));
        let shaped =
            self.shape.as_ref().map_or(self.function != Function::ArgMax, |s| product(s) == Some(due));
        whole && shaped && self.shape.as_ref().is_none_or(|s| s.len() <= crate::graph::MAX_RANK)
    }

    /// What comes of these numbers, for which it [fits](Self::fits).
    pub fn apply(&self, x: &[f64]) -> Vec<f64> {
        if self.function == Function::Sigmoid {
            return x.iter().map(|&x| sigmoid(x)).collect();
        }
        let mut out =
            vec![0.0; if self.function == Function::ArgMax { x.len() / self.count } else { x.len() }];
        for group in 0..x.len() / self.count {
            let (block, offset) = (group / self.stride, group % self.stride);
            let at = |i: usize| (block * self.count + i) * self.stride + offset;
            let all = (0..self.count).map(|i| x[at(i)]);
            if self.function == Function::ArgMax {
                let first = |best: (usize, f64), (i, v)| if v > best.1 { (i, v) } else { best };
                out[group] = all.enumerate().fold((0, f64::NEG_INFINITY), first).0 as f64;
                continue;
            }
            // Moved by the largest, so that no power overflows.
            let largest = all.clone().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = all.map(|v| (v - largest).exp()).sum();
            for i in 0..self.count {
                let moved = x[at(i)] - largest;
                out[at(i)] = match self.function {
                    Function::LogSoftmax => moved - sum.ln(),
                    _ => moved.exp() / sum,
                };
            }
        }
        out
    }
}

/// The logistic function.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The softmax of all numbers.
pub fn softmax(x: &[f64]) -> Vec<f64> {
    Finish::along(Function::Softmax, &[x.len()], 0, false).apply(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: &[f64], b: &[f64]) {
        assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} {b:?}");
    }

    #[test]
    fn probabilities_sum_to_one_even_for_large_logits() {
        let p = softmax(&[1000.0, 999.0]);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12 && p[0] > p[1]);
        near(&Finish::sigmoid().apply(&[0.0, -1000.0, 1000.0]), &[0.5, 0.0, 1.0]);
    }

    #[test]
    fn an_axis_is_an_axis() {
        // [1, 2, 3]: over axis 1, over all from axis 1 on, over axis 2.
        let x = [1.0, 2.0, 3.0, 1.0, 1.0, 5.0];
        let e = |v: f64| v.exp();
        let pair = |a: f64, b: f64| e(a) / (e(a) + e(b));
        let over = |axis, flat| Finish::along(Function::Softmax, &[1, 2, 3], axis, flat).apply(&x);
        near(
            &over(1, false),
            &[pair(1.0, 1.0), pair(2.0, 1.0), pair(3.0, 5.0), pair(1.0, 1.0), pair(1.0, 2.0), pair(5.0, 3.0)],
        );
        let all: f64 = x.iter().map(|&v| e(v)).sum();
        near(&over(1, true), &x.map(|v| e(v) / all));
        let row: f64 = x[..3].iter().map(|&v| e(v)).sum();
        near(&over(2, false)[..3], &[e(1.0) / row, e(2.0) / row, e(3.0) / row]);
        let logs = Finish::along(Function::LogSoftmax, &[1, 2, 3], 1, false).apply(&x);
        near(&logs.iter().map(|v| v.exp()).collect::<Vec<_>>(), &over(1, false));
    }

    #[test]
    fn the_first_of_equals_is_the_largest() {
        let mut largest = Finish::along(Function::ArgMax, &[1, 2, 3], 1, false);
        largest.shape = Some(vec![1, 3]);
        assert!(largest.fits(6));
        assert_eq!(largest.apply(&[1.0, 2.0, 3.0, 1.0, 1.0, 5.0]), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn what_does_not_fit_is_noticed() {
        let of =
            |count, stride, shape: Option<Vec<usize>>, function| Finish { function, count, stride, shape };
        for bad in [
            of(0, 1, None, Function::Softmax),
            of(2, 0, None, Function::Softmax),
            of(4, 1, None, Function::Softmax),
            of(usize::MAX, 2, None, Function::Softmax),
            of(2, 1, Some(vec![5]), Function::Softmax),
            of(2, 1, None, Function::ArgMax),
            of(2, 1, Some(vec![6]), Function::ArgMax),
            of(2, 1, Some(vec![usize::MAX, 2]), Function::ArgMax),
            of(2, 1, Some([vec![3], vec![1; 20]].concat()), Function::ArgMax),
        ] {
            assert!(!bad.fits(6), "{bad:?}");
        }
        assert!(of(3, 2, None, Function::Softmax).fits(6));
    }
}
