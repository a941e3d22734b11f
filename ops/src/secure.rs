//! The engine on shares: one server's side of a run.

use sharelens_protocol::bilinear::{self, Resident};
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::convert::{self, Interactive};
use sharelens_protocol::correlation::{SecureRing, Store};
use sharelens_protocol::cost::Ledger;
use sharelens_protocol::lanes::Lane;
use sharelens_protocol::ring::{self, Domain, Full, Range, Reduced};
use sharelens_protocol::secret::Secret;
use sharelens_protocol::sign::{self, Comparison, SignOutput, Slopes};
use sharelens_protocol::{Error, Party, Result, Server, Share, Step, mul, order, product, shuffle};

use crate::engine::{Engine, Linear, ProductShape};
use crate::opened::{ShuffledKeys, ShuffledPlaces};
use crate::planner::{check_map, check_operand, rows_of};

/// [`Engine`] over one server's shares. Both servers must run the same layers.
pub struct Secure<'a, R: SecureRing> {
    ring: &'a R,
    role: Server,
    lane: Lane,
    ledger: Ledger,
    weights: &'a [Resident<R>],
    store: &'a Store<R>,
    rounds: Rounds,
}

impl<'a, R: SecureRing> Secure<'a, R> {
    /// One run of server `role` over the link that drives `lane`, with weights by [`Linear::weight`] and
    /// correlations prepared for a plan with the same `rounds`.
    pub fn new(
        ring: &'a R,
        role: Server,
        lane: Lane,
        weights: &'a [Resident<R>],
        store: &'a Store<R>,
        rounds: Rounds,
    ) -> Self {
        Self { ring, role, lane, ledger: Ledger::default(), weights, store, rounds }
    }

    /// The party, between layers.
    pub const fn party(&mut self) -> Party<'_, R, Lane> {
        Party { ring: self.ring, role: self.role, channel: &mut self.lane, ledger: &mut self.ledger }
    }

    /// What was counted.
    pub fn into_ledger(self) -> Ledger {
        self.ledger
    }

    fn take_sign(&self, at: Step, n: usize, output: SignOutput) -> Result<sign::Correlation<R>> {
        self.store.take(at, &sign::Demand { n, output, rounds: self.rounds })
    }

    fn take_convert(&self, at: Step, n: usize, conversion: Interactive) -> Result<Option<convert::Mask<R>>> {
        if R::INTERACTIVE != conversion {
            return Ok(None);
        }
        self.store.take(at, &convert::Demand { n }).map(Some)
    }

    /// Integers as words of `n` elements, repeated.
    fn repeat(&self, range: Range, constants: &[i64], n: usize) -> Vec<R::Word> {
        let ring = self.ring;
        ring::repeat(ring.planes(range), &ring.encode(range, constants), n)
    }
}

