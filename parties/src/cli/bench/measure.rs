//! Runs of one subject at one place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use sharelens::config::LinkConfig;
use sharelens::control::{ModelId, Start};
use sharelens::local::{Link, SESSION_TRIPS};
use sharelens::{Identity, LocalCluster, engine};
use sharelens_protocol::channel::HEADER_BYTES;
use sharelens_protocol::cost::Ledger;

use super::subject::Subject;
use super::{link_config, machine};
use crate::cli::nodes::{self, Nodes};
use crate::cli::{Mode, Ui, Wan, infer, model};

/// Where the parties are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    /// Three processes over loopback.
    Loopback,
    /// Three processes with relays between them that delay.
    Relay(Wan),
    /// One process, and a link that only exists in the clock.
    Virtual(Wan),
}

impl Place {
    /// The link, if it is not this machine's own.
    pub const fn wan(self) -> Option<Wan> {
        match self {
            Self::Loopback => None,
            Self::Relay(wan) | Self::Virtual(wan) => Some(wan),
        }
    }

    /// 1 ms and 1 Gbit/s, in the clock.
    pub const fn lan() -> Self {
        Self::Virtual(Wan { rtt_ms: 1.0, mbit: 1000.0 })
    }
}

impl std::str::FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "loopback" => Ok(Self::Loopback),
            "lan" => Ok(Self::lan()),
            other => other.parse().map(Self::Virtual).map_err(|_| {
                format!("{other:?} is not loopback, lan, or of the form RTTms:MBITmbit, as 50ms:400mbit")
            }),
        }
    }
}

/// A relay's link, within what a relay can do.
pub fn relay(text: &str) -> Result<Place, String> {
    let wan: Wan = text.parse()?;
    if wan.rtt_ms > 10_000.0 || wan.mbit < 0.1 {
        return Err("a relay delays by at most 10000 ms and passes at least 0.1 Mbit/s".into());
    }
    Ok(Place::Relay(wan))
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Loopback => f.write_str("loopback"),
            Self::Relay(wan) => write!(f, "relay {}ms:{}mbit", wan.rtt_ms, wan.mbit),
            Self::Virtual(wan) => write!(f, "{}ms:{}mbit", wan.rtt_ms, wan.mbit),
        }
    }
}

/// How often, on how many threads, and in which order.
pub struct Settings {
    /// Runs that count.
    pub runs: usize,
    /// Threads of each party.
    pub threads: Option<usize>,
    /// Whether the input waits for preprocessing.
    pub start: Start,
    /// Where correlations come from.
    pub mode: Mode,
}

/// One run.
pub struct Sample {
    /// Seconds until the image could be sent: all correlations were there, or the session was set up.
    pub offline: f64,
    /// Seconds from then to the result.
    pub online: f64,
    /// Seconds for which a server went on preparing after the client heard that it may send: it was told to, a cap
    /// on memory was reached, or threads that finished were scheduled late.
    pub overlap: f64,
    /// What server 0 counted.
    pub ledger: Ledger,
    /// Bytes sent ahead of the image, by server 0, server 1 and the helper.
    pub offline_bytes: [u64; 3],
    /// Bytes that each server sent to the other.
    pub online_bytes: [u64; 2],
    /// The result.
    pub outputs: Vec<Vec<f64>>,
}

/// All runs.
pub struct Measured {
    /// Seconds that sharing or loading the model took, before everything.
    pub load: f64,
    /// The run that does not count.
    pub warm_up: Sample,
    /// The others.
    pub samples: Vec<Sample>,
    /// Peak resident bytes by process.
    pub memory: BTreeMap<String, Option<u64>>,
}

/// Measures a subject: a warm-up and then the runs.
pub fn run(subject: &Subject, place: Place, settings: &Settings, ui: Ui) -> Result<Measured> {
    match place {
        Place::Virtual(wan) => in_one_process(subject, Link::new(wan.rtt_ms, wan.mbit), settings, ui),
        Place::Loopback | Place::Relay(_) => crate::cli::runtime()?.block_on(async {
            tokio::select! {
                measured = in_processes(subject, place, settings, ui) => measured,
                // Leaving this block stops the nodes.
                _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            }
        }),
    }
}

