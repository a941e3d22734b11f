//! What may be opened, as types.
//!
//! A server that sees an order or a set of places must learn nothing from it. That holds if the list was shuffled
//! and if what is opened is an order (of keys that are all different) or a permutation, *whatever words the clients
//! and model owners sent*: somebody who writes a model chooses every constant and every shape, and somebody who sends
//! a picture chooses every word of it. So what is opened is not any vector that ought to be right, but one of three
//! types, which only this module makes, by protocols that are right for every word:
//!
//! | type | what it holds, for every word | made from |
//! |---|---|---|
//! | [`Bits`] | 0 or 1 | signs, and constants |
//! | [`Keys`] | numbers that are all different and so close together that no difference wraps | any numbers, by an exact clamp |
//! | [`Places`] | a permutation of 0..n | [`Bits`] |
//!
//! [`ShuffledKeys`] and [`ShuffledPlaces`] are the same in an order that nobody knows. Engines open these two alone.
//!
//! A vector that merely ought to be a permutation cannot be opened:
//!
//! ```compile_fail
//! use sharelens_ops::Engine;
//! use sharelens_protocol::{Step, ring::Reduced};
//!
//! async fn open<E: Engine>(e: &mut E, x: &E::V<Reduced>) {
//!     let shuffled = e.shuffle(Step::layer(0), e.len(x), x).await.unwrap();
//!     e.open_places(Step::layer(0).call(1), &shuffled).await.unwrap();
//! }
//! ```
//!
//! Example: rows with bits 0, 1, 1 have places 2, 0, 1: those that are kept come first. Had the "bits" been pixels,
//! say 7, 0, 3, the places would be numbers from which the pixels follow. The type rules that out.

use sharelens_protocol::ring::{Domain, Full, Reduced};
use sharelens_protocol::{Error, Result, Step};

use crate::detect::columns;
use crate::engine::{Engine, ZERO};
use crate::layers::{join, prefix_sums, range};
use crate::number::{Number, Scope};

/// Shared bits. Each is 0 or 1 whatever was shared before, since nothing but a sign or a constant makes one.
pub struct Bits<E: Engine>(E::V<Full>);

impl<E: Engine> Clone for Bits<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Engine> Bits<E> {
    /// 1 where x < 0, else 0. Every word of the smaller range is one or the other, so these are bits whatever x holds.
    ///
    /// # Errors
    /// As the engine.
    pub async fn negative(e: &mut E, at: Step, x: &E::V<Reduced>) -> Result<Self> {
        Ok(Self(e.is_negative(at, x).await?))
    }

    /// `n` ones. Local.
    pub fn ones(e: &mut E, n: usize) -> Self {
        let zeros = e.gather::<Full>(&[], &vec![ZERO; n]);
        Self(e.add_public(&zeros, &[1]))
    }

    /// All of `parts`, one after the other. Local.
    pub fn join(e: &mut E, parts: &[&Self]) -> Self {
        Self(join(e, &parts.iter().map(|p| &p.0).collect::<Vec<_>>()))
    }

    /// Bits `from..to`. Local.
    pub fn part(&self, e: &mut E, from: usize, to: usize) -> Self {
        Self(range(e, &self.0, from, to))
    }

    /// How many there are.
    pub fn len(&self, e: &E) -> usize {
        e.len(&self.0)
    }

    /// The bits as numbers, which anything may be computed from.
    pub const fn numbers(&self) -> &E::V<Full> {
        &self.0
    }

    /// The bits as numbers, given away.
    pub fn into_numbers(self) -> E::V<Full> {
        self.0
    }
}

/// A domain in which keys can be shuffled along with rows.
pub trait Keyed: Domain {
    /// Numbers of this domain that are known to fit the smaller range, there. Local.
    fn narrow<E: Engine>(e: &mut E, v: &E::V<Self>) -> E::V<Reduced>;

    /// Numbers of the larger range, here. Local.
    fn from_full<E: Engine>(e: &mut E, v: &E::V<Full>) -> E::V<Self>;
}

