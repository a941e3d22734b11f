//! A computing server's side of a client's session.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sharelens_protocol::Server;
use tokio::sync::{oneshot, watch};
use zeroize::Zeroizing;

use super::models::{Known, at_most};
use super::queue::{self, Turn};
use super::sessions::{ActiveGuard, Kind, on_thread};
use super::{Inner, loads, refuse};
use crate::config::Role;
use crate::control::{
    Accepted, DealtSeed, Go, ImageShare, Purpose, Readiness, Report, ResultShare, SessionId, Start,
};
use crate::error::{Code, Error, Result};
use crate::runner::{InputShare, Run, Runner};
use crate::transport::{ControlStream, Ended, Sending, StreamChannel, Traffic};

/// How often a client hears where it is in the queue, at most.
const TOLD_EVERY: Duration = Duration::from_millis(250);

/// What a client asks for.
pub struct Request {
    /// Who asks.
    pub pin: crate::identity::Pin,
    /// Name of the model.
    pub model: String,
    /// The newest, if `None`.
    pub version: Option<u32>,
    /// When the image will come.
    pub start: Start,
    /// How long it may wait for a place.
    pub wait: Duration,
}

/// Serves one request: acceptance with the manifest, readiness, the image's share, the result's share.
pub async fn infer<R: Runner>(
    inner: &Arc<Inner<R>>,
    mut client: ControlStream,
    session: SessionId,
    request: Request,
) -> Result<()> {
    // Until the client and the other nodes have everything; a shutdown waits for that.
    let _active = inner.active.enter();
    let ended = Ended::default();
    let outcome = serve(inner, &mut client, session, &request, &ended).await;
    match outcome {
        Ok((peer, helper)) => {
            tracing::info!("session {session} done");
            // The client has its result; the other nodes only need to hear that all arrived.
            let (a, b, c) = tokio::join!(client.finish(), peer.close(), helper.close());
            a.and(b).and(c)
        }
        Err(e) => {
            ended.end(e.clone());
            refuse(client, e).await
        }
    }
}

/// Held by every thread of a session, so that its place is free only once all of them are gone.
struct Place {
    _place: queue::Place,
    _active: ActiveGuard,
}

/// Ends a session's threads when the session is left, for whatever reason.
struct Leave<R: Runner> {
    ended: Ended,
    runner: Arc<R>,
    store: Arc<R::Store>,
}

impl<R: Runner> Drop for Leave<R> {
    fn drop(&mut self) {
        self.ended.end(Error::Ended("it is over".into()));
        self.runner.end(&self.store);
    }
}

/// `work`, for at most so long.
async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| {
        let (peer, what) = ("the session".into(), what.into());
        Err(Error::Timeout { peer, what, seconds: limit.as_secs() })
    })
}

/// A session with a limit of time for each half: until it has its place, and from then on.
async fn serve<R: Runner>(
    inner: &Arc<Inner<R>>,
    client: &mut ControlStream,
    session: SessionId,
    request: &Request,
    ended: &Ended,
) -> Result<(StreamChannel, StreamChannel)> {
    let limits = &inner.config.limits;
    // A model may have to be loaded first.
    let limit = limits.queue_timeout() + limits.session_timeout();
    let begun = within(limit, "start", begin(inner, client, session, request, ended)).await?;
    within(limits.session_timeout(), "end", run(inner, client, session, begun, ended)).await
}

/// A session with its place and its links.
struct Begun<R: Runner> {
    server: Server,
    known: Arc<Known<R>>,
    start: Start,
    started: Instant,
    links: Links<R>,
}

