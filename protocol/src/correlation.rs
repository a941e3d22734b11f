//! What is prepared ahead of an image and spent on it, exactly once.
//!
//! A [`Demand`] is public: it follows from the shapes of the network. The helper deals for it, a server prepares
//! its [`Correlation`] from its seed and (server 1) the helper's correction, and the online phase takes it from
//! the [`Store`] by value. Nothing here can be cloned or read twice, and a step's correlation fits that step
//! alone, since its randomness is drawn from the streams of that step.

mod store;

use std::collections::{BTreeMap, BTreeSet};

use crate::bilinear::{self, Linear};
use crate::channel::{Channel, MAX_MESSAGE_BYTES};
use crate::convert::{self, ConvertRing};
use crate::cost::Cost;
use crate::error::{Error, Result};
use crate::mul;
use crate::prg::Prg;
use crate::product;
use crate::ring::{Range, Ring};
use crate::role::Server;
use crate::secret::Secret;
use crate::shuffle;
use crate::sign::{self, SignRing};
use crate::step::Step;

pub use store::{Clock, Store};

/// A ring with everything the protocols need.
pub trait SecureRing: SignRing + ConvertRing {}
impl<R: SignRing + ConvertRing> SecureRing for R {}

/// What one protocol call consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Demand {
    /// A linear map applied once.
    Linear(Linear),
    /// Signs.
    Sign(sign::Demand),
    /// Signs to be opened.
    Compare(sign::Comparison),
    /// Conversions between domains.
    Convert {
        /// Elements.
        n: usize,
    },
    /// Products of two secrets.
    Mul {
        /// Elements.
        n: usize,
    },
    /// A list in an order that nobody knows.
    Shuffle(shuffle::Demand),
    /// Matrix products with one operand.
    Product(product::Shape),
}

impl Demand {
    /// Bytes of the helper's correction for server 1.
    pub fn correction_len<R: SecureRing>(&self, ring: &R) -> usize {
        match self {
            Self::Linear(map) => map.correction_len(ring),
            Self::Sign(demand) => demand.correction_len(ring),
            Self::Convert { n } => convert::correction_len(ring, *n),
            Self::Mul { n } => mul::correction_len(ring, *n),
            Self::Compare(demand) => demand.correction_len(ring),
            Self::Shuffle(demand) => demand.correction_len(ring),
            Self::Product(shape) => shape.correction_len(ring),
        }
    }

    /// Online and dealt cost.
    pub fn cost<R: SecureRing>(&self, ring: &R) -> Cost {
        match self {
            Self::Linear(map) => map.cost(ring),
            Self::Sign(demand) => demand.cost(ring),
            Self::Convert { n } => convert::cost(ring, *n),
            Self::Mul { n } => mul::cost(ring, *n),
            Self::Compare(demand) => demand.cost(ring),
            Self::Shuffle(demand) => demand.cost(ring),
            Self::Product(shape) => shape.cost(ring),
        }
    }