impl Keyed for Full {
    fn narrow<E: Engine>(e: &mut E, v: &E::V<Self>) -> E::V<Reduced> {
        e.reduce(v)
    }

    fn from_full<E: Engine>(_: &mut E, v: &E::V<Full>) -> E::V<Self> {
        v.clone()
    }
}

impl Keyed for Reduced {
    fn narrow<E: Engine>(_: &mut E, v: &E::V<Self>) -> E::V<Reduced> {
        v.clone()
    }

    fn from_full<E: Engine>(e: &mut E, v: &E::V<Full>) -> E::V<Self> {
        e.reduce(v)
    }
}

/// Keys by which a list may be put in order in the open: all different, and less than half the smaller range apart.
pub struct Keys<E: Engine> {
    v: E::V<Full>,
    numbers: Number<E, Full>,
}

impl<E: Engine> Keys<E> {
    /// Rounds of [`Keys::of`]: a sign, and a product.
    pub const ROUNDS: u64 = 5;

    /// Keys for `x`: larger numbers have larger keys, and of equal ones the first has the largest.
    ///
    /// x is first moved into [-L, L], exactly and for every word, with L the largest number for which keys fit. Key i
    /// of n is n x + (n - 1 - i).
    ///
    /// # Errors
    /// [`Error::Config`] if x may be larger than L, so that preparation refuses what the clamp would change; as the
    /// engine.
    pub async fn of(e: &mut E, scope: &mut Scope, x: &Number<E, Reduced>) -> Result<Self> {
        let n = x.len(e) as i64;
        let most = largest_key(scope, n)?;
        if x.bound() * x.scale() > most as f64 {
            return Err(Error::Config(format!(
                "keys of {n} numbers up to {:.4} at scale {:.1} do not fit; numbers may reach {most}",
                x.bound(),
                x.scale()
            )));
        }
        let clamped = confine(e, scope, x.integers(), most).await?;
        let numbers = Number::new(scope, clamped, x.scale(), x.bound())?;
        let places: Vec<i64> = (0..n).rev().collect();
        let v = e.scale(numbers.integers(), n);
        let v = e.add_public(&v, &places);
        Ok(Self { v, numbers })
    }

    /// The numbers themselves, clamped, in the larger range.
    pub const fn numbers(&self) -> &Number<E, Full> {
        &self.numbers
    }

    /// Puts rows in an order that nobody knows, with their keys. `rows` holds `width` numbers for each key.
    ///
    /// # Errors
    /// As the engine.
    pub async fn shuffle<D: Keyed>(
        &self,
        e: &mut E,
        at: Step,
        rows: &E::V<D>,
        width: usize,
    ) -> Result<(E::V<D>, ShuffledKeys<E::V<Reduced>>)> {
        let keys = D::from_full(e, &self.v);
        let (rows, keys) = shuffle(e, at, rows, width, &keys).await?;
        Ok((rows, ShuffledKeys(D::narrow(e, &keys))))
    }
}

/// The largest L for which differences of `n` keys n x + i, |x| <= L, stay below half the smaller range.
fn largest_key(scope: &Scope, n: i64) -> Result<i64> {
    let most = (scope.bounds().reduced - n) / (2 * n.max(1));
    // The clamp compares numbers up to 2 L + 1.
    let most = most.min((scope.bounds().reduced - 1) / 2);
    if most < 1 {
        return Err(Error::Config(format!("keys of {n} numbers leave the range of comparisons")));
    }
    Ok(most)
}

