//! `infer`, `plain` and `plan`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use sharelens::client::{Inference, Patience, Progress};
use sharelens::config::LinkConfig;
use sharelens::control::Start;
use sharelens::engine::Opened;
use sharelens::outcome::{Difference, Ranges};
use sharelens::report::{CostReport, PlanReport};
use sharelens::{Client, Cluster, Identity, Outcome, Pin, Role, engine};
use sharelens_models::Manifest;
use sharelens_protocol::Server;

use super::document::Document;
use super::outputs::{Collector, OfImage, Outputs};
use super::{KeyArgs, Mode, RingName, RoundsName, Ui, model, show};

#[derive(Debug, Args)]
pub struct Infer {
    /// The nodes.
    #[arg(long, default_value = "cluster.toml")]
    cluster: PathBuf,
    /// Name of the model.
    #[arg(long)]
    model: String,
    /// Which version; the newest by default.
    #[arg(long)]
    version: Option<u32>,
    /// Key of the model's owner: a model that another one shared is refused before anything is sent.
    #[arg(long, value_name = "PIN", value_parser = pin)]
    owner: Option<Pin>,
    /// Images.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    outputs: Outputs,
    /// Send an image only when all is preprocessed for it: the online phase is shorter, the whole longer [default:
    /// preprocessing goes on beside the online phase].
    #[arg(long)]
    prepare_first: bool,
    /// How long each image may wait for a free place at the servers, and be tried again after a failure that passes, such as
    /// a node that restarts: `45`, `90s`, `5m`.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    deadline: Duration,
    /// Where correlations come from.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Round-trip time and bandwidth to the servers, for the timers of the connection.
    #[arg(long, value_name = "RTTms,MBIT")]
    wan: Option<super::Wan>,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
pub struct PlainArgs {
    /// A prepared model.
    model: PathBuf,
    /// Images.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Which arithmetic.
    #[arg(long, value_enum, default_value_t)]
    ring: RingName,
    #[command(flatten)]
    outputs: Outputs,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A prepared model.
    model: PathBuf,
    /// Round-trip time in milliseconds.
    #[arg(long, default_value_t = 1.0)]
    rtt: f64,
    /// Bandwidth in Mbit/s.
    #[arg(long, default_value_t = 1000.0)]
    mbit: f64,
    /// Which arithmetic.
    #[arg(long, value_enum, default_value_t)]
    ring: RingName,
    /// What comparisons trade rounds for [default: what this link deserves].
    #[arg(long, value_enum)]
    rounds: Option<RoundsName>,
}

/// One image's result.
pub struct Done {
    /// What the model says about itself.
    pub manifest: Manifest,
    /// The outputs before the final activation.
    pub outputs: Vec<Vec<f64>>,
    /// Whether numbers stayed in their range.
    pub ranges: Ranges,
    /// Shares and reports.
    pub inference: Inference,
    /// Whether the image waited for preprocessing.
    pub start: Start,
    /// What server 0 saw of the image, as [`engine::view`].
    pub view: Vec<u8>,
}

impl Done {
    /// What it cost.
    pub fn cost(&self) -> CostReport {
        CostReport::new(&self.manifest, &self.inference, self.start)
    }

    /// The document of `--json`.
    pub fn document(&self, image: &Path, mode: Mode) -> Result<Document> {
        let model = &self.inference.model;
        Ok(Document {
            model: model.name.clone(),
            version: Some(model.version),
            owner: Some(self.inference.owner),
            mode: Some(mode),
            in_range: Some(self.ranges.in_range()),
            ranges: Some(self.ranges.clone()),
            cost: Some(self.cost()),
            ..Document::new(&self.manifest, image, &self.outputs)?
        })
    }
}

/// Connects to both servers.
pub async fn connect(cluster: &Cluster, identity: Arc<Identity>, link: &LinkConfig) -> Result<Client> {
    let servers = [Role::Server0, Role::Server1];
    Ok(Client::connect(cluster, &servers, identity, link, Patience::default()).await?)
}

/// Seconds, or minutes with an `m` behind.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60.0),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let seconds = number.parse::<f64>().map(|n| n * unit);
    match seconds {
        Ok(s) if (0.0..=86_400.0).contains(&s) => Ok(Duration::from_secs_f64(s)),
        _ => Err("a time is a number of seconds (`45`, `90s`) or minutes (`5m`), a day at most".into()),
    }
}

