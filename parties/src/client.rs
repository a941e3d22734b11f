//! Clients and model owners: short-lived processes that talk to the nodes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sharelens_models::Manifest;
use sharelens_protocol::prg::Seed;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::config::{Cluster, LinkConfig, PROTOCOL_VERSION, Role};
use crate::control::{
    Accepted, Go, Hello, ImageShare, ModelId, Models, Purpose, Readiness, Report, ResultShare, SessionId,
    Start, Upload, check_name,
};
use crate::engine;
use crate::error::{Code, Error, Result};
use crate::identity::{Identity, Pin};
use crate::transport::{Connection, ControlStream, Endpoint};

/// How long a client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection.
    pub connect: Duration,
    /// For a node's answer.
    pub answer: Duration,
    /// For a place, while all are in use; whole seconds.
    pub queue: Duration,
    /// For preprocessing and for the result.
    pub work: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let [connect, answer, queue, work] = [10, 60, 60, 900].map(Duration::from_secs);
        Self { connect, answer, queue, work }
    }
}

/// Connections to some nodes of a cluster.
pub struct Client {
    hash: [u8; 32],
    connections: Vec<(Role, Connection)>,
    patience: Patience,
    endpoint: Endpoint,
}

/// An image as two shares, and how long the shares of the result will be.
pub struct SharedImage {
    /// Server 0's share expands from it.
    pub seed: Seed,
    /// Server 1's share.
    pub words: Zeroizing<Vec<u8>>,
    /// Bytes of each share of the result.
    pub output_bytes: usize,
}

/// How far an inference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Both servers accepted the request.
    Accepted,
    /// All places are in use; said again when the position changes.
    Queued {
        /// How many places have to become free until it is this request's turn.
        position: u32,
        /// About how many seconds that takes; unknown until some session has ended.
        seconds: Option<u32>,
    },
    /// Both servers take the image: they have their correlations, or need not.
    Ready,
    /// Both servers have their shares of the image.
    Sent,
}

/// What comes back.
pub struct Inference {
    /// Which model ran.
    pub model: ModelId,
    /// Its public manifest, the same from both servers.
    pub manifest: Vec<u8>,
    /// The key of whoever shared it, as both servers say.
    pub owner: Pin,
    /// Both shares of the result.
    pub outputs: [Zeroizing<Vec<u8>>; 2],
    /// What the servers report.
    pub reports: [Report; 2],
    /// Seconds for which the request waited for a place.
    pub queued_seconds: f64,
    /// Seconds from the request until the image could be sent, without those of the queue: with [`Start::AtOnce`], to set
    /// up the session.
    pub offline_seconds: f64,
    /// Seconds from then to having the result, whatever the servers waited for.
    pub online_seconds: f64,
}

impl Client {
    /// Connects to the nodes `roles` of `cluster`.
    ///
    /// # Errors
    /// [`Error::Pin`], [`Error::Link`] or [`Error::Timeout`] naming the node.
    pub async fn connect(
        cluster: &Cluster,
        roles: &[Role],
        identity: Arc<Identity>,
        link: &LinkConfig,
        patience: Patience,
    ) -> Result<Self> {
        let endpoint = Endpoint::dialing(identity, link)?;
        let dials = roles.iter().map(|role| {
            let (card, endpoint) = (cluster.card(*role), &endpoint);
            async move {
                let name = role.to_string();
                let dial = endpoint.connect(&name, &card.public, card.pin, patience.connect);
                dial.await.map(|connection| (*role, connection))
            }
        });
        let connections = futures::future::try_join_all(dials).await?;
        Ok(Self { hash: cluster.hash(), connections, patience, endpoint })
    }

