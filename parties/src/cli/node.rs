//! `node`: what an operator does with a node of theirs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use sharelens::config::{Card, NodeConfig, PROTOCOL_VERSION};
use sharelens::control::ModelId;
use sharelens::enrolment::{ClientCard, Enrolled, Entry, Right};
use sharelens::{Identity, Node, Pin, Role, storage, text};

use super::{Ui, show};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write node.toml, a private key and the public card of a node.
    Init(Init),
    /// Enrol a client or a model owner, by card or key; effective at once.
    Allow(Allow),
    /// Strike a client or a model owner off; effective at once.
    Revoke(Revoke),
    /// List who is enrolled.
    Clients(Clients),
    /// List the models that this node keeps, and whose they are.
    Models(Models),
    /// Remove a model from this node; effective at once.
    Remove(Remove),
    /// Run a node until SIGTERM or ctrl-c, which lets running sessions finish.
    Run(Run),
}

#[derive(Debug, Args)]
pub struct Init {
    /// server0, server1 or helper.
    #[arg(long)]
    role: Role,
    /// UDP address to listen on, as 0.0.0.0:7443.
    #[arg(long)]
    listen: SocketAddr,
    /// Where others reach it, HOST:PORT.
    #[arg(long)]
    public: String,
    /// Whose node this is; goes into the card.
    #[arg(long, default_value = "")]
    name: String,
    /// Directory to write to.
    #[arg(long, default_value = ".")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct Allow {
    /// A card, as `client init` writes it, or the 64 hexadecimal digits of a key.
    who: String,
    /// What the key may do.
    #[arg(long = "as", value_enum, default_value = "client")]
    right: RightName,
    /// What to call the key [default: the card's name, or its first digits].
    #[arg(long)]
    name: Option<String>,
    /// Configuration of the node.
    #[arg(long, default_value = "node.toml")]
    config: PathBuf,
}

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RightName {
    /// Run models on pictures.
    Client,
    /// Share models.
    Owner,
}

