//! What can go wrong with a model, named by what to change.

use std::path::PathBuf;

/// A node that import does not support.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Unsupported {
    /// Name of the node.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// What about it is not supported.
    pub why: String,
}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}): {}", self.node, self.op, self.why)
    }
}

/// A model, picture or configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("cannot access {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a well-formed ONNX model.
    #[error("not a usable ONNX model: {0}")]
    Onnx(String),
    /// Nodes that are not supported, all of them.
    #[error("the model has {} unsupported nodes: {}", .0.len(), list(.0))]
    Unsupported(Vec<Unsupported>),
    /// A limit on sizes was exceeded.
    #[error("{what} is {found}, and at most {allowed} is accepted")]
    Limit {
        /// Of what.
        what: String,
        /// What the file asks for.
        found: u64,
        /// The limit.
        allowed: u64,
    },
    /// The network is not consistent in itself.
    #[error("the network is inconsistent at {node}: {reason}")]
    Graph {
        /// Where.
        node: String,
        /// How.
        reason: String,
    },
    /// A picture that cannot be used.
    #[error("cannot use the picture: {0}")]
    Image(String),
    /// `config.json` beside the model.
    #[error("cannot use the model's configuration: {0}")]
    Config(String),
    /// No choice of moduli is safe or precise enough.
    #[error("{0}")]
    Range(String),
    /// A value left its range while running in the clear.
    #[error("layer {layer} overflows: it reaches {found}, and {allowed} is allowed")]
    Overflow {
        /// Name of the layer.
        layer: String,
        /// Largest magnitude, as an integer.
        found: u64,
        /// Largest magnitude allowed.
        allowed: u64,
    },
    /// A prepared model file.
    #[error("not a usable prepared model: {0}")]
    Prepared(String),
    /// A manifest, possibly from a peer.
    #[error("not a usable manifest: {0}")]
    Manifest(String),
    /// Input of another shape than the model's.
    #[error("the model takes {expected} numbers, found {found}")]
    Input {
        /// Elements of the input.
        expected: usize,
        /// Elements given.
        found: usize,
    },
    /// The engine failed.
    #[error(transparent)]
    Protocol(#[from] sharelens_protocol::Error),
}

fn list(nodes: &[Unsupported]) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Result of anything to do with models.
pub type Result<T, E = Error> = std::result::Result<T, E>;
