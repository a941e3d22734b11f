//! The command line: arguments, output, and one module per group of commands.

mod annotations;
mod bench;
mod client;
mod cluster;
mod demo;
mod document;
mod draw;
mod infer;
mod model;
mod node;
mod nodes;
mod outputs;
mod page;
mod relay;
mod shipped;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use sharelens::{Identity, PlanReport, text};
use sharelens_models::Manifest;
use sharelens_protocol::compare::Rounds;
use tracing_subscriber::EnvFilter;

/// Run neural networks on medical images that nobody but you can see.
#[derive(Debug, Parser)]
#[command(name = "sharelens", version)]
pub struct Args {
    /// Print one JSON document on standard output and nothing else there.
    #[arg(long, global = true)]
    json: bool,
    /// Print results only.
    #[arg(long, global = true)]
    quiet: bool,
    /// What to log on standard error: error, warn, info, debug, trace, or a filter.
    #[arg(long, global = true, value_name = "LEVEL", env = "SHARELENS_LOG")]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up and run a node.
    #[command(subcommand)]
    Node(node::Command),
    /// The key of a client or a model owner.
    #[command(subcommand)]
    Client(client::Command),
    /// Bring three nodes together.
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Prepare and share a model.
    #[command(subcommand)]
    Model(model::Command),
    /// Run a shared model on images.
    Infer(infer::Infer),
    /// Run a model in the clear, with the same arithmetic.
    Plain(infer::PlainArgs),
    /// Predict rounds, bytes and time of a model, without any party.
    Plan(infer::PlanArgs),
    /// Measure models and single operations on this machine.
    Bench(Box<bench::Bench>),
    /// Try everything on this machine.
    Demo(demo::Demo),
}

/// How to talk to the user.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    json: bool,
    quiet: bool,
}

impl Ui {
    /// A line for people; not with `--json` or `--quiet`.
    pub fn say(self, line: impl std::fmt::Display) {
        if !self.json && !self.quiet {
            self.print(line);
        }
    }

    /// Lines on standard output, without what could steer a terminal.
    pub fn print(self, lines: impl std::fmt::Display) {
        output(text::lines(&lines.to_string()));
    }

    /// The result: one JSON document with `--json`, the text otherwise.
    pub fn result(self, value: &impl Serialize, lines: impl std::fmt::Display) -> Result<()> {
        if self.json {
            output(serde_json::to_string_pretty(value)?);
        } else {
            self.print(lines);
        }
        Ok(())
    }

    /// What was done: one JSON document with `--json`, the text otherwise, nothing with `--quiet`.
    pub fn done(self, value: &impl Serialize, lines: impl std::fmt::Display) -> Result<()> {
        if self.quiet && !self.json { Ok(()) } else { self.result(value, lines) }
    }

    /// A progress bar on a terminal, nothing elsewhere.
    pub fn progress(self, length: u64, what: &'static str) -> indicatif::ProgressBar {
        use std::io::IsTerminal;
        if self.json || self.quiet || !std::io::stderr().is_terminal() {
            return indicatif::ProgressBar::hidden();
        }
        let style = indicatif::ProgressStyle::with_template("{msg:>16} {wide_bar} {percent:>3} % {eta}");
        let bar = indicatif::ProgressBar::new(length).with_message(what);
        match style {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

/// Runs a command.
pub fn run(args: Args) -> Result<()> {
    let ui = Ui { json: args.json, quiet: args.quiet };
    let log = args.log.as_deref();
    if !matches!(args.command, Command::Node(node::Command::Run(_))) {
        start_log(log.unwrap_or("warn"), false)?;
    }
    match args.command {
        Command::Node(command) => node::run(command, ui, log),
        Command::Client(command) => client::run(command, ui),
        Command::Cluster(command) => cluster::run(command, ui),
        Command::Model(command) => model::run(command, ui),
        Command::Infer(command) => command.run(ui),
        Command::Plain(command) => command.run(ui),
        Command::Plan(command) => command.run(ui),
        Command::Bench(command) => command.run(ui),
        Command::Demo(command) => command.run(ui),
    }
}

fn start_log(level: &str, json: bool) -> Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| format!("log level {level:?}"))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    let started = if json { log.json().try_init() } else { log.try_init() };
    started.map_err(|e| anyhow::anyhow!("the log could not be started: {e}"))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .thread_name("net")
        .build()
        .context("the runtime could not be started")
}

/// Where correlations come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// A third server deals them.
    #[default]
    Three,
}

/// Which arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum RingName {
    /// A residue number system of one-byte moduli.
    #[default]
    Rns,
    /// Integers modulo 2^64, for comparison.
    Z64,
}

/// What comparisons trade rounds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoundsName {
    /// Fewest bytes: for links of short delay.
    Balanced,
    /// Fewest rounds: for links of long delay.
    Fewest,
}

