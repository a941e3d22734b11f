//! One server in one session: what every online protocol is handed.

use crate::channel::Channel;
use crate::cost::Ledger;
use crate::error::Result;
use crate::ring::{Range, Ring};
use crate::role::Server;
use crate::share;
use crate::step::Step;

/// Ring, role, link and ledger of one server.
pub struct Party<'a, R, C> {
    /// The arithmetic.
    pub ring: &'a R,
    /// Which server this is.
    pub role: Server,
    /// The link to the other.
    pub channel: &'a mut C,
    /// What is counted.
    pub ledger: &'a mut Ledger,
}

impl<R: Ring, C: Channel> Party<'_, R, C> {
    /// One round: sends `bytes` and receives as many.
    ///
    /// # Errors
    /// As [`Channel`].
    pub async fn exchange(&mut self, step: Step, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let len = bytes.len();
        self.channel.send(step, bytes).await?;
        let received = self.channel.recv(step, len).await?;
        let entry = self.ledger.at(step);
        entry.sent.rounds += 1;
        entry.sent.messages += 1;
        entry.sent.bytes += len as u64;
        entry.received_bytes += len as u64;
        Ok(received)
    }

    /// Opens a vector that is masked: sends the own share, adds the other's. One round.
    ///
    /// # Errors
    /// As [`Channel`], and if the peer's words are not canonical.
    pub async fn open(&mut self, step: Step, range: Range, mut share: Vec<R::Word>) -> Result<Vec<R::Word>> {
        let received = self.exchange(step, share::to_bytes(&share)).await?;
        let other = share::from_bytes(self.ring, range, step, &received)?;
        self.ring.add(range, &mut share, &other);
        Ok(share)
    }
}
