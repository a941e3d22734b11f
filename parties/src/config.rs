//! What operators write: node.toml (private), ROLE.card and cluster.toml (public, the same everywhere).

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sharelens_protocol::Server;

use crate::error::{Error, Result};
use crate::identity::{Pin, hex};

/// Changes with every incompatible change of what nodes say to each other.
pub const PROTOCOL_VERSION: u32 = 4;

/// Which of the three nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The computing server that dials the other one.
    Server0,
    /// The other computing server.
    Server1,
    /// The dealer of correlations.
    Helper,
}

impl Role {
    /// All three, in order.
    pub const ALL: [Self; 3] = [Self::Server0, Self::Server1, Self::Helper];

    /// The word used in files and arguments.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Server0 => "server0",
            Self::Server1 => "server1",
            Self::Helper => "helper",
        }
    }

    /// The computing server this is, if it is one.
    pub const fn server(self) -> Option<Server> {
        match self {
            Self::Server0 => Some(Server::Server0),
            Self::Server1 => Some(Server::Server1),
            Self::Helper => None,
        }
    }
}

impl From<Server> for Role {
    fn from(server: Server) -> Self {
        if server.is_first() { Self::Server0 } else { Self::Server1 }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server0 => "server 0",
            Self::Server1 => "server 1",
            Self::Helper => "helper",
        })
    }
}

impl std::str::FromStr for Role {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|r| r.word() == s)
            .ok_or_else(|| format!("{s:?} is no role: server0, server1 or helper"))
    }
}

/// What an operator tells the others about one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Which node.
    pub role: Role,
    /// For people: whose node this is.
    pub name: String,
    /// Where others reach it, `host:port`.
    pub public: String,
    /// Its key.
    pub pin: Pin,
    /// Version of the protocol its release speaks.
    pub protocol: u32,
}

impl Card {
    /// Reads a card.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn load(file: &Path) -> Result<Self> {
        let card: Self = read_toml(file)?;
        card.checked().map_err(|e| Error::config(file, e))?;
        Ok(card)
    }

    /// Writes it, replacing what was there.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn save(&self, file: &Path) -> Result<()> {
        write_toml(file, self, "")
    }

    /// Checks address and version.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn check(&self) -> Result<()> {
        self.checked().map_err(|reason| Error::Config { file: format!("the card of {}", self.role), reason })
    }

    fn checked(&self) -> Result<(), String> {
        if self.protocol != PROTOCOL_VERSION {
            return Err(format!(
                "{} speaks protocol version {}, here it is {PROTOCOL_VERSION}",
                self.role, self.protocol
            ));
        }
        check_address(&self.public)
    }
}

/// Whether `address` is `host:port`.
pub(crate) fn check_address(address: &str) -> Result<(), String> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse());
    match port {
        Some(Ok(1u16..)) => Ok(()),
        _ => Err(format!("{address:?} is not of the form host:port")),
    }
}

/// The three nodes of a cluster. Public, and identical everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// One card of each role, in order.
    #[serde(rename = "node")]
    nodes: Vec<Card>,
}

impl Cluster {
    /// From one card of each role, in any order.
    ///
    /// # Errors
    /// [`Error::Config`] if a role is missing or taken twice, or two nodes share a key or an address.
    pub fn new(mut nodes: Vec<Card>) -> Result<Self> {
        nodes.sort_by_key(|c| c.role);
        let cluster = Self { nodes };
        cluster.check().map_err(|reason| Error::Config { file: "cluster".into(), reason }).map(|()| cluster)
    }