/// x where |x| <= `most`, `most` where x is larger, - `most` where it is smaller; and for *every* word of the smaller
/// range a number in [- `most`, `most`]. In the larger range.
///
/// With y = max(x + L, 0), t = [x + L < 0] and s = [x - L - 1 < 0] the result is y s + 2 L (1 - s)(1 - t) - L. Let the
/// word lie anywhere: y > 0 says that x + L is in the lower half, s that x - L - 1 is in the upper one, and both hold
/// for x in [-L, L] alone, so that y s is at most 2 L; and where the second term is not zero, s, and so the first, is.
async fn confine<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &E::V<Reduced>,
    most: i64,
) -> Result<E::V<Full>> {
    let n = e.len(x);
    let low = e.add_public(x, &[most]);
    let high = e.add_public(x, &[-most - 1]);
    let both = join(e, &[&low, &high]);
    let (bends, signs) = e.relu_and_sign(scope.step(), &both).await?;
    let y = range(e, &bends, 0, n);
    let [t, s] = [0, n].map(|from| range(e, &signs, from, from + n));
    let (left, right) = (join(e, &[&y, &t]), join(e, &[&s, &s]));
    let products = e.mul(scope.step(), &left, &right).await?;
    let [ys, ts] = [0, n].map(|from| range(e, &products, from, from + n));
    // (1 - s)(1 - t) = 1 - s - t + t s
    let neither = e.sub(&ts, &s);
    let neither = e.sub(&neither, &t);
    let neither = e.scale(&neither, 2 * most);
    let sum = e.add(&ys, &neither);
    Ok(e.add_public(&sum, &[most]))
}

/// [`Keys`] in an order that nobody knows: their order may be opened, since it is uniform.
#[derive(Clone, Debug)]
pub struct ShuffledKeys<V>(V);

impl<V> ShuffledKeys<V> {
    /// The keys.
    pub const fn keys(&self) -> &V {
        &self.0
    }

    /// The keys at public places, which follow from orders that were opened before. Local.
    #[must_use]
    pub fn select<E: Engine<V<Reduced> = V>>(&self, e: &mut E, index: &[u32]) -> Self {
        Self(e.gather::<Reduced>(&[&self.0], index))
    }
}

/// Where each row of a list belongs: a permutation.
pub struct Places<E: Engine>(E::V<Full>);

impl<E: Engine> Places<E> {
    /// Places that put rows with a 1 in front, in their order, and the others behind them, in theirs; and the rows times
    /// their bits. `rows` holds `width` numbers for each bit. One round.
    ///
    /// With s the ones up to and with row i and t all ones, the place is s - 1 for a 1 and t + i - s for a 0: a
    /// permutation for any bits.
    ///
    /// # Errors
    /// [`Error::Config`] if there are more rows than numbers in the smaller range; as the engine.
    pub async fn ones_first(
        e: &mut E,
        scope: &mut Scope,
        bits: &Bits<E>,
        rows: &E::V<Full>,
        width: usize,
    ) -> Result<(Self, E::V<Full>)> {
        let n = bits.len(e);
        if n as i64 > scope.bounds().reduced || e.len(rows) != n * width {
            return Err(Error::Config(format!("{n} rows cannot be given places")));
        }
        let sums = prefix_sums(e, bits.numbers(), n);
        let total = e.gather(&[&sums], &vec![n as u32 - 1; n]);
        let index: Vec<i64> = (0..n as i64).collect();
        let other = e.sub(&total, &sums);
        let other = e.add_public(&other, &index);
        let own = e.add_public(&sums, &[-1]);
        let gain = e.sub(&own, &other);
        let factors = join(e, &[rows, &gain]);
        let all = 0..n as u32;
        let of_rows = all.clone().flat_map(|i| std::iter::repeat_n(i, width));
        let bits = e.gather(&[bits.numbers()], &of_rows.chain(all).collect::<Vec<_>>());
        let products = e.mul(scope.step(), &factors, &bits).await?;
        let gain = range(e, &products, n * width, n * width + n);
        Ok((Self(e.add(&other, &gain)), range(e, &products, 0, n * width)))
    }

