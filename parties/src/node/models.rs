//! Models of a node: receiving them from owners, and having them at hand.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use zeroize::Zeroizing;

use super::{Inner, refuse};
use crate::config::Role;
use crate::control::{Go, MAX_MANIFEST, ModelId, SessionId, Upload, Work};
use crate::error::{Error, Result};
use crate::identity::Pin;
use crate::runner::{InputShare, Runner, Sizes};
use crate::storage::StoredModel;
use crate::transport::ControlStream;

/// A model whose manifest was checked.
pub struct Known<R: Runner> {
    /// Name and version.
    pub id: ModelId,
    /// The public manifest.
    pub manifest: Vec<u8>,
    /// SHA-256 of it.
    pub hash: [u8; 32],
    /// The engine's view.
    pub model: R::Model,
    /// How long things are.
    pub sizes: Sizes,
}

impl<R: Runner> Known<R> {
    /// `fits` is asked before anything is computed from the manifest that takes time or memory.
    fn check(
        runner: &R,
        id: ModelId,
        manifest: Vec<u8>,
        fits: impl FnOnce(&Sizes) -> Result<()>,
    ) -> Result<Self> {
        let model = runner.model(&manifest, fits)?;
        let sizes = runner.sizes(&model);
        Ok(Self { id, hash: Sha256::digest(&manifest).into(), manifest, model, sizes })
    }

    /// Whether another node means the same model.
    ///
    /// # Errors
    /// [`Error::Malformed`] naming `peer`.
    pub fn check_work(&self, peer: &str, work: &Work) -> Result<()> {
        if work.model == self.id && work.manifest == self.hash {
            return Ok(());
        }
        let found =
            if work.model == self.id { "another manifest of it".into() } else { work.model.to_string() };
        Err(Error::Malformed { peer: peer.into(), expected: format!("model {}", self.id), found })
    }
}

/// Most checked manifests that stay in memory.
const KNOWN: usize = 64;

/// Models that were used since the start.
pub struct Catalogue<R: Runner>(Mutex<HashMap<ModelId, Arc<Known<R>>>>);

impl<R: Runner> Catalogue<R> {
    fn forget(&self, id: &ModelId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl<R: Runner> Default for Catalogue<R> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<R: Runner> Inner<R> {
    /// A stored model, with its manifest checked. Planning a large model takes a moment, once.
    pub(super) async fn known(self: &Arc<Self>, id: ModelId) -> Result<Arc<Known<R>>> {
        if let Some(known) = self.catalogue.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(known.clone());
        }
        let inner = self.clone();
        let turn = self.turn_to_check().await?;
        let known = blocking(move || {
            let _turn = turn;
            let stored = inner.storage.load(&id)?;
            let known = Arc::new(Known::check(&*inner.runner, id.clone(), stored.manifest, |_| Ok(()))?);
            let mut catalogue = inner.catalogue.0.lock().unwrap_or_else(PoisonError::into_inner);
            let known = catalogue.entry(id).or_insert(known).clone();
            // Any that nobody uses makes room: it is read again when it is asked for.
            while catalogue.len() > KNOWN {
                let idle =
                    catalogue.iter().find(|(_, k)| Arc::strong_count(k) == 1).map(|(id, _)| id.clone());
                let Some(idle) = idle else { break };
                catalogue.remove(&idle);
            }
            Ok(known)
        });
        known.await
    }

    /// A turn to check a manifest, one at a time: planning takes memory and a core. It goes with the work, which goes on
    /// when whoever asked for it has left.
    async fn turn_to_check(&self) -> Result<OwnedSemaphorePermit> {
        self.checking.clone().acquire_owned().await.map_err(|e| Error::Internal(e.to_string()))
    }

    /// This server's share of the weights.
    pub(super) async fn weight_share(self: &Arc<Self>, known: &Known<R>) -> Result<Zeroizing<Vec<u8>>> {
        let (inner, id) = (self.clone(), known.id.clone());
        Ok(blocking(move || inner.storage.load(&id)).await?.share)
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::Internal(format!("a model could not be read: {e}"))))
}

