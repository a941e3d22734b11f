//! Bringing together what belongs to one session, and counting sessions.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::control::{SessionId, Work};
use crate::error::{Error, Result};
use crate::transport::ControlStream;

/// What a stream waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The client's request at server 1.
    Online,
    /// Server 1's request for correlations at the helper.
    Deal,
    /// Server 1's request to load a model at the helper.
    Load,
}

/// A stream with the work it announced.
pub type ArrivedStream = (ControlStream, Work);

/// Marker for the rendezvous of streams.
pub struct Arrival;

/// Where two sides of a session meet, in whatever order they come.
pub struct Rendezvous<M: Meeting> {
    limit: usize,
    slots: Mutex<HashMap<M::Key, Slot<M::Item>>>,
}

/// What meets.
pub trait Meeting {
    /// Both sides know it.
    type Key: Clone + Eq + Hash;
    /// What one side brings.
    type Item;
}

impl Meeting for Arrival {
    type Key = (Kind, SessionId);
    type Item = ArrivedStream;
}

enum Slot<T> {
    Offered(Box<T>, oneshot::Sender<()>),
    Wanted(oneshot::Sender<T>),
}

impl<M: Meeting> Rendezvous<M> {
    /// Holds at most `limit` lonely sides.
    pub fn new(limit: usize) -> Self {
        Self { limit, slots: Mutex::new(HashMap::new()) }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<M::Key, Slot<M::Item>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings `item`; returns once it was taken.
    ///
    /// # Errors
    /// The item comes back, with [`Error::Timeout`] if nobody wants it, [`Error::Busy`] if too many wait, or
    /// [`Error::Replay`] if there is one already.
    pub async fn offer(&self, key: M::Key, item: M::Item, wait: Duration) -> Result<(), (M::Item, Error)> {
        let taken = {
            let mut slots = self.slots();
            match slots.remove(&key) {
                Some(Slot::Wanted(to)) => match to.send(item) {
                    Ok(()) => return Ok(()),
                    Err(item) => return Err((item, Error::Ended("its counterpart has left".into()))),
                },
                Some(other) => {
                    slots.insert(key, other);
                    return Err((item, Error::Replay("with two streams".into())));
                }
                None if slots.len() >= self.limit => {
                    return Err((
                        item,
                        Error::Busy {
                            what: "places to wait for the other side of a session",
                            most: self.limit,
                        },
                    ));
                }
                None => {
                    let (tx, taken) = oneshot::channel();
                    slots.insert(key.clone(), Slot::Offered(Box::new(item), tx));
                    taken
                }
            }
        };
        let _guard = Forget { of: self, key: &key, offered: true };
        if tokio::time::timeout(wait, taken).await.is_ok() {
            return Ok(());
        }
        match self.slots().remove(&key) {
            Some(Slot::Offered(item, _)) => {
                let (peer, what) = ("the other side of the session".into(), "request".into());
                Err((*item, Error::Timeout { peer, what, seconds: wait.as_secs() }))
            }
            // Taken at the last moment.
            _ => Ok(()),
        }
    }

    /// Fetches what the other side brings.
    ///
    /// # Errors
    /// [`Error::Timeout`] naming `peer` and `what`, [`Error::Busy`], [`Error::Replay`].
    pub async fn take(&self, key: M::Key, peer: &str, what: &str, wait: Duration) -> Result<M::Item> {
        let item = {
            let mut slots = self.slots();
            match slots.remove(&key) {
                Some(Slot::Offered(item, taken)) => {
                    let _ = taken.send(());
                    return Ok(*item);
                }
                Some(other) => {
                    slots.insert(key, other);
                    return Err(Error::Replay("with two requests".into()));
                }
                None if slots.len() >= self.limit => {
                    return Err(Error::Busy {
                        what: "places to wait for the other side of a session",
                        most: self.limit,
                    });
                }
                None => {
                    let (tx, item) = oneshot::channel();
                    slots.insert(key.clone(), Slot::Wanted(tx));
                    item
                }
            }
        };
        let _guard = Forget { of: self, key: &key, offered: false };
        match tokio::time::timeout(wait, item).await {
            Ok(Ok(item)) => Ok(item),
            _ => Err(Error::Timeout { peer: peer.into(), what: what.into(), seconds: wait.as_secs() }),
        }
    }
}

/// Removes the own slot when a side gives up early, as by cancellation.
struct Forget<'a, M: Meeting> {
    of: &'a Rendezvous<M>,
    key: &'a M::Key,
    offered: bool,
}

