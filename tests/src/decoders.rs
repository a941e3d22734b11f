//! One function per decoder of what a peer, a file or a user can hand us, for any bytes at all.
//!
//! They are the bodies of the fuzz targets and of the smoke test. None of them may panic, whatever comes; what is
//! accepted has to be usable and to survive being written and read again, or the function panics itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use sharelens::codec::{self, FRAME_HEADER_BYTES, Message};
use sharelens::config::{Card, Cluster, NodeConfig};
use sharelens::control::{
    Accepted, DealtSeed, Go, Greeting, Hello, ImageShare, ModelId, Models, Readiness, Refusal, ResultShare,
    SessionId,
};
use sharelens::error::Code;
use sharelens::runner::Runner;
use sharelens::storage::{Storage, StoredModel};
use sharelens::{Identity, Pin, Role, engine};
use sharelens_models::config::{Channels, Config, Preprocess, Resize, Task};
use sharelens_models::graph::{Graph, Output as GraphOutput};
use sharelens_models::image::Picture;
use sharelens_models::manifest::OutputInfo;
use sharelens_models::program::{Instruction, Layer, Program};
use sharelens_models::{Arithmetic, Manifest, Model, Options, Prepared, inspect, onnx};
use sharelens_protocol::Step;
use sharelens_protocol::channel::{HEADER_BYTES, MAX_MESSAGE_BYTES, check_header, header};
use sharelens_protocol::ring::Range;

/// What is accepted is also run if it is at most this large: elements and products.
const SMALL: u64 = 1 << 14;

/// Every control message, as frames of one stream.
pub fn frames(data: &[u8]) {
    let mut rest = data;
    while let Some((head, tail)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() {
        let Ok((kind, len)) = codec::decode_header(head) else { return };
        let (body, next) = tail.split_at(len.min(tail.len()));
        rest = next;
        message::<Hello>(kind, body);
        message::<Refusal>(kind, body);
        message::<Greeting>(kind, body);
        message::<Go>(kind, body);
        message::<Accepted>(kind, body);
        message::<ImageShare>(kind, body);
        message::<Readiness>(kind, body);
        message::<ResultShare>(kind, body);
        message::<DealtSeed>(kind, body);
        message::<Models>(kind, body);
        if let Ok(refusal) = codec::decode_body::<Refusal>(body) {
            let _ = Code::from_wire(refusal.code.into()).to_string();
        }
        if let Ok(hello) = codec::decode_body::<Hello>(body) {
            let _ = format!("{} {:?}", hello.purpose.words(), hello);
        }
    }
}

fn message<M: Message>(kind: u16, body: &[u8]) {
    // Also bodies of another kind: a peer may name any kind.
    let Ok(read) = codec::decode_body::<M>(body) else { return };
    let Ok(frame) = codec::encode(&read) else { return };
    let (head, again) = frame.split_first_chunk::<FRAME_HEADER_BYTES>().expect("a frame has a header");
    assert_eq!(codec::decode_header(head).expect("our own"), (M::KIND, again.len()));
    let twice = codec::decode_body::<M>(again).and_then(|m| codec::encode(&m));
    assert_eq!(twice.as_ref(), Ok(&frame), "a {} (kind {kind}) changes when it is read again", M::NAME);
}

/// The header of a protocol message: step, length, magic.
pub fn channel_header(data: &[u8]) {
    let Some((head, _)) = data.split_first_chunk::<HEADER_BYTES>() else { return };
    let words = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes).expect("4 bytes");
    let step = Step::from_bits(u64::from(words(0)) | u64::from(words(4)) << 32);
    let len = words(8) as usize;
    if check_header(head, step, len).is_ok() {
        assert!(len > MAX_MESSAGE_BYTES || header(step, len) == *head);
    }
    let due = Step::layer(3).call(1).message(2);
    assert!(check_header(head, due, 77).is_err() || header(due, 77) == *head, "another message passed");
}

