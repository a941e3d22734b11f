//! The elementwise kernels.

use super::{Rng, RngExt, residues, rng};
use crate::ring::kernel::*;

/// Lengths around vectors and blocks.
const LENGTHS: [usize; 10] = [0, 1, 7, 31, 64, 65, 255, 256, 257, 1000];

#[test]
fn modular_arithmetic() {
    for m in 2..=255u8 {
        let rng = &mut rng(u64::from(m));
        let len = LENGTHS[usize::from(m) % LENGTHS.len()];
        let (a, b) = (residues(rng, m, len), residues(rng, m, len));
        let (acc, c) = (residues(rng, m, len), rng.random_range(0..m));
        let each = |f: &dyn Fn(i64, i64, i64) -> i64| -> Vec<u8> {
            let zip = a.iter().zip(&b).zip(&acc);
            zip.map(|((&a, &b), &s)| f(a.into(), b.into(), s.into()).rem_euclid(m.into()) as u8).collect()
        };
        let c64 = i64::from(c);
        for isa in Isa::available() {
            let check = |name: &str, wanted: Vec<u8>, run: &dyn Fn(&mut [u8])| {
                let mut out = if name.starts_with("mul_add") { acc.clone() } else { a.clone() };
                run(&mut out);
                assert!(out == wanted, "{name} {isa:?} m={m} len={len}");
            };
            check("add", each(&|a, b, _| a + b), &|out| add_mod(isa, m, out, &b));
            check("sub", each(&|a, b, _| a - b), &|out| sub_mod(isa, m, out, &b));
            check("neg", each(&|a, _, _| -a), &|out| neg_mod(isa, m, out));
            check("mul_const", each(&|a, _, _| a * c64), &|out| mul_const_mod(isa, m, c, out));
            check("mul", each(&|a, b, _| a * b), &|out| mul_mod(isa, m, out, &b));
            check("mul_add_const", each(&|a, _, s| s + a * c64), &|out| {
                mul_add_const_mod(isa, m, c, &a, out)
            });
            check("mul_add", each(&|a, b, s| s + a * b), &|out| mul_add_mod(isa, m, &a, &b, out));
        }
    }
}

/// All pairs of residues of the largest moduli: no product overflows.
#[test]
fn every_product() {
    for m in [255u8, 254, 251] {
        let (a, b): (Vec<u8>, Vec<u8>) = (0..m).flat_map(|a| (0..m).map(move |b| (a, b))).unzip();
        let wanted: Vec<u8> = a
            .iter()
            .zip(&b)
            .map(|(&a, &b)| ((u32::from(a) * u32::from(b) + 254) % u32::from(m)) as u8)
            .collect();
        for isa in Isa::available() {
            let mut acc = vec![(254 % u16::from(m)) as u8; a.len()];
            mul_add_mod(isa, m, &a, &b, &mut acc);
            assert!(acc == wanted, "{isa:?} m={m}");
        }
    }
}

#[test]
fn integers_to_residues() {
    for m in 2..=255u8 {
        let rng = &mut rng(u64::from(m));
        let mut x: Vec<u32> = (0..300).map(|_| rng.next_u32() >> rng.random_range(0..32)).collect();
        x.extend([0, 1, u32::MAX, u32::MAX - 1, u32::MAX / u32::from(m) * u32::from(m)]);
        let mut y: Vec<i64> = (0..300).map(|_| rng.next_u64() as i64 >> rng.random_range(0..64)).collect();
        y.extend([0, 1, -1, i64::MIN, i64::MAX, i64::MIN + 1, 1 << 32, -(1 << 32), (1 << 32) - 1]);
        for isa in Isa::available() {
            let mut out = vec![0; x.len()];
            reduce_u32(isa, m, &x, &mut out);
            assert!(x.iter().zip(&out).all(|(x, &r)| x % u32::from(m) == r.into()), "{isa:?} m={m}");
            let mut out = vec![0; y.len()];
            reduce_i64(isa, m, &y, &mut out);
            assert!(y.iter().zip(&out).all(|(y, &r)| y.rem_euclid(m.into()) == r.into()), "{isa:?} m={m}");
        }
    }
}

/// Moduli sets: the usual ones, small ones, even ones.
const MODULI: [(&[u8], &[u8]); 8] = [
    (&[255, 253, 251, 247], &[241, 239]),
    (&[255, 253, 251], &[247, 241, 239]),
    (&[255, 254], &[253, 251, 247, 241]),
    (&[239], &[241]),
    (&[2, 3, 5, 7], &[11]),
    (&[9, 255, 254, 253, 251], &[247]),
    (&[16], &[3, 5, 7, 2 + 9]),
    (&[129, 128], &[127, 125]),
];