    /// Reads cluster.toml.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn load(file: &Path) -> Result<Self> {
        let mut cluster: Self = read_toml(file)?;
        cluster.nodes.sort_by_key(|c| c.role);
        cluster.check().map_err(|e| Error::config(file, e))?;
        Ok(cluster)
    }

    /// Writes cluster.toml, replacing what was there.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn save(&self, file: &Path) -> Result<()> {
        let head = format!("# Public. Verification code: {}\n\n", self.code());
        write_toml(file, self, &head)
    }

    /// The card of `role`.
    pub fn card(&self, role: Role) -> &Card {
        &self.nodes[role as usize]
    }

    /// Whose key this is.
    pub fn role_of(&self, pin: Pin) -> Option<Role> {
        self.nodes.iter().find(|c| c.pin == pin).map(|c| c.role)
    }

    /// SHA-256 of the content; comments, order and spacing of the file do not matter. Part of every session.
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"sharelens cluster");
        for card in &self.nodes {
            for field in [card.role.word().as_bytes(), card.name.as_bytes(), card.public.as_bytes()] {
                hash.update((field.len() as u64).to_le_bytes());
                hash.update(field);
            }
            hash.update(card.pin.as_bytes());
            hash.update(card.protocol.to_le_bytes());
        }
        hash.finalize().into()
    }

    /// Six groups of five digits (100 bits of the hash), to be read aloud.
    pub fn code(&self) -> String {
        let hash = self.hash();
        let groups = hash.chunks_exact(4).take(6).map(|w| {
            let word = u32::from_le_bytes(w.try_into().expect("chunks of 4"));
            format!("{:05}", word % 100_000)
        });
        groups.collect::<Vec<_>>().join(" ")
    }

    /// The first digits of the hash, for messages.
    pub fn short_hash(hash: &[u8; 32]) -> String {
        hex(&hash[..6])
    }

    fn check(&self) -> Result<(), String> {
        for role in Role::ALL {
            match self.nodes.iter().filter(|c| c.role == role).count() {
                1 => {}
                0 => return Err(format!("the card of {role} is missing")),
                n => return Err(format!("{n} cards say {role}")),
            }
        }
        for (i, a) in self.nodes.iter().enumerate() {
            a.checked()?;
            for b in &self.nodes[..i] {
                if a.pin == b.pin {
                    return Err(format!("{} and {} have the same key", b.role, a.role));
                }
                if a.public == b.public {
                    return Err(format!("{} and {} have the same address", b.role, a.role));
                }
            }
        }
        Ok(())
    }
}

/// node.toml.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Which node this is.
    pub role: Role,
    /// The UDP address to listen on.
    pub listen: SocketAddr,
    /// Path of cluster.toml; relative paths start at node.toml.
    pub cluster: PathBuf,
    /// Where models, the ledger of sessions and the storage key are kept.
    pub data_dir: PathBuf,
    /// The node's private key.
    pub key_file: PathBuf,
    /// What the network between the nodes is like.
    #[serde(default)]
    pub link: LinkConfig,
    /// How much may be prepared ahead.
    #[serde(default)]
    pub preprocessing: Preprocessing,
    /// What others may use up.
    #[serde(default)]
    pub limits: Limits,
    /// Who may send images.
    #[serde(default)]
    pub clients: Allow,
    /// Who may share models.
    #[serde(default)]
    pub owners: Allow,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
    /// Health and metrics; not in this version.
    #[serde(default, skip_serializing)]
    pub http: Option<toml::Table>,
}

/// What the network is like; windows and timers of QUIC follow from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkConfig {
    /// Round-trip time in milliseconds.
    pub rtt_ms: f64,
    /// Bandwidth in Mbit/s.
    pub bandwidth_mbit: f64,
    /// Silence after which a peer counts as lost, in seconds.
    pub idle_timeout_s: f64,
    /// Pause between keep-alive packets, in seconds.
    pub keep_alive_s: f64,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self { rtt_ms: 1.0, bandwidth_mbit: 1000.0, idle_timeout_s: 20.0, keep_alive_s: 5.0 }
    }
}

/// `[preprocessing]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preprocessing {
    /// Correlations held in memory by one session, in MiB.
    pub memory_mib: u64,
}

impl Default for Preprocessing {
    fn default() -> Self {
        Self { memory_mib: 4096 }
    }
}

