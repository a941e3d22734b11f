//! What is prepared ahead of an image and spent on it, exactly once.
//!
//! A [`Demand`] is public: it follows from the shapes of the network. The helper deals for it, a server prepares
//! its [`Correlation`] from its seed and (server 1) the helper's correction, and the online phase takes it from
//! the [`Store`] by value. Nothing here can be cloned or read twice, and a step's correlation fits that step
//! alone, since its randomness is drawn from the streams of that step.

mod kind;
mod source;
mod store;

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;

use crate::bilinear::Linear;
use crate::channel::{Channel, MAX_MESSAGE_BYTES};
use crate::convert::{self, ConvertRing};
use crate::cost::Cost;
use crate::error::{Error, Result};
use crate::mul;
use crate::product;
use crate::ring::{Range, Ring};
use crate::shuffle;
use crate::sign::{self, SignRing};
use crate::step::Step;

pub use kind::{Kind, Part};
pub use source::{Dealer, FromHelper, Ideal, Receiver, Source};
pub use store::{Clock, Store};

/// A ring with everything the protocols need.
pub trait SecureRing: SignRing + ConvertRing {}
impl<R: SignRing + ConvertRing> SecureRing for R {}

/// One of each [`Kind`], as plans list them. This is the one place that lists the kinds.
macro_rules! demands {
    ($($(#[$doc:meta])* $name:ident($kind:ty),)*) => {
        /// What one protocol call consumes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Demand {
            $($(#[$doc])* $name($kind),)*
        }

        $(impl From<$kind> for Demand {
            fn from(kind: $kind) -> Self {
                Self::$name(kind)
            }
        })*

        impl Demand {
            /// Bytes of the helper's correction for server 1.
            pub fn correction_len<R: SecureRing>(&self, ring: &R) -> usize {
                match self {
                    $(Self::$name(kind) => Kind::correction_len(kind, ring),)*
                }
            }

            /// Online and dealt cost.
            pub fn cost<R: SecureRing>(&self, ring: &R) -> Cost {
                match self {
                    $(Self::$name(kind) => Kind::cost(kind, ring),)*
                }
            }

            /// The helper's part: the correction for server 1.
            ///
            /// # Errors
            /// [`Error::Config`] if it needs a weight that is not loaded.
            pub fn deal<R: SecureRing>(&self, dealer: &Dealer<'_, R>, step: Step) -> Result<Vec<u8>> {
                match self {
                    $(Self::$name(kind) => kind.deal(dealer, step),)*
                }
            }

            /// A server's part, as [`Receiver::receive`] makes it.
            ///
            /// # Errors
            /// As [`Receiver::receive`].
            pub fn receive<R: SecureRing>(
                &self,
                server: &Receiver<'_, R>,
                step: Step,
                correction: Vec<u8>,
            ) -> Result<AnyPart<R>> {
                let dealt = correction.len();
                match self {
                    $(Self::$name(kind) => {
                        Ok(AnyPart::new(*self, server.receive(step, kind, correction)?, dealt))
                    })*
                }
            }
        }
    };
}

demands! {
    /// A linear map applied once.
    Linear(Linear),
    /// Signs.
    Sign(sign::Demand),
    /// Signs to be opened.
    Compare(sign::Comparison),
    /// Conversions between domains.
    Convert(convert::Demand),
    /// Products of two secrets.
    Mul(mul::Demand),
    /// A list in an order that nobody knows.
    Shuffle(shuffle::Demand),
    /// Matrix products with one operand.
    Product(product::Shape),
}

/// One server's part of what one [`Demand`] asks for, of whichever kind.
pub struct AnyPart<R> {
    demand: Demand,
    part: Box<dyn Part>,
    /// Bytes that the helper sent for it.
    dealt: usize,
    ring: PhantomData<fn() -> R>,
}

impl<R: SecureRing> AnyPart<R> {
    fn new(demand: Demand, part: impl Part, dealt: usize) -> Self {
        Self { demand, part: Box::new(part), dealt, ring: PhantomData }
    }

    fn bytes(&self) -> usize {
        self.part.bytes()
    }

    /// The part, if it is the one that `kind` asks for.
    fn of<K: Kind<R>>(self, step: Step, kind: &K) -> Result<K::Part> {
        let other = || Error::Correlation { step, reason: format!("one for {:?}", self.demand) };
        if self.demand != (*kind).into() {
            return Err(other());
        }
        let part: Box<dyn Any> = self.part;
        part.downcast().map(|part| *part).map_err(|_| other())
    }
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
    pub fn push(&mut self, step: Step, demand: impl Into<Demand>) {
        let demand = demand.into();
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
    pub async fn deal<R: SecureRing, C: Channel>(
        &self,
        dealer: &Dealer<'_, R>,
        channel: &mut C,
    ) -> Result<()> {
        for (step, demand) in &self.demands {
            channel.send(*step, demand.deal(dealer, *step)?).await?;
        }
        Ok(())
    }

    /// A server's part ahead of a run: fills `store` from `source`. On failure the store is told, too.
    ///
    /// # Errors
    /// As the source.
    pub async fn fill<R: SecureRing>(&self, mut source: impl Source<R>, store: &Store<R>) -> Result<()> {
        // Whoever waits for the store must not wait for ever if this future is dropped.
        let abandoned = FinishOnDrop(store);
        let mut fill = async || {
            for (step, demand) in &self.demands {
                store.put(*step, source.next(*step, demand).await?)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Z64;
    use crate::role::Server;
    use crate::testing::{AT, prgs};

    const N: usize = 10;
    const DEMAND: mul::Demand = mul::Demand { n: N };

    #[test]
    fn corrections_fit_their_step_alone() {
        // The same correction received for another step gives other triples: its masks differ.
        let (ring, prgs) = (Z64::new(), prgs(1));
        let sent = DEMAND.deal(&Dealer::new(&ring, [&prgs[0], &prgs[1]]), AT).unwrap();
        let server = Receiver::new(&ring, Server::Server1, &prgs[1]);
        let at = |step| server.receive(step, &DEMAND, sent.clone()).unwrap();
        assert!(at(AT).same_masks(&at(AT)));
        assert!(!at(AT).same_masks(&at(AT.call(9))));
    }

    #[test]
    fn corrections_of_another_length_are_refused() {
        let (ring, prgs) = (Z64::new(), prgs(1));
        for (role, len) in [(1, 0), (1, 8 * N - 1), (1, 8 * N + 1), (0, 8 * N)] {
            let server = Receiver::new(&ring, Server::BOTH[role], &prgs[1]);
            let got = server.receive(AT, &DEMAND, vec![0; len]);
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
            let server = Receiver::new(&ring, Server::Server1, &prgs[1]);
            let waiting = plan.fill(FromHelper { server, channel: &mut channel }, &store);
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
        use crate::sign::SignOutput;
        fn check<R: SecureRing>(ring: &R) {
            let n = 40_000;
            let map = Linear { conv: Conv::dense(3, 20, 5), weight: 0 };
            let mut plan = Plan::default();
            plan.push(AT, map);
            plan.push(AT.call(2), convert::Demand { n });
            plan.push(AT.call(3), mul::Demand { n });
            let mut call = 4;
            for rounds in [Rounds::Balanced, Rounds::Fewest] {
                for output in [SignOutput::Bit, SignOutput::Reduced, SignOutput::Full] {
                    plan.push(AT.call(call), sign::Demand { n, output, rounds });
                    call += 1;
                }
                plan.push(AT.call(call), sign::Comparison { n, rounds });
                call += 1;
            }
            for range in [Range::Full, Range::Reduced] {
                plan.push(AT.call(call), shuffle::Demand { rows: n / 4, columns: 4, range });
                call += 1;
            }
            let shape = product::Shape { groups: 2, m: 100, k: 30, n: 200, uses: 3 };
            plan.push(AT.call(call), shape);
            let loads = prgs(2);
            let mask = Mask::new(ring, &map, [&loads[0], &loads[1]]);
            let (helper, servers) = (prgs(1), prgs(1));
            let dealer = Dealer { ring, prgs: [&helper[0], &helper[1]], masks: &[mask] };
            let [zero, one] = Server::BOTH.map(|role| Receiver::new(ring, role, &servers[role.index()]));
            for (step, demand) in plan.demands() {
                let sent = demand.deal(&dealer, *step).unwrap();
                assert_eq!(sent.len(), demand.correction_len(ring));
                if !matches!(demand, Demand::Linear(_)) {
                    demand.receive(&zero, *step, vec![]).unwrap();
                    demand.receive(&one, *step, sent).unwrap();
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
            assert_eq!(refused(2, &|p, at| p.push(at, dealt)), large);
            let opened = product::Shape { groups: 1, m: 1, k: 1 << 10, n: n >> 10, uses: 1 };
            assert_eq!(refused(3, &|p, at| p.push(at, opened)), large);
            // The correction is twice the list.
            let list = shuffle::Demand { rows: n / 16, columns: 8, range: Range::Full };
            assert_eq!(refused(4, &|p, at| p.push(at, list)), large);
        }
    }

    #[test]
    fn openings_are_priced_and_not_dealt() {
        let (ring, mut plan) = (Z64::new(), Plan::default());
        plan.push(AT, DEMAND);
        plan.push_opening(AT.call(2), 7, Range::Reduced);
        assert_eq!(plan.demands().len(), 1);
        assert_eq!(plan.costs(&ring)[&AT.layer_index()], Kind::cost(&DEMAND, &ring) + Cost::online(1, 56));
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
