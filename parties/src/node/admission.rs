//! Who gets which place at a node.
//!
//! Nodes of the cluster have all they need, whatever others do. Enrolled clients and owners share a number of connections,
//! of which one key may have only some; uploads have places of their own, and sessions those of [`super::queue`]. Everybody else has none: a key that
//! nobody enrolled is turned away right after the handshake. Handshakes that are not finished are few, and when there are too
//! many the address that has most of them loses its oldest: whoever leaves them half open keeps nobody else out.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
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
    /// The oldest first.
    pending: VecDeque<Pending>,
}

struct Pending {
    id: u64,
    from: IpAddr,
    /// Dropped to end it.
    _evict: oneshot::Sender<()>,
}

/// What one sender can be assumed to have of addresses: one of IPv4, and the 64 bits below a subnet of IPv6.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
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

    /// A place for a handshake from this address. If there are too many, the address with most of them loses its oldest.
    pub fn handshake(&self, from: IpAddr) -> Handshake {
        let mut all = lock(&self.handshakes);
        let (evict, evicted) = oneshot::channel();
        let id = all.next;
        all.next += 1;
        all.pending.push_back(Pending { id, from: network(from), _evict: evict });
        if all.pending.len() > HANDSHAKES {
            let mut of = HashMap::<IpAddr, usize>::new();
            all.pending.iter().for_each(|p| *of.entry(p.from).or_default() += 1);
            let most = of.values().copied().max().unwrap_or(0);
            if let Some(at) = all.pending.iter().position(|p| of[&p.from] == most) {
                all.pending.remove(at);
            }
        }
        Handshake { id, evicted }
    }

    /// A handshake is over.
    pub fn done(&self, handshake: &Handshake) {
        lock(&self.handshakes).pending.retain(|p| p.id != handshake.id);
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
    fn an_address_that_has_many_handshakes_loses_its_own() {
        let lost = |h: &mut Handshake| h.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        let admission = Admission::new(&Limits::default());
        let (node, flood): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "198.51.100.7".parse().unwrap());
        let mut oldest = admission.handshake(node);
        let mut all: Vec<_> = (1..HANDSHAKES).map(|_| admission.handshake(flood)).collect();
        assert!(admission.validates());
        assert!(!all.iter_mut().any(lost) && !lost(&mut oldest), "there is room for as many");
        let more: Vec<_> = (0..2 * HANDSHAKES).map(|_| admission.handshake(flood)).collect();
        assert!(lost(&mut all[0]), "its oldest is out");
        assert!(!lost(&mut oldest), "however many there are, that of another address stays");
        for h in all.iter().chain(&more).chain([&oldest]) {
            admission.done(h);
        }
        assert!(!admission.validates());
    }

    #[test]
    fn a_subnet_counts_as_one_address() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::7"), of("2001:db8:0:1:ffff::"));
        assert_ne!(of("2001:db8:0:1::7"), of("2001:db8:0:2::7"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
