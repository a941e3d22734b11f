//! Where correlations wait between the thread that prepares them and those that spend them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::{AnyPart, Kind, SecureRing};
use crate::cost::Ledger;
use crate::error::{Error, Result};
use crate::step::Step;

/// Correlations of one session between the thread that prepares them and those that spend them, within a memory
/// cap. They come in the order of the plan and are taken by step, so that parts of a session which run at once
/// need not agree on an order.
///
/// The cap bends for one reason: whoever waits for a step that is not there yet gets it, although what lies before
/// it is held and fills the cap. Preparing would wait for room, and room for preparing, otherwise. A session that
/// takes in the order of the plan never exceeds the cap, and others do by what lies between the steps they take.
pub struct Store<R: SecureRing> {
    cap: usize,
    state: Mutex<State<R>>,
    changed: Condvar,
}

/// Tells a [`Store`] the time, where time is computed and not measured: nothing is taken before it was put.
pub trait Clock: Send + Sync {
    /// What it shows.
    fn now(&self) -> Duration;

    /// Goes on at `time` or later.
    fn wait_until(&self, time: Duration);
}

struct Held<R> {
    part: AnyPart<R>,
    /// When it was put, on the producer's clock.
    since: Duration,
}

struct State<R: SecureRing> {
    there: BTreeMap<Step, Held<R>>,
    held: usize,
    /// The last step that came. What lies before it and is not there will not come any more.
    last: Option<Step>,
    /// Steps that somebody waits for.
    awaited: BTreeSet<Step>,
    /// Whether the producer waits for room.
    blocked: bool,
    /// Bytes and messages that the helper sent, by layer.
    dealt: BTreeMap<u32, (u64, u64)>,
    /// Set once: how the producer ended.
    done: Option<Result<()>>,
    /// Set once the consumer is gone.
    closed: bool,
    clock: Option<Arc<dyn Clock>>,
}

impl<R: SecureRing> State<R> {
    /// Whether `bytes` for `step` must wait.
    fn full(&self, step: Step, bytes: usize, cap: usize) -> bool {
        // Of the steps awaited those before `step` are there, or will be refused.
        let awaited = self.awaited.last().is_some_and(|awaited| *awaited >= step);
        !self.there.is_empty() && self.held.saturating_add(bytes) > cap && !awaited
    }

    /// What [`Store::take`] yields, or nothing as long as it may still come.
    fn take<K: Kind<R>>(&mut self, step: Step, kind: &K) -> Option<Result<K::Part>> {
        if let Some(held) = self.there.remove(&step) {
            self.held -= held.part.bytes();
            if let Some(clock) = &self.clock {
                clock.wait_until(held.since);
            }
            return Some(held.part.of(step, kind));
        }
        match &self.done {
            Some(Err(e)) => Some(Err(e.clone())),
            None if self.closed => Some(Err(Error::Ended("the session is closed".into()))),
            None if self.last < Some(step) => None,
            _ => Some(Err(Error::Correlation { step, reason: "spent or never prepared".into() })),
        }
    }
}

