//! Ids of sessions that a node has seen, so that none is accepted twice: not after a restart, not after a crash, and without
//! growing for ever.
//!
//! An id names the second in which it was made. A node takes an id only if that is within [`SKEW`] of its own time, and
//! remembers it in the file of its epoch of [`EPOCH`] seconds, synced before the id is used. Ids of an epoch more than two
//! before the newest one seen are refused, and the files of such epochs are removed: whatever a node has forgotten it no longer
//! takes, also if its clock is set back. An epoch holds at most [`MOST`] ids.
//!
//! A clock that was far ahead when an id came leaves an epoch of the future behind, and with the right time every id is then too
//! old to tell. The error says so, and names the remedy: who knows that no session of the last twenty minutes can come again
//! removes the file of that epoch and starts the node anew.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::control::SessionId;
use crate::error::{Error, Result};

/// How far a client's clock may be off, in seconds.
const SKEW: u64 = 600;
/// Seconds whose ids share a file.
const EPOCH: u64 = 1200;
/// Epochs before the newest that are still remembered.
const KEPT: u64 = 2;
/// Most ids of an epoch: 8 MiB.
const MOST: usize = 1 << 18;

/// The ids of the last epochs.
pub struct Seen {
    dir: PathBuf,
    epochs: BTreeMap<u64, Ids>,
}

struct Ids {
    ids: HashSet<[u8; 32]>,
    file: File,
    /// Whether a write failed, after which the epoch takes no id until the node starts anew and mends the file.
    broken: bool,
}

impl Seen {
    /// Reads what was remembered in `dir`, or makes it.
    ///
    /// # Errors
    /// [`Error::Storage`] naming the file.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::storage(dir, e))?;
        let mut epochs = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(|e| Error::storage(dir, e))? {
            let name = entry.map_err(|e| Error::storage(dir, e))?.file_name();
            let Some(epoch) = name.to_str().and_then(|n| n.strip_suffix(".seen")?.parse().ok()) else {
                continue;
            };
            epochs.insert(epoch, Ids::open(&path(dir, epoch))?);
        }
        let mut seen = Self { dir: dir.into(), epochs };
        seen.forget()?;
        Ok(seen)
    }

    /// Notes an id, at `now` in seconds since 1970. It is on disk when this returns.
    ///
    /// # Errors
    /// [`Error::Replay`] if it was seen before or is too old to tell, [`Error::Clock`] if it is not of this time,
    /// [`Error::Busy`] if there are too many.
    pub fn note(&mut self, id: SessionId, now: u64) -> Result<()> {
        let (made, epoch) = (id.made(), id.made() / EPOCH);
        if made.abs_diff(now) > SKEW {
            return Err(Error::Clock { seconds: made.abs_diff(now), allowed: SKEW });
        }
        let newest = self.epochs.keys().next_back().copied().unwrap_or(epoch);
        if epoch + KEPT < newest {
            if newest > now / EPOCH + 1 {
                let reason = "is of the future: the clock of this node was ahead. If no session of the last twenty minutes \
                              can come again, remove the file and start the node anew";
                return Err(Error::storage(&path(&self.dir, newest), reason));
            }
            return Err(Error::Replay(id.to_string()));
        }
        if !self.epochs.contains_key(&epoch) {
            let ids = Ids::open(&path(&self.dir, epoch))?;
            self.epochs.insert(epoch, ids);
            self.forget()?;
        }
        let file = path(&self.dir, epoch);
        let held = self.epochs.get_mut(&epoch).ok_or_else(|| Error::Replay(id.to_string()))?;
        if held.ids.len() >= MOST {
            return Err(Error::Busy { what: "ids of sessions of these twenty minutes", most: MOST });
        }
        if held.broken {
            return Err(Error::storage(&file, "could not be written before: start the node again"));
        }
        if !held.ids.insert(id.0) {
            return Err(Error::Replay(id.to_string()));
        }
        let written = held.file.write_all(&id.0).and_then(|()| held.file.sync_data());
        // Part of an id may be in the file. What followed it would be read wrongly after a restart, so nothing does.
        held.broken = written.is_err();
        written.map_err(|e| Error::storage(&file, e))
    }

    /// Removes epochs that are older than what is still taken.
    fn forget(&mut self) -> Result<()> {
        let newest = self.epochs.keys().next_back().copied().unwrap_or(0);
        let kept = self.epochs.split_off(&newest.saturating_sub(KEPT));
        for epoch in std::mem::replace(&mut self.epochs, kept).into_keys() {
            let file = path(&self.dir, epoch);
            fs::remove_file(&file).map_err(|e| Error::storage(&file, e))?;
        }
        Ok(())
    }
}

