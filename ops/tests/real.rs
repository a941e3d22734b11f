//! Functions of real numbers over their whole range against double precision, on rings of every kind; then on
//! shares, where the ledger must equal the plan and the rounds must be those that are stated.

use std::sync::Arc;

use futures::executor::block_on;
use futures::future::try_join;
use sharelens_ops::engine::Engine;
use sharelens_ops::number::{Number, Scope};
use sharelens_ops::plain::{Bounds, Plain, Rounding};
use sharelens_ops::planner::{Length, Planner};
use sharelens_ops::{Secure, real};
use sharelens_protocol::channel::Memory;
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::correlation::{Dealer, FromHelper, Receiver, SecureRing, Store};
use sharelens_protocol::cost::Cost;
use sharelens_protocol::lanes;
use sharelens_protocol::prg::{Prg, Purpose, Seed};
use sharelens_protocol::ring::{Full, Moduli, Range, Reduced, Rns, Z64};
use sharelens_protocol::secret::Secret;
use sharelens_protocol::{Error, Result, Server, Share, Step, share};

const AT: Step = Step::layer(9);
const POINTS: usize = 12_000;

/// A result in either range.
enum Out<E: Engine> {
    Full(Number<E, Full>),
    Reduced(Number<E, Reduced>),
}

/// A function from numbers at scale `SCALE` and of magnitude `BOUND`.
trait Function {
    const SCALE: f64 = 16_384.0;
    const BOUND: f64;
    async fn run<E: Engine>(&self, e: &mut E, scope: &mut Scope, x: &Number<E, Reduced>) -> Result<Out<E>>;
    /// What it should give.
    fn exact(&self, x: &[f64]) -> Vec<f64>;
}

fn small(ring: &Bounds) -> bool {
    ring.divisor < 1 << 20
}

/// Runs the twin, with rescales rounding at random; result and scale.
fn twin<F: Function>(f: &F, bounds: Bounds, x: &[i64]) -> Result<(Vec<f64>, f64)> {
    let mut e = Plain::new(bounds, Arc::default()).with_rounding(Rounding::Random(7));
    let mut scope = Scope::new(AT, bounds);
    let v = e.input::<Reduced>(x.to_vec());
    let x = Number::new(&scope, v, F::SCALE, F::BOUND)?;
    let (y, scale) = match block_on(f.run(&mut e, &mut scope, &x))? {
        Out::Full(y) => (y.integers().as_slice().to_vec(), y.scale()),
        Out::Reduced(y) => (y.integers().as_slice().to_vec(), y.scale()),
    };
    assert!(e.overflow().is_none(), "{:?}", e.overflow());
    Ok((y.iter().map(|&y| y as f64 / scale).collect(), scale))
}

fn rings() -> Vec<(&'static str, Bounds)> {
    let of = |k, l| {
        let m = Moduli::usual(k, l).unwrap();
        Bounds::rns(&m.p, &m.q).unwrap()
    };
    vec![("(4, 3)", of(4, 3)), ("(4, 2)", of(4, 2)), ("Z_2^64", Bounds::z64(16))]
}

/// Integers from `lo` to `hi`, evenly.
fn sweep(lo: f64, hi: f64, scale: f64) -> Vec<i64> {
    (0..POINTS).map(|i| ((lo + (hi - lo) * i as f64 / (POINTS - 1) as f64) * scale).round() as i64).collect()
}

/// Integers from `lo` to `hi`, each in the same proportion to the one before.
fn sweep_ratio(lo: f64, hi: f64, scale: f64) -> Vec<i64> {
    (0..POINTS)
        .map(|i| (lo * (hi / lo).powf(i as f64 / (POINTS - 1) as f64) * scale).round() as i64)
        .map(|v| v.clamp((lo * scale).ceil() as i64, (hi * scale) as i64))
        .collect()
}

