//! Ids of sessions that a node has seen, so that none is accepted twice: not after a restart, not after a crash, and without
//! growing for ever.
//!
//! An id names the second in which it was made. A node takes an id only if that is within [`SKEW`] of its own time, and
//! appends it to the file of its epoch of [`EPOCH`] seconds before the id is used. Ids of an epoch more than two
//! before the newest one seen are refused, and the files of such epochs are removed: whatever a node has forgotten it no longer
//! takes, also if its clock is set back. An epoch holds at most [`MOST`] ids.
//!
//! What was appended survives the end of the process, however it ends, but not the end of the machine: the disk may not have it
//! yet. Waiting for the disk at every id would cost a small network a tenth of its time. So a *mark* is kept ahead instead
//! ([`super::mark`]): no id that was made after the mark is used, and the mark is on disk before it moves, [`AHEAD`] seconds at
//! a time. Example: at 10:00:00 the mark is set to 10:01:00, and the ids of that minute are only appended. If the machine loses
//! its power at 10:00:30 and the node is back at 10:00:50, it refuses ids made before 10:01:00, ten seconds more, since it may
//! have lost some that it took.
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

use super::mark::Mark;

/// How far a client's clock may be off, in seconds.
const SKEW: u64 = 600;
/// Seconds whose ids share a file.
const EPOCH: u64 = 1200;
/// Epochs before the newest that are still remembered.
const KEPT: u64 = 2;
/// Most ids of an epoch: 8 MiB.
const MOST: usize = 1 << 18;
/// Seconds by which the mark moves.
const AHEAD: u64 = 60;
const FUTURE: &str = "is of the future: the clock of this node was ahead. If no session of the last twenty minutes can come again, \
                      remove the file and start the node anew";

