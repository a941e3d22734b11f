//! Every kernel against a naive loop in wide integers, on every instruction set of this processor.

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::*;

mod planes;

/// A seeded generator; the seed goes into every assertion.
fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

/// Uniform residues, or the largest or zero everywhere.
fn residues(rng: &mut StdRng, m: u8, len: usize) -> Vec<u8> {
    match rng.random_range(0..8) {
        0 => vec![m - 1; len],
        1 => vec![0; len],
        2 => (0..len).map(|_| if rng.random() { m - 1 } else { m / 2 + 1 - m % 2 }).collect(),
        _ => (0..len).map(|_| rng.random_range(0..m)).collect(),
    }
}

/// The convolution as its definition reads, in `i128`.
fn naive(conv: &Conv, x: &[i128], w: &[i128], acc: &[i128]) -> Vec<i128> {
    let (oh, ow) = (conv.out_h(), conv.out_w());
    let (channels, per_group) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
    let [kh, kw] = conv.kernel;
    let mut out = acc.to_vec();
    for (at, out) in out.iter_mut().enumerate() {
        let (o, pixel) = (at % conv.c_out, at / conv.c_out);
        let (ox, oy, image) = (pixel % ow, pixel / ow % oh, pixel / ow / oh);
        for ky in 0..kh {
            let y = (oy * conv.stride[0] + ky * conv.dilation[0]).wrapping_sub(conv.pad[0]);
            for kx in 0..kw {
                let column = (ox * conv.stride[1] + kx * conv.dilation[1]).wrapping_sub(conv.pad[1]);
                if y >= conv.h || column >= conv.w {
                    continue;
                }
                let x = &x[((image * conv.h + y) * conv.w + column) * conv.c_in + o / per_group * channels..];
                let w = &w[((o * kh + ky) * kw + kx) * channels..];
                *out += x.iter().zip(w).take(channels).map(|(x, w)| x * w).sum::<i128>();
            }
        }
    }
    out
}

fn widen<T: Copy + Into<i128>>(v: &[T]) -> Vec<i128> {
    v.iter().map(|&v| v.into()).collect()
}

fn check_residues(conv: &Conv, m: u8, rng: &mut StdRng, label: &str) {
    let (x, w) = (residues(rng, m, conv.in_len()), residues(rng, m, conv.weight_len()));
    let acc = residues(rng, m, conv.out_len());
    let wanted: Vec<u8> = naive(conv, &widen(&x), &widen(&w), &widen(&acc))
        .into_iter()
        .map(|v| v.rem_euclid(i128::from(m)) as u8)
        .collect();
    for isa in Isa::available() {
        let packed = PackedWeights::pack(isa, conv, m, &w);
        let mut acc = acc.clone();
        conv_accumulate(isa, conv, m, &x, &packed, &mut acc);
        assert!(acc == wanted, "{label} {isa:?} m={m} {conv:?}");
    }
}

fn check_words(conv: &Conv, rng: &mut StdRng, label: &str) {
    let mut random = |len: usize| -> Vec<u64> { (0..len).map(|_| rng.next_u64()).collect() };
    let (x, w, acc) = (random(conv.in_len()), random(conv.weight_len()), random(conv.out_len()));
    // Balanced, so that the naive sums stay within 128 bits.
    let signed = |v: &[u64]| -> Vec<i128> { v.iter().map(|&v| i128::from(v as i64 >> 8)).collect() };
    let exact: Vec<u64> = x.iter().map(|&v| (v as i64 >> 8) as u64).collect();
    let factors: Vec<u64> = w.iter().map(|&v| (v as i64 >> 8) as u64).collect();
    let wanted: Vec<u64> =
        naive(conv, &signed(&x), &signed(&w), &widen(&acc)).into_iter().map(|v| v as u64).collect();
    for isa in Isa::available() {
        let packed = PackedWeights64::pack(isa, conv, &factors);
        let mut acc = acc.clone();
        conv_accumulate_u64(isa, conv, &exact, &packed, &mut acc);
        assert!(acc == wanted, "{label} {isa:?} {conv:?}");
    }
}

