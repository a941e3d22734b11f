//! What a node keeps on disk: shares of models, encrypted, and the ids of sessions it has seen.
//!
//! A model's file is `models/NAME/VERSION.share`: magic (4 bytes) | owner's pin (32) | nonce (24) |
//! XChaCha20-Poly1305 of (length of the manifest (8) | manifest | share). The key of each file is derived from
//! the node's storage key; role, name, version and owner are authenticated with it, so that a file cannot take
//! the place of another.

mod mark;
mod seen;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{KeyInit, XChaCha20Poly1305};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::config::Role;
use crate::control::{ModelId, SessionId, check_name, now};
use crate::error::{Error, Result};
use crate::identity::{Pin, check_private, hex, random, write_private};

use seen::Seen;

const MAGIC: &[u8; 4] = b"SLS1";
const HEADER: usize = 4 + 32 + 24;
const TEMPORARY: &str = ".tmp-";

/// A node's data directory.
pub struct Storage {
    dir: PathBuf,
    role: Role,
    key: Zeroizing<[u8; 32]>,
    index: Mutex<BTreeMap<ModelId, Pin>>,
    seen: Mutex<Seen>,
    /// Held for as long as the directory is used.
    _lock: fs::File,
}

/// A model as it was stored.
pub struct StoredModel {
    /// Public.
    pub manifest: Vec<u8>,
    /// This node's share; empty at the helper.
    pub share: Zeroizing<Vec<u8>>,
}

/// A model that is on disk but does not count yet; removed unless committed.
pub struct Staged {
    storage: Arc<Storage>,
    temporary: PathBuf,
    id: ModelId,
    owner: Pin,
}

impl Storage {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// [`Error::Storage`] or [`Error::Config`] naming the file.
    pub fn open(dir: &Path, role: Role) -> Result<Arc<Self>> {
        let models = dir.join("models");
        fs::create_dir_all(&models).map_err(|e| Error::storage(&models, e))?;
        let lock = alone(&dir.join("lock"))?;
        let key = storage_key(&dir.join("storage.key"))?;
        let index = Mutex::new(scan(&models, Leftovers::Remove)?);
        let seen = Mutex::new(Seen::open(&dir.join("sessions"))?);
        Ok(Arc::new(Self { dir: dir.into(), role, key, index, seen, _lock: lock }))
    }