    /// Asks both servers for a session with a model. `start` says whether the image waits for preprocessing. What
    /// comes back knows the model, so that the image can be made for it.
    ///
    /// # Errors
    /// Those of the nodes, as [`Error::Refused`]; [`Error::Malformed`] if the servers contradict each other.
    pub async fn begin(&self, model: &str, version: Option<u32>, start: Start) -> Result<Session> {
        check_name(model)?;
        let started = Instant::now();
        let session = SessionId::random()?;
        let wait_s = u32::try_from(self.patience.queue.as_secs()).unwrap_or(u32::MAX);
        let purpose = || Purpose::Infer { model: model.into(), version, start, wait_s };
        let mut s0 = self.open(Role::Server0, session, purpose()).await?;
        let mut s1 = self.open(Role::Server1, session, purpose()).await?;
        let (accepted, other) = either_tells(s0.recv::<Accepted>(), s1.recv::<Accepted>()).await?;
        if accepted != other {
            return Err(Error::Malformed {
                peer: "server 1".into(),
                expected: format!("model {} with the manifest of server 0", accepted.model),
                found: format!("model {} or another manifest", other.model),
            });
        }
        for s in [&mut s0, &mut s1] {
            // Server 1 says nothing while the request waits at server 0.
            s.set_timeout(self.patience.queue + self.patience.work);
        }
        let patience = self.patience.queue + self.patience.work;
        Ok(Session { streams: [s0, s1], patience, accepted, started })
    }

    /// [`begin`](Self::begin) and [`Session::run`] in one, for manifests that only the caller can read: `share` is
    /// called with what both servers accepted and splits the image.
    ///
    /// # Errors
    /// As both, and those of `share`.
    pub async fn infer(
        &self,
        model: &str,
        version: Option<u32>,
        start: Start,
        share: impl FnOnce(&Accepted) -> Result<SharedImage>,
        progress: impl Fn(Progress),
    ) -> Result<Inference> {
        let session = self.begin(model, version, start).await?;
        progress(Progress::Accepted);
        let image = share(session.accepted())?;
        session.run(image, progress).await
    }

    /// Shares a model with all three nodes. It counts once all of them have written it. `progress` is told the
    /// bytes that were sent.
    ///
    /// # Errors
    /// Those of the nodes, as [`Error::Refused`].
    pub async fn share(
        &self,
        model: &ModelId,
        manifest: Vec<u8>,
        seed: &Seed,
        words: Zeroizing<Vec<u8>>,
        progress: impl Fn(u64),
    ) -> Result<()> {
        check_name(&model.name)?;
        let session = SessionId::random()?;
        // Slices of these go to the nodes without a copy; the last of them wipes what is secret.
        let seed = Bytes::from_owner(Zeroizing::new(*seed.as_bytes()));
        let words = Bytes::from_owner(words);
        let manifest = Bytes::from(manifest);
        let mut streams = Vec::new();
        for role in Role::ALL {
            let share = match role {
                Role::Server0 => seed.clone(),
                Role::Server1 => words.clone(),
                Role::Helper => Bytes::new(),
            };
            let upload = Upload {
                model: model.clone(),
                manifest_bytes: manifest.len() as u64,
                share_bytes: share.len() as u64,
            };
            streams.push((self.open(role, session, Purpose::Share(upload)).await?, share));
        }
        for (stream, _) in &mut streams {
            let Go = stream.recv().await?;
        }
        let progress = &progress;
        let manifest = &manifest;
        let work = self.patience.work;
        let uploads = streams.iter_mut().map(|(stream, share)| async move {
            for whole in [manifest, share] {
                for at in (0..whole.len()).step_by(SLICE) {
                    let part = whole.slice(at..whole.len().min(at + SLICE));
                    let length = part.len() as u64;
                    stream.send_bulk(part).await?;
                    progress(length);
                }
            }
            stream.set_timeout(work);
            stream.recv::<Go>().await
        });
        futures::future::try_join_all(uploads).await?;
        for (stream, _) in &mut streams {
            stream.send(&Go).await?;
        }
        for (stream, _) in &mut streams {
            let Go = stream.recv().await?;
        }
        for (stream, _) in streams {
            // All is written; how the stream ends no longer matters.
            let _ = stream.finish().await;
        }
        Ok(())
    }

