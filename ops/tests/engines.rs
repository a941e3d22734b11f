//! Every layer on shares against the twin: the numbers agree, the ledger equals the plan, and nothing that was
//! prepared is left over.

use std::sync::Arc;

use futures::executor::block_on;
use futures::future::try_join;
use sharelens_ops::engine::{Engine, ProductShape};
use sharelens_ops::layers::{self, Calls, ConvTranspose, MaxPool, Window};
use sharelens_ops::number::{Number, Scope};
use sharelens_ops::opened::{Bits, Keys, Places};
use sharelens_ops::plain::{Bounds, Plain, Weights};
use sharelens_ops::planner::{Length, Planner};
use sharelens_ops::{Linear, Secure};
use sharelens_protocol::bilinear::{self, Mask};
use sharelens_protocol::channel::Memory;
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::correlation::{Dealer, FromHelper, Receiver, SecureRing, Store};
use sharelens_protocol::cost::Ledger;
use sharelens_protocol::lanes;
use sharelens_protocol::prg::{Prg, Purpose, Seed};
use sharelens_protocol::ring::kernel::Conv;
use sharelens_protocol::ring::{Domain, Moduli, Range, Reduced, Rns, Z64};
use sharelens_protocol::secret::Secret;
use sharelens_protocol::{Party, Result, Server, Share, Step, share};

const AT: Step = Step::layer(5);

/// A layer from `Reduced` (scaled up to `Full` first where it wants that) to `Full` or `Reduced`, as integers.
trait Layer {
    /// Weights of the maps that it applies, in the clear.
    fn weights(&self) -> Vec<(Linear, Weights)> {
        Vec::new()
    }
    /// How far apart the two engines may be, because a rescale rounds at random.
    const TOLERANCE: i64 = 0;
    async fn run<E: Engine>(&self, e: &mut E, divisor: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>>;
}

struct Relu;
impl Layer for Relu {
    async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let y = e.relu(AT.call(0), x).await?;
        Ok(e.reduce(&y))
    }
}

struct Clip;
impl Layer for Clip {
    async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let y = layers::clip(e, AT, x, Some(-100), Some(600)).await?;
        Ok(e.reduce(&y))
    }
}

struct Leaky;
impl Layer for Leaky {
    const TOLERANCE: i64 = 1;
    async fn run<E: Engine>(&self, e: &mut E, divisor: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let y = e.slopes(AT.call(0), x, divisor, divisor / 10).await?;
        e.rescale(AT.call(1), &y).await
    }
}

struct Pool;
impl Layer for Pool {
    async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let rows = Window { input: 6, kernel: 3, stride: 2, dilation: 1, before: 1, output: 3 };
        let columns = Window { input: 8, kernel: 2, stride: 2, dilation: 1, before: 0, output: 4 };
        MaxPool { n: 1, c: 5, rows, columns }.run(e, AT, x).await
    }
}

struct Argmax;
impl Layer for Argmax {
    async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let y = layers::argmax(e, AT, x, 5).await?;
        Ok(e.reduce(&y))
    }
}

/// Lift, a convolution, a product of the result with itself, rescaled twice.
struct Chain;
const MAP: Linear = Linear {
    conv: Conv {
        n: 1,
        h: 6,
        w: 8,
        c_in: 5,
        c_out: 3,
        kernel: [3, 3],
        stride: [1, 2],
        pad: [1; 4],
        dilation: [1, 1],
        groups: 1,
    },
    weight: 0,
};
impl Layer for Chain {
    const TOLERANCE: i64 = 40;
    fn weights(&self) -> Vec<(Linear, Weights)> {
        let values = (0..MAP.conv.weight_len() as i64).map(|i| (i * 7919 % 401 - 200) * 100).collect();
        vec![(MAP, Weights { values, bias: vec![5_000_000, -700_000, 0] })]
    }
    async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let mut calls = Calls::new(AT);
        let x = e.lift(calls.step(), x).await?;
        let y = e.linear(calls.step(), &MAP, &x).await?;
        let y = e.rescale(calls.step(), &y).await?;
        let y = e.lift(calls.step(), &y).await?;
        let y = e.mul(calls.step(), &y, &y).await?;
        let y = e.scale(&y, 3);
        e.rescale(calls.step(), &y).await
    }
}

