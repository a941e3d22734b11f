//! What functions of secret numbers cost, beside the coordinate rotations (CORDIC) that they replace:
//! `cargo run --release -p sharelens-benches --example functions`.
//!
//! Rounds and bytes are the planner's, which tests compare with the ledger of a run; errors are the largest over a
//! sweep of the twin with random rounding. A rotation takes one secret sign per step, then the sign times the
//! secret coordinates; shifts by 2^-i become scales 2^i times as fine, until a rescale and a lift are due. Steps are
//! added until the rotation is as exact as our function.

use std::sync::Arc;

use futures::executor::block_on;
use sharelens_ops::engine::Engine;
use sharelens_ops::number::{Number, Scope};
use sharelens_ops::plain::{Bounds, Plain, Rounding};
use sharelens_ops::planner::{Length, Planner};
use sharelens_ops::real;
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::cost::Cost;
use sharelens_protocol::ring::{Full, Moduli, Reduced, Rns};
use sharelens_protocol::{Result, Step};

const POINTS: usize = 20_001;
/// Scale of every argument.
const SCALE: f64 = 8192.0;
/// Scale of every result of ours.
const OUT: f64 = 16_384.0;
/// Range of the second argument of a quotient.
const DIVISORS: [f64; 2] = [0.5, 4.0];
const EXP: [f64; 2] = [-8.0, 4.135];
const LOG: [f64; 2] = [0.125, 8.0];

#[derive(Clone, Copy, PartialEq)]
enum Function {
    Divide,
    Log,
    Exp,
    ExpNarrow,
    Sigmoid,
    Tanh,
    Sqrt,
    Rsqrt,
    Clamp,
}

#[derive(Clone, Copy)]
enum Way {
    Ours,
    Rotation { steps: usize },
}

impl Function {
    const fn range(self) -> [f64; 2] {
        match self {
            Self::Divide => [-3.9, 3.9],
            Self::Log | Self::Sqrt | Self::Rsqrt => LOG,
            Self::Exp => EXP,
            Self::ExpNarrow => [-1.0, 1.0],
            Self::Sigmoid | Self::Tanh | Self::Clamp => [-12.0, 12.0],
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Divide => "a/b, b in [0.5, 4], \\|a\\| < b",
            Self::Log => "ln x, [1/8, 8]",
            Self::Exp => "e^x, [-8, 4.135]",
            Self::ExpNarrow => "e^x, [-1, 1]",
            Self::Sigmoid => "sigmoid",
            Self::Tanh => "tanh",
            Self::Sqrt => "x^(1/2), [1/8, 8]",
            Self::Rsqrt => "x^(-1/2), [1/8, 8]",
            Self::Clamp => "clamp",
        }
    }

    fn exact(self, x: f64, b: f64) -> f64 {
        match self {
            Self::Divide => x / b,
            Self::Log => x.ln(),
            Self::Exp | Self::ExpNarrow => x.exp(),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
            Self::Sqrt => x.sqrt(),
            Self::Rsqrt => 1.0 / x.sqrt(),
            Self::Clamp => x.clamp(-1.0, 6.0),
        }
    }

    /// Errors of exponentials and roots are relative where they exceed one.
    fn error(self, y: f64, want: f64) -> f64 {
        (y - want).abs() / want.abs().max(1.0)
    }