/// `[limits]`: what others may use up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Sessions at once.
    pub sessions: usize,
    /// Requests that wait while all sessions are in use.
    pub queue: usize,
    /// How many of them may be of one key.
    pub queue_per_key: usize,
    /// Longest such wait, in seconds; a client may ask for less.
    pub queue_timeout_s: u64,
    /// Connections of clients and owners at once.
    pub client_connections: usize,
    /// How many of them one key may have.
    pub connections_per_key: usize,
    /// Uploads of models at once, one of each owner.
    pub uploads: usize,
    /// Slowest upload that is waited for, in KiB/s on average; a minute is always allowed.
    pub upload_kib_s: u64,
    /// Memory for loaded models that no session uses, in MiB; those used longest ago go first.
    pub loaded_mib: u64,
    /// Longest wait for one message, in seconds.
    pub message_timeout_s: u64,
    /// Longest session, in seconds.
    pub session_timeout_s: u64,
    /// Longest wait for a connection, in seconds.
    pub connect_timeout_s: u64,
    /// Largest share of an image, in MiB.
    pub image_mib: u64,
    /// Largest share of a model, in MiB.
    pub model_mib: u64,
    /// Models kept.
    pub models: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 4,
            queue: 256,
            queue_per_key: 64,
            queue_timeout_s: 600,
            client_connections: 64,
            connections_per_key: 16,
            uploads: 2,
            upload_kib_s: 64,
            loaded_mib: 4096,
            message_timeout_s: 60,
            session_timeout_s: 900,
            connect_timeout_s: 10,
            image_mib: 64,
            model_mib: 2048,
            models: 256,
        }
    }
}

impl Limits {
    pub(crate) fn message_timeout(&self) -> Duration {
        Duration::from_secs(self.message_timeout_s)
    }
    pub(crate) fn queue_timeout(&self) -> Duration {
        Duration::from_secs(self.queue_timeout_s)
    }
    pub(crate) fn session_timeout(&self) -> Duration {
        Duration::from_secs(self.session_timeout_s)
    }
    /// How long `bytes` may take to arrive, all in all.
    pub(crate) fn upload_timeout(&self, bytes: u64) -> Duration {
        self.message_timeout() + Duration::from_secs(bytes / (self.upload_kib_s << 10))
    }
    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_secs(self.connect_timeout_s)
    }
}

/// A list of keys, or everyone. Nobody is the default: `node allow` enrols a key, as do these lists.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// `"any"` or a list of pins.
    #[serde(default)]
    pub allow: Allowed,
}

/// See [`Allow`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "\"any\" or a list of pins (64 hexadecimal digits each)")]
pub enum Allowed {
    /// Everyone who proves possession of some key. For trials on one machine.
    #[serde(with = "any_word")]
    Any,
    /// These keys.
    Pins(Vec<Pin>),
}

mod any_word {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str("any")
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<(), D::Error> {
        match String::deserialize(d)?.as_str() {
            "any" => Ok(()),
            other => Err(serde::de::Error::custom(format!("{other:?} is not \"any\""))),
        }
    }
}

impl Allow {
    /// Whether `pin` may.
    pub fn contains(&self, pin: Pin) -> bool {
        match &self.allow {
            Allowed::Any => true,
            Allowed::Pins(pins) => pins.contains(&pin),
        }
    }
}

impl Default for Allowed {
    fn default() -> Self {
        Self::Pins(Vec::new())
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// error, warn, info, debug or trace, or a filter of the `tracing` crate.
    pub level: String,
    /// One JSON object per line instead of text.
    pub json: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), json: false }
    }
}

impl NodeConfig {
    /// What `node init` writes.
    pub fn new(role: Role, listen: SocketAddr) -> Self {
        Self {
            role,
            listen,
            cluster: "cluster.toml".into(),
            data_dir: "data".into(),
            key_file: format!("{}.key", role.word()).into(),
            link: LinkConfig::default(),
            preprocessing: Preprocessing::default(),
            limits: Limits::default(),
            clients: Allow::default(),
            owners: Allow::default(),
            log: LogConfig::default(),
            http: None,
        }
    }

