//! Protocols that run side by side over one channel and share its rounds.
//!
//! What does not depend on each other's results need not wait for each other's messages: each protocol gets a
//! [`Lane`], sends when it can and waits for its own steps only, while [`drive`] alone reads the channel and hands
//! each message to whoever waits for its step. A message that nobody waits for is refused.
//!
//! The next message is only looked at once every lane waits. The peer's lanes send in the order of what they were
//! sent, hence the order of all messages follows from the program, neither from time nor from values, and what
//! comes next is always due somewhere.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::step::Step;

/// A [`Channel`] of one protocol among several; a clone is another one's.
#[derive(Clone, Default)]
pub struct Lane(Rc<RefCell<State>>);

#[derive(Default)]
struct State {
    outbox: VecDeque<(Step, Vec<u8>)>,
    due: BTreeMap<Step, Due>,
    /// Whether a lane could go on without a message.
    runnable: bool,
}

/// A message that a lane waits for.
struct Due {
    len: usize,
    waker: Waker,
    arrived: Option<Vec<u8>>,
}

impl Channel for Lane {
    /// Other lanes go on only after `bytes` are on their way, so that they travel meanwhile.
    async fn send(&mut self, step: Step, bytes: Vec<u8>) -> Result<()> {
        self.0.borrow_mut().outbox.push_back((step, bytes));
        let mut passed_on = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut passed_on, true) {
                return Poll::Ready(Ok(()));
            }
            self.0.borrow_mut().runnable = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    async fn next(&mut self, _: Step) -> Result<(Step, usize)> {
        Err(Error::Config("a lane knows its own messages alone".into()))
    }

