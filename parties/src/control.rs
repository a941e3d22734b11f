//! What nodes and clients say to each other. One type per message; who sends which when is in `node` and
//! `client`. Bulk bytes (shares of images, models, results) follow the message that announces their length.

use serde::{Deserialize, Serialize};
use sharelens_protocol::cost::Ledger;
use sharelens_protocol::prg::Seed;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::codec::Message;
use crate::config::Role;
use crate::error::{Error, Result};
use crate::identity::{Pin, hex};

/// Longest name of a model, in bytes.
pub const MAX_NAME: usize = 64;

/// Longest public manifest of a model, in bytes.
pub const MAX_MANIFEST: usize = 16 << 20;

/// Chosen by the client and never used twice: the second in which it was made (8 bytes, big-endian, since 1970), then 24
/// random bytes. Nodes take ids of their own time only, and remember those, so that none is accepted twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId(pub [u8; 32]);

impl SessionId {
    /// A fresh one.
    ///
    /// # Errors
    /// [`Error::Internal`] without entropy.
    pub fn random() -> Result<Self> {
        let mut id: [u8; 32] = crate::identity::random()?;
        id[..8].copy_from_slice(&now().to_be_bytes());
        Ok(Self(id))
    }

    /// When it was made, in seconds since 1970.
    pub fn made(&self) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|i| self.0[i]))
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| d.as_secs())
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0[8..14]))
    }
}

impl std::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// One version of a model as stored at all three nodes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ModelId {
    /// Lower-case letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Chosen by the owner.
    pub version: u32,
}

impl std::fmt::Display for ModelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} version {}", self.name, self.version)
    }
}

/// Whether `name` may name a model; names become names of files.
///
/// # Errors
/// [`Error::Config`].
pub fn check_name(name: &str) -> Result<()> {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(good) || name.starts_with('.') {
        return Err(Error::Config {
            file: "model name".into(),
            reason: format!(
                "{:?} is not 1 to {MAX_NAME} lower-case letters, digits, '-', '_', '.'",
                name.chars().take(80).collect::<String>()
            ),
        });
    }
    Ok(())
}

/// The first message of every stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::config::PROTOCOL_VERSION`].
    pub version: u32,
    /// [`crate::config::Cluster::hash`].
    pub cluster: [u8; 32],
    /// What the stream belongs to.
    pub session: SessionId,
    /// What the stream is for.
    pub purpose: Purpose,
}

/// When a session takes its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// Once all correlations are there, or as many as a cap on memory allows: the online phase is as short as it
    /// can be.
    #[default]
    Prepared,
    /// As soon as the nodes are connected: correlations are dealt and prepared while the image is sent and during
    /// the online phase, which waits for those that it needs next. All in all this takes less time.
    AtOnce,
}

impl Start {
    /// From a flag.
    pub const fn overlapped(overlap: bool) -> Self {
        if overlap { Self::AtOnce } else { Self::Prepared }
    }
}

/// What a stream is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// First stream of a connection between nodes: who dials. Answered by [`Greeting`].
    Greet {
        /// Who the dialing node is.
        role: Role,
        /// Random, new with every start of the process.
        boot: [u8; 16],
    },
    /// From a client: classify an image. Answered by [`Accepted`].
    Infer {
        /// Name of the model.
        model: String,
        /// The newest, if `None`.
        version: Option<u32>,
        /// When the image will come.
        start: Start,
        /// How many seconds the request may wait for a place, if all are in use.
        wait_s: u32,
    },
    /// From server 0 to server 1: the servers' channel of a client's session. Answered by [`Go`].
    Online(Work),
    /// From a server to the helper: correlations for a session. Answered by [`DealtSeed`].
    Deal(Work),
    /// From server 0 to server 1, and from both to the helper: load a model. Answered like the two above.
    Load(Work),
    /// From an owner: keep this model. Answered by [`Go`].
    Share(Upload),
    /// From anyone: which models are there. Answered by [`Models`].
    List,
}

impl Purpose {
    /// For messages.
    pub fn words(&self) -> &'static str {
        match self {
            Self::Greet { .. } => "join the cluster",
            Self::Infer { .. } => "run a model",
            Self::Online(_) => "compute with this server",
            Self::Deal(_) => "ask for correlations",
            Self::Load(_) => "load a model",
            Self::Share(_) => "share a model",
            Self::List => "list models",
        }
    }
}

/// What the three nodes must agree on before they work together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Which model.
    pub model: ModelId,
    /// SHA-256 of its manifest.
    pub manifest: [u8; 32],
    /// Which opening of its masked weights.
    pub epoch: [u8; 16],
}

/// Announces a model; the manifest and the share follow as bulk bytes after [`Go`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Under which name and version.
    pub model: ModelId,
    /// Bytes of the manifest.
    pub manifest_bytes: u64,
    /// Bytes of this node's share: a seed for server 0, corrections for server 1, nothing for the helper.
    pub share_bytes: u64,
}

/// "Go on", or "done".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Go;

/// Answer to [`Purpose::Greet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Random, new with every start of the process.
    pub boot: [u8; 16],
}

/// The answer to a client's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The model that will run.
    pub model: ModelId,
    /// Its public manifest.
    pub manifest: Vec<u8>,
    /// The key of whoever shared it.
    pub owner: Pin,
}

/// Announces a share of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageShare {
    /// Bytes that follow; the manifest says how many there must be.
    pub bytes: u64,
}

