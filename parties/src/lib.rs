//! ShareLens as a library: processes, transport, configuration.
//!
//! Three nodes (two computing servers and a helper) and short-lived clients talk QUIC to each other. Every
//! process has one key; who may do what follows from the key's hash, its pin.
#![forbid(unsafe_code)]

pub mod client;
pub mod codec;
pub mod config;
pub mod control;
pub mod engine;
pub mod enrolment;
pub mod error;
pub mod identity;
pub mod local;
pub mod node;
pub mod outcome;
pub mod report;
pub mod runner;
pub mod storage;
pub mod text;
mod tls;
pub mod transport;

pub use client::Client;
pub use config::{Cluster, NodeConfig, Role};
pub use error::{Code, Error, Result};
pub use identity::{Identity, Pin};
pub use local::LocalCluster;
pub use node::Node;
pub use outcome::Outcome;
pub use report::{CostReport, PlanReport};
