//! Who gets which place at a node.
//!
//! Nodes of the cluster have all they need, whatever others do. Enrolled clients and owners share a number of connections,
//! of which one key may have only some; sessions and uploads have places of their own. Everybody else has none: a key that
//! nobody enrolled is turned away right after the handshake. Handshakes that are not finished are few, and the oldest makes
//! room for the newest: whoever leaves them half open keeps nobody out.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::config::Limits;
use crate::error::{Error, Result};
use crate::identity::Pin;

/// Handshakes under way at once.
const HANDSHAKES: usize = 64;
/// Handshakes from which on addresses are validated first, at the price of a round trip.
const VALIDATED: usize = 16;

/// The places of a node.
pub struct Admission {
    limits: Limits,
    connections: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    of_key: Arc<Mutex<HashMap<Pin, Held>>>,
    handshakes: Mutex<Handshakes>,
}

/// What one key holds.
#[derive(Clone, Copy, Default)]
struct Held {
    connections: usize,
    uploads: usize,
}

#[derive(Default)]
struct Handshakes {
    next: u64,
    pending: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// A place that one key holds, given back on drop.
pub struct OfKey {
    all: Arc<Mutex<HashMap<Pin, Held>>>,
    pin: Pin,
    part: fn(&mut Held) -> &mut usize,
    _permit: OwnedSemaphorePermit,
}

impl Drop for OfKey {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        if let Some(held) = all.get_mut(&self.pin) {
            *(self.part)(held) -= 1;
            if held.connections == 0 && held.uploads == 0 {
                all.remove(&self.pin);
            }
        }
    }
}

/// A handshake under way.
pub struct Handshake {
    id: u64,
    /// Resolves when a newer one needs its place.
    pub evicted: oneshot::Receiver<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// Within these limits.
    pub fn new(limits: &Limits) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(limits.client_connections)),
            sessions: Arc::new(Semaphore::new(limits.sessions)),
            uploads: Arc::new(Semaphore::new(limits.uploads)),
            limits: limits.clone(),
            of_key: Arc::default(),
            handshakes: Mutex::default(),
        }
    }

    /// Whether an address that was not validated has to be, first.
    pub fn validates(&self) -> bool {
        lock(&self.handshakes).pending.len() >= VALIDATED
    }

    /// A place for a handshake; the oldest one loses its own if there are many.
    pub fn handshake(&self) -> Handshake {
        let mut all = lock(&self.handshakes);
        let (evict, evicted) = oneshot::channel();
        let id = all.next;
        all.next += 1;
        all.pending.push_back((id, evict));
        if all.pending.len() > HANDSHAKES {
            all.pending.pop_front();
        }
        Handshake { id, evicted }
    }

    /// A handshake is over.
    pub fn done(&self, handshake: &Handshake) {
        lock(&self.handshakes).pending.retain(|(id, _)| *id != handshake.id);
    }

    /// A place for a connection of an enrolled key.
    ///
    /// # Errors
    /// [`Error::Busy`] if all are taken, or this key has its share of them.
    pub fn connection(&self, pin: Pin) -> Result<OfKey> {
        let per_key = (self.limits.connections_per_key, "connections of one key");
        let all = (&self.connections, self.limits.client_connections, "connections of clients");
        self.of_key(pin, all, per_key, |held| &mut held.connections)
    }

    /// A place for an upload of a model: one for each key.
    ///
    /// # Errors
    /// [`Error::Busy`] if all are taken, or this key has one.
    pub fn upload(&self, pin: Pin) -> Result<OfKey> {
        let all = (&self.uploads, self.limits.uploads, "uploads");
        self.of_key(pin, all, (1, "uploads of one key"), |held| &mut held.uploads)
    }

    fn of_key(
        &self,
        pin: Pin,
        (places, all, what): (&Arc<Semaphore>, usize, &'static str),
        (most, of_key): (usize, &'static str),
        part: fn(&mut Held) -> &mut usize,
    ) -> Result<OfKey> {
        let mut keys = lock(&self.of_key);
        let held = keys.get(&pin).copied().unwrap_or_default();
        if *part(&mut held.clone()) >= most {
            return Err(Error::Busy { what: of_key, most });
        }
        let permit = places.clone().try_acquire_owned().map_err(|_| Error::Busy { what, most: all })?;
        *part(keys.entry(pin).or_default()) += 1;
        Ok(OfKey { all: self.of_key.clone(), pin, part, _permit: permit })
    }

    /// One of the places for sessions, for a request that both servers have.
    ///
    /// # Errors
    /// [`Error::Busy`].
    pub fn session(&self) -> Result<OwnedSemaphorePermit> {
        let most = self.limits.sessions;
        self.sessions.clone().try_acquire_owned().map_err(|_| Error::Busy { what: "sessions", most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(i: u8) -> Pin {
        Pin::from_bytes([i; 32])
    }

    #[test]
    fn one_key_cannot_have_all() {
        let limits =
            Limits { client_connections: 5, connections_per_key: 3, uploads: 2, ..Limits::default() };
        let admission = Admission::new(&limits);
        let first: Vec<OfKey> = (0..3).map(|_| admission.connection(pin(1)).unwrap()).collect();
        assert!(matches!(
            admission.connection(pin(1)),
            Err(Error::Busy { what: "connections of one key", most: 3 })
        ));
        let other: Vec<OfKey> = (0..2).map(|_| admission.connection(pin(2)).unwrap()).collect();
        let full = admission.connection(pin(3)).err().unwrap().to_string();
        assert!(full.contains("all 5 connections of clients"), "{full}");
        drop(first);
        let again = admission.connection(pin(1)).unwrap();
        let upload = admission.upload(pin(1)).unwrap();
        assert!(admission.upload(pin(1)).is_err(), "one upload for each key");
        assert!(admission.upload(pin(2)).is_ok());
        drop((other, again, upload));
        assert!(lock(&admission.of_key).is_empty(), "nothing is remembered of who is gone");
    }

    #[test]
    fn old_handshakes_make_room() {
        let admission = Admission::new(&Limits::default());
        let mut all: Vec<Handshake> = (0..HANDSHAKES).map(|_| admission.handshake()).collect();
        assert!(admission.validates());
        assert!(all.iter_mut().all(|h| h.evicted.try_recv() == Err(oneshot::error::TryRecvError::Empty)));
        let newest = admission.handshake();
        assert_eq!(all[0].evicted.try_recv(), Err(oneshot::error::TryRecvError::Closed), "the oldest is out");
        all.iter().for_each(|h| admission.done(h));
        admission.done(&newest);
        assert!(!admission.validates());
    }
}
