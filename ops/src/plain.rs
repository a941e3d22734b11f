//! The twin: every layer in the clear, on the integers that the shares add up to.
//!
//! Values are the integers themselves, not residues. Wherever one leaves the range of its domain the engine
//! remembers the layer and fails at the next call that can fail, so that overflow is found on calibration
//! images and refused, instead of wrapping into something that looks like an answer.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::kernel::Conv;
use sharelens_protocol::ring::{Domain, Full, Range, Reduced};
use sharelens_protocol::{Error, Result, Step};

use crate::engine::{Engine, Linear, ProductShape, ZERO};
use crate::opened::{ShuffledKeys, ShuffledPlaces};
use crate::planner::{check_operand, rows_of};

pub mod direct;
pub mod gemm;

/// Numbers that one thread goes through at a time.
const RUN: usize = 1 << 14;

/// The ranges of the two domains, all that the twin needs to know of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// Largest allowed magnitude in `Full`: (M - 1)/2, or 2^62 in Z_2^64.
    pub full: i64,
    /// Largest allowed magnitude in `Reduced`: (P - 1)/2, or 2^62 in Z_2^64.
    pub reduced: i64,
    /// Largest allowed magnitude of what is lifted: P/4, or 2^62 in Z_2^64.
    pub lift: i64,
    /// What a rescale divides by.
    pub divisor: i64,
}

impl Bounds {
    /// Of the residue number system with M = P*Q; `None` if M does not fit 63 bits and a sign.
    pub fn rns(comparison: &[u8], scale: &[u8]) -> Option<Self> {
        let product = |m: &[u8]| m.iter().try_fold(1u64, |a, &m| a.checked_mul(m.into()));
        let (p, q) = (product(comparison)?, product(scale)?);
        let m = u128::from(p) * u128::from(q);
        if p < 8 || q < 2 || m > 1 << 64 {
            return None;
        }
        Some(Self {
            full: ((m - 1) / 2) as i64,
            reduced: ((p - 1) / 2) as i64,
            lift: (p / 4) as i64,
            divisor: q as i64,
        })
    }

    /// Of Z_2^64 with a rescale by 2^`fraction_bits`.
    pub const fn z64(fraction_bits: u32) -> Self {
        Self { full: 1 << 62, reduced: 1 << 62, lift: 1 << 62, divisor: 1 << fraction_bits }
    }

    fn of(&self, range: Range) -> i64 {
        match range {
            Range::Full => self.full,
            Range::Reduced => self.reduced,
        }
    }
}

/// Weights of one linear map in the clear, as integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    /// `[c_out, kh, kw, c_in / groups]`.
    pub values: Vec<i64>,
    /// `[c_out]`, at the scale of the products.
    pub bias: Vec<i64>,
}

/// Numbers of one domain in the clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values<D> {
    numbers: Arc<Vec<i64>>,
    domain: PhantomData<D>,
}

impl<D> Values<D> {
    /// The numbers.
    pub fn as_slice(&self) -> &[i64] {
        &self.numbers
    }
}

impl<D> From<Vec<i64>> for Values<D> {
    fn from(numbers: Vec<i64>) -> Self {
        Self { numbers: Arc::new(numbers), domain: PhantomData }
    }
}

/// The first value that left its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overflow {
    /// The layer.
    pub layer: u32,
    /// The domain whose range was left.
    pub range: Range,
    /// Largest magnitude found.
    pub found: u64,
    /// Largest magnitude allowed.
    pub allowed: u64,
}

impl std::fmt::Display for Overflow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { layer, range, found, allowed } = self;
        write!(f, "a value of layer {layer} reaches {found} in {range:?}, where {allowed} is allowed")
    }
}

/// Largest magnitudes seen in one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// In `Full`.
    pub full: u64,
    /// In `Reduced`.
    pub reduced: u64,
}

/// How a rescale rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest: the twin.
    Nearest,
    /// Up or down at random, without bias, as shares do: to learn what error a secure run will have. Holds the
    /// state of a generator that is good for nothing else.
    Random(u64),
}

/// [`Engine`] over integers in the clear.
#[derive(Debug)]
pub struct Plain {
    bounds: Bounds,
    weights: Arc<Vec<Weights>>,
    rounding: Rounding,
    layer: u32,
    peaks: BTreeMap<u32, Peak>,
    overflow: Option<Overflow>,
}

