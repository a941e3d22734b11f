//! RoIAlign with secret boxes, on one feature map.
//!
//! Functionality  from features `[h, w, c]` and boxes in feature units deliver `[k, out, out, c]`: each bin the
//!                mean of bilinear samples at the centres of its parts; reveals nothing.
//! Method         bilinear sampling is separable: out = Wy F Wx^T, where a row of Wy holds hat functions of a
//!                secret coordinate p: with R_j = relu(p - j), the weight of row i is R_{i-1} - 2 R_i + R_{i+1}; the
//!                first row has 1 - R_0 + R_1 and the last R_{h-2} - R_{h-1}, less 1 for p > h, since samples
//!                beyond the map count as zero. Then two products of secret matrices; the map is masked once.
//! Range          boxes that were clipped to the map. That no sample lies below -1 follows.
//! Cost           12 rounds with `aligned` off: size (4), hats (4), lift, product, product, lift; 8 with it on.
//! Source         He et al., ICCV 2017; torchvision's `roi_align` with and without the shift by half a pixel.

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::Full;
use sharelens_protocol::{Error, Result};

use super::{Extent, columns};
use crate::engine::{Engine, ProductShape, ZERO};
use crate::layers::{join, split};
use crate::number::{Number, Scope};

/// RoIAlign of a list of boxes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoiAlign {
    /// Boxes.
    pub boxes: usize,
    /// Rows, columns and channels of the feature map.
    pub map: [usize; 3],
    /// The picture; its unit is that of the map, and so is its size.
    pub extent: Extent,
    /// Bins along each axis.
    pub bins: usize,
    /// Samples along each axis of a bin.
    pub samples: usize,
    /// Whether boxes are moved by half a unit and may be smaller than one.
    pub aligned: bool,
    /// Scale that the result should have.
    pub scale: f64,
}

impl RoiAlign {
    /// Whether the numbers are sane.
    pub fn is_valid(&self) -> bool {
        let product = |v: &[usize]| {
            v.iter().try_fold(1usize, |a, &b| a.checked_mul(b)).is_some_and(|n| n > 0 && n < 1 << 28)
        };
        self.extent.is_valid()
            && self.map[0] >= 2
            && self.map[1] >= 2
            && (1..=64).contains(&self.bins)
            && (1..=16).contains(&self.samples)
            && self.extent.width <= self.map[1] as f64
            && self.extent.height <= self.map[0] as f64
            && product(&[self.boxes, self.bins, self.samples, self.map[0].saturating_add(2)])
            && product(&[self.boxes, self.bins, self.samples, self.map[1].saturating_add(2)])
            && product(&[self.boxes, self.bins, self.map[1], self.map[2]])
            && product(&self.map)
            && (1e-3..=1e15).contains(&self.scale)
    }

    /// From features and boxes `[boxes, 4]` at the scale of the extent.
    ///
    /// # Errors
    /// If numbers may leave their range; as the engine.
    pub async fn run<E: Engine>(
        &self,
        e: &mut E,
        scope: &mut Scope,
        features: &Number<E, Full>,
        boxes: &E::V<Full>,
    ) -> Result<Number<E, Full>> {
        let [h, w, c] = self.map;
        let (k, bins) = (self.boxes, self.bins);
        if features.len(e) != h * w * c || e.len(boxes) != 4 * k {
            return Err(Error::Config("features or boxes of another shape".into()));
        }
        let [rows, cols] = self.hats(e, scope, features, boxes).await?;
        // [k * bins, h] times [h, (c, w)].
        let turned = || {
            (0..c * w).flat_map(|at| (0..h).map(move |y| ((y * w + at % w) * c + at / w) as u32)).collect()
        };
        let map = e.gather_by(&[features.integers()], h * w * c, turned);
        let shape = ProductShape { groups: 1, m: k * bins, k: h, n: c * w, uses: 1 };
        let mut operand = e.operand(scope.step(), shape, map)?;
        let lines = e.product(scope.step(), &mut operand, rows.integers()).await?;
        // By box: [(bin, c), w] times [w, bins]. Weights of a sample add up to one, so bounds stay.
        let shape = ProductShape { groups: k, m: bins * c, k: w, n: bins, uses: 1 };
        let mut operand = e.operand(scope.step(), shape, cols.into_integers())?;
        let out = e.product(scope.step(), &mut operand, &lines).await?;
        let channels_last = || {
            let line =
                |line: usize| (0..bins * c).map(move |at| ((line * c + at % c) * bins + at / c) as u32);
            (0..k * bins).flat_map(line).collect()
        };
        let out = e.gather_by(&[&out], k * bins * bins * c, channels_last);
        let weight = rows.scale();
        let slack = 1.0 + 2.0 * (h.max(w) as f64) / weight;
        let bound = features.bound() * slack * slack;
        let out = Number::<E, Full>::new(scope, out, features.scale() * weight * weight, bound)?;
        out.rescale(e, scope, self.scale).await?.lift(e, scope).await
    }

