//! Non-maximum suppression without a division, all pairs at once, and the greedy result as a fixed point.
//!
//! Functionality  from boxes in the order of their scores deliver keep bits: a box stays if it is valid and no
//!                kept box before it overlaps it by more than the threshold; reveals nothing.
//! Method         overlap > t is inter * (1 + t) > t * (area + area'). With S the matrix of these bits, keep is
//!                the one solution of keep_i = valid_i and no j < i has keep_j S_ji. Iterating from all ones
//!                reaches it after as many steps as the longest chain of boxes that decide each other. The map
//!                turns order around, so iterates lie above and below the solution in turn, and the
//!                sums of the last two differ by the number of boxes that are not settled: the client learns it
//!                and can tell a list that is not final.
//! Cost           4 (relu: overlaps, validity) + 4 (relu) + 1 (products) + 4 (signs) + 5 steps - 1 rounds.
//! Exact          for boxes as they are given, at ties too, but for the threshold's rounding to a public fraction.

use std::cell::LazyCell;

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::Full;
use sharelens_protocol::{Error, Result, order};

use super::{Extent, columns};
use crate::engine::{Engine, ProductShape, ZERO};
use crate::layers::{join, prefix_sums, range, split, zeros};
use crate::number::{Number, Scope};
use crate::opened::Bits;

/// Suppression within one list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Suppress {
    /// Rows of the list.
    pub rows: usize,
    /// Columns of a row; the first four are corners.
    pub width: usize,
    /// The picture.
    pub extent: Extent,
    /// Smallest side of a valid box, as an integer.
    pub least_side: i64,
    /// What else makes a row valid: a column and its smallest valid integer.
    pub least: Vec<(usize, i64)>,
    /// A column of class numbers: boxes of different classes do not see each other.
    pub class: Option<usize>,
    /// Largest class number.
    pub classes: usize,
    /// Largest overlap (intersection over union) that is not suppressed.
    pub threshold: f64,
    /// Steps of the iteration; as many as rows are always enough.
    pub steps: usize,
}

/// Most rows that are compared pairwise.
pub const MAX_ROWS: usize = 4096;

impl Suppress {
    /// Whether the numbers are sane.
    pub fn is_valid(&self) -> bool {
        let columns = self.least.iter().map(|l| l.0).chain(self.class).all(|c| c >= 4 && c < self.width);
        (1..=MAX_ROWS).contains(&self.rows)
            && (4..=64).contains(&self.width)
            && columns
            && self.least.len() <= 8
            && self.least.iter().map(|l| l.1).chain([self.least_side]).all(|l| l.unsigned_abs() < 1 << 61)
            && self.extent.is_valid()
            && (0.0..=1.0).contains(&self.threshold)
            && (1..=self.rows.max(2)).contains(&self.steps)
            && self.classes <= 4096
    }

    /// Online rounds in the residue number system.
    pub const fn rounds(&self) -> u64 {
        13 + 5 * self.steps as u64 - 1
    }

