//! What can go wrong between processes, named by whose fault it was. No variant carries a secret.

use crate::identity::Pin;

/// A failed operation of a node or a client. The text is one sentence: what failed, where, and what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the configuration, or an argument, is not usable.
    #[error("{file}: {reason}")]
    Config {
        /// File, or name of the argument.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written, or is damaged.
    #[error("{file}: {reason}")]
    Storage {
        /// Which file.
        file: String,
        /// What happened.
        reason: String,
    },
    /// The peer's key is not the one in cluster.toml.
    #[error("{peer} presented key {found}, but cluster.toml pins {expected} for it: compare its card")]
    Pin {
        /// Who it should have been.
        peer: String,
        /// The pinned key.
        expected: Pin,
        /// The key that was presented.
        found: Pin,
    },
    /// The two sides were set up with different cluster files.
    #[error("{peer} has another cluster.toml ({found}, here {expected}): run `cluster verify` on both sides")]
    Cluster {
        /// Who.
        peer: String,
        /// Start of our hash.
        expected: String,
        /// Start of theirs.
        found: String,
    },
    /// The two sides are different releases.
    #[error("{peer} speaks protocol version {found}, here it is {expected}: install the same release")]
    Version {
        /// Who.
        peer: String,
        /// Ours.
        expected: u32,
        /// Theirs.
        found: u32,
    },
    /// The key may not do this here.
    #[error("key {pin} may not {action} here: the node's operator has to enrol it with `node allow`")]
    NotAllowed {
        /// Who asked.
        pin: Pin,
        /// For what.
        action: String,
    },
    /// A session id was used before.
    #[error("session {0} was seen before and is refused")]
    Replay(String),
    /// A session id is not of this node's time.
    #[error(
        "the session was made {seconds} s from this node's time, {allowed} s are allowed: set both clocks"
    )]
    Clock {
        /// How far off.
        seconds: u64,
        /// How far it may be.
        allowed: u64,
    },
    /// All places of a kind are taken.
    #[error("all {most} {what} are in use: try again later")]
    Busy {
        /// Places for what.
        what: &'static str,
        /// How many there are.
        most: usize,
    },
    /// A request waited for as long as it might.
    #[error("no session became free within {seconds} s, and {before} request{} still come before this one: ask for a longer wait", if *before == 1 { "" } else { "s" })]
    Queued {
        /// How long it waited.
        seconds: u64,
        /// Requests that come before it.
        before: u32,
    },
    /// The machine of the node went down, and what it wrote last may be lost.
    #[error("the machine of this node went down without warning: sessions are taken again in {seconds} s")]
    Recovering {
        /// Until then.
        seconds: u64,
    },
    /// The node is shutting down.
    #[error("{0} is shutting down and takes no new session")]
    Draining(String),
    /// Nobody shared such a model.
    #[error("model {0} is not here: see `model share`")]
    UnknownModel(String),
    /// The name and version are taken.
    #[error("model {name}: {reason}")]
    ModelExists {
        /// The model's name.
        name: String,
        /// Why it cannot be stored.
        reason: String,
    },
    /// The peer sent something other than what is due.
    #[error("{peer} sent {found}, expected {expected}")]
    Malformed {
        /// Who.
        peer: String,
        /// What was due.
        expected: String,
        /// What came.
        found: String,
    },
    /// Something is longer than the configuration allows.
    #[error("{what} has {found} bytes, the limit is {limit}")]
    TooLarge {
        /// What.
        what: String,
        /// Allowed bytes.
        limit: u64,
        /// Announced bytes.
        found: u64,
    },
    /// Nothing came in time.
    #[error("no {what} from {peer} within {seconds} s")]
    Timeout {
        /// From whom.
        peer: String,
        /// What was due.
        what: String,
        /// The limit.
        seconds: u64,
    },
    /// The link failed, or the peer went away.
    #[error("the link to {peer} failed: {reason}")]
    Link {
        /// Who was on the other side.
        peer: String,
        /// Transport's words.
        reason: String,
    },
    /// The peer answered with an error.
    #[error("{peer} refused: {text}")]
    Refused {
        /// Who.
        peer: String,
        /// Which error it was.
        code: Code,
        /// The peer's sentence.
        text: String,
    },
    /// A server or the helper no longer knows the load of a model that another one refers to.
    #[error("the loaded copy of {0} is gone at one party, it will be loaded anew: try again")]
    StaleLoad(String),
    /// The session was ended by another part of it.
    #[error("the session was ended: {0}")]
    Ended(String),
    /// The protocol between the parties failed.
    #[error(transparent)]
    Protocol(#[from] sharelens_protocol::Error),
    /// A part of the program that this build does not have.
    #[error("{0} is not in this version")]
    Missing(String),
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Result of an operation between processes.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of error ended a stream; travels as the code of a QUIC reset and in refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs, reason = "each is the variant of Error with the same name")]
pub enum Code {
    Unknown = 0,
    Internal = 1,
    Config = 2,
    Storage = 3,
    Pin = 4,
    Cluster = 5,
    Version = 6,
    NotAllowed = 7,
    Replay = 8,
    Busy = 9,
    Draining = 10,
    UnknownModel = 11,
    ModelExists = 12,
    Malformed = 13,
    TooLarge = 14,
    Timeout = 15,
    Link = 16,
    StaleLoad = 17,
    Ended = 18,
    Missing = 19,
    Correlation = 20,
}

