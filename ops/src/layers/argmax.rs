//! Index of the largest entry of each row, which stays secret.

use sharelens_protocol::ring::{Full, Reduced};
use sharelens_protocol::{Result, Step};

use super::{Calls, join};
use crate::engine::Engine;

/// The smallest index of a largest entry in each row of `[rows, classes]`, as `[rows]` at scale 1, by a
/// tournament of ceil(log2 classes) levels, each one sign and one product, after one lift. Needs |x| < P/4.
pub async fn argmax<E: Engine>(e: &mut E, at: Step, x: &E::V<Reduced>, classes: usize) -> Result<E::V<Full>> {
    let rows = e.len(x) / classes;
    let mut calls = Calls::new(at);
    let mut value = e.lift(calls.step(), x).await?;
    let zero = e.gather::<Full>(&[], &vec![crate::ZERO; rows * classes]);
    let mut index = e.add_public(&zero, &(0..classes as i64).collect::<Vec<_>>());
    let mut width = classes;
    while width > 1 {
        let pairs = width / 2;
        let pick = |offset: usize| -> Vec<u32> {
            (0..rows * pairs).map(|i| (i / pairs * width + i % pairs * 2 + offset) as u32).collect()
        };
        let (first, second) = (pick(0), pick(1));
        let (va, vb) = (e.gather(&[&value], &first), e.gather(&[&value], &second));
        let (ia, ib) = (e.gather(&[&index], &first), e.gather(&[&index], &second));
        // The later of the two wins only if it is strictly larger; then index and value move by their gaps.
        let rise = e.sub(&vb, &va);
        let ahead = e.sub(&va, &vb);
        let ahead = e.reduce(&ahead);
        let behind = e.is_negative(calls.step(), &ahead).await?;
        let step = e.sub(&ib, &ia);
        let gaps = join(e, &[&step, &rise]);
        let twice = join(e, &[&behind, &behind]);
        let moves = e.mul(calls.step(), &twice, &gaps).await?;
        let half = rows * pairs;
        let [by, up] = [0, half].map(|from| (from as u32..(from + half) as u32).collect::<Vec<_>>());
        let (by, up) = (e.gather(&[&moves], &by), e.gather(&[&moves], &up));
        let (chosen, winner) = (e.add(&ia, &by), e.add(&va, &up));
        // An odd entry out goes to the next level as it is.
        let next = pairs + width % 2;
        let merge: Vec<u32> = (0..rows * next)
            .map(|i| match (i / next, i % next) {
                (row, j) if j < pairs => row * pairs + j,
                (row, _) => rows * pairs + row * width + width - 1,
            })
            .map(|i| i as u32)
            .collect();
        value = e.gather(&[&winner, &value], &merge);
        index = e.gather(&[&chosen, &index], &merge);
        width = next;
    }
    Ok(index)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{numbers, plain, reduced};
    use super::*;
    use futures::executor::block_on;

    #[test]
    fn first_of_the_largest() {
        for classes in 1..12 {
            let mut x = numbers(classes * 9);
            x[..classes].fill(4);
            let out =
                block_on(argmax(&mut plain(), Step::layer(0), &reduced(&x), classes)).expect("in range");
            let expected: Vec<i64> = x
                .chunks_exact(classes)
                .map(|row| {
                    row.iter().position(|v| v == row.iter().max().expect("not empty")).expect("there") as i64
                })
                .collect();
            assert_eq!(out.as_slice(), expected, "{classes} classes");
        }
    }
}
