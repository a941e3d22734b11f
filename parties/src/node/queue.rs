//! Who runs next.
//!
//! Server 0 has a number of places for sessions. A request that both servers have takes one, or waits for one here. The next
//! free place goes to the key that has the fewest places now; among those to the key that was served longest ago, and of one
//! key to the request that came first. So a client with many pictures delays another one by one picture, not by all of its.
//! Server 1 starts what server 0 starts, in its order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::config::Limits;
use crate::error::{Error, Result};
use crate::identity::Pin;

/// How much the newest session counts in the mean of their lengths.
const NEWEST: f64 = 0.2;

/// The places for sessions, and who waits for them.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

struct Shared {
    places: usize,
    most: usize,
    of_key: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    taken: usize,
    next: u64,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
    keys: HashMap<Pin, Key>,
    /// Mean seconds of a session, if there was one.
    mean: Option<f64>,
}

struct Waiting {
    id: u64,
    pin: Pin,
    turn: watch::Sender<Turn>,
}

/// What counts when places are given away. Kept for keys that wait or have a place.
#[derive(Clone, Copy, Default)]
struct Key {
    places: usize,
    waiting: usize,
    /// Number of the place it was given last; 0 if none.
    served: u64,
}

/// What someone who waits is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// How many places have to become free until it is their turn, and about how many seconds that takes.
    Waits {
        /// 1 is the next.
        position: u32,
        /// Unknown before the first session has ended.
        seconds: Option<u32>,
    },
    /// A place is theirs.
    Now,
}

/// A place of a session, free again on drop.
pub struct Place {
    queue: Queue,
    pin: Pin,
    since: Instant,
}

/// A request in the queue. Dropping it leaves the queue.
pub struct Waiter {
    queue: Queue,
    id: u64,
    pin: Pin,
    turn: watch::Receiver<Turn>,
    /// Whether the place that was given is a [`Place`] now, which gives it back.
    taken: bool,
}

