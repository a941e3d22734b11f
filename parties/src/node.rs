//! A long-running node: two computing servers and the helper are this, with different duties.
//!
//! Server 0 dials server 1, both dial the helper; clients dial. The first message of every stream is a
//! [`Hello`] that says what the stream is for; who may open which follows from the key of the connection.

mod admission;
mod helper;
mod loads;
mod models;
mod peers;
mod queue;
mod server;
mod sessions;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Cluster, NodeConfig, PROTOCOL_VERSION, Role};
use crate::control::{Hello, Models, Purpose};
use crate::enrolment::{Enrolment, Right};
use crate::error::{Code, Error, Result};
use crate::identity::{Identity, Pin, random};
use crate::runner::Runner;
use crate::storage::Storage;
use crate::transport::{CLIENT_STREAMS, Connection, ControlStream, Endpoint};

use admission::Admission;
use loads::Loads;
use models::Catalogue;
use peers::Peers;
use queue::Queue;
use sessions::{Active, Rendezvous};

/// How soon a connection of a key that was struck off is closed.
const REVOKED_AFTER: Duration = Duration::from_millis(500);

/// A started node.
pub struct Node<R: Runner> {
    inner: Arc<Inner<R>>,
    tasks: JoinSet<()>,
}

struct Inner<R: Runner> {
    config: NodeConfig,
    role: Role,
    cluster: Cluster,
    cluster_hash: [u8; 32],
    boot: [u8; 16],
    runner: Arc<R>,
    endpoint: Endpoint,
    peers: Peers,
    storage: Arc<Storage>,
    catalogue: Catalogue<R>,
    loads: Loads<R>,
    /// Streams of other nodes that wait for their counterpart of the same session.
    arrivals: Rendezvous<sessions::Arrival>,
    queue: Queue,
    admission: Admission,
    enrolment: Enrolment,
    /// Manifests are checked one at a time.
    checking: Arc<tokio::sync::Semaphore>,
    active: Active,
    draining: watch::Sender<bool>,
}

impl<R: Runner> Node<R> {
    /// Starts listening and dialing. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Config`] or [`Error::Storage`] if something on this machine is not as it must be.
    pub fn start(config: NodeConfig, runner: R) -> Result<Self> {
        let identity = Arc::new(Identity::load(&config.key_file)?);
        let cluster = Cluster::load(&config.cluster)?;
        let (role, pinned) = (config.role, cluster.card(config.role).pin);
        if pinned != identity.pin() {
            let reason = format!("pins {pinned} for {role}, but this node's key is {}", identity.pin());
            return Err(Error::config(&config.cluster, reason));
        }
        let endpoint = Endpoint::listen(config.listen, identity, &config.link)?;
        let inner = Arc::new(Inner {
            role,
            cluster_hash: cluster.hash(),
            boot: random()?,
            runner: Arc::new(runner),
            endpoint,
            peers: Peers::default(),
            storage: Storage::open(&config.data_dir, role)?,
            catalogue: Catalogue::default(),
            loads: Loads::new(config.limits.loaded_mib << 20),
            // As many as clients can have streams, and nodes.
            arrivals: Rendezvous::new(
                4 * (config.limits.sessions + config.limits.client_connections) + config.limits.queue,
            ),
            queue: Queue::new(&config.limits),
            admission: Admission::new(&config.limits),
            enrolment: Enrolment::open(&config)?,
            checking: Arc::new(tokio::sync::Semaphore::new(1)),
            active: Active::default(),
            draining: watch::Sender::new(false),
            cluster,
            config,
        });
        let mut tasks = JoinSet::new();
        for peer in peers::dialed_by(role) {
            tasks.spawn(peers::keep_connected(inner.clone(), *peer));
        }
        tasks.spawn(peers::report_missing(inner.clone()));
        tasks.spawn(accept(inner.clone()));
        Ok(Self { inner, tasks })
    }