/// A model's public manifest: decoded, validated, planned. As it travels, or as JSON, which is easier to mutate.
pub fn manifest(data: &[u8]) {
    let manifest = match serde_json::from_slice::<Manifest>(data) {
        Ok(manifest) if manifest.validate().is_ok() => manifest,
        Ok(_) => return,
        Err(_) => match engine::decode_manifest(data) {
            Ok(manifest) => manifest,
            Err(_) => return,
        },
    };
    let bytes = engine::encode_manifest(&manifest).expect("a manifest that was read can be written");
    // What was read as JSON may be impossible to plan.
    let Ok(again) = engine::decode_manifest(&bytes) else { return };
    assert_eq!(again, manifest);
    engine::plan(&manifest).expect("what was decoded was planned");
    let runner = engine::runner();
    let model = runner.model(&bytes, |_| Ok(())).expect("what can be planned can be run");
    let sizes = runner.sizes(&model);
    if sizes.image_share.max(sizes.output) as u64 <= 8 * SMALL {
        let input = vec![0.5; manifest.program.input_len()];
        let image = engine::share_image(&manifest, &input).expect("an input of the right length");
        assert_eq!((image.words.len(), image.output_bytes), (sizes.image_share, sizes.output));
        let zeros = vec![0; sizes.output];
        let opened =
            engine::open_result(&manifest, [&zeros, &zeros]).expect("shares of the right length").outputs;
        assert_eq!(opened.len(), manifest.outputs.len());
    }
}

/// Both servers' shares of a result, of a manifest that is in order.
pub fn result(data: &[u8]) {
    static MANIFEST: OnceLock<Manifest> = OnceLock::new();
    let manifest = MANIFEST.get_or_init(rectifier);
    let (a, b) = data.split_at(data.len() / 2);
    if let Ok(opened) = engine::open_result(manifest, [a, b]) {
        assert!(opened.outputs.iter().flatten().all(|v| v.is_finite()));
    }
}

/// A model of one layer: max(x, 0) of twelve numbers.
pub fn rectifier() -> Manifest {
    let arithmetic = Arithmetic::usual(3, 2).expect("usual moduli");
    let layer = Layer {
        name: "relu".into(),
        op: Instruction::Relu,
        inputs: vec![0],
        shape: vec![1, 12],
        range: Range::Full,
        scale: 1024.0,
    };
    let program = Program {
        input_shape: vec![1, 12],
        input_scale: 1024.0,
        bounds: arithmetic.bounds().expect("usable moduli"),
        layers: vec![layer],
        outputs: vec![1],
        watched: None,
    };
    Manifest {
        version: sharelens_models::manifest::VERSION,
        config: Config {
            name: "rectifier".into(),
            task: Task::Other,
            classes: vec![],
            preprocess: None,
            detection: None,
        },
        arithmetic,
        rounds: Default::default(),
        program,
        outputs: vec![OutputInfo {
            name: "y".into(),
            shape: vec![1, 12],
            finish: None,
            columns: vec![],
            proved: false,
        }],
    }
}

/// An ONNX file: imported, reported on, and prepared if it is small.
pub fn onnx(data: &[u8]) {
    let report = inspect::inspect_bytes(data);
    let Ok(graph) = onnx::import(data) else {
        assert!(report.is_err() || report.is_ok_and(|r| !r.supported), "inspection and import disagree");
        return;
    };
    assert!(report.is_ok_and(|r| r.supported), "inspection and import disagree");
    graph.validate().expect("import yields valid networks");
    if small(&graph) {
        let model = Model::from_bytes(data, None).expect("it was imported before");
        let options = Options { stress: false, ..Options::default() };
        if let Ok((prepared, _)) = sharelens_models::prepare(&model, &[vec![0.5; graph.len(0)]], &options) {
            let bytes = prepared.to_bytes().expect("a prepared model can be written");
            let again = Prepared::from_bytes(&bytes).expect("and read again");
            assert_eq!(again.to_bytes().expect("and written again"), bytes);
        }
    }
}

