//! Loading models: opening the masked weights once, at all three nodes, under one epoch.
//!
//! Server 0 leads. A load lasts as long as the processes that took part: their boot numbers tell, without a
//! message. If one of them forgot it nevertheless, it says so, and the next session loads anew.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::models::Known;
use super::sessions::on_thread;
use super::{Inner, refuse};
use crate::config::Role;
use crate::control::{DealtSeed, Go, ModelId, Purpose, SessionId, Work};
use crate::error::{Error, Result};
use crate::identity::random;
use crate::runner::{InputShare, Runner};
use crate::transport::{ControlStream, Ended, Sending, StreamChannel, Traffic};

/// Which opening of the masked weights.
pub type Epoch = [u8; 16];

/// What is loaded here, within a budget: of what no session uses, that which was used longest ago goes first. If that
/// leaves another node with a load that this one has forgotten, it is told so, and loads anew.
pub struct Loads<R: Runner> {
    budget: u64,
    /// Counts uses.
    clock: AtomicU64,
    weights: Mutex<HashMap<ModelId, Loaded<R::Weights>>>,
    masks: Mutex<HashMap<ModelId, Loaded<R::Masks>>>,
    /// At server 0: one load of a model at a time.
    turns: Mutex<HashMap<ModelId, Arc<tokio::sync::Mutex<()>>>>,
}

struct Loaded<T> {
    epoch: Epoch,
    /// Server 1's and the helper's, at server 0.
    boots: Option<[[u8; 16]; 2]>,
    value: Arc<T>,
    /// About how much memory it takes.
    bytes: u64,
    /// When it was used last.
    used: u64,
}

type Map<T> = Mutex<HashMap<ModelId, Loaded<T>>>;

/// Words packed for the kernels take several times the bytes of a share.
const PACKED: u64 = 4;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a load in place of older ones of its model, and lets go what exceeds the budget and nobody uses.
fn insert<T>(map: &Map<T>, id: &ModelId, loaded: Loaded<T>, budget: u64) {
    let mut map = lock(map);
    map.insert(id.clone(), loaded);
    while map.values().map(|l| l.bytes).sum::<u64>() > budget {
        let idle = map.iter().filter(|(other, l)| *other != id && Arc::strong_count(&l.value) == 1);
        let Some(oldest) = idle.min_by_key(|(_, l)| l.used).map(|(id, _)| id.clone()) else { break };
        map.remove(&oldest);
        tracing::info!("model {oldest} is no longer loaded, to make room");
    }
}

impl<R: Runner> Loads<R> {
    /// Nothing yet, of which at most `budget` bytes stay without being used.
    pub fn new(budget: u64) -> Self {
        let (weights, masks, turns) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { budget, clock: AtomicU64::new(0), weights, masks, turns }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::Relaxed)
    }

    fn find<T>(&self, map: &Map<T>, id: &ModelId, epoch: &Epoch) -> Result<Arc<T>> {
        let mut map = lock(map);
        let loaded = map.get_mut(id).filter(|l| l.epoch == *epoch);
        let loaded = loaded.ok_or_else(|| Error::StaleLoad(id.to_string()))?;
        loaded.used = self.tick();
        Ok(loaded.value.clone())
    }

    /// At server 1: the weights of this epoch.
    pub fn weights(&self, id: &ModelId, epoch: &Epoch) -> Result<Arc<R::Weights>> {
        self.find(&self.weights, id, epoch)
    }

    /// At the helper: the masks of this epoch.
    pub fn masks(&self, id: &ModelId, epoch: &Epoch) -> Result<Arc<R::Masks>> {
        self.find(&self.masks, id, epoch)
    }

    /// At the helper: keeps masks in place of those of older epochs.
    pub fn keep_masks(&self, known: &Known<R>, epoch: Epoch, masks: R::Masks) {
        let bytes = PACKED * known.sizes.weight_share as u64;
        let loaded = Loaded { epoch, boots: None, value: Arc::new(masks), bytes, used: self.tick() };
        insert(&self.masks, &known.id, loaded, self.budget);
    }

    /// At server 0: a load that another node does not know.
    pub fn forget(&self, id: &ModelId, epoch: &Epoch) {
        let mut weights = lock(&self.weights);
        if weights.get(id).is_some_and(|l| l.epoch == *epoch) {
            weights.remove(id);
        }
    }

    /// A model that was shared anew.
    pub fn remove(&self, id: &ModelId) {
        lock(&self.weights).remove(id);
        lock(&self.masks).remove(id);
    }

    fn keep(
        &self,
        known: &Known<R>,
        epoch: Epoch,
        boots: Option<[[u8; 16]; 2]>,
        weights: R::Weights,
    ) -> Arc<R::Weights> {
        let (value, bytes) = (Arc::new(weights), PACKED * known.sizes.weight_share as u64);
        let loaded = Loaded { epoch, boots, value: value.clone(), bytes, used: self.tick() };
        insert(&self.weights, &known.id, loaded, self.budget);
        value
    }

    fn turn(&self, id: &ModelId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = lock(&self.turns);
        // Nobody else waits for these.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(id.clone()).or_default().clone()
    }
}