/// A small convolution of any kind.
fn geometry(rng: &mut StdRng) -> Conv {
    loop {
        let mut up_to = |n: usize| rng.random_range(1..=n);
        let groups = [1, 1, 1, 2, 3, 4][up_to(6) - 1];
        let (mut c_in, mut c_out) = (up_to(24) * groups, up_to(90) * groups);
        let mut depthwise = groups;
        if up_to(4) == 1 {
            depthwise = up_to(150);
            (c_in, c_out) = (depthwise, depthwise * [1, 1, 1, 2][up_to(4) - 1]);
        }
        let mut pick = |choices: &[usize]| choices[up_to(choices.len()) - 1];
        let conv = Conv {
            n: pick(&[1, 1, 2]),
            h: pick(&[1, 3, 5, 8, 11]),
            w: pick(&[1, 2, 6, 9, 13]),
            c_in,
            c_out,
            kernel: [pick(&[1, 2, 3, 5]), pick(&[1, 1, 2, 3, 3, 4])],
            stride: [pick(&[1, 1, 2, 3]), pick(&[1, 1, 2, 3])],
            pad: [pick(&[0, 0, 1, 2]), pick(&[0, 0, 1, 3]), pick(&[0, 0, 1, 2]), pick(&[0, 0, 1, 2])],
            dilation: [pick(&[1, 1, 2]), pick(&[1, 1, 2, 3])],
            groups: depthwise,
        };
        if conv.is_valid() && conv.macs() < 400_000 {
            return conv;
        }
    }
}

#[test]
fn residue_convolution_is_exact_on_random_geometries() {
    for seed in 0..400 {
        let rng = &mut rng(seed);
        let m = [2, 3, 16, 128, 129, 254, 255, rng.random_range(2..=255)][rng.random_range(0..8)];
        check_residues(&geometry(rng), m, rng, &format!("seed {seed}"));
    }
}

#[test]
fn word_convolution_is_exact_on_random_geometries() {
    for seed in 1000..1250 {
        let rng = &mut rng(seed);
        check_words(&geometry(rng), rng, &format!("seed {seed}"));
    }
}

/// Shapes that minimal filtering takes: tiles cut off, any padding, channels around vectors and units.
#[test]
fn filtered_convolution_is_exact_on_random_geometries() {
    for seed in 2000..2012 {
        let rng = &mut rng(seed);
        let mut pick = |choices: &[usize]| choices[rng.random_range(0..choices.len())];
        let conv = Conv {
            n: pick(&[1, 1, 2]),
            h: pick(&[13, 14, 15, 16, 17]),
            w: pick(&[15, 16, 17, 18]),
            c_in: pick(&[64, 65, 67, 70, 80]),
            c_out: pick(&[64, 65, 72, 79, 97]),
            kernel: [3, 3],
            stride: [1, 1],
            pad: [pick(&[0, 1, 2]), pick(&[0, 1, 2]), pick(&[1, 2, 3]), pick(&[0, 1, 2])],
            dilation: [1, 1],
            groups: 1,
        };
        for m in [255, 253, [7, 11, 251, 247, 241, 239, 233, 229][rng.random_range(0..8)]] {
            assert!(winograd::Points::choose(&conv, m).is_some(), "seed {seed} {conv:?}");
            check_residues(&conv, m, rng, &format!("seed {seed}"));
        }
    }
}

/// More channels and pixels than a block of tiles, a unit or a band hold, against the sum over taps.
#[test]
fn filtering_agrees_with_the_sum_over_taps() {
    let base = Conv {
        n: 1,
        h: 57,
        w: 54,
        c_in: 64,
        c_out: 80,
        kernel: [3, 3],
        stride: [1, 1],
        pad: [1; 4],
        dilation: [1, 1],
        groups: 1,
    };
    let wide = Conv { n: 2, h: 12, w: 15, c_in: 516, c_out: 200, ..base };
    let long = Conv { h: 8, w: 24, c_in: 6144, c_out: 65, ..base };
    for (seed, conv) in [base, wide, long, Conv { pad: [0, 2, 1, 3], ..base }].into_iter().enumerate() {
        let rng = &mut rng(seed as u64);
        let moduli = std::iter::once((seed as u8 * 2) | 129).chain([255, 253, 247, 229]);
        for m in moduli.take(if conv == long { 3 } else { 5 }) {
            let (x, w) = (residues(rng, m, conv.in_len()), residues(rng, m, conv.weight_len()));
            let before = residues(rng, m, conv.out_len());
            let isa = Isa::detect();
            let [direct, filtered] = [PackedWeights::pack_direct, PackedWeights::pack].map(|pack| {
                let mut acc = before.clone();
                conv_accumulate(isa, &conv, m, &x, &pack(isa, &conv, m, &w), &mut acc);
                acc
            });
            assert!(winograd::Points::choose(&conv, m).is_some());
            assert!(direct == filtered, "seed {seed} m={m} {conv:?}");
        }
    }
}

