//! Who the parties are.

use serde::{Deserialize, Serialize};

/// One of the two computing servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Server {
    /// Receives nothing but a seed from helper and client.
    Server0,
    /// Receives a seed from the helper, and corrections from helper and client.
    Server1,
}

impl Server {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::Server0, Self::Server1];

    /// 0 or 1.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether this is server 0, which adds public constants to its share.
    pub const fn is_first(self) -> bool {
        matches!(self, Self::Server0)
    }

    /// The other one.
    pub const fn peer(self) -> Self {
        match self {
            Self::Server0 => Self::Server1,
            Self::Server1 => Self::Server0,
        }
    }
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_first() { "server 0" } else { "server 1" })
    }
}