/// Accepts the request, and tells the client where in the queue it is until it has a place.
async fn begin<R: Runner>(
    inner: &Arc<Inner<R>>,
    client: &mut ControlStream,
    session: SessionId,
    request: &Request,
    ended: &Ended,
) -> Result<Begun<R>> {
    let started = Instant::now();
    inner.check_not_draining()?;
    let server = inner.role.server().ok_or_else(|| Error::Internal("the helper runs no model".into()))?;
    let known = inner.known(inner.storage.find(&request.model, request.version)?).await?;
    let owner = inner.storage.owner(&known.id)?;
    let (tell, mut told) = watch::channel(None);
    let links = Links::establish(inner, server, session, &known, request, ended, &tell);
    tokio::pin!(links);
    // Writing the id to disk takes as long as meeting the other nodes, so both go on at once. Nothing of the session is
    // used before the id is there.
    let accept = async {
        inner.first_use(session).await?;
        client.send(&Accepted { model: known.id.clone(), manifest: known.manifest.clone(), owner }).await
    };
    let mut early = None;
    {
        tokio::pin!(accept);
        tokio::select! {
            accepted = &mut accept => accepted?,
            links = &mut links => {
                accept.await?;
                early = Some(links);
            }
        }
    }
    let links = match early {
        Some(links) => links?,
        None => loop {
            tokio::select! {
                links = &mut links => break links?,
                gone = client.gone() => return Err(gone),
                Ok(()) = told.changed() => {}
            }
            let Some(queued) = *told.borrow_and_update() else { continue };
            client.send(&queued).await?;
            tokio::select! {
                links = &mut links => break links?,
                gone = client.gone() => return Err(gone),
                () = tokio::time::sleep(TOLD_EVERY) => {}
            }
        },
    };
    Ok(Begun { server, known: known.clone(), start: request.start, started, links })
}

/// Preprocessing, the image's share, the online phase, the result's share.
async fn run<R: Runner>(
    inner: &Arc<Inner<R>>,
    client: &mut ControlStream,
    session: SessionId,
    begun: Begun<R>,
    ended: &Ended,
) -> Result<(StreamChannel, StreamChannel)> {
    let Begun { server, known, start, started, links } = begun;
    let cap = usize::try_from(inner.config.preprocessing.memory_mib << 20).unwrap_or(usize::MAX);
    let store = Arc::new(inner.runner.store(&known.model, cap));
    // Dropped on every way out; an orderly end has nothing left to end.
    let leave = Leave { ended: ended.clone(), runner: inner.runner.clone(), store: store.clone() };
    let Links { place, queued, weights, seed, mut peer, mut helper, to_peer, to_helper } = links;
    let place = Arc::new(Place { _place: place, _active: inner.active.enter() });

    let mut preparing = Preparing::new({
        let (runner, known, weights) = (inner.runner.clone(), known.clone(), weights.clone());
        let (store, place) = (store.clone(), place.clone());
        on_thread("prepare", move |handle| {
            let _place = place;
            let (model, weights, store) = (&known.model, &*weights, &*store);
            let run = Run { server, model, weights, store, context: &session.0 };
            let prepared = handle.block_on(runner.preprocess(run, &seed.seed(), &mut helper));
            prepared.map(|()| (helper, Instant::now()))
        })
    });
    let (ready, is_ready) = oneshot::channel();
    let (image, take_image) = oneshot::channel::<InputShare>();
    let online = {
        let (runner, known) = (inner.runner.clone(), known.clone());
        on_thread("online", move |handle| {
            let _place = place;
            let prepared = match start {
                Start::Prepared => runner.ready(&store),
                Start::AtOnce => Ok(()),
            };
            let result = prepared.and_then(|()| {
                let _ = ready.send(());
                let gone = |_| sharelens_protocol::Error::Ended("the client sent no image".into());
                let image = take_image.blocking_recv().map_err(gone)?;
                let (model, weights, store) = (&known.model, &*weights, &*store);
                let run = Run { server, model, weights, store, context: &session.0 };
                handle.block_on(runner.online(run, image, &mut peer))
            });
            (peer, result)
        })
    };
    tokio::pin!(online);

    // Either the store fills up, or a thread ends with the reason why it does not.
    tokio::select! {
        Ok(()) = is_ready => {}
        e = preparing.failure(ended) => return Err(e),
        outcome = &mut online => return Err(failure(ended, outcome.map(|(_, result)| result.err()))),
        gone = client.gone() => return Err(gone),
    }
    let queued = queued.as_secs_f64();
    client.send(&Readiness::Ready { seconds: started.elapsed().as_secs_f64(), queued }).await?;
    let share = tokio::select! {
        share = receive_image(inner, client, server, known.sizes.image_share) => share?,
        e = preparing.failure(ended) => return Err(e),
        outcome = &mut online => return Err(failure(ended, outcome.map(|(_, result)| result.err()))),
    };
    let arrived = Instant::now();
    image.send(share).map_err(|_| Error::Internal("the online thread is gone".into()))?;
    let (peer, result) = tokio::select! {
        outcome = &mut online => outcome?,
        // Not only when the online phase gets there: it may be waiting for the other server, and that for this.
        e = preparing.failure(ended) => return Err(e),
        gone = client.gone() => return Err(gone),
    };
    let (output, ledger) = result.map_err(|e| ended.reason().unwrap_or(Error::Protocol(e)))?;
    let online_seconds = arrived.elapsed().as_secs_f64();
    let output = Zeroizing::new(output);
    if output.len() != known.sizes.output {
        return Err(Error::Internal(format!("a result of {} bytes", output.len())));
    }
    let (helper, prepared_at) = preparing.done().await?;
    drop(leave);
    let report = Report {
        ledger,
        offline_seconds: (prepared_at - started).as_secs_f64(),
        online_seconds,
        offline_sent: to_helper.sent(),
        helper_sent: to_helper.received(),
        online_sent: to_peer.sent(),
    };
    client.send(&ResultShare { bytes: output.len() as u64, report }).await?;
    client.send_bulk(bytes::Bytes::from_owner(output)).await?;
    Ok((peer, helper))
}

