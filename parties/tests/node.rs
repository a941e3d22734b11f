//! Three nodes and clients over real loopback QUIC, with a small engine in place of the real one.

mod toy;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sharelens::client::{Client, Inference, Patience, Progress, SharedImage};
use sharelens::config::{Allowed, Card, Cluster, LinkConfig, NodeConfig, PROTOCOL_VERSION};
use sharelens::control::{Accepted, Go, Hello, ModelId, Purpose, SessionId, Start, Work};
use sharelens::enrolment::{Enrolled, Right};
use sharelens::identity::random;
use sharelens::transport::Endpoint;
use sharelens::{Code, Error, Identity, Node, Pin, Result, Role};
use sharelens_protocol::prg::Seed;
use tempfile::TempDir;
use toy::Toy;
use zeroize::Zeroizing;

struct Nodes {
    dir: TempDir,
    cluster: Cluster,
    nodes: Vec<Option<Node<Toy>>>,
    owner: Arc<Identity>,
}

fn free_port() -> u16 {
    std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Nodes {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl Fn(&mut NodeConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut cards = vec![];
        for role in Role::ALL {
            let home = dir.path().join(role.word());
            std::fs::create_dir(&home).unwrap();
            let address = format!("127.0.0.1:{}", free_port());
            let mut config = NodeConfig::new(role, address.parse().unwrap());
            config.limits.message_timeout_s = 2;
            config.limits.session_timeout_s = 8;
            config.link.idle_timeout_s = 2.0;
            config.link.keep_alive_s = 0.5;
            config.cluster = "../cluster.toml".into();
            (config.clients.allow, config.owners.allow) = (Allowed::Any, Allowed::Any);
            change(&mut config);
            config.save(&home.join("node.toml")).unwrap();
            let identity = Identity::load_or_create(&home.join(&config.key_file)).unwrap();
            let name = role.to_string();
            cards.push(Card { role, name, public: address, pin: identity.pin(), protocol: PROTOCOL_VERSION });
        }
        let cluster = Cluster::new(cards).unwrap();
        cluster.save(&dir.path().join("cluster.toml")).unwrap();
        let owner = Arc::new(Identity::generate().unwrap());
        let mut this = Self { dir, cluster, nodes: vec![], owner };
        for role in Role::ALL {
            let node = this.node(role);
            this.nodes.push(Some(node));
        }
        this.ready().await;
        this
    }

    fn node(&self, role: Role) -> Node<Toy> {
        let config = NodeConfig::load(&self.home(role).join("node.toml")).unwrap();
        Node::start(config, Toy).unwrap()
    }

    fn home(&self, role: Role) -> std::path::PathBuf {
        self.dir.path().join(role.word())
    }

    async fn ready(&self) {
        for node in self.nodes.iter().flatten() {
            tokio::time::timeout(Duration::from_secs(8), node.ready()).await.expect("ready");
        }
    }

    async fn restart(&mut self, role: Role) {
        self.nodes[role as usize].take().unwrap().drain().await;
        // The socket closes a moment after the last connection.
        let home = self.home(role).join("node.toml");
        let deadline = Instant::now() + Duration::from_secs(5);
        let node = loop {
            match Node::start(NodeConfig::load(&home).unwrap(), Toy) {
                Ok(node) => break node,
                Err(e) => assert!(Instant::now() < deadline, "{e}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        self.nodes[role as usize] = Some(node);
        self.ready().await;
    }

    async fn client(&self) -> Client {
        self.client_as(Arc::new(Identity::generate().unwrap())).await
    }

    async fn client_as(&self, identity: Arc<Identity>) -> Client {
        let link = LinkConfig::default();
        Client::connect(&self.cluster, &Role::ALL, identity, &link, Patience::default()).await.unwrap()
    }

    async fn share(&self, name: &str, version: u32, manifest: &str) -> Result<()> {
        self.share_as(&self.owner, name, version, manifest).await
    }

    async fn share_as(&self, owner: &Arc<Identity>, name: &str, version: u32, manifest: &str) -> Result<()> {
        let client = self.client_as(owner.clone()).await;
        let weights = toy::weights(manifest);
        let seed = Seed::random().unwrap();
        let words = Zeroizing::new(toy::split(&seed, b"weights", &weights));
        let id = ModelId { name: name.into(), version };
        let shared = client.share(&id, manifest.into(), &seed, words, |_| {}).await;
        client.close().await;
        shared
    }
}

const IMAGE: u8 = 40;

fn share_image(accepted: &Accepted) -> Result<SharedImage> {
    let n = toy::parse(&accepted.manifest).unwrap().n;
    let seed = Seed::random().unwrap();
    let words = Zeroizing::new(toy::split(&seed, b"image", &vec![IMAGE; n]));
    Ok(SharedImage { seed, words, output_bytes: n })
}

async fn infer(client: &Client, model: &str) -> Result<Inference> {
    client.infer(model, None, Start::Prepared, share_image, |_| {}).await
}

fn check(inference: &Inference) {
    let manifest = std::str::from_utf8(&inference.manifest).unwrap();
    let [a, b] = &inference.outputs;
    let sum: Vec<u8> = a.iter().zip(b.iter()).map(|(a, b)| a.wrapping_add(*b)).collect();
    let want: Vec<u8> = toy::weights(manifest).iter().map(|w| w.wrapping_add(IMAGE)).collect();
    assert_eq!(sum, want);
    let n = want.len() as u64;
    for report in &inference.reports {
        assert_eq!(report.online_sent, n + 16, "framing included");
    }
    assert_eq!(inference.reports[0].helper_sent, 0);
    assert_eq!(inference.reports[1].helper_sent, n + 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn share_and_infer_over_restarts() {
    let mut nodes = Nodes::start().await;
    nodes.share("toy", 1, "toy:100").await.unwrap();
    let client = nodes.client().await;
    assert_eq!(client.models(Role::Helper).await.unwrap(), [ModelId { name: "toy".into(), version: 1 }]);
    for _ in 0..3 {
        check(&infer(&client, "toy").await.unwrap());
    }
    // A newer version takes over; a large one needs many packets.
    nodes.share("toy", 2, "toy:3000000").await.unwrap();
    check(&infer(&client, "toy").await.unwrap());
    client.close().await;
    for role in [Role::Helper, Role::Server1, Role::Server0] {
        nodes.restart(role).await;
        check(&infer(&nodes.client().await, "toy").await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_sessions_at_once_up_to_the_limit() {
    let nodes = Nodes::start_with(|c| c.limits.sessions = 3).await;
    nodes.share("toy", 1, "toy:1000:700").await.unwrap();
    let client = nodes.client().await;
    check(&infer(&client, "toy").await.unwrap());
    let start = Instant::now();
    let (a, b, c) = tokio::join!(infer(&client, "toy"), infer(&client, "toy"), infer(&client, "toy"));
    for inference in [a, b, c] {
        check(&inference.unwrap());
    }
    assert!(start.elapsed() < Duration::from_millis(1800), "not one after the other");
    let positions = Mutex::new(Vec::new());
    let told = |at| {
        if let Progress::Queued { position, seconds } = at {
            positions.lock().unwrap().push((position, seconds.is_some()));
        }
    };
    let other = nodes.client().await;
    let more = [&client, &client, &client, &other, &client]
        .map(|c| c.infer("toy", None, Start::Prepared, share_image, told));
    for inference in futures::future::join_all(more).await {
        check(&inference.unwrap());
    }
    let positions = positions.into_inner().unwrap();
    assert!(positions.iter().any(|p| p.0 <= 2) && positions.iter().all(|p| p.1), "two waited: {positions:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_longer_than_it_said_or_leaves_is_forgotten() {
    let nodes = Nodes::start_with(|c| {
        c.limits.sessions = 1;
        c.limits.queue_per_key = 1;
        c.limits.message_timeout_s = 30;
    })
    .await;
    nodes.share("toy", 1, "toy:100").await.unwrap();
    let holder = nodes.client().await;
    check(&infer(&holder, "toy").await.unwrap());
    let held = holder.begin("toy", None, Start::AtOnce).await.unwrap();
    let image = share_image(held.accepted()).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let identity = Arc::new(Identity::generate().unwrap());
    let patience = |seconds| Patience { queue: Duration::from_secs(seconds), ..Patience::default() };
    let connect = |patience| {
        let (cluster, identity) = (&nodes.cluster, identity.clone());
        async move {
            Client::connect(cluster, &Role::ALL, identity, &LinkConfig::default(), patience).await.unwrap()
        }
    };
    let e = infer(&connect(patience(0)).await, "toy").await.err().unwrap();
    assert!(e.code() == Code::Busy && e.to_string().contains("0 s"), "at once: {e}");
    let e = infer(&connect(patience(1)).await, "toy").await.err().unwrap();
    assert!(e.code() == Code::Busy && e.to_string().contains("within 1 s"), "after a second: {e}");
    let leaver = connect(patience(60)).await;
    let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let waits = leaver.infer("toy", None, Start::AtOnce, share_image, move |at| {
        let _ = told.send(at);
    });
    {
        tokio::pin!(waits);
        let position = async {
            loop {
                if let Progress::Queued { position, .. } = hears.recv().await.unwrap() {
                    break position;
                }
            }
        };
        tokio::select! {
            _ = &mut waits => panic!("there is no place"),
            position = position => assert_eq!(position, 1),
        }
        let second = connect(patience(60)).await;
        let e = infer(&second, "toy").await.err().unwrap();
        assert!(e.code() == Code::Busy && e.to_string().contains("one key"), "its only place to wait: {e}");
    }
    // It left, so its place to wait is free again; and the session's, once the first one is done.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let again = connect(patience(60)).await;
    let first = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        held.run(image, |_| {}).await
    };
    let (first, next) = tokio::join!(first, infer(&again, "toy"));
    check(&first.unwrap());
    let next = next.unwrap();
    check(&next);
    assert!(next.queued_seconds > 0.1, "it waited for the first: {}", next.queued_seconds);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_does_not_wait_for_the_queue() {
    for role in Role::ALL {
        let mut nodes = Nodes::start_with(|c| c.limits.sessions = 1).await;
        nodes.share("toy", 1, "toy:100").await.unwrap();
        let (holder, waiter) = (nodes.client().await, nodes.client().await);
        check(&infer(&holder, "toy").await.unwrap());
        let held = holder.begin("toy", None, Start::AtOnce).await.unwrap();
        let image = share_image(held.accepted()).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        let waits = infer(&waiter, "toy");
        let stops = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let drain = nodes.nodes[role as usize].take().unwrap().drain();
            let run = async {
                tokio::time::sleep(Duration::from_millis(500)).await;
                held.run(image, |_| {}).await
            };
            tokio::join!(drain, run).1
        };
        let (waited, ran) =
            tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(waits, stops) })
                .await
                .expect("it stops once the session that runs is over");
        check(&ran.unwrap());
        let e = waited.err().unwrap();
        assert_eq!(e.code(), Code::Draining, "{role}: {e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_sent_at_once_wait_for_nothing_but_their_correlations() {
    // Servers may wait for each other for longer than for a message.
    let nodes = Nodes::start_with(|c| c.limits.message_timeout_s = 1).await;
    nodes.share("first", 1, "toy:100:0:gated-all").await.unwrap();
    nodes.share("second", 1, "toy:100:0:gated-one").await.unwrap();
    let client = nodes.client().await;
    let sent = AtomicUsize::new(0);
    let progress = |at| {
        if at == Progress::Sent && sent.fetch_add(1, Ordering::SeqCst) == 2 {
            // Three images are there, and nothing is dealt.
            std::thread::sleep(Duration::from_millis(1500));
            toy::open("all");
        }
    };
    let infer = || client.infer("first", None, Start::AtOnce, share_image, progress);
    let (a, b, c) = tokio::join!(infer(), infer(), infer());
    [a, b, c].into_iter().for_each(|inference| check(&inference.unwrap()));

    // Otherwise the servers are not ready before the helper has dealt.
    let opened = AtomicBool::new(false);
    let progress = |at| assert!(at == Progress::Accepted || opened.load(Ordering::SeqCst), "{at:?}");
    let open = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        opened.store(true, Ordering::SeqCst);
        toy::open("one");
    };
    let infer = client.infer("second", None, Start::Prepared, share_image, progress);
    let (inference, ()) = tokio::join!(infer, open);
    check(&inference.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_leaves_during_the_online_phase_is_named() {
    // Before the image has come, and after.
    for (name, leaves) in [("before", Progress::Ready), ("after", Progress::Sent)] {
        let mut nodes = Nodes::start_with(|c| c.limits.sessions = 1).await;
        nodes.share(name, 1, &format!("toy:100:0:gated-{name}")).await.unwrap();
        let client = nodes.client().await;
        let helper = Mutex::new(nodes.nodes[Role::Helper as usize].take());
        let left = Mutex::new(None);
        let progress = |at| {
            if at == leaves {
                drop(helper.lock().unwrap().take());
                toy::fail(name);
                *left.lock().unwrap() = Some(Instant::now());
                // The client sends nothing meanwhile.
                std::thread::sleep(Duration::from_millis(500));
            }
        };
        let e = client.infer(name, None, Start::AtOnce, share_image, progress).await.err().unwrap();
        assert!(e.code() == Code::Link && e.to_string().contains("helper"), "{leaves:?}: {e}");
        let left = left.lock().unwrap().expect("it came so far");
        assert!(left.elapsed() < Duration::from_secs(4), "{leaves:?}: {:?}", left.elapsed());
        // The only place is free again once the threads are gone.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let e = infer(&client, name).await.err().unwrap();
        assert!(e.code() != Code::Busy && e.to_string().contains("helper"), "{leaves:?}: {e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_served_are_named() {
    let nodes = Nodes::start_with(|c| c.limits.image_mib = 1).await;
    let other = Arc::new(Identity::generate().unwrap());
    nodes.share("toy", 1, "toy:100").await.unwrap();
    let client = nodes.client().await;
    let code = |r: Result<()>| r.unwrap_err().code();
    assert_eq!(code(infer(&client, "nothing").await.map(drop)), Code::UnknownModel);
    assert_eq!(
        code(client.infer("toy", Some(9), Start::Prepared, share_image, |_| {}).await.map(drop)),
        Code::UnknownModel
    );
    assert_eq!(code(nodes.share("toy", 1, "toy:100").await), Code::ModelExists);
    assert_eq!(code(nodes.share_as(&other, "toy", 2, "toy:100").await), Code::ModelExists);
    assert_eq!(code(nodes.share("big", 1, "toy:2000000").await), Code::TooLarge);
    assert_eq!(code(nodes.share("bad", 1, "no manifest").await), Code::Config);
    assert_eq!(client.models(Role::Server0).await.unwrap().len(), 1);

    let wrong_length = |accepted: &Accepted| {
        let mut image = share_image(accepted)?;
        image.words.push(0);
        Ok(image)
    };
    let e = client.infer("toy", None, Start::Prepared, wrong_length, |_| {}).await.err().unwrap();
    assert!(matches!(&e, Error::Refused { code: Code::Malformed, peer, .. } if peer == "server 1"), "{e}");
    check(&infer(&client, "toy").await.unwrap());

    let failing = |_: &Accepted| Err(Error::Missing("that".into()));
    assert_eq!(
        code(client.infer("toy", None, Start::Prepared, failing, |_| {}).await.map(drop)),
        Code::Missing
    );
    check(&infer(&client, "toy").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn engine_failures_and_panics_end_one_session() {
    let nodes = Nodes::start().await;
    nodes.share("toy", 1, "toy:100").await.unwrap();
    nodes.share("fails", 1, "toy:100:0:fail").await.unwrap();
    nodes.share("panics", 1, "toy:100:0:panic").await.unwrap();
    let client = nodes.client().await;
    let e = infer(&client, "fails").await.err().unwrap();
    assert!(e.to_string().contains("server 1 fails on purpose"), "{e}");
    let e = infer(&client, "panics").await.err().unwrap();
    assert!(e.to_string().contains("panicked"), "{e}");
    check(&infer(&client, "toy").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_decide_who_may() {
    let (client, owner) = (Arc::new(Identity::generate().unwrap()), Arc::new(Identity::generate().unwrap()));
    let pins = [client.pin(), owner.pin()];
    let nodes = Nodes::start_with(|c| {
        c.clients.allow = Allowed::Pins(vec![pins[0]]);
        c.owners.allow = Allowed::Pins(vec![pins[1]]);
    })
    .await;
    assert_eq!(nodes.share_as(&client, "toy", 1, "toy:10").await.unwrap_err().code(), Code::NotAllowed);
    nodes.share_as(&owner, "toy", 1, "toy:10").await.unwrap();
    check(&infer(&nodes.client_as(client).await, "toy").await.unwrap());
    let refused = infer(&nodes.client_as(owner).await, "toy").await.err().unwrap();
    assert_eq!(refused.code(), Code::NotAllowed);
    assert!(nodes.client().await.models(Role::Server0).await.is_err());
}

/// Opens a stream to `role` with any key and any hello, and returns the refusal.
async fn hello_as(nodes: &Nodes, role: Role, identity: &Arc<Identity>, change: impl Fn(&mut Hello)) -> Error {
    let endpoint = Endpoint::dialing(identity.clone(), &LinkConfig::default()).unwrap();
    let card = nodes.cluster.card(role);
    let wait = Duration::from_secs(5);
    let connection = endpoint.connect("it", &card.public, card.pin, wait).await.unwrap();
    let mut stream = connection.open(wait).await.unwrap();
    let session = SessionId::random().unwrap();
    let mut hello =
        Hello { version: PROTOCOL_VERSION, cluster: nodes.cluster.hash(), session, purpose: Purpose::List };
    change(&mut hello);
    stream.send(&hello).await.unwrap();
    stream.recv::<Go>().await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_strange_hellos_are_refused() {
    let nodes = Nodes::start().await;
    let stranger = Arc::new(Identity::generate().unwrap());
    let work =
        Work { model: ModelId { name: "m".into(), version: 1 }, manifest: [0; 32], epoch: random().unwrap() };
    let expect = async |role, who: &Arc<Identity>, code, words: &str, change: &dyn Fn(&mut Hello)| {
        let e = hello_as(&nodes, role, who, change).await;
        assert!(e.code() == code && e.to_string().contains(words), "{e}");
    };
    expect(Role::Server0, &stranger, Code::Version, "protocol version 7", &|h| h.version = 7).await;
    expect(Role::Server0, &stranger, Code::Cluster, "cluster.toml", &|h| h.cluster[0] ^= 1).await;
    for purpose in [Purpose::Online(work.clone()), Purpose::Deal(work.clone()), Purpose::Load(work.clone())] {
        for role in Role::ALL {
            let change = |h: &mut Hello| h.purpose = purpose.clone();
            expect(role, &stranger, Code::NotAllowed, &stranger.pin().to_string(), &change).await;
        }
    }
    let greet = |h: &mut Hello| h.purpose = Purpose::Greet { role: Role::Server0, boot: [0; 16] };
    let e = hello_as(&nodes, Role::Server1, &stranger, greet).await.to_string();
    let pinned = nodes.cluster.card(Role::Server0).pin;
    for part in ["server 0", &pinned.to_string(), &stranger.pin().to_string()] {
        assert!(e.contains(part), "{e}");
    }
    // Server 0's own key, asking for what is server 1's.
    let server0 = Arc::new(Identity::load(&nodes.home(Role::Server0).join("server0.key")).unwrap());
    let change = |h: &mut Hello| {
        h.purpose = Purpose::Infer { model: "m".into(), version: None, start: Start::Prepared, wait_s: 60 }
    };
    expect(Role::Server1, &server0, Code::NotAllowed, "run a model", &change).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_cannot_be_replayed() {
    let mut nodes = Nodes::start().await;
    nodes.share("toy", 1, "toy:10").await.unwrap();
    let who = Arc::new(Identity::generate().unwrap());
    let session = SessionId::random().unwrap();
    let request = |session: SessionId| {
        move |h: &mut Hello| {
            h.session = session;
            h.purpose =
                Purpose::Infer { model: "toy".into(), version: None, start: Start::Prepared, wait_s: 60 };
        }
    };
    // The helper of this test waits for a Go and gets the acceptance instead.
    let first = hello_as(&nodes, Role::Server0, &who, request(session)).await;
    assert_eq!(first.code(), Code::Malformed, "{first}");
    let again = hello_as(&nodes, Role::Server0, &who, request(session)).await;
    assert_eq!(again.code(), Code::Replay, "{again}");
    nodes.restart(Role::Server0).await;
    let again = hello_as(&nodes, Role::Server0, &who, request(session)).await;
    assert_eq!(again.code(), Code::Replay, "{again}");
    // An id of another time is one that may have been forgotten.
    let other = hello_as(&nodes, Role::Server0, &who, request(SessionId([7; 32]))).await;
    assert!(other.code() == Code::Replay && other.to_string().contains("clocks"), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_finishes_what_runs_and_refuses_the_rest() {
    let mut nodes = Nodes::start().await;
    nodes.share("toy", 1, "toy:10:1200").await.unwrap();
    let client = nodes.client().await;
    check(&infer(&client, "toy").await.unwrap());
    let server0 = nodes.nodes[0].take().unwrap();
    let late = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let drain = tokio::spawn(server0.drain());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let refused = infer(&client, "toy").await.err().unwrap();
        (drain, refused)
    };
    let (running, (drain, refused)) = tokio::join!(infer(&client, "toy"), late);
    check(&running.unwrap());
    assert_eq!(refused.code(), Code::Draining, "{refused}");
    tokio::time::timeout(Duration::from_secs(3), drain).await.expect("drained").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_nodes_and_clients_end_their_sessions() {
    let mut nodes = Nodes::start().await;
    nodes.share("toy", 1, "toy:10:600").await.unwrap();
    let client = nodes.client().await;
    check(&infer(&client, "toy").await.unwrap());
    // A client that leaves ends its session; its place is free once the engine's threads are gone.
    for _ in 0..3 {
        let gone = tokio::time::timeout(Duration::from_millis(150), infer(&client, "toy")).await;
        assert!(gone.is_err());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    check(&infer(&client, "toy").await.unwrap());
    // Server 1 disappears in the middle.
    let server1 = nodes.nodes[1].take().unwrap();
    let leave = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(server1);
    };
    let (outcome, ()) = tokio::join!(infer(&client, "toy"), leave);
    let e = outcome.err().unwrap();
    assert!(matches!(e.code(), Code::Link | Code::Ended), "{e}");
    let e = infer(&client, "toy").await.err().unwrap();
    assert!(e.to_string().contains("server 1"), "{e}");
}

#[test]
fn a_key_that_is_not_the_pinned_one_does_not_start() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let nodes = Nodes::start().await;
        let home = nodes.home(Role::Helper);
        std::fs::remove_file(home.join("helper.key")).unwrap();
        let other = Identity::load_or_create(&home.join("helper.key")).unwrap();
        let start = |file: &Path| NodeConfig::load(file).and_then(|c| Node::start(c, Toy).map(drop));
        let e = start(&home.join("node.toml")).unwrap_err().to_string();
        let pinned: Pin = nodes.cluster.card(Role::Helper).pin;
        for part in ["helper", &pinned.to_string(), &other.pin().to_string()] {
            assert!(e.contains(part), "{e}");
        }
    });
}

/// A client's request that is made to `roles` alone and then left.
async fn lonely(
    nodes: &Nodes,
    client: &Arc<Identity>,
    role: Role,
    model: &str,
) -> sharelens::transport::ControlStream {
    let endpoint = Endpoint::dialing(client.clone(), &LinkConfig::default()).unwrap();
    let card = nodes.cluster.card(role);
    let wait = Duration::from_secs(5);
    let connection = endpoint.connect("it", &card.public, card.pin, wait).await.unwrap();
    let mut stream = connection.open(wait).await.unwrap();
    let purpose = Purpose::Infer { model: model.into(), version: None, start: Start::Prepared, wait_s: 60 };
    let session = SessionId::random().unwrap();
    stream
        .send(&Hello { version: PROTOCOL_VERSION, cluster: nodes.cluster.hash(), session, purpose })
        .await
        .unwrap();
    stream
}

/// Nodes at which only the owner of the test and `client` are enrolled.
async fn closed(client: &Arc<Identity>, change: impl Fn(&mut NodeConfig)) -> Nodes {
    let pin = client.pin();
    Nodes::start_with(|c| {
        c.clients.allow = Allowed::Pins(vec![pin]);
        c.owners.allow = Allowed::Pins(vec![pin]);
        change(c);
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_shut_nobody_out() {
    let client = Arc::new(Identity::generate().unwrap());
    let nodes = closed(&client, |c| c.limits.client_connections = 8).await;
    nodes.share_as(&client, "toy", 1, "toy:100").await.unwrap();
    // More connections than there are places, each under a key of its own, and kept by their makers.
    let card = nodes.cluster.card(Role::Server0);
    let mut kept = Vec::new();
    for _ in 0..80 {
        let stranger = Arc::new(Identity::generate().unwrap());
        let endpoint = Endpoint::dialing(stranger, &LinkConfig::default()).unwrap();
        let wait = Duration::from_secs(5);
        if let Ok(connection) = endpoint.connect("it", &card.public, card.pin, wait).await {
            kept.push((endpoint, connection));
        }
    }
    check(&infer(&nodes.client_as(client.clone()).await, "toy").await.unwrap());
    for (_, connection) in &kept {
        let closed = tokio::time::timeout(Duration::from_secs(5), connection.closed()).await;
        let e = closed.expect("turned away at once");
        assert_eq!(e.code(), Code::NotAllowed, "{e}");
        assert!(e.to_string().contains("node allow"), "{e}");
        // No stream, and so no word with any part of the node.
        assert!(connection.open(Duration::from_millis(100)).await.is_err());
    }
    check(&infer(&nodes.client_as(client).await, "toy").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_keeps_others_a_place() {
    let (greedy, other) = (Arc::new(Identity::generate().unwrap()), Arc::new(Identity::generate().unwrap()));
    let pins = vec![greedy.pin(), other.pin()];
    let nodes = Nodes::start_with(|c| {
        c.clients.allow = Allowed::Pins(pins.clone());
        (c.limits.client_connections, c.limits.connections_per_key) = (6, 4);
    })
    .await;
    nodes.share("toy", 1, "toy:100").await.unwrap();
    let card = nodes.cluster.card(Role::Server0);
    let mut kept = Vec::new();
    for _ in 0..8 {
        let endpoint = Endpoint::dialing(greedy.clone(), &LinkConfig::default()).unwrap();
        kept.push((endpoint.connect("it", &card.public, card.pin, Duration::from_secs(5)).await, endpoint));
    }
    check(&infer(&nodes.client_as(other).await, "toy").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_at_one_server_alone_holds_no_place() {
    let client = Arc::new(Identity::generate().unwrap());
    let nodes = closed(&client, |c| {
        c.limits.sessions = 2;
        c.limits.session_timeout_s = 60;
        c.limits.connections_per_key = 60;
    })
    .await;
    nodes.share_as(&client, "toy", 1, "toy:100").await.unwrap();
    let ready = nodes.client_as(client.clone()).await;
    check(&infer(&ready, "toy").await.unwrap());
    for role in [Role::Server1, Role::Server0] {
        let mut kept = Vec::new();
        // More than a server would let the other one have streams for sessions.
        for _ in 0..48 {
            let mut stream = lonely(&nodes, &client, role, "toy").await;
            stream.recv::<Accepted>().await.unwrap();
            kept.push(stream);
        }
        check(&infer(&ready, "toy").await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_at_server_1_alone_does_not_hold_up_a_shutdown() {
    let client = Arc::new(Identity::generate().unwrap());
    let mut nodes = closed(&client, |c| c.limits.session_timeout_s = 60).await;
    nodes.share_as(&client, "toy", 1, "toy:100").await.unwrap();
    let mut stream = lonely(&nodes, &client, Role::Server1, "toy").await;
    stream.recv::<Accepted>().await.unwrap();
    let server1 = nodes.nodes[Role::Server1 as usize].take().unwrap();
    let (ended, drained) =
        tokio::join!(stream.recv::<Go>(), tokio::time::timeout(Duration::from_secs(10), server1.drain()));
    drained.expect("not until the session's limit");
    assert_eq!(ended.unwrap_err().code(), Code::Draining);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_struck_off_loses_its_connections_and_sessions() {
    let (gone, stays) = (Arc::new(Identity::generate().unwrap()), Arc::new(Identity::generate().unwrap()));
    let nodes = closed(&stays, |_| {}).await;
    let enrol = |keys: &[&Arc<Identity>]| {
        let mut enrolled = Enrolled::default();
        for (i, key) in keys.iter().enumerate() {
            enrolled.allow(&format!("key {i}"), key.pin(), Right::Client);
        }
        for role in Role::ALL {
            let config = NodeConfig::load(&nodes.home(role).join("node.toml")).unwrap();
            enrolled.save(&config.enrolled_file()).unwrap();
        }
    };
    // Long enough to be in the middle of it.
    nodes.share_as(&stays, "toy", 1, "toy:10:3000").await.unwrap();
    enrol(&[&gone]);
    let (client, other) = (nodes.client_as(gone.clone()).await, nodes.client_as(stays.clone()).await);
    let strike = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        enrol(&[]);
        Instant::now()
    };
    let (outcome, untouched, struck) =
        tokio::join!(async { (infer(&client, "toy").await, Instant::now()) }, infer(&other, "toy"), strike);
    let (outcome, ended) = outcome;
    let e = outcome.err().expect("its session ends");
    assert_eq!(e.code(), Code::NotAllowed, "{e}");
    assert!(ended - struck < Duration::from_secs(2), "at once, and not when it is done");
    check(&untouched.unwrap());
    assert_eq!(infer(&client, "toy").await.err().unwrap().code(), Code::NotAllowed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_one_server_ends_is_over_for_all() {
    for role in [Role::Server0, Role::Server1] {
        let (client, gone) =
            (Arc::new(Identity::generate().unwrap()), Arc::new(Identity::generate().unwrap()));
        let mut nodes = closed(&client, |c| c.limits.session_timeout_s = 60).await;
        nodes.share_as(&client, "toy", 1, "toy:100").await.unwrap();
        let mut enrolled = Enrolled::default();
        enrolled.allow("gone", gone.pin(), Right::Client);
        let file = |role| NodeConfig::load(&nodes.home(role).join("node.toml")).unwrap().enrolled_file();
        [Role::Server0, Role::Server1].iter().for_each(|r| enrolled.save(&file(*r)).unwrap());
        let leaves = nodes.client_as(gone.clone()).await;
        let session = leaves.begin("toy", None, Start::Prepared).await.unwrap();
        let image = share_image(session.accepted()).unwrap();
        // One server is done and silent while the other one still reads a share that comes slowly.
        let run = session.run(image, |progress| {
            if progress == Progress::Ready {
                Enrolled::default().save(&file(role)).unwrap();
                std::thread::sleep(Duration::from_millis(1500));
            }
        });
        let begun = Instant::now();
        let e = run.await.err().unwrap_or_else(|| panic!("{role} struck the key off"));
        assert!(begun.elapsed() < Duration::from_secs(6), "{role}: {e}");
        assert!(matches!(e.code(), Code::NotAllowed | Code::Ended | Code::Link), "{role}: {e}");
        drop(leaves);
        // Nothing of it is left at any node: a stop has nothing to wait for.
        for role in Role::ALL {
            let node = nodes.nodes[role as usize].take().unwrap();
            tokio::time::timeout(Duration::from_secs(5), node.drain()).await.expect("no session is left");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_an_operator_frees_may_be_another_models() {
    let nodes = Nodes::start().await;
    nodes.share("toy", 1, "toy:100").await.unwrap();
    let client = nodes.client().await;
    assert_eq!(infer(&client, "toy").await.unwrap().manifest, b"toy:100");
    let other = Arc::new(Identity::generate().unwrap());
    assert_eq!(nodes.share_as(&other, "toy", 1, "toy:50").await.unwrap_err().code(), Code::ModelExists);
    for role in Role::ALL {
        let config = NodeConfig::load(&nodes.home(role).join("node.toml")).unwrap();
        assert_eq!(sharelens::storage::remove(&config.data_dir, "toy", None).unwrap(), 1);
    }
    assert_eq!(infer(&client, "toy").await.err().unwrap().code(), Code::UnknownModel);
    nodes.share_as(&other, "toy", 1, "toy:50").await.unwrap();
    for _ in 0..2 {
        let inference = infer(&client, "toy").await.unwrap();
        check(&inference);
        assert_eq!((&inference.manifest[..], inference.owner), (&b"toy:50"[..], other.pin()));
    }
}

/// Handshakes from `address` whose first packet is real and that never go on. They last as long as what comes back.
async fn half_open(nodes: &Nodes, address: &str, count: usize) -> Vec<tokio::task::JoinHandle<()>> {
    let card = nodes.cluster.card(Role::Server0).clone();
    let identity = Arc::new(Identity::generate().unwrap());
    let mut halves = Vec::new();
    for _ in 0..count {
        let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let back = tokio::net::UdpSocket::bind((address, 0)).await.unwrap();
        back.connect(&card.public).await.unwrap();
        let to = front.local_addr().unwrap().to_string();
        let endpoint = Endpoint::dialing(identity.clone(), &LinkConfig::default()).unwrap();
        halves.push(tokio::spawn(async move {
            let forward = async {
                let mut packet = [0; 2048];
                while let Ok(n) = front.recv(&mut packet).await {
                    let _ = back.send(&packet[..n]).await;
                }
            };
            let dial = endpoint.connect("it", &to, card.pin, Duration::from_secs(30));
            tokio::select! { () = forward => {}, _ = dial => {} }
        }));
    }
    halves
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_left_half_open_keep_nobody_out() {
    let client = Arc::new(Identity::generate().unwrap());
    let mut nodes = closed(&client, |_| {}).await;
    nodes.share_as(&client, "toy", 1, "toy:100").await.unwrap();
    // More than a node keeps, from another address of this machine than that of nodes and clients.
    let halves = half_open(&nodes, "127.0.0.2", 150).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for _ in 0..3 {
        check(&infer(&nodes.client_as(client.clone()).await, "toy").await.unwrap());
    }
    // A node that comes back meanwhile is let in, too.
    nodes.restart(Role::Server0).await;
    check(&infer(&nodes.client_as(client).await, "toy").await.unwrap());
    halves.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_nothing_leave_nothing_behind() {
    let client = Arc::new(Identity::generate().unwrap());
    let nodes = closed(&client, |_| {}).await;
    nodes.share_as(&client, "toy", 1, "toy:100").await.unwrap();
    let ready = nodes.client_as(client).await;
    let seen = nodes.home(Role::Server0).join("data/sessions");
    let bytes =
        || -> u64 { std::fs::read_dir(&seen).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum() };
    check(&infer(&ready, "toy").await.unwrap());
    let before = bytes();
    for _ in 0..300 {
        let e = infer(&ready, "no-such-model").await.err().unwrap();
        assert_eq!(e.code(), Code::UnknownModel);
    }
    assert_eq!(bytes(), before, "ids of requests for unknown models are not kept");
    check(&infer(&ready, "toy").await.unwrap());
    assert_eq!(bytes(), before + 32);
}

/// An upload at server 0 that announces something and sends nothing.
async fn slow_upload(nodes: &Nodes, owner: &Arc<Identity>) -> sharelens::transport::ControlStream {
    let endpoint = Endpoint::dialing(owner.clone(), &LinkConfig::default()).unwrap();
    let card = nodes.cluster.card(Role::Server0);
    let wait = Duration::from_secs(5);
    let connection = endpoint.connect("it", &card.public, card.pin, wait).await.unwrap();
    let mut stream = connection.open(wait).await.unwrap();
    let model = ModelId { name: "slow".into(), version: 1 };
    let purpose = Purpose::Share(sharelens::control::Upload { model, manifest_bytes: 1000, share_bytes: 32 });
    let session = SessionId::random().unwrap();
    let hello = Hello { version: PROTOCOL_VERSION, cluster: nodes.cluster.hash(), session, purpose };
    stream.send(&hello).await.unwrap();
    stream.recv::<Go>().await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upload_does_not_hold_up_a_shutdown() {
    let owner = Arc::new(Identity::generate().unwrap());
    let mut nodes = closed(&owner, |c| c.limits.message_timeout_s = 60).await;
    let mut slow = slow_upload(&nodes, &owner).await;
    let server0 = nodes.nodes[Role::Server0 as usize].take().unwrap();
    let (ended, drained) =
        tokio::join!(slow.recv::<Go>(), tokio::time::timeout(Duration::from_secs(10), server0.drain()));
    drained.expect("not until the upload is late");
    assert_eq!(ended.unwrap_err().code(), Code::Draining);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_uploads_hold_no_place_of_pictures() {
    let client = Arc::new(Identity::generate().unwrap());
    let nodes = closed(&client, |c| {
        c.limits.sessions = 1;
        c.limits.uploads = 2;
    })
    .await;
    nodes.share_as(&client, "toy", 1, "toy:100").await.unwrap();
    let mut slow = slow_upload(&nodes, &client).await;
    check(&infer(&nodes.client_as(client.clone()).await, "toy").await.unwrap());
    let second = nodes.share_as(&client, "toy", 2, "toy:100").await.unwrap_err();
    assert_eq!(second.code(), Code::Busy, "one upload of an owner at a time: {second}");
    let e = slow.recv::<Go>().await.unwrap_err();
    assert_eq!(e.code(), Code::Timeout, "it is cut off: {e}");
    nodes.share_as(&client, "toy", 2, "toy:100").await.unwrap();
}