    /// Reads node.toml; relative paths in it start at its directory.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn load(file: &Path) -> Result<Self> {
        let mut config: Self = read_toml(file)?;
        config.check().map_err(|e| Error::config(file, e))?;
        let dir = file.parent().unwrap_or(Path::new("."));
        for path in [&mut config.cluster, &mut config.data_dir, &mut config.key_file] {
            *path = dir.join(&*path);
        }
        Ok(config)
    }

    /// Who is enrolled, beside the data.
    pub fn enrolled_file(&self) -> PathBuf {
        self.data_dir.with_file_name("enrolled.toml")
    }

    /// Writes node.toml, replacing what was there.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn save(&self, file: &Path) -> Result<()> {
        write_toml(file, self, "# Private to this node. Relative paths start at this file.\n\n")
    }

    fn check(&self) -> Result<(), String> {
        if self.http.is_some() {
            return Err("[http] is not in this version: remove it".into());
        }
        let l = &self.link;
        let positive = |name: &str, x: f64, max: f64| {
            if x > 0.0 && x <= max {
                Ok(())
            } else {
                Err(format!("{name} = {x} must be above 0 and at most {max}"))
            }
        };
        positive("link.rtt_ms", l.rtt_ms, 10_000.0)?;
        positive("link.bandwidth_mbit", l.bandwidth_mbit, 1e6)?;
        positive("link.idle_timeout_s", l.idle_timeout_s, 3600.0)?;
        positive("link.keep_alive_s", l.keep_alive_s, l.idle_timeout_s / 2.0)?;
        let limits = &self.limits;
        for (name, n, max) in [
            ("limits.sessions", limits.sessions as u64, 1024),
            ("limits.queue", limits.queue as u64, 65_536),
            ("limits.queue_per_key", limits.queue_per_key as u64, 65_536),
            ("limits.queue_timeout_s", limits.queue_timeout_s, 86_400),
            ("limits.client_connections", limits.client_connections as u64, 65_536),
            ("limits.connections_per_key", limits.connections_per_key as u64, 65_536),
            ("limits.uploads", limits.uploads as u64, 1024),
            ("limits.upload_kib_s", limits.upload_kib_s, 1 << 30),
            ("limits.loaded_mib", limits.loaded_mib, 1 << 30),
            ("limits.message_timeout_s", limits.message_timeout_s, 86_400),
            ("limits.session_timeout_s", limits.session_timeout_s, 86_400),
            ("limits.connect_timeout_s", limits.connect_timeout_s, 86_400),
            ("limits.image_mib", limits.image_mib, 1 << 20),
            ("limits.model_mib", limits.model_mib, 1 << 20),
            ("limits.models", limits.models as u64, 1 << 20),
            ("preprocessing.memory_mib", self.preprocessing.memory_mib, 1 << 30),
        ] {
            if n == 0 || n > max {
                return Err(format!("{name} = {n} must be from 1 to {max}"));
            }
        }
        Ok(())
    }
}

pub(crate) fn read_toml<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text = std::fs::read_to_string(file).map_err(|e| Error::config(file, e))?;
    toml::from_str(&text).map_err(|e: toml::de::Error| {
        let line = e.span().map(|s| text[..s.start.min(text.len())].lines().count().max(1));
        let place = line.map_or(String::new(), |l| format!("line {l}: "));
        Error::config(file, format!("{place}{}", e.message()))
    })
}

