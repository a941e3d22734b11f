//! Three nodes with the real engine over loopback, whose preprocessing goes on beside the online phase.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;

use sharelens::client::{Client, Patience};
use sharelens::config::{Allowed, Card, Cluster, LinkConfig, NodeConfig, PROTOCOL_VERSION};
use sharelens::control::{ModelId, Start};
use sharelens::{Identity, Node, Role, engine};
use sharelens_models::check::top;
use sharelens_models::image::Picture;
use sharelens_models::{Model, Options, prepare};
use sharelens_protocol::cost::Cost;

const ONNX: &[u8] = include_bytes!("../../models/data/brain_mri_cnn/model.onnx");
const CONFIG: &str = include_str!("../../models/data/brain_mri_cnn/config.json");
const PICTURES: [&[u8]; 2] = [
    include_bytes!("../../models/data/brain_mri/glioma-gg_218.jpg"),
    include_bytes!("../../models/data/brain_mri/no_tumor-image_39.jpg"),
];

/// Writes what a cluster needs, with `memory_mib` for correlations; returns the cluster.
fn configure(dir: &Path, memory_mib: u64) -> Cluster {
    let sockets = Role::ALL.map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let cards = Role::ALL.into_iter().zip(&sockets).map(|(role, socket)| {
        let (home, address) = (dir.join(role.word()), socket.local_addr().unwrap());
        std::fs::create_dir(&home).unwrap();
        let mut config = NodeConfig::new(role, address);
        config.preprocessing.memory_mib = memory_mib;
        config.cluster = "../cluster.toml".into();
        (config.clients.allow, config.owners.allow) = (Allowed::Any, Allowed::Any);
        config.save(&home.join("node.toml")).unwrap();
        let pin = Identity::load_or_create(&home.join(&config.key_file)).unwrap().pin();
        Card { role, name: role.to_string(), public: address.to_string(), pin, protocol: PROTOCOL_VERSION }
    });
    let cluster = Cluster::new(cards.collect()).unwrap();
    cluster.save(&dir.join("cluster.toml")).unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn several_overlapped_sessions_with_little_memory_agree_with_one_prepared_first() {
    let model = Model::from_bytes(ONNX, Some(CONFIG)).unwrap();
    let inputs = PICTURES.map(|p| model.input(&Picture::decode(p).unwrap()).unwrap());
    let (prepared, _) = prepare(&model, &inputs, &Options::default()).unwrap();
    let manifest = prepared.manifest().unwrap();
    let plan: Cost = engine::plan(&manifest).unwrap().values().copied().sum();
    let memory_mib = 1;
    assert!(plan.dealt > (2 * memory_mib) << 20, "{} bytes are no more than fit", plan.dealt);

    let dir = tempfile::tempdir().unwrap();
    let cluster = configure(dir.path(), memory_mib);
    let start = |role: Role| {
        let config = NodeConfig::load(&dir.path().join(role.word()).join("node.toml")).unwrap();
        Node::start(config, engine::runner()).unwrap()
    };
    let nodes = Role::ALL.map(start);
    for node in &nodes {
        node.ready().await;
    }
    let (identity, link) = (Arc::new(Identity::generate().unwrap()), LinkConfig::default());
    let connect = Client::connect(&cluster, &Role::ALL, identity, &link, Patience::default());
    let client = connect.await.unwrap();
    let id = ModelId { name: "mri".into(), version: 1 };
    let weights = prepared.quantised(prepared.arithmetic()).unwrap();
    let (seed, words) = engine::share_weights(&manifest, &weights).unwrap();
    let encoded = engine::encode_manifest(&manifest).unwrap();
    client.share(&id, encoded, &seed, words, |_| {}).await.unwrap();

    let run = async |start, input: &[f32]| {
        let session = client.begin("mri", None, start).await.unwrap();
        let image = engine::share_image(&session.manifest().unwrap(), input).unwrap();
        let done = session.run(image, |_| {}).await.unwrap();
        let [a, b] = &done.outputs;
        let logits = engine::open_result(&manifest, [a, b]).unwrap().outputs.remove(0);
        let [l0, l1] = done.reports.map(|r| r.ledger.total().sent);
        assert_eq!((l0.rounds, l0.bytes, l1.dealt), (plan.rounds, plan.bytes, plan.dealt));
        logits
    };
    for input in &inputs {
        let first = run(Start::Prepared, input).await;
        let at_once = [(); 3].map(|()| run(Start::AtOnce, input));
        for logits in futures::future::join_all(at_once).await {
            assert_eq!(top(&logits), top(&first));
            assert!(logits.iter().zip(&first).all(|(a, b)| (a - b).abs() < 0.02), "{logits:?} {first:?}");
        }
    }
    client.close().await;
}