    /// Weights of rows `[k, bins, h]` and of columns `[k, bins, w]`, at one scale.
    async fn hats<E: Engine>(
        &self,
        e: &mut E,
        scope: &mut Scope,
        features: &Number<E, Full>,
        boxes: &E::V<Full>,
    ) -> Result<[Number<E, Full>; 2]> {
        let (k, unit) = (self.boxes, self.extent.scale.round() as i64);
        if (unit as f64 - self.extent.scale).abs() > 1e-9 {
            return Err(Error::Config("the scale of coordinates is no integer".into()));
        }
        let low = e.gather(&[boxes], &columns(k, 4, &[0, 1]));
        let high = e.gather(&[boxes], &columns(k, 4, &[2, 3]));
        let mut size = e.sub(&high, &low);
        if !self.aligned {
            let beyond = e.add_public(&size, &[-unit]);
            let beyond = e.reduce(&beyond);
            let beyond = e.relu(scope.step(), &beyond).await?;
            size = e.add_public(&beyond, &[unit]);
        }
        // Sample s of all bins lies at low + (2 s + 1) / parts * size, and at half a unit less if aligned.
        let per_axis = self.bins * self.samples;
        let parts = 2 * per_axis as i64;
        let fine = parts * unit;
        let start = e.scale(&low, parts);
        let start = if self.aligned { e.add_public(&start, &[-fine / 2]) } else { start };
        let places = || (0..2 * k as u32).flat_map(|i| std::iter::repeat_n(i, per_axis)).collect();
        let count = 2 * k * per_axis;
        let (start, size) = (e.gather_by(&[&start], count, places), e.gather_by(&[&size], count, places));
        let steps: Vec<i64> = (0..per_axis as i64).map(|s| 2 * s + 1).collect();
        let size = e.scale_each(&size, &steps);
        let samples = e.add(&start, &size);
        // [k, (x, y), bin, sample]
        let longest = self.map[0].max(self.map[1]) as f64;
        scope.check_reduced((2.0 * longest + 2.0) * fine as f64, "coordinates of samples")?;
        let samples = e.reduce(&samples);
        let mut bends = Vec::new();
        for (axis, length) in [(0, self.map[1]), (1, self.map[0])] {
            let line = |s: usize| {
                let (b, s) = (s / per_axis, s % per_axis);
                ((2 * b + axis) * per_axis + s) as u32
            };
            let index = || (0..k * per_axis).flat_map(|s| std::iter::repeat_n(line(s), length + 2)).collect();
            let lines = e.gather_by(&[&samples], k * per_axis * (length + 2), index);
            let end = length as i64 * fine;
            // The last two make the bit p > length, as integers.
            let offsets: Vec<i64> = (0..length as i64).map(|j| -j * fine).chain([-end, -end - 1]).collect();
            bends.push(e.add_public(&lines, &offsets));
        }
        let bends = join(e, &bends.iter().collect::<Vec<_>>());
        let bends = e.relu(scope.step(), &bends).await?;
        let mut from = 0;
        let mut weights = Vec::new();
        for length in [self.map[1], self.map[0]] {
            let lines = k * per_axis;
            weights.push(self.axis(e, &bends, from, lines, length, fine));
            from += lines * (length + 2);
        }
        let lens = [e.len(&weights[0]), e.len(&weights[1])];
        let both = join(e, &[&weights[0], &weights[1]]);
        let scale = (fine * self.samples as i64) as f64;
        let both = Number::<E, Full>::new(scope, both, scale, 1.0)?;
        let both = both.rescale(e, scope, self.weight_scale(scope, features)).await?.lift(e, scope).await?;
        let (scale, bound) = (both.scale(), both.bound());
        let [cols, rows] = split(e, both.integers(), lens);
        Ok([Number::new(scope, rows, scale, bound)?, Number::new(scope, cols, scale, bound)?])
    }

    /// Means of hat functions over the samples of each bin: `[lines / samples, length]`.
    fn axis<E: Engine>(
        &self,
        e: &mut E,
        bends: &E::V<Full>,
        from: usize,
        lines: usize,
        length: usize,
        fine: i64,
    ) -> E::V<Full> {
        let wide = length + 2;
        let mut total = None;
        for s in 0..self.samples {
            let line = |bin: usize| from + (bin * self.samples + s) * wide;
            let bins = lines / self.samples;
            // Element i of a line shifted: R_{i+by}, zero outside 0..length.
            let shifted = |e: &mut E, by: i64| {
                let of = |b: usize| {
                    (0..length as i64).map(move |i| match i + by {
                        j if (0..length as i64).contains(&j) => (line(b) + j as usize) as u32,
                        _ => ZERO,
                    })
                };
                e.gather_by(&[bends], bins * length, || (0..bins).flat_map(of).collect())
            };
            let (before, at, after) = (shifted(e, -1), shifted(e, 0), shifted(e, 1));
            // The first row lacks R_{-1}: 1 - R_0 + R_1. The last one saturates: R_{n-2} - R_{n-1}.
            let mut at_factor = vec![-2i64; length];
            at_factor[0] = -1;
            at_factor[length - 1] = -1;
            let at = e.scale_each(&at, &at_factor);
            let mut first = vec![0; length];
            first[0] = fine;
            let hats = e.add(&before, &after);
            let hats = e.add(&hats, &at);
            let hats = e.add_public(&hats, &first);
            let outside = |e: &mut E, j: usize| {
                let of = |b: usize| {
                    let last = move |i: usize| i + 1 == length;
                    (0..length).map(move |i| if last(i) { (line(b) + length + j) as u32 } else { ZERO })
                };
                e.gather_by(&[bends], bins * length, || (0..bins).flat_map(of).collect())
            };
            let (beyond, more) = (outside(e, 0), outside(e, 1));
            let bit = e.sub(&beyond, &more);
            let bit = e.scale(&bit, fine);
            let hats = e.sub(&hats, &bit);
            total = Some(match total {
                None => hats,
                Some(sum) => e.add(&sum, &hats),
            });
        }
        total.expect("at least one sample")
    }

    /// As fine as the products leave room for, up to 2^16.
    fn weight_scale<E: Engine>(&self, scope: &Scope, features: &Number<E, Full>) -> f64 {
        let room = scope.bounds().full as f64 / (features.bound() * features.scale()).max(1.0);
        (room / 4.0).sqrt().min(65_536.0)
    }
}