impl Code {
    const ALL: [(Self, &'static str); 21] = [
        (Self::Unknown, "an unknown error"),
        (Self::Internal, "an internal error"),
        (Self::Config, "a configuration error"),
        (Self::Storage, "a storage error"),
        (Self::Pin, "a key that is not the pinned one"),
        (Self::Cluster, "a different cluster.toml"),
        (Self::Version, "a different protocol version"),
        (Self::NotAllowed, "a key without permission"),
        (Self::Replay, "a replayed session"),
        (Self::Busy, "no free place"),
        (Self::Draining, "shutting down"),
        (Self::UnknownModel, "an unknown model"),
        (Self::ModelExists, "a model that exists already"),
        (Self::Malformed, "a malformed message"),
        (Self::TooLarge, "something too large"),
        (Self::Timeout, "a timeout"),
        (Self::Link, "a lost link"),
        (Self::StaleLoad, "an outdated load of the model"),
        (Self::Ended, "the end of the session"),
        (Self::Missing, "a part that its version does not have"),
        (Self::Correlation, "a missing or spent correlation"),
    ];

    /// The code on the wire; unknown codes of later versions become [`Code::Unknown`].
    pub fn from_wire(code: u64) -> Self {
        usize::try_from(code).ok().and_then(|i| Self::ALL.get(i)).map_or(Self::Unknown, |(c, _)| *c)
    }

    /// Whether the same request may be served a little later. Trying again is safe: it is a session of its own, with fresh
    /// shares.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::Busy | Self::Draining | Self::StaleLoad | Self::Link | Self::Timeout | Self::Ended
        )
    }

    /// The number on the wire.
    pub const fn to_wire(self) -> u32 {
        self as u32
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::ALL[*self as usize].1)
    }
}

impl Error {
    /// The kind of this error, as peers are told.
    pub fn code(&self) -> Code {
        use sharelens_protocol::Error as P;
        match self {
            Self::Config { .. } | Self::Protocol(P::Config(_)) => Code::Config,
            Self::Storage { .. } => Code::Storage,
            Self::Pin { .. } => Code::Pin,
            Self::Cluster { .. } => Code::Cluster,
            Self::Version { .. } => Code::Version,
            Self::NotAllowed { .. } => Code::NotAllowed,
            Self::Replay(_) | Self::Clock { .. } => Code::Replay,
            Self::Busy { .. } | Self::Queued { .. } | Self::Recovering { .. } => Code::Busy,
            Self::Draining(_) => Code::Draining,
            Self::UnknownModel(_) => Code::UnknownModel,
            Self::ModelExists { .. } => Code::ModelExists,
            Self::Malformed { .. } | Self::Protocol(P::Peer { .. }) => Code::Malformed,
            Self::TooLarge { .. } => Code::TooLarge,
            Self::Timeout { .. } | Self::Protocol(P::Timeout { .. }) => Code::Timeout,
            Self::Link { .. } | Self::Protocol(P::Link { .. }) => Code::Link,
            Self::Refused { code, .. } => *code,
            Self::StaleLoad(_) => Code::StaleLoad,
            Self::Ended(_) | Self::Protocol(P::Ended(_)) => Code::Ended,
            Self::Protocol(P::Correlation { .. }) => Code::Correlation,
            Self::Missing(_) => Code::Missing,
            Self::Internal(_) | Self::Protocol(_) => Code::Internal,
        }
    }

    /// The sentence that a peer is told. Files of a node are its operator's business: their names stay in its log.
    pub fn for_peer(&self) -> String {
        match self {
            Self::Storage { .. } => {
                "the node could not read or write a file, its operator finds which in the log".into()
            }
            Self::Config { file, reason } if file.contains(['/', '\\']) || reason.contains(['/', '\\']) => {
                "the node is not set up as it must be, its operator finds why in the log".into()
            }
            other => other.to_string(),
        }
    }

    /// The same for code below this crate, which knows only the protocol's errors.
    pub fn to_protocol(&self) -> sharelens_protocol::Error {
        match self {
            Self::Protocol(e) => e.clone(),
            other => sharelens_protocol::Error::Ended(other.to_string()),
        }
    }

    pub(crate) fn storage(file: &std::path::Path, reason: impl std::fmt::Display) -> Self {
        Self::Storage { file: file.display().to_string(), reason: reason.to_string() }
    }

    pub(crate) fn config(file: &std::path::Path, reason: impl std::fmt::Display) -> Self {
        Self::Config { file: file.display().to_string(), reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_learn_no_paths() {
        let path = std::path::Path::new("/srv/node/data/models/cxr/1.share");
        for e in [Error::storage(path, "no space left"), Error::config(path, "is missing")] {
            assert!(e.to_string().contains("/srv"), "the log says which file");
            assert!(!e.for_peer().contains("srv"), "{}", e.for_peer());
        }
        let busy = Error::Busy { what: "sessions", most: 3 };
        assert_eq!(busy.for_peer(), busy.to_string());
    }

    #[test]
    fn codes_survive_the_wire() {
        for (i, (code, text)) in Code::ALL.iter().enumerate() {
            assert_eq!(code.to_wire() as usize, i);
            assert_eq!(Code::from_wire(i as u64), *code);
            assert_eq!(code.to_string(), *text);
        }
        assert_eq!(Code::from_wire(u64::MAX), Code::Unknown);
    }
}