/// At server 0: the model's weights, loaded with the others if they are not yet.
pub async fn ensure<R: Runner>(
    inner: &Arc<Inner<R>>,
    known: &Arc<Known<R>>,
) -> Result<(Epoch, Arc<R::Weights>)> {
    let turn = inner.loads.turn(&known.id);
    let _turn = turn.lock().await;
    let (server1, helper) = (inner.peers.get(Role::Server1)?, inner.peers.get(Role::Helper)?);
    let boots = [server1.boot, helper.boot];
    if let Some(loaded) = lock(&inner.loads.weights).get_mut(&known.id)
        && loaded.boots == Some(boots)
    {
        loaded.used = inner.loads.tick();
        return Ok((loaded.epoch, loaded.value.clone()));
    }
    let (session, epoch) = (SessionId::random()?, random()?);
    let work = inner.work(known, epoch);
    let mut dealing = inner.call(&helper, session, Purpose::Load(work.clone())).await?;
    let mut opening = inner.call(&server1, session, Purpose::Load(work)).await?;
    opening.set_timeout(inner.config.limits.session_timeout());
    let seed: DealtSeed = dealing.recv().await?;
    let Go = opening.recv().await?;
    opening.set_timeout(inner.config.limits.message_timeout());
    let (weights, opening) = open(inner, known, epoch, seed, opening).await?;
    dealing.set_timeout(inner.config.limits.session_timeout());
    let Go = dealing.recv().await?;
    opening.close().await?;
    let weights = inner.loads.keep(known, epoch, Some(boots), weights);
    tracing::info!("model {} loaded", known.id);
    Ok((epoch, weights))
}

/// At server 1: takes part in a load that server 0 leads.
pub async fn second<R: Runner>(
    inner: &Arc<Inner<R>>,
    mut stream: ControlStream,
    session: SessionId,
    work: Work,
) -> Result<()> {
    let _active = inner.active.enter();
    let begin = async {
        inner.check_not_draining()?;
        let known = inner.known_work(Role::Server0, &work).await?;
        inner.first_use(session).await?;
        let helper = inner.peers.get(Role::Helper)?;
        let mut dealing = inner.call(&helper, session, Purpose::Load(work.clone())).await?;
        let seed: DealtSeed = dealing.recv().await?;
        stream.send(&Go).await?;
        Ok((known, dealing, seed))
    };
    let (known, mut dealing, seed) = match begin.await {
        Ok(begun) => begun,
        Err(e) => return refuse(stream, e).await,
    };
    let (weights, opening) = open(inner, &known, work.epoch, seed, stream).await?;
    dealing.set_timeout(inner.config.limits.session_timeout());
    let Go = dealing.recv().await?;
    inner.loads.keep(&known, work.epoch, None, weights);
    opening.close().await?;
    tracing::info!("model {} loaded", known.id);
    Ok(())
}

/// The servers' part: opens the masked weights on a thread.
async fn open<R: Runner>(
    inner: &Arc<Inner<R>>,
    known: &Arc<Known<R>>,
    epoch: Epoch,
    seed: DealtSeed,
    stream: ControlStream,
) -> Result<(R::Weights, StreamChannel)> {
    let server = inner.role.server().ok_or_else(|| Error::Internal("the helper has no weights".into()))?;
    let share = std::mem::take(&mut *inner.weight_share(known).await?);
    let share = InputShare::new(server, share)
        .filter(|s| !matches!(s, InputShare::Words(w) if w.len() != known.sizes.weight_share))
        .ok_or_else(|| Error::StaleLoad(format!("{} (its stored share has another length)", known.id)))?;
    let mut channel = stream.into_channel(Ended::default(), Sending::Unbounded, Traffic::default())?;
    let (runner, known) = (inner.runner.clone(), known.clone());
    let (channel, weights) = on_thread("load", move |handle| {
        let seed = seed.seed();
        let load = runner.load(server, &known.model, share, &seed, &epoch, &mut channel);
        let weights = handle.block_on(load);
        (channel, weights)
    })
    .await?;
    Ok((weights?, channel))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_used_makes_room() {
        let map: Map<u8> = Mutex::default();
        let id = |version| ModelId { name: "m".into(), version };
        let load = |used| Loaded { epoch: [0; 16], boots: None, value: Arc::new(1), bytes: 40, used };
        insert(&map, &id(1), load(1), 100);
        insert(&map, &id(2), load(2), 100);
        let in_use = lock(&map)[&id(1)].value.clone();
        insert(&map, &id(3), load(3), 100);
        let left = |map: &Map<u8>| -> Vec<u32> {
            let mut left: Vec<u32> = lock(map).keys().map(|id| id.version).collect();
            left.sort_unstable();
            left
        };
        assert_eq!(left(&map), [1, 3], "the oldest that nobody uses has gone");
        drop(in_use);
        insert(&map, &id(4), load(4), 100);
        assert_eq!(left(&map), [3, 4]);
        insert(&map, &id(5), load(5), 10);
        assert_eq!(left(&map), [5], "the newest stays, whatever the budget");
    }
}