impl Plain {
    /// An engine for one run; `weights` are indexed by [`Linear::weight`].
    pub fn new(bounds: Bounds, weights: Arc<Vec<Weights>>) -> Self {
        let rounding = Rounding::Nearest;
        Self { bounds, weights, rounding, layer: 0, peaks: BTreeMap::new(), overflow: None }
    }

    /// The same with another way of rounding.
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        Self { rounding, ..self }
    }

    /// Numbers that enter the run, checked like any other.
    pub fn input<D: Domain>(&mut self, numbers: Vec<i64>) -> Values<D> {
        self.checked(numbers)
    }

    /// The ranges.
    pub const fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// The first overflow, if there was one.
    pub fn overflow(&self) -> Option<&Overflow> {
        self.overflow.as_ref()
    }

    /// Largest magnitudes by layer.
    pub fn peaks(&self) -> &BTreeMap<u32, Peak> {
        &self.peaks
    }

    fn note(&mut self, range: Range, found: u64, allowed: i64) {
        let peak = self.peaks.entry(self.layer).or_default();
        let slot = match range {
            Range::Full => &mut peak.full,
            Range::Reduced => &mut peak.reduced,
        };
        *slot = (*slot).max(found);
        let allowed = allowed as u64;
        if found > allowed && self.overflow.is_none() {
            self.overflow = Some(Overflow { layer: self.layer, range, found, allowed });
        }
    }

    fn checked<D: Domain>(&mut self, numbers: Vec<i64>) -> Values<D> {
        let found = largest(&numbers);
        self.note(D::RANGE, found, self.bounds.of(D::RANGE));
        Values::from(numbers)
    }

    /// From exact numbers that may not even fit 64 bits.
    fn narrowed<D: Domain>(&mut self, numbers: impl Iterator<Item = i128>) -> Values<D> {
        let numbers = numbers.map(|v| v.clamp(i64::MIN.into(), i64::MAX.into()) as i64).collect();
        self.checked(numbers)
    }

    fn start(&mut self, at: Step) -> Result<()> {
        self.layer = at.layer_index();
        self.verdict()
    }

    fn verdict(&self) -> Result<()> {
        self.overflow.as_ref().map_or(Ok(()), |o| Err(Error::Config(o.to_string())))
    }

    fn finish<D: Domain>(&mut self, numbers: Vec<i64>) -> Result<Values<D>> {
        let out = self.checked(numbers);
        self.verdict().map(|()| out)
    }

    fn map<D: Domain>(&mut self, at: Step, x: &[i64], f: impl Fn(i64) -> i64 + Sync) -> Result<Values<D>> {
        self.start(at)?;
        self.finish(x.par_iter().with_min_len(RUN).map(|&v| f(v)).collect())
    }
}

/// `v / divisor` to the nearest, halves away from zero.
pub fn divide_round(v: i64, divisor: i64) -> i64 {
    let half = divisor / 2;
    let magnitude = (v.unsigned_abs() + half as u64) / divisor as u64;
    if v < 0 { -(magnitude as i64) } else { magnitude as i64 }
}

/// SplitMix64: what its state grows by, and the number drawn at a state.
const SPLIT_MIX: u64 = 0x9e37_79b9_7f4a_7c15;

fn mixed(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number that looks random, the same on every run; good for nothing but tests and estimates.
pub(crate) fn scrambled(at: Step, index: u32) -> u64 {
    let z = (at.to_bits() ^ u64::from(index))
        .wrapping_add(0x9e37_79b9_7f4a_7c15)
        .wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 29)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 32)
}

fn largest(v: &[i64]) -> u64 {
    v.par_chunks(RUN).map(|c| c.iter().map(|v| v.unsigned_abs()).max().unwrap_or(0)).max().unwrap_or(0)
}

/// An operand of products in the clear.
#[derive(Clone, Debug)]
pub struct Operand {
    shape: ProductShape,
    y: Values<Full>,
    left: usize,
}

impl Engine for Plain {
    type V<D: Domain> = Values<D>;
    type Operand = Operand;

    fn fork(&mut self) -> Self {
        let mut fork = Self::new(self.bounds, self.weights.clone()).with_rounding(self.rounding);
        fork.layer = self.layer;
        if let (Rounding::Random(own), Rounding::Random(forked)) = (&mut self.rounding, &mut fork.rounding) {
            *own = own.wrapping_add(SPLIT_MIX);
            *forked = mixed(*own);
        }
        fork
    }

    fn join(&mut self, fork: Self) {
        for (layer, peak) in fork.peaks {
            let own = self.peaks.entry(layer).or_default();
            own.full = own.full.max(peak.full);
            own.reduced = own.reduced.max(peak.reduced);
        }
        self.overflow = self.overflow.take().or(fork.overflow);
    }