    /// Which models `role` keeps.
    ///
    /// # Errors
    /// As the others.
    pub async fn models(&self, role: Role) -> Result<Vec<ModelId>> {
        let mut stream = self.open(role, SessionId::random()?, Purpose::List).await?;
        let Models(models) = stream.recv().await?;
        Ok(models)
    }

    /// How long requests from now on may wait for a place.
    pub const fn set_queue_patience(&mut self, wait: Duration) {
        self.patience.queue = wait;
    }

    /// Says good-bye.
    pub async fn close(self) {
        self.endpoint.close(Code::Ended, "").await;
    }

    async fn open(&self, role: Role, session: SessionId, purpose: Purpose) -> Result<ControlStream> {
        let (_, connection) = self
            .connections
            .iter()
            .find(|(r, _)| *r == role)
            .ok_or_else(|| Error::Internal(format!("{role} was not dialed")))?;
        let mut stream = connection.open(self.patience.answer).await?;
        stream.send(&Hello { version: PROTOCOL_VERSION, cluster: self.hash, session, purpose }).await?;
        Ok(stream)
    }
}

/// A session that both servers accepted and that waits for an image. Dropping it ends it on the servers.
pub struct Session {
    streams: [ControlStream; 2],
    /// For a place and for preprocessing, however often a server says that it takes longer.
    patience: Duration,
    accepted: Accepted,
    started: Instant,
}

impl Session {
    /// What both servers said about the model, the same from both.
    pub const fn accepted(&self) -> &Accepted {
        &self.accepted
    }

    /// The model's public manifest, checked as the nodes check it. Nothing may be shared for a model that fails.
    ///
    /// # Errors
    /// [`Error::Config`] saying what is wrong with it.
    pub fn manifest(&self) -> Result<Manifest> {
        engine::decode_manifest(&self.accepted.manifest)
    }

    /// Sends the image once the servers take it, and waits for the result. `progress` is told where in the queue the
    /// request is, if it has to wait for a place, when the servers are [`Progress::Ready`] and when the image is [`Progress::Sent`].
    ///
    /// # Errors
    /// Those of the nodes, as [`Error::Refused`]; [`Error::Malformed`] if a result has another length.
    pub async fn run(self, image: SharedImage, progress: impl Fn(Progress)) -> Result<Inference> {
        let Self { streams: [mut s0, mut s1], patience, accepted, started } = self;
        let told = &progress;
        let until_ready =
            both(&mut s0, &mut s1, async |s| readiness(s, told).await, async |s| readiness(s, told).await);
        let (queued_seconds, _) = tokio::time::timeout(patience, until_ready).await.unwrap_or_else(|_| {
            let (peer, what) = ("the servers".into(), "readiness".into());
            Err(Error::Timeout { peer, what, seconds: patience.as_secs() })
        })?;
        let (ready, offline_seconds) = (Instant::now(), started.elapsed().as_secs_f64() - queued_seconds);
        progress(Progress::Ready);
        // Both go as they are and are wiped when they are sent: no copy is left behind.
        let seed = Bytes::from_owner(Zeroizing::new(*image.seed.as_bytes()));
        let words = Bytes::from_owner(image.words);
        both(&mut s0, &mut s1, async |s| send_share(s, seed).await, async |s| send_share(s, words).await)
            .await?;
        progress(Progress::Sent);
        let due = image.output_bytes;
        let ((o0, report0), (o1, report1)) =
            either_tells(receive(&mut s0, due), receive(&mut s1, due)).await?;
        let online_seconds = ready.elapsed().as_secs_f64();
        for stream in [s0, s1] {
            // The result is here; how the stream ends no longer matters.
            let _ = stream.finish().await;
        }
        Ok(Inference {
            model: accepted.model,
            manifest: accepted.manifest,
            owner: accepted.owner,
            outputs: [o0, o1],
            reports: [report0, report1],
            queued_seconds,
            offline_seconds,
            online_seconds,
        })
    }
}