struct Up;
impl Up {
    const SHAPE: ConvTranspose = ConvTranspose {
        n: 1,
        h: 6,
        w: 8,
        c_in: 5,
        c_out: 2,
        kernel: [2, 2],
        stride: [2, 2],
        pad: [0; 4],
        dilation: [1, 1],
        output_padding: [0, 0],
        groups: 1,
    };
}
impl Layer for Up {
    const TOLERANCE: i64 = 1;
    fn weights(&self) -> Vec<(Linear, Weights)> {
        let weights: Vec<i64> = (0..5 * 2 * 4).map(|i| (i * 131 % 77 - 38) * 300).collect();
        let map = Linear { conv: Self::SHAPE.conv(), weight: 0 };
        vec![(
            map,
            Weights { values: Self::SHAPE.weights(&weights), bias: Self::SHAPE.bias(&[1_000_000, -50_000]) },
        )]
    }
    async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let x = e.lift(AT.call(0), x).await?;
        let y = e.linear(AT.call(1), &Linear { conv: Self::SHAPE.conv(), weight: 0 }, &x).await?;
        let y = e.gather(&[&y], &Self::SHAPE.index());
        e.rescale(AT.call(2), &y).await
    }
}

/// `count` elements from `from` on.
fn part<E: Engine, D: Domain>(e: &mut E, x: &E::V<D>, from: usize, count: usize) -> E::V<D> {
    e.gather(&[x], &(from as u32..(from + count) as u32).collect::<Vec<_>>())
}

/// A list in descending order, all of it and the largest of each group; rows that stay together; and a list of which
/// some rows move to the front.
struct Sort;
impl Layer for Sort {
    async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        const N: usize = 24;
        // Fits every ring that this runs in.
        let bounds = Bounds::rns(&[255, 253, 251], &[247, 241]).unwrap();
        let scope = &mut Scope::new(AT, bounds);
        let numbers = part(e, x, 0, N);
        let keys = Keys::of(e, scope, &Number::new(scope, numbers.clone(), 1.0, 2000.0)?).await?;
        let (list, keys) = keys.shuffle(e, scope.step(), &numbers, 1).await?;
        let order = e.open_order(scope.step(), N, &keys).await?;
        let sorted = e.gather(&[&list], &order);
        // The last group is shorter, and one of its own.
        let order = e.open_order(scope.step(), 7, &keys).await?;
        let first: Vec<u32> = order.iter().copied().step_by(7).collect();
        let mut most = e.gather(&[&list], &first[..1]);
        for i in 1..first.len() {
            let next = e.gather(&[&list], &first[i..=i]);
            most = layers::maximum(e, scope.step(), &most, &next).await?;
        }
        // Groups of one are in order as they are.
        let alone = e.open_order(scope.step(), 1, &keys).await?;
        assert_eq!(alone, (0..N as u32).collect::<Vec<_>>());
        // Rows of three in the other domain: what belongs together is still beside each other.
        let wide = e.lift(scope.step(), x).await?;
        let wide = part(e, &wide, 0, 3 * 80);
        let rows = e.shuffle(scope.step(), 80, &wide).await?;
        let column = |c: u32| (0..80).map(|r| 3 * r + c).collect::<Vec<u32>>();
        let (a, b) = (e.gather(&[&rows], &column(0)), e.gather(&[&rows], &column(2)));
        let b = e.reduce(&b);
        let b = e.is_negative(scope.step(), &b).await?;
        let pairs = e.mul(scope.step(), &a, &b).await?;
        let mut sum = part(e, &pairs, 0, 1);
        for i in 1..80 {
            let next = part(e, &pairs, i, 1);
            sum = e.add(&sum, &next);
        }
        let sum = e.reduce(&sum);
        // Negative numbers first, and zeros where there are no more.
        let negative = Bits::negative(e, scope.step(), &numbers).await?;
        let whole = e.lift(scope.step(), &numbers).await?;
        let (places, kept) = Places::ones_first(e, scope, &negative, &whole, 1).await?;
        let (moved, places) = places.shuffle(e, scope.step(), &kept, 1).await?;
        let places = e.open_places(scope.step(), &places).await?;
        let mut from = vec![0; N];
        places.iter().enumerate().for_each(|(row, &place)| from[place as usize] = row as u32);
        let front = e.gather(&[&moved], &from);
        let front = e.reduce(&front);
        Ok(layers::join(e, &[&sorted, &most, &sum, &front]))
    }
}

