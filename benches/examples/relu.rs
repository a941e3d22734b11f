//! Where the time of a ReLU goes: `cargo run --release -p sharelens-benches --example relu -- [ELEMENTS]`.
//!
//! One thread pool of the machine's size, parties one after another, in-memory channels: CPU cost, no network.

use std::time::Instant;

use futures::executor::block_on;
use futures::future::try_join;
use sharelens_protocol::channel::Memory;
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::correlation::{Dealer, Kind, Receiver};
use sharelens_protocol::cost::Ledger;
use sharelens_protocol::prg::{Purpose, Seed};
use sharelens_protocol::ring::{Full, Moduli, Range, Reduced, Ring, Rns};
use sharelens_protocol::sign::{self, SignOutput};
use sharelens_protocol::{Party, Server, Share, Step, share};

fn main() {
    let n: usize = std::env::args().nth(1).map_or(1 << 20, |a| a.parse().expect("a number of elements"));
    let ring = Rns::new(Moduli::usual(3, 2).expect("usual moduli")).expect("usual moduli");
    let at = Step::layer(1);
    let prgs = [1, 2].map(|s| Seed::from_bytes([s; 32]).prg(b"bench"));
    let demand = sign::Demand { n, output: SignOutput::Full, rounds: Rounds::Balanced };
    let dealer = Dealer::new(&ring, [&prgs[0], &prgs[1]]);
    let [zero, one] = Server::BOTH.map(|role| Receiver::new(&ring, role, &prgs[role.index()]));
    let mut noise = vec![0u64; n];
    noise.copy_from_slice(&prgs[0].stream(at, Purpose::Test, 0, 0).words(n));
    let x: Vec<i64> = noise.iter().map(|v| (v >> 44) as i64 - (1 << 19)).collect();
    for _ in 0..3 {
        let s1 = share::split(&ring, Range::Reduced, &prgs[0], at, Purpose::Input, &x);
        let s0 = ring.uniform(Range::Reduced, prgs[0].at(at, Purpose::Input), n);
        let mut last = Instant::now();
        let mut lap = |what: &str| {
            let ns = last.elapsed().as_nanos() as f64 / n as f64;
            println!("{what:24} {ns:7.2} ns per element");
            last = Instant::now();
        };
        let correction = demand.deal(&dealer, at).expect("no weights");
        let dealt = correction.len();
        lap("helper deals");
        let c0 = zero.receive(at, &demand, vec![]).expect("well-formed");
        lap("server 0 prepares");
        let c1 = one.receive(at, &demand, correction).expect("well-formed");
        lap("server 1 prepares");
        let (mut a, mut b) = Memory::pair("server 0", "server 1");
        let mut ledgers = [Ledger::default(), Ledger::default()];
        let [l0, l1] = &mut ledgers;
        let mut p0 = Party { ring: &ring, role: Server::Server0, channel: &mut a, ledger: l0 };
        let mut p1 = Party { ring: &ring, role: Server::Server1, channel: &mut b, ledger: l1 };
        let (x0, x1) = (Share::<_, Reduced>::new(s0), Share::new(s1));
        let (y0, y1) = block_on(try_join(
            sign::relu::<_, _, Full>(&mut p0, at, &x0, c0),
            sign::relu::<_, _, Full>(&mut p1, at, &x1, c1),
        ))
        .expect("a run");
        lap("both servers online");
        let y = share::join(&ring, Range::Full, y0.into_words(), y1.words());
        assert!(y.iter().zip(&x).all(|(y, x)| *y == *x.max(&0)));
        println!("{} dealt bytes per element", dealt as f64 / n as f64);
    }
}
