//! Up to when ids of sessions may have been taken that the disk does not have yet.
//!
//! The file `mark` holds one line: the boot of the machine under which it was written, the second up to which ids may be in
//! memory alone, and the second up to which they may have been lost. It is replaced as a whole and synced.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

const FILE: &str = "mark";

/// The mark, as it is on disk.
pub struct Mark {
    dir: PathBuf,
    /// This boot of the machine; where the system does not tell boots apart, every id has to be synced.
    boot: Option<String>,
    until: u64,
    lost: u64,
}

impl Mark {
    /// Reads the mark of `dir`, written under this boot or another one. There need not be one.
    ///
    /// # Errors
    /// [`Error::Storage`] naming the file.
    pub fn open(dir: &Path, boot: Option<String>) -> Result<Self> {
        let file = dir.join(FILE);
        let mut mark = Self { dir: dir.into(), boot, until: 0, lost: 0 };
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(mark),
            Err(e) => return Err(Error::storage(&file, e)),
        };
        let parsed = match text.split_whitespace().collect::<Vec<_>>()[..] {
            [boot, until, lost] => until.parse().ok().zip(lost.parse().ok()).map(|(u, l)| (boot, u, l)),
            _ => None,
        };
        let Some((boot, until, lost)) = parsed else {
            let reason = "is damaged: if no session of the last twenty minutes can come again, remove it";
            return Err(Error::storage(&file, reason));
        };
        (mark.until, mark.lost) = (until, lost);
        if mark.boot.as_deref() != Some(boot) {
            // Another boot: what it had in memory is gone.
            mark.write(0, lost.max(until))?;
        }
        Ok(mark)
    }

    /// Where it is.
    pub fn file(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Up to when ids may have been lost with the machine.
    pub fn lost(&self) -> Option<u64> {
        Some(self.lost).filter(|lost| *lost > 0)
    }

    /// Whether ids made in this second need not be on disk.
    pub fn covers(&self, made: u64) -> bool {
        made <= self.until && self.boot.is_some()
    }

    /// Lets ids made up to `until` be in memory alone. The mark is on disk when this returns.
    ///
    /// # Errors
    /// [`Error::Storage`] naming the file.
    pub fn move_to(&mut self, until: u64) -> Result<()> {
        if self.boot.is_none() {
            return Ok(());
        }
        self.write(self.until.max(until), self.lost)
    }

    /// The disk has everything.
    ///
    /// # Errors
    /// [`Error::Storage`] naming the file.
    pub fn clear(&mut self) -> Result<()> {
        if self.until == 0 { Ok(()) } else { self.write(0, self.lost) }
    }

    fn write(&mut self, until: u64, lost: u64) -> Result<()> {
        let (file, next) = (self.file(), self.dir.join("mark.next"));
        let line = format!("{} {until} {lost}\n", self.boot.as_deref().unwrap_or("-"));
        let replace = || {
            let mut new = File::create(&next)?;
            new.write_all(line.as_bytes())?;
            new.sync_all()?;
            fs::rename(&next, &file)?;
            File::open(&self.dir)?.sync_all()
        };
        replace().map_err(|e: std::io::Error| Error::storage(&file, e))?;
        // Only now: a mark that did not get to the disk covers nothing.
        (self.until, self.lost) = (until, lost);
        Ok(())
    }
}