    /// The helper's part: the correction for server 1. `mask` finds the lasting mask of a weight.
    ///
    /// # Errors
    /// [`Error::Config`] if the weight is not loaded.
    pub fn deal<'m, R: SecureRing>(
        &self,
        ring: &R,
        prgs: [&Prg; 2],
        step: Step,
        mask: impl Fn(u32) -> Option<&'m bilinear::Mask<R>>,
    ) -> Result<Vec<u8>> {
        Ok(match self {
            Self::Linear(map) => {
                let mask = mask(map.weight).ok_or_else(|| not_loaded(map.weight))?;
                bilinear::deal(ring, map, mask, prgs, step)
            }
            Self::Sign(demand) => demand.deal(ring, prgs, step),
            Self::Convert { n } => convert::deal(ring, *n, prgs, step),
            Self::Mul { n } => mul::deal(ring, *n, prgs, step),
            Self::Compare(demand) => demand.deal(ring, prgs, step),
            Self::Shuffle(demand) => demand.deal(ring, prgs, step),
            Self::Product(shape) => shape.deal(ring, prgs, step),
        })
    }

    /// A server's part. `correction` is what the helper sent, empty at server 0; `resident` finds a weight.
    ///
    /// # Errors
    /// [`Error::Peer`] if the correction is malformed, [`Error::Config`] if the weight is not loaded.
    pub fn prepare<'m, R: SecureRing>(
        &self,
        ring: &R,
        role: Server,
        prg: &Prg,
        step: Step,
        correction: impl Into<Secret<u8>>,
        resident: impl Fn(u32) -> Option<&'m bilinear::Resident<R>>,
    ) -> Result<Correlation<R>> {
        let correction = correction.into();
        let due = if role.is_first() { 0 } else { self.correction_len(ring) };
        if correction.len() != due {
            let found = format!("{} bytes", correction.len());
            return Err(Error::Peer { step, expected: format!("a correction of {due} bytes"), found });
        }
        Ok(match self {
            Self::Linear(map) => {
                let resident = resident(map.weight).ok_or_else(|| not_loaded(map.weight))?;
                Correlation::Linear(bilinear::prepare(ring, role, map, resident, prg, step, correction)?)
            }
            Self::Sign(demand) => Correlation::Sign(demand.prepare(ring, role, prg, step, correction)?),
            Self::Convert { n } => {
                Correlation::Convert(convert::prepare(ring, role, *n, prg, step, &correction)?)
            }
            Self::Mul { n } => Correlation::Mul(mul::prepare(ring, role, *n, prg, step, correction)?),
            Self::Compare(demand) => Correlation::Compare(demand.prepare(ring, role, prg, step, correction)),
            Self::Shuffle(demand) => {
                Correlation::Shuffle(demand.prepare(ring, role, prg, step, &correction)?)
            }
            Self::Product(shape) => Correlation::Product(shape.prepare(ring, role, prg, step, correction)?),
        })
    }
}

fn not_loaded(weight: u32) -> Error {
    Error::Config(format!("weight {weight} is not loaded"))
}

/// All demands of one run, by step: they are prepared in this order, and spent about in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    demands: BTreeMap<Step, Demand>,
    openings: BTreeMap<Step, Opening>,
    weights: BTreeSet<u32>,
}

/// An opening of shares as they are, which consumes nothing and is listed for its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Opening {
    n: usize,
    range: Range,
}

impl Opening {
    fn cost<R: Ring>(&self, ring: &R) -> Cost {
        Cost::online(1, self.n * ring.bytes(self.range))
    }
}

impl Plan {
    /// Adds a demand.
    ///
    /// # Panics
    /// If `step` is not the start of a call or has a demand or an opening, or if a weight has a map already: masks
    /// would be drawn twice.
    pub fn push(&mut self, step: Step, demand: Demand) {
        if let Demand::Linear(map) = demand {
            assert!(self.weights.insert(map.weight), "a weight belongs to one map");
        }
        self.check_new(step);
        self.demands.insert(step, demand);
    }

    /// Adds an opening of `n` elements, which needs no correlation: nothing is dealt for it or prepared.
    ///
    /// # Panics
    /// As [`Self::push`].
    pub fn push_opening(&mut self, step: Step, n: usize, range: Range) {
        self.check_new(step);
        self.openings.insert(step, Opening { n, range });
    }

    /// Adds all of another plan.
    ///
    /// # Panics
    /// As [`Self::push`].
    pub fn append(&mut self, other: Self) {
        other.demands.into_iter().for_each(|(step, demand)| self.push(step, demand));
        other.openings.into_iter().for_each(|(step, o)| self.push_opening(step, o.n, o.range));
    }

    fn check_new(&self, step: Step) {
        assert_eq!(step, step.call_start(), "a demand is a call of its own");
        let planned = self.demands.contains_key(&step) || self.openings.contains_key(&step);
        assert!(!planned, "a step is planned once");
    }

    /// What each call costs, openings after all others.
    fn priced<R: SecureRing>(&self, ring: &R) -> impl Iterator<Item = (Step, Cost)> {
        let demands = self.demands.iter().map(|(step, demand)| (*step, demand.cost(ring)));
        demands.chain(self.openings.iter().map(|(step, opening)| (*step, opening.cost(ring))))
    }

    /// The demands by step.
    pub const fn demands(&self) -> &BTreeMap<Step, Demand> {
        &self.demands
    }