fn path(dir: &Path, epoch: u64) -> PathBuf {
    dir.join(format!("{epoch}.seen"))
}

impl Ids {
    fn open(file: &Path) -> Result<Self> {
        let failed = |e: std::io::Error| Error::storage(file, e);
        let mut bytes = Vec::new();
        let mut out = OpenOptions::new().read(true).append(true).create(true).open(file).map_err(failed)?;
        out.read_to_end(&mut bytes).map_err(failed)?;
        let (ids, torn) = bytes.as_chunks::<32>();
        if !torn.is_empty() {
            // A crash in the middle of an entry: complete it, so that the next ones stay aligned.
            out.write_all(&vec![0; 32 - torn.len()]).map_err(failed)?;
        }
        // The name of a new file has to survive a crash, too.
        let dir = file.parent().unwrap_or(Path::new("."));
        out.sync_all().and_then(|()| File::open(dir)?.sync_all()).map_err(failed)?;
        Ok(Self { ids: ids.iter().copied().collect(), file: out, broken: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn id(made: u64, which: u8) -> SessionId {
        let mut id = [which; 32];
        id[..8].copy_from_slice(&made.to_be_bytes());
        SessionId(id)
    }

    fn is_replay(outcome: Result<()>) -> bool {
        matches!(outcome, Err(Error::Replay(_)))
    }

    #[test]
    fn no_id_is_taken_twice_even_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Seen::open(dir.path()).unwrap();
        seen.note(id(NOW, 1), NOW).unwrap();
        assert!(is_replay(seen.note(id(NOW, 1), NOW)));
        drop(seen);
        let file = path(dir.path(), NOW / EPOCH);
        let mut torn = fs::read(&file).unwrap();
        torn.extend([9; 5]);
        fs::write(&file, torn).unwrap();
        let mut seen = Seen::open(dir.path()).unwrap();
        seen.note(id(NOW, 2), NOW).unwrap();
        let mut seen = Seen::open(dir.path()).unwrap();
        for which in [1, 2] {
            assert!(is_replay(seen.note(id(NOW, which), NOW)));
        }
    }

    #[test]
    fn what_is_forgotten_is_no_longer_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Seen::open(dir.path()).unwrap();
        for hour in 0..200u64 {
            let now = NOW + 900 * hour;
            seen.note(id(now, 1), now).unwrap();
            seen.note(id(now - SKEW, 2), now).unwrap();
            seen.note(id(now + SKEW, 3), now).unwrap();
            assert!(matches!(seen.note(id(now - SKEW - 1, 4), now), Err(Error::Clock { .. })));
            assert!(matches!(seen.note(id(now + SKEW + 1, 4), now), Err(Error::Clock { .. })));
        }
        assert!(fs::read_dir(dir.path()).unwrap().count() <= KEPT as usize + 1, "old epochs are removed");
        // A clock that is set back does not bring back what was forgotten.
        let refused = |seen: &mut Seen| {
            let e = seen.note(id(NOW, 1), NOW).unwrap_err().to_string();
            assert!(e.contains("is of the future") && e.contains(".seen"), "{e}");
        };
        refused(&mut seen);
        let mut seen = Seen::open(dir.path()).unwrap();
        refused(&mut seen);
        // The remedy that the error names.
        for file in fs::read_dir(dir.path()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        Seen::open(dir.path()).unwrap().note(id(NOW, 1), NOW).unwrap();
    }

    #[test]
    fn after_a_failed_write_no_id_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Seen::open(dir.path()).unwrap();
        seen.note(id(NOW, 1), NOW).unwrap();
        // A file that cannot be written.
        let held = seen.epochs.get_mut(&(NOW / EPOCH)).unwrap();
        held.file = File::open(path(dir.path(), NOW / EPOCH)).unwrap();
        assert!(matches!(seen.note(id(NOW, 2), NOW), Err(Error::Storage { .. })));
        assert!(matches!(seen.note(id(NOW, 3), NOW), Err(Error::Storage { .. })));
        let mut seen = Seen::open(dir.path()).unwrap();
        assert!(is_replay(seen.note(id(NOW, 1), NOW)));
        seen.note(id(NOW, 3), NOW).unwrap();
    }

    #[test]
    fn an_epoch_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Seen::open(dir.path()).unwrap();
        seen.note(id(NOW, 1), NOW).unwrap();
        let held = seen.epochs.get_mut(&(NOW / EPOCH)).unwrap();
        held.ids.extend((0..MOST as u64).map(|i| {
            let mut id = [7; 32];
            id[..8].copy_from_slice(&i.to_be_bytes());
            id
        }));
        assert!(matches!(seen.note(id(NOW, 2), NOW), Err(Error::Busy { most: MOST, .. })));
    }
}
