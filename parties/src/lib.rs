//! ShareLens as a library: processes, transport, configuration.
//!
//! Three nodes (two computing servers and a helper) and short-lived clients talk QUIC to each other. Every
//! process has one key; who may do what follows from the key's hash, its pin.
//!
//! A program that has a picture looked at:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use sharelens::client::Patience;
//! use sharelens::config::LinkConfig;
//! use sharelens::control::Start;
//! use sharelens::{Client, Cluster, CostReport, Identity, Outcome, Role, engine};
//! use sharelens_models::image::Picture;
//!
//! # async fn look() -> Result<(), Box<dyn std::error::Error>> {
//! let cluster = Cluster::load("cluster.toml".as_ref())?;
//! // A key that the operators have enrolled: `sharelens client init`, `sharelens node allow`.
//! let identity = Arc::new(Identity::load("client.key".as_ref())?);
//! let servers = [Role::Server0, Role::Server1];
//! let client =
//!     Client::connect(&cluster, &servers, identity, &LinkConfig::default(), Patience::default()).await?;
//!
//! let session = client.begin("cells", None, Start::AtOnce).await?;
//! let manifest = session.manifest()?;
//! let preprocess = manifest.config.preprocess.as_ref().ok_or("a model of pictures")?;
//! let input = Picture::load("smear.jpg".as_ref())?.input(preprocess)?;
//! let inference = session.run(engine::share_image(&manifest, &input)?, |_| {}).await?;
//!
//! let [a, b] = &inference.outputs;
//! let opened = engine::open_result(&manifest, [a, b])?;
//! if !opened.ranges.in_range() {
//!     return Err("the picture is unlike those that the model was prepared with".into());
//! }
//! let outcome = Outcome::new(&manifest, &opened.outputs)?;
//! match &outcome {
//!     Outcome::Detection(found) => println!("{} cells", found.boxes.len()),
//!     other => println!("{other}"),
//! }
//! outcome.warnings().iter().for_each(|warning| eprintln!("{warning}"));
//! println!("{}", CostReport::new(&manifest, &inference, Start::AtOnce));
//! client.close().await;
//! # Ok(())
//! # }
//! ```
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