    /// Whether shares are opened at `step` as they are: places of shuffled rows.
    pub fn opens(&self, step: Step) -> bool {
        self.openings.contains_key(&step)
    }

    /// Cost by layer.
    pub fn costs<R: SecureRing>(&self, ring: &R) -> BTreeMap<u32, Cost> {
        let mut costs = BTreeMap::<u32, Cost>::new();
        for (step, cost) in self.priced(ring) {
            *costs.entry(step.layer_index()).or_default() += cost;
        }
        costs
    }

    /// The linear maps, each of which needs a resident weight.
    pub fn maps(&self) -> impl Iterator<Item = &Linear> {
        self.demands.values().filter_map(|d| match d {
            Demand::Linear(map) => Some(map),
            _ => None,
        })
    }

    /// The helper's part of a run: sends server 1 one correction per demand.
    ///
    /// # Errors
    /// As [`Demand::deal`] and the channel.
    pub async fn deal<'m, R: SecureRing, C: Channel>(
        &self,
        ring: &R,
        prgs: [&Prg; 2],
        mask: impl Fn(u32) -> Option<&'m bilinear::Mask<R>>,
        channel: &mut C,
    ) -> Result<()> {
        for (step, demand) in &self.demands {
            channel.send(*step, demand.deal(ring, prgs, *step, &mask)?).await?;
        }
        Ok(())
    }

    /// A server's part ahead of a run: fills `store`. Server 1 receives corrections from the helper on
    /// `channel`; server 0 receives nothing. On failure the store is told, too.
    ///
    /// # Errors
    /// As [`Demand::prepare`] and the channel.
    pub async fn prepare<'m, R: SecureRing, C: Channel>(
        &self,
        ring: &R,
        role: Server,
        prg: &Prg,
        resident: impl Fn(u32) -> Option<&'m bilinear::Resident<R>>,
        channel: &mut C,
        store: &Store<R>,
    ) -> Result<()> {
        // Whoever waits for the store must not wait for ever if this future is dropped.
        let abandoned = FinishOnDrop(store);
        let mut fill = async || {
            for (step, demand) in &self.demands {
                let correction = match role {
                    Server::Server0 => Vec::new(),
                    Server::Server1 => {
                        let correction = channel.recv(*step, demand.correction_len(ring)).await?;
                        store.note_dealt(*step, correction.len());
                        correction
                    }
                };
                store.put(*step, *demand, demand.prepare(ring, role, prg, *step, correction, &resident)?)?;
            }
            Ok(())
        };
        let result = fill().await;
        store.finish(result.clone());
        drop(abandoned);
        result
    }

    /// Refuses a plan with a message that no channel would carry.
    ///
    /// # Errors
    /// [`Error::Config`] naming the layer.
    pub fn check<R: SecureRing>(&self, ring: &R) -> Result<()> {
        for (step, cost) in self.priced(ring) {
            if cost.bytes.max(cost.dealt) >= MAX_MESSAGE_BYTES as u64 {
                let (bytes, at) = (cost.bytes.max(cost.dealt), step.layer_index());
                return Err(Error::Config(format!(
                    "layer {at} would take a message of {bytes} bytes, too large"
                )));
            }
        }
        Ok(())
    }
}

struct FinishOnDrop<'a, R: SecureRing>(&'a Store<R>);

impl<R: SecureRing> Drop for FinishOnDrop<'_, R> {
    fn drop(&mut self) {
        self.0.finish(Err(Error::Ended("its preparation was abandoned".into())));
    }
}

/// One server's part of what one [`Demand`] asks for.
pub enum Correlation<R: SecureRing> {
    /// For [`bilinear::apply`].
    Linear(bilinear::Masked<R>),
    /// For [`sign`].
    Sign(sign::Correlation<R>),
    /// For [`convert`].
    Convert(convert::Mask<R>),
    /// For [`mul::mul`].
    Mul(mul::Triples<R>),
    /// For [`sign::open`].
    Compare(sign::Compared<R>),
    /// For [`shuffle::shuffle`].
    Shuffle(shuffle::Correlation<R>),
    /// For [`product::product`].
    Product(product::Masks<R>),
}