    /// Arguments that may be lifted already are: neither way pays for that.
    async fn run<E: Engine>(
        self,
        way: Way,
        e: &mut E,
        scope: &mut Scope,
        x: E::V<Reduced>,
        full: [E::V<Full>; 2],
    ) -> Result<(Option<E::V<Full>>, Option<E::V<Reduced>>, f64)> {
        let [lo, hi] = self.range();
        let bound = lo.abs().max(hi.abs()) + 1.0;
        let x = Number::<E, Reduced>::new(scope, x, SCALE, bound)?;
        let [a, b] = full;
        let a = Number::<E, Full>::new(scope, a, SCALE, bound)?;
        let b = Number::<E, Full>::new(scope, b, SCALE, DIVISORS[1])?;
        if let Way::Rotation { steps } = way {
            return match self {
                Self::Divide => rotate_divide(e, scope, &a, &b, steps).await,
                Self::Log => rotate_log(e, scope, &a, steps).await,
                Self::ExpNarrow => rotate_exp(e, scope, &x, steps, 0).await,
                _ => {
                    let x = real::clamp(e, scope, &x, lo, hi).await?.reduce(e, scope)?;
                    rotate_exp(e, scope, &x, steps, 3).await
                }
            };
        }
        let y = match self {
            Self::Divide => real::divide(e, scope, &a, &b, DIVISORS, OUT).await?,
            Self::Log => real::log(e, scope, &a, lo, hi, OUT).await?,
            Self::Exp | Self::ExpNarrow => real::exp(e, scope, &x, lo, hi, OUT).await?,
            Self::Sigmoid => real::sigmoid(e, scope, &x, OUT).await?,
            Self::Tanh => real::tanh(e, scope, &x, OUT).await?,
            Self::Sqrt => real::sqrt(e, scope, &a, lo, hi, OUT).await?,
            Self::Rsqrt => real::rsqrt(e, scope, &a, lo, hi, OUT).await?,
            Self::Clamp => {
                let y = real::clamp(e, scope, &x, -1.0, 6.0).await?;
                let scale = y.scale();
                return Ok((Some(y.into_integers()), None, scale));
            }
        };
        let scale = y.scale();
        Ok((None, Some(y.into_integers()), scale))
    }
}

type Answer<E> = (Option<<E as Engine>::V<Full>>, Option<<E as Engine>::V<Reduced>>, f64);

/// The sign of x as 1 or -1.
async fn sign<E: Engine>(e: &mut E, scope: &mut Scope, x: &Number<E, Reduced>) -> Result<Number<E, Full>> {
    let below = x.is_negative(e, scope).await?;
    let v = e.scale(below.integers(), -2);
    let v = e.add_public(&v, &[1]);
    Number::new(scope, v, 1.0, 1.0)
}

/// Linear vectoring: y <- 2 (y - sign(y) b), the quotient is the sum of sign 2^-i.
async fn rotate_divide<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    a: &Number<E, Full>,
    b: &Number<E, Full>,
    steps: usize,
) -> Result<Answer<E>> {
    let mut y = a.clone().within(2.0 * b.bound());
    let mut quotient: Option<E::V<Full>> = None;
    for i in 0..steps {
        let small = y.reduce(e, scope)?;
        let s = sign(e, scope, &small).await?;
        let digit = e.scale(s.integers(), 1 << (steps - 1 - i));
        quotient = Some(quotient.map_or_else(|| digit.clone(), |q| e.add(&q, &digit)));
        if i + 1 < steps {
            let part = s.mul(e, scope, b).await?;
            y = y.sub(e, scope, &part)?.times(e, scope, 2)?.within(2.0 * b.bound());
        }
    }
    // Digits of weight 1, 1/2, ...: a quotient below one starts with half of the first.
    Ok((quotient, None, f64::from(1u32 << (steps - 1))))
}

/// i of each hyperbolic rotation: 4 and 13 stand twice, or it would not converge.
fn shifts(steps: usize) -> Vec<i32> {
    let all = (1..40).flat_map(|i| vec![i; if i == 4 || i == 13 { 2 } else { 1 }]);
    all.take(steps).collect()
}

fn turn(i: i32) -> f64 {
    (0.5f64.powi(i)).atanh()
}

/// Back to about `scale` once 2^i more would leave the ring.
async fn settle<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: Number<E, Full>,
    i: i32,
    room: f64,
    scale: f64,
) -> Result<Number<E, Full>> {
    if x.bound() * x.scale() * 2f64.powi(i + 2) < room {
        return Ok(x);
    }
    x.rescale(e, scope, scale).await?.lift(e, scope).await
}

