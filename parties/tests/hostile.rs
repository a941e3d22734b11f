//! Manifests that would make the servers open a picture, offered to real nodes with the real engine: each node refuses by
//! itself, and so does a client to whom a server names one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sharelens::config::{Allowed, Card, Cluster, LinkConfig, NodeConfig, PROTOCOL_VERSION};
use sharelens::control::{Go, Hello, ModelId, Purpose, SessionId, Upload};
use sharelens::transport::Endpoint;
use sharelens::{Code, Error, Identity, Node, Role, engine};
use sharelens_models::manifest::OutputInfo;
use sharelens_models::program::detect::Stage;
use sharelens_models::program::{Arrange, Instruction, Layer, Program};
use sharelens_models::{Manifest, Model, Options, prepare};
use sharelens_ops::detect::{KeepFirst, Unsettled};
use sharelens_ops::layers::Select;
use sharelens_protocol::ring::Range;

const WAIT: Duration = Duration::from_secs(5);

/// A manifest of a classifier in use, on which the others are built.
fn sound() -> Manifest {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/data/brain_mri_cnn");
    let model = Model::import(&data.join("model.onnx"), None).unwrap();
    let n = model.graph().input_shape.iter().product();
    let (prepared, _) = prepare(&model, &[vec![0.5; n]], &Options::default()).unwrap();
    prepared.manifest().unwrap()
}

fn layer(op: Instruction, inputs: &[u32], shape: &[usize]) -> Layer {
    let (inputs, shape) = (inputs.to_vec(), shape.to_vec());
    Layer { name: "hostile".into(), op, inputs, shape, range: Range::Full, scale: 1024.0 }
}

fn stage(stage: Stage, inputs: &[u32], shape: &[usize]) -> Layer {
    layer(Instruction::Detect { stage: Box::new(stage), limits: vec![1.0; inputs.len()] }, inputs, shape)
}

/// What follows from pixels as if they were keep bits, on a picture of `[2, rows]`.
fn hostile(rows: usize) -> Vec<(&'static str, Manifest)> {
    let first = Select { axes: vec![vec![0], (0..rows as u32).collect()] };
    let list = [
        layer(Instruction::Arrange(Arrange::Select(first)), &[0], &[1, rows]),
        layer(Instruction::Arrange(Arrange::Reshape), &[1], &[rows, 1]),
    ];
    let keep = |bits: u32| {
        let s = KeepFirst { rows, width: 1, columns: 1, k: rows };
        stage(Stage::KeepFirst(s), &[2, bits], &[rows, 1])
    };
    let programs = [
        ("pixels for keep bits", vec![keep(0)]),
        ("a relu for keep bits", vec![layer(Instruction::Relu, &[0], &[2, rows]), keep(3)]),
        (
            "numbers from 0 to 1 for keep bits",
            vec![layer(Instruction::Clip { lo: Some(0), hi: Some(1) }, &[0], &[2, rows]), keep(3)],
        ),
        ("pixels counted as bits", vec![stage(Stage::Unsettled(Unsettled { rows, steps: 1 }), &[0], &[1])]),
    ];
    let manifest = |(what, more): (&'static str, Vec<Layer>)| {
        let mut m = sound();
        let layers = [list.to_vec(), more].concat();
        let shape = layers[layers.len() - 1].shape.clone();
        m.outputs =
            vec![OutputInfo { name: "out".into(), shape, columns: vec![], finish: None, proved: false }];
        m.config.preprocess = None;
        m.config.task = sharelens_models::config::Task::Other;
        m.config.classes = vec![];
        m.program = Program {
            input_shape: vec![2, rows],
            input_scale: 255.0,
            outputs: vec![layers.len() as u32],
            watched: None,
            layers,
            ..m.program
        };
        (what, m)
    };
    programs.into_iter().map(manifest).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_and_the_client_refuse_manifests_that_open_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let owner = Arc::new(Identity::generate().unwrap());
    let (mut cards, mut configs) = (vec![], vec![]);
    for role in Role::ALL {
        let home = dir.path().join(role.word());
        std::fs::create_dir(&home).unwrap();
        let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let mut config = NodeConfig::new(role, address.parse().unwrap());
        config.cluster = "../cluster.toml".into();
        config.owners.allow = Allowed::Pins(vec![owner.pin()]);
        config.save(&home.join("node.toml")).unwrap();
        let pin = Identity::load_or_create(&home.join(&config.key_file)).unwrap().pin();
        cards.push(Card { role, name: role.to_string(), public: address, pin, protocol: PROTOCOL_VERSION });
        configs.push(home.join("node.toml"));
    }
    let cluster = Cluster::new(cards).unwrap();
    cluster.save(&dir.path().join("cluster.toml")).unwrap();
    let nodes: Vec<_> = configs
        .iter()
        .map(|config| Node::start(NodeConfig::load(config).unwrap(), engine::runner()).unwrap())
        .collect();

    // Uploads to one node, as an owner would who has written a client of their own.
    let offer = async |role: Role, manifest: &Manifest| -> Result<Go, Error> {
        let encoded = engine::encode_manifest(manifest).unwrap();
        let card = cluster.card(role);
        let endpoint = Endpoint::dialing(owner.clone(), &LinkConfig::default()).unwrap();
        let connection = endpoint.connect("the node", &card.public, card.pin, WAIT).await?;
        let mut stream = connection.open(WAIT).await?;
        let share_bytes = match role {
            Role::Server0 => 32,
            _ => 0,
        };
        let model = ModelId { name: "hostile".into(), version: 1 };
        let upload = Upload { model, manifest_bytes: encoded.len() as u64, share_bytes };
        let (session, purpose) = (SessionId::random().unwrap(), Purpose::Share(upload));
        stream.send(&Hello { version: PROTOCOL_VERSION, cluster: cluster.hash(), session, purpose }).await?;
        let Go = stream.recv().await?;
        stream.send_bulk(encoded.into()).await?;
        if share_bytes > 0 {
            stream.send_bulk(vec![7; 32].into()).await?;
        }
        stream.recv().await
    };
    for (what, manifest) in [1, 2, 32].into_iter().flat_map(hostile) {
        let encoded = engine::encode_manifest(&manifest).unwrap();
        let e = engine::decode_manifest(&encoded).expect_err("the client refuses").to_string();
        assert!(e.contains("bits that no sign made"), "{what}: {e}");
        for role in Role::ALL {
            let e = offer(role, &manifest).await.expect_err(what);
            assert_eq!(e.code(), Code::Config, "{what} at {role}: {e}");
            assert!(e.to_string().contains("bits that no sign made"), "{what} at {role}: {e}");
        }
    }
    // It is not uploads that they refuse. The helper needs no share, so it has all of the model.
    offer(Role::Helper, &sound()).await.expect("a model in order");
    for node in nodes {
        node.drain().await;
    }
}
