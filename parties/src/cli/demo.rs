//! `demo`: three real nodes on this machine.

mod shipped;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use sharelens::config::{Card, LinkConfig};
use sharelens::control::ModelId;
use sharelens::{Cluster, Identity, Role};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use super::{Mode, RingName, Ui, Wan, infer, model, result, show};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum What {
    /// A label for a brain MRI.
    #[default]
    Classify,
    /// Boxes around blood cells.
    Detect,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// What to show.
    #[arg(value_enum, default_value_t)]
    what: What,
    /// Image to use instead of the one that comes along.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Model to use instead of the one that comes along.
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Where correlations come from.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Which arithmetic.
    #[arg(long, value_enum, default_value_t)]
    ring: RingName,
    /// Also say what it would take over such a link.
    #[arg(long, value_name = "RTTms,MBIT")]
    wan: Option<Wan>,
    /// Where to write results.
    #[arg(long, value_name = "DIR", default_value = "demo-out")]
    out: PathBuf,
}

impl Demo {
    pub fn run(self, ui: Ui) -> Result<()> {
        self.mode.check()?;
        if self.what == What::Detect {
            bail!("`demo detect` is not in this version: try `demo classify`");
        }
        super::runtime()?.block_on(async {
            tokio::select! {
                outcome = self.show(ui) => outcome,
                // Leaving this block stops the nodes.
                _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            }
        })
    }

    async fn show(self, ui: Ui) -> Result<()> {
        let nodes = Nodes::start().await?;
        for role in Role::ALL {
            let card = nodes.cluster.card(role);
            ui.say(format_args!(
                "  {:<9} {}  ready   (mTLS, key {}…)",
                role.to_string(),
                card.public,
                &card.pin.to_string()[..4]
            ));
        }
        let scratch = tempfile::tempdir()?;
        let image = match &self.image {
            Some(image) => image.clone(),
            None => shipped::image(scratch.path())?,
        };
        let prepared = match &self.model {
            Some(file) => model::load(file)?,
            // Calibration computes for a moment; the network threads have other work.
            None => tokio::task::spawn_blocking(shipped::model).await??,
        };
        let name = prepared.config().name.clone();
        let input = model::input(prepared.config().preprocess.as_ref(), &image)?;
        ui.say(format_args!("  model     {name}   image  {}", file_name(&image)));

        let identity = Arc::new(Identity::generate()?);
        let id = ModelId { name: "demo".into(), version: 1 };
        model::share(&prepared, self.ring, &nodes.cluster, &id, identity.clone(), ui).await?;
        let client = infer::connect(&nodes.cluster, identity, &LinkConfig::default()).await?;
        let done = infer::infer(&client, &id.name, None, &image, ui).await?;
        client.close().await;
        nodes.stop().await;

        let twin = prepared.twin(&model::arithmetic(&prepared, self.ring))?;
        let (plain, float) = (twin.run(&input)?, prepared.float(&input)?);
        let mut json = done.json(if self.image.is_some() { &image } else { Path::new(shipped::IMAGE.0) })?;
        json["model"] = name.into();
        json["plain"] = result::result(&done.manifest, &plain)?;
        json["float"] = result::result(&done.manifest, &float)?;
        json["max_abs_error"] = result::max_abs_error(&done.outputs, &plain).into();
        if let Some(wan) = self.wan {
            json["wan"] = infer::plan(&done.manifest, wan.rtt_ms, wan.mbit)?["total"].clone();
        }
        std::fs::create_dir_all(&self.out).with_context(|| show(&self.out))?;
        let file = self.out.join("result.json");
        std::fs::write(&file, serde_json::to_string_pretty(&json)?).with_context(|| show(&file))?;
        let view = self.out.join("server0-view.png");
        let seen = picture(&done.manifest.program.input_shape, &done.view, &view)?;
        ui.say(result::cost_words(&json["cost"], true));
        if let Some(wan) = self.wan {
            let seconds = json["wan"]["seconds"].as_f64().unwrap_or(f64::NAN);
            ui.say(format_args!(
                "  over {} ms and {} Mbit/s the links would add {seconds:.3} s to the online phase",
                wan.rtt_ms, wan.mbit
            ));
        }
        let mut text = result::words(&json["result"]);
        let differs = json["max_abs_error"].as_f64().unwrap_or(f64::NAN);
        text += &format!("\n  plaintext differs by at most {differs:.6}\n  wrote {}", show(&file));
        if seen {
            text += &format!("\nNobody saw the image: server 0's view is {}", show(&view));
        }
        ui.result(&json, text)
    }
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy()
}

/// Writes the first channel of `values`, in storage order, as a grey picture, if they are one.
fn picture(shape: &[usize], values: &[u8], file: &Path) -> Result<bool> {
    let [1, h, w, c] = shape[..] else { return Ok(false) };
    let grey = values.iter().step_by(c).copied().collect();
    let (w, h) = (u32::try_from(w)?, u32::try_from(h)?);
    let Some(picture) = image::GrayImage::from_raw(w, h, grey) else { return Ok(false) };
    picture.save(file).with_context(|| show(file))?;
    Ok(true)
}

/// Three nodes as child processes, killed when this is dropped. They also stop by themselves when this process
/// dies in another way, since they watch their standard input.
pub struct Nodes {
    /// How to reach them.
    pub cluster: Cluster,
    children: Vec<(Role, Child)>,
    /// Keys and data; removed at the end.
    _dir: tempfile::TempDir,
}

impl Nodes {
    /// Makes keys and configuration, starts the nodes, and waits until they are connected.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("sharelens-demo-").tempdir()?;
        let mut last = None;
        // A free port may be taken by someone else before its node binds it.
        for attempt in 0..3 {
            match Self::try_start(dir.path(), attempt).await {
                Ok((cluster, children)) => return Ok(Self { cluster, children, _dir: dir }),
                Err(e) => last = Some(e),
            }
        }
        Err(last.context("the nodes were not started")?)
    }

    async fn try_start(dir: &Path, attempt: u32) -> Result<(Cluster, Vec<(Role, Child)>)> {
        let home = dir.join(attempt.to_string());
        let mut cards: Vec<Card> = Vec::new();
        // All sockets are held until all ports are known, so that they differ.
        let mut sockets = Vec::new();
        for role in Role::ALL {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").context("no free UDP port")?;
            let address = socket.local_addr()?;
            sockets.push(socket);
            let node = home.join(role.word());
            cards.push(super::node::write(&node, role, address, address.to_string(), String::new())?);
        }
        drop(sockets);
        let cluster = Cluster::new(cards)?;
        for role in Role::ALL {
            cluster.save(&home.join(role.word()).join("cluster.toml"))?;
        }
        let program = std::env::current_exe().context("this program does not know its own file")?;
        let mut children = Vec::new();
        for role in Role::ALL {
            let child = Command::new(&program)
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
        Ok((cluster, children))
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