    fn enter(&mut self, at: Step) {
        self.layer = at.layer_index();
    }

    fn len<D: Domain>(&self, v: &Values<D>) -> usize {
        v.numbers.len()
    }

    fn add<D: Domain>(&mut self, a: &Values<D>, b: &Values<D>) -> Values<D> {
        assert_eq!(a.numbers.len(), b.numbers.len());
        self.narrowed(a.numbers.iter().zip(b.numbers.iter()).map(|(&a, &b)| i128::from(a) + i128::from(b)))
    }

    fn sub<D: Domain>(&mut self, a: &Values<D>, b: &Values<D>) -> Values<D> {
        assert_eq!(a.numbers.len(), b.numbers.len());
        self.narrowed(a.numbers.iter().zip(b.numbers.iter()).map(|(&a, &b)| i128::from(a) - i128::from(b)))
    }

    fn scale<D: Domain>(&mut self, a: &Values<D>, factor: i64) -> Values<D> {
        self.scale_each(a, &[factor])
    }

    fn scale_each<D: Domain>(&mut self, a: &Values<D>, factors: &[i64]) -> Values<D> {
        assert!(a.numbers.len().is_multiple_of(factors.len()));
        let factors = factors.iter().cycle();
        self.narrowed(a.numbers.iter().zip(factors).map(|(&a, &f)| i128::from(a) * i128::from(f)))
    }

    fn add_public<D: Domain>(&mut self, a: &Values<D>, constants: &[i64]) -> Values<D> {
        assert!(a.numbers.len().is_multiple_of(constants.len()));
        let constants = constants.iter().cycle();
        self.narrowed(a.numbers.iter().zip(constants).map(|(&a, &c)| i128::from(a) + i128::from(c)))
    }

    fn gather<D: Domain>(&mut self, parts: &[&Values<D>], index: &[u32]) -> Values<D> {
        // Moving numbers about cannot leave the range, so nothing is checked.
        if let [only] = parts {
            let x = only.as_slice();
            let pick = |&i: &u32| if i == ZERO { 0 } else { x[i as usize] };
            return index.iter().map(pick).collect::<Vec<_>>().into();
        }
        let joined: Vec<i64> = parts.iter().flat_map(|p| p.as_slice()).copied().collect();
        index.iter().map(|&i| if i == ZERO { 0 } else { joined[i as usize] }).collect::<Vec<_>>().into()
    }

    fn reduce(&mut self, x: &Values<Full>) -> Values<Reduced> {
        self.checked(x.numbers.to_vec())
    }

    async fn linear(&mut self, at: Step, map: &Linear, x: &Values<Full>) -> Result<Values<Full>> {
        self.start(at)?;
        let all = self.weights.clone();
        let w = all
            .get(map.weight as usize)
            .filter(|w| w.values.len() == map.conv.weight_len() && w.bias.len() == map.conv.c_out)
            .filter(|_| map.conv.is_valid() && x.numbers.len() == map.conv.in_len())
            .ok_or_else(|| Error::Config(format!("weights or input of {at} do not match its shape")))?;
        // Sum over taps of |w| times the largest |x| bounds every partial sum: below 2^63 words suffice.
        let bound =
            gemm::heaviest(&map.conv, &w.values) * largest(x.as_slice()) as f64 + largest(&w.bias) as f64;
        if bound < 9e18 {
            let out = gemm::convolve_exact(&map.conv, x.as_slice(), &w.values, &w.bias);
            return self.finish(out);
        }
        let wide = |v: &[i64]| v.iter().map(|&v| i128::from(v)).collect::<Vec<_>>();
        let out = direct::convolve(&map.conv, &wide(x.as_slice()), &wide(&w.values), &wide(&w.bias));
        let out = self.narrowed(out.into_iter());
        self.verdict().map(|()| out)
    }

    async fn rescale(&mut self, at: Step, x: &Values<Full>) -> Result<Values<Reduced>> {
        let divisor = self.bounds.divisor;
        let Rounding::Random(state) = self.rounding else {
            return self.map(at, x.as_slice(), |v| divide_round(v, divisor));
        };
        // The state after `i` draws is known without drawing.
        let after = |i: usize| state.wrapping_add((i as u64).wrapping_mul(SPLIT_MIX));
        let draw = |i: usize| ((u128::from(mixed(after(i + 1))) * divisor as u128) >> 64) as i64;
        let rounded = |(i, &v): (usize, &i64)| v.saturating_add(draw(i)).div_euclid(divisor);
        let numbers = x.numbers.par_iter().enumerate().with_min_len(RUN).map(rounded).collect();
        self.rounding = Rounding::Random(after(x.numbers.len()));
        self.start(at)?;
        self.finish(numbers)
    }

