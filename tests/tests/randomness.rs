//! Samplers are uniform, and shares do not tell images apart.

use sharelens_protocol::prg::{Prg, Purpose, Seed};
use sharelens_protocol::ring::{Moduli, Range, Ring, Rns, Z64};
use sharelens_protocol::{Step, share};

const AT: Step = Step::layer(1);

fn prg(seed: u8) -> Prg {
    Seed::from_bytes([seed; 32]).prg(b"chi square")
}

/// Chi-square of `counts` against equal frequencies, in standard deviations from its mean.
fn deviation(counts: &[u64]) -> f64 {
    let total: u64 = counts.iter().sum();
    let expected = total as f64 / counts.len() as f64;
    let chi: f64 = counts.iter().map(|&c| (c as f64 - expected).powi(2) / expected).sum();
    let freedom = (counts.len() - 1) as f64;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

/// Chi-square of two histograms being drawn from one distribution, likewise.
fn two_sample_deviation(a: &[u64], b: &[u64]) -> f64 {
    let (na, nb) = (a.iter().sum::<u64>() as f64, b.iter().sum::<u64>() as f64);
    let chi: f64 = a
        .iter()
        .zip(b)
        .filter(|(a, b)| **a + **b > 0)
        .map(|(&a, &b)| ((nb / na).sqrt() * a as f64 - (na / nb).sqrt() * b as f64).powi(2) / (a + b) as f64)
        .sum();
    let freedom = (a.len() - 1) as f64;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

fn histogram(bytes: &[u8], bins: usize) -> Vec<u64> {
    let mut counts = vec![0; bins];
    bytes.iter().for_each(|&b| counts[usize::from(b)] += 1);
    counts
}

#[test]
fn residues_are_uniform_for_every_modulus_and_purpose() {
    let n = 200_000;
    for (k, l) in [(4, 4), (3, 2)] {
        let ring = Rns::new(Moduli::usual(k, l).unwrap()).unwrap();
        for (i, purpose) in
            [Purpose::Input, Purpose::LinearMask, Purpose::CompareMask].into_iter().enumerate()
        {
            let words = ring.uniform(Range::Full, prg(i as u8).at(AT, purpose), n);
            for (plane, words) in words.chunks_exact(n).enumerate() {
                let m = usize::from(ring.modulus(plane));
                let d = deviation(&histogram(words, m));
                assert!(d.abs() < 5.0, "modulus {m}: {d} standard deviations");
            }
        }
    }
}

#[test]
fn a_small_modulus_is_uniform_too() {
    let ring = Rns::new(Moduli { p: vec![7, 5], q: vec![3] }).unwrap();
    let n = 50_000;
    let words = ring.uniform(Range::Full, prg(1).at(AT, Purpose::Input), n);
    for (plane, words) in words.chunks_exact(n).enumerate() {
        assert!(deviation(&histogram(words, usize::from(ring.modulus(plane)))).abs() < 5.0);
    }
}

#[test]
fn pairs_of_neighbours_and_of_planes_are_uniform() {
    let ring = Rns::new(Moduli { p: vec![15, 13], q: vec![11] }).unwrap();
    let n = 100_000;
    let words = ring.uniform(Range::Full, prg(2).at(AT, Purpose::Input), n);
    let pairs = |a: &[u8], b: &[u8], m: usize| {
        let mut counts = vec![0; 15 * m];
        a.iter().zip(b).for_each(|(&a, &b)| counts[usize::from(a) * m + usize::from(b)] += 1);
        counts
    };
    let first = &words[..n];
    assert!(deviation(&pairs(&first[..n - 1], &first[1..], 15)).abs() < 5.0, "neighbours");
    assert!(deviation(&pairs(first, &words[n..2 * n], 13)).abs() < 5.0, "planes");
}

#[test]
fn words_are_uniform() {
    let n = 100_000;
    let words = Z64::new().uniform(Range::Full, prg(3).at(AT, Purpose::Input), n);
    for shift in (0..64).step_by(8) {
        let bytes: Vec<u8> = words.iter().map(|w| (w >> shift) as u8).collect();
        assert!(deviation(&histogram(&bytes, 256)).abs() < 5.0, "byte at bit {shift}");
    }
}

/// Both servers' shares of an image, as bytes.
fn shares<R: Ring>(ring: &R, seed: u8, image: &[i64]) -> [Vec<u8>; 2] {
    let prg = prg(seed);
    let s0 = ring.uniform(Range::Full, prg.at(AT, Purpose::Input), image.len());
    let s1 = share::split(ring, Range::Full, &prg, AT, Purpose::Input, image);
    [share::to_bytes(&s0), share::to_bytes(&s1)]
}

#[test]
fn shares_of_two_images_cannot_be_told_apart() {
    // As unlike as images get: black, and a bright gradient.
    let n = 128 * 128;
    let black = vec![0; n];
    let gradient: Vec<i64> = (0..n as i64).map(|i| 3 * 65_536 - i * 7).collect();
    let ring = Rns::new(Moduli::usual(3, 2).unwrap()).unwrap();
    let (mut worst, mut fixed) = (0f64, 0f64);
    for seed in 0..10 {
        let (a, b) = (shares(&ring, 2 * seed, &black), shares(&ring, 2 * seed + 1, &gradient));
        for (a, b) in a.iter().zip(&b) {
            for plane in 0..5 {
                let m = usize::from(ring.modulus(plane));
                let range = plane * n..(plane + 1) * n;
                let d = two_sample_deviation(&histogram(&a[range.clone()], m), &histogram(&b[range], m));
                worst = worst.max(d.abs());
            }
        }
        // The test has teeth: the images themselves are told apart at once.
        let clear = |image: &[i64]| histogram(&ring.encode(Range::Reduced, image)[..n], 255);
        fixed = fixed.max(two_sample_deviation(&clear(&black), &clear(&gradient)));
    }
    assert!(worst < 5.5, "{worst} standard deviations over 100 comparisons");
    assert!(fixed > 100.0);

    let ring = Z64::new();
    let (a, b) = (shares(&ring, 50, &black), shares(&ring, 51, &gradient));
    for (a, b) in a.iter().zip(&b) {
        assert!(two_sample_deviation(&histogram(a, 256), &histogram(b, 256)).abs() < 5.5);
    }
}
