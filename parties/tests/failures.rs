//! Everything that can go wrong, with real processes: one sentence, a failed exit, and nodes that go on.

#[path = "../../models/tests/common/mod.rs"]
mod common;
#[path = "../../tests/src/pictures.rs"]
mod pictures;

use std::fs::{self, File};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Attr::Is, Builder};
use sharelens::config::{Cluster, LinkConfig, NodeConfig, PROTOCOL_VERSION};
use sharelens::control::{Go, Hello, Purpose, SessionId, Start};
use sharelens::transport::{Connection, Endpoint};
use sharelens::{Code, Identity, Role};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_sharelens");
/// Nothing here takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Silence after which nodes of these tests count a peer as lost.
const IDLE: Duration = Duration::from_secs(4);

fn wait(what: &str, mut done: impl FnMut() -> bool, why_not: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}\n{}", why_not());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn start(args: &[&str]) -> Child {
    let mut command = Command::new(BINARY);
    command.args(args).env("RUST_BACKTRACE", "1").env_remove("SHARELENS_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a command that ends by itself has printed.
fn finish(mut child: Child, what: &str) -> Output {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{what}: it hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn sharelens(args: &[&str]) -> Output {
    finish(start(args), &args.join(" "))
}

fn ok(args: &[&str]) -> Output {
    let out = sharelens(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

/// The one sentence of a command that failed in order. Warnings of the log may precede it.
fn sentence(out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{text}");
    let errors: Vec<&str> = text.lines().filter(|l| !l.contains(" WARN ")).collect();
    let [error] = errors[..] else { panic!("not one sentence: {text}") };
    assert!(error.starts_with("error: ") && error.len() < 2000, "{text}");
    assert!(!error.contains("panicked") && !error.contains("backtrace"), "{text}");
    error.to_string()
}

fn fails(args: &[&str], words: &[&str]) {
    let error = sentence(&sharelens(args));
    for word in words {
        assert!(error.contains(word), "{error}, expected {word}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory with a prepared model of pictures of 64x64.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let pads = ("pads", Is(&[1, 1, 1, 1]));
        let network = Builder::new(13, &[1, 1, 64, 64])
            .weights("w", &[4, 1, 3, 3])
            .node("Conv", &["x", "w"], "c", &[pads])
            .node("Relu", &["c"], "r", &[])
            .node("GlobalAveragePool", &["r"], "g", &[])
            .node("Flatten", &["g"], "y", &[]);
        files.write("model.onnx", &network.build(&["y"]));
        let size = [64, 64];
        let calibration = pictures::png(size, 8, 0, &pictures::rows(size, 1));
        fs::create_dir(files.path("pictures")).unwrap();
        files.write("pictures/a.png", &calibration);
        files.prepare("model.onnx");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> String {
        fs::write(self.path(name), bytes).unwrap();
        text(&self.path(name)).to_string()
    }

    fn prepare_args(&self, onnx: &str) -> [String; 7] {
        let [onnx, pictures, out] = [onnx, "pictures", "model.slm"].map(|f| text(&self.path(f)).to_string());
        ["model", "prepare", &onnx, "--calibrate", &pictures, "-o", &out].map(String::from)
    }

    fn prepare(&self, onnx: &str) {
        ok(&self.prepare_args(onnx).each_ref().map(String::as_str));
    }
}

#[test]
fn pictures_that_cannot_be_used() {
    let files = Files::new();
    let model = files.path("model.slm");
    let plain = |name: &str, bytes: &[u8]| {
        let picture = files.write(name, bytes);
        sharelens(&["plain", text(&model), &picture])
    };
    let refused = |name: &str, bytes: &[u8], word: &str| {
        let error = sentence(&plain(name, bytes));
        assert!(error.contains(name) && error.contains(word), "{error}, expected {word}");
    };
    let size = [20, 30];
    let grey = pictures::png(size, 8, 0, &pictures::rows(size, 1));
    let photo = include_bytes!("../../models/data/brain_mri/meningioma-m1_165.jpg");
    refused("empty.png", &[], "neither PNG nor JPEG");
    refused("notes.png", b"GIF89a", "neither PNG nor JPEG");
    refused("short.png", &grey[..grey.len() - 9], "cut off");
    refused("short.jpg", &photo[..photo.len() / 2], "cut off");
    // With an end that was glued on again.
    refused("glued.png", &[&grey[..50], &grey[grey.len() - 12..]].concat(), "cannot use the picture");
    refused("cmyk.jpg", &pictures::jpeg(4), "CMYK");
    // Sizes that nobody has, and one that takes a few KiB to write and GiB to read.
    let [max, wide] = [[u32::MAX >> 1; 2], [16_000, 16_000]];
    refused("absurd.png", &pictures::png(max, 8, 0, &[0; 100]), "cannot use the picture");
    let bomb = pictures::png(wide, 1, 0, &vec![0; 16_000 * 2001]);
    assert!(bomb.len() < 1 << 20);
    refused("bomb.png", &bomb, "16000x16000");

    let converted = |name: &str, bytes: &[u8], note: &str| {
        let out = plain(name, bytes);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && said.contains(note) && said.contains(name), "{said}");
    };
    converted("deep.png", &pictures::png(size, 16, 0, &pictures::rows(size, 2)), "16-bit");
    converted("palette.png", &pictures::png(size, 8, 3, &pictures::rows(size, 1)), "palette");
    for good in [&grey, &pictures::jpeg(1), &pictures::jpeg(3)] {
        let out = plain("good", good);
        assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    // A file of hundreds of MiB is not even read.
    let large = files.path("large.png");
    File::create(&large).unwrap().set_len(1 << 29).unwrap();
    fails(&["plain", text(&model), text(&large)], &["size of the picture file"]);
}

#[test]
fn models_that_cannot_be_used() {
    let files = Files::new();
    let whole = fs::read(files.path("model.onnx")).unwrap();
    let refused = |name: &str, bytes: &[u8], words: &[&str]| {
        files.write(name, bytes);
        fails(&files.prepare_args(name).each_ref().map(String::as_str), &[words, &[name]].concat());
    };
    let net = || Builder::new(13, &[1, 1, 64, 64]);
    refused("cut.onnx", &whole[..whole.len() - 40], &["damaged"]);
    let unsupported =
        net().node("LSTM", &["x"], "a", &[]).node("Einsum", &["x"], "b", &[]).node("Det", &["x"], "c", &[]);
    refused("three.onnx", &unsupported.build(&["a", "b", "c"]), &["3 unsupported", "LSTM", "Einsum", "Det"]);
    let named = net().node("LSTM\nerror: \x1b[2J", &["x"], "a", &[]);
    refused("named.onnx", &named.build(&["a"]), &["LSTM"]);
    let nan = net().floats("w", &[1, 1, 1, 1], vec![f32::NAN]).node("Conv", &["x", "w"], "y", &[]);
    refused("nan.onnx", &nan.build(&["y"]), &["tensor w", "NaN"]);
    let shapes = net().weights("w", &[4, 3, 3, 3]).node("Conv", &["x", "w"], "y", &[]);
    refused("shapes.onnx", &shapes.build(&["y"]), &["Conv_y", "3 channels", "has 1"]);
    let cycle = net().node("Add", &["x", "b"], "a", &[]).node("Relu", &["a"], "b", &[]);
    refused("cycle.onnx", &cycle.build(&["b"]), &["cycle"]);
    let prepared = fs::read(files.path("model.slm")).unwrap();
    for (name, bytes) in [("cut.slm", &prepared[..prepared.len() - 4]), ("other.slm", &whole)] {
        let model = files.write(name, bytes);
        fails(&["plan", &model], &[name, "not a usable prepared model"]);
    }
}

/// Three nodes as processes, which are killed in the end.
struct Nodes {
    files: Files,
    running: [Option<Child>; 3],
}

impl Nodes {
    fn start() -> Self {
        Self::start_with(IDLE)
    }

    /// Nodes that take each other for lost after so long.
    fn start_with(idle: Duration) -> Self {
        let mut this = Self { files: Files::new(), running: [const { None }; 3] };
        let sockets = Role::ALL.map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut create: Vec<String> = ["cluster", "create", "-o"].map(String::from).to_vec();
        create.extend([this.cluster_file(), "--cards".into()]);
        for (role, socket) in Role::ALL.into_iter().zip(&sockets) {
            let (home, address) = (this.home(role), socket.local_addr().unwrap().to_string());
            let at = ["--listen", &address, "--public", &address, "--dir", text(&home)];
            ok(&[&["node", "init", "--role", role.word()], &at[..]].concat());
            let mut config = NodeConfig::load(&home.join("node.toml")).unwrap();
            config.cluster = this.cluster_file().into();
            config.link.idle_timeout_s = idle.as_secs_f64();
            config.link.keep_alive_s = 1.0;
            config.limits.message_timeout_s = 10;
            config.save(&home.join("node.toml")).unwrap();
            create.push(text(&home.join(format!("{}.card", role.word()))).into());
        }
        ok(&create.iter().map(String::as_str).collect::<Vec<_>>());
        drop(sockets);
        Role::ALL.into_iter().for_each(|role| this.run(role));
        this.ready();
        let (model, cluster) = (this.files.path("model.slm"), this.cluster_file());
        let key = ["--dir", text(this.files.0.path())];
        // The running nodes learn who may share models and ask them.
        let card = this.files.path("net-clinic.card");
        let init = ["client", "init", "--name", "net-clinic", "--card-dir", text(this.files.0.path())];
        ok(&[&init, &key[..]].concat());
        for role in Role::ALL {
            let config = this.home(role).join("node.toml");
            for right in ["client", "owner"] {
                ok(&["node", "allow", text(&card), "--as", right, "--config", text(&config)]);
            }
        }
        let share = ["model", "share", text(&model), "--cluster", &cluster, "--name", "net"];
        ok(&[&share, &key[..]].concat());
        this
    }

    fn home(&self, role: Role) -> PathBuf {
        self.files.path(role.word())
    }

    fn cluster_file(&self) -> String {
        text(&self.files.path("cluster.toml")).into()
    }

    fn cluster(&self) -> Cluster {
        Cluster::load(Path::new(&self.cluster_file())).unwrap()
    }

    /// Starts a node with an empty log.
    fn run(&mut self, role: Role) {
        let log = File::create(self.home(role).join("log")).unwrap();
        let config = self.home(role).join("node.toml");
        let child = Command::new(BINARY)
            .args(["--log", "info", "node", "run", "--config", text(&config)])
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.running[role as usize] = Some(child.unwrap());
    }

    fn log(&self, role: Role) -> String {
        fs::read_to_string(self.home(role).join("log")).unwrap()
    }

    /// All nodes are there and connected; a node that ended is an error.
    fn ready(&mut self) {
        self.wait("ready", || Role::ALL.into_iter().all(|r| self.log(r).contains("is ready")));
        self.alive();
    }

    /// [`wait`], which shows the logs on failure.
    fn wait(&self, what: &str, done: impl FnMut() -> bool) {
        let show = |r: Role| format!("--- {r}\n{}", self.log(r));
        wait(what, done, || Role::ALL.map(show).join(""));
    }

    /// How often this node has heard from `peer` anew.
    fn connections(&self, role: Role, peer: Role) -> usize {
        let start = format!("INFO {peer}  ");
        self.log(role).lines().filter(|l| l.contains(&start) && l.contains("connected")).count()
    }

    fn alive(&mut self) {
        for role in Role::ALL {
            if let Some(status) = self.running[role as usize].as_mut().and_then(|c| c.try_wait().unwrap()) {
                panic!("{role} ended with {status}: {}", self.log(role));
            }
            assert!(!self.log(role).contains("panicked"), "{}", self.log(role));
        }
    }

    fn signal(&self, role: Role, signal: &str) {
        let pid = self.running[role as usize].as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn kill(&mut self, role: Role) {
        let mut child = self.running[role as usize].take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn infer(&self, cluster: &str) -> Child {
        let picture = self.files.path("pictures/a.png");
        let key = text(self.files.0.path());
        let model = ["--model", "net", "--dir", key];
        // One try: what fails is to be seen.
        start(
            &[&["--quiet", "infer", "--cluster", cluster, "--deadline", "0"], &model[..], &[text(&picture)]]
                .concat(),
        )
    }

    /// The nodes serve the next client.
    fn serve(&mut self) {
        let out = finish(self.infer(&self.cluster_file()), "infer");
        let error = String::from_utf8_lossy(&out.stderr).into_owned();
        let logs = Role::ALL.map(|r| self.log(r)).join("\n---\n");
        assert!(out.status.success() && !out.stdout.is_empty(), "{error}\n{logs}");
        self.alive();
    }

    fn seen(&self, role: Role) -> u64 {
        let files = fs::read_dir(self.home(role).join("data/sessions")).into_iter().flatten().flatten();
        files.map(|f| f.metadata().map_or(0, |m| m.len())).sum()
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn clusters_and_pictures_that_are_wrong_at_the_client() {
    let mut nodes = Nodes::start();
    let own = fs::read_to_string(nodes.cluster_file()).unwrap();
    let refused = |nodes: &Nodes, name: &str, file: String, words: &[&str]| {
        let file = nodes.files.write(name, file.as_bytes());
        let error = sentence(&finish(nodes.infer(&file), name));
        assert!(words.iter().all(|w| error.contains(w)), "{error}, expected {words:?}");
    };
    let other = own.replacen("name = \"helper\"", "name = \"somebody\"", 1);
    assert_ne!(own, other);
    refused(&nodes, "other.toml", other, &["another cluster.toml", "cluster verify"]);
    let (right, wrong) = (nodes.cluster().card(Role::Server1).pin, Identity::generate().unwrap().pin());
    let pins = own.replace(&right.to_string(), &wrong.to_string());
    refused(&nodes, "pins.toml", pins, &["server 1 presented", &right.to_string(), &wrong.to_string()]);

    let picture = nodes.files.write("cmyk.jpg", &pictures::jpeg(4));
    let (cluster, key) = (nodes.cluster_file(), nodes.files.0.path().to_path_buf());
    let with = ["--cluster", &cluster, "--dir", text(&key)];
    fails(&[&["infer", "--model", "net", &picture], &with[..]].concat(), &["CMYK", "cmyk.jpg"]);
    fails(&[&["infer", "--model", "nothing", &picture], &with[..]].concat(), &["nothing is not here"]);
    nodes.serve();
}

#[test]
fn a_killed_node_is_named_and_comes_back() {
    let mut nodes = Nodes::start();
    nodes.serve();
    for victim in [Role::Server1, Role::Helper, Role::Server0] {
        // With the helper stopped, a session stays where it is: begun at both servers, and not finished.
        let before = [Role::Server0, Role::Server1].map(|r| nodes.seen(r));
        let others = Role::ALL.into_iter().filter(|r| *r != victim).collect::<Vec<_>>();
        let connections = |nodes: &Nodes| others.iter().map(|r| nodes.connections(*r, victim)).sum::<usize>();
        let connected = connections(&nodes);
        nodes.signal(Role::Helper, "-STOP");
        let client = nodes.infer(&nodes.cluster_file());
        nodes.wait("a session at both servers", || {
            nodes.seen(Role::Server0) > before[0] && nodes.seen(Role::Server1) > before[1]
        });
        nodes.kill(victim);
        if victim != Role::Helper {
            nodes.signal(Role::Helper, "-CONT");
        }
        let killed = Instant::now();
        let error = sentence(&finish(client, "infer"));
        assert!(error.contains(&victim.to_string()), "{victim} was killed: {error}");
        for &role in &others {
            let words = format!("the link to {victim} failed");
            nodes.wait(&format!("{role} names {victim}"), || nodes.log(role).contains(&words));
        }
        assert!(killed.elapsed() < 3 * IDLE, "{victim}: {:?}", killed.elapsed());
        nodes.run(victim);
        nodes.wait("ready again", || {
            connections(&nodes) >= connected + 2 && nodes.log(victim).contains("is ready")
        });
        nodes.serve();
    }
}

/// Its peers hear from the new process that the old one is gone, long before silence tells.
#[test]
fn a_killed_node_that_is_back_is_noticed_at_once() {
    let mut nodes = Nodes::start_with(Duration::from_secs(300));
    nodes.serve();
    for victim in [Role::Helper, Role::Server1, Role::Server0] {
        let others = Role::ALL.into_iter().filter(|r| *r != victim).collect::<Vec<_>>();
        let connections = |nodes: &Nodes| others.iter().map(|r| nodes.connections(*r, victim)).sum::<usize>();
        let connected = connections(&nodes);
        nodes.kill(victim);
        nodes.run(victim);
        let back = Instant::now();
        nodes.wait("all are connected again", || {
            connections(&nodes) >= connected + 2 && nodes.log(victim).contains("is ready")
        });
        assert!(back.elapsed() < Duration::from_secs(30), "{victim}: {:?}", back.elapsed());
        nodes.serve();
    }
}

async fn connect(nodes: &Nodes, role: Role, identity: &Arc<Identity>) -> Connection {
    let endpoint = Endpoint::dialing(identity.clone(), &LinkConfig::default()).unwrap();
    let (cluster, wait) = (nodes.cluster(), Duration::from_secs(5));
    let card = cluster.card(role);
    endpoint.connect("the node", &card.public, card.pin, wait).await.unwrap()
}

/// Deterministic noise.
fn noise(n: usize, seed: u64) -> Vec<u8> {
    common::numbers(n, seed).into_iter().map(|v| (v * 1e4) as i32 as u8).collect()
}

#[test]
fn garbage_and_replays_do_not_stop_a_node() {
    let mut nodes = Nodes::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // An enrolled client that sends garbage: strangers may open no stream.
    let stranger = Arc::new(Identity::generate().unwrap());
    for role in Role::ALL {
        let config = nodes.home(role).join("node.toml");
        ok(&["node", "allow", &stranger.pin().to_string(), "--config", text(&config)]);
    }
    runtime.block_on(async {
        // The key of a node of the cluster, then that of the client.
        let server0 = Arc::new(Identity::load(&nodes.home(Role::Server0).join("server0.key")).unwrap());
        for (who, to) in [
            (&server0, Role::Server1),
            (&server0, Role::Helper),
            (&stranger, Role::Server0),
            (&stranger, Role::Helper),
        ] {
            let connection = connect(&nodes, to, who).await;
            let wait = Duration::from_secs(5);
            let hello = [&[1, 0, 1, 0, 0, 2, 0, 0][..], &noise(512, 3)].concat();
            let endless = [&[1, 0, 1, 0, 255, 255, 255, 255][..], &noise(1 << 16, 4)].concat();
            for bytes in [noise(7, 1), noise(1 << 16, 2), hello, endless] {
                let mut stream = connection.open(wait).await.unwrap();
                // The node may stop reading before it has everything.
                let _ = stream.send_bulk(bytes.into()).await;
                let _ = tokio::time::timeout(Duration::from_millis(300), stream.recv::<Go>()).await;
            }
        }
    });
    nodes.serve();

    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for i in 0..3000u64 {
        let mut bytes = noise(1 + (i * 37 % 1400) as usize, i);
        if i % 3 == 0 && bytes.len() > 5 {
            // Looks like the first packet of a QUIC connection.
            bytes[..5].copy_from_slice(&[0xc0, 0, 0, 0, 1]);
        }
        for role in Role::ALL {
            let _ = socket.send_to(&bytes, &nodes.cluster().card(role).public);
        }
    }
    nodes.serve();

    let session = SessionId::random().unwrap();
    let replayed = |nodes: &Nodes| {
        runtime.block_on(async {
            let connection = connect(nodes, Role::Server0, &stranger).await;
            let mut stream = connection.open(Duration::from_secs(5)).await.unwrap();
            let purpose =
                Purpose::Infer { model: "net".into(), version: None, start: Start::Prepared, wait_s: 60 };
            let cluster = nodes.cluster().hash();
            stream.send(&Hello { version: PROTOCOL_VERSION, cluster, session, purpose }).await.unwrap();
            stream.recv::<Go>().await.unwrap_err()
        })
    };
    // Not a refusal: the acceptance, which is no Go.
    assert_eq!(replayed(&nodes).code(), Code::Malformed);
    let again = replayed(&nodes);
    assert!(again.code() == Code::Replay && again.to_string().contains("seen before"), "{again}");
    // Also when the node was killed in between.
    nodes.kill(Role::Server0);
    nodes.run(Role::Server0);
    nodes.ready();
    assert_eq!(replayed(&nodes).code(), Code::Replay);
    nodes.serve();
}
