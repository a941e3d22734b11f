//! The first rows that are kept, in order, moved to the front of a list of public length.
//!
//! Functionality  from rows and keep bits deliver the first `k` kept rows, in order, and zeros where there are
//!                fewer; reveals nothing, in particular not how many there are.
//! Method         prefix sums give each row its place: kept rows first, the others behind them. Rows that are
//!                not kept are multiplied by zero, the list is shuffled, and the places are opened.
//! Security       the places are a permutation, so after a uniform shuffle they open as a uniform permutation.
//! Cost           4 rounds: product, shuffle (2), places.

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::Full;
use sharelens_protocol::{Error, Result};

use super::{columns, rows};
use crate::engine::{Engine, Shuffled};
use crate::layers::{join, prefix_sums, range};
use crate::number::Scope;

/// The first kept rows of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepFirst {
    /// Rows of the list.
    pub rows: usize,
    /// Columns of a row.
    pub width: usize,
    /// Columns of a row of the result: the first ones.
    pub columns: usize,
    /// Rows of the result.
    pub k: usize,
}

impl KeepFirst {
    /// Whether the numbers are sane.
    pub const fn is_valid(&self) -> bool {
        self.rows > 0
            && self.rows <= super::rank::MAX_ROWS
            && self.columns > 0
            && self.columns <= self.width
            && self.width <= 64
            && self.k > 0
            && self.k <= self.rows
    }

    /// From rows `[rows, width]` and keep bits, the first `rows` of `keep`, to `[k, columns]`.
    ///
    /// # Errors
    /// As the engine.
    pub async fn run<E: Engine>(
        &self,
        e: &mut E,
        scope: &mut Scope,
        list: &E::V<Full>,
        keep: &E::V<Full>,
    ) -> Result<E::V<Full>> {
        let (n, c) = (self.rows, self.columns);
        if e.len(list) != n * self.width || e.len(keep) < n {
            return Err(Error::Config(format!("a list of another shape than {n} rows")));
        }
        let all: Vec<u32> = (0..n as u32).collect();
        let keep = range(e, keep, 0, n);
        // With s the kept rows up to and with row i, t all kept rows: place = s - 1 if kept, else t + i - s.
        let sums = prefix_sums(e, &keep, n);
        let total = e.gather(&[&sums], &vec![n as u32 - 1; n]);
        let index: Vec<i64> = (0..n as i64).collect();
        let other = e.sub(&total, &sums);
        let other = e.add_public(&other, &index);
        let own = e.add_public(&sums, &[-1]);
        let gain = e.sub(&own, &other);
        let wanted = e.gather(&[list], &columns(n, self.width, &(0..c).collect::<Vec<_>>()));
        let factors = join(e, &[&wanted, &gain]);
        let bits: Vec<u32> = all.iter().flat_map(|&i| std::iter::repeat_n(i, c)).chain(all.clone()).collect();
        let bits = e.gather(&[&keep], &bits);
        let products = e.mul(scope.step(), &factors, &bits).await?;
        let gain = range(e, &products, n * c, n * c + n);
        let place = e.add(&other, &gain);
        let index: Vec<u32> = (0..n as u32)
            .flat_map(|i| {
                let (n, c) = (n as u32, c as u32);
                (0..c).map(move |j| i * c + j).chain([n * c + n + i])
            })
            .collect();
        let list = e.gather(&[&products, &place], &index);
        let list = e.shuffle(scope.step(), n, &list).await?;
        let places = e.gather(&[list.rows()], &columns(n, c + 1, &[c]));
        let places = Shuffled::new(e.reduce(&places));
        let places = e.open_places(scope.step(), &places).await?;
        let mut order = vec![0; n];
        places.iter().zip(0..).for_each(|(&place, row)| order[place as usize] = row);
        order.truncate(self.k);
        let list = e.gather(&[list.rows()], &rows(&order, c + 1));
        Ok(e.gather(&[&list], &columns(self.k, c + 1, &(0..c).collect::<Vec<_>>())))
    }
}