/// The ids of the last epochs.
pub struct Seen {
    dir: PathBuf,
    epochs: BTreeMap<u64, Ids>,
    mark: Mark,
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
        Self::open_under(dir, boot())
    }

    /// As if this boot of the machine, if it can be told from others, were `boot`.
    fn open_under(dir: &Path, boot: Option<String>) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::storage(dir, e))?;
        let mark = Mark::open(dir, boot)?;
        let mut epochs = BTreeMap::new();
        for entry in fs::read_dir(dir).map_err(|e| Error::storage(dir, e))? {
            let name = entry.map_err(|e| Error::storage(dir, e))?.file_name();
            let Some(epoch) = name.to_str().and_then(|n| n.strip_suffix(".seen")?.parse().ok()) else {
                continue;
            };
            epochs.insert(epoch, Ids::open(&path(dir, epoch))?);
        }
        let mut seen = Self { dir: dir.into(), epochs, mark };
        seen.forget()?;
        Ok(seen)
    }

    /// Notes an id, at `now` in seconds since 1970. When this returns, no start of the node takes it again.
    ///
    /// # Errors
    /// [`Error::Replay`] if it was seen before or is too old to tell, [`Error::Clock`] if it is not of this time,
    /// [`Error::Busy`] if there are too many, [`Error::Recovering`] if the machine went down and may have lost it.
    pub fn note(&mut self, id: SessionId, now: u64) -> Result<()> {
        let (made, epoch) = (id.made(), id.made() / EPOCH);
        if made.abs_diff(now) > SKEW {
            return Err(Error::Clock { seconds: made.abs_diff(now), allowed: SKEW });
        }
        if let Some(lost) = self.mark.lost().filter(|lost| made <= *lost) {
            // No mark was ever further ahead of the time that ids were taken at.
            if lost > now + SKEW + AHEAD {
                return Err(Error::storage(&self.mark.file(), FUTURE));
            }
            return Err(Error::Recovering { seconds: (lost + 1).saturating_sub(now) });
        }
        let newest = self.epochs.keys().next_back().copied().unwrap_or(epoch);
        if epoch + KEPT < newest {
            if newest > now / EPOCH + 1 {
                return Err(Error::storage(&path(&self.dir, newest), FUTURE));
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
        let written = held.file.write_all(&id.0);
        // Part of an id may be in the file. What followed it would be read wrongly after a restart, so nothing does.
        held.broken = written.is_err();
        written.map_err(|e| Error::storage(&file, e))?;
        if !self.mark.covers(made) {
            // Not on disk before the mark is: whatever failed to get there since the last time is told here.
            self.sync()?;
            self.mark.move_to(made + AHEAD)?;
        }
        Ok(())
    }

    /// Waits until the disk has all ids.
    fn sync(&mut self) -> Result<()> {
        for (epoch, held) in &mut self.epochs {
            let synced = held.file.sync_data();
            held.broken |= synced.is_err();
            synced.map_err(|e| Error::storage(&path(&self.dir, *epoch), e))?;
        }
        Ok(())
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

/// A node that is stopped in order has nothing to lose with its machine.
impl Drop for Seen {
    fn drop(&mut self) {
        // Without it the next start refuses ids for a minute if it finds another boot: safe, and not worth an error here.
        let _ = self.sync().and_then(|()| self.mark.clear());
    }
}

/// What tells this boot of the machine from others, if the system says.
fn boot() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_string()).filter(|id| !id.is_empty())
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
        std::mem::forget(seen);
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
        let files = fs::read_dir(dir.path()).unwrap().count();
        assert!(files <= KEPT as usize + 2, "old epochs are removed, beside the mark");
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

    /// What is on the disk if the machine loses its power now: nothing of what was only appended since `synced`.
    fn power_fails(seen: Seen, dir: &Path, synced: &[(PathBuf, Vec<u8>)]) {
        // The process does not come to an orderly end.
        std::mem::forget(seen);
        for (file, bytes) in synced {
            fs::write(dir.join(file), bytes).unwrap();
        }
    }

    #[test]
    fn ids_that_a_machine_lost_are_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let open = |boot: &str| Seen::open_under(dir.path(), Some(boot.into())).unwrap();
        let mut seen = open("first");
        seen.note(id(NOW, 1), NOW).unwrap();
        let file = path(dir.path(), NOW / EPOCH);
        let synced = [(file.clone(), fs::read(&file).unwrap())];
        // Within the mark: appended alone.
        seen.note(id(NOW + AHEAD, 2), NOW).unwrap();
        power_fails(seen, dir.path(), &synced);

        let mut seen = open("second");
        for lost in [id(NOW, 1), id(NOW + AHEAD, 2), id(NOW + 5, 3)] {
            let e = seen.note(lost, NOW + 10).unwrap_err();
            assert!(matches!(e, Error::Recovering { seconds: 51 }), "{e}");
        }
        // What was made after all that can be lost is taken, and a second crash in the same minute loses no more.
        seen.note(id(NOW + AHEAD + 1, 4), NOW + AHEAD + 1).unwrap();
        drop(seen);
        let mut seen = open("third");
        assert!(matches!(seen.note(id(NOW + AHEAD, 2), NOW), Err(Error::Recovering { .. })));
        assert!(is_replay(seen.note(id(NOW + AHEAD + 1, 4), NOW)), "an orderly end leaves nothing to lose");
        seen.note(id(NOW + AHEAD + 2, 5), NOW).unwrap();
        // A mark that the clock was far ahead for names its remedy.
        std::mem::forget(seen);
        let mut seen = open("fourth");
        let e = seen.note(id(NOW - 3600, 6), NOW - 3600).unwrap_err().to_string();
        assert!(e.contains("mark") && e.contains("is of the future"), "{e}");
    }

    #[test]
    fn a_process_that_dies_loses_no_id() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Seen::open_under(dir.path(), Some("same".into())).unwrap();
        (1..=3).for_each(|which| seen.note(id(NOW, which), NOW).unwrap());
        std::mem::forget(seen);
        let mut seen = Seen::open_under(dir.path(), Some("same".into())).unwrap();
        assert!((1..=3).all(|which| is_replay(seen.note(id(NOW, which), NOW))));
        seen.note(id(NOW, 4), NOW).unwrap();
    }

    #[test]
    fn a_mark_that_is_not_on_disk_covers_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut seen = Seen::open_under(dir.path(), Some("boot".into())).unwrap();
        // A directory where the new mark is to be written.
        fs::create_dir(dir.path().join("mark.next")).unwrap();
        for which in 1..3 {
            assert!(matches!(seen.note(id(NOW, which), NOW), Err(Error::Storage { .. })));
        }
        fs::remove_dir(dir.path().join("mark.next")).unwrap();
        seen.note(id(NOW, 3), NOW).unwrap();
        fs::write(dir.path().join("mark"), "boot 17").unwrap();
        let e = Seen::open_under(dir.path(), Some("boot".into())).err().unwrap().to_string();
        assert!(e.contains("mark: is damaged"), "{e}");
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
