//! Softmax over rows, and the scores that a detector needs.
//!
//! Functionality  [l], `[rows, classes]`, to softmax(l) of all classes, or of classes 1 and up.
//! Range          differences of two entries of a row below P/2 in integers.
//! Error          absolute 2e-4 plus 3 units of the scale of the result for Q of at least 2^20, 5e-4 plus 3
//!                units otherwise, measured. 1e-4 of it is the clamp of exponentials from below. A score below
//!                `floor` comes out below 1.05 `floor` plus that error, and may otherwise be anything.
//! Cost           two classes: a sigmoid, [`TWO_ROUNDS`]. More: by the largest entry: a tree of ceil(log2 classes) maxima of rows * classes elements in all,
//!                then [`ROUNDS`]; by pairs (up to [`PAIRS`] classes): rows * (classes - 1)^2 exponentials and
//!                rows * (classes - 1) reciprocals, [`PAIR_ROUNDS`] and no tree.
//! Source         softmax(l)_c = e^(l_c - max)/sum; by pairs 1/(1 + sum over c' != c of e^(l_c' - l_c)), where a
//!                clamp from above at ln(1/floor) touches only scores below `floor`.

use sharelens_protocol::ring::Reduced;
use sharelens_protocol::{Error, Result};

use super::{exp, exp_of, lift_all, ln_of, reciprocal, sigmoid};
use crate::engine::Engine;
use crate::number::{Number, Scope};

/// Rounds after the tree of maxima: exponential, lift, reciprocal, lift, product.
pub const ROUNDS: u64 = super::exp::ROUNDS + 1 + super::reciprocal::ROUNDS + 2;

/// Rounds of scores of two classes.
pub const TWO_ROUNDS: u64 = super::piecewise::ROUNDS;

/// Rounds by pairs: exponential, lift, reciprocal.
pub const PAIR_ROUNDS: u64 = super::exp::ROUNDS + 1 + super::reciprocal::ROUNDS;

/// Rounds of one level of the tree.
pub const LEVEL_ROUNDS: u64 = super::SIGN;

/// Most classes for which [`scores`] works by pairs.
pub const PAIRS: usize = 3;

/// What all clamped exponentials of a row may add up to.
const CLAMPED: f64 = 1e-4;

/// softmax of each row of `[rows, classes]` at about `scale`, before it is lifted.
///
/// # Errors
/// [`Error::Config`] for no classes, for another length, or if something has no room in the ring, and as the
/// engine.
pub async fn softmax<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    logits: &Number<E, Reduced>,
    classes: usize,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    by_largest(e, scope, logits, classes, 0, scale).await
}

/// Softmax probabilities of classes 1 and up, `[rows, classes - 1]`, at about `scale`, before they are lifted.
/// Those below `floor` need only stay there.
///
/// # Errors
/// As [`softmax`], and unless 0 < `floor` < 1.
pub async fn scores<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    logits: &Number<E, Reduced>,
    classes: usize,
    floor: f64,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    if !(floor > 0.0 && floor < 1.0) {
        return Err(Error::Config(format!("scores above {floor}")));
    }
    if classes > PAIRS {
        return by_largest(e, scope, logits, classes, 1, scale).await;
    }
    let rows = rows(e, logits, classes)?;
    if classes == 2 {
        let pick = |c: usize| (0..rows).map(|r| (2 * r + c) as u32).collect::<Vec<_>>();
        let (background, object) = (logits.gather(e, &pick(0)), logits.gather(e, &pick(1)));
        let ahead = object.sub(e, scope, &background)?;
        return sigmoid(e, scope, &ahead, scale).await;
    }
    let others = classes - 1;
    let pairs = |pick: fn(usize, usize) -> usize| -> Vec<u32> {
        let of_row = |row: usize| {
            let of_class = move |c: usize| {
                (0..classes).filter(move |&o| o != c).map(move |o| (row * classes + pick(c, o)) as u32)
            };
            (1..classes).flat_map(of_class)
        };
        (0..rows).flat_map(of_row).collect()
    };
    let own = logits.gather(e, &pairs(|c, _| c));
    let other = logits.gather(e, &pairs(|_, o| o));
    let ahead = other.sub(e, scope, &own)?;
    let (lo, hi) = (ln_of(CLAMPED / others as f64), -ln_of(floor) + 0.05);
    let largest = 1.0 + others as f64 * exp_of(hi);
    let odds = exp(e, scope, &ahead, lo, hi, term_scale(scope, largest)).await?;
    let total = sum(e, scope, &odds, others)?.within(largest);
    let total = total.lift(e, scope).await?;
    let total = total.add_public(e, scope, &[1.0])?;
    reciprocal(e, scope, &total, 1.0, largest, scale).await
}