pub(crate) fn write_toml<T: Serialize>(file: &Path, value: &T, head: &str) -> Result<()> {
    let text = toml::to_string(value).map_err(|e| Error::Internal(e.to_string()))?;
    std::fs::write(file, format!("{head}{text}")).map_err(|e| Error::config(file, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(role: Role) -> Card {
        Card {
            role,
            name: format!("{role}"),
            public: format!("{}.example:7443", role.word()),
            pin: Pin::of_spki(role.word().as_bytes()),
            protocol: PROTOCOL_VERSION,
        }
    }

    fn load(text: &str) -> Result<NodeConfig> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, text).unwrap();
        NodeConfig::load(&file)
    }

    fn text() -> String {
        toml::to_string(&NodeConfig::new(Role::Server1, "127.0.0.1:7444".parse().unwrap())).unwrap()
    }

    #[test]
    fn what_init_writes_can_be_read() {
        let read = load(&text()).unwrap();
        assert_eq!((read.role, read.limits.sessions), (Role::Server1, 4));
        assert!(read.key_file.is_absolute() && read.key_file.ends_with("server1.key"));
        assert!(text().contains("allow = []"), "nobody is enrolled at first: {}", text());
    }

    #[test]
    fn mistakes_are_named() {
        let bad = |from: &str, to: &str, word: &str| {
            let changed = text().replacen(from, to, 1);
            assert_ne!(changed, text(), "{from}");
            let error = load(&changed).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        };
        bad("role =", "colour = 1\nrole =", "colour");
        bad("\"server1\"", "\"server2\"", "server2");
        bad("sessions = 4", "sessions = 0", "limits.sessions");
        bad("sessions = 4", "sesions = 4", "sesions");
        bad("rtt_ms = 1.0", "rtt_ms = -1.0", "rtt_ms");
        bad("rtt_ms = 1.0", "rtt_ms = nan", "rtt_ms");
        bad("allow = []", "allow = \"all\"", "any");
        bad("allow = []", "allow = [\"12\"]", "pin");
        bad("uploads = 2", "uploads = 0", "limits.uploads");
        bad("[log]", "[http]\nlisten = \"x\"\n[log]", "not in this version");
        let missing = NodeConfig::load(Path::new("/nowhere/node.toml")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/node.toml"), "{missing}");
    }

    #[test]
    fn allowing_some_keys_only() {
        let pin = Pin::of_spki(b"x");
        let some = text().replacen("allow = []", &format!("allow = [\"{pin}\"]"), 1);
        let config = load(&some).unwrap();
        assert!(config.clients.contains(pin) && !config.clients.contains(Pin::of_spki(b"y")));
        assert!(!config.owners.contains(pin));
    }

    #[test]
    fn cluster_hash_ignores_order_and_sees_content() {
        let cluster = Cluster::new(Role::ALL.map(card).to_vec()).unwrap();
        let reversed = Cluster::new(Role::ALL.into_iter().rev().map(card).collect()).unwrap();
        assert_eq!(cluster.hash(), reversed.hash());
        assert_eq!(cluster.code().len(), 35);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cluster.toml");
        cluster.save(&file).unwrap();
        assert_eq!(Cluster::load(&file).unwrap(), cluster);
        for change in [
            |c: &mut Card| c.public = "h:1".into(),
            |c: &mut Card| c.pin = Pin::of_spki(b"z"),
            |c: &mut Card| c.name.push('x'),
        ] {
            let mut cards = Role::ALL.map(card).to_vec();
            change(&mut cards[1]);
            assert_ne!(Cluster::new(cards).unwrap().hash(), cluster.hash());
        }
    }

    #[test]
    fn a_cluster_has_each_role_once() {
        let [a, b, c] = Role::ALL.map(card);
        assert!(
            Cluster::new(vec![a.clone(), b.clone()]).unwrap_err().to_string().contains("helper is missing")
        );
        assert!(Cluster::new(vec![a.clone(), a.clone(), b.clone(), c.clone()]).is_err());
        let same_key = Card { pin: a.pin, ..b.clone() };
        assert!(
            Cluster::new(vec![a.clone(), same_key, c.clone()]).unwrap_err().to_string().contains("same key")
        );
        let no_port = Card { public: "host".into(), ..b };
        assert!(Cluster::new(vec![a, no_port, c]).is_err());
    }
}