    async fn lift(&mut self, at: Step, x: &Values<Reduced>) -> Result<Values<Full>> {
        self.start(at)?;
        self.note(Range::Reduced, largest(x.as_slice()), self.bounds.lift);
        self.finish(x.numbers.to_vec())
    }

    async fn relu(&mut self, at: Step, x: &Values<Reduced>) -> Result<Values<Full>> {
        self.map(at, x.as_slice(), |v| v.max(0))
    }

    async fn relu_reduced(&mut self, at: Step, x: &Values<Reduced>) -> Result<Values<Reduced>> {
        self.map(at, x.as_slice(), |v| v.max(0))
    }

    async fn slopes(
        &mut self,
        at: Step,
        x: &Values<Reduced>,
        positive: i64,
        negative: i64,
    ) -> Result<Values<Full>> {
        self.start(at)?;
        let slope = |v: i64| i128::from(v) * i128::from(if v < 0 { negative } else { positive });
        let out = self.narrowed(x.numbers.iter().map(|&v| slope(v)));
        self.verdict().map(|()| out)
    }

    async fn is_negative(&mut self, at: Step, x: &Values<Reduced>) -> Result<Values<Full>> {
        self.map(at, x.as_slice(), |v| i64::from(v < 0))
    }

    async fn is_outside(&mut self, at: Step, x: &Values<Reduced>, quarter: i64) -> Result<Values<Full>> {
        // In two steps: twice a fourth of 2^64 is beyond 63 bits.
        let below = -quarter - (self.bounds.reduced - quarter - quarter).max(0);
        self.map(at, x.as_slice(), |v| i64::from(v < below || v >= quarter))
    }

    async fn relu_and_sign(&mut self, at: Step, x: &Values<Reduced>) -> Result<(Values<Full>, Values<Full>)> {
        let bend = self.map(at, x.as_slice(), |v| v.max(0))?;
        Ok((bend, x.as_slice().iter().map(|&v| i64::from(v < 0)).collect::<Vec<_>>().into()))
    }

    async fn mul(&mut self, at: Step, x: &Values<Full>, y: &Values<Full>) -> Result<Values<Full>> {
        self.start(at)?;
        assert_eq!(x.numbers.len(), y.numbers.len());
        let product = |(&x, &y): (&i64, &i64)| i128::from(x) * i128::from(y);
        let out = self.narrowed(x.numbers.iter().zip(y.numbers.iter()).map(product));
        self.verdict().map(|()| out)
    }

    async fn shuffle<D: Domain>(&mut self, at: Step, rows: usize, x: &Values<D>) -> Result<Values<D>> {
        self.start(at)?;
        rows_of(rows, x.numbers.len(), D::RANGE)?;
        // Nobody learns from this order, but levels that find the best of a list rely on its being random.
        let width = x.numbers.len() / rows;
        let mut order: Vec<u32> = (0..rows as u32).collect();
        order.sort_by_key(|&row| (scrambled(at, row), row));
        let index = order.iter().flat_map(|&r| (0..width as u32).map(move |c| r * width as u32 + c));
        Ok(self.gather(&[x], &index.collect::<Vec<_>>()))
    }

    async fn open_order(
        &mut self,
        at: Step,
        group: usize,
        keys: &ShuffledKeys<Values<Reduced>>,
    ) -> Result<Vec<u32>> {
        self.start(at)?;
        let keys = keys.keys().as_slice();
        let (least, most) = (keys.iter().min().copied(), keys.iter().max().copied());
        let widest = most.unwrap_or(0).abs_diff(least.unwrap_or(0));
        self.note(Range::Reduced, widest, self.bounds.reduced);
        self.verdict()?;
        let mut order: Vec<u32> = (0..keys.len() as u32).collect();
        for part in order.chunks_mut(group) {
            part.sort_by_key(|&i| std::cmp::Reverse(keys[i as usize]));
            if part.windows(2).any(|w| keys[w[0] as usize] == keys[w[1] as usize]) {
                return Err(Error::Config(format!("{at}: two keys of an order are equal")));
            }
        }
        Ok(order)
    }

    async fn open_places(&mut self, at: Step, places: &ShuffledPlaces<Values<Reduced>>) -> Result<Vec<u32>> {
        self.start(at)?;
        sharelens_protocol::shuffle::permutation(at, places.places().as_slice())
    }

