//! The kernels of `ring::kernel` on one core: multiply-accumulates and bytes per second.
//!
//! Elements per second are multiply-accumulates of whole numbers: one for a residue channel alone, and for six
//! channels one for all six together, so that "six" compares directly with "z64".

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rayon::ThreadPoolBuilder;
use sharelens_protocol::ring::kernel::*;
use std::hint::black_box;
use std::time::Duration;

const SIX: [u8; 6] = [255, 253, 251, 247, 241, 239];
/// Those and the next.
const SEVEN: [u8; 7] = [255, 253, 251, 247, 241, 239, 233];

fn residues(rng: &mut StdRng, m: u8, len: usize) -> Vec<u8> {
    (0..len).map(|_| rng.random_range(0..m)).collect()
}

const fn square(size: usize, c_in: usize, c_out: usize, kernel: usize, stride: usize, groups: usize) -> Conv {
    Conv {
        n: 1,
        h: size,
        w: size,
        c_in,
        c_out,
        kernel: [kernel; 2],
        stride: [stride; 2],
        pad: [kernel / 2; 4],
        dilation: [1, 1],
        groups,
    }
}

/// The shapes of the marks, then what else a network has.
const SHAPES: [(&str, Conv); 9] = [
    ("3x3 64-64 56x56", square(56, 64, 64, 3, 1, 1)),
    ("3x3 512-512 14x14", square(14, 512, 512, 3, 1, 1)),
    ("dense 4096-1000", Conv::dense(1, 4096, 1000)),
    ("depthwise 3x3 256 28x28", square(28, 256, 256, 3, 1, 256)),
    ("7x7/2 3-64 224x224", square(224, 3, 64, 7, 2, 1)),
    ("3x3 1-32 28x28", square(28, 1, 32, 3, 1, 1)),
    ("1x1 256-64 56x56", square(56, 256, 64, 1, 1, 1)),
    ("3x3/2 128-128 56x56", square(56, 128, 128, 3, 2, 1)),
    ("3x3 128-128 groups 32 28x28", square(28, 128, 128, 3, 1, 32)),
];

fn convolutions(c: &mut Criterion) {
    let pool = ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    for (name, conv) in SHAPES {
        let rng = &mut StdRng::seed_from_u64(1);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(conv.macs()));
        for isa in Isa::available() {
            let channels: Vec<_> = SEVEN
                .iter()
                .map(|&m| {
                    let weights = residues(rng, m, conv.weight_len());
                    let w = [PackedWeights::pack, PackedWeights::pack_direct]
                        .map(|pack| pack(isa, &conv, m, &weights));
                    (m, residues(rng, m, conv.in_len()), w, residues(rng, m, conv.out_len()))
                })
                .collect();
            let labels = [
                ("direct", 2..3, 1),
                ("one", 2..3, 0),
                ("255", 0..1, 0),
                ("six direct", 0..6, 1),
                ("six", 0..6, 0),
                ("six below 255", 1..7, 0),
            ];
            for (label, range, packed) in labels {
                let mut channels: Vec<_> =
                    channels[range].iter().map(|(m, x, w, acc)| (*m, x, &w[packed], acc.clone())).collect();
                group.bench_function(BenchmarkId::new(label, format!("{isa:?}")), |b| {
                    pool.install(|| {
                        b.iter(|| {
                            for (m, x, w, acc) in &mut channels {
                                conv_accumulate(isa, &conv, *m, x, w, acc);
                            }
                        });
                    });
                });
            }
            let mut words = |len: usize| -> Vec<u64> { (0..len).map(|_| rng.next_u64()).collect() };
            let (x, mut acc) = (words(conv.in_len()), words(conv.out_len()));
            let w = PackedWeights64::pack(isa, &conv, &words(conv.weight_len()));
            group.bench_function(BenchmarkId::new("z64", format!("{isa:?}")), |b| {
                pool.install(|| b.iter(|| conv_accumulate_u64(isa, &conv, &x, &w, &mut acc)));
            });
        }
    }
}

/// Planes of 64 K elements, in cache as the planner will block them. Bytes are residues (for the lookups,
/// elements) in.
fn elementwise(c: &mut Criterion) {
    const N: usize = 1 << 16;
    let rng = &mut StdRng::seed_from_u64(2);
    let m = 251;
    let (a, b, mut acc) = (residues(rng, m, N), residues(rng, m, N), residues(rng, m, N));
    let planes: Vec<u8> = SIX.iter().flat_map(|&m| residues(rng, m, N)).collect();
    let narrow: Vec<u32> = (0..N).map(|_| rng.next_u32()).collect();
    let wide: Vec<i64> = (0..N).map(|_| rng.next_u64() as i64).collect();
    let onehot: Vec<u16> = (0..N).map(|_| rng.next_u32() as u16).collect();
    let mut random = vec![0; N + N / 16];
    rng.fill_bytes(&mut random);
    let (mut eq, mut gt) = (vec![0; N / 64], vec![0; N / 64]);
    let (mut composed, mut rescaled) = (vec![0u32; N], vec![0u8; 4 * N]);

    let mut group = c.benchmark_group("elementwise");
    for isa in Isa::available() {
        let id = |name: &str| BenchmarkId::new(name, format!("{isa:?}"));
        group.throughput(Throughput::Bytes(N as u64));
        group.bench_function(id("add"), |t| t.iter(|| add_mod(isa, m, &mut acc, &b)));
        group.bench_function(id("sub"), |t| t.iter(|| sub_mod(isa, m, &mut acc, &b)));
        group.bench_function(id("neg"), |t| t.iter(|| neg_mod(isa, m, &mut acc)));
        group.bench_function(id("mul_const"), |t| t.iter(|| mul_const_mod(isa, m, black_box(77), &mut acc)));
        group.bench_function(id("mul"), |t| t.iter(|| mul_mod(isa, m, &mut acc, &b)));
        group.bench_function(id("mul_add_const"), |t| {
            t.iter(|| mul_add_const_mod(isa, m, black_box(77), &a, &mut acc));
        });
        group.bench_function(id("mul_add"), |t| t.iter(|| mul_add_mod(isa, m, &a, &b, &mut acc)));
        group.bench_function(id("reduce_u32"), |t| t.iter(|| reduce_u32(isa, m, &narrow, &mut acc)));
        group.bench_function(id("reduce_i64"), |t| t.iter(|| reduce_i64(isa, m, &wide, &mut acc)));
        group.bench_function(id("uniform"), |t| t.iter(|| uniform_residues(isa, m, &random, &mut acc, 0)));
        group.bench_function(id("lookup_onehot"), |t| {
            t.iter(|| lookup_onehot(isa, &narrow, black_box(8), &onehot, &mut eq, &mut gt));
        });
        group.throughput(Throughput::Bytes(6 * N as u64));
        group.bench_function(id("rescale 4+2"), |t| {
            t.iter(|| rescale(isa, &SIX[..4], &SIX[4..], true, &planes, N, &mut rescaled));
        });
        group.bench_function(id("rescale 3+3"), |t| {
            t.iter(|| rescale(isa, &SIX[..3], &SIX[3..], false, &planes, N, &mut rescaled[..3 * N]));
        });
        group.throughput(Throughput::Bytes(4 * N as u64));
        group.bench_function(id("compose 4"), |t| {
            t.iter(|| compose_u32(isa, &SIX[..4], &planes[..4 * N], N, &mut composed));
        });
    }
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20);
    targets = convolutions, elementwise
}
criterion_main!(kernels);