/// Asserts |y - exact| <= relative * |exact| + absolute + units / scale everywhere.
#[track_caller]
fn within<F: Function>(f: &F, x: &[i64], error: impl Fn(&Bounds) -> (f64, f64, f64)) {
    for (name, bounds) in rings() {
        let (y, scale) = twin(f, bounds, x).unwrap_or_else(|e| panic!("{name}: {e}"));
        let reals: Vec<f64> = x.iter().map(|&x| x as f64 / F::SCALE).collect();
        let exact = f.exact(&reals);
        assert_eq!(y.len(), exact.len());
        let (relative, absolute, units) = error(&bounds);
        let mut worst = (0f64, 0);
        for (i, (y, want)) in y.iter().zip(&exact).enumerate() {
            let share = (y - want).abs() / (relative * want.abs() + absolute + units / scale);
            if share > worst.0 {
                worst = (share, i);
            }
        }
        let (share, i) = worst;
        println!("{name}: {share:.3} of the bound at {i}: {} instead of {}, scale {scale}", y[i], exact[i]);
        assert!(share <= 1.0, "{name}: {} instead of {} ({share:.2} of the bound)", y[i], exact[i]);
    }
}

struct Exp {
    lo: f64,
    hi: f64,
    scale: f64,
}
impl Function for Exp {
    const SCALE: f64 = 8192.0;
    const BOUND: f64 = 40.0;
    async fn run<E: Engine>(&self, e: &mut E, scope: &mut Scope, x: &Number<E, Reduced>) -> Result<Out<E>> {
        real::exp(e, scope, x, self.lo, self.hi, self.scale).await.map(Out::Reduced)
    }
    fn exact(&self, x: &[f64]) -> Vec<f64> {
        x.iter().map(|x| x.clamp(self.lo, self.hi).exp()).collect()
    }
}

#[test]
fn exponential() {
    for (lo, hi, scale) in
        [(-8.0, 4.135, 65_536.0), (-8.0, 4.135, 4096.0), (-9.2, 3.05, 65_536.0), (-1.0, 0.5, 4096.0)]
    {
        let x = sweep(lo - 3.0, hi + 3.0, Exp::SCALE);
        within(&Exp { lo, hi, scale }, &x, |b| (if small(b) { 4e-4 } else { 1e-4 }, 0.0, 2.0));
    }
}

struct Reciprocal {
    lo: f64,
    hi: f64,
}
impl Function for Reciprocal {
    const BOUND: f64 = 64.0;
    async fn run<E: Engine>(&self, e: &mut E, scope: &mut Scope, x: &Number<E, Reduced>) -> Result<Out<E>> {
        let x = x.lift(e, scope).await?;
        real::reciprocal(e, scope, &x, self.lo, self.hi, 65_536.0).await.map(Out::Reduced)
    }
    fn exact(&self, x: &[f64]) -> Vec<f64> {
        x.iter().map(|x| 1.0 / x).collect()
    }
}

#[test]
fn reciprocal() {
    for (lo, hi) in [(1.0, 64.0), (0.25, 30.0), (1.0, 1.5)] {
        let x = sweep_ratio(lo, hi, Reciprocal::SCALE);
        within(&Reciprocal { lo, hi }, &x, |b| (if small(b) { 3e-4 } else { 1e-4 }, 0.0, 2.0));
    }
}

struct Clamp;
impl Function for Clamp {
    const BOUND: f64 = 40.0;
    async fn run<E: Engine>(&self, e: &mut E, scope: &mut Scope, x: &Number<E, Reduced>) -> Result<Out<E>> {
        real::clamp(e, scope, x, -1.5, 6.0).await.map(Out::Full)
    }
    fn exact(&self, x: &[f64]) -> Vec<f64> {
        x.iter().map(|x| x.clamp(-1.5, 6.0)).collect()
    }
}

#[test]
fn clamp() {
    within(&Clamp, &sweep(-40.0, 40.0, Clamp::SCALE), |_| (1e-12, 0.0, 0.0));
}

