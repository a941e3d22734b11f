//! All parties in one process, on a link that only exists in the clock.

mod toy;

use std::time::{Duration, Instant};

use sharelens::LocalCluster;
use sharelens::client::SharedImage;
use sharelens::control::Start;
use sharelens::local::Link;
use sharelens_protocol::prg::Seed;
use toy::Toy;
use zeroize::Zeroizing;

const MANIFEST: &str = "toy:1000000";
const MS: Duration = Duration::from_millis(1);

#[test]
fn a_run_over_a_long_link_takes_no_time() {
    let start = Instant::now();
    let weights = toy::weights(MANIFEST);
    let seed = Seed::random().unwrap();
    let words = toy::split(&seed, b"weights", &weights);
    // 10 MB/s: a message of 1 MB takes 100 ms, and 1 s until it arrives.
    let link = Link::new(2000.0, 80.0);
    let cluster = LocalCluster::start(Toy, link, MANIFEST.as_bytes(), seed, &words).unwrap();
    let about = |found: Duration| found >= 1100 * MS && found < 1200 * MS;
    assert!(about(cluster.load_time()), "{:?}", cluster.load_time());
    for value in [3, 200] {
        let seed = Seed::random().unwrap();
        let words = Zeroizing::new(toy::split(&seed, b"image", &vec![value; weights.len()]));
        let image = SharedImage { seed, words, output_bytes: weights.len() };
        let run = cluster.run(&image).unwrap();
        let [a, b] = &run.outputs;
        let sum = a.iter().zip(b.iter()).map(|(a, b)| a.wrapping_add(*b));
        assert!(sum.eq(weights.iter().map(|w| w.wrapping_add(value))));
        assert!(about(run.offline) && about(run.online), "{:?} {:?}", run.offline, run.online);
        assert_eq!((run.dealt_bytes, run.online_bytes), (1_000_016, [1_000_016; 2]));
    }
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn an_overlapped_run_waits_for_what_is_not_there() {
    // The image is there after the seed, the word to the client, and its upload: three trips of 50 ms.
    let link = Link::new(100.0, 1e6);
    // Dealing is done before that, and long after.
    for (pause, online) in [(10, 50), (400, 350)] {
        let manifest = format!("toy:10:{pause}:late");
        let weights = toy::weights(&manifest);
        let seed = Seed::random().unwrap();
        let words = toy::split(&seed, b"weights", &weights);
        let cluster = LocalCluster::start(Toy, link, manifest.as_bytes(), seed, &words).unwrap();
        let seed = Seed::random().unwrap();
        let words = Zeroizing::new(toy::split(&seed, b"image", &[9; 10]));
        let image = SharedImage { seed, words, output_bytes: 10 };
        let run = cluster.run_from(&image, Start::AtOnce).unwrap();
        let [a, b] = &run.outputs;
        assert!((0..10).all(|i| a[i].wrapping_add(b[i]) == weights[i].wrapping_add(9)));
        let about = |found: Duration, expected: u32| found >= expected * MS && found < (expected + 40) * MS;
        assert!(run.offline == 50 * MS && about(run.prepared, pause + 50), "{:?}", run.prepared);
        assert!(about(run.online, online), "{:?} for {pause}", run.online);
        // One after the other, nothing is saved and nothing waited for.
        let run = cluster.run(&image).unwrap();
        assert_eq!(run.offline, run.prepared);
        assert!(about(run.offline, pause + 50) && about(run.online, 50), "{:?}", run.online);
    }
}

#[test]
fn failures_come_back() {
    let manifest = "toy:10:0:fail";
    let seed = Seed::random().unwrap();
    let words = toy::split(&seed, b"weights", &toy::weights(manifest));
    let cluster = LocalCluster::start(Toy, Link::new(1.0, 1.0), manifest.as_bytes(), seed, &words).unwrap();
    let seed = Seed::random().unwrap();
    let image = SharedImage { seed, words: Zeroizing::new(vec![0; 10]), output_bytes: 10 };
    let e = cluster.run(&image).err().unwrap().to_string();
    assert!(e.contains("fails on purpose"), "{e}");
}