    /// Notes a session's id, durably.
    ///
    /// # Errors
    /// [`Error::Replay`] if it was seen before, [`Error::Clock`] if it is not of this time, [`Error::Busy`] if there are too
    /// many, [`Error::Recovering`] after a crash of the machine, [`Error::Storage`].
    pub fn first_use(&self, id: SessionId) -> Result<()> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).note(id, now())
    }

    /// The key of whoever shared a model.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn owner(&self, id: &ModelId) -> Result<Pin> {
        self.index().get(id).copied().ok_or_else(|| Error::UnknownModel(id.to_string()))
    }

    /// All models, in order.
    pub fn models(&self) -> Vec<ModelId> {
        self.index().keys().cloned().collect()
    }

    /// The model called `name`, in this version or the newest.
    ///
    /// # Errors
    /// [`Error::UnknownModel`].
    pub fn find(&self, name: &str, version: Option<u32>) -> Result<ModelId> {
        check_name(name)?;
        let index = self.present(name);
        let mut of_name = index.keys().filter(|id| id.name == name);
        match version {
            Some(v) => of_name.find(|id| id.version == v),
            None => of_name.next_back(),
        }
        .cloned()
        .ok_or_else(|| {
            Error::UnknownModel(version.map_or_else(|| name.into(), |v| format!("{name} version {v}")))
        })
    }

    /// Whether `owner` may add `id`: a name belongs to the key that shared it first.
    ///
    /// # Errors
    /// [`Error::ModelExists`].
    pub fn may_add(&self, id: &ModelId, owner: Pin, limit: usize) -> Result<()> {
        check_name(&id.name)?;
        let index = self.present(&id.name);
        let exists = |reason: &str| Err(Error::ModelExists { name: id.name.clone(), reason: reason.into() });
        if index.iter().any(|(other, pin)| other.name == id.name && *pin != owner) {
            return exists("the name belongs to another owner's key");
        }
        if index.contains_key(id) {
            return exists(&format!("version {} is stored already, choose another", id.version));
        }
        if index.len() >= limit {
            return exists(&format!("this node keeps {limit} models at most"));
        }
        Ok(())
    }

    /// Writes a model without making it visible.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn stage(self: &Arc<Self>, id: &ModelId, owner: Pin, model: &StoredModel) -> Result<Staged> {
        check_name(&id.name)?;
        let dir = self.dir.join("models").join(&id.name);
        fs::create_dir_all(&dir).map_err(|e| Error::storage(&dir, e))?;
        let mut body = Vec::with_capacity(8 + model.manifest.len() + model.share.len() + 16);
        body.extend_from_slice(&(model.manifest.len() as u64).to_le_bytes());
        body.extend_from_slice(&model.manifest);
        body.extend_from_slice(&model.share);
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(owner.as_bytes());
        let nonce: [u8; 24] = random()?;
        header.extend_from_slice(&nonce);
        self.cipher(id)?
            .encrypt_in_place(&nonce.into(), &self.bound(id, owner), &mut body)
            .map_err(|_| Error::Internal("encryption failed".into()))?;
        let temporary = dir.join(format!("{TEMPORARY}{}", hex(&random::<8>()?)));
        // From here on the drop of `staged` removes what was written.
        let staged = Staged { storage: self.clone(), temporary, id: id.clone(), owner };
        let write = || {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true);
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options.open(&staged.temporary)?;
            file.write_all(&header)?;
            file.write_all(&body)?;
            file.sync_all()
        };
        write().map_err(|e| Error::storage(&staged.temporary, e))?;
        Ok(staged)
    }

    /// Reads a model.
    ///
    /// # Errors
    /// [`Error::Storage`] if the file is missing, damaged, or another one's.
    pub fn load(&self, id: &ModelId) -> Result<StoredModel> {
        let path = self.path(id);
        let mut bytes = fs::read(&path).map_err(|e| Error::storage(&path, e))?;
        let damaged =
            || Error::storage(&path, "is damaged or was not written by this node: share the model again");
        if bytes.len() < HEADER || &bytes[..4] != MAGIC {
            return Err(damaged());
        }
        let mut body = bytes.split_off(HEADER);
        let pin = Pin::from_bytes(bytes[4..36].try_into().expect("32 bytes"));
        let nonce: [u8; 24] = bytes[36..HEADER].try_into().expect("24 bytes");
        self.cipher(id)?
            .decrypt_in_place(&nonce.into(), &self.bound(id, pin), &mut body)
            .map_err(|_| damaged())?;
        let body = Zeroizing::new(body);
        let len = body.first_chunk::<8>().map(|n| u64::from_le_bytes(*n) as usize).ok_or_else(damaged)?;
        let rest = &body[8..];
        if len > rest.len() {
            return Err(damaged());
        }
        Ok(StoredModel { manifest: rest[..len].to_vec(), share: Zeroizing::new(rest[len..].to_vec()) })
    }

    fn path(&self, id: &ModelId) -> PathBuf {
        file_of(&self.dir, id)
    }

    /// The index, without versions of `name` that the operator has removed.
    fn present(&self, name: &str) -> MutexGuard<'_, BTreeMap<ModelId, Pin>> {
        let mut index = self.index();
        index.retain(|id, _| id.name != name || self.path(id).exists());
        index
    }

    fn index(&self) -> MutexGuard<'_, BTreeMap<ModelId, Pin>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cipher(&self, id: &ModelId) -> Result<XChaCha20Poly1305> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(b"sharelens storage 1"), &*self.key)
            .expand(format!("{}/{}/{}", self.role.word(), id.name, id.version).as_bytes(), &mut *key)
            .map_err(|e| Error::Internal(e.to_string()))?;
        Ok(XChaCha20Poly1305::new(&(*key).into()))
    }

    fn bound(&self, id: &ModelId, owner: Pin) -> Vec<u8> {
        format!("{}/{}/{}/{owner}", self.role.word(), id.name, id.version).into_bytes()
    }
}

