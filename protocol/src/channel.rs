//! Moving bytes between two parties of one session.

use std::future::Future;
use std::pin::Pin;

use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::Peekable;

use crate::error::{Error, Result};
use crate::step::Step;

/// Bytes that precede each message on every transport: step (8), payload length (4), magic (4).
pub const HEADER_BYTES: usize = 16;

/// No message may be longer than this many bytes.
pub const MAX_MESSAGE_BYTES: usize = 1 << 31;

/// Ordered, reliable bytes to and from one peer. Confidentiality and authenticity are the transport's duty.
pub trait Channel {
    /// Queues `bytes` as the message of `step`. Returns without waiting for the peer to read, except on a
    /// one-way channel from the helper, where it may wait for room.
    ///
    /// # Errors
    /// [`Error::Link`] when the peer is gone.
    fn send(&mut self, step: Step, bytes: Vec<u8>) -> impl Future<Output = Result<()>>;

    /// Waits for the header of the next message and says its step and length, neither of which is checked. The
    /// message stays where it is. `due` is a step that is awaited, for errors.
    ///
    /// # Errors
    /// [`Error::Link`] or [`Error::Timeout`] when none comes.
    fn next(&mut self, due: Step) -> impl Future<Output = Result<(Step, usize)>>;

    /// Waits for the message of `step`, which must be exactly `len` bytes long.
    ///
    /// # Errors
    /// [`Error::Peer`] on any other message, [`Error::Link`] or [`Error::Timeout`] when none comes.
    fn recv(&mut self, step: Step, len: usize) -> impl Future<Output = Result<Vec<u8>>>;
}

/// The header of a message.
///
/// # Panics
/// If it is longer than [`MAX_MESSAGE_BYTES`], which plans are checked for.
pub fn header(step: Step, len: usize) -> [u8; HEADER_BYTES] {
    assert!(len <= MAX_MESSAGE_BYTES, "plans are checked for their longest message");
    let mut h = [0; HEADER_BYTES];
    h[..8].copy_from_slice(&step.to_bits().to_le_bytes());
    h[8..12].copy_from_slice(&(len as u32).to_le_bytes());
    h[12..].copy_from_slice(b"SLM1");
    h
}

/// Checks a received header against the message that is due.
///
/// # Errors
/// [`Error::Peer`] if step, length or magic differ.
pub fn check_header(header: &[u8; HEADER_BYTES], step: Step, len: usize) -> Result<()> {
    let peer = |expected: String, found: String| Err(Error::Peer { step, expected, found });
    let (found, bytes) = read_header(header, step)?;
    if found != step {
        return peer(step.to_string(), found.to_string());
    }
    if bytes != len {
        return peer(format!("{len} bytes"), format!("{bytes} bytes"));
    }
    Ok(())
}

/// Step and length that a header names. `due` is a step that is awaited.
///
/// # Errors
/// [`Error::Peer`] if it is no header.
pub fn read_header(header: &[u8; HEADER_BYTES], due: Step) -> Result<(Step, usize)> {
    if &header[12..] != b"SLM1" {
        let (expected, found) = ("a message header".into(), "bytes that are none".into());
        return Err(Error::Peer { step: due, expected, found });
    }
    let step = Step::from_bits(u64::from_le_bytes(header[..8].try_into().expect("8 bytes")));
    Ok((step, u32::from_le_bytes(header[8..12].try_into().expect("4 bytes")) as usize))
}

/// A channel within one process.
pub struct Memory {
    peer: String,
    tx: mpsc::UnboundedSender<(Step, Vec<u8>)>,
    rx: Peekable<mpsc::UnboundedReceiver<(Step, Vec<u8>)>>,
}

impl Memory {
    /// The two ends of a channel between the parties called `a` and `b`.
    pub fn pair(a: &str, b: &str) -> (Self, Self) {
        let (to_b, from_a) = mpsc::unbounded();
        let (to_a, from_b) = mpsc::unbounded();
        let end = |peer: &str, tx, rx: mpsc::UnboundedReceiver<_>| Self {
            peer: peer.into(),
            tx,
            rx: rx.peekable(),
        };
        (end(b, to_b, from_b), end(a, to_a, from_a))
    }

    fn gone(&self) -> Error {
        Error::Link { peer: self.peer.clone(), reason: "closed".into() }
    }
}

impl Channel for Memory {
    async fn send(&mut self, step: Step, bytes: Vec<u8>) -> Result<()> {
        self.tx.unbounded_send((step, bytes)).map_err(|_| self.gone())
    }

    async fn next(&mut self, _: Step) -> Result<(Step, usize)> {
        match Pin::new(&mut self.rx).peek().await {
            Some((step, bytes)) => Ok((*step, bytes.len())),
            None => Err(self.gone()),
        }
    }

    async fn recv(&mut self, step: Step, len: usize) -> Result<Vec<u8>> {
        let (found, bytes) = self.rx.next().await.ok_or_else(|| self.gone())?;
        check_header(&header(found, bytes.len()), step, len)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    const AT: Step = Step::layer(1).call(2);

    #[test]
    fn delivers_in_order_and_refuses_what_is_not_due() {
        let (mut a, mut b) = Memory::pair("a", "b");
        block_on(async {
            a.send(AT, vec![1, 2]).await.unwrap();
            a.send(AT.message(1), vec![3]).await.unwrap();
            a.send(AT.message(2), vec![4]).await.unwrap();
            assert_eq!(b.next(AT).await.unwrap(), (AT, 2));
            assert_eq!(b.next(AT).await.unwrap(), (AT, 2), "it is still there");
            assert_eq!(b.recv(AT, 2).await.unwrap(), [1, 2]);
            assert!(matches!(b.recv(AT.message(1), 2).await, Err(Error::Peer { .. })), "wrong length");
            assert!(matches!(b.recv(AT.message(1), 1).await, Err(Error::Peer { .. })), "wrong step");
            drop(a);
            assert!(matches!(b.next(AT).await, Err(Error::Link { .. })));
            assert!(matches!(b.recv(AT, 1).await, Err(Error::Link { .. })));
        });
    }

    #[test]
    fn headers_are_checked() {
        let good = header(AT, 77);
        assert_eq!(check_header(&good, AT, 77), Ok(()));
        assert!(check_header(&good, AT.message(1), 77).is_err());
        assert!(check_header(&good, AT, 78).is_err());
        for i in 0..HEADER_BYTES {
            let mut bad = good;
            bad[i] ^= 1;
            assert!(check_header(&bad, AT, 77).is_err(), "byte {i}");
        }
    }
}
