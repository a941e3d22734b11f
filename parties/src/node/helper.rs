//! The helper: seeds for both servers, corrections for server 1. It never sees a share of anything.

use std::sync::Arc;
use std::time::Duration;

use sharelens_protocol::prg::Seed;

use super::sessions::{Kind, on_thread};
use super::{Inner, refuse};
use crate::config::Role;
use crate::control::{DealtSeed, Go, SessionId, Work};
use crate::error::{Error, Result};
use crate::runner::Runner;
use crate::transport::{ControlStream, Ended, Sending, Traffic};

/// Bytes queued for server 1 before dealing waits.
const AHEAD: usize = 16 << 20;

/// Server 1's request for correlations of a session; server 0's arrives on its own stream.
pub async fn deal<R: Runner>(
    inner: &Arc<Inner<R>>,
    mut server1: ControlStream,
    session: SessionId,
    work: Work,
) -> Result<()> {
    let _active = inner.active.enter();
    // Server 0 comes once the session has a place there.
    let wait = inner.config.limits.queue_timeout() + inner.config.limits.message_timeout();
    let mut draining = inner.draining.subscribe();
    let met = tokio::select! {
        met = meet(inner, Kind::Deal, session, &work, wait) => met,
        gone = server1.gone() => Err(gone),
        // A shutdown waits for what runs, not for what waits.
        _ = draining.wait_for(|draining| *draining) => Err(Error::Draining(inner.name())),
    };
    let mut server0 = match met {
        Ok(stream) => stream,
        Err(e) => return refuse(server1, e).await,
    };
    let begin = async {
        let known = inner.known_work(Role::Server1, &work).await?;
        let masks = inner.loads.masks(&known.id, &work.epoch)?;
        let seeds = send_seeds(&mut server0, &mut server1).await?;
        Ok((known, masks, seeds))
    };
    let (known, masks, seeds) = match begin.await {
        Ok(begun) => begun,
        Err(e) => return refuse_both(server0, server1, e).await,
    };
    let ended = Ended::default();
    let wait = inner.config.limits.session_timeout();
    let sending = Sending::Bounded { bytes: AHEAD, wait };
    server0.set_timeout(wait);
    server1.set_timeout(wait);
    let silent = server0.into_channel(ended.clone(), Sending::Unbounded, Traffic::default())?;
    let mut channel = server1.into_channel(ended, sending, Traffic::default())?;
    let runner = inner.runner.clone();
    let (channel, dealt) = on_thread("deal", move |handle| {
        let deal = runner.deal(&known.model, &masks, &seeds, &session.0, &mut channel);
        let dealt = handle.block_on(deal);
        (channel, dealt)
    })
    .await?;
    dealt?;
    let (a, b) = tokio::join!(silent.close(), channel.close());
    a.and(b)
}

/// Server 1's part of a load; server 0's arrives on its own stream.
pub async fn load<R: Runner>(
    inner: &Arc<Inner<R>>,
    mut server1: ControlStream,
    session: SessionId,
    work: Work,
) -> Result<()> {
    let _active = inner.active.enter();
    let wait = inner.config.limits.message_timeout();
    let mut server0 = match meet(inner, Kind::Load, session, &work, wait).await {
        Ok(stream) => stream,
        Err(e) => return refuse(server1, e).await,
    };
    let body = async {
        let known = inner.known_work(Role::Server1, &work).await?;
        let seeds = send_seeds(&mut server0, &mut server1).await?;
        let (runner, of, epoch) = (inner.runner.clone(), known.clone(), work.epoch);
        let masks = on_thread("masks", move |_| runner.masks(&of.model, &seeds, &epoch)).await??;
        inner.loads.keep_masks(&known, work.epoch, masks);
        server0.send(&Go).await?;
        server1.send(&Go).await
    };
    match body.await {
        Ok(()) => {
            tracing::info!("model {} loaded", work.model);
            let (a, b) = tokio::join!(server0.finish(), server1.finish());
            a.and(b)
        }
        Err(e) => refuse_both(server0, server1, e).await,
    }
}

async fn meet<R: Runner>(
    inner: &Arc<Inner<R>>,
    kind: Kind,
    session: SessionId,
    work: &Work,
    wait: Duration,
) -> Result<ControlStream> {
    inner.check_not_draining()?;
    inner.known_work(Role::Server1, work).await?;
    let arrival = inner.arrivals.take((kind, session), "server 0", "request", wait);
    // Writing the id to disk takes about as long; nothing is dealt before it is there.
    let ((), (stream, theirs)) = tokio::try_join!(inner.first_use(session), arrival)?;
    if theirs == *work {
        return Ok(stream);
    }
    let e = Error::Malformed {
        peer: "server 0".into(),
        expected: format!("the work of server 1 on {}", work.model),
        found: format!("other work, on {}", theirs.model),
    };
    refuse(stream, e).await
}

/// A fresh seed for each server, over its own authenticated stream.
async fn send_seeds(server0: &mut ControlStream, server1: &mut ControlStream) -> Result<[Seed; 2]> {
    let fresh = || Seed::random().map_err(|e| Error::Internal(e.to_string()));
    let seeds = [fresh()?, fresh()?];
    server0.send(&DealtSeed::new(&seeds[0])).await?;
    server1.send(&DealtSeed::new(&seeds[1])).await?;
    Ok(seeds)
}

async fn refuse_both<T>(server0: ControlStream, server1: ControlStream, e: Error) -> Result<T> {
    tokio::join!(server0.refuse(&e), server1.refuse(&e));
    Err(e)
}