/// The thread that prepares: the helper's link, and when it was done.
struct Preparing {
    thread: Pin<Box<dyn Future<Output = Result<Prepared>> + Send>>,
    done: Option<(StreamChannel, Instant)>,
}

type Prepared = std::result::Result<(StreamChannel, Instant), sharelens_protocol::Error>;

impl Preparing {
    fn new(thread: impl Future<Output = Result<Prepared>> + Send + 'static) -> Self {
        Self { thread: Box::pin(thread), done: None }
    }

    /// Waits for it. What it returned is kept if this is dropped before.
    async fn wait(&mut self) -> Result<()> {
        if self.done.is_none() {
            self.done = Some(self.thread.as_mut().await??);
        }
        Ok(())
    }

    /// Why it failed; pending for ever if it does not.
    async fn failure(&mut self, ended: &Ended) -> Error {
        match self.wait().await {
            Ok(()) => std::future::pending().await,
            Err(e) => ended.reason().unwrap_or(e),
        }
    }

    async fn done(mut self) -> Result<(StreamChannel, Instant)> {
        self.wait().await?;
        self.done.ok_or_else(|| Error::Internal("preparing left nothing".into()))
    }
}

/// Why a session's thread ended early.
fn failure(ended: &Ended, outcome: Result<Option<sharelens_protocol::Error>>) -> Error {
    match outcome {
        Ok(Some(e)) => ended.reason().unwrap_or(Error::Protocol(e)),
        Ok(None) => Error::Internal("a result without an image".into()),
        Err(e) => e,
    }
}

