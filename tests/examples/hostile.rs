//! Looks for a manifest that makes the servers open something that depends on the input, for as long as told:
//!
//!     cargo run --release -p sharelens-tests --example hostile -- --seconds 1800 --corpus tests/data/openings
//!
//! Starts from the corpus, changes what ran, and keeps what combines instructions in a way not seen before. A leak, an
//! abort that both servers see or a panic stops it, with the bytes that brought it about.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sharelens_models::Manifest;
use sharelens_tests::hostile;
use sharelens_tests::openings::{RUNS, Verdict, check};

/// Numbers that look random.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 16
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Which instructions read which, in which ring.
fn features(m: &Manifest) -> BTreeSet<String> {
    let ring = format!("{}", m.arithmetic);
    let name = |r: u32| r.checked_sub(1).map_or("input", |i| m.program.layers[i as usize].op.label());
    let mut out = BTreeSet::new();
    for layer in &m.program.layers {
        let from: Vec<&str> = layer.inputs.iter().take(3).map(|&r| name(r)).collect();
        out.insert(format!("{} {:?} {from:?}", layer.op.label(), layer.range));
        out.insert(format!("{} in {ring}", layer.op.label()));
    }
    out
}

fn changed(noise: &mut Noise, corpus: &[Vec<u8>]) -> Vec<u8> {
    if corpus.is_empty() || noise.below(8) == 0 {
        return (0..160).map(|_| noise.next() as u8).collect();
    }
    let mut data = corpus[noise.below(corpus.len())].clone();
    for _ in 0..1 + noise.below(4) {
        let at = noise.below(data.len());
        match noise.below(4) {
            0 => data[at] = noise.next() as u8,
            1 => data[at] = data[at].wrapping_add(1),
            2 => data.insert(at, noise.next() as u8),
            _ => {
                // The end of another one.
                let other = &corpus[noise.below(corpus.len())];
                let from = at.min(other.len());
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
        }
        data.truncate(400);
        if data.is_empty() {
            data.push(0);
        }
    }
    data
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let seconds = value("--seconds").and_then(|s| s.parse().ok()).unwrap_or(60);
    let seed = value("--seed").and_then(|s| s.parse().ok()).unwrap_or(1u64);
    let dir = value("--corpus").map(PathBuf::from);
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    if let Some(dir) = &dir {
        std::fs::create_dir_all(dir).expect("the corpus's directory can be made");
        let files = std::fs::read_dir(dir).expect("the corpus can be read");
        corpus.extend(files.filter_map(|f| std::fs::read(f.ok()?.path()).ok()));
    }
    let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut seen, mut refused, mut labels) = (BTreeSet::new(), 0u64, BTreeMap::<&str, u64>::new());
    let (mut ran, mut messages, start) = (0u64, 0u64, Instant::now());
    let known = corpus.clone();
    let mut queue = known.into_iter();
    while start.elapsed() < Duration::from_secs(seconds) {
        let replayed = queue.next();
        let fresh = replayed.is_none();
        let data = replayed.unwrap_or_else(|| changed(&mut noise, &corpus));
        let manifest = hostile::manifest(&data);
        let outcome = std::panic::catch_unwind(|| check(&manifest, noise.0 >> 40));
        let verdict = outcome.unwrap_or_else(|_| {
            eprintln!("found by seed {}: {data:?}\n{manifest:#?}", noise.0 >> 40);
            std::process::exit(1);
        });
        let Verdict::Sealed(opened) = verdict else {
            refused += 1;
            continue;
        };
        (ran, messages) = (ran + 1, messages + opened as u64);
        manifest.program.layers.iter().for_each(|l| *labels.entry(l.op.label()).or_default() += 1);
        let before = seen.len();
        seen.extend(features(&manifest));
        if seen.len() > before && fresh {
            if let Some(dir) = &dir {
                let file = dir.join(format!("{:04}", corpus.len()));
                std::fs::write(file, &data).expect("the corpus can be written");
            }
            corpus.push(data);
        }
    }
    println!(
        "{ran} programs ran {} times each, {refused} were refused; {messages} messages looked at",
        2 * RUNS
    );
    println!("{} combinations in a corpus of {}; instructions {labels:?}", seen.len(), corpus.len());
}
