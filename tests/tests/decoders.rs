//! Every decoder on files and messages that are in order, and on thousands that are not quite.

#[path = "../../models/tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::Attr::{F, Is};
use common::Builder;
use sharelens::codec::encode;
use sharelens::config::{Card, Cluster, NodeConfig, PROTOCOL_VERSION};
use sharelens::control::{
    Accepted, DealtSeed, Go, Greeting, Hello, ImageShare, ModelId, Models, Purpose, Readiness, Refusal,
    Report, ResultShare, SessionId, Start, Upload, Work,
};
use sharelens::{Identity, Pin, Role, engine};
use sharelens_models::program::{Arrange, Instruction};
use sharelens_models::{Manifest, Model, Options, Prepared, onnx};
use sharelens_protocol::Step;
use sharelens_protocol::cost::Ledger;
use sharelens_protocol::prg::Seed;
use sharelens_tests::{decoders, pictures};

/// No input, however odd, may take longer; the slowest takes a fraction of this on a busy machine.
const LIMIT: Duration = Duration::from_secs(10);

/// SplitMix64: the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn word(&mut self) -> u64 {
        [0, 1, 0x7f, 0xff, 0xffff, 1 << 27, 0x7fff_ffff, u64::MAX, 1 << 63, u64::from(u32::MAX)]
            [self.below(10)]
    }

    /// One to three changes of `seed`: bits, bytes, lengths, cuts, repetitions, pieces of `other`, and other
    /// numbers in place of those written in digits.
    fn mutate(&mut self, seed: &[u8], other: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(8) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = self.next() as u8,
                2 => bytes.truncate(at),
                3 | 4 if !bytes.is_empty() => {
                    let width = [1, 2, 4, 8][self.below(4)].min(bytes.len() - at);
                    let word = self.word().to_le_bytes();
                    bytes[at..at + width].copy_from_slice(&word[..width]);
                }
                5 => {
                    let end = (at + self.below(64)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
                6 => {
                    let from = self.below(other.len());
                    let piece = &other[from..(from + self.below(256)).min(other.len())];
                    let end = (at + self.below(256)).min(bytes.len());
                    bytes.splice(at..end, piece.iter().copied());
                }
                _ => self.number(&mut bytes, at),
            }
        }
        bytes
    }

    /// Another number in place of the next one after `at`.
    fn number(&mut self, bytes: &mut Vec<u8>, at: usize) {
        let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
        let end = bytes[start..].iter().position(|b| !b.is_ascii_digit()).map_or(bytes.len(), |i| start + i);
        let text = match self.below(3) {
            0 => self.word().to_string(),
            1 => format!("{}", self.below(300)),
            _ => ["-1", "1e300", "null", "nan", "1.5", "134217728"][self.below(6)].into(),
        };
        bytes.splice(start..end, text.into_bytes());
    }
}

/// Runs `decode` on the seeds as they are and on `rounds` changed ones.
fn smoke(name: &str, decode: fn(&[u8]), seeds: &[Vec<u8>], rounds: u64) {
    let run = |bytes: &[u8], what: &str| {
        let start = Instant::now();
        let outcome = std::panic::catch_unwind(|| decode(bytes));
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]);
        assert!(outcome.is_ok(), "{name} panics on {what}, {} bytes: {text:?}", bytes.len());
        assert!(start.elapsed() < LIMIT, "{name} takes {:?} on {what}: {text:?}", start.elapsed());
    };
    for (i, seed) in seeds.iter().enumerate() {
        run(seed, &format!("seed {i}"));
    }
    for empty in [&[][..], &[0], &[0xff; 64]] {
        run(empty, "next to nothing");
    }
    for round in 0..rounds {
        let mut random = Random(round);
        let (a, b) = (random.below(seeds.len()), random.below(seeds.len()));
        run(&random.mutate(&seeds[a], &seeds[b]), &format!("round {round} from seed {a}"));
    }
}

const MODEL: &[u8] = include_bytes!("../../models/data/brain_mri_cnn/model.onnx");
const CONFIG: &str = include_str!("../../models/data/brain_mri_cnn/config.json");
const PICTURES: [&[u8]; 2] = [
    include_bytes!("../../models/data/brain_mri/meningioma-m1_165.jpg"),
    include_bytes!("../../models/data/brain_mri/no_tumor-image_165.jpg"),
];