/// Receives a model from an owner: announcement, [`Go`], manifest and share, [`Go`] once it is written, the
/// owner's [`Go`] once all nodes have written it, [`Go`] once it counts.
pub async fn receive<R: Runner>(
    inner: &Arc<Inner<R>>,
    mut stream: ControlStream,
    owner: Pin,
    upload: Upload,
) -> Result<()> {
    let _active = inner.active.enter();
    let mut draining = inner.draining.subscribe();
    let received = tokio::select! {
        received = receive_all(inner, &mut stream, owner, upload) => received,
        // An owner may take an hour, and can come again.
        _ = draining.wait_for(|draining| *draining) => Err(Error::Draining(inner.name())),
    };
    match received {
        Ok(id) => {
            tracing::info!("model {id} stored");
            stream.finish().await
        }
        Err(e) => refuse(stream, e).await,
    }
}

async fn receive_all<R: Runner>(
    inner: &Arc<Inner<R>>,
    stream: &mut ControlStream,
    owner: Pin,
    upload: Upload,
) -> Result<ModelId> {
    inner.check_not_draining()?;
    let _place = inner.admission.upload(owner)?;
    let (id, limits) = (upload.model, &inner.config.limits);
    inner.storage.may_add(&id, owner, limits.models)?;
    let manifest_len = at_most("the manifest", upload.manifest_bytes, MAX_MANIFEST as u64)?;
    let share_len = at_most("the share of the model", upload.share_bytes, limits.model_mib << 20)?;
    stream.send(&Go).await?;
    let limit = limits.upload_timeout(upload.manifest_bytes + upload.share_bytes);
    let late = |peer: &str| Error::Timeout {
        peer: peer.into(),
        what: "whole model".into(),
        seconds: limit.as_secs(),
    };
    let deadline = tokio::time::Instant::now() + limit;
    let manifest = tokio::time::timeout_at(deadline, stream.recv_bulk(manifest_len, "manifest")).await;
    let manifest = manifest.unwrap_or_else(|_| Err(late(stream.peer())))?;
    let turn = inner.turn_to_check().await?;
    let (checking, of) = (inner.clone(), id.clone());
    let (peer, image_most) = (stream.peer().to_string(), limits.image_mib << 20);
    let fits = move |sizes: &Sizes| {
        at_most("the share of an image", sizes.image_share as u64, image_most)?;
        let due = checking.role.server().map_or(0, |server| InputShare::len_for(server, sizes.weight_share));
        if share_len != due {
            let (expected, found) = (format!("a share of {due} bytes"), format!("{share_len} bytes"));
            return Err(Error::Malformed { peer, expected, found });
        }
        Ok(())
    };
    let runner = inner.runner.clone();
    let known = blocking(move || {
        let _turn = turn;
        Known::check(&*runner, of, manifest, fits)
    })
    .await?;
    let share = tokio::time::timeout_at(deadline, stream.recv_bulk(share_len, "share of the model")).await;
    let share = Zeroizing::new(share.unwrap_or_else(|_| Err(late(stream.peer())))?);
    let (storage, of) = (inner.storage.clone(), id.clone());
    let stored = StoredModel { manifest: known.manifest, share };
    let staged = blocking(move || storage.stage(&of, owner, &stored)).await?;
    stream.send(&Go).await?;
    let Go = stream.recv().await?;
    staged.commit(limits.models)?;
    // There may have been another model of this name and version, which the operator removed.
    inner.catalogue.forget(&id);
    inner.loads.remove(&id);
    stream.send(&Go).await?;
    Ok(id)
}

/// A length from a peer, checked against a limit.
pub(super) fn at_most(what: &str, found: u64, limit: u64) -> Result<usize> {
    if found > limit {
        return Err(Error::TooLarge { what: what.into(), limit, found });
    }
    usize::try_from(found).map_err(|_| Error::TooLarge { what: what.into(), limit, found })
}

impl<R: Runner> Inner<R> {
    /// Notes a session's id, which nobody may use again.
    pub(super) async fn first_use(self: &Arc<Self>, id: SessionId) -> Result<()> {
        let inner = self.clone();
        blocking(move || inner.storage.first_use(id)).await
    }

    /// What this node asks another one to work on.
    pub(super) fn work(&self, known: &Known<R>, epoch: [u8; 16]) -> Work {
        Work { model: known.id.clone(), manifest: known.hash, epoch }
    }

    /// The model another node refers to.
    pub(super) async fn known_work(self: &Arc<Self>, peer: Role, work: &Work) -> Result<Arc<Known<R>>> {
        let id = self.storage.find(&work.model.name, Some(work.model.version))?;
        let known = self.known(id).await?;
        known.check_work(&peer.to_string(), work)?;
        Ok(known)
    }
}
