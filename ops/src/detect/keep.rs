//! The first rows that are kept, in order, moved to the front of a list of public length.
//!
//! Functionality  from rows and keep bits deliver the first `k` kept rows, in order, and zeros where there are
//!                fewer; reveals nothing, in particular not how many there are.
//! Method         prefix sums give each row its place: kept rows first, the others behind them. Rows that are
//!                not kept are multiplied by zero, the list is shuffled, and the places are opened.
//! Security       the places are a permutation whatever the bits are ([`Places`]), so after a uniform shuffle they open
//!                as a uniform permutation.
//! Cost           4 rounds: product, shuffle (2), places.

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::Full;
use sharelens_protocol::{Error, Result};

use super::{columns, rows};
use crate::engine::Engine;
use crate::number::Scope;
use crate::opened::{Bits, Places};

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
        keep: &Bits<E>,
    ) -> Result<E::V<Full>> {
        let (n, c) = (self.rows, self.columns);
        if e.len(list) != n * self.width || keep.len(e) < n {
            return Err(Error::Config(format!("a list of another shape than {n} rows")));
        }
        let keep = keep.part(e, 0, n);
        let wanted = e.gather(&[list], &columns(n, self.width, &(0..c).collect::<Vec<_>>()));
        let (places, kept) = Places::ones_first(e, scope, &keep, &wanted, c).await?;
        let (list, places) = places.shuffle(e, scope.step(), &kept, c).await?;
        let places = e.open_places(scope.step(), &places).await?;
        let mut order = vec![0; n];
        places.iter().zip(0..).for_each(|(&place, row)| order[place as usize] = row);
        order.truncate(self.k);
        Ok(e.gather(&[&list], &rows(&order, c)))
    }
}
