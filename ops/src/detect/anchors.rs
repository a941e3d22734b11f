//! The best anchors: objectness and deltas of a region proposal network to the rows that will be decoded.

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::Reduced;
use sharelens_protocol::{Error, Result};

use super::rank::{self, Level};
use crate::engine::Engine;
use crate::layers::zeros;
use crate::number::{Number, Scope};
use crate::opened::Keys;

/// The best `k` anchors of a grid by objectness. Its sigmoid is skipped: it changes no order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TopAnchors {
    /// Rows and columns of the grid.
    pub grid: [usize; 2],
    /// Centre (from the grid point) and size of each anchor of a point: x, y, width, height, in units of the
    /// distance of grid points.
    pub anchors: Vec<[f64; 4]>,
    /// How many stay.
    pub k: usize,
    /// How they are found.
    pub levels: Vec<Level>,
}

impl TopAnchors {
    /// Columns of a row of the result: dx, dy, dw, dh and centre x, y, width, height of the anchor.
    pub const WIDTH: usize = 8;

    /// Anchors in all.
    pub fn count(&self) -> usize {
        self.grid[0] * self.grid[1] * self.anchors.len()
    }

    /// Whether the sizes are sane.
    pub fn is_valid(&self) -> bool {
        let count = self.grid.iter().try_fold(self.anchors.len(), |a, &d| a.checked_mul(d));
        let finite = self.anchors.iter().flatten().all(|v| v.is_finite() && v.abs() < 1e6);
        finite && count.is_some_and(|n| n > 0 && rank::are_valid(&self.levels, n, self.k))
    }

    /// How far keys exceed logits: what the range of logits is to be multiplied by.
    pub fn room(&self) -> f64 {
        2.0 * (self.count() + 1) as f64
    }

    /// From logits `[h, w, a]` and deltas `[h, w, 4 a]` to `[k, 8]` at the scale of the deltas, best first; of
    /// equal logits the first anchor (by row, column, anchor) is the better.
    ///
    /// # Errors
    /// As [`rank::best`], and if keys leave the range.
    pub async fn run<E: Engine>(
        &self,
        e: &mut E,
        scope: &mut Scope,
        logits: &Number<E, Reduced>,
        deltas: &Number<E, Reduced>,
    ) -> Result<E::V<Reduced>> {
        let n = self.count();
        if logits.len(e) != n || deltas.len(e) != 4 * n {
            return Err(Error::Config(format!("logits and deltas do not fit {n} anchors")));
        }
        let keys = Keys::of(e, scope, logits).await?;
        let places = self.places();
        let nothing = zeros(e, deltas.integers());
        let integers: Vec<i64> = places.iter().map(|v| (v * deltas.scale()).round() as i64).collect();
        let places = e.add_public(&nothing, &integers);
        let index: Vec<u32> = (0..n as u32)
            .flat_map(|i| {
                let n = n as u32;
                (0..4).map(move |c| 4 * i + c).chain((0..4).map(move |c| 4 * n + 4 * i + c))
            })
            .collect();
        let list = e.gather(&[deltas.integers(), &places], &index);
        rank::best::<_, Reduced>(e, scope, &keys, &list, Self::WIDTH, (self.k, &self.levels)).await
    }

    /// Centre and size of every anchor.
    pub fn places(&self) -> Vec<f64> {
        let points = (0..self.grid[0]).flat_map(|y| (0..self.grid[1]).map(move |x| (x as f64, y as f64)));
        points
            .flat_map(|(x, y)| self.anchors.iter().flat_map(move |&[cx, cy, w, h]| [x + cx, y + cy, w, h]))
            .collect()
    }
}
