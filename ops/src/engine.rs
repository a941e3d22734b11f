//! What a layer needs from whoever computes it.
//!
//! Layers are written once against [`Engine`]. Three engines run them: shares (`secure`), fixed-point numbers
//! in the clear (`plain`, the twin), and lengths alone (`planner`, which yields cost and demand).

use std::future::Future;

use sharelens_protocol::ring::{Domain, Full, Reduced};
use sharelens_protocol::{Result, Step};

pub use sharelens_protocol::bilinear::Linear;
pub use sharelens_protocol::product::Shape as ProductShape;
pub use sharelens_protocol::ring::ZERO;

use crate::opened::{ShuffledKeys, ShuffledPlaces};

/// Computes on vectors of fixed-point numbers in two domains. Positions are public, values are not.
///
/// `step` arguments name the layer and a free call number; an engine may use message numbers below it but no
/// other call, so every interactive call of a layer gets its own [`Step::call`].
pub trait Engine {
    /// A vector in domain `D`.
    type V<D: Domain>: Clone;

    /// A secret operand that stays for several products.
    type Operand;

    /// An engine for work that runs beside other work of the same run. Their messages share rounds.
    fn fork(&mut self) -> Self
    where
        Self: Sized;

    /// Takes back the books of a fork whose work is done.
    fn join(&mut self, fork: Self)
    where
        Self: Sized;

    /// Says that what follows belongs to the layer of `at`, for engines that keep books. Local.
    fn enter(&mut self, at: Step) {
        let _ = at;
    }

    /// Elements of `v`.
    fn len<D: Domain>(&self, v: &Self::V<D>) -> usize;

    /// `a + b`. Local.
    fn add<D: Domain>(&mut self, a: &Self::V<D>, b: &Self::V<D>) -> Self::V<D>;

    /// `a - b`. Local.
    fn sub<D: Domain>(&mut self, a: &Self::V<D>, b: &Self::V<D>) -> Self::V<D>;

    /// `factor * a` for a public integer. Local.
    fn scale<D: Domain>(&mut self, a: &Self::V<D>, factor: i64) -> Self::V<D>;

    /// `a * factors` elementwise; `factors` is repeated along `a`, whose length it divides. Local.
    fn scale_each<D: Domain>(&mut self, a: &Self::V<D>, factors: &[i64]) -> Self::V<D>;

    /// `a + constants`; `constants` is repeated along `a`, whose length it divides. Local.
    fn add_public<D: Domain>(&mut self, a: &Self::V<D>, constants: &[i64]) -> Self::V<D>;

    /// `out[i] = (parts[0] ++ parts[1] ++ ...)[index[i]]`, or zero where `index[i] ==` [`ZERO`]. Local.
    fn gather<D: Domain>(&mut self, parts: &[&Self::V<D>], index: &[u32]) -> Self::V<D>;

    /// As [`Engine::gather`], for `len` places that are listed only by engines that read them: planning a network takes as
    /// long as its description is, not as its tensors are. Local.
    fn gather_by<D: Domain>(
        &mut self,
        parts: &[&Self::V<D>],
        len: usize,
        index: impl FnOnce() -> Vec<u32>,
    ) -> Self::V<D> {
        let index = index();
        debug_assert_eq!(index.len(), len, "as many places as were said");
        self.gather(parts, &index)
    }

    /// As [`Engine::scale_each`], with factors that are listed only by engines that read them. Local.
    fn scale_by<D: Domain>(&mut self, a: &Self::V<D>, factors: impl FnOnce() -> Vec<i64>) -> Self::V<D> {
        self.scale_each(a, &factors())
    }

    /// The same numbers in the smaller range. Local.
    fn reduce(&mut self, x: &Self::V<Full>) -> Self::V<Reduced>;

    /// Applies a secret linear map, bias included: `[n, h, w, c_in]` to `[n, oh, ow, c_out]`. One round.
    fn linear(
        &mut self,
        at: Step,
        map: &Linear,
        x: &Self::V<Full>,
    ) -> impl Future<Output = Result<Self::V<Full>>>;

