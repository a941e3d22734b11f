//! Who may ask a node for something: keys that its operator enrolled, in `enrolled.toml` beside `node.toml`.
//!
//! `node allow` and `node revoke` write the file; a running node reads it again whenever it has changed, so that both take
//! effect at once. Keys in `[clients] allow` and `[owners] allow` of `node.toml` count as well. Nobody is enrolled at first.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::config::{NodeConfig, read_toml, write_toml};
use crate::error::{Error, Result};
use crate::identity::Pin;

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// Run models on pictures.
    Client,
    /// Share models.
    Owner,
}

/// One enrolled key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// For people.
    pub name: String,
    /// The key.
    pub pin: Pin,
    /// What it may do.
    pub rights: Vec<Right>,
}

/// What a client or an owner tells operators: its name and its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCard {
    /// For people.
    pub name: String,
    /// The key.
    pub pin: Pin,
}

impl ClientCard {
    /// Reads a card.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn load(file: &Path) -> Result<Self> {
        read_toml(file)
    }

    /// Writes it, replacing what was there.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn save(&self, file: &Path) -> Result<()> {
        write_toml(file, self, "# Public.\n\n")
    }
}

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolled {
    /// Every enrolled key once.
    #[serde(default, rename = "key")]
    pub keys: Vec<Entry>,
}

impl Enrolled {
    /// Reads the file; nobody, if there is none.
    ///
    /// # Errors
    /// [`Error::Config`] if it is there and not understood.
    pub fn load(file: &Path) -> Result<Self> {
        if !file.exists() {
            return Ok(Self::default());
        }
        let enrolled: Self = read_toml(file)?;
        let mut pins: Vec<Pin> = enrolled.keys.iter().map(|k| k.pin).collect();
        pins.sort_unstable();
        if pins.windows(2).any(|w| w[0] == w[1]) {
            return Err(Error::config(file, "names a key twice"));
        }
        Ok(enrolled)
    }

    /// Replaces the file as a whole, so that a node never reads half of it.
    ///
    /// # Errors
    /// [`Error::Config`] if it cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        let next = file.with_extension("toml.next");
        write_toml(&next, self, "# Written by `node allow` and `node revoke`.\n\n")?;
        fs::rename(&next, file).map_err(|e| Error::config(file, e))
    }

    /// Adds a key, or a right of it.
    pub fn allow(&mut self, name: &str, pin: Pin, right: Right) {
        match self.keys.iter_mut().find(|k| k.pin == pin) {
            Some(entry) => {
                entry.name = name.into();
                if !entry.rights.contains(&right) {
                    entry.rights.push(right);
                }
            }
            None => self.keys.push(Entry { name: name.into(), pin, rights: vec![right] }),
        }
    }

    /// Removes the keys of this name, or with this pin; how many there were.
    pub fn revoke(&mut self, who: &str) -> usize {
        let before = self.keys.len();
        self.keys.retain(|k| k.name != who && k.pin.to_string() != who);
        before - self.keys.len()
    }
}

/// What a running node knows of who is enrolled.
pub struct Enrolment {
    file: PathBuf,
    config: NodeConfig,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Time and length of the file when it was read.
    stamp: Option<(SystemTime, u64)>,
    rights: BTreeMap<Pin, Vec<Right>>,
}

impl Enrolment {
    /// Of this node.
    ///
    /// # Errors
    /// [`Error::Config`] if the file is there and not understood.
    pub fn open(config: &NodeConfig) -> Result<Self> {
        let file = config.enrolled_file();
        Enrolled::load(&file)?;
        Ok(Self { file, config: config.clone(), state: Mutex::default() })
    }

    /// Whether a key may do this now. A file that cannot be read enrols nobody.
    pub fn may(&self, pin: Pin, right: Right) -> bool {
        let listed = match right {
            Right::Client => &self.config.clients,
            Right::Owner => &self.config.owners,
        };
        if listed.contains(pin) {
            return true;
        }
        let stamp = fs::metadata(&self.file).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stamp != stamp {
            let keys = Enrolled::load(&self.file).unwrap_or_else(|e| {
                tracing::error!("nobody is enrolled: {e}");
                Enrolled::default()
            });
            *state = State { stamp, rights: keys.keys.into_iter().map(|k| (k.pin, k.rights)).collect() };
        }
        state.rights.get(&pin).is_some_and(|rights| rights.contains(&right))
    }

    /// Whether a key may do anything.
    pub fn knows(&self, pin: Pin) -> bool {
        self.may(pin, Right::Client) || self.may(pin, Right::Owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;

    #[test]
    fn changes_take_effect_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = NodeConfig::new(Role::Server0, "127.0.0.1:1".parse().unwrap());
        config.data_dir = dir.path().join("data");
        let file = config.enrolled_file();
        let (a, b) = (Pin::of_spki(b"a"), Pin::of_spki(b"b"));
        let enrolment = Enrolment::open(&config).unwrap();
        assert!(!enrolment.knows(a), "nobody is, at first");
        let mut enrolled = Enrolled::default();
        enrolled.allow("clinic", a, Right::Client);
        enrolled.save(&file).unwrap();
        assert!(enrolment.may(a, Right::Client) && !enrolment.may(a, Right::Owner) && !enrolment.knows(b));
        enrolled.allow("clinic", a, Right::Owner);
        enrolled.allow("other", b, Right::Client);
        enrolled.save(&file).unwrap();
        assert!(enrolment.may(a, Right::Owner) && enrolment.knows(b));
        assert_eq!(enrolled.revoke("clinic"), 1);
        assert_eq!(enrolled.revoke(&Pin::of_spki(b"c").to_string()), 0);
        enrolled.save(&file).unwrap();
        assert!(!enrolment.knows(a) && enrolment.knows(b));
        fs::write(&file, "no toml [").unwrap();
        assert!(!enrolment.knows(b), "a damaged file enrols nobody");
        assert!(Enrolment::open(&config).is_err());
    }

    #[test]
    fn a_key_is_enrolled_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("enrolled.toml");
        let pin = Pin::of_spki(b"a");
        let twice = Entry { name: "x".into(), pin, rights: vec![Right::Client] };
        Enrolled { keys: vec![twice.clone(), twice] }.save(&file).unwrap();
        assert!(Enrolled::load(&file).unwrap_err().to_string().contains("twice"));
    }
}