fn small(graph: &Graph) -> bool {
    let values: u64 = (0..=graph.nodes.len()).map(|v| graph.len(v) as u64).sum();
    values + graph.macs() + graph.parameter_count() as u64 <= SMALL
}

/// A prepared model: read, checked, and run in the clear if it is small.
pub fn prepared(data: &[u8]) {
    let Ok(prepared) = Prepared::from_bytes(data) else { return };
    let manifest = prepared.manifest().expect("checked when it was read");
    let _ = engine::plan(&manifest);
    if small(prepared.graph()) {
        let input = vec![0.5; prepared.graph().len(0)];
        let _ = prepared.float(&input);
        let _ = prepared.plain(&input);
        let _ = engine::share_weights(
            &manifest,
            &prepared.quantised(prepared.arithmetic()).expect("as its manifest"),
        );
    }
}

/// A PNG or JPEG file: decoded and brought to a network's input in every way there is.
pub fn picture(data: &[u8]) {
    let Ok(picture) = Picture::decode(data) else { return };
    assert_eq!(picture.pixels.len(), picture.rows * picture.columns * picture.channels);
    assert!(picture.pixels.iter().all(|v| (0.0..=255.0).contains(v)));
    fit(&picture);
}

fn fit(picture: &Picture) {
    for shape in [[1, 28, 28, 1], [1, 9, 5, 3]] {
        let mut p = Preprocess::for_input(&shape).expect("the shape of a picture");
        for resize in [Resize::Triangle, Resize::BlockMean(2)] {
            p.resize = resize;
            match picture.input(&p) {
                Ok(input) => {
                    let numbers: usize = shape.iter().product();
                    assert!(input.len() == numbers && input.iter().all(|v| v.is_finite()));
                }
                Err(e) => assert!(!e.to_string().is_empty()),
            }
        }
    }
}

/// A model's `config.json`, beside networks of two shapes.
pub fn model_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for shape in [vec![1, 28, 28, 1], vec![1, 9, 5, 3], vec![1, 12]] {
        let graph = Graph {
            name: "network".into(),
            input_name: "x".into(),
            input_shape: shape.clone(),
            nodes: Vec::new(),
            outputs: vec![GraphOutput {
                name: "y".into(),
                value: 0,
                original_shape: shape.clone(),
                finish: None,
            }],
        };
        let Ok(config) = Config::parse(text, &graph) else { continue };
        config.validate(&shape).expect("checked when it was read");
        let Some(p) = &config.preprocess else { continue };
        let channels = if p.channels == Channels::Luma { 3 } else { 1 };
        let pixels = (0..7 * 11 * channels).map(|i| (i % 256) as f64).collect();
        let picture = Picture { rows: 7, columns: 11, channels, pixels, notes: Vec::new() };
        if let Ok(input) = picture.input(p) {
            assert_eq!(input.len(), shape.iter().product::<usize>());
        }
    }
}

/// A file of this content in a directory of this thread.
fn scratch(name: &str, data: &[u8]) -> PathBuf {
    thread_local! {
        static DIR: tempfile::TempDir = tempfile::tempdir().expect("a temporary directory");
    }
    let file = DIR.with(|dir| dir.path().join(name));
    fs::create_dir_all(file.parent().expect("a file in a directory")).expect("a directory");
    fs::write(&file, data).expect("a temporary file");
    file
}

/// `cluster.toml`.
pub fn cluster_toml(data: &[u8]) {
    let file = scratch("cluster.toml", data);
    let Ok(cluster) = Cluster::load(&file) else { return };
    for role in Role::ALL {
        assert_eq!(cluster.role_of(cluster.card(role).pin), Some(role));
    }
    cluster.save(&file).expect("what was read can be written");
    let again = Cluster::load(&file).expect("our own");
    assert_eq!((again.hash(), again.code()), (cluster.hash(), cluster.code()));
}