    /// `x / Q` rounded up or down at random (towards the nearest, in the twin). Local in the residue number
    /// system, one round in Z_2^64.
    fn rescale(&mut self, at: Step, x: &Self::V<Full>) -> impl Future<Output = Result<Self::V<Reduced>>>;

    /// The same number in the larger range; needs |x| < P/4. One round.
    fn lift(&mut self, at: Step, x: &Self::V<Reduced>) -> impl Future<Output = Result<Self::V<Full>>>;

    /// max(x, 0), for |x| < P/2.
    fn relu(&mut self, at: Step, x: &Self::V<Reduced>) -> impl Future<Output = Result<Self::V<Full>>>;

    /// max(x, 0) without leaving the smaller range, for |x| < P/2.
    fn relu_reduced(
        &mut self,
        at: Step,
        x: &Self::V<Reduced>,
    ) -> impl Future<Output = Result<Self::V<Reduced>>>;

    /// `positive * x` where x >= 0 and `negative * x` elsewhere, for public integer slopes and |x| < P/2.
    fn slopes(
        &mut self,
        at: Step,
        x: &Self::V<Reduced>,
        positive: i64,
        negative: i64,
    ) -> impl Future<Output = Result<Self::V<Full>>>;

    /// 1 where x < 0, else 0, for |x| < P/2.
    fn is_negative(&mut self, at: Step, x: &Self::V<Reduced>) -> impl Future<Output = Result<Self::V<Full>>>;

    /// 1 where x is outside `[-quarter, quarter)`, else 0, for every word of the smaller range, of which `quarter` is the
    /// fourth part, rounded down (where P leaves a remainder of 3 modulo 4, `-quarter - 1` counts as inside): the sign of
    /// x - P/4 modulo P, whose negative half is what lies inside.
    fn is_outside(
        &mut self,
        at: Step,
        x: &Self::V<Reduced>,
        quarter: i64,
    ) -> impl Future<Output = Result<Self::V<Full>>>;

    /// max(x, 0), and 1 where x < 0, else 0: both from one comparison, for every word of the smaller range.
    fn relu_and_sign(
        &mut self,
        at: Step,
        x: &Self::V<Reduced>,
    ) -> impl Future<Output = Result<(Self::V<Full>, Self::V<Full>)>>;

    /// `x * y` elementwise, both secret. One round.
    fn mul(
        &mut self,
        at: Step,
        x: &Self::V<Full>,
        y: &Self::V<Full>,
    ) -> impl Future<Output = Result<Self::V<Full>>>;

    /// Puts the `rows` equal parts of `x` in a uniformly random order that nobody knows. Two rounds.
    fn shuffle<D: Domain>(
        &mut self,
        at: Step,
        rows: usize,
        x: &Self::V<D>,
    ) -> impl Future<Output = Result<Self::V<D>>>;

    /// Opens, for each run of `group` keys, their indices (into all of `keys`) by descending key. All pairs are
    /// compared.
    fn open_order(
        &mut self,
        at: Step,
        group: usize,
        keys: &ShuffledKeys<Self::V<Reduced>>,
    ) -> impl Future<Output = Result<Vec<u32>>>;

    /// Opens a permutation: `places[i]` is where row `i` belongs. One round.
    ///
    /// Fails if what is opened is no permutation, which only a server that departs from the protocol can bring about.
    fn open_places(
        &mut self,
        at: Step,
        places: &ShuffledPlaces<Self::V<Reduced>>,
    ) -> impl Future<Output = Result<Vec<u32>>>;

    /// Takes `y`, `[groups, n, k]`, as the operand of `shape.uses` products. Local.
    fn operand(&mut self, at: Step, shape: ProductShape, y: Self::V<Full>) -> Result<Self::Operand>;

    /// `[groups, m, k]` times the operand: `out[g, i, j]` is the sum over `l` of `x[g, i, l] * y[g, j, l]`. One
    /// round.
    fn product(
        &mut self,
        at: Step,
        operand: &mut Self::Operand,
        x: &Self::V<Full>,
    ) -> impl Future<Output = Result<Self::V<Full>>>;
}
