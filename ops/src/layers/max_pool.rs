//! Max-pooling: along columns, then along rows, whole tensors at once.
//!
//! max(a, b) = b + relu(a - b) stays in `Reduced`, so it needs |a - b| < P/2. A position outside the image is
//! replaced by one of its window that lies inside, which changes no maximum.

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::Reduced;
use sharelens_protocol::{Result, Step};

use super::{Calls, maximum, range};
use crate::engine::Engine;

/// Windows along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// Input positions.
    pub input: usize,
    /// Window length.
    pub kernel: usize,
    /// Distance of windows.
    pub stride: usize,
    /// Distance of the entries of a window.
    pub dilation: usize,
    /// Padding before the first position.
    pub before: usize,
    /// Windows.
    pub output: usize,
}

impl Window {
    /// Whether every window has an entry inside the input, and sizes are sane.
    pub fn is_valid(&self) -> bool {
        let sane = |v: usize| v > 0 && v < 1 << 24;
        [self.input, self.kernel, self.stride, self.dilation, self.output].into_iter().all(sane)
            && self.before < 1 << 24
            && self.kernel.checked_mul(self.output).is_some_and(|v| v < 1 << 24)
            && (0..self.output).all(|o| self.first(o).is_some())
    }

    /// The first entry of window `o` that lies inside the input. One division: a window may be long.
    fn first(&self, o: usize) -> Option<usize> {
        let tap = self.before.saturating_sub(o * self.stride).div_ceil(self.dilation);
        let at = (o * self.stride + tap * self.dilation) - self.before;
        (tap < self.kernel && at < self.input).then_some(at)
    }

    /// The entries of window `o` that lie inside the input.
    pub fn entries(&self, o: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.kernel)
            .map(move |k| (o * self.stride + k * self.dilation) as i64 - self.before as i64)
            .filter(|&i| i >= 0 && i < self.input as i64)
            .map(|i| i as usize)
    }

    /// The `tap`-th entry of each window, or a valid one of the same window.
    fn tap(&self, tap: usize) -> Vec<usize> {
        let entry = |o: usize| {
            let i = (o * self.stride + tap * self.dilation) as i64 - self.before as i64;
            if i >= 0 && i < self.input as i64 {
                i as usize
            } else {
                self.first(o).expect("checked by is_valid")
            }
        };
        (0..self.output).map(entry).collect()
    }
}

/// A max-pool of `[n, rows.input, columns.input, c]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MaxPool {
    /// Images.
    pub n: usize,
    /// Channels.
    pub c: usize,
    /// Windows from top to bottom.
    pub rows: Window,
    /// Windows from left to right.
    pub columns: Window,
}

impl MaxPool {
    /// `[n, rows.input, columns.input, c]` to `[n, rows.output, columns.output, c]`.
    pub async fn run<E: Engine>(&self, e: &mut E, at: Step, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let mut calls = Calls::new(at);
        let along = Along { outer: self.n * self.rows.input, inner: self.c, window: self.columns };
        let x = along.run(e, &mut calls, x).await?;
        let down = Along { outer: self.n, inner: self.columns.output * self.c, window: self.rows };
        down.run(e, &mut calls, &x).await
    }
}

/// Maxima along the middle axis of `[outer, window.input, inner]`.
struct Along {
    outer: usize,
    inner: usize,
    window: Window,
}

impl Along {
    async fn run<E: Engine>(&self, e: &mut E, calls: &mut Calls, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let n = self.outer * self.window.output * self.inner;
        let mut taps: Vec<E::V<Reduced>> = Vec::new();
        let mut seen: Vec<Vec<usize>> = Vec::new();
        for tap in 0..self.window.kernel {
            let entries = self.window.tap(tap);
            if !seen.contains(&entries) {
                taps.push(e.gather_by(&[x], n, || self.index(&entries)));
                seen.push(entries);
            }
        }
        while taps.len() > 1 {
            let odd = (taps.len() % 2 == 1).then(|| taps.pop().expect("not empty"));
            let (first, second): (Vec<_>, Vec<_>) =
                taps.chunks_exact(2).map(|p| (p[0].clone(), p[1].clone())).unzip();
            let a = super::join(e, &first.iter().collect::<Vec<_>>());
            let b = super::join(e, &second.iter().collect::<Vec<_>>());
            let larger = maximum(e, calls.step(), &a, &b).await?;
            taps = (0..first.len()).map(|i| range(e, &larger, i * n, (i + 1) * n)).collect();
            taps.extend(odd);
        }
        Ok(taps.pop().expect("a window has entries"))
    }

    fn index(&self, entries: &[usize]) -> Vec<u32> {
        let mut index = Vec::with_capacity(self.outer * entries.len() * self.inner);
        for outer in 0..self.outer {
            for &i in entries {
                let from = ((outer * self.window.input + i) * self.inner) as u32;
                index.extend(from..from + self.inner as u32);
            }
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{numbers, plain, reduced};
    use super::*;
    use futures::executor::block_on;

    #[test]
    fn equals_the_largest_of_each_window() {
        let w = |input, kernel, stride, dilation, before, output| Window {
            input,
            kernel,
            stride,
            dilation,
            before,
            output,
        };
        let cases = [
            (w(6, 2, 2, 1, 0, 3), w(8, 2, 2, 1, 0, 4)),
            (w(7, 3, 2, 1, 1, 4), w(5, 3, 2, 1, 1, 3)),
            (w(7, 3, 1, 2, 0, 3), w(9, 4, 3, 1, 0, 3)),
            (w(5, 5, 1, 1, 0, 1), w(4, 4, 1, 1, 0, 1)),
            (w(5, 1, 1, 1, 0, 5), w(4, 3, 1, 1, 1, 4)),
        ];
        for (rows, columns) in cases {
            assert!(rows.is_valid() && columns.is_valid());
            let pool = MaxPool { n: 2, c: 3, rows, columns };
            let x = numbers(2 * rows.input * columns.input * 3);
            let out = block_on(pool.run(&mut plain(), Step::layer(2), &reduced(&x))).expect("in range");
            let mut expected = Vec::new();
            for n in 0..2 {
                for oy in 0..rows.output {
                    for ox in 0..columns.output {
                        for c in 0..3 {
                            let at = |y, xx| x[((n * rows.input + y) * columns.input + xx) * 3 + c];
                            let window =
                                rows.entries(oy).flat_map(|y| columns.entries(ox).map(move |xx| (y, xx)));
                            expected.push(window.map(|(y, xx)| at(y, xx)).max().expect("not empty"));
                        }
                    }
                }
            }
            assert_eq!(out.as_slice(), expected, "{pool:?}");
        }
    }

    #[test]
    fn windows_outside_the_input_are_refused() {
        assert!(!Window { input: 4, kernel: 2, stride: 2, dilation: 1, before: 3, output: 2 }.is_valid());
        assert!(!Window { input: 4, kernel: 2, stride: 4, dilation: 1, before: 0, output: 3 }.is_valid());
    }
}
