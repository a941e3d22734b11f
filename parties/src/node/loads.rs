//! Loading models: opening the masked weights once, at all three nodes, under one epoch.
//!
//! Server 0 leads. A load lasts as long as the processes that took part: their boot numbers tell, without a
//! message. If one of them forgot it nevertheless, it says so, and the next session loads anew.

use std::collections::HashMap;
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

/// What is loaded here.
pub struct Loads<R: Runner> {
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
}

impl<R: Runner> Default for Loads<R> {
    fn default() -> Self {
        Self { weights: Mutex::default(), masks: Mutex::default(), turns: Mutex::default() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find<T>(map: &Mutex<HashMap<ModelId, Loaded<T>>>, id: &ModelId, epoch: &Epoch) -> Result<Arc<T>> {
    let map = lock(map);
    let loaded = map.get(id).filter(|l| l.epoch == *epoch);
    loaded.map(|l| l.value.clone()).ok_or_else(|| Error::StaleLoad(id.to_string()))
}

impl<R: Runner> Loads<R> {
    /// At server 1: the weights of this epoch.
    pub fn weights(&self, id: &ModelId, epoch: &Epoch) -> Result<Arc<R::Weights>> {
        find(&self.weights, id, epoch)
    }

    /// At the helper: the masks of this epoch.
    pub fn masks(&self, id: &ModelId, epoch: &Epoch) -> Result<Arc<R::Masks>> {
        find(&self.masks, id, epoch)
    }

    /// At the helper: keeps masks in place of those of older epochs.
    pub fn keep_masks(&self, id: &ModelId, epoch: Epoch, masks: R::Masks) {
        lock(&self.masks).insert(id.clone(), Loaded { epoch, boots: None, value: Arc::new(masks) });
    }

    /// At server 0: a load that another node does not know.
    pub fn forget(&self, id: &ModelId, epoch: &Epoch) {
        let mut weights = lock(&self.weights);
        if weights.get(id).is_some_and(|l| l.epoch == *epoch) {
            weights.remove(id);
        }
    }

    fn keep(
        &self,
        id: &ModelId,
        epoch: Epoch,
        boots: Option<[[u8; 16]; 2]>,
        weights: R::Weights,
    ) -> Arc<R::Weights> {
        let value = Arc::new(weights);
        lock(&self.weights).insert(id.clone(), Loaded { epoch, boots, value: value.clone() });
        value
    }

    fn turn(&self, id: &ModelId) -> Arc<tokio::sync::Mutex<()>> {
        lock(&self.turns).entry(id.clone()).or_default().clone()
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
    if let Some(loaded) = lock(&inner.loads.weights).get(&known.id)
        && loaded.boots == Some(boots)
    {
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
    let weights = inner.loads.keep(&known.id, epoch, Some(boots), weights);
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
        inner.storage.first_use(session)?;
        let known = inner.known_work(Role::Server0, &work).await?;
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
    inner.loads.keep(&known.id, work.epoch, None, weights);
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
    let bytes = inner.weight_share(known).await?.to_vec();
    let share = InputShare::new(server, bytes)
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
