//! Which level of a feature pyramid a secret box belongs to, and the features of that level.
//!
//! Functionality  from boxes and what RoIAlign yields at every level deliver what it yields at the box's own
//!                level; reveals nothing, so all levels are computed.
//! Method         level = floor(level_0 + log2(sqrt(area) / size_0)) within bounds is at least l where area >=
//!                size_0^2 4^(l - level_0): one sign per level, no root and no logarithm. Differences of
//!                neighbouring bits select.
//! Cost           6 rounds: area, signs (4), selection.
//! Source         Lin et al., CVPR 2017, equation 1; torchvision's `MultiScaleRoIAlign`.

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::Full;
use sharelens_protocol::{Error, Result};

use super::{Extent, columns};
use crate::engine::Engine;
use crate::layers::{join, range};
use crate::number::{Number, Scope};

/// Levels of a pyramid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Levels {
    /// Boxes.
    pub boxes: usize,
    /// The picture.
    pub extent: Extent,
    /// Area from which on a box belongs to the second, third, ... level, ascending, in square units.
    pub areas: Vec<f64>,
}

impl Levels {
    /// From `lowest` to `highest`, where a box of side `size` (in units) belongs to level `canonical`.
    pub fn new(boxes: usize, extent: Extent, [lowest, canonical, highest]: [i32; 3], size: f64) -> Self {
        // The same slack as torchvision's: a box of exactly the limit belongs to the larger level.
        let area = |l: i32| size * size * (2.0 * (f64::from(l - canonical) - 1e-6)).exp2();
        Self { boxes, extent, areas: (lowest + 1..=highest).map(area).collect() }
    }

    /// From boxes `[boxes, 4]` and the features of each level, `[boxes, m]`, to `[boxes, m]`.
    ///
    /// # Errors
    /// If numbers may leave their range; as the engine.
    pub async fn select<E: Engine>(
        &self,
        e: &mut E,
        scope: &mut Scope,
        boxes: &E::V<Full>,
        features: &[&E::V<Full>],
    ) -> Result<E::V<Full>> {
        let (k, limits) = (self.boxes, self.areas.len());
        if features.len() != limits + 1 || e.len(boxes) != 4 * k {
            return Err(Error::Config(format!("{} levels for {} limits", features.len(), limits)));
        }
        let m = e.len(features[0]) / k;
        let low = e.gather(&[boxes], &columns(k, 4, &[0, 1]));
        let high = e.gather(&[boxes], &columns(k, 4, &[2, 3]));
        let size = e.sub(&high, &low);
        let (w, h) = (e.gather(&[&size], &columns(k, 2, &[0])), e.gather(&[&size], &columns(k, 2, &[1])));
        let area = e.mul(scope.step(), &w, &h).await?;
        let scale = self.extent.scale * self.extent.scale;
        let area = Number::<E, Full>::new(scope, area, scale, self.extent.width * self.extent.height)?;
        let repeated: Vec<u32> = (0..k as u32).flat_map(|i| std::iter::repeat_n(i, limits)).collect();
        let limits_below: Vec<f64> = self.areas.iter().map(|a| -a).collect();
        let excess = area.gather(e, &repeated).add_public(e, scope, &limits_below)?;
        let fine = (self.extent.scale * 4.0).min(scope.bounds().reduced as f64 / excess.bound() / 2.0);
        let below = excess.rescale(e, scope, fine).await?.is_negative(e, scope).await?;
        // [level >= l] for l = 0..; the first always holds, and beyond the last it never does.
        let above = e.scale(below.integers(), -1);
        let above = e.add_public(&above, &[1]);
        let mut chosen = Vec::new();
        for l in 0..=limits {
            let bit = |e: &mut E, l: usize| e.gather(&[&above], &columns(k, limits, &[l]));
            let bit = match (l, limits) {
                (0, 0) => return Ok(features[0].clone()),
                (0, _) => {
                    let next = bit(e, 0);
                    let none = e.scale(&next, -1);
                    e.add_public(&none, &[1])
                }
                (l, limits) if l == limits => bit(e, l - 1),
                (l, _) => {
                    let (own, next) = (bit(e, l - 1), bit(e, l));
                    e.sub(&own, &next)
                }
            };
            let wide: Vec<u32> = (0..k as u32).flat_map(|i| std::iter::repeat_n(i, m)).collect();
            chosen.push(e.gather(&[&bit], &wide));
        }
        let (bits, all) = (join(e, &chosen.iter().collect::<Vec<_>>()), join(e, features));
        let parts = e.mul(scope.step(), &bits, &all).await?;
        let n = k * m;
        let mut sum = range(e, &parts, 0, n);
        for l in 1..features.len() {
            let part = range(e, &parts, l * n, (l + 1) * n);
            sum = e.add(&sum, &part);
        }
        Ok(sum)
    }
}
