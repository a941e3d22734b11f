//! Channels in one process under a virtual clock: what a run would take over a given link.
//!
//! Every party owns a clock. It advances by the time the party really computes between two uses of its
//! channels. A message departs once its sender is that far and the link is free, keeps the link busy for its
//! bytes, and arrives half a round trip later; the receiver's clock then is at least there. Parties take turns
//! computing, so that on a small machine none is charged for the work of another. Preparing and the online phase
//! of one server are two parties: where they overlap, they count as on cores of their own.

mod cluster;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use sharelens_protocol::channel::{HEADER_BYTES, check_header, header};
use sharelens_protocol::{Channel, Error, Result, Step, correlation};

use crate::transport::Traffic;

pub use cluster::{LocalCluster, LocalRun};

/// What a network is like, in each direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Round-trip time.
    pub rtt: Duration,
    /// Bytes per second.
    pub bandwidth: f64,
}

impl Link {
    /// From the units of configurations.
    pub fn new(rtt_ms: f64, mbit: f64) -> Self {
        Self { rtt: Duration::from_secs_f64(rtt_ms.max(0.0) / 1e3), bandwidth: mbit * 1e6 / 8.0 }
    }

    /// Time until a message of `bytes` has arrived, headers included.
    pub fn delivery(&self, bytes: usize) -> Duration {
        self.transfer(bytes).saturating_add(self.rtt / 2)
    }

    /// Time for which `bytes` keep it busy.
    pub fn transfer(&self, bytes: usize) -> Duration {
        Duration::try_from_secs_f64(bytes as f64 / self.bandwidth).unwrap_or(Duration::MAX)
    }
}

/// One-way trips of the messages that set up a session, one after the other: the request, server 0's stream to
/// server 1, its answer, the request to the helper, and the client's hearing that it may send. A run of
/// [`LocalCluster`] is without them.
pub const SESSION_TRIPS: u32 = 5;

/// The baton that the party which computes holds.
#[derive(Clone, Default)]
struct Baton(Arc<(Mutex<bool>, Condvar)>);

impl Baton {
    fn taken(&self) -> MutexGuard<'_, bool> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) {
        let mut taken = self.taken();
        while *taken {
            taken = self.0.1.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken = true;
    }

    fn give(&self) {
        *self.taken() = false;
        self.0.1.notify_one();
    }
}

/// Parties of one machine that take turns.
#[derive(Clone, Default)]
pub struct Machine(Baton);

/// One party: a thread with a clock. It computes from [`Machine::party`] on until it is dropped, except while
/// it waits for a message.
pub struct ClockedParty {
    clock: Clock,
    baton: Baton,
}

#[derive(Clone)]
struct Clock(Arc<Mutex<Time>>);

struct Time {
    now: Duration,
    since: Instant,
}

impl Clock {
    fn time(&self) -> MutexGuard<'_, Time> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges what was computed since the last call.
    fn charge(&self) -> Duration {
        let mut time = self.time();
        let instant = Instant::now();
        let spent = instant - time.since;
        time.now += spent;
        time.since = instant;
        time.now
    }

    /// Goes on at `earliest` or later, without a charge for the wait.
    fn resume(&self, earliest: Duration) {
        let mut time = self.time();
        time.now = time.now.max(earliest);
        time.since = Instant::now();
    }
}

impl correlation::Clock for Clock {
    fn now(&self) -> Duration {
        self.charge()
    }

    fn wait_until(&self, time: Duration) {
        self.charge();
        self.resume(time);
    }
}

impl Machine {
    /// The calling thread becomes a party whose clock shows `now`. Blocks until it is its turn.
    pub fn party(&self, now: Duration) -> ClockedParty {
        self.0.take();
        let clock = Clock(Arc::new(Mutex::new(Time { now, since: Instant::now() })));
        ClockedParty { clock, baton: self.0.clone() }
    }
}

impl ClockedParty {
    /// What its clock shows.
    pub fn now(&self) -> Duration {
        self.clock.charge()
    }

    /// Its clock, for a store.
    pub fn clock(&self) -> Arc<dyn correlation::Clock> {
        Arc::new(self.clock.clone())
    }

    /// Takes one end of a link into use.
    pub fn channel(&self, end: End) -> Virtual {
        Virtual {
            end,
            clock: self.clock.clone(),
            baton: self.baton.clone(),
            free: Duration::ZERO,
            peeked: None,
        }
    }
}

impl Drop for ClockedParty {
    fn drop(&mut self) {
        self.baton.give();
    }
}

/// One end of a link, not yet anyone's.
pub struct End {
    peer: String,
    link: Link,
    tx: mpsc::Sender<Message>,
    rx: mpsc::Receiver<Message>,
    traffic: Traffic,
}

struct Message {
    step: Step,
    bytes: Vec<u8>,
    arrives: Duration,
}

impl End {
    /// Both ends of a link between the parties called `a` and `b`.
    pub fn pair(a: &str, b: &str, link: Link) -> (Self, Self) {
        let (to_b, from_a) = mpsc::channel();
        let (to_a, from_b) = mpsc::channel();
        let end = |peer: &str, tx, rx| Self { peer: peer.into(), link, tx, rx, traffic: Traffic::default() };
        (end(b, to_b, from_b), end(a, to_a, from_a))
    }

    /// What will have gone over it.
    pub fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }
}