    /// Puts rows in an order that nobody knows, with their places. `rows` holds `width` numbers for each place.
    ///
    /// # Errors
    /// As the engine.
    pub async fn shuffle(
        &self,
        e: &mut E,
        at: Step,
        rows: &E::V<Full>,
        width: usize,
    ) -> Result<(E::V<Full>, ShuffledPlaces<E::V<Reduced>>)> {
        let (rows, places) = shuffle(e, at, rows, width, &self.0).await?;
        Ok((rows, ShuffledPlaces(e.reduce(&places))))
    }
}

/// [`Places`] in an order that nobody knows: they may be opened, since they are a uniform permutation.
#[derive(Clone, Debug)]
pub struct ShuffledPlaces<V>(V);

impl<V> ShuffledPlaces<V> {
    /// The places.
    pub const fn places(&self) -> &V {
        &self.0
    }
}

/// Shuffles rows of `width` numbers with one more number each, and takes them apart again.
async fn shuffle<E: Engine, D: Domain>(
    e: &mut E,
    at: Step,
    rows: &E::V<D>,
    width: usize,
    more: &E::V<D>,
) -> Result<(E::V<D>, E::V<D>)> {
    let n = e.len(more);
    if n == 0 || e.len(rows) != n * width {
        return Err(Error::Config(format!("{} numbers are not {n} rows of {width}", e.len(rows))));
    }
    let of_row = |i: u32| (i * width as u32..(i + 1) * width as u32).chain([(n * width) as u32 + i]);
    let index: Vec<u32> = (0..n as u32).flat_map(of_row).collect();
    let list = e.gather(&[rows, more], &index);
    let list = e.shuffle(at, n, &list).await?;
    let own = e.gather(&[&list], &columns(n, width + 1, &(0..width).collect::<Vec<_>>()));
    let more = e.gather(&[&list], &columns(n, width + 1, &[width]));
    Ok((own, more))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::executor::block_on;

    use super::*;
    use crate::plain::{Bounds, Plain, Values};

    fn engine() -> (Plain, Scope) {
        let bounds = Bounds::rns(&[255, 253, 251, 239], &[247, 241]).expect("fits 64 bits");
        (Plain::new(bounds, Arc::default()), Scope::new(Step::layer(1), bounds))
    }

    #[test]
    fn numbers_are_clamped() {
        let (mut e, mut scope) = engine();
        let x: Values<Reduced> = vec![-1000, -101, -100, -99, 0, 99, 100, 101, 1000].into();
        let got = block_on(confine(&mut e, &mut scope, &x, 100)).expect("in range");
        assert_eq!(got.as_slice(), [-100, -100, -100, -99, 0, 99, 100, 100, 100]);
    }

    #[test]
    fn keys_keep_order_and_break_ties() {
        let (mut e, mut scope) = engine();
        let x = vec![5, -3, 5, 0];
        let x = Number::<Plain, Reduced>::new(&scope, x.into(), 1.0, 10.0).expect("in range");
        let keys = block_on(Keys::of(&mut e, &mut scope, &x)).expect("in range");
        assert_eq!(keys.v.as_slice(), [23, -10, 21, 0]);
        let wide = Number::<Plain, Reduced>::new(&scope, vec![0; 4].into(), 1.0, 1e9).expect("in range");
        assert!(block_on(Keys::of(&mut e, &mut scope, &wide)).is_err(), "keys would leave the range");
    }

    #[test]
    fn bits_become_places() {
        let (mut e, mut scope) = engine();
        let signs: Values<Reduced> = vec![0, -1, -5, 3].into();
        let bits = block_on(Bits::negative(&mut e, scope.step(), &signs)).expect("in range");
        let rows: Values<Full> = vec![7, 8, 9, 10].into();
        let (places, rows) =
            block_on(Places::ones_first(&mut e, &mut scope, &bits, &rows, 1)).expect("in range");
        assert_eq!(places.0.as_slice(), [2, 0, 1, 3]);
        assert_eq!(rows.as_slice(), [0, 8, 9, 0]);
        let other: Values<Full> = vec![1; 5].into();
        assert!(block_on(Places::ones_first(&mut e, &mut scope, &bits, &other, 1)).is_err());
    }
}