async fn in_processes(subject: &Subject, place: Place, settings: &Settings, ui: Ui) -> Result<Measured> {
    let (relay, link) = match place {
        Place::Relay(wan) => (Some(Link::new(wan.rtt_ms, wan.mbit)), link_config(wan)),
        _ => (None, LinkConfig::default()),
    };
    let options = nodes::Options { threads: settings.threads, relay, link };
    let identity = Arc::new(Identity::generate()?);
    let nodes = Nodes::start(&options, identity.pin()).await?;
    let id = ModelId { name: "bench".into(), version: 1 };
    let start = Instant::now();
    let (manifest, weights) = (&subject.manifest, &subject.weights);
    model::upload(manifest, weights, &nodes.cluster, &id, identity.clone(), &options.link, ui).await?;
    let load = start.elapsed().as_secs_f64();
    let client = infer::connect(&nodes.cluster, identity, &options.link).await?;
    let bar = ui.progress(settings.runs as u64 + 1, "measuring");
    let mut samples = Vec::new();
    for _ in 0..=settings.runs {
        // Splitting the image is the client's work, done before the clock of the online phase starts.
        let session = client.begin(&id.name, None, settings.start).await?;
        let image = engine::share_image(&session.manifest()?, &subject.input)?;
        let done = session.run(image, |_| {}).await?;
        let [a, b] = &done.outputs;
        let [r0, r1] = done.reports;
        samples.push(Sample {
            offline: done.offline_seconds,
            online: done.online_seconds,
            overlap: (r0.offline_seconds.max(r1.offline_seconds)
                - done.queued_seconds
                - done.offline_seconds)
                .max(0.0),
            offline_bytes: [r0.offline_sent, r1.offline_sent, r0.helper_sent + r1.helper_sent],
            online_bytes: [r0.online_sent, r1.online_sent],
            ledger: r0.ledger,
            outputs: engine::open_result(manifest, [a, b])?.outputs,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    client.close().await;
    let memory = nodes
        .processes()
        .map(|(role, id)| (role.word().to_string(), machine::peak_memory(Some(id))))
        .collect();
    nodes.stop().await;
    Ok(Measured { load, warm_up: samples.remove(0), samples, memory })
}

fn in_one_process(subject: &Subject, link: Link, settings: &Settings, ui: Ui) -> Result<Measured> {
    machine::forget_peak();
    let manifest = &subject.manifest;
    let (seed, words) = engine::share_weights(manifest, &subject.weights)?;
    let encoded = engine::encode_manifest(manifest)?;
    let cluster = LocalCluster::start(engine::runner(), link, &encoded, seed, &words)?;
    let bar = ui.progress(settings.runs as u64 + 1, "measuring");
    let mut samples = Vec::new();
    for _ in 0..=settings.runs {
        let image = engine::share_image(manifest, &subject.input)?;
        let done = cluster.run_from(&image, settings.start)?;
        // The cluster's clock knows the work; a session's set-up and the client's two messages are added.
        let setup = link.rtt / 2 * SESSION_TRIPS;
        let upload = link.delivery(image.words.len() + HEADER_BYTES);
        let download = link.delivery(image.output_bytes + HEADER_BYTES);
        let [a, b] = &done.outputs;
        let outputs = engine::open_result(manifest, [a, b])?.outputs;
        let [ledger, _] = done.ledgers;
        samples.push(Sample {
            offline: (done.offline + setup).as_secs_f64(),
            online: (done.online + upload + download).as_secs_f64(),
            // The client hears one trip after the servers are ready.
            overlap: done.prepared.saturating_sub(done.offline + link.rtt / 2).as_secs_f64(),
            ledger,
            offline_bytes: [0, 0, done.dealt_bytes],
            online_bytes: done.online_bytes,
            outputs,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    let memory = BTreeMap::from([("all".into(), machine::peak_memory(None))]);
    let load = cluster.load_time().as_secs_f64();
    let warm_up = (!samples.is_empty()).then(|| samples.remove(0)).context("no run")?;
    Ok(Measured { load, warm_up, samples, memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let wan = Wan { rtt_ms: 50.0, mbit: 400.0 };
        for (text, place, shown) in [
            ("loopback", Place::Loopback, "loopback"),
            ("lan", Place::lan(), "1ms:1000mbit"),
            ("50ms:400mbit", Place::Virtual(wan), "50ms:400mbit"),
        ] {
            assert_eq!(text.parse::<Place>(), Ok(place));
            assert_eq!(place.to_string(), shown);
        }
        assert_eq!(relay("50ms:400mbit"), Ok(Place::Relay(wan)));
        assert!("50ms".parse::<Place>().unwrap_err().contains("50ms:400mbit"));
        assert!(relay("50ms:0.01mbit").is_err() && relay("1e9ms:1").is_err());
    }
}
