//! An engine small enough to check the nodes by: the result is image plus weights, byte by byte. Its weights
//! are opened under a mask and its result is blinded by a correlation, so every link is used as in earnest.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sharelens::runner::{InputShare, Run, Runner, Sizes};
use sharelens_protocol::correlation::Clock;
use sharelens_protocol::cost::Ledger;
use sharelens_protocol::prg::Seed;
use sharelens_protocol::{Channel, Error, Result, Server, Step};

pub struct Toy;

/// `toy:BYTES[:MILLISECONDS[:fail|panic|late|gated-NAME]]`. The online phase pauses first, or the helper if it is
/// late. If it is gated, it deals when [`open`] says so, and fails when [`fail`] does.
pub struct Manifest {
    pub n: usize,
    pause: Duration,
    fault: Option<String>,
}

pub fn parse(manifest: &[u8]) -> Option<Manifest> {
    let mut fields = std::str::from_utf8(manifest).ok()?.strip_prefix("toy:")?.split(':');
    let n = fields.next()?.parse().ok()?;
    let pause = Duration::from_millis(fields.next().map_or(Ok(0), str::parse).ok()?);
    Some(Manifest { n, pause, fault: fields.next().map(String::from) })
}

/// The plaintext weights of a model.
pub fn weights(manifest: &str) -> Vec<u8> {
    (0..parse(manifest.as_bytes()).map_or(0, |m| m.n)).map(|i| (i * 7) as u8).collect()
}

static GATES: (Mutex<BTreeMap<String, bool>>, Condvar) = (Mutex::new(BTreeMap::new()), Condvar::new());

/// Lets the helper deal for all models gated with this name, now and later.
#[allow(dead_code, reason = "not every suite needs it")]
pub fn open(name: &str) {
    settle(name, true);
}

/// Lets it fail.
#[allow(dead_code, reason = "not every suite needs it")]
pub fn fail(name: &str) {
    settle(name, false);
}

fn settle(name: &str, deal: bool) {
    GATES.0.lock().unwrap().insert(format!("gated-{name}"), deal);
    GATES.1.notify_all();
}

fn expand(seed: &Seed, context: &[u8], n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    seed.prg(context).stream(AT, sharelens_protocol::prg::Purpose::WeightMask, 0, 0).fill(&mut bytes);
    bytes
}

/// Server 1's share, where server 0's expands from `seed`.
pub fn split(seed: &Seed, context: &[u8], plain: &[u8]) -> Vec<u8> {
    sub(plain, &expand(seed, context, plain.len()))
}

fn add(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a.wrapping_add(*b)).collect()
}

fn sub(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a.wrapping_sub(*b)).collect()
}

fn share_of(share: &InputShare, context: &[u8], n: usize) -> Vec<u8> {
    match share {
        InputShare::Seed(seed) => expand(seed, context, n),
        InputShare::Words(words) => words.clone(),
    }
}

#[derive(Default)]
pub struct Store {
    state: Mutex<Option<(Result<Vec<u8>>, Duration)>>,
    changed: Condvar,
    clock: Mutex<Option<Arc<dyn Clock>>>,
}

impl Store {
    fn put(&self, value: Result<Vec<u8>>) {
        let now = self.clock.lock().unwrap().as_ref().map_or(Duration::ZERO, |clock| clock.now());
        self.state.lock().unwrap().get_or_insert((value, now));
        self.changed.notify_all();
    }

    fn get(&self) -> Result<Vec<u8>> {
        let state = self.changed.wait_while(self.state.lock().unwrap(), |s| s.is_none()).unwrap();
        let (value, since) = state.as_ref().unwrap();
        if let Some(clock) = &*self.clock.lock().unwrap() {
            clock.wait_until(*since);
        }
        value.clone()
    }
}

const AT: Step = Step::layer(1).call(1);

impl Runner for Toy {
    type Model = Manifest;
    type Weights = Vec<u8>;
    type Masks = Vec<u8>;
    type Store = Store;