    async fn recv(&mut self, step: Step, len: usize) -> Result<Vec<u8>> {
        let mut waits = false;
        poll_fn(|cx| {
            let due = &mut self.0.borrow_mut().due;
            if !waits && due.contains_key(&step) {
                let reason = format!("{step} is awaited twice");
                return Poll::Ready(Err(Error::Config(reason)));
            }
            waits = true;
            let entry =
                due.entry(step).or_insert_with(|| Due { len, waker: cx.waker().clone(), arrived: None });
            match entry.arrived.take() {
                Some(bytes) => {
                    due.remove(&step);
                    Poll::Ready(Ok(bytes))
                }
                None => {
                    entry.waker.clone_from(cx.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// Runs `work`, whose lanes are clones of the one it gets, over `channel`.
///
/// # Errors
/// As `work` and the channel; [`Error::Peer`] on a message that is not due.
pub async fn drive<C: Channel, T>(channel: &mut C, work: impl AsyncFnOnce(Lane) -> Result<T>) -> Result<T> {
    let lane = Lane::default();
    let state = lane.0.clone();
    let mut work = pin!(work(lane));
    loop {
        let done = futures::poll!(work.as_mut());
        if let Poll::Ready(Err(e)) = done {
            return Err(e);
        }
        loop {
            let message = state.borrow_mut().outbox.pop_front();
            let Some((step, bytes)) = message else { break };
            channel.send(step, bytes).await?;
        }
        if let Poll::Ready(out) = done {
            return out;
        }
        if std::mem::take(&mut state.borrow_mut().runnable) {
            continue;
        }
        let first = state.borrow().due.keys().next().copied();
        let Some(first) = first else {
            return Err(Error::Config("lanes wait for each other".into()));
        };
        let (next, _) = channel.next(first).await?;
        // What is not due is refused in the name of what is.
        let (step, len) = {
            let due = &state.borrow().due;
            due.get(&next).map_or((first, due[&first].len), |d| (next, d.len))
        };
        let bytes = channel.recv(step, len).await?;
        let mut state = state.borrow_mut();
        let due = state.due.get_mut(&step).expect("still due: lanes did not run");
        due.arrived = Some(bytes);
        due.waker.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::future::{join, try_join, try_join_all};

    use super::*;
    use crate::channel::Memory;

    const AT: Step = Step::layer(1);

    /// Exchanges `count` messages of `len` bytes, one after the other, each an answer to the one before.
    async fn exchanges(mut lane: Lane, at: Step, count: u16, len: usize) -> Result<u8> {
        let mut sum = 1u8;
        for i in 0..count {
            lane.send(at.message(i), vec![sum; len]).await?;
            let got = lane.recv(at.message(i), len).await?;
            sum = sum.wrapping_add(got[0]);
        }
        Ok(sum)
    }

    /// Keeps the order of what is sent.
    struct Order {
        inner: Memory,
        sent: Vec<Step>,
    }

    impl Channel for Order {
        async fn send(&mut self, step: Step, bytes: Vec<u8>) -> Result<()> {
            self.sent.push(step);
            self.inner.send(step, bytes).await
        }
        async fn next(&mut self, due: Step) -> Result<(Step, usize)> {
            self.inner.next(due).await
        }
        async fn recv(&mut self, step: Step, len: usize) -> Result<Vec<u8>> {
            self.inner.recv(step, len).await
        }
    }

    #[test]
    fn lanes_take_turns_in_the_same_order_on_both_sides() {
        let (a, b) = Memory::pair("a", "b");
        let mut ends = [a, b].map(|inner| Order { inner, sent: Vec::new() });
        let side = async |end: &mut Order| {
            drive(end, async |lane| {
                let lanes = [(1, 3, 5), (2, 1, 1000), (3, 4, 1)];
                try_join_all(lanes.map(|(call, n, len)| exchanges(lane.clone(), AT.call(call), n, len))).await
            })
            .await
        };
        let [a, b] = &mut ends;
        let (x, y) = block_on(try_join(side(a), side(b))).unwrap();
        assert_eq!(x, y);
        assert_eq!(x, [8, 2, 16], "what is sent doubles with every exchange");
        let of = |call: u16, message| AT.call(call).message(message);
        // A message of every lane before any lane's second one.
        let order = [(1, 0), (2, 0), (3, 0), (1, 1), (3, 1), (1, 2), (3, 2), (3, 3)].map(|(c, m)| of(c, m));
        assert_eq!(ends[0].sent, order);
        assert_eq!(ends[1].sent, order);
    }

    #[test]
    fn a_lane_may_start_others() {
        let (mut a, mut b) = Memory::pair("a", "b");
        let side = async |end: &mut Memory| {
            drive(end, async |lane| {
                let first = exchanges(lane.clone(), AT.call(1), 2, 7);
                let both = join(exchanges(lane.clone(), AT.call(2), 5, 3), async {
                    try_join(first, exchanges(lane.clone(), AT.call(3), 1, 2)).await
                });
                let (x, y) = both.await;
                Ok((x?, y?))
            })
            .await
        };
        let (x, y) = block_on(try_join(side(&mut a), side(&mut b))).unwrap();
        assert_eq!(x, y);
        assert_eq!(x, (32, (4, 2)));
    }

    /// What driving two lanes says that wait for three bytes at calls 1 and 2, if the peer sends this.
    fn refused(messages: &[(Step, usize)]) -> Error {
        let (mut own, mut peer) = Memory::pair("own", "peer");
        block_on(async {
            for &(step, len) in messages {
                peer.send(step, vec![0; len]).await.unwrap();
            }
            drive(&mut own, async |lane| {
                let [mut a, mut b] = [lane.clone(), lane];
                try_join(a.recv(AT.call(1), 3), b.recv(AT.call(2), 3)).await
            })
            .await
            .expect_err("something is wrong with it")
        })
    }

    #[test]
    fn only_due_messages_are_taken() {
        let due = (AT.call(2), 3);
        for bad in [(AT.call(3), 3), (AT.call(1), 2), (AT.call(1), 4), (AT.call(1).message(1), 3), due] {
            assert!(matches!(refused(&[due, bad]), Error::Peer { .. }), "{bad:?}");
        }
        assert!(matches!(refused(&[(AT.call(2), 1 << 20)]), Error::Peer { .. }));
    }

    #[test]
    fn mistakes_end_in_errors() {
        let (mut own, peer) = Memory::pair("own", "peer");
        let twice = drive(&mut own, async |lane| {
            let [mut a, mut b] = [lane.clone(), lane];
            try_join(a.recv(AT, 1), b.recv(AT, 1)).await
        });
        assert!(matches!(block_on(twice), Err(Error::Config(_))));
        let idle = drive(&mut own, async |_| std::future::pending::<Result<()>>().await);
        assert!(matches!(block_on(idle), Err(Error::Config(_))));
        drop(peer);
        let gone = drive(&mut own, async |mut lane| lane.recv(AT, 1).await);
        assert!(matches!(block_on(gone), Err(Error::Link { .. })));
    }
}
