//! All parties of a cluster in one process, with the engine that nodes run.

use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::Duration;

use futures::executor::block_on;
use sharelens_protocol::Server;
use sharelens_protocol::channel::HEADER_BYTES;
use sharelens_protocol::cost::Ledger;
use sharelens_protocol::prg::Seed;
use zeroize::Zeroizing;

use super::{ClockedParty, End, Link, Machine};
use crate::client::SharedImage;
use crate::control::Start;
use crate::error::{Error, Result};
use crate::identity::random;
use crate::runner::{InputShare, Run, Runner};

/// Two servers and a helper with a loaded model, for tests and for figures over links that are not at hand.
/// They share a process and thus trust each other: a test utility, never a deployment.
pub struct LocalCluster<R: Runner> {
    runner: Arc<R>,
    link: Link,
    model: R::Model,
    weights: [R::Weights; 2],
    masks: R::Masks,
    load: Duration,
}

/// What one image took.
pub struct LocalRun {
    /// Both shares of the result.
    pub outputs: [Zeroizing<Vec<u8>>; 2],
    /// What each server counted.
    pub ledgers: [Ledger; 2],
    /// Time from the start of dealing until the image could be taken, on the virtual clock.
    pub offline: Duration,
    /// Time from the start of dealing until all correlations were there: the same, unless the image came at once.
    pub prepared: Duration,
    /// Time from the image to the result, waiting for correlations included, on the virtual clock.
    pub online: Duration,
    /// Bytes that the helper sent, headers included.
    pub dealt_bytes: u64,
    /// Bytes that each server sent to the other, headers included.
    pub online_bytes: [u64; 2],
}

impl<R: Runner> LocalCluster<R> {
    /// Loads a model from the owner's shares: what the seed expands to at server 0, `words` at server 1.
    ///
    /// # Errors
    /// As the engine.
    pub fn start(runner: R, link: Link, manifest: &[u8], seed: Seed, words: &[u8]) -> Result<Self> {
        let runner = Arc::new(runner);
        let model = runner.model(manifest, |_| Ok(()))?;
        let epoch: [u8; 16] = random()?;
        let seeds = seeds()?;
        let masks = runner.masks(&model, &seeds, &epoch)?;
        let shares = [InputShare::Seed(seed), InputShare::Words(words.to_vec())];
        let (end0, end1) = End::pair("server 0", "server 1", link);
        let machine = Machine::default();
        let load = |server: Server, share: InputShare, end: End| {
            let (runner, model, machine, epoch) = (&*runner, &model, &machine, &epoch);
            let seed = &seeds[server.index()];
            move || {
                let party = machine.party(Duration::ZERO);
                let mut peer = party.channel(end);
                let weights = block_on(runner.load(server, model, share, seed, epoch, &mut peer))?;
                Ok((weights, party.now()))
            }
        };
        let [share0, share1] = shares;
        let (w0, w1) = std::thread::scope(|s| {
            let (a, b) =
                (s.spawn(load(Server::Server0, share0, end0)), s.spawn(load(Server::Server1, share1, end1)));
            (joined(a), joined(b))
        });
        let [(w0, t0), (w1, t1)] = both(w0, w1)?;
        Ok(Self { runner, link, model, weights: [w0, w1], masks, load: t0.max(t1) })
    }

    /// How long loading took on the virtual clock.
    pub const fn load_time(&self) -> Duration {
        self.load
    }

    /// Runs the model on one image, once all correlations are there.
    ///
    /// # Errors
    /// As the engine.
    pub fn run(&self, image: &SharedImage) -> Result<LocalRun> {
        self.run_from(image, Start::Prepared)
    }