    /// From rows `[rows, width]` to keep bits and, behind them, those of the step before, from which [`Unsettled`] follows.
    ///
    /// # Errors
    /// If numbers may leave their range; as the engine.
    pub async fn run<E: Engine>(&self, e: &mut E, scope: &mut Scope, list: &E::V<Full>) -> Result<Bits<E>> {
        let (p, n) = (order::count(self.rows, self.rows)?, self.rows);
        // Listed once, and not at all by who plans.
        let pairs = LazyCell::new(|| order::pairs(n, n).unwrap_or_default());
        let first = || pairs.iter().map(|p| p.0).collect::<Vec<u32>>();
        let second = || pairs.iter().map(|p| p.1).collect::<Vec<u32>>();
        let column = |e: &mut E, c: usize| e.gather(&[list], &columns(self.rows, self.width, &[c]));
        let corners = [column(e, 0), column(e, 1), column(e, 2), column(e, 3)];
        let sides = [e.sub(&corners[2], &corners[0]), e.sub(&corners[3], &corners[1])];
        let corners = self.apart(e, scope, corners, list)?;

        // First round of bends: overlaps along each axis, and what makes a row valid.
        let mut bends = Vec::new();
        let mut reach = Vec::new();
        for axis in 0..2 {
            let [low, high] = [&corners[axis], &corners[axis + 2]];
            let (a, b) = (e.gather_by(&[low], p, first), e.gather_by(&[low], p, second));
            bends.push(e.sub(&b, &a));
            let (c, d) = (e.gather_by(&[high], p, first), e.gather_by(&[high], p, second));
            bends.push(e.sub(&c, &d));
            reach.push(e.sub(&c, &a));
        }
        let values = sides.iter().cloned().zip([self.least_side; 2]);
        let others = self.least.iter().map(|&(c, least)| (c, least)).collect::<Vec<_>>();
        let others = others.into_iter().map(|(c, least)| (column(e, c), least)).collect::<Vec<_>>();
        let conditions: Vec<_> = values.chain(others).collect();
        for (v, least) in &conditions {
            bends.push(e.add_public(v, &[1 - least]));
            bends.push(e.add_public(v, &[-least]));
        }
        let bends = join(e, &bends.iter().collect::<Vec<_>>());
        let bends = e.reduce(&bends);
        let bends = e.relu(scope.step(), &bends).await?;
        let part = |e: &mut E, from: usize, len: usize| range(e, &bends, from, from + len);
        // [v >= least] = relu(v - least + 1) - relu(v - least), since these are integers.
        let none = zeros(e, &sides[0]);
        let mut invalid = e.add_public(&none, &[conditions.len() as i64]);
        for c in 0..conditions.len() {
            let (above, at) = (part(e, 4 * p + 2 * c * n, n), part(e, 4 * p + (2 * c + 1) * n, n));
            let bit = e.sub(&above, &at);
            invalid = e.sub(&invalid, &bit);
        }

        // min(high) - max(low) along each axis, at least zero.
        let mut inner = Vec::new();
        for (axis, reach) in reach.iter().enumerate() {
            let (low, high) = (part(e, 2 * axis * p, p), part(e, (2 * axis + 1) * p, p));
            let v = e.sub(reach, &low);
            inner.push(e.sub(&v, &high));
        }
        let inner = join(e, &inner.iter().collect::<Vec<_>>());
        let inner = e.reduce(&inner);
        let inner = e.relu(scope.step(), &inner).await?;

        // Areas of intersections and of boxes.
        let (x, y) = (range(e, &inner, 0, p), range(e, &inner, p, 2 * p));
        let (x, y) = (join(e, &[&x, &sides[0]]), join(e, &[&y, &sides[1]]));
        let area = e.mul(scope.step(), &x, &y).await?;
        let area = Number::<E, Full>::new(
            scope,
            area,
            self.extent.scale * self.extent.scale,
            self.extent.width * self.extent.height,
        )?;
        let (unit, t) = self.fraction(scope, &area)?;
        let (scale, bound) = (area.scale(), area.bound());
        let [inter, boxes] = split(e, area.integers(), [p, n]);
        let number = |v| Number::<E, Full>::new(scope, v, scale, bound);
        let (a, b) = (e.gather_by(&[&boxes], p, first), e.gather_by(&[&boxes], p, second));
        let (inter, a, b) = (number(inter)?, number(a)?, number(b)?);
        let sum = a.add(e, scope, &b)?.times(e, scope, t)?;
        let excess = inter.times(e, scope, unit + t)?;
        // Positive where the first suppresses the second; a tie stays exactly zero through the rescale.
        let verdict = sum.sub(e, scope, &excess)?;
        let verdict = e.rescale(scope.step(), verdict.integers()).await?;
        let suppressed = e.is_negative(scope.step(), &verdict).await?;
        self.settle(e, scope, &suppressed, &invalid).await
    }

