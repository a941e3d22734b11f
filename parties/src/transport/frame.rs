//! Control messages and announced bulk bytes on one stream.

use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadError, ReadExactError, RecvStream, SendStream, WriteError};

use super::endpoint::{lost, printable};
use super::stream::{Ended, Sending, StreamChannel, Traffic};
use crate::codec::{self, Bad, FRAME_HEADER_BYTES, Message};
use crate::control::Refusal;
use crate::error::{Code, Error, Result};

/// Bulk bytes are read in parts of at most this size, so that memory follows what really came.
const BULK_PART: usize = 1 << 20;

/// A stream on which both sides take turns. Dropped before [`ControlStream::finish`] or
/// [`ControlStream::refuse`], it is reset, and the peer learns so.
#[derive(Debug)]
pub struct ControlStream {
    peer: String,
    streams: Option<(SendStream, RecvStream)>,
    timeout: Duration,
    /// A byte that was read before it was due, or why there is none.
    ahead: Option<Result<u8>>,
}

impl ControlStream {
    pub(crate) fn new(peer: String, send: SendStream, recv: RecvStream, timeout: Duration) -> Self {
        Self { peer, streams: Some((send, recv)), timeout, ahead: None }
    }

    /// What errors call the peer.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// The longest wait for one message from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// [`Error::Link`], [`Error::Timeout`]; [`Error::Internal`] for a message that is too long.
    pub async fn send<M: Message>(&mut self, message: &M) -> Result<()> {
        let frame = codec::encode(message).map_err(|Bad(e)| Error::Internal(e))?;
        self.send_bulk(frame.into()).await
    }

