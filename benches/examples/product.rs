//! Where the time of a product of secret matrices goes:
//! `cargo run --release -p sharelens-benches --example product -- [GROUPS M K N USES]`.
//!
//! One thread pool of the machine's size, parties one after another, in-memory channels: CPU cost, no network.
//! Without a shape, a few that occur in attention, mask heads and recurrent layers.

use std::time::Instant;

use futures::executor::block_on;
use futures::future::try_join;
use sharelens_protocol::channel::Memory;
use sharelens_protocol::correlation::{Dealer, Kind, Receiver, SecureRing};
use sharelens_protocol::cost::Ledger;
use sharelens_protocol::prg::{Purpose, Seed};
use sharelens_protocol::product::{self, Shape};
use sharelens_protocol::ring::{Full, Moduli, Range, Rns, Z64};
use sharelens_protocol::{Party, Server, Share, Step, share};

fn main() {
    let given: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().expect("five numbers")).collect();
    let shapes = match given[..] {
        [groups, m, k, n, uses] => vec![Shape { groups, m, k, n, uses }],
        _ => vec![
            Shape { groups: 1, m: 448, k: 30, n: 5120, uses: 1 },
            Shape { groups: 64, m: 896, k: 40, n: 7, uses: 1 },
            Shape { groups: 1, m: 1, k: 256, n: 256, uses: 16 },
            Shape { groups: 1, m: 1024, k: 1024, n: 1024, uses: 1 },
        ],
    };
    for shape in shapes {
        assert!(shape.is_valid(), "a product of matrices");
        println!("{shape:?}");
        measure("rns 3 + 2", &Rns::new(Moduli::usual(3, 2).expect("usual")).expect("usual"), shape);
        measure("Z_2^64", &Z64::new(), shape);
    }
}

fn measure<R: SecureRing>(name: &str, ring: &R, shape: Shape) {
    let at = Step::layer(1);
    let prgs = [1, 2].map(|s| Seed::from_bytes([s; 32]).prg(b"bench"));
    let dealer = Dealer::new(ring, [&prgs[0], &prgs[1]]);
    let [zero, one] = Server::BOTH.map(|role| Receiver::new(ring, role, &prgs[role.index()]));
    let numbers = |call, n| -> Vec<i64> {
        let words = prgs[0].stream(at.call(call), Purpose::Test, 0, 0).words(n);
        words.iter().map(|v| (v >> 54) as i64 - 512).collect()
    };
    let (x, y) = (numbers(0, shape.left_len()), numbers(1, shape.right_len()));
    let split = |call, x: &[i64]| -> [Share<R, Full>; 2] {
        let s1 = share::split(ring, Range::Full, &prgs[0], at.call(call), Purpose::Input, x);
        [
            ring.uniform(Range::Full, prgs[0].at(at.call(call), Purpose::Input), x.len()).into_inner(),
            s1.into_inner(),
        ]
        .map(Share::new)
    };
    let mut best = [f64::MAX; 4];
    for _ in 0..5 {
        let ([x0, x1], [y0, y1]) = (split(2, &x), split(3, &y));
        let mut last = Instant::now();
        let mut lap = |what: usize| {
            best[what] = best[what].min(last.elapsed().as_secs_f64() * 1e3);
            last = Instant::now();
        };
        let correction = shape.deal(&dealer, at).expect("no weights");
        lap(0);
        let c0 = zero.receive(at, &shape, vec![]).expect("well-formed");
        lap(1);
        let c1 = one.receive(at, &shape, correction).expect("well-formed");
        lap(2);
        let (mut a, mut b) = Memory::pair("server 0", "server 1");
        let mut ledgers = [Ledger::default(), Ledger::default()];
        let [l0, l1] = &mut ledgers;
        let mut p0 = Party { ring, role: Server::Server0, channel: &mut a, ledger: l0 };
        let mut p1 = Party { ring, role: Server::Server1, channel: &mut b, ledger: l1 };
        let (mut y0, mut y1) = (c0.operand(y0), c1.operand(y1));
        let mut z = None;
        for t in 0..shape.uses {
            let at = at.call(4 + t as u16);
            let both = try_join(
                product::product(&mut p0, at, &mut y0, &x0),
                product::product(&mut p1, at, &mut y1, &x1),
            );
            z = Some(block_on(both).expect("a run"));
        }
        lap(3);
        let (z0, z1) = z.expect("one use at least");
        let z = share::join(ring, Range::Full, z0.into_words(), z1.words());
        for (at, &z) in z.iter().enumerate().step_by(997) {
            let (g, i, j) = (at / (shape.m * shape.n), at / shape.n % shape.m, at % shape.n);
            let (x, y) =
                (&x[(g * shape.m + i) * shape.k..][..shape.k], &y[(g * shape.n + j) * shape.k..][..shape.k]);
            assert_eq!(z, x.iter().zip(y).map(|(x, y)| x * y).sum::<i64>());
        }
    }
    let [deal, prepare0, prepare1, online] = best;
    let macs = (shape.uses * shape.out_len() * shape.k) as f64;
    println!(
        "  {name:10} helper {deal:8.2} ms, server 0 prepares {prepare0:8.2} ms, server 1 {prepare1:8.2} ms, both \
         online {online:8.2} ms ({:.2} ns per 1000 products of numbers)",
        online * 1e9 / macs
    );
}
