//! The protocol's channel over one QUIC stream.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use sharelens_protocol::channel::{HEADER_BYTES, MAX_MESSAGE_BYTES, check_header, header, read_header};
use sharelens_protocol::secret::Secret;
use sharelens_protocol::{Channel, Error as ProtocolError, Step, buffer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::frame::{read_failed, write_error};
use crate::error::{Code, Error, Result};

/// Large messages are handed to QUIC in slices, so that a reset takes effect between them.
const SLICE: usize = 1 << 20;

/// The end of a session, known to all its parts. The first reason stays.
#[derive(Clone, Debug)]
pub struct Ended(Arc<watch::Sender<Option<Error>>>);

impl Default for Ended {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Ended {
    /// Ends the session: whatever waits in it wakes up with an error.
    pub fn end(&self, reason: Error) {
        self.0.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                *slot = Some(reason);
            }
            first
        });
    }

    /// Why the session ended, if it did.
    pub fn reason(&self) -> Option<Error> {
        self.0.borrow().clone()
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Error {
        let mut watch = self.0.subscribe();
        loop {
            if let Some(e) = watch.borrow_and_update().clone() {
                return e;
            }
            if watch.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// How much a channel may queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Without limit: between the servers, where each side sends what the other one needs next.
    Unbounded,
    /// At most `bytes`, then senders wait for room: from the helper, which runs ahead and may rest while an
    /// image is awaited, so `wait` is about as long as a session.
    Bounded {
        /// Bytes queued.
        bytes: usize,
        /// Longest wait.
        wait: Duration,
    },
}

/// Bytes that went over a channel, headers included.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<(AtomicU64, AtomicU64)>);

impl Traffic {
    /// Bytes queued for the peer.
    pub fn sent(&self) -> u64 {
        self.0.0.load(Ordering::Relaxed)
    }

    /// Bytes received from the peer.
    pub fn received(&self) -> u64 {
        self.0.1.load(Ordering::Relaxed)
    }

    pub(crate) fn add_sent(&self, bytes: usize) {
        self.0.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, bytes: usize) {
        self.0.1.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A [`Channel`] over a QUIC stream. Dropped before [`StreamChannel::close`], it is reset, so that the peer
/// fails at once. Its futures need tokio's timers: run them with [`tokio::runtime::Handle::block_on`] on a
/// thread of their own.
pub struct StreamChannel {
    peer: String,
    recv: RecvStream,
    timeout: Duration,
    ended: Ended,
    traffic: Traffic,
    queue: mpsc::UnboundedSender<Item>,
    room: Option<Room>,
    failure: Arc<OnceLock<Error>>,
    abort: Option<oneshot::Sender<Code>>,
    /// Header of the next message, if it was read.
    head: Option<[u8; HEADER_BYTES]>,
    peer_tells: bool,
}

struct Room {
    semaphore: Arc<Semaphore>,
    kib: usize,
    wait: Duration,
}

enum Item {
    Message { header: [u8; HEADER_BYTES], body: Bytes, _room: Option<OwnedSemaphorePermit> },
    Finish(oneshot::Sender<Result<()>>),
}

impl StreamChannel {
    pub(crate) fn new(
        peer: String,
        send: SendStream,
        recv: RecvStream,
        timeout: Duration,
        ended: Ended,
        sending: Sending,
        traffic: Traffic,
    ) -> Self {
        let (queue, items) = mpsc::unbounded_channel();
        let (abort, aborted) = oneshot::channel();
        let failure = Arc::new(OnceLock::new());
        let room = match sending {
            Sending::Unbounded => None,
            Sending::Bounded { bytes, wait } => {
                let kib = (bytes >> 10).clamp(1, u32::MAX as usize >> 10);
                Some(Room { semaphore: Arc::new(Semaphore::new(kib)), kib, wait })
            }
        };
        let writer = Writer {
            peer: peer.clone(),
            failure: failure.clone(),
            room: room.as_ref().map(|room| room.semaphore.clone()),
        };
        tokio::spawn(writer.run(send, items, aborted));
        Self {
            peer,
            recv,
            timeout,
            ended,
            traffic,
            queue,
            room,
            failure,
            abort: Some(abort),
            peer_tells: false,
            head: None,
        }
    }

    /// For a peer that tells the client itself why it leaves. When it does, the session ended with its code, and
    /// is not a link that failed: of two servers the client believes the one that knows more.
    pub fn peer_tells(mut self) -> Self {
        self.peer_tells = true;
        self
    }

    /// Sends what is queued, ends the stream, and waits until the peer has it all and has closed its side too.
    ///
    /// # Errors
    /// [`Error::Malformed`] if the peer sent more than was received; [`Error::Link`] or [`Error::Timeout`] if
    /// the peer may lack the end.
    pub async fn close(mut self) -> Result<()> {
        let (done, finished) = oneshot::channel();
        let gone = Error::Link { peer: self.peer.clone(), reason: "the stream is closed".into() };
        let gone = |channel: &Self| channel.failure.get().cloned().unwrap_or(gone);
        if self.queue.send(Item::Finish(done)).is_err() {
            return Err(gone(&self));
        }
        let timeout = self.timeout;
        let both = async {
            let mut extra = [0];
            match self.recv.read(&mut extra).await {
                Ok(None) => {}
                Ok(Some(_)) => {
                    return Err(Error::Malformed {
                        peer: self.peer.clone(),
                        expected: "the end of the stream".into(),
                        found: "more bytes".into(),
                    });
                }
                Err(e) => return Err(read_failed(&self.peer, e)),
            }
            finished.await.unwrap_or_else(|_| Err(gone(&self)))
        };
        let outcome = tokio::time::timeout(timeout, both).await.unwrap_or_else(|_| {
            let what = "end of the stream".into();
            Err(Error::Timeout { peer: self.peer.clone(), what, seconds: self.timeout.as_secs() })
        });
        if outcome.is_ok() {
            self.abort = None;
        }
        outcome
    }

    /// The protocol's view of a transport error.
    fn failed(&self, at: Step, due: &str, e: Error) -> ProtocolError {
        if self.peer_tells && matches!(e, Error::Refused { .. }) {
            self.ended.end(e.clone());
        }
        match e {
            Error::Link { peer, reason } => ProtocolError::Link { peer, reason },
            Error::Refused { peer, text, .. } => ProtocolError::Link { peer, reason: text },
            Error::Timeout { peer, seconds, .. } => ProtocolError::Timeout { peer, step: at, seconds },
            Error::Malformed { found, .. } => ProtocolError::Peer { step: at, expected: due.into(), found },
            other => other.to_protocol(),
        }
    }

    /// The header of the next message.
    async fn head(&mut self, due: Step) -> Result<[u8; HEADER_BYTES], ProtocolError> {
        if let Some(head) = self.head {
            return Ok(head);
        }
        if let Some(reason) = self.ended.reason() {
            return Err(reason.to_protocol());
        }
        let mut head = [0; HEADER_BYTES];
        let read = self.read(&mut head).await;
        read.map_err(|e| self.failed(due, "a message", e))?;
        self.head = Some(head);
        Ok(head)
    }

    /// Reads until `bytes` is full; each part must come within the timeout.
    async fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        let ended = self.ended.clone();
        let mut filled = 0;
        while filled < bytes.len() {
            let read = tokio::select! {
                biased;
                read = tokio::time::timeout(self.timeout, self.recv.read(&mut bytes[filled..])) => read,
                reason = ended.wait() => return Err(Error::Ended(reason.to_string())),
            };
            match read {
                Ok(Ok(Some(n))) => filled += n,
                Ok(Ok(None)) => {
                    return Err(Error::Malformed {
                        peer: self.peer.clone(),
                        expected: String::new(),
                        found: "the end of the stream".into(),
                    });
                }
                Ok(Err(e)) => return Err(read_failed(&self.peer, e)),
                Err(_) => {
                    return Err(Error::Timeout {
                        peer: self.peer.clone(),
                        what: String::new(),
                        seconds: self.timeout.as_secs(),
                    });
                }
            }
        }
        Ok(())
    }
}

impl Channel for StreamChannel {
    async fn send(&mut self, step: Step, bytes: Vec<u8>) -> Result<(), ProtocolError> {
        if let Some(reason) = self.ended.reason() {
            return Err(reason.to_protocol());
        }
        if bytes.len() > MAX_MESSAGE_BYTES {
            return Err(ProtocolError::Config(format!("a message of {} bytes at {step}", bytes.len())));
        }
        let due = format!("room for {step}");
        let gone = |channel: &Self| {
            let failure = channel.failure.get().cloned().unwrap_or_else(|| Error::Link {
                peer: channel.peer.clone(),
                reason: "the stream is closed".into(),
            });
            channel.failed(step, &due, failure)
        };
        let total = bytes.len() + HEADER_BYTES;
        let permit = match &self.room {
            None => None,
            Some(room) => {
                let need = total.div_ceil(1024).min(room.kib) as u32;
                let acquire = room.semaphore.clone().acquire_many_owned(need);
                let acquired = tokio::select! {
                    acquired = tokio::time::timeout(room.wait, acquire) => acquired,
                    reason = self.ended.wait() => return Err(reason.to_protocol()),
                };
                match acquired {
                    Ok(Ok(permit)) => Some(permit),
                    Ok(Err(_)) => return Err(gone(self)),
                    Err(_) => {
                        let seconds = room.wait.as_secs();
                        return Err(ProtocolError::Timeout { peer: self.peer.clone(), step, seconds });
                    }
                }
            }
        };
        let item = Item::Message {
            header: header(step, bytes.len()),
            body: Bytes::from_owner(Secret::new(bytes)),
            _room: permit,
        };
        self.queue.send(item).map_err(|_| gone(self))?;
        self.traffic.add_sent(total);
        Ok(())
    }

    async fn next(&mut self, due: Step) -> Result<(Step, usize), ProtocolError> {
        read_header(&self.head(due).await?, due)
    }

    async fn recv(&mut self, step: Step, len: usize) -> Result<Vec<u8>, ProtocolError> {
        if let Some(reason) = self.ended.reason() {
            return Err(reason.to_protocol());
        }
        let head = self.head(step).await?;
        check_header(&head, step, len)?;
        self.head = None;
        let mut bytes = buffer::zeroed(len);
        let due = || format!("a message of {len} bytes");
        self.read(&mut bytes).await.map_err(|e| self.failed(step, &due(), e))?;
        self.traffic.add_received(len + HEADER_BYTES);
        Ok(bytes)
    }
}

impl Drop for StreamChannel {
    fn drop(&mut self) {
        if let Some(abort) = self.abort.take() {
            let code = self.ended.reason().map_or(Code::Ended, |e| e.code());
            let _ = abort.send(code);
            let _ = self.recv.stop(code.to_wire().into());
        }
    }
}

impl std::fmt::Debug for StreamChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamChannel({})", self.peer)
    }
}

struct Writer {
    peer: String,
    failure: Arc<OnceLock<Error>>,
    room: Option<Arc<Semaphore>>,
}

impl Writer {
    async fn run(
        self,
        mut send: SendStream,
        mut items: mpsc::UnboundedReceiver<Item>,
        mut aborted: oneshot::Receiver<Code>,
    ) {
        tokio::select! {
            biased;
            // A dropped sender means that the channel was closed in order.
            Ok(code) = &mut aborted => {
                let _ = send.reset(code.to_wire().into());
            }
            outcome = self.write_all(&mut send, &mut items) => {
                if let Err(e) = outcome {
                    let _ = self.failure.set(e);
                    let _ = send.reset(Code::Ended.to_wire().into());
                }
            }
        }
        if let Some(room) = &self.room {
            room.close();
        }
    }

    async fn write_all(
        &self,
        send: &mut SendStream,
        items: &mut mpsc::UnboundedReceiver<Item>,
    ) -> Result<()> {
        let failed = |e| write_error(&self.peer, e);
        while let Some(item) = items.recv().await {
            match item {
                Item::Message { header, mut body, _room } => {
                    let first = body.split_to(body.len().min(SLICE));
                    let mut chunks = [Bytes::copy_from_slice(&header), first];
                    send.write_all_chunks(&mut chunks).await.map_err(failed)?;
                    while !body.is_empty() {
                        let slice = body.split_to(body.len().min(SLICE));
                        send.write_chunk(slice).await.map_err(failed)?;
                    }
                }
                Item::Finish(done) => {
                    let closed = |e: &dyn std::fmt::Display| Error::Link {
                        peer: self.peer.clone(),
                        reason: e.to_string(),
                    };
                    send.finish().map_err(|e| closed(&e))?;
                    let outcome = match send.stopped().await {
                        Ok(None) => Ok(()),
                        Ok(Some(code)) => Err(super::frame::refused(&self.peer, code)),
                        Err(e) => Err(closed(&e)),
                    };
                    let _ = done.send(outcome);
                    return Ok(());
                }
            }
        }
        // The channel is going away without having been closed; `aborted` carries the code, if it still comes.
        std::future::pending().await
    }
}