#[test]
fn frames() {
    let work = || Work { model: id(), manifest: [4; 32], epoch: [5; 16] };
    let hello = |purpose| {
        encode(&Hello { version: 1, cluster: [1; 32], session: SessionId([2; 32]), purpose }).unwrap()
    };
    let mut ledger = Ledger::default();
    ledger.layer(3).seconds = 0.5;
    ledger.layer(9).seconds = 1.5;
    let report = Report { ledger, online_seconds: 0.1, ..Report::default() };
    let mut seeds = vec![
        hello(Purpose::Greet { role: Role::Helper, boot: [3; 16] }),
        hello(Purpose::Infer { model: "m".into(), version: Some(2), start: Start::AtOnce, wait_s: 60 }),
        hello(Purpose::Online(work())),
        hello(Purpose::Deal(work())),
        hello(Purpose::Load(work())),
        hello(Purpose::Share(Upload { model: id(), manifest_bytes: 7, share_bytes: 9 })),
        hello(Purpose::List),
        encode(&Refusal { code: 8, text: "no".into() }).unwrap(),
        encode(&Greeting { boot: [1; 16] }).unwrap(),
        encode(&Go).unwrap(),
        encode(&Accepted { model: id(), manifest: vec![1, 2, 3], owner: Pin::from_bytes([5; 32]) }).unwrap(),
        encode(&ImageShare { bytes: 77 }).unwrap(),
        encode(&Readiness::Ready { seconds: 0.25, queued: 0.125 }).unwrap(),
        encode(&ResultShare { bytes: 12, report }).unwrap(),
        encode(&DealtSeed::new(&Seed::from_bytes([6; 32]))).unwrap(),
        encode(&Models(vec![id(), id()])).unwrap(),
    ];
    seeds.push(seeds.concat());
    smoke("frames", decoders::frames, &seeds, 20_000);
}

fn id() -> ModelId {
    ModelId { name: "brain".into(), version: 3 }
}

#[test]
fn channel_headers() {
    let at = Step::layer(3).call(1).message(2);
    let seeds = [(at, 77), (at, 0), (at.message(3), 77), (Step::layer(u32::MAX), 1 << 31)]
        .map(|(step, len)| sharelens_protocol::channel::header(step, len).to_vec());
    smoke("channel_header", decoders::channel_header, &seeds, 20_000);
}

/// A small network with most kinds of layers.
fn network() -> Builder {
    Builder::new(13, &[1, 3, 8, 8])
        .weights("w", &[4, 3, 3, 3])
        .weights("b", &[4])
        .node("Conv", &["x", "w", "b"], "c", &[("pads", Is(&[1, 1, 1, 1]))])
        .node("Relu", &["c"], "r", &[])
        .node("MaxPool", &["r"], "m", &[("kernel_shape", Is(&[2, 2])), ("strides", Is(&[2, 2]))])
        .node("LeakyRelu", &["m"], "l", &[("alpha", F(0.1))])
        .node("AveragePool", &["l"], "a", &[("kernel_shape", Is(&[2, 2]))])
        .weights("t", &[4, 2, 2, 2])
        .node("ConvTranspose", &["a", "t"], "u", &[("strides", Is(&[2, 2]))])
        .node("Clip", &["u"], "k", &[("min", F(-1.0)), ("max", F(6.0))])
        .ints("pads", &[0, 0, 1, 0, 0, 0, 0, 1])
        .node("Pad", &["k", "pads"], "p", &[])
        .node("Concat", &["p", "p"], "j", &[])
        .ints("starts", &[0])
        .ints("ends", &[3])
        .ints("axes", &[1])
        .node("Slice", &["j", "starts", "ends", "axes"], "s", &[])
        .node("GlobalAveragePool", &["s"], "g", &[])
        .ints("flat", &[1, -1])
        .node("Reshape", &["g", "flat"], "f", &[])
        .weights("d", &[3, 5])
        .node("MatMul", &["f", "d"], "y", &[])
        .node("Softmax", &["y"], "q", &[])
}

fn small() -> Prepared {
    let model = Model::from_bytes(&network().build(&["q"]), None).expect("supported");
    let samples = [vec![0.4; 192], common::numbers(192, 1)];
    sharelens_models::prepare(&model, &samples, &Options::default()).expect("precise enough").0
}

fn json(manifest: &Manifest) -> Vec<u8> {
    serde_json::to_vec(manifest).unwrap()
}

#[test]
fn manifests() {
    let manifest = small().manifest().unwrap();
    let z64 = small().manifest_for(&sharelens_models::Arithmetic::Z64).unwrap();
    let binary = [&manifest, &z64].map(|m| engine::encode_manifest(m).unwrap());
    let seeds = [vec![json(&manifest), json(&z64), json(&decoders::rectifier())], binary.to_vec()].concat();
    assert!(engine::plan(&manifest).is_ok());
    smoke("manifest", decoders::manifest, &seeds, 6_000);
}