/// Hyperbolic rotation by x / 2^halvings, of which only u = cosh + sinh is kept; then squarings.
async fn rotate_exp<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Reduced>,
    steps: usize,
    halvings: i32,
) -> Result<Answer<E>> {
    let n = x.len(e);
    let shifts = shifts(steps);
    let (room, scale) = (scope.bounds().full as f64, scope.bounds().divisor.min(1 << 20) as f64);
    // The argument about the middle of its range, and finer, so that small turns can be told apart.
    let middle = if halvings > 0 { -f64::midpoint(EXP[0], EXP[1]) } else { 0.0 };
    let shrink = 2f64.powi(halvings);
    let z = x.add_public(e, scope, &[middle])?.finer(e, scope, 1 << (7 - halvings))?;
    let mut z = Number::<E, Reduced>::new(scope, z.into_integers(), SCALE * 128.0, 1.2)?;
    let gain: f64 = shifts.iter().map(|&i| (1.0 - 0.25f64.powi(i)).sqrt()).product();
    let start = (1.0 / gain) * (-middle / shrink).exp();
    let zero = e.gather::<Full>(&[], &vec![sharelens_ops::ZERO; n]);
    let u = e.add_public(&zero, &[(start * scale).round() as i64]);
    let mut u = Number::<E, Full>::new(scope, u, scale, start)?;
    for &i in &shifts {
        let s = sign(e, scope, &z).await?;
        u = settle(e, scope, u, i, room, scale).await?;
        let part = s.mul(e, scope, &u).await?;
        let base = e.scale(u.integers(), 1 << i);
        let v = e.add(&base, part.integers());
        u = Number::new(scope, v, u.scale() * 2f64.powi(i), u.bound() * (1.0 + 0.5f64.powi(i)))?;
        u = u.within(3.5);
        let by = e.scale(s.integers(), (turn(i) * z.scale()).round() as i64);
        let by = e.reduce(&by);
        let v = e.sub(z.integers(), &by);
        z = Number::new(scope, v, z.scale(), 1.2)?;
    }
    let mut largest = 3.5f64;
    for k in 0..halvings {
        let y = u.rescale(e, scope, scale).await?.lift(e, scope).await?;
        largest = (EXP[1] / 2f64.powi(halvings - k)).exp() * 1.02;
        let y = y.within(largest);
        u = y.mul(e, scope, &y).await?;
    }
    let y = u.within((largest * largest).max(3.5)).rescale(e, scope, OUT).await?;
    let scale = y.scale();
    Ok((None, Some(y.into_integers()), scale))
}

/// Hyperbolic vectoring of (w + 1, w - 1): the angles add up to ln(w)/2.
async fn rotate_log<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    w: &Number<E, Full>,
    steps: usize,
) -> Result<Answer<E>> {
    let (room, scale) = (scope.bounds().full as f64, 262_144.0);
    let w = w.clone().within(LOG[1]).finer(e, scope, 32)?;
    let mut x = w.add_public(e, scope, &[1.0])?;
    let mut y = w.add_public(e, scope, &[-1.0])?;
    let out = 2f64.powi(20);
    let mut angle: Option<E::V<Full>> = None;
    for (k, i) in shifts(steps).into_iter().enumerate() {
        // Sign of y, which shrinks as the angles do.
        let small = y.reduce(e, scope)?;
        let s = sign(e, scope, &small).await?;
        let part = e.scale(s.integers(), (2.0 * turn(i) * out).round() as i64);
        angle = Some(angle.map_or_else(|| part.clone(), |a| e.add(&a, &part)));
        if k + 1 == steps {
            break;
        }
        let both = Number::join(e, &[&x, &y])?;
        let twice = Number::join(e, &[&s, &s])?;
        let turned = twice.mul(e, scope, &both).await?;
        let n = s.len(e) as u32;
        let crossed: Vec<u32> = (n..2 * n).chain(0..n).collect();
        let crossed = turned.gather(e, &crossed);
        let base = e.scale(both.integers(), 1 << i);
        let v = e.sub(&base, crossed.integers());
        let finer = both.scale() * 2f64.powi(i);
        let both = Number::new(scope, v, finer, both.bound() * (1.0 + 0.5f64.powi(i)))?;
        // Reducing y needs room in the smaller range too.
        let tight = (scope.bounds().reduced as f64 * 2f64.powi(i)).min(room / 4.0);
        let both = settle(e, scope, both.within(10.0), i + 1, tight, scale).await?;
        let index = |from: u32| (from..from + n).collect::<Vec<u32>>();
        x = both.gather(e, &index(0));
        y = both.gather(e, &index(n)).within(10.0 * 0.5f64.powi(i - 1));
    }
    Ok((angle, None, out))
}