#[derive(Debug, Args)]
pub struct Revoke {
    /// The name or the key.
    who: String,
    /// Configuration of the node.
    #[arg(long, default_value = "node.toml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
pub struct Clients {
    /// Configuration of the node.
    #[arg(long, default_value = "node.toml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
pub struct Models {
    /// Configuration of the node.
    #[arg(long, default_value = "node.toml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
pub struct Remove {
    /// The model's name. A name belongs to the owner who shared it first, and is free again once all versions are gone.
    name: String,
    /// Only this version.
    #[arg(long)]
    version: Option<u32>,
    /// Configuration of the node.
    #[arg(long, default_value = "node.toml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
pub struct Run {
    /// Configuration of the node.
    #[arg(long, default_value = "node.toml")]
    config: PathBuf,
    /// Also stop when standard input closes; for a parent process that may die.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

pub fn run(command: Command, ui: Ui, log: Option<&str>) -> Result<()> {
    match command {
        Command::Init(init) => init.run(ui),
        Command::Allow(allow) => allow.run(ui),
        Command::Revoke(revoke) => revoke.run(ui),
        Command::Clients(clients) => clients.run(ui),
        Command::Models(models) => models.run(ui),
        Command::Remove(remove) => remove.run(ui),
        Command::Run(run) => run.run(ui, log),
    }
}

impl Init {
    fn run(self, ui: Ui) -> Result<()> {
        let card = write(&self.dir, &NodeConfig::new(self.role, self.listen), self.public, &self.name)?;
        let file = |name: String| show(&self.dir.join(name));
        let (word, config) = (self.role.word(), file("node.toml".into()));
        let (key, card_file) = (file(format!("{word}.key")), file(format!("{word}.card")));
        let json = serde_json::json!({
            "role": self.role, "pin": card.pin, "public": card.public,
            "files": { "config": config, "key": key, "card": card_file },
        });
        let text = format!(
            "wrote {config}, {key} (private) and {card_file} (public)\nkey {}\nnext: give {card_file} to the other operators",
            card.pin
        );
        ui.done(&json, text)
    }
}

impl Allow {
    fn run(self, ui: Ui) -> Result<()> {
        let file = NodeConfig::load(&self.config)?.enrolled_file();
        let (name, pin) = match Pin::from_hex(&self.who) {
            Some(pin) => (self.who[..8].to_string(), pin),
            None => {
                let card = ClientCard::load(Path::new(&self.who))?;
                (card.name, card.pin)
            }
        };
        let name = self.name.unwrap_or(name);
        let right = match self.right {
            RightName::Client => Right::Client,
            RightName::Owner => Right::Owner,
        };
        let mut enrolled = Enrolled::load(&file)?;
        enrolled.allow(&name, pin, right);
        enrolled.save(&file)?;
        let json = serde_json::json!({ "name": name, "pin": pin, "as": right, "file": show(&file) });
        ui.done(&json, format!("{name} ({pin}) is enrolled as {}", json["as"].as_str().unwrap_or_default()))
    }
}

impl Revoke {
    fn run(self, ui: Ui) -> Result<()> {
        let file = NodeConfig::load(&self.config)?.enrolled_file();
        let mut enrolled = Enrolled::load(&file)?;
        let count = enrolled.revoke(&self.who);
        if count == 0 {
            bail!("{}: nobody is enrolled as {}: see `node clients`", show(&file), self.who);
        }
        enrolled.save(&file)?;
        ui.done(
            &serde_json::json!({ "revoked": count }),
            format!("{} may do nothing here any more", self.who),
        )
    }
}

impl Clients {
    fn run(self, ui: Ui) -> Result<()> {
        let enrolled = Enrolled::load(&NodeConfig::load(&self.config)?.enrolled_file())?;
        let row = |key: &Entry| {
            let rights: Vec<String> = key.rights.iter().map(|r| format!("{r:?}").to_lowercase()).collect();
            [text::one_line(&key.name), rights.join(", "), key.pin.to_string()]
        };
        let rows: Vec<_> = enrolled.keys.iter().map(row).collect();
        ui.result(&enrolled.keys, text::columns(&["name", "as", "key"], &rows))
    }
}

impl Models {
    fn run(self, ui: Ui) -> Result<()> {
        let stored = storage::list(&NodeConfig::load(&self.config)?.data_dir)?;
        let row =
            |(id, owner): (&ModelId, &Pin)| [id.name.clone(), id.version.to_string(), owner.to_string()];
        let rows: Vec<_> = stored.iter().map(row).collect();
        let json: Vec<_> = stored
            .iter()
            .map(|(id, owner)| serde_json::json!({ "name": id.name, "version": id.version, "owner": owner }))
            .collect();
        ui.result(&json, text::columns(&["model", "version", "owner's key"], &rows))
    }
}

impl Remove {
    fn run(self, ui: Ui) -> Result<()> {
        let removed = storage::remove(&NodeConfig::load(&self.config)?.data_dir, &self.name, self.version)?;
        if removed == 0 {
            let version = self.version.map(|v| format!(" version {v}")).unwrap_or_default();
            bail!("model {}{version} is not here: see `node models`", text::one_line(&self.name));
        }
        ui.done(
            &serde_json::json!({ "removed": removed }),
            format!("{} is no longer here; sessions that use it go on to their end", self.name),
        )
    }
}

/// Makes a node's files.
pub fn write(dir: &Path, config: &NodeConfig, public: String, name: &str) -> Result<Card> {
    std::fs::create_dir_all(dir).with_context(|| show(dir))?;
    let role = config.role;
    let file = dir.join("node.toml");
    if file.exists() {
        bail!("{}: exists already and is not replaced", show(&file));
    }
    let name = if name.is_empty() { role.to_string() } else { name.into() };
    let identity = Identity::generate()?;
    let card = Card { role, name, public, pin: identity.pin(), protocol: PROTOCOL_VERSION };
    card.check()?;
    identity.save(&dir.join(&config.key_file))?;
    config.save(&file)?;
    card.save(&dir.join(format!("{}.card", role.word())))?;
    Ok(card)
}

impl Run {
    fn run(self, ui: Ui, log: Option<&str>) -> Result<()> {
        single_arena();
        let config = NodeConfig::load(&self.config)?;
        super::start_log(log.unwrap_or(&config.log.level), config.log.json)?;
        super::runtime()?.block_on(async {
            let role = config.role;
            // Signals are heard from here on, also while the node still waits for others.
            let mut stop = std::pin::pin!(stopped(self.until_stdin_closes));
            let node = Node::start(config, sharelens::engine::runner())?;
            let address = node.local_addr()?;
            tracing::info!("{role} listens on {address}");
            tokio::select! {
                () = node.ready() => {
                    if ui.json {
                        super::output(serde_json::json!({ "event": "ready", "role": role, "listen": address }));
                    }
                    (&mut stop).await;
                }
                () = &mut stop => {}
            }
            tracing::info!("{role} finishes running sessions and stops");
            tokio::select! {
                () = node.drain() => Ok(()),
                () = stopped(false) => bail!("{role} was stopped before its sessions were finished"),
            }
        })
    }
}

/// Starts the program anew with one arena for memory, unless it was told how many. glibc makes one for about every
/// thread, sessions have many threads and large vectors, and what lies free in one arena is of no use to the others:
/// with a single one a server peaks at two thirds of the memory. The number can only be given to a program that starts.
fn single_arena() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::os::unix::process::CommandExt;
        const ARENAS: &str = "MALLOC_ARENA_MAX";
        if std::env::var_os(ARENAS).is_none()
            && let Ok(program) = std::env::current_exe()
        {
            let mut again = std::process::Command::new(program);
            // Returns only where that is not possible; then it goes on as it is.
            let _ = again.args(std::env::args_os().skip(1)).env(ARENAS, "1").exec();
        }
    }
}

/// Waits for SIGTERM, ctrl-c, or the end of standard input.
async fn stopped(until_stdin_closes: bool) {
    let terminate = async {
        #[cfg(unix)]
        if let Ok(mut signal) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            signal.recv().await;
            return;
        }
        std::future::pending().await
    };
    let (closed, is_closed) = tokio::sync::oneshot::channel::<()>();
    if until_stdin_closes {
        // A plain thread: one that waits for input must not hold up the end of the runtime.
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            drop(closed);
        });
    } else {
        std::mem::forget(closed);
    }
    let input_closed = async {
        let _ = is_closed.await;
    };
    tokio::select! {
        Ok(()) = tokio::signal::ctrl_c() => {}
        () = terminate => {}
        () = input_closed => {}
    }
}