#[test]
fn manifests_that_ask_for_too_much_are_refused_at_once() {
    let huge = vec![1, 1 << 26];
    let mut many = decoders::rectifier();
    many.program.input_shape = huge.clone();
    many.program.layers[0].shape = huge.clone();
    let one = many.program.layers[0].clone();
    many.outputs[0].shape = huge;
    many.validate().expect("one such layer is acceptable");
    let mut transpose = one.clone();
    transpose.op = Instruction::Arrange(Arrange::Transpose { permutation: vec![0, 1] });
    many.program.layers = (0..60_000)
        .map(|i| {
            let mut layer = if i == 0 { one.clone() } else { transpose.clone() };
            layer.inputs = vec![i];
            layer
        })
        .collect();
    refused_at_once(&many, "elements");

    // One row into a million columns and back, in a manifest of a few MiB.
    let mut wide = decoders::rectifier();
    wide.program.input_shape = vec![1, 1 << 20, 1, 1];
    wide.program.layers[0].shape = vec![1, 1, 1 << 16, 1];
    wide.outputs[0].shape = vec![1, 1, 1, 1 << 16];
    wide.program.layers[0].op = weighted_sum(1 << 20, vec![vec![(0, 1)]; 1 << 16]);
    refused_at_once(&wide, "elements");

    // A result that no message carries.
    let mut long = decoders::rectifier();
    for shape in
        [&mut long.program.input_shape, &mut long.program.layers[0].shape, &mut long.outputs[0].shape]
    {
        *shape = vec![1, 1 << 27];
    }
    long.validate().expect("by itself in order");
    assert!(engine::plan(&long).unwrap_err().to_string().contains("message"));
}

/// Sums that are written as a peer would write them.
fn weighted_sum(rows: usize, columns: Vec<Vec<(u32, i64)>>) -> Instruction {
    let text = serde_json::json!({ "weighted": { "rescale": null, "sum": {
        "n": 1, "c": 1,
        "rows": { "input": rows, "entries": [[[0, 1]]] },
        "columns": { "input": 1, "entries": columns },
    } } });
    serde_json::from_value(text).expect("a sum")
}