/// Around the sizes of blocks and chunks.
#[test]
fn dense_layers_of_every_size() {
    for (seed, (rows, k, cols)) in [
        (1, 1, 1),
        (1, 70_001, 3),
        (2, 66_000, 17),
        (1, 6144, 64),
        (1, 6145, 65),
        (3, 12_289, 5),
        (7, 64, 63),
        (6, 63, 64),
        (13, 65, 129),
        (8, 4, 192),
        (300, 3, 80),
    ]
    .into_iter()
    .enumerate()
    {
        let rng = &mut rng(seed as u64);
        let conv = Conv::dense(rows, k, cols);
        for m in [255, 251, 254, 2] {
            check_residues(&conv, m, rng, &format!("dense {seed}"));
        }
        check_words(&conv, rng, &format!("dense {seed}"));
    }
}

/// Extreme residues in long sums: every modulus, every fold of the epilogue.
#[test]
fn no_modulus_overflows() {
    let conv = Conv::dense(2, 6144, 19);
    for m in 2..=255u8 {
        // The largest product of either sign: m - 1 by m / 2 and by m / 2 + 1 - m.
        for weight in [m / 2, (m / 2 + 1) % m, m - 1] {
            let x = vec![m - 1; conv.in_len()];
            let w = vec![weight; conv.weight_len()];
            let wanted = (u64::from(m - 1) * u64::from(weight) * 6144 + u64::from(m - 1)) % u64::from(m);
            for isa in Isa::available() {
                let mut acc = vec![m - 1; conv.out_len()];
                let packed = PackedWeights::pack(isa, &conv, m, &w);
                conv_accumulate(isa, &conv, m, &x, &packed, &mut acc);
                assert!(acc.iter().all(|&v| u64::from(v) == wanted), "{isa:?} m={m} weight={weight}");
            }
        }
    }
}

/// Several tasks: bands, blocks of channels, images; against one thread.
#[test]
fn threads_do_not_change_results() {
    let base = Conv {
        n: 2,
        h: 30,
        w: 29,
        c_in: 24,
        c_out: 80,
        kernel: [3, 3],
        stride: [1, 1],
        pad: [1; 4],
        dilation: [1, 1],
        groups: 1,
    };
    let cases = [
        base,
        Conv { groups: 4, ..base },
        Conv { h: 96, w: 96, c_in: 60, c_out: 60, groups: 60, ..base },
        Conv::dense(1, 4000, 300),
        Conv::dense(5000, 20, 30),
        Conv { n: 1, h: 4, w: 3, c_in: 300, c_out: 200, ..base },
        Conv { c_in: 68, ..base },
        Conv { n: 1, h: 13, w: 15, c_in: 68, c_out: 200, ..base },
    ];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
    let single = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    for (seed, conv) in cases.into_iter().enumerate() {
        let rng = &mut rng(seed as u64);
        let (x, w) = (residues(rng, 251, conv.in_len()), residues(rng, 251, conv.weight_len()));
        let words: Vec<u64> = (0..conv.in_len()).map(|_| rng.next_u64()).collect();
        let factors: Vec<u64> = (0..conv.weight_len()).map(|_| rng.next_u64()).collect();
        for isa in Isa::available() {
            let packed = PackedWeights::pack(isa, &conv, 251, &w);
            let packed64 = PackedWeights64::pack(isa, &conv, &factors);
            let run = || {
                let (mut acc, mut acc64) = (vec![5; conv.out_len()], vec![5; conv.out_len()]);
                conv_accumulate(isa, &conv, 251, &x, &packed, &mut acc);
                conv_accumulate_u64(isa, &conv, &words, &packed64, &mut acc64);
                (acc, acc64)
            };
            assert!(pool.install(run) == single.install(run), "{isa:?} {conv:?}");
        }
    }
}

#[test]
#[should_panic(expected = "another convolution")]
fn weights_belong_to_one_shape() {
    let conv = Conv::dense(1, 8, 8);
    let packed = PackedWeights::pack(Isa::Portable, &conv, 5, &[0; 64]);
    conv_accumulate(Isa::Portable, &Conv::dense(1, 16, 4), 5, &[0; 16], &packed, &mut [0; 4]);
}

#[test]
#[should_panic(expected = "another modulus")]
fn weights_belong_to_one_modulus() {
    let conv = Conv::dense(1, 8, 8);
    let packed = PackedWeights::pack(Isa::Portable, &conv, 5, &[0; 64]);
    conv_accumulate(Isa::Portable, &conv, 7, &[0; 8], &packed, &mut [0; 8]);
}