/// Products of secret matrices: one operand used twice, and one in groups.
struct Products;
impl Layer for Products {
    const TOLERANCE: i64 = 1;
    async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let mut calls = Calls::new(AT);
        let x = e.lift(calls.step(), x).await?;
        let twice = ProductShape { groups: 1, m: 2, k: 15, n: 9, uses: 2 };
        let right = part(e, &x, 0, twice.right_len());
        let mut operand = e.operand(calls.step(), twice, right)?;
        let left = part(e, &x, 100, twice.left_len());
        let first = e.product(calls.step(), &mut operand, &left).await?;
        let left = part(e, &first, 0, 18);
        let left = e.rescale(calls.step(), &left).await?;
        let left = e.lift(calls.step(), &left).await?;
        // In the residue number system and in Z_2^64 the divisor differs, so that these may be all zero.
        let most = part(e, &x, 120, 12);
        let left = layers::join(e, &[&left, &most]);
        let second = e.product(calls.step(), &mut operand, &left).await?;
        let grouped = ProductShape { groups: 6, m: 4, k: 5, n: 3, uses: 1 };
        let (left, right) = (part(e, &x, 0, 120), part(e, &x, 130, 90));
        let mut operand = e.operand(calls.step(), grouped, right)?;
        let third = e.product(calls.step(), &mut operand, &left).await?;
        let all = layers::join(e, &[&first, &second, &third]);
        e.rescale(calls.step(), &all).await
    }
}

fn prg(seed: u8) -> Prg {
    Seed::from_bytes([seed; 32]).prg(b"test")
}

/// Runs both servers and the helper; returns the opened result.
fn secure<R: SecureRing, L: Layer>(ring: &R, layer: &L, x: &[i64], rounds: Rounds) -> Vec<i64> {
    let divisor = ring.divisor() as i64;
    let mut planner = Planner::<R>::new(rounds);
    block_on(layer.run(&mut planner, divisor, &Length::new(x.len()))).unwrap();
    let plan = planner.finish();

    // The model owner shares the weights, the helper deals their masks.
    let loads = [prg(1), prg(2)];
    let weights = layer.weights();
    let masks: Vec<Mask<R>> =
        weights.iter().map(|(m, _)| Mask::new(ring, m, [&loads[0], &loads[1]])).collect();
    let owner = prg(3);
    let split = |x: &[i64], at: u32, purpose| {
        let s1 = share::split(ring, Range::Full, &owner, Step::layer(at), purpose, x);
        [ring.uniform(Range::Full, owner.at(Step::layer(at), purpose), x.len()), s1]
    };
    let (mut to_1, mut to_0) = Memory::pair("server 0", "server 1");
    let load = async |role: Server, channel: &mut Memory| {
        let mut loaded = Vec::new();
        for (map, w) in &weights {
            let mut ledger = Ledger::default();
            let mut party = Party { ring, role, channel, ledger: &mut ledger };
            let [weight, bias] = [(&w.values, Purpose::Weight), (&w.bias, Purpose::Bias)].map(|(v, p)| {
                let [a, b] = split(v, map.weight, p);
                if role.is_first() { a } else { b }
            });
            loaded.push(bilinear::load(&mut party, map, &loads[role.index()], weight, bias).await?);
        }
        Ok::<_, sharelens_protocol::Error>(loaded)
    };
    let (w0, w1) =
        block_on(try_join(load(Server::Server0, &mut to_1), load(Server::Server1, &mut to_0))).unwrap();

    // Preprocessing: the helper's corrections go to server 1 only.
    let seeds = [prg(4), prg(5)];
    let stores = [Store::new(usize::MAX), Store::new(usize::MAX)];
    let (mut helper, mut from_helper) = Memory::pair("helper", "server 1");
    block_on(async {
        let dealer = Dealer { ring, prgs: [&seeds[0], &seeds[1]], masks: &masks };
        plan.deal(&dealer, &mut helper).await?;
        let (mut nobody, _) = Memory::pair("nobody", "nobody");
        let ends = [(&mut nobody, &w0, &stores[0]), (&mut from_helper, &w1, &stores[1])];
        for (role, (channel, weights, store)) in Server::BOTH.into_iter().zip(ends) {
            let server = Receiver { ring, role, prg: &seeds[role.index()], weights };
            plan.fill(FromHelper { server, channel }, store).await?;
        }
        Ok::<_, sharelens_protocol::Error>(())
    })
    .unwrap();

    // Online.
    let client = prg(6);
    let x1 = share::split(ring, Range::Reduced, &client, Step::layer(0), Purpose::Input, x);
    let x0 = ring.uniform(Range::Reduced, client.at(Step::layer(0), Purpose::Input), x.len());
    let online = async |role: Server, channel: &mut Memory, weights: &[_], x: Secret<R::Word>| {
        lanes::drive(channel, async |lane| {
            let mut e = Secure::new(ring, role, lane, weights, &stores[role.index()], rounds);
            let y = layer.run(&mut e, divisor, &Share::new(x)).await?;
            Ok((y, e.into_ledger()))
        })
        .await
    };
    let (of_0, of_1) =
        (online(Server::Server0, &mut to_1, &w0, x0), online(Server::Server1, &mut to_0, &w1, x1));
    let ((y0, l0), (y1, l1)) = block_on(try_join(of_0, of_1)).unwrap();
    let ledgers = [l0, l1];
    let planned: sharelens_protocol::cost::Cost = plan.costs(ring).into_values().sum();
    for (ledger, store) in ledgers.iter().zip(&stores) {
        let total = ledger.total();
        assert_eq!(
            (total.sent.rounds, total.sent.messages, total.sent.bytes, total.received_bytes),
            (planned.rounds, planned.messages, planned.bytes, planned.bytes),
            "the ledger equals the plan"
        );
        assert!(store.is_spent(), "nothing prepared is left");
    }
    share::join(ring, Range::Reduced, y0.into_words(), y1.words())
}