/// A function of one variable, from [lo, hi].
#[derive(Clone, Copy)]
enum Smooth {
    Sigmoid,
    Tanh,
    Log,
    Sqrt,
    InverseSqrt,
}
impl Smooth {
    const RANGE: [f64; 2] = [0.02, 60.0];
    const SCALE_OUT: f64 = 16_384.0;
    fn lifts(self) -> bool {
        !matches!(self, Self::Sigmoid | Self::Tanh)
    }
}
impl Function for Smooth {
    const SCALE: f64 = 8192.0;
    const BOUND: f64 = 61.0;
    async fn run<E: Engine>(&self, e: &mut E, scope: &mut Scope, x: &Number<E, Reduced>) -> Result<Out<E>> {
        let ([lo, hi], scale) = (Self::RANGE, Self::SCALE_OUT);
        if !self.lifts() {
            return match self {
                Self::Sigmoid => real::sigmoid(e, scope, x, scale).await.map(Out::Reduced),
                _ => real::tanh(e, scope, x, scale).await.map(Out::Reduced),
            };
        }
        let x = x.lift(e, scope).await?;
        match self {
            Self::Log => real::log(e, scope, &x, lo, hi, scale).await.map(Out::Reduced),
            Self::Sqrt => real::sqrt(e, scope, &x, lo, hi, scale).await.map(Out::Reduced),
            _ => real::rsqrt(e, scope, &x, lo, hi, scale).await.map(Out::Reduced),
        }
    }
    fn exact(&self, x: &[f64]) -> Vec<f64> {
        let f = match self {
            Self::Sigmoid => |x: &f64| 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => |x: &f64| x.tanh(),
            Self::Log => |x: &f64| x.ln(),
            Self::Sqrt => |x: &f64| x.sqrt(),
            Self::InverseSqrt => |x: &f64| 1.0 / x.sqrt(),
        };
        x.iter().map(f).collect()
    }
}

#[test]
fn sigmoid_and_tanh() {
    let x = [sweep(-60.0, 60.0, Smooth::SCALE), sweep(-10.5, 10.5, Smooth::SCALE)].concat();
    for f in [Smooth::Sigmoid, Smooth::Tanh] {
        within(&f, &x, |b| (0.0, if small(b) { 4e-4 } else { 1e-4 }, 2.0));
    }
}

#[test]
fn logarithm() {
    let [lo, hi] = Smooth::RANGE;
    let x = sweep_ratio(lo, hi, Smooth::SCALE);
    within(&Smooth::Log, &x, |b| (0.0, if small(b) { 4e-4 } else { 1e-4 }, 2.0));
}

#[test]
fn roots() {
    let [lo, hi] = Smooth::RANGE;
    let x = sweep_ratio(lo, hi, Smooth::SCALE);
    for f in [Smooth::Sqrt, Smooth::InverseSqrt] {
        within(&f, &x, |b| (if small(b) { 4e-4 } else { 1e-4 }, 0.0, 2.0));
    }
}

#[test]
fn smooth_functions_on_shares() {
    let x = thinned(sweep_ratio(0.02, 60.0, Smooth::SCALE));
    let rounds = [
        (Smooth::Sigmoid, real::piecewise::ROUNDS),
        (Smooth::Tanh, real::piecewise::ROUNDS),
        // The test lifts the argument first.
        (Smooth::Log, real::log::ROUNDS + 1),
        (Smooth::Sqrt, real::root::ROUNDS + 1),
        (Smooth::InverseSqrt, real::root::ROUNDS + 1),
    ];
    for (f, rounds) in rounds {
        on_shares(&f, &x, rounds, 2.3e-4);
    }
}

/// x / (20 - x), and the larger and smaller of the two.
enum Pair {
    Quotient,
    Larger,
    Smaller,
}
impl Function for Pair {
    const BOUND: f64 = 19.0;
    async fn run<E: Engine>(&self, e: &mut E, scope: &mut Scope, x: &Number<E, Reduced>) -> Result<Out<E>> {
        let other = x.times(e, scope, -1)?.add_public(e, scope, &[20.0])?;
        match self {
            Self::Quotient => {
                let (a, b) = (x.lift(e, scope).await?, other.lift(e, scope).await?);
                real::divide(e, scope, &a, &b, [1.0, 39.0], 4096.0).await.map(Out::Reduced)
            }
            Self::Larger => real::max(e, scope, x, &other).await.map(Out::Full),
            Self::Smaller => real::min(e, scope, x, &other).await.map(Out::Full),
        }
    }
    fn exact(&self, x: &[f64]) -> Vec<f64> {
        let f = match self {
            Self::Quotient => |x: &f64| x / (20.0 - x),
            Self::Larger => |x: &f64| x.max(20.0 - x),
            Self::Smaller => |x: &f64| x.min(20.0 - x),
        };
        x.iter().map(f).collect()
    }
}

