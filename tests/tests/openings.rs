//! What both servers see, for programs and inputs of an attacker.

use sharelens_models::{Arithmetic, Manifest, Model, Options, prepare};
use sharelens_protocol::prg::Purpose;
use sharelens_tests::hostile;
use sharelens_tests::openings::{Care, Verdict, check, check_with};

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