/// What a server says between its acceptance and the image. Server 0 alone says how far the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Readiness {
    /// All places are in use, and the request waits for one.
    Queued {
        /// How many places have to become free until it is its turn.
        position: u32,
        /// About how many seconds that takes, once a session has shown how long they are.
        seconds: Option<u32>,
    },
    /// It takes the image: it has enough correlations, or was told not to wait for them.
    Ready {
        /// Seconds since the request.
        seconds: f64,
        /// How many of them it waited for a place.
        queued: f64,
    },
}

/// Announces a share of the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultShare {
    /// Bytes that follow; the manifest says how many there must be.
    pub bytes: u64,
    /// What the run cost this server.
    pub report: Report,
}

/// What one server saw of a session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Rounds and payload bytes by layer.
    pub ledger: Ledger,
    /// Seconds from the request until all correlations were there.
    pub offline_seconds: f64,
    /// Seconds from the image's arrival to the result, waiting for correlations included.
    pub online_seconds: f64,
    /// Bytes sent to the helper, headers included.
    pub offline_sent: u64,
    /// Bytes received from the helper, headers included.
    pub helper_sent: u64,
    /// Bytes sent to the other server, headers included.
    pub online_sent: u64,
}

/// This server's seed of a session or a load, from the helper.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct DealtSeed([u8; 32]);

impl DealtSeed {
    /// For the wire.
    pub fn new(seed: &Seed) -> Self {
        Self(*seed.as_bytes())
    }

    /// From the wire.
    pub fn seed(&self) -> Seed {
        Seed::from_bytes(self.0)
    }
}

impl std::fmt::Debug for DealtSeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DealtSeed(..)")
    }
}

/// Which models are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Models(pub Vec<ModelId>);

/// Why nothing more will come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// [`crate::error::Code`].
    pub code: u32,
    /// One sentence without secrets.
    pub text: String,
}

macro_rules! messages {
    ($($kind:literal $type:ident $name:literal $max:expr;)*) => {
        $(impl Message for $type {
            const KIND: u16 = $kind;
            const NAME: &'static str = $name;
            const MAX: usize = $max;
        })*
    };
}

messages! {
    1 Hello "hello" 1024;
    2 Refusal "refusal" 4096;
    3 Greeting "greeting" 64;
    4 Go "permission to go on" 16;
    5 Accepted "acceptance" MAX_MANIFEST + 1024;
    6 ImageShare "announcement of an image share" 64;
    7 Readiness "readiness" 64;
    8 ResultShare "result" 4 << 20;
    9 DealtSeed "seed" 64;
    10 Models "list of models" 1 << 20;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{FRAME_HEADER_BYTES, decode_body, encode};

    #[test]
    fn hello_is_golden() {
        let hello = Hello {
            version: 1,
            cluster: [2; 32],
            session: SessionId([3; 32]),
            purpose: Purpose::Infer {
                model: "cxr".into(),
                version: Some(4),
                start: Start::AtOnce,
                wait_s: 60,
            },
        };
        let mut golden = vec![1, 0, 1, 0, 96, 0, 0, 0];
        golden.extend([1, 0, 0, 0]);
        golden.extend([2; 32]);
        golden.extend([3; 32]);
        golden.extend([
            1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, b'c', b'x', b'r', 1, 4, 0, 0, 0, 1, 0, 0, 0, 60, 0, 0, 0,
        ]);
        assert_eq!(encode(&hello).unwrap(), golden);
        assert_eq!(decode_body::<Hello>(&golden[FRAME_HEADER_BYTES..]).unwrap(), hello);
    }

    #[test]
    fn seeds_are_golden_and_do_not_print() {
        let seed = DealtSeed::new(&Seed::from_bytes([9; 32]));
        let mut golden = vec![9, 0, 1, 0, 32, 0, 0, 0];
        golden.extend([9; 32]);
        assert_eq!(encode(&seed).unwrap(), golden);
        assert_eq!(format!("{seed:?}"), "DealtSeed(..)");
    }

    #[test]
    fn purposes_keep_their_numbers() {
        let work =
            || Work { model: ModelId { name: "m".into(), version: 1 }, manifest: [0; 32], epoch: [0; 16] };
        let upload = Upload { model: work().model, manifest_bytes: 1, share_bytes: 2 };
        let all = [
            Purpose::Greet { role: Role::Helper, boot: [0; 16] },
            Purpose::Infer { model: "m".into(), version: None, start: Start::Prepared, wait_s: 0 },
            Purpose::Online(work()),
            Purpose::Deal(work()),
            Purpose::Load(work()),
            Purpose::Share(upload),
            Purpose::List,
        ];
        for (i, purpose) in all.into_iter().enumerate() {
            let hello = Hello { version: 1, cluster: [0; 32], session: SessionId([0; 32]), purpose };
            let bytes = encode(&hello).unwrap();
            assert_eq!(bytes[FRAME_HEADER_BYTES + 68], i as u8);
            assert_eq!(decode_body::<Hello>(&bytes[FRAME_HEADER_BYTES..]).unwrap(), hello);
        }
    }

    #[test]
    fn names_cannot_leave_their_directory() {
        for good in ["cxr", "brain_mri-2.1", "a"] {
            check_name(good).unwrap();
        }
        for bad in ["", "..", ".x", "a/b", "A", "a b", &"x".repeat(65), "é"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