#[test]
fn rescaling_is_exact_division() {
    for (seed, (p, q)) in MODULI.into_iter().enumerate() {
        let usual = seed != 5;
        // In the sixth set 9 and 255 share a factor, which p may: only q must be invertible.
        let rng = &mut rng(seed as u64);
        let product = |moduli: &[u8]| moduli.iter().map(|&m| u128::from(m)).product::<u128>();
        let (big, divisor) = (product(p) * product(q), product(q));
        let n = LENGTHS[seed + 2];
        let mut x: Vec<u128> =
            (0..n).map(|_| (u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64())) % big).collect();
        for (x, edge) in x.iter_mut().zip([0, 1, divisor - 1, divisor, divisor + 1, big - 1, big - divisor]) {
            *x = edge;
        }
        let all = [p, q].concat();
        let planes: Vec<u8> =
            all.iter().flat_map(|&m| x.iter().map(move |x| (x % u128::from(m)) as u8)).collect();
        for ceil in [false, true] {
            let wanted: Vec<u8> = p
                .iter()
                .flat_map(|&m| x.iter().map(move |&x| (m, x)))
                .map(|(m, x)| {
                    let quotient =
                        if ceil { -(((big - x) % big / divisor) as i128) } else { (x / divisor) as i128 };
                    quotient.rem_euclid(m.into()) as u8
                })
                .collect();
            for isa in Isa::available() {
                let mut out = vec![0; p.len() * n];
                rescale(isa, p, q, ceil, &planes, n, &mut out);
                // With a common factor in p, M is not the product and only the floor is defined.
                assert!(out == wanted || (!usual && ceil), "{isa:?} p={p:?} q={q:?} ceil={ceil}");
            }
        }
    }
}

#[test]
fn composition_is_the_integer() {
    for (seed, p) in [&[255u8, 253, 251, 247][..], &[255, 254, 253], &[2, 3, 5, 7], &[251, 2], &[16], &[255]]
        .into_iter()
        .enumerate()
    {
        let rng = &mut rng(seed as u64);
        let big = p.iter().map(|&m| u64::from(m)).product::<u64>();
        let n = LENGTHS[seed + 4];
        let mut x: Vec<u64> = (0..n).map(|_| rng.random_range(0..big)).collect();
        (x[0], x[1]) = (0, big - 1);
        let planes: Vec<u8> =
            p.iter().flat_map(|&m| x.iter().map(move |x| (x % u64::from(m)) as u8)).collect();
        for isa in Isa::available() {
            let mut out = vec![0; n];
            compose_u32(isa, p, &planes, n, &mut out);
            assert!(out.iter().zip(&x).all(|(&out, &x)| u64::from(out) == x), "{isa:?} {p:?}");
        }
    }
}

#[test]
fn rejection_keeps_order_and_agrees() {
    for seed in 0..300 {
        let rng = &mut rng(seed);
        let m = [255, 251, 239, 128, 2, rng.random_range(2..=255)][rng.random_range(0..6)];
        let mut random = vec![0; rng.random_range(0..400)];
        rng.fill_bytes(&mut random);
        if seed % 4 == 0 {
            random.fill(if seed % 8 == 0 { m - 1 } else { m });
        }
        let len = rng.random_range(0..400);
        let filled = rng.random_range(0..=len);
        let wanted: Vec<u8> = std::iter::repeat_n(7, filled)
            .chain(random.iter().copied().filter(|&b| b < m))
            .take(len)
            .collect();
        for isa in Isa::available() {
            let mut out = vec![7; len];
            let end = uniform_residues(isa, m, &random, &mut out, filled);
            assert!(out[..end] == wanted, "seed {seed} {isa:?} m={m}");
        }
    }
}

#[test]
fn lookups() {
    for (seed, len) in LENGTHS.into_iter().enumerate() {
        let rng = &mut rng(seed as u64);
        let z: Vec<u64> = (0..len).map(|_| rng.next_u64()).collect();
        let narrow: Vec<u32> = z.iter().map(|&z| z as u32).collect();
        // Shares of one-hot tables are random; the function is defined for any.
        let onehot: Vec<u16> = (0..len).map(|_| rng.next_u32() as u16).collect();
        let words = len.div_ceil(64);
        for shift in [0, 4, 28, 30, 31, 32, 60, 63] {
            let (mut eq, mut gt) = (vec![0u64; words], vec![0u64; words]);
            for i in 0..len {
                let d = (z[i] >> shift & 15) as u32;
                let above = (d + 1..16).fold(0, |p, e| p ^ onehot[i] >> e & 1);
                eq[i / 64] |= u64::from(onehot[i] >> d & 1) << (i % 64);
                gt[i / 64] |= u64::from(above) << (i % 64);
            }
            for isa in Isa::available() {
                let mut out = (vec![u64::MAX; words], vec![u64::MAX; words]);
                lookup_onehot_u64(isa, &z, shift, &onehot, &mut out.0, &mut out.1);
                assert!(out == (eq.clone(), gt.clone()), "{isa:?} len={len} shift={shift}");
                if shift <= 28 {
                    let mut out = (vec![u64::MAX; words], vec![u64::MAX; words]);
                    lookup_onehot(isa, &narrow, shift, &onehot, &mut out.0, &mut out.1);
                    assert!(out == (eq.clone(), gt.clone()), "{isa:?} len={len} shift={shift} u32");
                }
            }
        }
    }
}
