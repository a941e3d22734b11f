//! From anchors or proposals and their deltas to boxes, clipped to the picture.
//!
//! centre = old centre + (dx, dy) * old size, size = exp(min((dw, dh), limit)) * old size, corners = centre -+
//! size / 2. The exponent is bounded below, too: exp(-12) of any picture is less than the smallest side that counts.
//!
//! Cost           the rounds of `exp`, then 7: lift, product, lift, clip (4).

use serde::{Deserialize, Serialize};
use sharelens_protocol::Result;
use sharelens_protocol::ring::{Full, Reduced};

use super::columns;
use crate::engine::Engine;
use crate::layers::{join, range};
use crate::number::{Number, Scope};
use crate::real;

/// Smallest exponent.
const LEAST: f64 = -12.0;
/// Scale of intermediate results.
const SCALE: f64 = (1 << 18) as f64;

/// The picture in units of the feature stride, and the scale of coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Extent {
    /// Columns.
    pub width: f64,
    /// Rows.
    pub height: f64,
    /// Integers per unit.
    pub scale: f64,
}

impl Extent {
    /// Whether the numbers are sane.
    pub fn is_valid(&self) -> bool {
        [self.width, self.height].iter().all(|v| (1.0..=65_536.0).contains(v))
            && (16.0..=1e9).contains(&self.scale)
    }

    pub(crate) fn largest(&self) -> f64 {
        self.width.max(self.height)
    }

    /// `x` as coordinates within the picture.
    ///
    /// # Errors
    /// If they do not fit the range.
    pub fn coordinates<E: Engine>(&self, scope: &Scope, x: &E::V<Full>) -> Result<Number<E, Full>> {
        Number::new(scope, x.clone(), self.scale, self.largest())
    }
}

/// Decoding of anchors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decode {
    /// Rows.
    pub rows: usize,
    /// The picture.
    pub extent: Extent,
    /// Largest exponent.
    pub limit: f64,
    /// Largest |dx|, |dy| that fits.
    pub reach: f64,
    /// Largest side of an anchor.
    pub side: f64,
}

impl Decode {
    /// From rows of [`super::TopAnchors`] to corners `[rows, 4]` at the scale of the extent.
    ///
    /// # Errors
    /// If numbers may leave their range; as the engine.
    pub async fn run<E: Engine>(
        &self,
        e: &mut E,
        scope: &mut Scope,
        anchors: &Number<E, Reduced>,
    ) -> Result<E::V<Full>> {
        let take = |e: &mut E, scope: &Scope, c: [usize; 2], bound: f64| {
            let v = e.gather(&[anchors.integers()], &columns(self.rows, 8, &c));
            Number::<E, Reduced>::new(scope, v, anchors.scale(), bound)
        };
        let moves = take(e, scope, [0, 1], self.reach)?;
        let growth = take(e, scope, [2, 3], anchors.bound())?;
        let centres = take(e, scope, [4, 5], self.extent.largest() + self.side)?;
        let sizes = take(e, scope, [6, 7], self.side)?;
        let growth = real::exp(e, scope, &growth, LEAST, self.limit, SCALE).await?;
        let [moves, growth, centres, sizes] = lifted(e, scope, [&moves, &growth, &centres, &sizes]).await?;
        let centres = centres.times(e, scope, 2)?;
        corners(e, scope, &self.extent, &moves, &growth, &centres, &sizes).await
    }
}

/// Decoding of proposals, for every class but the background.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecodeClasses {
    /// Proposals.
    pub proposals: usize,
    /// Classes, the background included.
    pub classes: usize,
    /// The picture.
    pub extent: Extent,
    /// What dx, dy and dw, dh are divided by.
    pub weights: [f64; 2],
    /// Largest exponent.
    pub limit: f64,
    /// Largest |dx|, |dy| that fits, after the division.
    pub reach: f64,
}

impl DecodeClasses {
    /// From proposals `[n, 4]` at the scale of the extent and deltas `[n, 4 classes]` to corners
    /// `[n * (classes - 1), 4]`.
    ///
    /// # Errors
    /// If numbers may leave their range; as the engine.
    pub async fn run<E: Engine>(
        &self,
        e: &mut E,
        scope: &mut Scope,
        proposals: &E::V<Full>,
        deltas: &Number<E, Reduced>,
    ) -> Result<E::V<Full>> {
        let (n, classes) = (self.proposals, self.classes);
        let places = |c: [usize; 2]| -> Vec<u32> {
            let at = move |p: usize, class: usize| c.map(|c| (p * 4 * classes + 4 * class + c) as u32);
            (0..n).flat_map(|p| (1..classes).flat_map(move |class| at(p, class))).collect()
        };
        // Dividing by a weight is another scale.
        let take = |e: &mut E, scope: &Scope, c: [usize; 2], weight: f64, bound: f64| {
            let v = e.gather(&[deltas.integers()], &places(c));
            Number::<E, Reduced>::new(scope, v, deltas.scale() * weight, bound)
        };
        let moves = take(e, scope, [0, 1], self.weights[0], self.reach)?;
        let growth = take(e, scope, [2, 3], self.weights[1], deltas.bound() / self.weights[1])?;
        let growth = real::exp(e, scope, &growth, LEAST, self.limit, SCALE).await?;
        let [moves, growth] = lifted(e, scope, [&moves, &growth]).await?;

        let repeat = |c: [usize; 2]| -> Vec<u32> {
            (0..n).flat_map(|p| (1..classes).flat_map(move |_| c.map(|c| (4 * p + c) as u32))).collect()
        };
        let proposals = self.extent.coordinates::<E>(scope, proposals)?;
        let (low, high) = (proposals.gather(e, &repeat([0, 1])), proposals.gather(e, &repeat([2, 3])));
        let sizes = high.sub(e, scope, &low)?.within(self.extent.largest());
        let centres = high.add(e, scope, &low)?;
        corners(e, scope, &self.extent, &moves, &growth, &centres, &sizes).await
    }
}