impl<R: SecureRing> Correlation<R> {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Linear(c) => c.bytes(),
            Self::Sign(c) => c.bytes(),
            Self::Convert(c) => c.bytes(),
            Self::Mul(c) => c.bytes(),
            Self::Compare(c) => c.bytes(),
            Self::Shuffle(c) => c.bytes(),
            Self::Product(c) => c.bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Z64;
    use crate::testing::{AT, prgs};

    const N: usize = 10;
    const DEMAND: Demand = Demand::Mul { n: N };

    fn triples_of(correlation: Correlation<Z64>) -> mul::Triples<Z64> {
        match correlation {
            Correlation::Mul(t) => t,
            _ => unreachable!("a multiplication was asked for"),
        }
    }

    #[test]
    fn corrections_fit_their_step_alone() {
        // The same correction prepared for another step gives other triples: its masks differ.
        let (ring, prgs) = (Z64::new(), prgs(1));
        let sent = DEMAND.deal(&ring, [&prgs[0], &prgs[1]], AT, |_| None).unwrap();
        let at = |step| {
            triples_of(
                DEMAND.prepare(&ring, Server::Server1, &prgs[1], step, sent.clone(), |_| None).unwrap(),
            )
        };
        assert!(at(AT).same_masks(&at(AT)));
        assert!(!at(AT).same_masks(&at(AT.call(9))));
    }

    #[test]
    fn corrections_of_another_length_are_refused() {
        let (ring, prgs) = (Z64::new(), prgs(1));
        for len in [0, 8 * N - 1, 8 * N + 1] {
            let got = DEMAND.prepare(&ring, Server::Server1, &prgs[1], AT, vec![0; len], |_| None);
            assert!(matches!(got.err(), Some(Error::Peer { .. })), "{len} bytes");
        }
    }

    #[test]
    fn abandoned_preparation_ends_the_wait() {
        let (store, prgs) = (Store::<Z64>::new(1 << 20), prgs(1));
        let mut plan = Plan::default();
        plan.push(AT, DEMAND);
        // Nobody sends: the future is polled once and dropped.
        let (_silent, mut channel) = crate::channel::Memory::pair("helper", "server 1");
        {
            use futures::FutureExt;
            let ring = Z64::new();
            let waiting = plan.prepare(&ring, Server::Server1, &prgs[1], |_| None, &mut channel, &store);
            assert!(waiting.now_or_never().is_none());
        }
        assert!(matches!(store.take(AT, &DEMAND), Err(Error::Ended(_))));
    }

    #[test]
    fn no_stream_is_drawn_twice() {
        use crate::bilinear::{Linear, Mask};
        use crate::compare::Rounds;
        use crate::ring::kernel::Conv;
        use crate::ring::{Moduli, Rns};
        use crate::sign::Output;
        fn check<R: SecureRing>(ring: &R) {
            let n = 40_000;
            let map = Linear { conv: Conv::dense(3, 20, 5), weight: 0 };
            let mut plan = Plan::default();
            plan.push(AT, Demand::Linear(map));
            plan.push(AT.call(2), Demand::Convert { n });
            plan.push(AT.call(3), Demand::Mul { n });
            let mut call = 4;
            for rounds in [Rounds::Balanced, Rounds::Fewest] {
                for output in [Output::Bit, Output::Reduced, Output::Full] {
                    plan.push(AT.call(call), Demand::Sign(sign::Demand { n, output, rounds }));
                    call += 1;
                }
                plan.push(AT.call(call), Demand::Compare(sign::Comparison { n, rounds }));
                call += 1;
            }
            for range in [Range::Full, Range::Reduced] {
                plan.push(AT.call(call), Demand::Shuffle(shuffle::Demand { rows: n / 4, columns: 4, range }));
                call += 1;
            }
            let shape = product::Shape { groups: 2, m: 100, k: 30, n: 200, uses: 3 };
            plan.push(AT.call(call), Demand::Product(shape));
            let loads = prgs(2);
            let mask = Mask::new(ring, &map, [&loads[0], &loads[1]]);
            let (helper, servers) = (prgs(1), prgs(1));
            for (step, demand) in plan.demands() {
                let sent = demand.deal(ring, [&helper[0], &helper[1]], *step, |_| Some(&mask)).unwrap();
                assert_eq!(sent.len(), demand.correction_len(ring));
                if !matches!(demand, Demand::Linear(_)) {
                    demand.prepare(ring, Server::Server0, &servers[0], *step, vec![], |_| None).unwrap();
                    demand.prepare(ring, Server::Server1, &servers[1], *step, sent, |_| None).unwrap();
                }
            }
            for prg in helper.iter().chain(&servers).chain(&loads) {
                let (drawn, repeated) = prg.insecure_drawn();
                assert!(drawn > 0 && repeated == 0, "{repeated} of {drawn} streams were drawn again");
            }
        }
        check(&Rns::new(Moduli::usual(3, 2).unwrap()).unwrap());
        check(&Rns::new(Moduli::usual(4, 4).unwrap()).unwrap());
        check(&Z64::new());
    }

