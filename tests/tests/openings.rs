//! What both servers see, for programs and inputs of an attacker.

use sharelens_models::manifest::OutputInfo;
use sharelens_models::program::detect::Stage;
use sharelens_models::program::{Arrange, Instruction, Layer, Program};
use sharelens_models::{Arithmetic, Manifest, Model, Options, prepare};
use sharelens_ops::detect::TopAnchors;
use sharelens_ops::layers::Select;
use sharelens_protocol::prg::Purpose;
use sharelens_protocol::ring::Range;
use sharelens_tests::hostile;
use sharelens_tests::openings::{Care, Verdict, check, check_inputs, check_with};

/// Bytes that look random, the same on every run.
fn bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
}

#[test]
fn hostile_programs_open_nothing() {
    let (mut sealed, mut refused) = (0, std::collections::BTreeMap::<String, usize>::new());
    let count: u64 = std::env::var("PROGRAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(1500);
    let mut labels = std::collections::BTreeMap::<&str, usize>::new();
    for seed in 0..count {
        let data = bytes(seed + 1, 160);
        let manifest = hostile::manifest(&data);
        match check(&manifest, seed) {
            Verdict::Sealed(_) => {
                sealed += 1;
                manifest.program.layers.iter().for_each(|l| *labels.entry(l.op.label()).or_default() += 1);
            }
            Verdict::Refused(why) => {
                let why = why.rsplit(": ").next().unwrap_or_default().chars().take(60).collect();
                *refused.entry(why).or_default() += 1;
            }
        }
    }
    println!("{sealed} of {count} ran; in them {labels:?}; refused {refused:?}");
}

/// Runs that opened something uncommon when they were found, and the shapes that showed pictures before bits had a type.
#[test]
fn known_programs_open_nothing() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/data/openings");
    let files: Vec<_> =
        std::fs::read_dir(dir).expect("shipped").map(|f| f.expect("readable").path()).collect();
    assert!(files.len() > 50, "{} programs in the corpus", files.len());
    let mut sealed = 0;
    for (seed, file) in (0..).zip(&files) {
        let manifest = hostile::manifest(&std::fs::read(file).expect("readable"));
        sealed += usize::from(matches!(check(&manifest, seed), Verdict::Sealed(_)));
    }
    assert!(sealed * 4 > files.len() * 3, "{sealed} of {} programs run", files.len());
}

/// The shipped models that are small: a whole detector, and a classifier.
fn shipped(name: &str, arithmetic: Option<Arithmetic>) -> Manifest {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/data");
    let model = Model::import(&std::path::Path::new(dir).join(name), None).expect("supported");
    let n: usize = model.graph().input_shape.iter().product();
    let samples = vec![vec![0.25; n], (0..n).map(|i| (i % 97) as f32 / 97.0).collect()];
    let options = Options { tolerance: 1e9, arithmetic, ..Options::default() };
    prepare(&model, &samples, &options).expect("there is room").0.manifest().expect("sound")
}

#[test]
fn a_detector_opens_nothing_of_its_picture() {
    let manifest = shipped("bccd_frcnn_tiny", None);
    // Any words, the same number everywhere, and mild numbers, in pairs.
    for seed in 0..2 {
        let care = Care { runs: 3, ..Care::default() };
        assert!(matches!(check_with(&manifest, seed, care), Verdict::Sealed(200..)), "{seed}");
    }
}

#[test]
fn a_detector_without_a_mask_is_noticed() {
    // Masks that cover what both servers see; what one of them is dealt is looked at protocol by protocol.
    let manifest = shipped("bccd_frcnn_tiny", None);
    for purpose in
        [Purpose::LinearMask, Purpose::TreeMask, Purpose::SignMask, Purpose::MulLeft, Purpose::ProductRight]
    {
        let care = Care { runs: 2, again: 1, without: Some(purpose) };
        let found = std::panic::catch_unwind(|| check_with(&manifest, 1, care));
        assert!(found.is_err(), "without {purpose:?} the detector passes");
    }
}

#[test]
fn a_classifier_opens_nothing_of_its_picture() {
    for (name, arithmetic) in [("residues", None), ("words", Some(Arithmetic::Z64))] {
        let manifest = shipped("brain_mri_cnn/model.onnx", arithmetic);
        for seed in 0..2 {
            let care = Care { runs: 3, ..Care::default() };
            assert!(matches!(check_with(&manifest, seed, care), Verdict::Sealed(40..)), "{name}, {seed}");
        }
    }
}

#[test]
fn a_classifier_without_a_mask_is_noticed() {
    let manifest = shipped("brain_mri_cnn/model.onnx", None);
    for purpose in [Purpose::LinearMask, Purpose::CompareMask, Purpose::TreeMask, Purpose::SignMask] {
        let care = Care { runs: 2, again: 1, without: Some(purpose) };
        let found = std::panic::catch_unwind(|| check_with(&manifest, 1, care));
        assert!(found.is_err(), "without {purpose:?} the classifier passes");
    }
}

/// Pixels as keys of a ranking, as an attacker's manifest had them: the servers saw a cycle for some, and so what they were.
#[test]
fn rankings_of_every_pixel_value_look_alike() {
    let mut m = shipped("bccd_frcnn_tiny", None);
    let top = TopAnchors { grid: [1, 6], anchors: vec![[0.0, 0.0, 1.0, 1.0]], k: 3, levels: Vec::new() };
    let deltas = Select { axes: vec![vec![0], vec![0], (0..6).collect(), vec![0; 4]] };
    let layer = |op, inputs: &[u32], shape: &[usize]| {
        let (inputs, shape) = (inputs.to_vec(), shape.to_vec());
        Layer { name: "hostile".into(), op, inputs, shape, range: Range::Full, scale: 1024.0 }
    };
    let stage = Instruction::Detect { stage: Box::new(Stage::TopAnchors(top)), limits: vec![1.0; 2] };
    let mut rank = layer(stage, &[0, 1], &[3, 8]);
    rank.range = Range::Reduced;
    m.outputs = vec![OutputInfo {
        name: "out".into(),
        shape: vec![3, 8],
        columns: vec![],
        finish: None,
        proved: false,
    }];
    (m.config.preprocess, m.config.detection) = (None, None);
    m.config.task = sharelens_models::config::Task::Other;
    let select = layer(Instruction::Arrange(Arrange::Select(deltas)), &[0], &[1, 1, 6, 4]);
    m.program = Program {
        input_shape: vec![1, 1, 6, 1],
        // So that a pixel of 255 is far beyond what the ranking was told.
        input_scale: 1e8,
        layers: vec![select, rank],
        outputs: vec![2],
        watched: None,
        ..m.program
    };
    for value in 0..=255i64 {
        // One pixel of this value among others, against a picture that is black.
        let keys: Vec<i64> = [0, value, 3, 200, value, 100].iter().map(|v| v * 16_777_213).collect();
        let care = Care { runs: 12, again: 3, without: None };
        let found = check_inputs(&m, [&keys, &[0; 6]], 7_000 + value as u64, care);
        assert!(matches!(found, Verdict::Sealed(5..)), "{value}: {found:?}");
    }
    // And it would notice: a list that is not shuffled shows its order.
    let keys: Vec<i64> = [0, 100, 3, 200, 100, 100].iter().map(|v| v * 16_777_213).collect();
    let care = Care { runs: 12, again: 3, without: Some(Purpose::ShuffleOrder) };
    assert!(std::panic::catch_unwind(|| check_inputs(&m, [&keys, &[0; 6]], 7_000, care)).is_err());
}