impl<R: SecureRing> Store<R> {
    /// Holds at most `cap` bytes, or one correlation if that alone is larger.
    pub fn new(cap: usize) -> Self {
        let state = State {
            there: BTreeMap::new(),
            held: 0,
            last: None,
            awaited: BTreeSet::new(),
            blocked: false,
            dealt: BTreeMap::new(),
            done: None,
            closed: false,
            clock: None,
        };
        Self { cap, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// From now on the time is `clock`'s: the producer's while all is put, then that of whoever takes it.
    pub fn set_clock(&self, clock: Arc<dyn Clock>) {
        self.lock().clock = Some(clock);
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        // A panic elsewhere ends the session anyway; the state itself is always consistent.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State<R>>) -> MutexGuard<'a, State<R>> {
        self.changed.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds the next correlation, waiting for room unless somebody waits for it or for a later one.
    ///
    /// # Errors
    /// [`Error::Ended`] if nobody will take it any more.
    ///
    /// # Panics
    /// If `step` does not come after the last one.
    pub fn put(&self, step: Step, part: AnyPart<R>) -> Result<()> {
        let bytes = part.bytes();
        let mut state = self.lock();
        assert!(state.last.is_none_or(|last| last < step), "steps ascend");
        while !state.closed && state.full(step, bytes, self.cap) {
            state.blocked = true;
            self.changed.notify_all();
            state = self.wait(state);
        }
        state.blocked = false;
        if state.closed {
            return Err(Error::Ended("the session no longer takes correlations".into()));
        }
        state.held += bytes;
        state.last = Some(step);
        let since = state.clock.as_ref().map_or(Duration::ZERO, |clock| clock.now());
        if part.dealt > 0 {
            let dealt = state.dealt.entry(step.layer_index()).or_default();
            dealt.0 += part.dealt as u64;
            dealt.1 += 1;
        }
        state.there.insert(step, Held { part, since });
        self.changed.notify_all();
        Ok(())
    }

    /// Says that all is prepared, or why nothing more will come.
    pub fn finish(&self, result: Result<()>) {
        self.lock().done.get_or_insert(result);
        self.changed.notify_all();
    }

    /// Lets the producer stop. What is left is wiped.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.there.clear();
        state.held = 0;
        self.changed.notify_all();
    }

    /// Waits until everything is prepared, or as much as the cap allows.
    ///
    /// # Errors
    /// The producer's error.
    pub fn ready(&self) -> Result<()> {
        let mut state = self.lock();
        while state.done.is_none() && !state.closed && !state.blocked {
            state = self.wait(state);
        }
        match &state.done {
            Some(Err(e)) => Err(e.clone()),
            _ => Ok(()),
        }
    }

    /// Takes the correlation of `step`, waiting until the producer gets there.
    ///
    /// # Errors
    /// [`Error::Correlation`] if the step's is for another call, was taken already, or was never prepared; the
    /// producer's error if it failed before.
    pub fn take<K: Kind<R>>(&self, step: Step, kind: &K) -> Result<K::Part> {
        let mut state = self.lock();
        let taken = loop {
            match state.take(step, kind) {
                Some(taken) => break taken,
                None if state.awaited.insert(step) => self.changed.notify_all(),
                None => {}
            }
            state = self.wait(state);
        };
        state.awaited.remove(&step);
        self.changed.notify_all();
        taken
    }

    /// Adds what the helper sent to the ledger of the run.
    pub fn enter_dealt(&self, ledger: &mut Ledger) {
        for (&layer, &(bytes, messages)) in &self.lock().dealt {
            let sent = &mut ledger.layer(layer).sent;
            sent.dealt += bytes;
            sent.deals += messages;
        }
    }

    /// Whether everything was prepared and spent, as it must be after a run. If nothing is left, waits for the
    /// producer, which may be about to say that it is done.
    pub fn is_spent(&self) -> bool {
        let mut state = self.lock();
        while state.there.is_empty() && state.done.is_none() && !state.closed {
            state = self.wait(state);
        }
        state.there.is_empty() && matches!(state.done, Some(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::super::{Demand, Receiver};
    use super::*;
    use crate::ring::Z64;
    use crate::role::Server;
    use crate::testing::{AT, prgs};
    use crate::{convert, mul};

    const N: usize = 10;
    const DEMAND: mul::Demand = mul::Demand { n: N };

    fn prepared(step: Step, demand: mul::Demand) -> AnyPart<Z64> {
        let (ring, prgs) = (Z64::new(), prgs(1));
        let server = Receiver::new(&ring, Server::Server0, &prgs[0]);
        Demand::from(demand).receive(&server, step, vec![]).unwrap()
    }

    fn correlation(step: Step) -> AnyPart<Z64> {
        prepared(step, DEMAND)
    }

    /// The producer's part, for these calls.
    fn put(store: &Store<Z64>, calls: Range<u16>) {
        for call in calls {
            store.put(AT.call(call), correlation(AT.call(call))).unwrap();
        }
        store.finish(Ok(()));
    }

    fn store() -> Store<Z64> {
        let store = Store::new(1 << 20);
        put(&store, 1..4);
        store
    }

    #[test]
    fn each_is_taken_once_in_any_order() {
        for order in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            let store = store();
            for call in order {
                assert!(!store.is_spent());
                assert!(store.take(AT.call(call), &DEMAND).is_ok());
                // The same again.
                assert!(matches!(store.take(AT.call(call), &DEMAND), Err(Error::Correlation { .. })));
            }
            assert!(store.is_spent());
        }
    }

    #[test]
    fn what_was_passed_over_is_not_waited_for() {
        // The producer is not done, but beyond these steps.
        let store = Store::new(1 << 20);
        store.put(AT.call(3), correlation(AT.call(3))).unwrap();
        assert!(matches!(store.take(AT.call(2), &DEMAND), Err(Error::Correlation { .. })));
        store.take(AT.call(3), &DEMAND).unwrap();
        assert!(matches!(store.take(AT.call(3), &DEMAND), Err(Error::Correlation { .. })));
        store.finish(Ok(()));
        assert!(matches!(store.take(AT.call(4), &DEMAND), Err(Error::Correlation { .. })));
    }

    #[test]
    fn takers_wait_for_their_own_step() {
        let store = Store::new(1 << 20);
        std::thread::scope(|s| {
            let takers = [3, 1, 2].map(|call| {
                let store = &store;
                s.spawn(move || {
                    let taken = store.take(AT.call(call), &DEMAND).unwrap();
                    let same = correlation(AT.call(call)).of(AT.call(call), &DEMAND).unwrap();
                    assert!(taken.same_masks(&same));
                })
            });
            while store.lock().awaited.len() < takers.len() {
                std::thread::yield_now();
            }
            for call in 1..4 {
                store.put(AT.call(call), correlation(AT.call(call))).unwrap();
            }
            takers.into_iter().for_each(|t| t.join().unwrap());
        });
        store.finish(Ok(()));
        assert!(store.is_spent() && store.lock().awaited.is_empty());
    }

    #[test]
    #[should_panic(expected = "steps ascend")]
    fn a_step_comes_once() {
        let store = store();
        store.take(AT.call(3), &DEMAND).unwrap();
        let _ = store.put(AT.call(3), correlation(AT.call(3)));
    }

    #[test]
    fn one_of_another_kind_is_refused() {
        fn check<K: Kind<Z64>>(other: K) {
            let store = store();
            assert!(matches!(store.take(AT.call(1), &other), Err(Error::Correlation { .. })));
            // It was touched and is gone.
            assert!(matches!(store.take(AT.call(1), &DEMAND), Err(Error::Correlation { .. })));
        }
        check(mul::Demand { n: N + 1 });
        check(convert::Demand { n: N });
    }

    #[test]
    fn errors_and_closing_reach_the_other_side() {
        let store = Store::<Z64>::new(100);
        store.finish(Err(Error::Ended("the helper is gone".into())));
        assert!(matches!(store.take(AT, &DEMAND), Err(Error::Ended(_))));
        assert!(matches!(store.ready(), Err(Error::Ended(_))));
        store.close();
        assert!(matches!(store.put(AT, correlation(AT)), Err(Error::Ended(_))));
    }

    #[test]
    fn the_producer_waits_for_room() {
        let one = correlation(AT).bytes();
        let store = Store::<Z64>::new(2 * one);
        std::thread::scope(|s| {
            s.spawn(|| put(&store, 1..20));
            store.ready().unwrap();
            for call in 1..20 {
                assert!(store.lock().held <= 2 * one);
                store.take(AT.call(call), &DEMAND).unwrap();
            }
        });
        assert!(store.is_spent());
    }

    #[test]
    fn the_cap_bends_for_those_who_wait_for_a_later_step() {
        let one = correlation(AT).bytes();
        let store = Store::<Z64>::new(2 * one);
        std::thread::scope(|s| {
            s.spawn(|| put(&store, 1..20));
            // The producer waits for room, and this for the producer.
            store.ready().unwrap();
            store.take(AT.call(9), &DEMAND).unwrap();
            // No further than needed: the eight before it, and nothing behind it until there is room.
            let state = store.lock();
            assert_eq!((state.held, state.last), (8 * one, Some(AT.call(9))));
            drop(state);
            store.take(AT.call(4), &DEMAND).unwrap();
            for call in (1..20).filter(|call| ![4, 9].contains(call)) {
                store.take(AT.call(call), &DEMAND).unwrap();
            }
        });
        assert!(store.is_spent());
    }

    #[test]
    fn several_takers_of_a_full_store_all_go_on() {
        // By tens and backwards, so that each holds up what others need.
        let one = correlation(AT).bytes();
        let store = Store::<Z64>::new(one);
        let (steps, takers) = (120, 3);
        std::thread::scope(|s| {
            for taker in 0..takers {
                let store = &store;
                s.spawn(move || {
                    let mut calls: Vec<u16> = (1..=steps).filter(|call| call % takers == taker).collect();
                    calls.sort_by_key(|call| (call / 10, std::cmp::Reverse(*call)));
                    for call in calls {
                        store.take(AT.call(call), &DEMAND).unwrap();
                    }
                });
            }
            for call in 1..=steps {
                store.put(AT.call(call), correlation(AT.call(call))).unwrap();
            }
            store.finish(Ok(()));
        });
        assert!(store.is_spent() && store.lock().held == 0);
    }

    #[test]
    fn waiting_ends_with_the_producer_or_the_session() {
        let ends: [fn(&Store<Z64>); 3] = [
            |store| store.finish(Err(Error::Ended("the helper is gone".into()))),
            |store| store.close(),
            |store| store.finish(Ok(())),
        ];
        for (end, words) in ends.into_iter().zip(["helper is gone", "is closed", "never prepared"]) {
            let store = Store::<Z64>::new(100);
            std::thread::scope(|s| {
                let takers = [1, 2].map(|call| {
                    s.spawn({
                        let store = &store;
                        move || store.take(AT.call(call), &DEMAND).err().unwrap().to_string()
                    })
                });
                while store.lock().awaited.len() < takers.len() {
                    std::thread::yield_now();
                }
                end(&store);
                for taker in takers {
                    assert!(taker.join().unwrap().contains(words), "{words}");
                }
            });
        }
    }

    #[test]
    fn nothing_is_taken_before_its_time() {
        struct At(Mutex<Duration>);
        impl Clock for At {
            fn now(&self) -> Duration {
                *self.0.lock().unwrap()
            }
            fn wait_until(&self, time: Duration) {
                let mut now = self.0.lock().unwrap();
                *now = time.max(*now);
            }
        }
        let at = |seconds| Arc::new(At(Mutex::new(Duration::from_secs(seconds))));
        let (store, producer, consumer) = (Store::<Z64>::new(1 << 20), at(10), at(15));
        store.set_clock(producer.clone());
        for call in 1..4 {
            store.put(AT.call(call), correlation(AT.call(call))).unwrap();
            *producer.0.lock().unwrap() += Duration::from_secs(10);
        }
        store.finish(Ok(()));
        store.set_clock(consumer.clone());
        for (call, after) in [(1, 15), (3, 30), (2, 30)] {
            store.take(AT.call(call), &DEMAND).unwrap();
            assert_eq!(consumer.now(), Duration::from_secs(after));
        }
    }

    #[test]
    fn a_producer_that_has_yet_to_say_so_is_done() {
        for left in [0, 1] {
            let store = Store::<Z64>::new(1 << 20);
            store.put(AT, correlation(AT)).unwrap();
            store.take(AT, &DEMAND).unwrap();
            std::thread::scope(|s| {
                let spent = s.spawn(|| store.is_spent());
                for call in 0..left {
                    store.put(AT.call(2 + call), correlation(AT.call(2 + call))).unwrap();
                    assert!(!store.is_spent());
                }
                store.finish(Ok(()));
                assert_eq!(spent.join().unwrap(), left == 0);
            });
        }
    }

    #[test]
    fn readiness_does_not_depend_on_sizes() {
        // The second does not fit beside the first, which fills less than half.
        let (small, large) = (mul::Demand { n: 40 }, mul::Demand { n: 70 });
        let store = Store::<Z64>::new(100 * 24);
        std::thread::scope(|s| {
            s.spawn(|| {
                store.put(AT, prepared(AT, small)).unwrap();
                store.put(AT.call(2), prepared(AT.call(2), large)).unwrap();
                store.finish(Ok(()));
            });
            store.ready().unwrap();
            store.take(AT, &small).unwrap();
            store.take(AT.call(2), &large).unwrap();
        });
        assert!(store.is_spent());
    }
}
