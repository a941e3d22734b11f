//! What the parties of ShareLens compute together: ring arithmetic, shares, correlations, and one file per
//! protocol. Nothing here knows shapes beyond lengths, addresses, clocks or sockets.
#![deny(unsafe_code)]

pub mod channel;
pub mod cost;
pub mod error;
pub mod ring;
pub mod role;
pub mod step;

pub use channel::Channel;
pub use error::{Error, Result};
pub use role::Server;
pub use step::Step;