    /// The UDP address it listens on.
    ///
    /// # Errors
    /// [`Error::Internal`] if the system does not say.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.inner.endpoint.local_addr()
    }

    /// Waits until all other nodes are connected.
    pub async fn ready(&self) {
        for role in Role::ALL.into_iter().filter(|r| *r != self.inner.role) {
            self.inner.peers.wait(role).await;
        }
    }

    /// Refuses new sessions, lets the running ones finish, then closes all connections.
    pub async fn drain(mut self) {
        self.inner.draining.send_replace(true);
        let limit = self.inner.config.limits.session_timeout() + Duration::from_secs(5);
        if tokio::time::timeout(limit, self.inner.active.none()).await.is_err() {
            tracing::warn!("sessions that do not end are cut off");
        }
        self.inner.endpoint.close(Code::Draining, "").await;
        self.tasks.shutdown().await;
    }
}

impl<R: Runner> Inner<R> {
    fn hello(&self, session: crate::control::SessionId, purpose: Purpose) -> Hello {
        Hello { version: PROTOCOL_VERSION, cluster: self.cluster_hash, session, purpose }
    }

    /// What a node may be called in messages: its role.
    fn name(&self) -> String {
        self.role.to_string()
    }

    fn check_hello(&self, peer: &str, hello: &Hello) -> Result<()> {
        if hello.version != PROTOCOL_VERSION {
            let (peer, found) = (peer.into(), hello.version);
            return Err(Error::Version { peer, expected: PROTOCOL_VERSION, found });
        }
        if hello.cluster != self.cluster_hash {
            let [expected, found] = [&self.cluster_hash, &hello.cluster].map(Cluster::short_hash);
            return Err(Error::Cluster { peer: peer.into(), expected, found });
        }
        Ok(())
    }

    fn check_not_draining(&self) -> Result<()> {
        if *self.draining.borrow() { Err(Error::Draining(self.name())) } else { Ok(()) }
    }
}

async fn accept<R: Runner>(inner: Arc<Inner<R>>) {
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = inner.endpoint.accept() => incoming,
            Some(_) = connections.join_next() => continue,
        };
        let Some(incoming) = incoming else { return };
        if inner.admission.validates() && incoming.may_retry() {
            incoming.retry();
            continue;
        }
        let inner = inner.clone();
        connections.spawn(async move {
            let mut handshake = inner.admission.handshake(incoming.from());
            let shaken = tokio::select! {
                shaken = incoming.handshake(inner.config.limits.connect_timeout()) => Some(shaken),
                _ = &mut handshake.evicted => None,
            };
            inner.admission.done(&handshake);
            match shaken {
                Some(Ok(connection)) => serve(inner, connection).await,
                Some(Err(e)) => tracing::debug!("{e}"),
                None => tracing::debug!("a handshake that did not get on made room for others"),
            }
        });
    }
}

/// Serves one connection, dialed or accepted, until it is gone.
async fn serve<R: Runner>(inner: Arc<Inner<R>>, connection: Connection) {
    let peer = inner.cluster.role_of(connection.pin());
    let (connection, _place) = match peer {
        Some(role) => {
            let limits = &inner.config.limits;
            let waiting = CLIENT_STREAMS as usize * limits.client_connections + limits.queue;
            connection.trust(limits.sessions, waiting);
            (connection.named(role.to_string()), None)
        }
        None => {
            let pin = connection.pin();
            let connection = connection.named(format!("client {}", &pin.to_string()[..8]));
            let turned_away = |e: Error| connection.close(e.code(), &e.for_peer());
            if !inner.enrolment.knows(pin) {
                return turned_away(Error::NotAllowed { pin, action: "connect".into() });
            }
            match inner.admission.connection(pin) {
                Ok(place) => {
                    connection.admit();
                    (connection, Some(place))
                }
                Err(e) => return turned_away(e),
            }
        }
    };
    let mut streams = JoinSet::new();
    let mut enrolled = tokio::time::interval(REVOKED_AFTER);
    loop {
        let stream = tokio::select! {
            stream = connection.accept(inner.config.limits.message_timeout()) => stream,
            Some(_) = streams.join_next() => continue,
            // Also in the middle of a session: its streams end with the connection.
            _ = enrolled.tick(), if peer.is_none() => {
                if inner.enrolment.knows(connection.pin()) {
                    continue;
                }
                let e = Error::NotAllowed { pin: connection.pin(), action: "stay connected".into() };
                tracing::info!(peer = connection.peer(), "{e}");
                connection.close(e.code(), &e.for_peer());
                break;
            }
        };
        let Ok(stream) = stream else { break };
        streams.spawn(dispatch(inner.clone(), connection.clone(), peer, stream));
    }
    // Sessions notice by themselves that their streams are gone, and clean up.
    while streams.join_next().await.is_some() {}
}