impl Queue {
    /// Within these limits.
    pub fn new(limits: &Limits) -> Self {
        Self(Arc::new(Shared {
            places: limits.sessions,
            most: limits.queue,
            of_key: limits.queue_per_key,
            state: Mutex::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the queue; the turn may have come at once.
    ///
    /// # Errors
    /// [`Error::Busy`] if too many wait, or too many of this key.
    pub fn join(&self, pin: Pin) -> Result<Waiter> {
        let mut state = self.state();
        let free = state.taken < self.0.places;
        // A free place means that nobody waits.
        if !free && state.waiting.len() >= self.0.most {
            return Err(Error::Busy { what: "places to wait for a session", most: self.0.most });
        }
        if !free && state.keys.get(&pin).is_some_and(|k| k.waiting >= self.0.of_key) {
            return Err(Error::Busy { what: "places of one key to wait for a session", most: self.0.of_key });
        }
        let id = state.next;
        state.next += 1;
        let (turn, told) = watch::channel(Turn::Waits { position: 1, seconds: None });
        state.waiting.push(Waiting { id, pin, turn });
        state.keys.entry(pin).or_default().waiting += 1;
        state.settle(self.0.places);
        Ok(Waiter { queue: self.clone(), id, pin, turn: told, taken: false })
    }
}

impl State {
    /// Gives away what is free and tells everybody else where they are.
    fn settle(&mut self, places: usize) {
        while self.taken < places {
            let Some(at) = next(&self.waiting, &self.keys, |_| true) else { break };
            let Waiting { pin, turn, .. } = self.waiting.remove(at);
            self.taken += 1;
            self.next += 1;
            let served = self.next;
            if let Some(key) = self.keys.get_mut(&pin) {
                *key = Key { places: key.places + 1, waiting: key.waiting - 1, served };
            }
            turn.send_replace(Turn::Now);
        }
        // As if no place were given back but one after the other.
        let (mut keys, mut passed) = (self.keys.clone(), vec![false; self.waiting.len()]);
        for position in 1..=self.waiting.len() {
            let Some(at) = next(&self.waiting, &keys, |i| !passed[i]) else { break };
            passed[at] = true;
            let Waiting { pin, turn, .. } = &self.waiting[at];
            if let Some(key) = keys.get_mut(pin) {
                key.places += 1;
                key.served = self.next + position as u64;
            }
            let seconds = self.mean.map(|mean| (mean * position as f64 / places as f64).ceil() as u32);
            let now = Turn::Waits { position: position as u32, seconds };
            turn.send_if_modified(|told| std::mem::replace(told, now) != now);
        }
    }

    fn forget(&mut self, pin: Pin, part: impl FnOnce(&mut Key)) {
        if let Some(key) = self.keys.get_mut(&pin) {
            part(key);
            if key.places == 0 && key.waiting == 0 {
                self.keys.remove(&pin);
            }
        }
    }
}

/// Whose turn it is of those for whom `counts` holds.
fn next(waiting: &[Waiting], keys: &HashMap<Pin, Key>, counts: impl Fn(usize) -> bool) -> Option<usize> {
    let rank = |&i: &usize| {
        let key = keys.get(&waiting[i].pin).copied().unwrap_or_default();
        (key.places, key.served, i)
    };
    (0..waiting.len()).filter(|i| counts(*i)).min_by_key(rank)
}

impl Waiter {
    /// The place, if the turn has come.
    fn take(&mut self) -> Option<Place> {
        if self.taken || *self.turn.borrow_and_update() != Turn::Now {
            return None;
        }
        self.taken = true;
        Some(Place { queue: self.queue.clone(), pin: self.pin, since: Instant::now() })
    }

    /// Waits for the place, for at most so long. `told` hears where in the queue it is, whenever that changes.
    ///
    /// # Errors
    /// [`Error::Queued`].
    pub async fn place(mut self, wait: Duration, mut told: impl FnMut(Turn)) -> Result<Place> {
        let place = async {
            loop {
                if let Some(place) = self.take() {
                    break place;
                }
                told(*self.turn.borrow());
                // Fails once the turn has come, as nobody tells of anything then.
                let _ = self.turn.changed().await;
            }
        };
        if let Ok(place) = tokio::time::timeout(wait, place).await {
            return Ok(place);
        }
        let before = match *self.turn.borrow() {
            Turn::Waits { position, .. } => position.saturating_sub(1),
            Turn::Now => 0,
        };
        Err(Error::Queued { seconds: wait.as_secs(), before })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut state = self.queue.state();
        match state.waiting.iter().position(|w| w.id == self.id) {
            Some(at) => {
                state.waiting.remove(at);
                state.forget(self.pin, |key| key.waiting -= 1);
            }
            // Given, and not taken.
            None => {
                state.taken -= 1;
                state.forget(self.pin, |key| key.places -= 1);
            }
        }
        state.settle(self.queue.0.places);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.taken -= 1;
        state.forget(self.pin, |key| key.places -= 1);
        let took = self.since.elapsed().as_secs_f64();
        state.mean = Some(state.mean.map_or(took, |mean| mean + NEWEST * (took - mean)));
        state.settle(self.queue.0.places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(i: u8) -> Pin {
        Pin::from_bytes([i; 32])
    }

    fn queue(sessions: usize, queue: usize, queue_per_key: usize) -> Queue {
        Queue::new(&Limits { sessions, queue, queue_per_key, ..Limits::default() })
    }

    fn position(waiter: &Waiter) -> u32 {
        match *waiter.turn.borrow() {
            Turn::Waits { position, .. } => position,
            Turn::Now => 0,
        }
    }

    #[test]
    fn a_key_with_many_requests_delays_another_by_one() {
        let queue = queue(1, 100, 100);
        let mut many: Vec<Waiter> = (0..20).map(|_| queue.join(pin(1)).unwrap()).collect();
        let mut running = many[0].take().expect("the first need not wait");
        let one = queue.join(pin(2)).unwrap();
        assert_eq!((position(&one), position(&many[1]), position(&many[2])), (1, 2, 3));
        let mut order = Vec::new();
        let mut all: Vec<(u8, Waiter)> = many.drain(1..4).map(|w| (1, w)).collect();
        all.push((2, one));
        all.push((2, queue.join(pin(2)).unwrap()));
        drop(many);
        for _ in 0..5 {
            drop(running);
            let (at, place) = all
                .iter_mut()
                .enumerate()
                .find_map(|(i, (_, w))| Some((i, w.take()?)))
                .expect("somebody's turn");
            order.push(all.remove(at).0);
            running = place;
        }
        assert_eq!(order, [2, 1, 2, 1, 1]);
        drop(running);
        let state = queue.state();
        assert!(
            state.keys.is_empty() && state.waiting.is_empty() && state.taken == 0,
            "nothing is left behind"
        );
    }

    #[test]
    fn a_key_that_runs_much_waits_for_one_that_runs_little() {
        let queue = queue(3, 100, 100);
        let mut first: Vec<Waiter> = (0..4).map(|_| queue.join(pin(1)).unwrap()).collect();
        let mut places: Vec<Place> = first[..3].iter_mut().map(|w| w.take().unwrap()).collect();
        let mut others: Vec<Waiter> = (2..4).map(|i| queue.join(pin(i)).unwrap()).collect();
        assert_eq!(position(&first[3]), 3);
        places.pop();
        let second = others[0].take().expect("it came first of those that have none");
        assert!(others[1].take().is_none());
        drop(second);
        let third = others[1].take().expect("only now the key that has two");
        assert!(first[3].take().is_none());
        drop(third);
        assert!(first[3].take().is_some());
    }

    #[test]
    fn the_queue_is_bounded_in_all_and_for_each_key() {
        let queue = queue(1, 3, 2);
        let mut running = queue.join(pin(1)).unwrap();
        let place = running.take().unwrap();
        let _waiting: Vec<Waiter> = (0..2).map(|_| queue.join(pin(1)).unwrap()).collect();
        assert!(matches!(queue.join(pin(1)), Err(Error::Busy { most: 2, .. })));
        let other = queue.join(pin(2)).unwrap();
        assert!(matches!(queue.join(pin(3)), Err(Error::Busy { most: 3, .. })));
        drop(other);
        assert!(queue.join(pin(3)).is_ok());
        drop(place);
    }

    #[tokio::test]
    async fn who_leaves_makes_room_and_who_was_given_a_place_gives_it_back() {
        let queue = queue(1, 10, 10);
        let place = queue.join(pin(1)).unwrap().place(Duration::ZERO, |_| {}).await.unwrap();
        let gone = queue.join(pin(2)).unwrap();
        let next = queue.join(pin(3)).unwrap();
        assert_eq!(position(&next), 2);
        drop(gone);
        assert_eq!(position(&next), 1);
        let late = queue.join(pin(4)).unwrap().place(Duration::from_millis(5), |_| {}).await.err().unwrap();
        assert!(late.to_string().contains("1 request"), "{late}");
        drop(place);
        // Its turn has come, and it leaves without having looked.
        drop(next);
        assert!(queue.join(pin(5)).unwrap().take().is_some());
        assert!(queue.state().mean.is_some(), "the length of sessions is known");
    }
}