async fn receive_image<R: Runner>(
    inner: &Inner<R>,
    client: &mut ControlStream,
    server: Server,
    words: usize,
) -> Result<InputShare> {
    let ImageShare { bytes } = client.recv().await?;
    let len = at_most("the share of the image", bytes, inner.config.limits.image_mib << 20)?;
    let due = InputShare::len_for(server, words);
    if len != due {
        return Err(Error::Malformed {
            peer: client.peer().into(),
            expected: format!("an image share of {due} bytes"),
            found: format!("{len} bytes"),
        });
    }
    let limit = inner.config.limits.upload_timeout(bytes);
    let share =
        tokio::time::timeout(limit, client.recv_bulk(len, "image share")).await.unwrap_or_else(|_| {
            let (peer, what) = (client.peer().into(), "whole image share".into());
            Err(Error::Timeout { peer, what, seconds: limit.as_secs() })
        })?;
    InputShare::new(server, share).ok_or_else(|| Error::Internal("a seed of another length".into()))
}

/// What a session needs from the other two nodes.
struct Links<R: Runner> {
    /// A place among the sessions, taken once both servers have the request.
    place: queue::Place,
    /// How long that took at server 0.
    queued: Duration,
    weights: Arc<R::Weights>,
    seed: DealtSeed,
    peer: StreamChannel,
    helper: StreamChannel,
    to_peer: Traffic,
    to_helper: Traffic,
}

/// A place among the sessions, and what the helper gave for the session.
struct Seated {
    place: queue::Place,
    /// How long the place took at server 0.
    queued: Duration,
    helper: ControlStream,
    seed: DealtSeed,
}

impl<R: Runner> Links<R> {
    async fn establish(
        inner: &Arc<Inner<R>>,
        server: Server,
        session: SessionId,
        known: &Arc<Known<R>>,
        request: &Request,
        ended: &Ended,
        tell: &watch::Sender<Option<Readiness>>,
    ) -> Result<Self> {
        let (mut peer, epoch, weights) = match server {
            Server::Server0 => Self::lead(inner, session, known).await?,
            Server::Server1 => Self::follow(inner, session, known).await?,
        };
        let deal = Purpose::Deal(inner.work(known, epoch));
        let seated = match server {
            Server::Server0 => Self::first(inner, session, request, deal, &mut peer, tell).await,
            Server::Server1 => Self::second(inner, session, request, deal, &mut peer).await,
        };
        let Seated { place, queued, mut helper, seed } = match seated {
            Ok(seated) => seated,
            Err(e) => {
                Self::note(inner, known, &epoch, &e);
                return refuse(peer, e).await;
            }
        };
        // The helper rests while server 1's store is full.
        helper.set_timeout(inner.config.limits.session_timeout());
        if request.start == Start::AtOnce {
            // And the other server until its correlations have come.
            peer.set_timeout(inner.config.limits.session_timeout());
        }
        let (to_peer, to_helper) = (Traffic::default(), Traffic::default());
        Ok(Self {
            place,
            queued,
            weights,
            seed,
            peer: peer.into_channel(ended.clone(), Sending::Unbounded, to_peer.clone())?.peer_tells(),
            helper: helper.into_channel(ended.clone(), Sending::Unbounded, to_helper.clone())?,
            to_peer,
            to_helper,
        })
    }

    /// Asks the helper for this server's seed.
    async fn dealt(
        inner: &Inner<R>,
        session: SessionId,
        deal: Purpose,
        patience: Duration,
    ) -> Result<(ControlStream, DealtSeed)> {
        let helper = inner.peers.get(Role::Helper)?;
        let mut stream = inner.call(&helper, session, deal).await?;
        stream.set_timeout(patience);
        let seed = stream.recv().await?;
        Ok((stream, seed))
    }