const SLICE: usize = 1 << 20;

/// Waits until a server takes the image; for how long the request was queued.
async fn readiness(stream: &mut ControlStream, progress: impl Fn(Progress)) -> Result<f64> {
    loop {
        match stream.recv().await? {
            Readiness::Queued { position, seconds } => progress(Progress::Queued { position, seconds }),
            Readiness::Ready { queued, .. } => return Ok(queued),
        }
    }
}

async fn send_share(stream: &mut ControlStream, share: Bytes) -> Result<()> {
    stream.send(&ImageShare { bytes: share.len() as u64 }).await?;
    stream.send_bulk(share).await
}

async fn receive(stream: &mut ControlStream, due: usize) -> Result<(Zeroizing<Vec<u8>>, Report)> {
    let ResultShare { bytes, report } = stream.recv().await?;
    if bytes != due as u64 {
        return Err(Error::Malformed {
            peer: stream.peer().into(),
            expected: format!("a result of {due} bytes"),
            found: format!("{bytes} bytes"),
        });
    }
    Ok((Zeroizing::new(stream.recv_bulk(due, "result").await?), report))
}

/// What both servers send or take between their acceptance and the result. A server that is done has nothing to say until the
/// other one is, so whatever it says meanwhile is why it ends the session.
async fn both<A, B>(
    s0: &mut ControlStream,
    s1: &mut ControlStream,
    first: impl AsyncFnOnce(&mut ControlStream) -> Result<A>,
    second: impl AsyncFnOnce(&mut ControlStream) -> Result<B>,
) -> Result<(A, B)> {
    let (done0, done1) = (Semaphore::new(0), Semaphore::new(0));
    let side0 = watched(s0, first, &done0, &done1);
    let side1 = watched(s1, second, &done1, &done0);
    either_tells(side0, side1).await
}

/// One side of [`both`]: does what is due, then listens until the other side is done, too.
async fn watched<T>(
    stream: &mut ControlStream,
    due: impl AsyncFnOnce(&mut ControlStream) -> Result<T>,
    done: &Semaphore,
    other: &Semaphore,
) -> Result<T> {
    let outcome = due(stream).await?;
    done.close();
    tokio::select! {
        biased;
        _ = other.acquire() => Ok(outcome),
        () = stream.speaks() => Err(stream.out_of_turn().await),
    }
}