fn check<R: SecureRing, L: Layer>(ring: &R, bounds: Bounds, layer: &L, x: &[i64]) {
    let weights = Arc::new(layer.weights().into_iter().map(|(_, w)| w).collect());
    let mut plain = Plain::new(bounds, weights);
    let input = plain.input::<Reduced>(x.to_vec());
    let want = block_on(layer.run(&mut plain, bounds.divisor, &input)).unwrap();
    for rounds in [Rounds::Balanced, Rounds::Fewest] {
        let got = secure(ring, layer, x, rounds);
        assert_eq!(got.len(), want.as_slice().len());
        for (got, want) in got.iter().zip(want.as_slice()) {
            assert!((got - want).abs() <= L::TOLERANCE, "{got} instead of {want}");
        }
    }
}

fn everywhere<L: Layer>(layer: &L) {
    let x: Vec<i64> = (0..6 * 8 * 5).map(|i: i64| (i * 104_729 + 17) % 4001 - 2000).collect();
    for (k, l) in [(3, 2), (3, 3), (4, 2), (4, 4)] {
        let moduli = Moduli::usual(k, l).unwrap();
        let bounds = Bounds::rns(&moduli.p, &moduli.q).unwrap();
        check(&Rns::new(moduli).unwrap(), bounds, layer, &x);
    }
    check(&Z64::new(), Bounds::z64(16), layer, &x);
}

#[test]
fn relu() {
    everywhere(&Relu);
}

#[test]
fn clip() {
    everywhere(&Clip);
}

#[test]
fn leaky_relu() {
    everywhere(&Leaky);
}

#[test]
fn max_pool() {
    everywhere(&Pool);
}

#[test]
fn argmax() {
    everywhere(&Argmax);
}

#[test]
fn lift_convolve_multiply_rescale() {
    everywhere(&Chain);
}

#[test]
fn shuffle_and_sort() {
    everywhere(&Sort);
}

/// The clamped numbers of two words, then the words in the order that was opened.
struct Pair(Bounds);
impl Pair {
    /// Words of a ring with P = 105.
    const MODULI: ([u8; 3], [u8; 2]) = ([7, 5, 3], [11, 13]);
    /// The largest number for which two keys fit.
    const MOST: i64 = (52 - 2) / 4;
}
impl Layer for Pair {
    async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let scope = &mut Scope::new(AT, self.0);
        let keys = Keys::of(e, scope, &Number::new(scope, x.clone(), 1.0, 1.0)?).await?;
        let numbers = e.reduce(keys.numbers().integers());
        let (list, keys) = keys.shuffle(e, scope.step(), x, 1).await?;
        let order = e.open_order(scope.step(), 2, &keys).await?;
        let sorted = e.gather(&[&list], &order);
        Ok(layers::join(e, &[&numbers, &sorted]))
    }
}

