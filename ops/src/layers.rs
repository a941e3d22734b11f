//! Layers, each written once against [`Engine`] and run by shares, by the twin and by the planner.
//!
//! Feature maps are `[n, h, w, c]`. A layer takes its [`Step`] and uses calls of that step only.

use sharelens_protocol::ring::{Domain, Reduced};
use sharelens_protocol::{Result, Step};

use crate::engine::{Engine, ZERO};

pub mod activation;
pub mod argmax;
pub mod conv_transpose;
pub mod max_pool;
pub mod movement;
pub mod outside;
pub mod weighted;

pub use activation::{clip, leaky_relu};
pub use argmax::argmax;
pub use conv_transpose::ConvTranspose;
pub use max_pool::{MaxPool, Window};
pub use movement::Select;
pub use outside::outside;
pub use weighted::{Axis, WeightedSum};

/// Numbers of the protocol calls of one layer, in the order in which the layer makes them.
#[derive(Debug)]
pub struct Calls {
    at: Step,
    next: u16,
}

impl Calls {
    /// Starting from the first call of `at`'s layer.
    pub const fn new(at: Step) -> Self {
        Self { at, next: 0 }
    }

    /// The step of the next call.
    ///
    /// # Panics
    ///
    /// If a layer makes more than 65,535 calls.
    pub fn step(&mut self) -> Step {
        let step = self.at.call(self.next);
        self.next = self.next.checked_add(1).expect("a layer makes few calls");
        step
    }
}

/// Elementwise maximum, b + relu(a - b), for |a - b| < P/2.
pub async fn maximum<E: Engine>(
    e: &mut E,
    at: Step,
    a: &E::V<Reduced>,
    b: &E::V<Reduced>,
) -> Result<E::V<Reduced>> {
    let difference = e.sub(a, b);
    let rise = e.relu_reduced(at, &difference).await?;
    Ok(e.add(b, &rise))
}

/// Elements `from..to` of `x`.
pub(crate) fn range<E: Engine, D: Domain>(e: &mut E, x: &E::V<D>, from: usize, to: usize) -> E::V<D> {
    e.gather_by(&[x], to - from, || (from as u32..to as u32).collect())
}

/// Zeros, as many as `like` has elements. Local.
pub(crate) fn zeros<E: Engine, D: Domain>(e: &mut E, like: &E::V<D>) -> E::V<D> {
    let n = e.len(like);
    e.gather_by(&[like], n, || vec![ZERO; n])
}

/// Sums of all elements of each run of `group` up to and with each. Local.
pub(crate) fn prefix_sums<E: Engine, D: Domain>(e: &mut E, x: &E::V<D>, group: usize) -> E::V<D> {
    let mut sums = x.clone();
    let mut step = 1;
    while step < group {
        let earlier = |i: usize| if i % group < step { ZERO } else { (i - step) as u32 };
        let n = e.len(x);
        let earlier = e.gather_by(&[&sums], n, || (0..n).map(earlier).collect());
        sums = e.add(&sums, &earlier);
        step *= 2;
    }
    sums
}

/// A vector that was joined, in parts of these lengths again. Local.
pub(crate) fn split<E: Engine, D: Domain, const K: usize>(
    e: &mut E,
    v: &E::V<D>,
    lens: [usize; K],
) -> [E::V<D>; K] {
    let mut from = 0;
    lens.map(|n| {
        from += n;
        range(e, v, from - n, from)
    })
}

/// All of `parts`, one after the other.
pub fn join<E: Engine, D: Domain>(e: &mut E, parts: &[&E::V<D>]) -> E::V<D> {
    let total: usize = parts.iter().map(|p| e.len(p)).sum();
    e.gather_by(parts, total, || (0..total as u32).collect())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::plain::{Bounds, Plain, Values};

    pub(crate) fn plain() -> Plain {
        let bounds = Bounds::rns(&[255, 253, 251, 239], &[247, 241]).expect("fits 64 bits");
        Plain::new(bounds, Arc::new(Vec::new()))
    }

    pub(crate) fn reduced(x: &[i64]) -> Values<Reduced> {
        x.to_vec().into()
    }

    /// Small numbers of both signs, the same on every run.
    pub(crate) fn numbers(n: usize) -> Vec<i64> {
        (0..n as i64).map(|i| (i * 7919 + 13) % 2003 - 1001).collect()
    }

    #[test]
    fn calls_are_distinct() {
        let mut calls = Calls::new(Step::layer(5));
        assert_eq!(calls.step(), Step::layer(5).call(0));
        assert_eq!(calls.step(), Step::layer(5).call(1));
    }
}