/// `node.toml`.
pub fn node_toml(data: &[u8]) {
    let file = scratch("node.toml", data);
    let Ok(config) = NodeConfig::load(&file) else { return };
    config.save(&file).expect("what was read can be written");
    let again = NodeConfig::load(&file).expect("our own");
    assert_eq!((again.listen, again.link, again.limits), (config.listen, config.link, config.limits));
}

/// `ROLE.card`.
pub fn card_toml(data: &[u8]) {
    let file = scratch("a.card", data);
    let Ok(card) = Card::load(&file) else { return };
    card.save(&file).expect("what was read can be written");
    assert_eq!(Card::load(&file).expect("our own"), card);
    let _ = Cluster::new(vec![card.clone(), card]);
}

/// A private key in PEM.
pub fn key_file(data: &[u8]) {
    let file = scratch("a.key", data);
    private(&file);
    let _ = Identity::load(&file).map(|identity| identity.pin());
}

/// A node's data directory with one file of this content: the first byte says which.
pub fn storage(data: &[u8]) {
    let (which, content) = data.split_first().map_or((0, data), |(w, rest)| (*w, rest));
    let place = |name: &str, content: &[u8]| scratch(&format!("data/{name}"), content);
    let fresh = SessionId::random().expect("entropy");
    let epoch = format!("sessions/{}.seen", fresh.made() / 1200);
    place(&epoch, if which % 3 == 1 { content } else { &[] });
    private(&place("storage.key", if which % 3 == 2 { content } else { &[7; 32] }));
    let share = place("models/m/1.share", if which % 3 == 0 { content } else { &STORED });
    let dir = share.ancestors().nth(3).expect("data/models/m/1.share");
    let Ok(storage) = Storage::open(dir, Role::Server1) else { return };
    let id = ModelId { name: "m".into(), version: 1 };
    for _ in 0..2 {
        let _ = storage.find("m", None);
        // No bytes but those that this node wrote itself under its key are a model.
        assert!(storage.load(&id).is_err());
        let _ = storage.may_add(&id, Pin::from_bytes([0; 32]), 4);
    }
    let before = storage.first_use(fresh);
    assert!(storage.first_use(fresh).is_err(), "seen twice, {before:?}");
}

/// The header of a stored share, and nothing behind it.
const STORED: [u8; 60] = {
    let mut bytes = [3; 60];
    [bytes[0], bytes[1], bytes[2], bytes[3]] = *b"SLS1";
    bytes
};

/// A stored model with one byte changed, cut off or added: always noticed. `data` is the model; its first two
/// bytes say where.
pub fn stored_model(data: &[u8]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let storage = Storage::open(dir.path(), Role::Server0).expect("an empty directory");
    let id = ModelId { name: "m".into(), version: 1 };
    let (manifest, share) = data.split_at(data.len() / 3);
    let model = StoredModel { manifest: manifest.to_vec(), share: share.to_vec().into() };
    let staged = storage.stage(&id, Pin::from_bytes([1; 32]), &model).expect("room on the disk");
    staged.commit(1).expect("the first model");
    let read = storage.load(&id).expect("just written");
    assert!(read.manifest == manifest && *read.share == *share);
    let file = dir.path().join("models/m/1.share");
    let mut bytes = fs::read(&file).expect("just written");
    let at = data.iter().take(2).fold(0, |a, &b| 256 * a + usize::from(b)) % (bytes.len() + 1);
    match bytes.get_mut(at) {
        Some(byte) if data.first().is_some_and(|b| b % 3 > 0) => *byte ^= 1 << (at % 8),
        Some(_) => bytes.truncate(at),
        None => bytes.push(0),
    }
    fs::write(&file, bytes).expect("room on the disk");
    assert!(storage.load(&id).is_err(), "a change at {at} passed");
}

fn private(file: &Path) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).expect("our own file");
    }
    #[cfg(not(unix))]
    let _ = file;
}