impl<R: SecureRing> Engine for Secure<'_, R> {
    type V<D: Domain> = Share<R, D>;
    type Operand = product::Operand<R>;

    fn fork(&mut self) -> Self {
        Self { lane: self.lane.clone(), ledger: Ledger::default(), ..*self }
    }

    fn join(&mut self, fork: Self) {
        self.ledger.merge(fork.ledger);
    }

    fn len<D: Domain>(&self, v: &Share<R, D>) -> usize {
        v.len(self.ring)
    }

    fn add<D: Domain>(&mut self, a: &Share<R, D>, b: &Share<R, D>) -> Share<R, D> {
        let mut out = a.clone();
        self.ring.add(D::RANGE, out.words_mut(), b.words());
        out
    }

    fn sub<D: Domain>(&mut self, a: &Share<R, D>, b: &Share<R, D>) -> Share<R, D> {
        let mut out = a.clone();
        self.ring.sub(D::RANGE, out.words_mut(), b.words());
        out
    }

    fn scale<D: Domain>(&mut self, a: &Share<R, D>, factor: i64) -> Share<R, D> {
        let mut out = a.clone();
        self.ring.scale(D::RANGE, out.words_mut(), factor);
        out
    }

    fn scale_each<D: Domain>(&mut self, a: &Share<R, D>, factors: &[i64]) -> Share<R, D> {
        let mut out = a.clone();
        let factors = self.repeat(D::RANGE, factors, self.len(a));
        self.ring.mul(D::RANGE, out.words_mut(), &factors);
        out
    }

    fn add_public<D: Domain>(&mut self, a: &Share<R, D>, constants: &[i64]) -> Share<R, D> {
        let mut out = a.clone();
        let constants = self.repeat(D::RANGE, constants, self.len(a));
        if self.role.is_first() {
            self.ring.add(D::RANGE, out.words_mut(), &constants);
        }
        out
    }

    fn gather<D: Domain>(&mut self, parts: &[&Share<R, D>], index: &[u32]) -> Share<R, D> {
        let words: Vec<&[R::Word]> = parts.iter().map(|p| p.words()).collect();
        Share::new(ring::gather(self.ring.planes(D::RANGE), &words, index))
    }

    fn reduce(&mut self, x: &Share<R, Full>) -> Share<R, Reduced> {
        x.reduce(self.ring)
    }

    async fn linear(&mut self, at: Step, map: &Linear, x: &Share<R, Full>) -> Result<Share<R, Full>> {
        check_map(map, self.len(x))?;
        let masked = self.store.take(at, map)?;
        let resident = self.weights.get(map.weight as usize);
        let resident =
            resident.ok_or_else(|| Error::Config(format!("weight {} is not loaded", map.weight)))?;
        bilinear::apply(&mut self.party(), at, map, resident, x, masked).await
    }

    async fn rescale(&mut self, at: Step, x: &Share<R, Full>) -> Result<Share<R, Reduced>> {
        let mask = self.take_convert(at, self.len(x), Interactive::Rescale)?;
        convert::rescale(&mut self.party(), at, x, mask).await
    }

    async fn lift(&mut self, at: Step, x: &Share<R, Reduced>) -> Result<Share<R, Full>> {
        let mask = self.take_convert(at, self.len(x), Interactive::Lift)?;
        convert::lift(&mut self.party(), at, x, mask).await
    }

    async fn relu(&mut self, at: Step, x: &Share<R, Reduced>) -> Result<Share<R, Full>> {
        let correlation = self.take_sign(at, self.len(x), SignOutput::Full)?;
        sign::relu(&mut self.party(), at, x, correlation).await
    }

    async fn relu_reduced(&mut self, at: Step, x: &Share<R, Reduced>) -> Result<Share<R, Reduced>> {
        let correlation = self.take_sign(at, self.len(x), SignOutput::Reduced)?;
        sign::relu(&mut self.party(), at, x, correlation).await
    }

    async fn slopes(
        &mut self,
        at: Step,
        x: &Share<R, Reduced>,
        positive: i64,
        negative: i64,
    ) -> Result<Share<R, Full>> {
        let correlation = self.take_sign(at, self.len(x), SignOutput::Full)?;
        sign::slopes(&mut self.party(), at, x, correlation, Slopes { positive, negative }).await
    }

    async fn is_negative(&mut self, at: Step, x: &Share<R, Reduced>) -> Result<Share<R, Full>> {
        let correlation = self.take_sign(at, self.len(x), SignOutput::Bit)?;
        sign::is_negative(&mut self.party(), at, x, correlation).await
    }

    async fn is_outside(&mut self, at: Step, x: &Share<R, Reduced>, quarter: i64) -> Result<Share<R, Full>> {
        let moved = self.add_public(x, &[-quarter]);
        let inside = self.is_negative(at, &moved).await?;
        let outside = self.scale(&inside, -1);
        Ok(self.add_public(&outside, &[1]))
    }

    async fn relu_and_sign(
        &mut self,
        at: Step,
        x: &Share<R, Reduced>,
    ) -> Result<(Share<R, Full>, Share<R, Full>)> {
        let correlation = self.take_sign(at, self.len(x), SignOutput::Full)?;
        sign::relu_and_sign(&mut self.party(), at, x, correlation).await
    }

    async fn mul(&mut self, at: Step, x: &Share<R, Full>, y: &Share<R, Full>) -> Result<Share<R, Full>> {
        let triples = self.store.take(at, &mul::Demand { n: self.len(x) })?;
        mul::mul(&mut self.party(), at, x, y, triples).await
    }

    async fn shuffle<D: Domain>(&mut self, at: Step, rows: usize, x: &Share<R, D>) -> Result<Share<R, D>> {
        let correlation = self.store.take(at, &rows_of(rows, self.len(x), D::RANGE)?)?;
        shuffle::shuffle(&mut self.party(), at, x.clone(), correlation).await
    }

    async fn open_order(
        &mut self,
        at: Step,
        group: usize,
        keys: &ShuffledKeys<Share<R, Reduced>>,
    ) -> Result<Vec<u32>> {
        let n = self.len(keys.keys());
        let (firsts, seconds): (Vec<u32>, Vec<u32>) = order::pairs(group, n)?.into_iter().unzip();
        let mut smaller = Vec::new();
        if !firsts.is_empty() {
            let demand = Comparison { n: firsts.len(), rounds: self.rounds };
            let correlation = self.store.take(at, &demand)?;
            let [a, b] = [firsts, seconds].map(|index| self.gather(&[keys.keys()], &index));
            let difference = self.sub(&a, &b);
            smaller = sign::open(&mut self.party(), at, &difference, correlation).await?;
        }
        order::descending(at, group, n, &smaller)
    }

    async fn open_places(
        &mut self,
        at: Step,
        places: &ShuffledPlaces<Share<R, Reduced>>,
    ) -> Result<Vec<u32>> {
        let own = Secret::copied(places.places().words());
        let opened = self.party().open(at, Range::Reduced, own).await?;
        shuffle::permutation(at, &self.ring.decode(Range::Reduced, &opened))
    }

    fn operand(&mut self, at: Step, shape: ProductShape, y: Share<R, Full>) -> Result<product::Operand<R>> {
        check_operand(at, &shape, self.len(&y))?;
        Ok(self.store.take(at, &shape)?.operand(y))
    }

    async fn product(
        &mut self,
        at: Step,
        operand: &mut product::Operand<R>,
        x: &Share<R, Full>,
    ) -> Result<Share<R, Full>> {
        product::product(&mut self.party(), at, operand, x).await
    }
}