fn refused_at_once(manifest: &Manifest, word: &str) {
    let start = Instant::now();
    let error = manifest.validate().expect_err("refused").to_string();
    assert!(error.contains(word), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn results() {
    let manifest = decoders::rectifier();
    let image = engine::share_image(&manifest, &[0.5; 12]).unwrap();
    let seeds = [vec![0; 2 * image.output_bytes], vec![254; 2 * image.output_bytes], vec![3; 40]];
    smoke("result", decoders::result, &seeds, 5_000);
}

#[test]
fn onnx_files() {
    let seeds = [network().build(&["q"]), constants(&[1], -1).build(&["y"]), MODEL[..40_000].to_vec()];
    smoke("onnx", decoders::onnx, &seeds, 2_500);
    smoke("onnx", decoders::onnx, &[MODEL.to_vec()], 20);
}

/// A shape that is computed from constants: sliced, reshaped, joined.
fn constants(list: &[i64], step: i64) -> Builder {
    Builder::new(13, &[1, 12])
        .ints("list", list)
        .ints("zero", &[0])
        .ints("end", &[9])
        .ints("step", &[step])
        .node("Slice", &["list", "zero", "end", "zero", "step"], "cut", &[])
        .ints("rest", &[-1])
        .node("Concat", &["cut", "rest"], "shape", &[("axis", common::Attr::I(0))])
        .node("Reshape", &["x", "shape"], "y", &[])
}

#[test]
fn constants_that_are_empty_or_absurd() {
    assert!(onnx::import(&constants(&[1], 1).build(&["y"])).is_ok());
    for step in [-1, 1] {
        decoders::onnx(&constants(&[], step).build(&["y"]));
    }
    for shape in [&[0, -1][..], &[1 << 29, 1 << 29, 1 << 29], &[-1, 0]] {
        let b = Builder::new(13, &[1, 12]).ints("none", &[]).ints("shape", shape);
        let b = b.node("Reshape", &["none", "shape"], "c", &[]).node("Reshape", &["x", "c"], "y", &[]);
        decoders::onnx(&b.build(&["y"]));
    }
    let axes: Vec<i64> = (0..300_000).collect();
    let start = Instant::now();
    let b = Builder::new(13, &[1, 12]).ints("axes", &axes).node("Unsqueeze", &["x", "axes"], "y", &[]);
    let error = onnx::import(&b.build(&["y"])).unwrap_err().to_string();
    assert!(error.len() < 1000 && start.elapsed() < Duration::from_secs(1), "{:?} {error}", start.elapsed());
}

#[test]
fn small_files_of_large_networks_are_refused() {
    let wide: &[i64] = &[1, 1, 1 << 13, 1 << 13];
    let mut files = vec![
        Builder::new(13, wide).node("MaxPool", &["x"], "y", &[("kernel_shape", Is(&[4000, 4000]))]),
        Builder::new(13, &[1, 1, 1 << 23, 8]).node(
            "AveragePool",
            &["x"],
            "y",
            &[("kernel_shape", Is(&[60_000, 1]))],
        ),
    ];
    let mut chain = Builder::new(13, &[1, 1 << 26]).floats("k", &[1], vec![2.0]).ints("one", &[1]);
    chain = chain.ints("end", &[1 << 40]).ints("starts", &[1]);
    for (op, inputs) in [("Mul", vec!["k"]), ("Slice", vec!["starts", "end", "one"])] {
        let mut b = Builder { graph: chain.graph.clone(), opset: 13 };
        let mut last = "x".to_string();
        for i in 0..1000 {
            let next = format!("v{i}");
            let all = [&[last.as_str()], &inputs[..]].concat();
            b = b.node(op, &all, &next, &[]);
            last = next;
        }
        files.push(b.node("Identity", &[&last], "y", &[]));
    }
    for (i, file) in files.into_iter().enumerate() {
        let start = Instant::now();
        let error = onnx::import(&file.build(&["y"])).expect_err("refused").to_string();
        assert!(error.contains("more than") || error.contains("at most"), "{i}: {error:.300}");
        assert!(start.elapsed() < LIMIT, "{i}: {:?}", start.elapsed());
    }
}

#[test]
fn prepared_models() {
    let seeds = [small().to_bytes().unwrap()];
    smoke("prepared", decoders::prepared, &seeds, 2_000);
}

#[test]
fn picture_files() {
    let size = [13, 9];
    let mut seeds = vec![
        pictures::png(size, 8, 0, &pictures::rows(size, 1)),
        pictures::png(size, 16, 0, &pictures::rows(size, 2)),
        pictures::png(size, 8, 2, &pictures::rows(size, 3)),
        pictures::png(size, 8, 3, &pictures::rows(size, 1)),
        pictures::png(size, 16, 6, &pictures::rows(size, 8)),
        pictures::jpeg(1),
        pictures::jpeg(3),
        pictures::jpeg(4),
    ];
    smoke("picture", decoders::picture, &seeds, 3_000);
    seeds.extend(PICTURES.map(<[u8]>::to_vec));
    smoke("picture", decoders::picture, &seeds, 300);
}

#[test]
fn model_configs() {
    let own = r#"{"name": "n", "task": "denoising", "classes": ["a", "b"], "preprocess": {"channels": "RGB",
        "input_size": [9, 5], "block_mean": 2, "scale": 0.5, "mean": [1, 2, 3], "std": [1, 1, 2]}}"#;
    let seeds = [CONFIG.as_bytes().to_vec(), own.into(), b"{}".to_vec()];
    smoke("model_config", decoders::model_config, &seeds, 4_000);
}

#[test]
fn toml_files_and_keys() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let read = |name: &str| std::fs::read(file(name)).unwrap();
    let mut cards = vec![];
    for (role, port) in Role::ALL.into_iter().zip(7443..) {
        let identity = Identity::load_or_create(&file(&format!("{role}.key"))).unwrap();
        let public = format!("{}.example:{port}", role.word());
        let card =
            Card { role, name: role.to_string(), public, pin: identity.pin(), protocol: PROTOCOL_VERSION };
        card.save(&file(&format!("{role}.card"))).unwrap();
        cards.push(card);
    }
    Cluster::new(cards).unwrap().save(&file("cluster.toml")).unwrap();
    NodeConfig::new(Role::Helper, "127.0.0.1:7445".parse().unwrap()).save(&file("node.toml")).unwrap();
    let deep = [b"a = ".to_vec(), vec![b'['; 50_000]].concat();
    let dotted = [b"a".to_vec(), b".a".repeat(20_000), b" = 1".to_vec()].concat();
    let with = |seed: Vec<u8>| [seed, deep.clone(), dotted.clone()];
    smoke("cluster_toml", decoders::cluster_toml, &with(read("cluster.toml")), 1_500);
    smoke("node_toml", decoders::node_toml, &with(read("node.toml")), 1_500);
    smoke("card_toml", decoders::card_toml, &with(read("helper.card")), 1_500);
    smoke("key_file", decoders::key_file, &[read("helper.key"), read("server 0.key")], 500);
}

#[test]
fn stored_files() {
    let share = [&[0][..], b"SLS1", &[7; 56], &[9; 100]].concat();
    let seeds = [share, [vec![1], vec![5; 96]].concat(), [vec![2], vec![8; 32]].concat()];
    smoke("storage", decoders::storage, &seeds, 600);
    smoke("stored_model", decoders::stored_model, &[vec![1; 40], (0..200).collect()], 60);
}
