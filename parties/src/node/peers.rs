//! The other two nodes: dialing, greeting, and knowing who is there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Inner, refuse, serve};
use crate::config::Role;
use crate::control::{Greeting, Hello, Purpose, SessionId};
use crate::error::{Code, Error, Result};
use crate::runner::Runner;
use crate::transport::{Connection, ControlStream};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const ATTEMPT: Duration = Duration::from_secs(2);
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// A connected node.
#[derive(Clone)]
pub struct Peer {
    /// The connection.
    pub connection: Connection,
    /// New with every start of its process: what it keeps in memory lasts as long as this.
    pub boot: [u8; 16],
}

/// Who is connected.
pub struct Peers([watch::Sender<Option<Peer>>; 3]);

impl Default for Peers {
    fn default() -> Self {
        Self(std::array::from_fn(|_| watch::Sender::new(None)))
    }
}

impl Peers {
    /// The node, if it is connected.
    ///
    /// # Errors
    /// [`Error::Link`] if it is not.
    pub fn get(&self, role: Role) -> Result<Peer> {
        let peer = self.0[role as usize].borrow().clone().filter(|p| p.connection.is_open());
        peer.ok_or_else(|| Error::Link { peer: role.to_string(), reason: "it is not connected".into() })
    }

    /// Waits until the node is connected.
    pub async fn wait(&self, role: Role) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.0[role as usize].subscribe().wait_for(Option::is_some).await;
    }

    fn set(&self, role: Role, peer: Peer) {
        if let Some(old) = self.0[role as usize].send_replace(Some(peer)) {
            old.connection.close(Code::Ended, "replaced by a newer connection");
        }
    }

    /// Forgets this connection, unless a newer one took its place.
    fn lost(&self, role: Role, boot: [u8; 16]) {
        self.0[role as usize].send_if_modified(|slot| {
            let same = slot.as_ref().is_some_and(|p| p.boot == boot && !p.connection.is_open());
            if same {
                *slot = None;
            }
            same
        });
    }
}

/// Whom a node dials; the others dial it.
pub fn dialed_by(role: Role) -> &'static [Role] {
    match role {
        Role::Server0 => &[Role::Server1, Role::Helper],
        Role::Server1 => &[Role::Helper],
        Role::Helper => &[],
    }
}

/// Dials `peer` again and again, and serves the connection while there is one.
pub async fn keep_connected<R: Runner>(inner: Arc<Inner<R>>, peer: Role) {
    let mut pause = FIRST_PAUSE;
    let mut said = String::new();
    loop {
        match dial(&inner, peer).await {
            Ok((connection, boot)) => {
                (pause, said) = (FIRST_PAUSE, String::new());
                tracing::info!(
                    "{peer}  {}  connected  (mTLS, key {}…)",
                    inner.cluster.card(peer).public,
                    short(&connection)
                );
                inner.peers.set(peer, Peer { connection: connection.clone(), boot });
                serve(inner.clone(), connection.clone()).await;
                let e = connection.closed().await;
                inner.peers.lost(peer, boot);
                if *inner.draining.borrow() {
                    return;
                }
                note(&connection, &e);
            }
            Err(e) => {
                // Being late is reported every few seconds anyway; a wrong key once, and at once.
                let text = e.to_string();
                if !matches!(e, Error::Timeout { .. }) && text != said {
                    tracing::warn!("{text}");
                    said = text;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Logs the end of a connection; a peer that was stopped in order is no reason to worry.
fn note(connection: &Connection, e: &Error) {
    if connection.was_drained() {
        tracing::info!("{} was stopped", connection.peer());
    } else {
        tracing::warn!("{e}");
    }
}

fn short(connection: &Connection) -> String {
    connection.pin().to_string()[..8].into()
}

async fn dial<R: Runner>(inner: &Inner<R>, peer: Role) -> Result<(Connection, [u8; 16])> {
    let card = inner.cluster.card(peer);
    // A packet to a node that is just starting is lost, and QUIC repeats it ever more rarely: rather try anew.
    let handshake = Duration::from_secs_f64(inner.config.link.rtt_ms * 1e-2).max(ATTEMPT);
    let timeout = inner.config.limits.connect_timeout().min(handshake);
    let connection = inner.endpoint.connect(&peer.to_string(), &card.public, card.pin, timeout).await?;
    let mut stream = connection.open(timeout).await?;
    let purpose = Purpose::Greet { role: inner.role, boot: inner.boot };
    stream.send(&inner.hello(SessionId::random()?, purpose)).await?;
    let Greeting { boot } = stream.recv().await?;
    stream.finish().await?;
    Ok((connection, boot))
}

/// Answers a node that dialed us.
pub async fn greeted<R: Runner>(
    inner: &Arc<Inner<R>>,
    connection: &Connection,
    mut stream: ControlStream,
    role: Role,
    boot: [u8; 16],
) -> Result<()> {
    let expected = inner.cluster.card(role).pin;
    if expected != connection.pin() {
        let e = Error::Pin { peer: role.to_string(), expected, found: connection.pin() };
        return refuse(stream, e).await;
    }
    if !dialed_by(role).contains(&inner.role) {
        let e = Error::NotAllowed { pin: connection.pin(), action: format!("dial {}", inner.role) };
        return refuse(stream, e).await;
    }
    stream.send(&Greeting { boot: inner.boot }).await?;
    stream.finish().await?;
    tracing::info!("{role}  connected  (mTLS, key {}…)", short(connection));
    inner.peers.set(role, Peer { connection: connection.clone(), boot });
    let (inner, connection) = (inner.clone(), connection.clone());
    tokio::spawn(async move {
        let e = connection.closed().await;
        if !*inner.draining.borrow() {
            note(&connection, &e);
        }
        inner.peers.lost(role, boot);
    });
    Ok(())
}

/// Says every few seconds whom the node waits for.
pub async fn report_missing<R: Runner>(inner: Arc<Inner<R>>) {
    let mut was_complete = false;
    let start = tokio::time::Instant::now();
    let mut tick = tokio::time::interval_at(start + Duration::from_millis(200), Duration::from_millis(200));
    let mut last = start;
    loop {
        tick.tick().await;
        let others = Role::ALL.into_iter().filter(|r| *r != inner.role);
        let missing: Vec<String> =
            others.filter(|r| inner.peers.get(*r).is_err()).map(|r| r.to_string()).collect();
        let complete = missing.is_empty();
        if complete && !was_complete {
            tracing::info!("{} is ready", inner.role);
        } else if !complete && last.elapsed() >= REPORT_EVERY {
            last = tokio::time::Instant::now();
            tracing::info!("{} waits for {}", inner.role, missing.join(" and "));
        }
        was_complete = complete;
    }
}

impl<R: Runner> Inner<R> {
    /// Opens a stream to another node and sends its first message.
    pub(super) async fn call(
        &self,
        peer: &Peer,
        session: SessionId,
        purpose: Purpose,
    ) -> Result<ControlStream> {
        let mut stream = peer.connection.open(self.config.limits.message_timeout()).await?;
        let hello: Hello = self.hello(session, purpose);
        stream.send(&hello).await?;
        Ok(stream)
    }
}
