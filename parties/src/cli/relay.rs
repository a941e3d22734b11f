//! A UDP relay that delays: what goes to a node, and what comes back, as over a long link.
//!
//! Every sender gets a port of its own towards the node, so that answers find their way. A direction of such a
//! flow is a link of its own: its packets leave one after the other at the link's bandwidth, and arrive half a
//! round trip later. Threads that sleep are more precise than timers of the async runtime.

use std::collections::HashMap;
use std::io::{Error, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sharelens::local::Link;

/// The longest that a relay goes on after its end.
const TICK: Duration = Duration::from_millis(100);
/// What a sleeping thread wakes up late by: the system's timer slack, unless something else runs.
const SLACK: Duration = Duration::from_micros(50);
/// Bytes that one direction holds back; what exceeds that is lost, as in a router.
const HELD: usize = 64 << 20;
/// No datagram is longer.
const DATAGRAM: usize = 1 << 16;
/// Of sockets: a burst of a sender waits here for its turn.
const SOCKET_BUFFER: usize = 8 << 20;

/// One relay, until dropped.
pub struct Relay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Relay {
    /// Starts forwarding to `target`.
    pub fn start(target: SocketAddr, link: Link) -> Result<Self> {
        let front = socket().context("no UDP port for a relay")?;
        let address = front.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        spawn(move || forward(&Arc::new(front), target, link, &stopped));
        Ok(Self { address, stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn socket() -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(TICK))?;
    let options = socket2::SockRef::from(&socket);
    // As much as the system allows; less is no error.
    let _ = options.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = options.set_send_buffer_size(SOCKET_BUFFER);
    Ok(socket)
}

/// From all senders to the target.
fn forward(front: &Arc<UdpSocket>, target: SocketAddr, link: Link, stop: &Arc<AtomicBool>) {
    let mut flows: HashMap<SocketAddr, Delay> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    while !stop.load(Ordering::Relaxed) {
        let Some((len, from)) = received(front.recv_from(&mut buffer)) else { continue };
        let flow = match flows.entry(from) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => match open(front, from, target, link, stop) {
                Ok(flow) => new.insert(flow),
                Err(e) => {
                    tracing::warn!("a relay has no port for {from}: {e}");
                    continue;
                }
            },
        };
        flow.push(&buffer[..len]);
    }
}

/// A flow of its own for `from`; returns the way to the target, the way back runs by itself.
fn open(
    front: &Arc<UdpSocket>,
    from: SocketAddr,
    target: SocketAddr,
    link: Link,
    stop: &Arc<AtomicBool>,
) -> std::io::Result<Delay> {
    let upstream = Arc::new(socket()?);
    upstream.connect(target)?;
    let (there, back) = (upstream.clone(), front.clone());
    let to_target = Delay::start(link, move |packet| there.send(packet));
    let mut to_sender = Delay::start(link, move |packet| back.send_to(packet, from));
    let stop = stop.clone();
    spawn(move || {
        let mut buffer = vec![0; DATAGRAM];
        while !stop.load(Ordering::Relaxed) {
            if let Some(len) = received(upstream.recv(&mut buffer)) {
                to_sender.push(&buffer[..len]);
            }
        }
    });
    Ok(to_target)
}

/// Nothing on a time-out, and when the target is not there yet (which a connected socket reports).
fn received<T>(outcome: Result<T, Error>) -> Option<T> {
    outcome
        .inspect_err(|e| {
            if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused)
            {
                tracing::debug!("a relay: {e}");
                sleep(TICK);
            }
        })
        .ok()
}

/// One direction of a flow.
struct Delay {
    queue: Sender<(Instant, Vec<u8>)>,
    held: Arc<AtomicUsize>,
    link: Link,
    /// When its link is free again.
    free: Instant,
}

impl Delay {
    fn start(link: Link, send: impl Fn(&[u8]) -> std::io::Result<usize> + Send + 'static) -> Self {
        let (queue, due): (_, Receiver<(Instant, Vec<u8>)>) = mpsc::channel();
        let held = Arc::new(AtomicUsize::new(0));
        let left = held.clone();
        spawn(move || {
            for (at, packet) in due {
                sleep(at.saturating_duration_since(Instant::now() + SLACK));
                left.fetch_sub(packet.len(), Ordering::Relaxed);
                // As on any link, what cannot be sent is lost.
                let _ = send(&packet);
            }
        });
        Self { queue, held, link, free: Instant::now() }
    }

    fn push(&mut self, packet: &[u8]) {
        if self.held.load(Ordering::Relaxed) + packet.len() > HELD {
            return;
        }
        self.held.fetch_add(packet.len(), Ordering::Relaxed);
        self.free = self.free.max(Instant::now()) + self.link.transfer(packet.len());
        let _ = self.queue.send((self.free + self.link.rtt / 2, packet.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_late_and_answers_find_back() {
        let target = socket().unwrap();
        target.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // 1 MB/s: a packet of 1000 bytes takes 1 ms, and 20 ms on the way.
        let relay = Relay::start(target.local_addr().unwrap(), Link::new(40.0, 8.0)).unwrap();
        let [a, b] = [0, 1].map(|_| {
            let sender = socket().unwrap();
            sender.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            sender.connect(relay.address()).unwrap();
            sender
        });
        let start = Instant::now();
        let mut buffer = [0; 2000];
        for (i, sender) in [&a, &b].into_iter().enumerate() {
            for _ in 0..10 {
                sender.send(&[i as u8; 1000]).unwrap();
            }
        }
        for _ in 0..20 {
            let (len, from) = target.recv_from(&mut buffer).unwrap();
            target.send_to(&buffer[..len], from).unwrap();
        }
        for (i, sender) in [a, b].into_iter().enumerate() {
            for _ in 0..10 {
                let len = sender.recv(&mut buffer).unwrap();
                assert_eq!(buffer[..len], [i as u8; 1000]);
            }
        }
        // Both directions delay; each sender has a link of its own.
        assert!(start.elapsed() >= Duration::from_millis(50), "{:?}", start.elapsed());
    }
}