#[test]
fn pairs() {
    let x = sweep(-18.9, 18.9, Pair::SCALE);
    let unit = |b: &Bounds| Pair::SCALE / (4096.0 * b.divisor as f64);
    within(&Pair::Quotient, &x, |b| (if small(b) { 3e-4 } else { 1e-4 }, 2.0 * 19.0 * unit(b), 2.0));
    within(&Pair::Larger, &x, |_| (1e-12, 0.0, 0.0));
    within(&Pair::Smaller, &x, |_| (1e-12, 0.0, 0.0));
}

#[test]
fn pairs_on_shares() {
    let x = thinned(sweep(-18.9, 18.9, Pair::SCALE));
    on_shares(&Pair::Quotient, &x, real::reciprocal::DIVIDE_ROUNDS + 2, 1e-3);
    on_shares(&Pair::Larger, &x, real::clamp::ROUNDS, 1e-9);
    on_shares(&Pair::Smaller, &x, real::clamp::ROUNDS, 1e-9);
}

#[test]
fn softmax_of_all_classes() {
    struct All;
    const CLASSES: usize = 7;
    impl Function for All {
        const SCALE: f64 = 8192.0;
        const BOUND: f64 = 15.0;
        async fn run<E: Engine>(
            &self,
            e: &mut E,
            scope: &mut Scope,
            x: &Number<E, Reduced>,
        ) -> Result<Out<E>> {
            real::softmax(e, scope, x, CLASSES, 16_384.0).await.map(Out::Reduced)
        }
        fn exact(&self, x: &[f64]) -> Vec<f64> {
            let row = |l: &[f64]| {
                let total: f64 = l.iter().map(|l| l.exp()).sum();
                l.iter().map(|l| l.exp() / total).collect::<Vec<_>>()
            };
            x.chunks_exact(CLASSES).flat_map(row).collect()
        }
    }
    let x = rows(CLASSES, All::SCALE);
    within(&All, &x, |b| (0.0, if small(b) { 5e-4 } else { 2e-4 }, 3.0));
}

#[test]
fn no_room_is_refused() {
    let moduli = Moduli::usual(2, 1).unwrap();
    let narrow = Bounds::rns(&moduli.p, &moduli.q).unwrap();
    let refused = |r: Result<(Vec<f64>, f64)>| matches!(r, Err(Error::Config(_)));
    assert!(refused(twin(&Exp { lo: -8.0, hi: 4.0, scale: 4096.0 }, narrow, &[0])));
    let (_, usual) = rings()[0];
    assert!(refused(twin(&Exp { lo: -8.0, hi: 40.0, scale: 4096.0 }, usual, &[0])), "e^40 has no room");
    assert!(refused(twin(&Exp { lo: 1.0, hi: 0.0, scale: 4096.0 }, usual, &[0])));
    assert!(refused(twin(&Exp { lo: f64::NAN, hi: 0.0, scale: 4096.0 }, usual, &[0])));
    assert!(refused(twin(&Reciprocal { lo: 0.0, hi: 3.0 }, usual, &[1])), "no reciprocal of zero");
    assert!(
        refused(twin(&Reciprocal { lo: 1e-4, hi: 60.0 }, usual, &[1])),
        "1/10,000 is below the unit of x"
    );
    assert!(refused(twin(&Scores { classes: 3, floor: 0.5 }, usual, &[1, 2])), "two logits, three classes");
    assert!(refused(twin(&Scores { classes: 2, floor: 0.0 }, usual, &[1, 2])));
}

struct Scores {
    classes: usize,
    floor: f64,
}
impl Scores {
    const SCALE_OUT: f64 = 16_384.0;
}
impl Function for Scores {
    const SCALE: f64 = 8192.0;
    const BOUND: f64 = 15.0;
    async fn run<E: Engine>(&self, e: &mut E, scope: &mut Scope, x: &Number<E, Reduced>) -> Result<Out<E>> {
        real::scores(e, scope, x, self.classes, self.floor, Self::SCALE_OUT).await.map(Out::Reduced)
    }
    fn exact(&self, x: &[f64]) -> Vec<f64> {
        let row = |l: &[f64]| {
            let largest = l.iter().copied().fold(f64::MIN, f64::max);
            let terms: Vec<f64> = l.iter().map(|l| (l - largest).exp()).collect();
            let total: f64 = terms.iter().sum();
            terms[1..].iter().map(|t| t / total).collect::<Vec<_>>()
        };
        x.chunks_exact(self.classes).flat_map(row).collect()
    }
}