impl Staged {
    /// Makes the model visible.
    ///
    /// # Errors
    /// [`Error::Storage`]; [`Error::ModelExists`] if another upload was faster.
    pub fn commit(self, limit: usize) -> Result<()> {
        self.storage.may_add(&self.id, self.owner, limit)?;
        let path = self.storage.path(&self.id);
        let rename = || {
            fs::rename(&self.temporary, &path)?;
            File::open(path.parent().expect("models/NAME"))?.sync_all()
        };
        rename().map_err(|e| Error::storage(&path, e))?;
        self.storage.index().insert(self.id.clone(), self.owner);
        Ok(())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // Gone already after a commit.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn storage_key(path: &Path) -> Result<Zeroizing<[u8; 32]>> {
    if !path.exists() {
        write_private(path, &*Zeroizing::new(random::<32>()?))?;
    }
    check_private(path)?;
    let bytes = Zeroizing::new(fs::read(path).map_err(|e| Error::storage(path, e))?);
    let key = bytes.as_slice().try_into().map_err(|_| Error::storage(path, "is not a key of 32 bytes"))?;
    Ok(Zeroizing::new(key))
}

/// The models in a node's data directory and their owners' keys. The node may be running.
///
/// # Errors
/// [`Error::Storage`] naming the file.
pub fn list(dir: &Path) -> Result<BTreeMap<ModelId, Pin>> {
    let models = dir.join("models");
    if models.exists() { scan(&models, Leftovers::Keep) } else { Ok(BTreeMap::new()) }
}

/// Removes a model, or one version of it, from a node's data directory; says how many versions went. A running node notices.
///
/// # Errors
/// [`Error::Storage`] naming the file.
pub fn remove(dir: &Path, name: &str, version: Option<u32>) -> Result<usize> {
    check_name(name)?;
    let mut removed = 0;
    for id in list(dir)?.into_keys().filter(|id| id.name == name && version.is_none_or(|v| v == id.version)) {
        let file = file_of(dir, &id);
        fs::remove_file(&file).map_err(|e| Error::storage(&file, e))?;
        removed += 1;
    }
    Ok(removed)
}

fn file_of(dir: &Path, id: &ModelId) -> PathBuf {
    dir.join("models").join(&id.name).join(format!("{}.share", id.version))
}

/// What uploads that did not come to their end have left.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leftovers {
    Keep,
    /// Where no upload can be under way.
    Remove,
}

/// The models on disk by their headers.
fn scan(models: &Path, leftovers: Leftovers) -> Result<BTreeMap<ModelId, Pin>> {
    let mut index = BTreeMap::new();
    let entries = |dir: &Path| fs::read_dir(dir).map_err(|e| Error::storage(dir, e));
    for dir in entries(models)? {
        let dir = dir.map_err(|e| Error::storage(models, e))?.path();
        let Some(name) = dir.file_name().and_then(|n| n.to_str()).map(String::from) else { continue };
        if !dir.is_dir() || check_name(&name).is_err() {
            continue;
        }
        for file in entries(&dir)? {
            let file = file.map_err(|e| Error::storage(&dir, e))?.path();
            let Some(leaf) = file.file_name().and_then(|n| n.to_str()) else { continue };
            if leaf.starts_with(TEMPORARY) && leftovers == Leftovers::Remove {
                fs::remove_file(&file).map_err(|e| Error::storage(&file, e))?;
                continue;
            }
            let Some(version) = leaf.strip_suffix(".share").and_then(|v| v.parse().ok()) else { continue };
            let mut header = [0; HEADER];
            let read = File::open(&file).and_then(|mut f| f.read_exact(&mut header));
            read.map_err(|e| Error::storage(&file, format!("is damaged: {e}")))?;
            let pin = Pin::from_bytes(header[4..36].try_into().expect("32 bytes"));
            index.insert(ModelId { name: name.clone(), version }, pin);
        }
    }
    Ok(index)
}