/// A [`Channel`] whose time is computed. Its futures block the thread: one party, one thread, one use at a time.
pub struct Virtual {
    end: End,
    clock: Clock,
    baton: Baton,
    /// When the direction to the peer is free again.
    free: Duration,
    /// The next message, if it was looked at.
    peeked: Option<Message>,
}

impl Virtual {
    /// The next message, awaited without a charge.
    fn message(&mut self) -> Result<Message> {
        if let Some(message) = self.peeked.take() {
            return Ok(message);
        }
        self.clock.charge();
        let message = match self.end.rx.try_recv() {
            Ok(message) => Ok(message),
            Err(_) => {
                self.baton.give();
                let message = self.end.rx.recv();
                self.baton.take();
                message
            }
        };
        message.map_err(|_| self.gone())
    }

    fn gone(&self) -> Error {
        Error::Link { peer: self.end.peer.clone(), reason: "closed".into() }
    }
}

impl Channel for Virtual {
    async fn send(&mut self, step: Step, bytes: Vec<u8>) -> Result<()> {
        let departs = self.clock.charge().max(self.free);
        let size = bytes.len() + HEADER_BYTES;
        self.free = departs.saturating_add(self.end.link.transfer(size));
        let arrives = self.free.saturating_add(self.end.link.rtt / 2);
        self.end.tx.send(Message { step, bytes, arrives }).map_err(|_| self.gone())?;
        self.end.traffic.add_sent(size);
        Ok(())
    }

    async fn next(&mut self, _: Step) -> Result<(Step, usize)> {
        let message = self.message()?;
        let next = (message.step, message.bytes.len());
        self.peeked = Some(message);
        Ok(next)
    }

    async fn recv(&mut self, step: Step, len: usize) -> Result<Vec<u8>> {
        let Message { step: found, bytes, arrives } = self.message()?;
        check_header(&header(found, bytes.len()), step, len)?;
        self.clock.resume(arrives);
        self.end.traffic.add_received(len + HEADER_BYTES);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    const AT: Step = Step::layer(1).call(1);
    const MS: Duration = Duration::from_millis(1);

    fn near(found: Duration, expected: Duration) {
        assert!(found >= expected && found < expected + 40 * MS, "{found:?} is not about {expected:?}");
    }

    fn as_party<T>(
        machine: &Machine,
        end: End,
        f: impl FnOnce(&ClockedParty, Virtual) -> T,
    ) -> (T, Duration) {
        let party = machine.party(Duration::ZERO);
        let out = f(&party, party.channel(end));
        (out, party.now())
    }

    /// Runs two parties; each gets its end and returns a result with its clock.
    fn run<T: Send>(
        link: Link,
        a: impl FnOnce(&ClockedParty, Virtual) -> T + Send,
        b: impl FnOnce(&ClockedParty, Virtual) -> T + Send,
    ) -> [(T, Duration); 2] {
        let machine = Machine::default();
        let (end_a, end_b) = End::pair("a", "b", link);
        std::thread::scope(|s| {
            let machine = &machine;
            let a = s.spawn(move || as_party(machine, end_a, a));
            let b = s.spawn(move || as_party(machine, end_b, b));
            [a.join().unwrap(), b.join().unwrap()]
        })
    }

    #[test]
    fn rounds_cost_latency_and_bytes_cost_bandwidth() {
        // 10 MB/s: 1 MB takes 100 ms.
        let link = Link::new(200.0, 80.0);
        let rounds = |_: &ClockedParty, mut ch: Virtual| {
            block_on(async {
                for i in 0..10 {
                    ch.send(AT.message(i), vec![0; 1]).await.unwrap();
                    ch.recv(AT.message(i), 1).await.unwrap();
                }
                for i in 10..12 {
                    ch.send(AT.message(i), vec![0; 1_000_000]).await.unwrap();
                }
                for i in 10..12 {
                    ch.recv(AT.message(i), 1_000_000).await.unwrap();
                }
            });
        };
        let start = Instant::now();
        for (_, clock) in run(link, rounds, rounds) {
            near(clock, 1000 * MS + 200 * MS + 100 * MS);
        }
        assert!(start.elapsed() < Duration::from_secs(1), "time is virtual");
    }

    #[test]
    fn computing_counts_for_the_party_that_computes() {
        let spin = |d: Duration| {
            let start = Instant::now();
            while start.elapsed() < d {}
        };
        let [(_, a), (_, b)] = run(
            Link::new(0.0, 1e6),
            |_, mut ch| {
                spin(60 * MS);
                block_on(ch.send(AT, vec![1])).unwrap();
                spin(30 * MS);
            },
            |_, mut ch| {
                spin(20 * MS);
                block_on(ch.recv(AT, 1)).unwrap();
                spin(20 * MS);
            },
        );
        near(a, 90 * MS);
        near(b, 80 * MS);
    }

    #[test]
    fn what_is_not_due_is_refused_and_leavers_are_noticed() {
        let [_, (errors, _)] = run(
            Link::new(1.0, 100.0),
            |_, mut ch| {
                block_on(async {
                    ch.send(AT, vec![1, 2]).await.unwrap();
                    ch.send(AT, vec![1, 2]).await.unwrap();
                });
                vec![]
            },
            |_, mut ch| {
                block_on(async {
                    let mut errors = vec![];
                    for (step, len) in [(AT, 3), (AT.message(1), 2), (AT, 2)] {
                        errors.push(ch.recv(step, len).await.unwrap_err());
                    }
                    errors
                })
            },
        );
        assert!(matches!(errors[..], [Error::Peer { .. }, Error::Peer { .. }, Error::Link { .. }]));
    }
}
