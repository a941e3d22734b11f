//! What the parties of ShareLens compute together: ring arithmetic, shares, correlations, and one file per
//! protocol. Nothing here knows shapes beyond lengths, addresses, clocks or sockets.
#![deny(unsafe_code)]
#![allow(rustdoc::broken_intra_doc_links, reason = "square brackets denote shared values and truth values")]

#[cfg(target_endian = "big")]
compile_error!("words travel as they lie in memory, which is little-endian");

pub mod bilinear;
pub mod bits;
pub mod buffer;
pub mod channel;
pub mod compare;
pub mod convert;
pub mod correlation;
pub mod cost;
pub mod error;
pub mod lanes;
pub mod mul;
pub mod order;
pub mod party;
pub mod prg;
#[cfg(test)]
mod privacy;
pub mod product;
pub mod refresh;
pub mod ring;
pub mod role;
pub mod secret;
pub mod share;
pub mod shuffle;
pub mod sign;
pub mod step;
#[cfg(test)]
mod testing;

pub use channel::Channel;
pub use error::{Error, Result};
pub use party::Party;
pub use role::Server;
pub use share::Share;
pub use step::Step;