    fn operand(&mut self, at: Step, shape: ProductShape, y: Values<Full>) -> Result<Operand> {
        self.start(at)?;
        check_operand(at, &shape, y.numbers.len())?;
        Ok(Operand { left: shape.uses, shape, y })
    }

    async fn product(&mut self, at: Step, operand: &mut Operand, x: &Values<Full>) -> Result<Values<Full>> {
        self.start(at)?;
        let s = operand.shape;
        let left = operand.left.checked_sub(1);
        operand.left = left.ok_or_else(|| Error::Config(format!("{at}: an operand used too often")))?;
        if x.numbers.len() != s.left_len() {
            return Err(Error::Config(format!("{at}: a factor of another shape")));
        }
        let (x, y) = (x.as_slice(), operand.y.as_slice());
        let conv = Conv::dense(s.m, s.k, s.n);
        let groups = x.chunks_exact(s.m * s.k).zip(y.chunks_exact(s.n * s.k));
        if (largest(x) as f64) * (largest(y) as f64) * (s.k as f64) < 9e18 {
            let bias = vec![0; s.n];
            return self.finish(groups.flat_map(|(x, y)| direct::convolve(&conv, x, y, &bias)).collect());
        }
        let wide = |v: &[i64]| v.iter().map(|&v| i128::from(v)).collect::<Vec<_>>();
        let bias = vec![0; s.n];
        let out = groups.flat_map(|(x, y)| direct::convolve(&conv, &wide(x), &wide(y), &bias));
        let out = self.narrowed(out.collect::<Vec<_>>().into_iter());
        self.verdict().map(|()| out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;

    fn engine(weights: Vec<Weights>) -> Plain {
        Plain::new(Bounds::rns(&[255, 253, 251], &[247, 241]).expect("fits"), Arc::new(weights))
    }

    #[test]
    fn rescale_goes_to_the_nearest() {
        for (v, expected) in [(0, 0), (4, 0), (5, 1), (14, 1), (15, 2), (-4, 0), (-5, -1), (-15, -2)] {
            assert_eq!(divide_round(v, 10), expected, "{v}");
        }
        assert_eq!(divide_round(i64::MAX, 2), 1 << 62);
        assert_eq!(divide_round(i64::MIN + 1, 3), -(i64::MAX / 3));
    }

    #[test]
    fn random_rounding_has_no_bias() {
        let mut e = engine(vec![]).with_rounding(Rounding::Random(1));
        let q = 247 * 241;
        let x = e.input::<Full>(vec![7 * q + q / 4; 40_000]);
        let out = block_on(e.rescale(Step::layer(0), &x)).expect("in range");
        assert!(out.as_slice().iter().all(|&v| v == 7 || v == 8));
        let ups = out.as_slice().iter().filter(|&&v| v == 8).count();
        assert!((9_500..10_500).contains(&ups), "{ups} of 40,000 went up, expected a quarter");
    }

    #[test]
    fn overflow_is_found_and_named() {
        let weights = Weights { values: vec![1 << 40, 1], bias: vec![0] };
        let mut e = engine(vec![weights]);
        let x = e.input::<Full>(vec![1 << 20, 3]);
        let map = Linear { conv: Conv::dense(1, 2, 1), weight: 0 };
        let error = block_on(e.linear(Step::layer(7), &map, &x)).expect_err("2^60 is beyond M/2");
        assert!(error.to_string().contains("layer 7"), "{error}");
        assert_eq!(e.overflow().expect("recorded").found, (1 << 60) + 3);
    }

    #[test]
    fn local_overflow_surfaces_at_the_next_call() {
        let mut e = engine(vec![]);
        let x = e.input::<Reduced>(vec![8_000_000]);
        e.enter(Step::layer(3));
        let y = e.add(&x, &x);
        let error = block_on(e.relu(Step::layer(4), &y)).expect_err("P/2 is 8,096,640");
        assert!(error.to_string().contains("layer 3"), "{error}");
    }

    #[test]
    fn sums_beyond_words_are_still_caught() {
        let weights = Weights { values: vec![i64::MAX / 2; 4], bias: vec![0] };
        let mut e = engine(vec![weights]);
        let x = e.input::<Full>(vec![1 << 30; 4]);
        let map = Linear { conv: Conv::dense(1, 4, 1), weight: 0 };
        assert!(block_on(e.linear(Step::layer(0), &map, &x)).is_err());
    }
}