fn pin(text: &str) -> Result<Pin, String> {
    Pin::from_hex(text).ok_or_else(|| "a key is 64 hexadecimal digits, as `infer` prints them".into())
}

/// Which model a client wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Its name.
    pub model: &'a str,
    /// Its version; the newest, if none is given.
    pub version: Option<u32>,
    /// The key that must have shared it, if it matters.
    pub owner: Option<Pin>,
}

/// Runs a shared model on one image.
pub async fn infer(client: &Client, wanted: Wanted<'_>, start: Start, image: &Path, ui: Ui) -> Result<Done> {
    let bar = ui.progress(4, "sharing");
    let told = |at: Progress| {
        let message = match at {
            Progress::Queued { position, seconds } => {
                let about = seconds.map(|s| format!(", about {s} s")).unwrap_or_default();
                return bar.set_message(format!("position {position}{about}"));
            }
            Progress::Accepted if start == Start::AtOnce => "connecting",
            Progress::Accepted => "preprocessing",
            Progress::Ready => "sending",
            Progress::Sent => "computing",
        };
        bar.inc(1);
        bar.set_message(message);
    };
    let run = async {
        let session = client.begin(wanted.model, wanted.version, start).await?;
        let (owner, model) = (session.accepted().owner, &session.accepted().model);
        if let Some(expected) = wanted.owner.filter(|wanted| *wanted != owner) {
            bail!("model {model} was shared by {owner}, and {expected} was asked for");
        }
        told(Progress::Accepted);
        let manifest = session.manifest()?;
        let input = model::input(manifest.config.preprocess.as_ref(), image).context(OfImage)?;
        let shared = engine::share_image(&manifest, &input)?;
        let view = engine::view(&manifest, &shared, Server::Server0)?;
        anyhow::Ok((session.run(shared, told).await?, manifest, view))
    };
    let done = run.await;
    bar.finish_and_clear();
    let (inference, manifest, view) = done?;
    let [a, b] = &inference.outputs;
    let Opened { outputs, ranges } = engine::open_result(&manifest, [a, b])?;
    Ok(Done { manifest, outputs, ranges, inference, start, view })
}

impl Infer {
    pub fn run(self, ui: Ui) -> Result<()> {
        let cluster = Cluster::load(&self.cluster)?;
        let identity = self.key.identity()?;
        let mut collector = Collector::new(&self.outputs, &self.images, ui)?;
        let link = match self.wan {
            Some(wan) => {
                LinkConfig { rtt_ms: wan.rtt_ms.max(0.1), bandwidth_mbit: wan.mbit, ..LinkConfig::default() }
            }
            None => LinkConfig::default(),
        };
        super::runtime()?.block_on(async {
            let mut servers = Servers { cluster: &cluster, identity, link: &link, client: None };
            let all = tokio::select! {
                all = self.all(&mut servers, &mut collector, ui) => all,
                _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
            };
            // Also after an error: the servers need not wait for a client that is gone.
            servers.disconnect().await;
            collector.finish(all)
        })
    }

    /// One image, until its deadline. Each try is a session of its own with fresh shares.
    async fn one(
        &self,
        servers: &mut Servers<'_>,
        wanted: Wanted<'_>,
        start: Start,
        image: &Path,
        ui: Ui,
    ) -> Result<Done> {
        let deadline = Instant::now() + self.deadline;
        let mut tries = 0;
        loop {
            let failed = match servers.client().await {
                Ok(client) => {
                    client.set_queue_patience(deadline.saturating_duration_since(Instant::now()));
                    match infer(client, wanted, start, image, ui).await {
                        Ok(done) => return Ok(done),
                        Err(e) => e,
                    }
                }
                Err(e) => e,
            };
            let transient =
                failed.downcast_ref::<sharelens::Error>().is_some_and(|e| e.code().is_transient());
            let next = pause(tries);
            if !transient || Instant::now() + next >= deadline {
                return Err(failed);
            }
            tracing::warn!("{failed}; trying again in {:.1} s", next.as_secs_f64());
            servers.disconnect().await;
            tokio::time::sleep(next).await;
            tries += 1;
        }
    }