impl<M: Meeting> Drop for Forget<'_, M> {
    fn drop(&mut self) {
        let mut slots = self.of.slots();
        if slots.get(self.key).is_some_and(|slot| matches!(slot, Slot::Offered(..)) == self.offered) {
            slots.remove(self.key);
        }
    }
}

/// How many sessions run.
#[derive(Clone)]
pub struct Active(Arc<watch::Sender<usize>>);

impl Default for Active {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }
}

/// One session, until dropped.
pub struct ActiveGuard(Active);

impl Active {
    /// Counts one more.
    pub fn enter(&self) -> ActiveGuard {
        self.0.send_modify(|n| *n += 1);
        ActiveGuard(self.clone())
    }

    /// Waits until none is left.
    pub async fn none(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|n| *n == 0).await;
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.0.send_modify(|n| *n -= 1);
    }
}

/// Starts `work` on a thread of its own, at once; the future waits for it.
///
/// # Errors
/// [`Error::Internal`] if it panics or no thread can be made.
pub fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce(tokio::runtime::Handle) -> T + Send + 'static,
) -> impl Future<Output = Result<T>> + 'static {
    let (tx, rx) = oneshot::channel();
    let handle = tokio::runtime::Handle::current();
    let started = std::thread::Builder::new().name(name.into()).spawn(move || {
        let _ = tx.send(work(handle));
    });
    let name = name.to_string();
    async move {
        started.map_err(|e| Error::Internal(format!("thread {name}: {e}")))?;
        rx.await.map_err(|_| Error::Internal(format!("thread {name} panicked")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbers;
    impl Meeting for Numbers {
        type Key = u8;
        type Item = u32;
    }

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn either_side_may_come_first() {
        let meet = Rendezvous::<Numbers>::new(2);
        let (a, b) = tokio::join!(meet.offer(1, 10, LONG), meet.take(1, "p", "w", LONG));
        assert_eq!((a.is_ok(), b.unwrap()), (true, 10));
        let (b, a) = tokio::join!(meet.take(1, "p", "w", LONG), meet.offer(1, 11, LONG));
        assert_eq!((a.is_ok(), b.unwrap()), (true, 11));
        assert!(meet.slots().is_empty());
    }

    #[tokio::test]
    async fn the_lonely_leave_nothing_behind() {
        let meet = Rendezvous::<Numbers>::new(2);
        assert!(matches!(meet.offer(1, 10, SHORT).await, Err((10, Error::Timeout { .. }))));
        assert!(matches!(meet.take(1, "p", "w", SHORT).await, Err(Error::Timeout { .. })));
        assert!(tokio::time::timeout(SHORT, meet.take(2, "p", "w", LONG)).await.is_err(), "cancelled");
        assert!(meet.slots().is_empty());
    }

    #[tokio::test]
    async fn twice_or_too_many_are_refused() {
        let meet = Rendezvous::<Numbers>::new(1);
        let second = async {
            let twice = meet.offer(1, 11, LONG).await;
            let more = meet.take(2, "p", "w", LONG).await;
            (twice, more, meet.take(1, "p", "w", LONG).await)
        };
        let (first, (twice, more, got)) = tokio::join!(meet.offer(1, 10, LONG), second);
        assert!(first.is_ok());
        assert!(matches!(twice, Err((11, Error::Replay(_)))));
        assert!(matches!(more, Err(Error::Busy { most: 1, .. })));
        assert_eq!(got.unwrap(), 10);
    }

    #[tokio::test]
    async fn a_panicking_thread_is_an_error() {
        assert_eq!(on_thread("fine", |_| 3).await.unwrap(), 3);
        let e = on_thread("bad", |_| -> u8 { std::panic::resume_unwind(Box::new(())) }).await.unwrap_err();
        assert!(e.to_string().contains("bad panicked"), "{e}");
    }
}