    fn model(
        &self,
        manifest: &[u8],
        fits: impl FnOnce(&Sizes) -> sharelens::Result<()>,
    ) -> sharelens::Result<Manifest> {
        let manifest = parse(manifest).ok_or_else(|| Error::Config("not a toy".into()))?;
        fits(&self.sizes(&manifest))?;
        Ok(manifest)
    }

    fn sizes(&self, m: &Manifest) -> Sizes {
        Sizes { image_share: m.n, weight_share: m.n, output: m.n }
    }

    async fn load<C: Channel>(
        &self,
        server: Server,
        m: &Manifest,
        share: InputShare,
        seed: &Seed,
        context: &[u8],
        peer: &mut C,
    ) -> Result<Vec<u8>> {
        let mask = expand(seed, context, m.n);
        let masked = sub(&share_of(&share, b"weights", m.n), &mask);
        peer.send(AT, masked.clone()).await?;
        let opened = add(&masked, &peer.recv(AT, m.n).await?);
        Ok(if server.is_first() { add(&mask, &opened) } else { mask })
    }

    fn masks(&self, m: &Manifest, seeds: &[Seed; 2], context: &[u8]) -> Result<Vec<u8>> {
        Ok(add(&expand(&seeds[0], context, m.n), &expand(&seeds[1], context, m.n)))
    }

    fn store(&self, _: &Manifest, _: usize) -> Store {
        Store::default()
    }

    fn set_clock(&self, store: &Store, clock: Arc<dyn Clock>) {
        *store.clock.lock().unwrap() = Some(clock);
    }

    async fn preprocess<C: Channel>(&self, run: Run<'_, Self>, seed: &Seed, helper: &mut C) -> Result<()> {
        let blind = match run.server {
            Server::Server0 => Ok(expand(seed, run.context, run.model.n)),
            Server::Server1 => helper.recv(AT, run.model.n).await,
        };
        run.store.put(blind.clone());
        blind.map(drop)
    }

    fn ready(&self, store: &Store) -> Result<()> {
        store.get().map(drop)
    }

    async fn online<C: Channel>(
        &self,
        run: Run<'_, Self>,
        image: InputShare,
        peer: &mut C,
    ) -> Result<(Vec<u8>, Ledger)> {
        if run.model.fault.as_deref() != Some("late") {
            std::thread::sleep(run.model.pause);
        }
        match run.model.fault.as_deref() {
            Some("fail") if !run.server.is_first() => {
                return Err(Error::Config("server 1 fails on purpose".into()));
            }
            Some("panic") if !run.server.is_first() => std::panic::resume_unwind(Box::new("on purpose")),
            _ => {}
        }
        let share = share_of(&image, b"image", run.model.n);
        // Each server waits for its own and then for the other.
        let blind = run.store.get()?;
        peer.send(AT, vec![0; run.model.n]).await?;
        peer.recv(AT, run.model.n).await?;
        let output = add(&add(&share, run.weights), &blind);
        Ok((output, Ledger::default()))
    }

    fn end(&self, store: &Store) {
        store.put(Err(Error::Ended("over".into())));
    }

    async fn deal<C: Channel>(
        &self,
        m: &Manifest,
        masks: &Vec<u8>,
        seeds: &[Seed; 2],
        context: &[u8],
        server1: &mut C,
    ) -> Result<()> {
        assert_eq!(masks.len(), m.n);
        match m.fault.as_deref() {
            Some("late") => std::thread::sleep(m.pause),
            Some(gate) if gate.starts_with("gated-") => {
                let gates = GATES.0.lock().unwrap();
                let gates = GATES.1.wait_while(gates, |gates| !gates.contains_key(gate)).unwrap();
                if !gates[gate] {
                    return Err(Error::Ended("the helper leaves".into()));
                }
            }
            _ => {}
        }
        server1.send(AT, sub(&vec![0; m.n], &expand(&seeds[0], context, m.n))).await
    }
}