/// Cost per element, and the largest error.
fn measure(moduli: &Moduli, f: Function, way: Way) -> Result<(Cost, f64)> {
    let bounds = Bounds::rns(&moduli.p, &moduli.q).expect("usual moduli");
    let ring = Rns::new(moduli.clone())?;
    let [lo, hi] = f.range();
    let at = Step::layer(1);
    // 8,000 elements, so that planes of bits are whole bytes.
    let n = 8000;
    let mut planner = Planner::<Rns>::new(Rounds::Balanced);
    let lengths = [Length::new(n), Length::new(n)];
    block_on(f.run(way, &mut planner, &mut Scope::new(at, bounds), Length::new(n), lengths))?;
    let cost: Cost = planner.finish().costs(&ring).into_values().sum();

    let place = |i: usize| i as f64 / (POINTS - 1) as f64;
    let divisor = |i: usize| ((DIVISORS[0] + 3.5 * place(i * 7919 % POINTS)) * SCALE).round();
    let integer = |i: usize| {
        let x = (lo + (hi - lo) * place(i)) * SCALE;
        let x = if f == Function::Divide { x / 4.0 * divisor(i) / SCALE } else { x };
        x.round().clamp((lo * SCALE).ceil(), (hi * SCALE).floor())
    };
    let x: Vec<i64> = (0..POINTS).map(|i| integer(i) as i64).collect();
    let b: Vec<i64> = (0..POINTS).map(|i| divisor(i) as i64).collect();
    let mut e = Plain::new(bounds, Arc::default()).with_rounding(Rounding::Random(3));
    let full = [e.input::<Full>(x.clone()), e.input::<Full>(b.clone())];
    let small = e.input::<Reduced>(x.clone());
    let (y_full, y_reduced, scale) = block_on(f.run(way, &mut e, &mut Scope::new(at, bounds), small, full))?;
    let y = match (&y_full, &y_reduced) {
        (Some(y), _) => y.as_slice(),
        (_, Some(y)) => y.as_slice(),
        _ => &[],
    };
    let worst = y.iter().zip(x.iter().zip(&b)).fold(0f64, |worst, (&y, (&x, &b))| {
        let want = f.exact(x as f64 / SCALE, b as f64 / SCALE);
        worst.max(f.error(y as f64 / scale, want))
    });
    Ok((cost, worst))
}

fn row(name: &str, cost: &Cost, error: f64) {
    let each = |v: u64| v as f64 / 8000.0;
    println!(
        "| {name} | {} | {:.1} | {:.1} | {error:.1e} |",
        cost.rounds,
        each(cost.bytes),
        each(cost.dealt)
    );
}

fn main() -> Result<()> {
    let moduli = Moduli::usual(4, 3)?;
    println!(
        "| moduli 4 + 3 | rounds | bytes each way | dealt bytes | largest error |\n|---|---|---|---|---|"
    );
    for f in [Function::Divide, Function::Log, Function::Exp, Function::ExpNarrow] {
        let (ours, error) = measure(&moduli, f, Way::Ours)?;
        row(&format!("{}, ours", f.name()), &ours, error);
        let found = (8..26).find_map(|steps| {
            let (cost, reached) = measure(&moduli, f, Way::Rotation { steps }).ok()?;
            (reached <= error || steps == 25).then_some((steps, cost, reached))
        });
        let Some((steps, cost, reached)) = found else {
            println!("| rotation | no room in the ring |");
            continue;
        };
        row(&format!("rotation, {steps} steps"), &cost, reached);
        println!(
            "| ours / rotation | {:.1} % | {:.1} % | {:.1} % | |",
            100.0 * ours.rounds as f64 / cost.rounds as f64,
            100.0 * ours.bytes as f64 / cost.bytes as f64,
            100.0 * ours.dealt as f64 / cost.dealt as f64
        );
    }
    println!("\n| | rounds | bytes each way | dealt bytes | largest error |\n|---|---|---|---|---|");
    let all = [
        Function::Clamp,
        Function::Sigmoid,
        Function::Tanh,
        Function::Sqrt,
        Function::Rsqrt,
        Function::Exp,
        Function::Log,
        Function::Divide,
    ];
    for (k, l) in [(4, 3), (4, 2)] {
        for f in all {
            let (cost, error) = measure(&Moduli::usual(k, l)?, f, Way::Ours)?;
            row(&format!("{k} + {l}: {}", f.name()), &cost, error);
        }
    }
    Ok(())
}