#[test]
fn any_two_words_are_in_order() {
    // Not only numbers in their range: a client may send any word, and an order that contradicts itself would tell.
    let (p, q) = Pair::MODULI;
    let layer = Pair(Bounds::rns(&p, &q).unwrap());
    let ring = Rns::new(Moduli { p: p.to_vec(), q: q.to_vec() }).unwrap();
    let clamp = |x: i64| match x {
        -12..=12 => x,
        // Beyond, the largest; far beyond, where a sum with it would wrap, the smallest.
        13..=40 => Pair::MOST,
        _ => -Pair::MOST,
    };
    for (a, b) in (-52..=52).flat_map(|a| (-52..=52).step_by(3).map(move |b| (a, b))) {
        let got = secure(&ring, &layer, &[a, b], Rounds::Balanced);
        assert_eq!(got[..2], [clamp(a), clamp(b)], "{a} and {b}");
        let want = if clamp(a) >= clamp(b) { [a, b] } else { [b, a] };
        assert_eq!(got[2..], want, "{a} and {b}");
    }
}

/// How many of the first seven numbers, of the next, and of the rest are outside, where every word is one.
struct Outside(Bounds);
impl Layer for Outside {
    async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
        let n = e.len(x) as u32;
        let [a, b, c] = [0..7, 7..8, 8..n].map(|part| e.gather(&[x], &part.collect::<Vec<_>>()));
        let counts = layers::outside(e, AT, &[&a, &b, &c], self.0.lift).await?;
        Ok(e.reduce(&counts))
    }
}

#[test]
fn every_word_is_inside_or_outside() {
    // P with both remainders modulo 4: the edge is where both definitions differ by one.
    for (p, q) in [(vec![7u8, 5, 3], vec![11u8, 13]), (vec![13, 7], vec![11, 5]), (vec![251, 3], vec![253])] {
        let bounds = Bounds::rns(&p, &q).unwrap();
        let (most, quarter) = (bounds.reduced, bounds.lift);
        let ring = Rns::new(Moduli { p, q }).unwrap();
        let layer = Outside(bounds);
        for x in -most..=most {
            let inside = (-quarter - (most - 2 * quarter)..quarter).contains(&x);
            let list: Vec<i64> = (0..13).map(|i| if i == 9 { 0 } else { x }).collect();
            let got = secure(&ring, &layer, &list, Rounds::Balanced);
            let want = if inside { [0, 0, 0] } else { [7, 1, 4] };
            assert_eq!(got, want, "{x} of {most}");
        }
        // And the twin says the same of what it lets pass.
        let x: Vec<i64> = (-most..=most).collect();
        check(&ring, bounds, &layer, &x);
    }
    let z64 = Outside(Bounds::z64(16));
    for (x, outside) in
        [(i64::MIN, 1), (-(1 << 62) - 1, 1), (-(1 << 62), 0), (0, 0), ((1 << 62) - 1, 0), (1 << 62, 1)]
    {
        let got = secure(&Z64::new(), &z64, &[x; 9], Rounds::Fewest);
        assert_eq!(got, [7 * outside, outside, outside], "{x}");
    }
}

#[test]
fn products_of_secrets() {
    everywhere(&Products);
}

#[test]
#[should_panic(expected = "used too often")]
fn an_operand_is_used_as_often_as_planned() {
    struct Often;
    impl Layer for Often {
        async fn run<E: Engine>(&self, e: &mut E, _: i64, x: &E::V<Reduced>) -> Result<E::V<Reduced>> {
            let x = e.lift(AT.call(0), x).await?;
            let shape = ProductShape { groups: 1, m: 1, k: 4, n: 1, uses: 1 };
            let mut operand = e.operand(AT.call(1), shape, x.clone())?;
            e.product(AT.call(2), &mut operand, &x).await?;
            let y = e.product(AT.call(3), &mut operand, &x).await?;
            Ok(e.reduce(&y))
        }
    }
    secure(&Z64::new(), &Often, &[5; 4], Rounds::Balanced);
}

#[test]
fn transposed_convolution() {
    everywhere(&Up);
}