    /// At server 0: waits for a place, telling where in the queue the request is, and asks the helper once it has it.
    async fn first(
        inner: &Inner<R>,
        session: SessionId,
        request: &Request,
        deal: Purpose,
        server1: &mut ControlStream,
        tell: &watch::Sender<Option<Readiness>>,
    ) -> Result<Seated> {
        let (joined, limits) = (Instant::now(), &inner.config.limits);
        let mut draining = inner.draining.subscribe();
        let wait = inner.queue.join(request.pin)?.place(request.wait.min(limits.queue_timeout()), |turn| {
            if let Turn::Waits { position, seconds } = turn {
                tell.send_replace(Some(Readiness::Queued { position, seconds }));
            }
        });
        let place = tokio::select! {
            place = wait => place?,
            gone = server1.gone() => return Err(gone),
            // A shutdown waits for what runs, not for what waits.
            _ = draining.wait_for(|draining| *draining) => return Err(Error::Draining(inner.name())),
        };
        let queued = joined.elapsed();
        let (helper, seed) = tokio::select! {
            dealt = Self::dealt(inner, session, deal, limits.message_timeout()) => dealt?,
            gone = server1.gone() => return Err(gone),
        };
        Ok(Seated { place, queued, helper, seed })
    }

    /// At server 1: asks the helper, who answers once server 0 has asked, which has a place then.
    async fn second(
        inner: &Inner<R>,
        session: SessionId,
        request: &Request,
        deal: Purpose,
        server0: &mut ControlStream,
    ) -> Result<Seated> {
        let limits = &inner.config.limits;
        let mut draining = inner.draining.subscribe();
        let begin = async {
            let patience = limits.queue_timeout() + limits.message_timeout();
            let (helper, seed) = Self::dealt(inner, session, deal, patience).await?;
            // Free at once, or as soon as a session has ended here that has ended at server 0.
            let place = inner.queue.join(request.pin)?.place(limits.session_timeout(), |_| {}).await?;
            Ok(Seated { place, queued: Duration::ZERO, helper, seed })
        };
        tokio::select! {
            begun = begin => begun,
            gone = server0.gone() => Err(gone),
            _ = draining.wait_for(|draining| *draining) => Err(Error::Draining(inner.name())),
        }
    }

    /// Server 0 opens the servers' stream.
    async fn lead(
        inner: &Arc<Inner<R>>,
        session: SessionId,
        known: &Arc<Known<R>>,
    ) -> Result<(ControlStream, loads::Epoch, Arc<R::Weights>)> {
        let (epoch, weights) = loads::ensure(inner, known).await?;
        let server1 = inner.peers.get(Role::Server1)?;
        let mut stream = inner.call(&server1, session, Purpose::Online(inner.work(known, epoch))).await?;
        match stream.recv::<Go>().await {
            Ok(Go) => Ok((stream, epoch, weights)),
            Err(e) => {
                Self::note(inner, known, &epoch, &e);
                Err(e)
            }
        }
    }

    /// Server 1 waits for it, without a place: the client may have asked here alone. The load before may take long; the
    /// session's limit bounds this, too.
    async fn follow(
        inner: &Arc<Inner<R>>,
        session: SessionId,
        known: &Arc<Known<R>>,
    ) -> Result<(ControlStream, loads::Epoch, Arc<R::Weights>)> {
        let wait: Duration = inner.config.limits.session_timeout();
        let arrival = inner.arrivals.take((Kind::Online, session), "server 0", "stream of the session", wait);
        let mut draining = inner.draining.subscribe();
        let (mut stream, work) = tokio::select! {
            arrival = arrival => arrival?,
            // A shutdown waits for what runs, not for a request that server 0 may never get.
            _ = draining.wait_for(|draining| *draining) => return Err(Error::Draining(inner.name())),
        };
        let weights = match known.check_work("server 0", &work) {
            Ok(()) => inner.loads.weights(&known.id, &work.epoch),
            Err(e) => Err(e),
        };
        match weights {
            Ok(weights) => {
                stream.send(&Go).await?;
                Ok((stream, work.epoch, weights))
            }
            Err(e) => refuse(stream, e).await,
        }
    }

    /// A load that another node does not know is of no use any more.
    fn note(inner: &Inner<R>, known: &Known<R>, epoch: &loads::Epoch, e: &Error) {
        if e.code() == Code::StaleLoad {
            inner.loads.forget(&known.id, epoch);
        }
    }
}