/// Two nodes on one directory would each accept what the other one has seen.
fn alone(file: &Path) -> Result<fs::File> {
    let lock = fs::OpenOptions::new().create(true).append(true).open(file);
    let lock = lock.map_err(|e| Error::storage(file, e))?;
    lock.try_lock().map_err(|e| match e {
        fs::TryLockError::WouldBlock => Error::storage(
            file,
            "is held by another node that uses this directory and runs: stop that one first",
        ),
        fs::TryLockError::Error(e) => Error::storage(file, e),
    })?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(version: u32) -> ModelId {
        ModelId { name: "cxr".into(), version }
    }

    fn model() -> StoredModel {
        StoredModel { manifest: b"manifest".to_vec(), share: Zeroizing::new(vec![7; 1000]) }
    }

    fn owner(name: &str) -> Pin {
        Pin::of_spki(name.as_bytes())
    }

    #[test]
    fn a_removed_model_frees_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path(), Role::Helper).unwrap();
        let [squatter, owner] = [1, 2].map(|i| Pin::from_bytes([i; 32]));
        for version in [1, 2] {
            storage.stage(&id(version), squatter, &model()).unwrap().commit(9).unwrap();
        }
        let under_way = storage.stage(&id(3), squatter, &model()).unwrap();
        assert!(matches!(storage.may_add(&id(1), owner, 9), Err(Error::ModelExists { .. })));
        assert_eq!(list(dir.path()).unwrap().len(), 2);
        assert_eq!(remove(dir.path(), "cxr", Some(2)).unwrap(), 1);
        assert_eq!(storage.find("cxr", None).unwrap(), id(1), "the newest that is left");
        assert!(matches!(storage.may_add(&id(2), owner, 9), Err(Error::ModelExists { .. })));
        assert_eq!(remove(dir.path(), "cxr", None).unwrap(), 1);
        assert!(matches!(storage.find("cxr", None), Err(Error::UnknownModel(_))));
        storage.may_add(&id(1), owner, 9).unwrap();
        assert!(remove(dir.path(), "../cxr", None).is_err());
        under_way.commit(9).unwrap();
        assert_eq!(storage.find("cxr", None).unwrap(), id(3), "an upload that was under way is whole");
    }

    #[test]
    fn models_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path(), Role::Server1).unwrap();
        assert!(matches!(storage.find("cxr", None), Err(Error::UnknownModel(_))));
        for v in [2, 10] {
            storage.stage(&id(v), owner("a"), &model()).unwrap().commit(9).unwrap();
        }
        let e = Storage::open(dir.path(), Role::Server1).err().expect("it is in use");
        assert!(e.to_string().contains("another node"), "{e}");
        drop(storage);
        let again = Storage::open(dir.path(), Role::Server1).unwrap();
        assert_eq!(again.find("cxr", None).unwrap(), id(10));
        assert_eq!(again.find("cxr", Some(2)).unwrap(), id(2));
        assert!(again.find("cxr", Some(3)).is_err());
        let read = again.load(&id(2)).unwrap();
        assert_eq!((read.manifest, read.share), (model().manifest, model().share));
        let on_disk = fs::read(dir.path().join("models/cxr/2.share")).unwrap();
        assert!(!on_disk.windows(8).any(|w| w == [7; 8]), "the share is not in the clear");
    }

    #[test]
    fn names_belong_to_their_first_owner() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path(), Role::Server0).unwrap();
        let twice = storage.stage(&id(1), owner("a"), &model()).unwrap();
        storage.stage(&id(1), owner("a"), &model()).unwrap().commit(9).unwrap();
        assert!(twice.commit(9).is_err(), "two uploads of one version");
        assert!(storage.may_add(&id(1), owner("a"), 9).unwrap_err().to_string().contains("version 1"));
        assert!(storage.may_add(&id(2), owner("b"), 9).unwrap_err().to_string().contains("another owner"));
        assert!(storage.may_add(&id(2), owner("a"), 1).unwrap_err().to_string().contains("1 models"));
        storage.may_add(&id(2), owner("a"), 9).unwrap();
    }

    #[test]
    fn what_is_not_committed_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let files = || fs::read_dir(dir.path().join("models/cxr")).unwrap().count();
        let storage = Storage::open(dir.path(), Role::Server0).unwrap();
        drop(storage.stage(&id(1), owner("a"), &model()).unwrap());
        assert_eq!(files(), 0);
        drop(storage);
        // As a process leaves it that is killed.
        fs::write(dir.path().join("models/cxr").join(format!("{TEMPORARY}1")), "half").unwrap();
        assert_eq!(files(), 1);
        let storage = Storage::open(dir.path(), Role::Server0).unwrap();
        assert_eq!((files(), storage.models().len()), (0, 0));
    }

    #[test]
    fn tampering_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(dir.path(), Role::Server1).unwrap();
        for v in [1, 2] {
            storage.stage(&id(v), owner("a"), &model()).unwrap().commit(9).unwrap();
        }
        let file = dir.path().join("models/cxr/1.share");
        let good = fs::read(&file).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let e = storage.load(&id(1)).err().expect("refused");
            assert!(matches!(&e, Error::Storage { file, .. } if file.ends_with("1.share")), "{e}");
        };
        for at in [0, 5, 40, HEADER, HEADER + 8, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            refused(&bad);
        }
        refused(&good[..good.len() - 1]);
        refused(&[]);
        refused(&fs::read(dir.path().join("models/cxr/2.share")).unwrap());
        fs::write(&file, &good).unwrap();
        storage.load(&id(1)).unwrap();
        drop(storage);
        // The same file at a node with another role.
        let other = Storage::open(dir.path(), Role::Server0).unwrap();
        assert!(other.load(&id(1)).is_err());
    }
}