/// Both results, or the more telling error: when one server fails, the other one often only reports that the
/// first left.
async fn either_tells<A, B>(
    a: impl Future<Output = Result<A>>,
    b: impl Future<Output = Result<B>>,
) -> Result<(A, B)> {
    tokio::pin!(a, b);
    let grace = Duration::from_secs(1);
    let (first, second) = tokio::select! {
        x = &mut a => match x {
            Ok(x) => return Ok((x, b.await?)),
            Err(e) => (e, tokio::time::timeout(grace, b).await.ok().and_then(Result::err)),
        },
        y = &mut b => match y {
            Ok(y) => return Ok((a.await?, y)),
            Err(e) => (e, tokio::time::timeout(grace, a).await.ok().and_then(Result::err)),
        },
    };
    let rank = |e: &Error| match e.code() {
        Code::Ended => 0,
        Code::Link => 1,
        Code::Timeout => 2,
        _ => 3,
    };
    Err(match second {
        Some(second) if rank(&second) > rank(&first) => second,
        _ => first,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream to each of two servers, with their ends.
    async fn two_streams() -> ([ControlStream; 2], [ControlStream; 2], Endpoint, Endpoint) {
        let wait = Duration::from_secs(5);
        let (identity, link) = (Arc::new(Identity::generate().unwrap()), LinkConfig::default());
        let server = Endpoint::listen("127.0.0.1:0".parse().unwrap(), identity.clone(), &link).unwrap();
        let client = Endpoint::dialing(identity.clone(), &link).unwrap();
        let address = server.local_addr().unwrap().to_string();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for name in ["server 0", "server 1"] {
            let accept = async { server.accept().await.unwrap().handshake(wait).await.unwrap() };
            let dial = client.connect(name, &address, identity.pin(), wait);
            let (connection, accepted) = tokio::join!(dial, accept);
            accepted.admit();
            let mut stream = connection.unwrap().open(wait).await.unwrap();
            stream.send(&Go).await.unwrap();
            let mut accepted = accepted.accept(wait).await.unwrap();
            accepted.recv::<Go>().await.unwrap();
            ours.push(stream);
            theirs.push(accepted);
        }
        let pair = |v: Vec<ControlStream>| <[ControlStream; 2]>::try_from(v).unwrap();
        (pair(ours), pair(theirs), server, client)
    }

    #[tokio::test]
    async fn a_server_that_leaves_is_heard_while_the_other_is_waited_for() {
        for leaves in [0, 1] {
            let ([mut s0, mut s1], mut servers, _server, _client) = two_streams().await;
            servers[leaves].send(&Readiness::Ready { seconds: 1.0, queued: 0.0 }).await.unwrap();
            let [first, second] = servers;
            let (leaver, stays) = if leaves == 0 { (first, second) } else { (second, first) };
            let ready = async |s: &mut ControlStream| readiness(s, |_| {}).await;
            let waits = tokio::time::timeout(Duration::from_secs(4), both(&mut s0, &mut s1, ready, ready));
            let reason = Error::Draining("it".into());
            let (outcome, ()) = tokio::join!(waits, leaver.refuse(&reason));
            let e = outcome.expect("at once, and not when the other one is late").err().unwrap();
            assert_eq!(e.code(), Code::Draining, "server {leaves}: {e}");
            drop(stays);
        }
    }

    #[tokio::test]
    async fn a_server_that_always_says_later_is_left() {
        let ([s0, s1], [mut server0, _server1], _server, _client) = two_streams().await;
        let model = ModelId { name: "m".into(), version: 1 };
        let accepted = Accepted { model, manifest: Vec::new(), owner: Identity::generate().unwrap().pin() };
        let patience = Duration::from_millis(300);
        let session = Session { streams: [s0, s1], patience, accepted, started: Instant::now() };
        let later = async {
            while server0.send(&Readiness::Queued { position: 1, seconds: None }).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let image = SharedImage { seed: Seed::random().unwrap(), words: Vec::new().into(), output_bytes: 1 };
        let run = tokio::time::timeout(Duration::from_secs(4), session.run(image, |_| {}));
        let (outcome, ()) = tokio::join!(run, later);
        let e = outcome.expect("in time").err().unwrap();
        assert_eq!(e.code(), Code::Timeout, "{e}");
    }

    #[tokio::test]
    async fn two_servers_may_be_done_in_any_order() {
        for order in [[0, 1], [1, 0]] {
            let ([mut s0, mut s1], mut servers, _server, _client) = two_streams().await;
            let ready = async |s: &mut ControlStream| readiness(s, |_| {}).await;
            let answer = async {
                for server in order {
                    servers[server]
                        .send(&Readiness::Ready { seconds: 1.0, queued: server as f64 })
                        .await
                        .unwrap();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                // What is due later may come early, too.
                servers[order[0]].send(&Go).await.unwrap();
            };
            let (outcome, ()) = tokio::join!(both(&mut s0, &mut s1, ready, ready), answer);
            let (a, b) = outcome.unwrap();
            assert_eq!([a, b], [0.0, 1.0]);
            [&mut s0, &mut s1][order[0]].recv::<Go>().await.unwrap();
        }
    }
}