/// By way of the largest entry, for classes `from` and up.
async fn by_largest<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    logits: &Number<E, Reduced>,
    classes: usize,
    from: usize,
    scale: f64,
) -> Result<Number<E, Reduced>> {
    let rows = rows(e, logits, classes)?;
    let largest = row_max(e, scope, logits, classes).await?;
    let repeated = |each: usize| move || (0..rows * each).map(|i| (i / each) as u32).collect();
    let largest = largest.gather_by(e, rows * classes, repeated(classes));
    let behind = logits.sub(e, scope, &largest)?;
    let (lo, most) = (ln_of(CLAMPED / classes as f64), classes as f64 * 1.01);
    let terms = exp(e, scope, &behind, lo, 0.0, term_scale(scope, most)).await?;
    let total = sum(e, scope, &terms, classes)?.within(most);
    let each = classes - from;
    let kept = || (0..rows * classes).filter(|i| i % classes >= from).map(|i| i as u32).collect();
    let kept = terms.gather_by(e, rows * each, kept);
    let [total, kept] = lift_all(e, scope, [&total, &kept]).await?;
    // As fine as the last product allows.
    let fine = (scale * scope.bounds().divisor as f64 / kept.scale()).min(0.4 * scope.bounds().lift as f64);
    let inverse = reciprocal(e, scope, &total, 0.99, most, fine).await?;
    let inverse = inverse.lift(e, scope).await?;
    let inverse = inverse.gather_by(e, rows * each, repeated(each));
    let y = kept.mul(e, scope, &inverse).await?;
    y.rescale(e, scope, scale).await
}

/// The largest entry of each row, by halves.
async fn row_max<E: Engine>(
    e: &mut E,
    scope: &mut Scope,
    x: &Number<E, Reduced>,
    classes: usize,
) -> Result<Number<E, Reduced>> {
    let rows = x.len(e) / classes;
    let (mut value, mut width) = (x.clone(), classes);
    while width > 1 {
        let half = width / 2;
        let part = |e: &mut E, from: usize, to: usize| {
            value.gather_by(e, rows * (to - from), || {
                (0..rows).flat_map(|r| (from..to).map(move |i| (r * width + i) as u32)).collect()
            })
        };
        let (a, b) = (part(e, 0, half), part(e, half, 2 * half));
        let rise = a.sub(e, scope, &b)?;
        let rise = e.relu_reduced(scope.step(), rise.integers()).await?;
        let winner = e.add(b.integers(), &rise);
        let winner = Number::new(scope, winner, x.scale(), x.bound())?;
        // An odd entry out goes to the next level as it is.
        let rest = part(e, 2 * half, width);
        let odd = width % 2;
        let merge = || {
            (0..rows)
                .flat_map(|r| {
                    (0..half + odd).map(move |i| if i < half { r * half + i } else { rows * half + r })
                })
                .map(|i| i as u32)
                .collect()
        };
        value = Number::join(e, &[&winner, &rest])?.gather_by(e, rows * (half + odd), merge);
        width = half + odd;
    }
    Ok(value)
}

/// Sums of runs of `group`.
fn sum<E: Engine>(
    e: &mut E,
    scope: &Scope,
    x: &Number<E, Reduced>,
    group: usize,
) -> Result<Number<E, Reduced>> {
    let groups = x.len(e) / group;
    let pick = |e: &mut E, j: usize| {
        x.gather_by(e, groups, || (0..groups).map(|g| (g * group + j) as u32).collect())
    };
    let mut total = pick(e, 0).into_integers();
    for j in 1..group {
        let next = pick(e, j);
        total = e.add(&total, next.integers());
    }
    Number::new(scope, total, x.scale(), x.bound() * group as f64)
}

/// As fine as exponentials that add up to `largest` can be lifted with, and no finer than they are exact.
fn term_scale(scope: &Scope, largest: f64) -> f64 {
    (scope.bounds().lift as f64 / (4.0 * largest)).min(65_536.0)
}

fn rows<E: Engine>(e: &E, logits: &Number<E, Reduced>, classes: usize) -> Result<usize> {
    let n = logits.len(e);
    if classes < 2 || !n.is_multiple_of(classes) {
        return Err(Error::Config(format!("{n} numbers are not rows of {classes} classes")));
    }
    Ok(n / classes)
}
