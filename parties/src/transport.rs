//! QUIC between processes: endpoints with pinned keys, control messages, and channels for the protocol.

mod endpoint;
mod frame;
mod reset;
mod stream;

pub use endpoint::{CLIENT_STREAMS, Connection, Endpoint, Incoming};
pub use frame::ControlStream;
pub use stream::{Ended, Sending, StreamChannel, Traffic};
