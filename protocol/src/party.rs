//! One server in one session: what every online protocol is handed.

use crate::channel::Channel;
use crate::cost::Ledger;
use crate::error::{Error, Result};
use crate::ring::{Range, Ring};
use crate::role::Server;
use crate::secret::Secret;
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
    pub async fn exchange(&mut self, step: Step, bytes: Vec<u8>) -> Result<Secret<u8>> {
        let len = bytes.len();
        self.send(step, bytes).await?;
        let received = self.recv(step, len).await?;
        self.ledger.at(step).sent.rounds += 1;
        Ok(received)
    }

    /// One round in which only the peer receives.
    ///
    /// # Errors
    /// As [`Channel`].
    pub async fn give(&mut self, step: Step, bytes: Vec<u8>) -> Result<()> {
        self.send(step, bytes).await?;
        self.ledger.at(step).sent.rounds += 1;
        Ok(())
    }

    /// One round in which only the peer sends: `len` bytes.
    ///
    /// # Errors
    /// As [`Channel`].
    pub async fn take(&mut self, step: Step, len: usize) -> Result<Secret<u8>> {
        let received = self.recv(step, len).await?;
        self.ledger.at(step).sent.rounds += 1;
        Ok(received)
    }

    async fn send(&mut self, step: Step, bytes: Vec<u8>) -> Result<()> {
        let len = bytes.len();
        self.channel.send(step, bytes).await?;
        let entry = self.ledger.at(step);
        entry.sent.messages += 1;
        entry.sent.bytes += len as u64;
        Ok(())
    }

    async fn recv(&mut self, step: Step, len: usize) -> Result<Secret<u8>> {
        let received = Secret::new(self.channel.recv(step, len).await?);
        if received.len() != len {
            let found = format!("{} bytes", received.len());
            return Err(Error::Peer { step, expected: format!("{len} bytes"), found });
        }
        self.ledger.at(step).received_bytes += len as u64;
        Ok(received)
    }

    /// Opens a vector that is masked: sends the own share, adds the other's. One round.
    ///
    /// # Errors
    /// As [`Channel`], and if the peer's words are not canonical.
    pub async fn open(
        &mut self,
        step: Step,
        range: Range,
        share: impl Into<Secret<R::Word>>,
    ) -> Result<Secret<R::Word>> {
        let mut share = share.into();
        let received = self.exchange(step, share::to_bytes(&share)).await?;
        let other = share::from_message(self.ring, range, step, received)?;
        self.ring.add(range, &mut share, &other);
        Ok(share)
    }

    /// Opens a vector that is masked to a caller who adds: sends the own share, gives the other's. One round.
    ///
    /// # Errors
    /// As [`Party::open`].
    pub async fn swap(
        &mut self,
        step: Step,
        range: Range,
        share: Secret<R::Word>,
    ) -> Result<Secret<R::Word>> {
        let received = self.exchange(step, share::into_bytes(share)).await?;
        share::from_message(self.ring, range, step, received)
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::channel::Memory;
    use crate::ring::{Moduli, Rns};
    use crate::testing::AT;

    /// What opening says if the peer sends `bytes` at `step`.
    fn opened(step: Step, bytes: Vec<u8>) -> Result<Secret<u8>> {
        let ring = Rns::new(Moduli::usual(2, 1)?)?;
        let (mut own, mut peer) = Memory::pair("own", "peer");
        let mut ledger = Ledger::default();
        let mut party = Party { ring: &ring, role: Server::Server0, channel: &mut own, ledger: &mut ledger };
        block_on(async {
            peer.send(step, bytes).await?;
            party.open(AT, Range::Full, vec![1; 6]).await
        })
    }

    #[test]
    fn only_the_due_message_is_opened() {
        assert_eq!(opened(AT, vec![2; 6]).unwrap()[..], [3; 6]);
        for (step, bytes) in [
            (AT, vec![2; 5]),
            (AT, vec![2; 7]),
            (AT, vec![]),
            (AT.message(1), vec![2; 6]),
            // 255 is no residue modulo 255, nor 253 modulo 253.
            (AT, vec![255, 2, 2, 2, 2, 2]),
            (AT, vec![2, 2, 253, 2, 2, 2]),
        ] {
            assert!(matches!(opened(step, bytes.clone()), Err(Error::Peer { .. })), "{step} {bytes:?}");
        }
    }
}