/// Rows of every kind: far apart, close together, equal.
fn rows(classes: usize, scale: f64) -> Vec<i64> {
    let mut state = 1u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
    };
    (0..POINTS / classes)
        .flat_map(|i| {
            let spread = [0.0, 0.3, 2.0, 5.0, 9.0, 14.9][i % 6];
            (0..classes).map(|_| (spread * draw() * scale) as i64).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn scores_above_the_floor() {
    for (classes, floor) in [(2, 0.05), (3, 0.05), (21, 0.05)] {
        let f = Scores { classes, floor };
        let x = rows(classes, Scores::SCALE);
        let exact = f.exact(&x.iter().map(|&x| x as f64 / Scores::SCALE).collect::<Vec<_>>());
        for (name, bounds) in rings() {
            let allowed = if small(&bounds) { 5e-4 } else { 2e-4 } + 3.0 / Scores::SCALE_OUT;
            let (y, _) = twin(&f, bounds, &x).unwrap_or_else(|e| panic!("{name}, {classes}: {e}"));
            let mut worst = 0f64;
            for (y, want) in y.iter().zip(&exact) {
                if *want >= floor {
                    worst = worst.max((y - want).abs());
                } else {
                    assert!(
                        *y <= 1.05 * floor + allowed && *y > -allowed,
                        "{name}, {classes}: {y} for {want}"
                    );
                }
            }
            println!("{name}, {classes} classes: {worst:.2e} of {allowed:.2e}");
            assert!(worst <= allowed, "{name}, {classes}: {worst}");
        }
    }
}

fn prg(seed: u8) -> Prg {
    Seed::from_bytes([seed; 32]).prg(b"test")
}

fn of<R: SecureRing, E: Engine<V<Full> = Share<R, Full>, V<Reduced> = Share<R, Reduced>>>(
    out: Out<E>,
) -> (Range, Vec<R::Word>, f64) {
    match out {
        Out::Full(y) => {
            let scale = y.scale();
            (Range::Full, y.into_integers().words().to_vec(), scale)
        }
        Out::Reduced(y) => {
            let scale = y.scale();
            (Range::Reduced, y.into_integers().words().to_vec(), scale)
        }
    }
}

/// Runs both servers and the helper; the result, its scale, and the cost.
fn secure<R: SecureRing, F: Function>(ring: &R, bounds: Bounds, f: &F, x: &[i64]) -> (Vec<f64>, f64, Cost) {
    let mut planner = Planner::<R>::new(Rounds::Balanced);
    let mut scope = Scope::new(AT, bounds);
    let planned = Number::new(&scope, Length::new(x.len()), F::SCALE, F::BOUND).unwrap();
    block_on(f.run(&mut planner, &mut scope, &planned)).unwrap();
    let plan = planner.finish();

    let seeds = [prg(4), prg(5)];
    let stores = [Store::new(usize::MAX), Store::new(usize::MAX)];
    let (mut helper, mut from_helper) = Memory::pair("helper", "server 1");
    block_on(async {
        let dealer = Dealer::new(ring, [&seeds[0], &seeds[1]]);
        plan.deal(&dealer, &mut helper).await?;
        let (mut nobody, _) = Memory::pair("nobody", "nobody");
        let ends = [(&mut nobody, &[], &stores[0]), (&mut from_helper, &[], &stores[1])];
        for (role, (channel, weights, store)) in Server::BOTH.into_iter().zip(ends) {
            let server = Receiver { ring, role, prg: &seeds[role.index()], weights };
            plan.fill(FromHelper { server, channel }, store).await?;
        }
        Ok::<_, sharelens_protocol::Error>(())
    })
    .unwrap();

    let (mut to_1, mut to_0) = Memory::pair("server 0", "server 1");
    let client = prg(6);
    let x1 = share::split(ring, Range::Reduced, &client, Step::layer(0), Purpose::Input, x);
    let x0 = ring.uniform(Range::Reduced, client.at(Step::layer(0), Purpose::Input), x.len());
    let run = async |role: Server, channel: &mut Memory, x: Secret<R::Word>| {
        lanes::drive(channel, async |lane| {
            let mut e = Secure::new(ring, role, lane, &[], &stores[role.index()], Rounds::Balanced);
            let mut scope = Scope::new(AT, bounds);
            let x = Number::new(&scope, Share::new(x), F::SCALE, F::BOUND)?;
            let y = of::<R, _>(f.run(&mut e, &mut scope, &x).await?);
            Ok((y, e.into_ledger()))
        })
        .await
    };
    let (of_0, of_1) = (run(Server::Server0, &mut to_1, x0), run(Server::Server1, &mut to_0, x1));
    let ((y0, l0), (y1, l1)) = block_on(try_join(of_0, of_1)).unwrap();
    let ledgers = [l0, l1];
    let planned: Cost = plan.costs(ring).into_values().sum();
    for (ledger, store) in ledgers.iter().zip(&stores) {
        let total = ledger.total();
        assert_eq!(
            (total.sent.rounds, total.sent.messages, total.sent.bytes, total.received_bytes),
            (planned.rounds, planned.messages, planned.bytes, planned.bytes),
            "the ledger equals the plan"
        );
        assert!(store.is_spent(), "nothing prepared is left");
    }
    let (range, words, scale) = y0;
    let y = share::join(ring, range, words.into(), &y1.1);
    (y.iter().map(|&y| y as f64 / scale).collect(), scale, planned)
}

/// On shares in the residue number system: `rounds`, and at most `error` beyond the twin, whose rounding differs.
#[track_caller]
fn on_shares<F: Function>(f: &F, x: &[i64], rounds: u64, error: f64) {
    let moduli = Moduli::usual(4, 3).unwrap();
    let bounds = Bounds::rns(&moduli.p, &moduli.q).unwrap();
    let (y, _, cost) = secure(&Rns::new(moduli).unwrap(), bounds, f, x);
    assert_eq!(cost.rounds, rounds, "rounds");
    println!(
        "{} bytes each way and {} dealt per element, {} rounds",
        cost.bytes as f64 / x.len() as f64,
        cost.dealt as f64 / x.len() as f64,
        cost.rounds
    );
    let (_, _, _) = secure(&Z64::new(), Bounds::z64(16), f, x);
    let reals: Vec<f64> = x.iter().map(|&x| x as f64 / F::SCALE).collect();
    for ((y, want), x) in y.iter().zip(f.exact(&reals)).zip(x) {
        assert!((y - want).abs() <= error * (1.0 + want.abs()), "{y} instead of {want} at {x}");
    }
}

fn thinned(x: Vec<i64>) -> Vec<i64> {
    x.into_iter().step_by(97).collect()
}

#[test]
fn clamp_on_shares() {
    on_shares(&Clamp, &thinned(sweep(-40.0, 40.0, Clamp::SCALE)), real::clamp::ROUNDS, 1e-9);
}

#[test]
fn exponential_on_shares() {
    let f = Exp { lo: -8.0, hi: 4.135, scale: 65_536.0 };
    on_shares(&f, &thinned(sweep(-11.0, 7.0, Exp::SCALE)), real::exp::ROUNDS, 1.4e-4);
}

#[test]
fn reciprocal_on_shares() {
    let x = thinned(sweep_ratio(1.0, 64.0, Reciprocal::SCALE));
    // The test lifts the argument first.
    on_shares(&Reciprocal { lo: 1.0, hi: 64.0 }, &x, real::reciprocal::ROUNDS + 1, 1.3e-4);
}

#[test]
fn scores_on_shares() {
    let x = rows(2, Scores::SCALE)[..240].iter().map(|x| x / 12).collect::<Vec<_>>();
    on_shares(&Scores { classes: 2, floor: 0.05 }, &x, real::softmax::TWO_ROUNDS, 4e-4);
    on_shares(&Scores { classes: 3, floor: 0.05 }, &x, real::softmax::PAIR_ROUNDS, 4e-4);
    let x = rows(5, Scores::SCALE)[..300].to_vec();
    let rounds = real::softmax::ROUNDS + 3 * real::softmax::LEVEL_ROUNDS;
    on_shares(&Scores { classes: 5, floor: 0.05 }, &x, rounds, 4e-4);
}