    async fn all(&self, servers: &mut Servers<'_>, collector: &mut Collector<'_>, ui: Ui) -> Result<()> {
        let start = Start::overlapped(!self.prepare_first);
        for image in &self.images {
            let wanted = Wanted { model: &self.model, version: self.version, owner: self.owner };
            let done = match self.one(servers, wanted, start, image, ui).await {
                Ok(done) => done,
                Err(e) => {
                    collector.failed(image, e)?;
                    continue;
                }
            };
            ui.say(format_args!("model {} of owner {}", done.inference.model, done.inference.owner));
            let document = done.document(image, self.mode)?;
            ui.say(format_args!("{}\n{}", show(image), document.result));
            ui.say(done.cost());
            if !ui.json {
                document.warnings().iter().for_each(|warning| ui.print(format_args!("  warning: {warning}")));
            }
            if ui.quiet && !ui.json {
                ui.print(document.result.to_string().trim());
            }
            collector.add(image, &done.manifest, &done.outputs, None, document)?;
        }
        Ok(())
    }
}

/// Both servers, connected when they are needed.
struct Servers<'a> {
    cluster: &'a Cluster,
    identity: Arc<Identity>,
    link: &'a LinkConfig,
    client: Option<Client>,
}

impl Servers<'_> {
    async fn client(&mut self) -> Result<&mut Client> {
        let client = match self.client.take() {
            Some(client) => client,
            None => connect(self.cluster, self.identity.clone(), self.link).await?,
        };
        Ok(self.client.insert(client))
    }

    async fn disconnect(&mut self) {
        if let Some(client) = self.client.take() {
            client.close().await;
        }
    }
}

/// Pause before the next try: doubled each time, and of random length, so that clients that failed together do not come
/// back together.
fn pause(tries: u32) -> Duration {
    let longest = 0.25 * f64::from(1u32 << tries.min(5));
    Duration::from_secs_f64(longest * rand::random_range(0.5..1.0))
}

impl PlainArgs {
    pub fn run(self, ui: Ui) -> Result<()> {
        let prepared = model::load(&self.model)?;
        let twin = prepared.twin(&model::arithmetic(&prepared, self.ring)?)?;
        let manifest = twin.manifest();
        let mut collector = Collector::new(&self.outputs, &self.images, ui)?;
        for image in &self.images {
            let input = match model::input(manifest.config.preprocess.as_ref(), image).context(OfImage) {
                Ok(input) => input,
                Err(e) => {
                    collector.failed(image, e)?;
                    continue;
                }
            };
            let (plain, float) = (twin.run(&input)?, prepared.float(&input)?);
            let document = Document {
                float: Some(Outcome::new(manifest, &float)?),
                difference: Some(Difference::of(manifest, &plain, &float)),
                ..Document::new(manifest, image, &plain)?
            };
            if !ui.json {
                ui.print(format_args!("{}\n{}", show(image), document.result));
            }
            collector.add(image, manifest, &plain, Some(&float), document)?;
        }
        collector.finish(Ok(()))
    }
}

impl PlanArgs {
    pub fn run(self, ui: Ui) -> Result<()> {
        if !(self.rtt >= 0.0 && self.mbit > 0.0) {
            bail!("--rtt must not be negative, and --mbit must be above 0");
        }
        let prepared = model::load(&self.model)?;
        let mut manifest = prepared.manifest_for(&model::arithmetic(&prepared, self.ring)?)?;
        let wan = super::Wan { rtt_ms: self.rtt, mbit: self.mbit };
        manifest.rounds = super::rounds(&manifest, self.rounds, Some(wan))?;
        let report = PlanReport::new(&manifest, self.rtt, self.mbit)?;
        ui.result(&report, &report)
    }
}