async fn dispatch<R: Runner>(
    inner: Arc<Inner<R>>,
    connection: Connection,
    peer: Option<Role>,
    mut stream: ControlStream,
) {
    let outcome = match stream.recv::<Hello>().await {
        Ok(hello) => match inner.check_hello(connection.peer(), &hello) {
            Ok(()) => route(&inner, &connection, peer, stream, hello).await,
            Err(e) => refuse(stream, e).await,
        },
        Err(e) => refuse(stream, e).await,
    };
    if let Err(e) = outcome {
        tracing::warn!(peer = connection.peer(), "{e}");
    }
}

/// Tells the peer, and passes the error on.
async fn refuse<T>(stream: ControlStream, e: Error) -> Result<T> {
    stream.refuse(&e).await;
    Err(e)
}

async fn route<R: Runner>(
    inner: &Arc<Inner<R>>,
    connection: &Connection,
    peer: Option<Role>,
    stream: ControlStream,
    hello: Hello,
) -> Result<()> {
    let words = hello.purpose.words();
    let session = hello.session;
    match (inner.role, peer, hello.purpose) {
        (_, _, Purpose::Greet { role, boot }) => peers::greeted(inner, connection, stream, role, boot).await,
        (Role::Server1, Some(Role::Server0), Purpose::Online(work)) => {
            inner.arrive(session, sessions::Kind::Online, stream, work).await
        }
        (Role::Server1, Some(Role::Server0), Purpose::Load(work)) => {
            loads::second(inner, stream, session, work).await
        }
        (Role::Helper, Some(Role::Server0), Purpose::Deal(work)) => {
            inner.arrive(session, sessions::Kind::Deal, stream, work).await
        }
        (Role::Helper, Some(Role::Server1), Purpose::Deal(work)) => {
            helper::deal(inner, stream, session, work).await
        }
        (Role::Helper, Some(Role::Server0), Purpose::Load(work)) => {
            inner.arrive(session, sessions::Kind::Load, stream, work).await
        }
        (Role::Helper, Some(Role::Server1), Purpose::Load(work)) => {
            helper::load(inner, stream, session, work).await
        }
        (Role::Server0 | Role::Server1, None, Purpose::Infer { model, version, start, wait_s })
            if inner.enrolment.may(connection.pin(), Right::Client) =>
        {
            let wait = Duration::from_secs(wait_s.into());
            let request = server::Request { pin: connection.pin(), model, version, start, wait };
            server::infer(inner, stream, session, request).await
        }
        (_, None, Purpose::Share(upload)) if inner.enrolment.may(connection.pin(), Right::Owner) => {
            models::receive(inner, stream, connection.pin(), upload).await
        }
        (_, None, Purpose::List) if inner.may_list(connection.pin()) => {
            let mut stream = stream;
            stream.send(&Models(inner.storage.models())).await?;
            stream.finish().await
        }
        _ => refuse(stream, Error::NotAllowed { pin: connection.pin(), action: words.into() }).await,
    }
}

impl<R: Runner> Inner<R> {
    fn may_list(&self, pin: Pin) -> bool {
        self.enrolment.knows(pin)
    }

    /// A stream of another node that its counterpart of the same session will fetch.
    async fn arrive(
        &self,
        session: crate::control::SessionId,
        kind: sessions::Kind,
        stream: ControlStream,
        work: crate::control::Work,
    ) -> Result<()> {
        let wait = self.config.limits.message_timeout();
        match self.arrivals.offer((kind, session), (stream, work), wait).await {
            Ok(()) => Ok(()),
            Err(((stream, _), e)) => refuse(stream, e).await,
        }
    }
}