    /// Runs the model on one image. With [`Start::AtOnce`] the image comes as soon as the servers have their seeds,
    /// have told the client, and the client's upload has arrived. Since preparing does not depend on the online
    /// phase, it is computed before, and the online phase takes nothing before its time.
    ///
    /// # Errors
    /// As the engine.
    pub fn run_from(&self, image: &SharedImage, start: Start) -> Result<LocalRun> {
        let session: [u8; 32] = random()?;
        let seeds = seeds()?;
        let stores = [0, 1].map(|_: usize| self.runner.store(&self.model, usize::MAX));
        let run = |server: Server| Run {
            server,
            model: &self.model,
            weights: &self.weights[server.index()],
            store: &stores[server.index()],
            context: &session,
        };
        let (prepared, dealt_bytes) = self.preprocess(&seeds, &session, run)?;
        // On the clock of dealing, if the phases share it.
        let trip = self.link.rtt / 2;
        let (offline, arrives) = match start {
            Start::Prepared => (prepared, Duration::ZERO),
            Start::AtOnce => (trip, 2 * trip + self.link.delivery(image.words.len() + HEADER_BYTES)),
        };

        let (end0, end1) = End::pair("server 0", "server 1", self.link);
        let traffic = [end0.traffic(), end1.traffic()];
        let machine = Machine::default();
        let online = |server: Server, image: InputShare, end: End| {
            let (run, machine, runner) = (run(server), &machine, &*self.runner);
            move || {
                let party = machine.party(arrives);
                if start == Start::AtOnce {
                    runner.set_clock(run.store, party.clock());
                }
                let mut peer = party.channel(end);
                let (output, ledger) = block_on(runner.online(run, image, &mut peer))?;
                Ok((Zeroizing::new(output), ledger, party.now().saturating_sub(arrives)))
            }
        };
        let image0 = InputShare::Seed(image.seed.clone());
        let image1 = InputShare::Words(image.words.to_vec());
        let (r0, r1) = std::thread::scope(|s| {
            let a = s.spawn(online(Server::Server0, image0, end0));
            let b = s.spawn(online(Server::Server1, image1, end1));
            (joined(a), joined(b))
        });
        let [(o0, l0, t0), (o1, l1, t1)] = both(r0, r1)?;
        Ok(LocalRun {
            outputs: [o0, o1],
            ledgers: [l0, l1],
            offline,
            prepared,
            online: t0.max(t1),
            dealt_bytes,
            online_bytes: traffic.map(|t| t.sent()),
        })
    }

    /// Deals and prepares all correlations; time and the helper's bytes.
    fn preprocess<'a>(
        &'a self,
        seeds: &[Seed; 2],
        session: &[u8; 32],
        run: impl Fn(Server) -> Run<'a, R>,
    ) -> Result<(Duration, u64)> {
        let (helper0, end0) = End::pair("helper", "server 0", self.link);
        let (helper1, end1) = End::pair("helper", "server 1", self.link);
        let dealt = helper1.traffic();
        let machine = Machine::default();
        let prepare = |server: Server, end: End| {
            let (run, machine, runner) = (run(server), &machine, &*self.runner);
            let seed = &seeds[server.index()];
            move || {
                // Its seed is one trip away, as the first correction is.
                let party = machine.party(self.link.rtt / 2);
                runner.set_clock(run.store, party.clock());
                block_on(runner.preprocess(run, seed, &mut party.channel(end)))?;
                Ok(party.now())
            }
        };
        let deal = |party: &ClockedParty, end: End| {
            let mut to_server1 = party.channel(end);
            let deal = self.runner.deal(&self.model, &self.masks, seeds, session, &mut to_server1);
            block_on(deal).map_err(Error::from)
        };
        let (dealing, p0, p1) = std::thread::scope(|s| {
            let dealing = s.spawn(|| deal(&machine.party(Duration::ZERO), helper1));
            let (a, b) = (s.spawn(prepare(Server::Server0, end0)), s.spawn(prepare(Server::Server1, end1)));
            (joined(dealing), joined(a), joined(b))
        });
        // Server 0 has a link to the helper, too, on which nothing comes.
        drop(helper0);
        let [t0, t1] = both(p0, p1)?;
        dealing?;
        Ok((t0.max(t1), dealt.sent()))
    }
}

fn seeds() -> Result<[Seed; 2]> {
    let fresh = || Seed::random().map_err(|e| Error::Internal(e.to_string()));
    Ok([fresh()?, fresh()?])
}

/// Both, or the more telling error: when one party fails, the other one only sees that it left.
fn both<T>(a: Result<T>, b: Result<T>) -> Result<[T; 2]> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok([a, b]),
        (Err(Error::Protocol(sharelens_protocol::Error::Link { .. })), Err(other)) => Err(other),
        (Err(e), _) | (_, Err(e)) => Err(e),
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(Error::Internal("a party panicked".into())))
}