    /// Sends bytes whose length the peer knows from a message before.
    ///
    /// # Errors
    /// [`Error::Link`], or [`Error::Timeout`] if the peer does not read.
    pub async fn send_bulk(&mut self, bytes: Bytes) -> Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(BULK_PART));
            let (send, _) = self.streams.as_mut().ok_or_else(taken)?;
            match tokio::time::timeout(self.timeout, send.write_chunk(part)).await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => return Err(self.explain(write_error(&self.peer, e)).await),
                Err(_) => return Err(self.late("room for a message")),
            }
        }
        Ok(())
    }

    /// Waits for the message `M`.
    ///
    /// # Errors
    /// [`Error::Refused`] if the peer sent a refusal instead, [`Error::Malformed`] for anything else,
    /// [`Error::Link`] or [`Error::Timeout`] if nothing comes.
    pub async fn recv<M: Message>(&mut self) -> Result<M> {
        let mut header = [0; FRAME_HEADER_BYTES];
        self.read(&mut header, M::NAME).await?;
        let malformed =
            |peer: &str, found| Error::Malformed { peer: peer.into(), expected: M::NAME.into(), found };
        let (kind, len) = codec::decode_header(&header).map_err(|Bad(e)| malformed(&self.peer, e))?;
        if kind == Refusal::KIND && kind != M::KIND {
            if len > Refusal::MAX {
                return Err(malformed(&self.peer, format!("a refusal of {len} bytes")));
            }
            let mut body = vec![0; len];
            self.read(&mut body, Refusal::NAME).await?;
            let refusal: Refusal = codec::decode_body(&body).map_err(|Bad(e)| malformed(&self.peer, e))?;
            return Err(self.told(refusal));
        }
        if kind != M::KIND {
            return Err(malformed(&self.peer, format!("a message of kind {kind}")));
        }
        if len > M::MAX {
            let found = format!("a {} of {len} bytes, the limit is {}", M::NAME, M::MAX);
            return Err(malformed(&self.peer, found));
        }
        let body = self.read_parts(len, M::NAME).await?;
        codec::decode_body(&body).map_err(|Bad(e)| malformed(&self.peer, e))
    }

    /// Waits for exactly `len` bytes. The caller has checked `len` against its limits.
    ///
    /// # Errors
    /// [`Error::Link`] or [`Error::Timeout`].
    pub async fn recv_bulk(&mut self, len: usize, what: &str) -> Result<Vec<u8>> {
        self.read_parts(len, what).await
    }

    /// Tells the peer why nothing more will come, and ends the stream.
    pub async fn refuse(mut self, error: &Error) {
        let text: String = error.for_peer().chars().take(500).collect();
        let refusal = Refusal { code: error.code().to_wire(), text };
        if let Ok(frame) = codec::encode(&refusal) {
            let Some((mut send, mut recv)) = self.streams.take() else { return };
            let _ = recv.stop(error.code().to_wire().into());
            let write = async {
                send.write_all(&frame).await.ok()?;
                send.finish().ok()?;
                send.stopped().await.ok()
            };
            let _ = tokio::time::timeout(Duration::from_secs(2), write).await;
        }
    }

    /// Waits until the peer says something or goes away. Pending for as long as it is silent, also after it has ended its side
    /// in order. May be dropped at any time: what was said is still there to be received.
    pub async fn speaks(&mut self) {
        let Some((_, recv)) = self.streams.as_mut() else { return };
        if self.ahead.is_some() {
            return;
        }
        let mut byte = [0];
        match recv.read(&mut byte).await {
            Ok(Some(_)) => self.ahead = Some(Ok(byte[0])),
            Ok(None) => std::future::pending().await,
            Err(e) => self.ahead = Some(Err(read_failed(&self.peer, e))),
        }
    }

    /// What the peer says where nothing is due but a refusal.
    pub async fn out_of_turn(&mut self) -> Error {
        self.recv().await.map_or_else(|e| e, |refusal| self.told(refusal))
    }

    /// Waits until the peer resets the stream or goes away; bytes that it sent stay unread. Pending for as long
    /// as it is there, also after it has sent everything.
    pub async fn gone(&mut self) -> Error {
        let Some((_, recv)) = self.streams.as_mut() else { return taken() };
        match recv.received_reset().await {
            Ok(Some(code)) => refused(&self.peer, code),
            Err(quinn::ResetError::ConnectionLost(e)) => lost(&self.peer, &e),
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }

    /// Ends the sending side in order and waits until the peer has everything.
    ///
    /// # Errors
    /// [`Error::Link`] if the peer went away before.
    pub async fn finish(mut self) -> Result<()> {
        let (mut send, _recv) = self.streams.take().ok_or_else(taken)?;
        let closed =
            |e: &dyn std::fmt::Display| Error::Link { peer: self.peer.clone(), reason: e.to_string() };
        send.finish().map_err(|e| closed(&e))?;
        match tokio::time::timeout(self.timeout, send.stopped()).await {
            // Code 0: the peer has finished, too, and was faster.
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(code))) if code == Code::Unknown.to_wire().into() => Ok(()),
            Ok(Ok(Some(code))) => Err(write_error(&self.peer, WriteError::Stopped(code))),
            Ok(Err(e)) => Err(closed(&e)),
            Err(_) => Err(self.late("acknowledgement")),
        }
    }

    /// Ends both directions at once with a code.
    pub fn reset(mut self, code: Code) {
        self.reset_with(code);
    }

    /// Goes on as a channel of the protocol.
    ///
    /// # Errors
    /// Never in practice; [`Error::Internal`] if the stream is gone.
    pub fn into_channel(mut self, ended: Ended, sending: Sending, traffic: Traffic) -> Result<StreamChannel> {
        let (send, recv) = self.streams.take().filter(|_| self.ahead.is_none()).ok_or_else(taken)?;
        Ok(StreamChannel::new(self.peer.clone(), send, recv, self.timeout, ended, sending, traffic))
    }

    fn reset_with(&mut self, code: Code) {
        if let Some((mut send, mut recv)) = self.streams.take() {
            let _ = send.reset(code.to_wire().into());
            let _ = recv.stop(code.to_wire().into());
        }
    }

    async fn read_parts(&mut self, len: usize, what: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let start = bytes.len();
            bytes.resize(len.min(start + BULK_PART), 0);
            self.read(&mut bytes[start..], what).await?;
        }
        Ok(bytes)
    }

    async fn read(&mut self, bytes: &mut [u8], what: &str) -> Result<()> {
        let (_, recv) = self.streams.as_mut().ok_or_else(taken)?;
        let mut bytes = bytes;
        if let Some(ahead) = self.ahead.take_if(|_| !bytes.is_empty()) {
            bytes[0] = ahead?;
            bytes = &mut bytes[1..];
        }
        match tokio::time::timeout(self.timeout, recv.read_exact(bytes)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(read_error(&self.peer, what, e)),
            Err(_) => Err(self.late(what)),
        }
    }

    /// A peer that stops reading has usually said why: its refusal is worth more than our failed write.
    async fn explain(&mut self, error: Error) -> Error {
        if !matches!(error, Error::Refused { .. }) {
            return error;
        }
        self.timeout = self.timeout.min(Duration::from_secs(1));
        match Box::pin(self.recv::<Refusal>()).await {
            Ok(refusal) => self.told(refusal),
            Err(_) => error,
        }
    }

    /// A refusal, as an error of ours.
    fn told(&self, refusal: Refusal) -> Error {
        Error::Refused {
            peer: self.peer.clone(),
            code: Code::from_wire(refusal.code.into()),
            text: printable(&refusal.text),
        }
    }

    fn late(&self, what: &str) -> Error {
        Error::Timeout { peer: self.peer.clone(), what: what.into(), seconds: self.timeout.as_secs() }
    }
}

impl Drop for ControlStream {
    fn drop(&mut self) {
        self.reset_with(Code::Ended);
    }
}

fn taken() -> Error {
    Error::Internal("a finished stream was used".into())
}

/// The peer's side of a reset, in words.
pub(crate) fn refused(peer: &str, code: quinn::VarInt) -> Error {
    let code = Code::from_wire(code.into_inner());
    Error::Refused { peer: peer.into(), code, text: format!("its side ended the session with {code}") }
}

pub(crate) fn write_error(peer: &str, e: WriteError) -> Error {
    match e {
        WriteError::Stopped(code) => refused(peer, code),
        WriteError::ConnectionLost(e) => lost(peer, &e),
        other => Error::Link { peer: peer.into(), reason: other.to_string() },
    }
}

pub(crate) fn read_error(peer: &str, what: &str, e: ReadExactError) -> Error {
    match e {
        ReadExactError::FinishedEarly(n) => Error::Malformed {
            peer: peer.into(),
            expected: what.into(),
            found: format!("the end of the stream after {n} bytes"),
        },
        ReadExactError::ReadError(e) => read_failed(peer, e),
    }
}

pub(crate) fn read_failed(peer: &str, e: ReadError) -> Error {
    match e {
        ReadError::Reset(code) => refused(peer, code),
        ReadError::ConnectionLost(e) => lost(peer, &e),
        other => Error::Link { peer: peer.into(), reason: other.to_string() },
    }
}