/// Lifts several vectors, of any scales, in one round.
async fn lifted<E: Engine, const N: usize>(
    e: &mut E,
    scope: &mut Scope,
    parts: [&Number<E, Reduced>; N],
) -> Result<[Number<E, Full>; N]> {
    for part in parts {
        part.check_lift(scope)?;
    }
    let all = join(e, &parts.map(Number::integers));
    let all = e.lift(scope.step(), &all).await?;
    split(e, scope, &all, parts.map(|p| (p.len(e), p.scale(), p.bound())))
}

/// Cuts a vector into parts of these lengths, scales and bounds.
fn split<E: Engine, const N: usize>(
    e: &mut E,
    scope: &Scope,
    all: &E::V<Full>,
    parts: [(usize, f64, f64); N],
) -> Result<[Number<E, Full>; N]> {
    let mut from = 0;
    let mut out = Vec::with_capacity(N);
    for (n, scale, bound) in parts {
        let v = range(e, all, from, from + n);
        from += n;
        out.push(Number::new(scope, v, scale, bound)?);
    }
    Ok(out.try_into().unwrap_or_else(|_| unreachable!("one for each part")))
}

/// Corners from twice the centres and from sizes, `[n, 2]` each, moved and grown, then clipped.
async fn corners<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    extent: &Extent,
    moves: &Number<E, Full>,
    growth: &Number<E, Full>,
    centres: &Number<E, Full>,
    sizes: &Number<E, Full>,
) -> Result<E::V<Full>> {
    // Both products in one round.
    let n = sizes.len(e) as u32;
    let x = join(e, &[moves.integers(), growth.integers()]);
    let y = join(e, &[sizes.integers(), sizes.integers()]);
    let products = e.mul(scope.step(), &x, &y).await?;
    let parts = [moves, growth].map(|p| (n as usize, p.scale() * sizes.scale(), p.bound() * sizes.bound()));
    let [shift, size] = split::<E, 2>(e, scope, &products, parts)?;
    let shift = shift.rescale(e, scope, SCALE / 4.0).await?;
    let size = size.rescale(e, scope, SCALE / 4.0).await?;
    let [shift, size] = lifted(e, scope, [&shift, &size]).await?;

    // Twice the corners, at a scale from which a bare rescale leads to the extent's.
    let scale = extent.scale * scope.bounds().divisor as f64 / 2.0;
    let shift = shift.align(e, scope, scale)?;
    let size = size.align(e, scope, scale)?;
    let middle = shift.times(e, scope, 2)?;
    let centres = centres.align(e, scope, scale)?;
    let middle = middle.add(e, scope, &centres)?;
    let (low, high) = (middle.sub(e, scope, &size)?, middle.add(e, scope, &size)?);
    let index: Vec<u32> = (0..n / 2).flat_map(|i| [2 * i, 2 * i + 1, n + 2 * i, n + 2 * i + 1]).collect();
    let both = e.gather(&[low.integers(), high.integers()], &index);
    let bound = low.bound().max(high.bound()) / 2.0;
    let both = Number::<E, Full>::new(scope, both, 2.0 * scale, bound)?;
    let both = both.rescale(e, scope, extent.scale).await?;
    clip(e, scope, extent, &both).await
}

/// Corners `[n, 4]` moved into the picture. 4 rounds.
async fn clip<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    extent: &Extent,
    corners: &Number<E, Reduced>,
) -> Result<E::V<Full>> {
    let n = corners.len(e);
    let [w, h] = [extent.width, extent.height];
    let beyond = corners.add_public(e, scope, &[-w, -h, -w, -h])?;
    let both = join(e, &[corners.integers(), beyond.integers()]);
    let both = e.relu(scope.step(), &both).await?;
    let (low, high) = (range(e, &both, 0, n), range(e, &both, n, 2 * n));
    Ok(e.sub(&low, &high))
}