    #[test]
    fn messages_that_no_channel_carries_are_refused() {
        let ring = Z64::new();
        let refused = |at: u16, f: &dyn Fn(&mut Plan, Step)| {
            let mut plan = Plan::default();
            f(&mut plan, AT.call(at));
            matches!(plan.check(&ring), Err(Error::Config(_)))
        };
        // 2^28 words of eight bytes are 2^31 bytes.
        for (n, large) in [(1 << 27, false), (1 << 28, true)] {
            assert_eq!(refused(1, &|p, at| p.push_opening(at, n, Range::Reduced)), large);
            // One product that is dealt for, another whose right operand is opened.
            let dealt = product::Shape { groups: 1, m: 1 << 10, k: 1, n: n >> 14, uses: 16 };
            assert_eq!(refused(2, &|p, at| p.push(at, Demand::Product(dealt))), large);
            let opened = product::Shape { groups: 1, m: 1, k: 1 << 10, n: n >> 10, uses: 1 };
            assert_eq!(refused(3, &|p, at| p.push(at, Demand::Product(opened))), large);
            // The correction is twice the list.
            let list = shuffle::Demand { rows: n / 16, columns: 8, range: Range::Full };
            assert_eq!(refused(4, &|p, at| p.push(at, Demand::Shuffle(list))), large);
        }
    }

    #[test]
    fn openings_are_priced_and_not_dealt() {
        let (ring, mut plan) = (Z64::new(), Plan::default());
        plan.push(AT, DEMAND);
        plan.push_opening(AT.call(2), 7, Range::Reduced);
        assert_eq!(plan.demands().len(), 1);
        assert_eq!(plan.costs(&ring)[&AT.layer_index()], DEMAND.cost(&ring) + Cost::online(1, 56));
    }

    #[test]
    fn plans_are_joined_by_step() {
        let [mut plan, mut other, mut both] = [(); 3].map(|()| Plan::default());
        for call in [1, 4] {
            plan.push(AT.call(call), DEMAND);
        }
        other.push(AT.call(3), DEMAND);
        other.push_opening(AT.call(2), 7, Range::Full);
        both.push_opening(AT.call(2), 7, Range::Full);
        for call in [4, 3, 1] {
            both.push(AT.call(call), DEMAND);
        }
        plan.append(other);
        assert_eq!(plan, both);
        assert!(plan.demands().keys().is_sorted());
    }

    #[test]
    #[should_panic(expected = "a step is planned once")]
    fn joined_plans_share_no_step() {
        let mut plan = Plan::default();
        plan.push(AT, DEMAND);
        plan.append(plan.clone());
    }

    #[test]
    #[should_panic(expected = "a step is planned once")]
    fn openings_have_steps_of_their_own() {
        let mut plan = Plan::default();
        plan.push(AT, DEMAND);
        plan.push_opening(AT, 7, Range::Reduced);
    }

    #[test]
    #[should_panic(expected = "a demand is a call of its own")]
    fn a_message_is_no_call() {
        Plan::default().push(AT.message(1), DEMAND);
    }

    #[test]
    #[should_panic(expected = "a step is planned once")]
    fn a_step_is_planned_once() {
        let mut plan = Plan::default();
        plan.push(AT, DEMAND);
        plan.push(AT, DEMAND);
    }
}
