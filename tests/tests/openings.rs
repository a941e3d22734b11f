//! What both servers see, for programs and inputs of an attacker.

use sharelens_tests::hostile;
use sharelens_tests::openings::{Verdict, check};

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
