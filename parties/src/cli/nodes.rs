//! Nodes as child processes on this machine, for the demo and for measurements.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sharelens::config::{Allow, Allowed, Card, LinkConfig, NodeConfig};
use sharelens::local::Link;
use sharelens::{Cluster, Pin, Role};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use super::relay::Relay;

/// Three nodes as child processes, killed when this is dropped. They also stop by themselves when this process
/// dies in another way, since they watch their standard input.
pub struct Nodes {
    /// How to reach them.
    pub cluster: Cluster,
    children: Vec<(Role, Child)>,
    /// Between the nodes, if there are any.
    _relays: Vec<Relay>,
    /// Keys and data; removed at the end.
    _dir: tempfile::TempDir,
}

/// How to start them.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Threads that each node computes on; as many as there are cores, if not given.
    pub threads: Option<usize>,
    /// What the network between them is to be like: everything goes through relays that delay it. Loopback
    /// itself, if not given.
    pub relay: Option<Link>,
    /// `[link]` of each node.
    pub link: LinkConfig,
}

impl Nodes {
    /// Makes keys and configuration, starts the nodes, and waits until they are connected. `user` alone is enrolled.
    pub async fn start(options: &Options, user: Pin) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sharelens-").tempdir()?;
        let mut last = None;
        // A free port may be taken by someone else before its node binds it.
        for attempt in 0..3 {
            match Self::try_start(&dir.path().join(attempt.to_string()), options, user).await {
                Ok((cluster, children, relays)) => {
                    return Ok(Self { cluster, children, _relays: relays, _dir: dir });
                }
                Err(e) => last = Some(e),
            }
        }
        Err(last.context("the nodes were not started")?)
    }

    async fn try_start(
        home: &Path,
        options: &Options,
        user: Pin,
    ) -> Result<(Cluster, Vec<(Role, Child)>, Vec<Relay>)> {
        let mut cards: Vec<Card> = Vec::new();
        let mut relays = Vec::new();
        // All sockets are held until all ports are known, so that they differ.
        let mut sockets = Vec::new();
        for role in Role::ALL {
            let socket = UdpSocket::bind("127.0.0.1:0").context("no free UDP port")?;
            let address = socket.local_addr()?;
            sockets.push(socket);
            let mut public: SocketAddr = address;
            if let Some(link) = options.relay {
                let relay = Relay::start(address, link)?;
                public = relay.address();
                relays.push(relay);
            }
            let user = || Allow { allow: Allowed::Pins(vec![user]) };
            let link = options.link.clone();
            let config =
                NodeConfig { link, clients: user(), owners: user(), ..NodeConfig::new(role, address) };
            cards.push(super::node::write(&home.join(role.word()), &config, public.to_string(), "")?);
        }
        drop(sockets);
        let cluster = Cluster::new(cards)?;
        for role in Role::ALL {
            cluster.save(&home.join(role.word()).join("cluster.toml"))?;
        }
        let program = std::env::current_exe().context("this program does not know its own file")?;
        let mut children = Vec::new();
        for role in Role::ALL {
            let mut command = Command::new(&program);
            if let Some(threads) = options.threads {
                command.env("RAYON_NUM_THREADS", threads.to_string());
            }
            let child = command
                .args(["--json", "--log", "warn", "node", "run", "--until-stdin-closes", "--config"])
                .arg(home.join(role.word()).join("node.toml"))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()
                .with_context(|| format!("{role} was not started"))?;
            children.push((role, child));
        }
        for (role, child) in &mut children {
            let ready = wait_ready(child);
            tokio::time::timeout(Duration::from_secs(20), ready)
                .await
                .unwrap_or_else(|_| bail!("it was not ready within 20 s"))
                .with_context(|| role.to_string())?;
        }
        Ok((cluster, children, relays))
    }

    /// Process of each node, for as long as it runs.
    pub fn processes(&self) -> impl Iterator<Item = (Role, u32)> {
        self.children.iter().filter_map(|(role, child)| Some((*role, child.id()?)))
    }

    /// Lets the nodes finish and waits for them.
    pub async fn stop(mut self) {
        for (_, child) in &mut self.children {
            drop(child.stdin.take());
        }
        for (_, child) in &mut self.children {
            // Whoever does not stop is killed on drop.
            let _ = tokio::time::timeout(Duration::from_secs(5), child.wait()).await;
        }
    }
}

/// Waits for the line that a node prints once it is connected; its log goes on to ours.
async fn wait_ready(child: &mut Child) -> Result<()> {
    let stdout = child.stdout.take().context("no standard output")?;
    let stderr = child.stderr.take().context("no standard error")?;
    let mut lines = BufReader::new(stdout).lines();
    let Some(line) = lines.next_line().await? else {
        let mut text = String::new();
        stderr.take(4096).read_to_string(&mut text).await?;
        bail!("it stopped: {}", text.trim());
    };
    if !line.contains("\"ready\"") {
        bail!("it said {line:?}");
    }
    tokio::spawn(async move {
        let mut lines = BufReader::new(stderr).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            eprintln!("{line}");
        }
    });
    Ok(())
}
