//! What can go wrong in a protocol, named by whose fault it was. No variant carries a secret.

use crate::step::Step;

/// A failed protocol run. After an error the session is over and its correlations are lost.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer sent something other than this step's message.
    #[error("the peer sent {found}, expected {expected}, at {step}")]
    Peer {
        /// Where.
        step: Step,
        /// What this step wants.
        expected: String,
        /// What came.
        found: String,
    },
    /// The link failed, or the peer went away.
    #[error("the link to {peer} failed: {reason}")]
    Link {
        /// Who was on the other side.
        peer: String,
        /// Transport's words.
        reason: String,
    },
    /// Nothing came from the peer for as long as the configuration allows.
    #[error("no message from {peer} within {seconds} s, at {step}")]
    Timeout {
        /// Who was on the other side.
        peer: String,
        /// Where.
        step: Step,
        /// The limit.
        seconds: u64,
    },
    /// The store of correlations did not hold what this step needs.
    #[error("correlation for {step} is {reason}")]
    Correlation {
        /// Where.
        step: Step,
        /// Exhausted, spent before, or of another kind.
        reason: String,
    },
    /// The two sides, or two parts of one side, were set up differently.
    #[error("configuration: {0}")]
    Config(String),
    /// Another part of the session failed first.
    #[error("the session was ended: {0}")]
    Ended(String),
}

/// Result of a protocol step.
pub type Result<T, E = Error> = std::result::Result<T, E>;
