//! Runs both servers of a protocol in one test function.

use futures::executor::block_on;
use futures::future::try_join;

use crate::channel::{Channel, Memory};
use crate::correlation::SecureRing;
use crate::cost::{Cost, Ledger};
use crate::error::Result;
use crate::party::Party;
use crate::prg::{Prg, Purpose, Seed, Stream};
use crate::ring::{Domain, Moduli, Range, Ring, Rns, Z64};
use crate::role::Server;
use crate::secret::Secret;
use crate::share::{self, Share};
use crate::step::Step;

pub const AT: Step = Step::layer(3).call(1);

/// A channel that keeps what was received.
pub struct Tap {
    inner: Memory,
    pub view: Vec<u8>,
    pub messages: Vec<(Step, usize)>,
}

impl Channel for Tap {
    async fn send(&mut self, step: Step, bytes: Vec<u8>) -> Result<()> {
        self.inner.send(step, bytes).await
    }

    async fn next(&mut self, due: Step) -> Result<(Step, usize)> {
        self.inner.next(due).await
    }

    async fn recv(&mut self, step: Step, len: usize) -> Result<Vec<u8>> {
        let bytes = self.inner.recv(step, len).await?;
        self.view.extend_from_slice(&bytes);
        self.messages.push((step, len));
        Ok(bytes)
    }
}

pub struct Run<T> {
    pub out: [T; 2],
    pub ledgers: [Ledger; 2],
    /// All bytes each server received.
    pub views: [Vec<u8>; 2],
}

/// Both servers, each with its own input.
pub fn run<R: Ring, I, T>(
    ring: &R,
    inputs: [I; 2],
    f: impl AsyncFn(&mut Party<'_, R, Tap>, I) -> Result<T>,
) -> Result<Run<T>> {
    let (a, b) = Memory::pair("server 0", "server 1");
    let mut taps = [a, b].map(|inner| Tap { inner, view: Vec::new(), messages: Vec::new() });
    let mut ledgers = [Ledger::default(), Ledger::default()];
    let [in0, in1] = inputs;
    let out = {
        let ([t0, t1], [l0, l1]) = (&mut taps, &mut ledgers);
        let mut p0 = Party { ring, role: Server::Server0, channel: t0, ledger: l0 };
        let mut p1 = Party { ring, role: Server::Server1, channel: t1, ledger: l1 };
        block_on(try_join(f(&mut p0, in0), f(&mut p1, in1)))?
    };
    for tap in &taps {
        let mut steps: Vec<_> = tap.messages.iter().map(|m| m.0).collect();
        steps.sort();
        steps.dedup();
        assert_eq!(steps.len(), tap.messages.len(), "every message has a step of its own");
    }
    Ok(Run { out: out.into(), ledgers, views: taps.map(|t| t.view) })
}

impl<T> Run<T> {
    /// Asserts that both servers sent and received exactly what `cost` says.
    pub fn assert_priced(&self, cost: Cost) {
        for ledger in &self.ledgers {
            let total = ledger.total();
            assert_eq!(
                (total.sent.rounds, total.sent.messages, total.sent.bytes, total.received_bytes),
                (cost.rounds, cost.messages, cost.bytes, cost.bytes),
                "rounds, messages, bytes sent, bytes received"
            );
        }
    }
}

impl<R: Ring, D: Domain> Run<Share<R, D>> {
    /// The result in the clear.
    pub fn join(self, ring: &R) -> Vec<i64> {
        let [a, b] = self.out;
        share::join(ring, D::RANGE, a.into_words(), b.words())
    }
}

/// The generators of the helper's seeds for server 0 and server 1.
pub fn prgs(seed: u8) -> [Prg; 2] {
    [0, 1].map(|i| Seed::from_bytes([seed ^ i << 7; 32]).prg(b"test"))
}

pub fn shares<R: Ring, D: Domain>(ring: &R, seed: u8, x: &[i64]) -> [Share<R, D>; 2] {
    let prg = Seed::from_bytes([seed; 32]).prg(b"input");
    let s1 = share::split(ring, D::RANGE, &prg, AT, Purpose::Input, x);
    [Share::new(ring.uniform(D::RANGE, prg.at(AT, Purpose::Input), x.len())), Share::new(s1)]
}

/// Adds the integers to a share.
pub fn shift<R: Ring>(ring: &R, range: Range, words: &mut Secret<R::Word>, by: &[i64]) {
    ring.add(range, words, &ring.encode(range, by));
}

/// Numbers with |x| <= bound, the edges and zero among them.
pub fn numbers(seed: u8, n: usize, bound: i64) -> Vec<i64> {
    let prg = Seed::from_bytes([seed; 32]).prg(b"numbers");
    let mut s: Stream<'_> = prg.stream(AT, Purpose::Test, 0, 0);
    let words = s.words(n);
    let span = 2 * bound as u128 + 1;
    let mut out: Vec<i64> =
        words.iter().map(|&w| (((w as u128 * span) >> 64) as i128 - bound as i128) as i64).collect();
    for (o, edge) in out.iter_mut().zip([0, bound, -bound, 1, -1, bound - 1]) {
        *o = edge;
    }
    out
}

/// Runs `f` for several residue number systems and for Z_2^64.
pub fn rings(f: impl Fn(&Rns), g: impl Fn(&Z64)) {
    for (k, l) in [(2, 2), (3, 2), (3, 3), (4, 2), (4, 4)] {
        f(&Rns::new(Moduli::usual(k, l).unwrap()).unwrap());
    }
    g(&Z64::new());
}

/// Largest |x| of comparisons.
pub fn reduced_bound<R: SecureRing>(ring: &R) -> i64 {
    ring.bound(Range::Reduced)
}