    /// Corners with each class moved to a place of its own.
    fn apart<E: Engine>(
        &self,
        e: &mut E,
        scope: &Scope,
        corners: [E::V<Full>; 4],
        list: &E::V<Full>,
    ) -> Result<[E::V<Full>; 4]> {
        let Some(class) = self.class else {
            return Ok(corners);
        };
        let distance = self.extent.largest() + 1.0;
        // Differences of these are compared.
        let furthest = distance * (self.classes + 1) as f64;
        scope.check_reduced(self.extent.scale * furthest, "coordinates of classes set apart")?;
        let class = e.gather(&[list], &columns(self.rows, self.width, &[class]));
        let offset = e.scale(&class, (distance * self.extent.scale).ceil() as i64);
        Ok(corners.map(|c| e.add(&c, &offset)))
    }

    /// The threshold as `t / unit`.
    fn fraction<E: Engine>(&self, scope: &Scope, area: &Number<E, Full>) -> Result<(i64, i64)> {
        let largest = 4.0 * area.bound() * area.scale();
        let room = (scope.bounds().full as f64 / largest)
            .min(scope.bounds().reduced as f64 / (largest / scope.bounds().divisor as f64));
        if room < 256.0 {
            return Err(Error::Config("areas of boxes leave no room for the threshold".into()));
        }
        let unit = (1i64 << 16).min(1 << room.log2() as u32);
        Ok((unit, (self.threshold * unit as f64).round() as i64))
    }

    /// The fixed point.
    async fn settle<E: Engine>(
        &self,
        e: &mut E,
        scope: &mut Scope,
        suppressed: &E::V<Full>,
        invalid: &E::V<Full>,
    ) -> Result<Bits<E>> {
        let n = self.rows;
        let below = || {
            let mut index = vec![ZERO; n * n];
            let pairs = order::pairs(n, n).unwrap_or_default();
            pairs.iter().enumerate().for_each(|(at, &(j, i))| index[i as usize * n + j as usize] = at as u32);
            index
        };
        let matrix = e.gather_by(&[suppressed], n * n, below);
        // The first step, from all ones: row sums.
        let mut count = zeros(e, invalid);
        for j in 0..n {
            let column = e.gather_by(&[&matrix], n, || (0..n).map(|i| (i * n + j) as u32).collect());
            count = e.add(&count, &column);
        }
        let shape = ProductShape { groups: 1, m: 1, k: n, n, uses: self.steps - 1 };
        let mut operand = match self.steps {
            1 => None,
            _ => Some(e.operand(scope.step(), shape, matrix)?),
        };
        let mut keep = Bits::ones(e, n);
        let mut before = keep.clone();
        for step in 0..self.steps {
            if let (Some(operand), 1..) = (&mut operand, step) {
                count = e.product(scope.step(), operand, keep.numbers()).await?;
            }
            let against = e.add(&count, invalid);
            let against = e.reduce(&against);
            let against = e.add_public(&against, &[-1]);
            let next = Bits::negative(e, scope.step(), &against).await?;
            before = std::mem::replace(&mut keep, next);
        }
        Ok(Bits::join(e, &[&keep, &before]))
    }
}

/// How many rows a suppression has not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsettled {
    /// Rows of its list.
    pub rows: usize,
    /// Steps that it took.
    pub steps: usize,
}

impl Unsettled {
    /// Whether the numbers are sane.
    pub fn is_valid(&self) -> bool {
        (1..=MAX_ROWS).contains(&self.rows) && (1..=MAX_ROWS).contains(&self.steps)
    }

    /// From what [`Suppress::run`] yields to one number. Local.
    ///
    /// # Errors
    /// [`Error::Config`] if the bits are others.
    pub fn run<E: Engine>(&self, e: &mut E, bits: &Bits<E>) -> Result<E::V<Full>> {
        let n = self.rows;
        if bits.len(e) != 2 * n {
            return Err(Error::Config(format!("{} bits of {n} rows", bits.len(e))));
        }
        let [last, before] = [0, n].map(|from| range(e, bits.numbers(), from, from + n));
        // Even iterates lie above, odd ones below: the difference is 1 or 0 throughout.
        let changed = if self.steps % 2 == 1 { e.sub(&before, &last) } else { e.sub(&last, &before) };
        let total = prefix_sums(e, &changed, n);
        Ok(e.gather(&[&total], &[n as u32 - 1]))
    }
}