/// The trade that was asked for; else the one that keeps a link like `wan` busy for a shorter time, dealing
/// included; else the usual one.
fn rounds(manifest: &Manifest, asked: Option<RoundsName>, wan: Option<Wan>) -> Result<Rounds> {
    match (asked, wan) {
        (Some(RoundsName::Balanced), _) | (None, None) => Ok(Rounds::Balanced),
        (Some(RoundsName::Fewest), _) => Ok(Rounds::Fewest),
        (None, Some(wan)) => {
            let seconds = |rounds: Rounds| -> Result<f64> {
                let manifest = Manifest { rounds, ..manifest.clone() };
                let total = PlanReport::new(&manifest, wan.rtt_ms, wan.mbit)?.total;
                Ok(total.seconds + total.dealt_bytes as f64 * 8e-6 / wan.mbit)
            };
            let fewer = seconds(Rounds::Fewest)? < seconds(Rounds::Balanced)?;
            Ok(if fewer { Rounds::Fewest } else { Rounds::Balanced })
        }
    }
}

/// Why lines did not reach standard output, the first time.
static UNWRITTEN: std::sync::OnceLock<std::io::Error> = std::sync::OnceLock::new();

/// Lines on standard output. A reader that has gone or a full disk is told at the end, by [`unwritten`]: what runs is brought
/// to its end and cleaned up.
fn output(lines: impl std::fmt::Display) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if let Err(e) = writeln!(out, "{lines}").and_then(|()| out.flush()) {
        let _ = UNWRITTEN.set(e);
    }
}

/// Whether something that was to be printed was not.
///
/// # Errors
/// Says why.
pub fn unwritten() -> Result<()> {
    match UNWRITTEN.get() {
        None => Ok(()),
        Some(e) => Err(anyhow::anyhow!("standard output: {e}")),
    }
}

/// Images without a result.
#[derive(Debug)]
struct NotAll {
    failed: usize,
    all: usize,
}

impl std::fmt::Display for NotAll {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} images have no result, why is said above", self.failed, self.all)
    }
}

impl std::error::Error for NotAll {}

/// A result that is there, and that must not be relied on. The command ends with an exit code of its own.
#[derive(Debug)]
pub struct NotTrusted {
    images: usize,
    failed: usize,
}

impl NotTrusted {
    /// The exit code.
    pub const CODE: u8 = 3;
}

impl std::fmt::Display for NotTrusted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let images = if self.images == 1 { "one image".into() } else { format!("{} images", self.images) };
        write!(f, "numbers left their range with {images}: do not trust what is printed for it")?;
        if self.failed > 0 { write!(f, "; without a result: {}", self.failed) } else { Ok(()) }
    }
}

impl std::error::Error for NotTrusted {}

/// A link to reckon with: `RTTms,MBIT`, as `50ms,400`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Wan {
    rtt_ms: f64,
    mbit: f64,
}

impl std::str::FromStr for Wan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (rtt, mbit) = text.split_once([',', ':'])?;
            let rtt_ms: f64 = rtt.trim().strip_suffix("ms").unwrap_or(rtt).trim().parse().ok()?;
            let mbit: f64 = mbit.trim().strip_suffix("mbit").unwrap_or(mbit).trim().parse().ok()?;
            (rtt_ms >= 0.0 && rtt_ms.is_finite() && mbit > 0.0 && mbit.is_finite())
                .then_some(Self { rtt_ms, mbit })
        };
        parse().ok_or_else(|| format!("{text:?} is not of the form RTTms,MBIT, as 50ms,400"))
    }
}

/// The key of a client or an owner: `--key`, or one in the user's directory, made on first use.
#[derive(Clone, Debug, clap::Args)]
struct KeyArgs {
    /// Private key to use instead of the user's own.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Where the user's own key is kept [default: $XDG_CONFIG_HOME/sharelens or ~/.config/sharelens].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl KeyArgs {
    fn identity(&self) -> Result<Arc<Identity>> {
        if let Some(file) = &self.key {
            return Ok(Arc::new(Identity::load(file)?));
        }
        let dir = match &self.dir {
            Some(dir) => dir.clone(),
            None => config_dir().context("neither XDG_CONFIG_HOME nor HOME is set: give --key or --dir")?,
        };
        Ok(Arc::new(Identity::load_or_create(&dir.join("client.key"))?))
    }
}

fn config_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CONFIG_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".config")))
        .map(|p| p.join("sharelens"))
}

/// What a file is called in messages.
fn show(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn links() {
        let wan: Wan = "50ms,400".parse().unwrap();
        assert_eq!(wan, Wan { rtt_ms: 50.0, mbit: 400.0 });
        assert_eq!("50:400mbit".parse::<Wan>(), Ok(wan));
        for bad in ["", "50", "50ms,0", "-1,4", "x,y", "1,inf"] {
            assert!(bad.parse::<Wan>().is_err(), "{bad}");
        }
    }
}
