//! Multiplication of two shared vectors.
//!
//! Functionality  from [x], [y] in Z_M deliver [x * y], elementwise; reveals nothing.
//! Security       semi-honest; perfect, given ideal triples.
//! Cost           the helper sends `bytes(Full)` per element to server 1; online 1 round and
//!                `2 bytes(Full)` per element each way.
//! Source         Beaver, CRYPTO 1991. Notation: d = x - a, e = y - b, c = a * b,
//!                share_i = c_i + d b_i + e a_i + [i = 0] d e.

use crate::channel::Channel;
use crate::correlation::{Dealer, Kind, Part, Receiver, SecureRing};
use crate::cost::Cost;
use crate::error::Result;
use crate::party::Party;
use crate::prg::{Prg, Purpose};
use crate::ring::{Full, Range, Ring};
use crate::role::Server;
use crate::secret::Secret;
use crate::share::{self, Share};
use crate::step::Step;

/// One multiplication of two vectors of `n` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Demand {
    /// Elements.
    pub n: usize,
}

impl<R: SecureRing> Kind<R> for Demand {
    type Part = Triples<R>;

    fn correction_len(&self, ring: &R) -> usize {
        self.n * ring.bytes(Range::Full)
    }

    fn cost(&self, ring: &R) -> Cost {
        Cost::online(1, 2 * self.n * ring.bytes(Range::Full)).with_dealt(self.correction_len(ring))
    }

    fn deal(&self, dealer: &Dealer<'_, R>, step: Step) -> Result<Vec<u8>> {
        let Dealer { ring, prgs, .. } = dealer;
        let [mut a, mut b] = factors(*ring, self.n, prgs[0], step);
        let [a1, b1] = factors(*ring, self.n, prgs[1], step);
        ring.add(Range::Full, &mut a, &a1);
        ring.add(Range::Full, &mut b, &b1);
        ring.mul(Range::Full, &mut a, &b);
        ring.sub(Range::Full, &mut a, &dealt(*ring, self.n, prgs[0], step));
        Ok(share::into_bytes(a))
    }

    fn expand(&self, server: &Receiver<'_, R>, step: Step, correction: Secret<u8>) -> Result<Triples<R>> {
        let &Receiver { ring, role, prg, .. } = server;
        let [a, b] = factors(ring, self.n, prg, step);
        let c = match role {
            Server::Server0 => dealt(ring, self.n, prg, step),
            Server::Server1 => share::from_message(ring, Range::Full, step, correction)?,
        };
        Ok(Triples { a, b, c })
    }
}

/// `n` random triples c = a * b, good for one multiplication of length `n`.
pub struct Triples<R: Ring> {
    a: Secret<R::Word>,
    b: Secret<R::Word>,
    c: Secret<R::Word>,
}

impl<R: SecureRing> Part for Triples<R> {
    fn bytes(&self) -> usize {
        3 * size_of_val(&*self.a)
    }
}

#[cfg(test)]
impl<R: Ring> Triples<R> {
    /// Whether the random parts agree.
    pub fn same_masks(&self, other: &Self) -> bool {
        *self.a == *other.a && *self.b == *other.b
    }
}

fn factors<R: Ring>(ring: &R, n: usize, prg: &Prg, step: Step) -> [Secret<R::Word>; 2] {
    [Purpose::MulLeft, Purpose::MulRight].map(|p| ring.uniform(Range::Full, prg.at(step, p), n))
}

/// Server 0's share of c.
fn dealt<R: Ring>(ring: &R, n: usize, prg: &Prg, step: Step) -> Secret<R::Word> {
    ring.uniform(Range::Full, prg.at(step, Purpose::MulProduct), n)
}

/// `x * y`.
///
/// # Errors
/// As [`Party::open`].
pub async fn mul<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Full>,
    y: &Share<R, Full>,
    triples: Triples<R>,
) -> Result<Share<R, Full>> {
    let (ring, n, planes) = (party.ring, x.len(party.ring), party.ring.planes(Range::Full));
    let (mut d, mut e) = (Secret::copied(x.words()), Secret::copied(y.words()));
    ring.sub(Range::Full, &mut d, &triples.a);
    ring.sub(Range::Full, &mut e, &triples.b);
    // Both in one message, which is a vector of 2n elements.
    let both = (0..planes)
        .flat_map(|p| [&d[p * n..(p + 1) * n], &e[p * n..(p + 1) * n]])
        .flatten()
        .copied()
        .collect::<Vec<_>>();
    let opened = party.open(step, Range::Full, both).await?;
    let half = |i: usize| -> Vec<R::Word> {
        (0..planes).flat_map(|p| &opened[(2 * p + i) * n..(2 * p + i + 1) * n]).copied().collect()
    };
    let (d, e) = (half(0), half(1));
    let Triples { mut a, mut b, mut c } = triples;
    if party.role.is_first() {
        ring.add(Range::Full, &mut b, &e);
    }
    ring.mul(Range::Full, &mut b, &d);
    ring.mul(Range::Full, &mut a, &e);
    ring.add(Range::Full, &mut c, &a);
    ring.add(Range::Full, &mut c, &b);
    Ok(Share::new(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlation::Ideal;
    use crate::testing::{AT, numbers, prgs, rings, run, shares, shift};

    fn triples<R: SecureRing>(ring: &R, n: usize, seed: u8) -> [Triples<R>; 2] {
        let prgs = prgs(seed);
        Ideal::new(ring, [&prgs[0], &prgs[1]]).both(AT, &Demand { n }).unwrap().0
    }

    fn check<R: SecureRing>(ring: &R) {
        for n in [1, 5, 300] {
            let bound = f64::sqrt(ring.bound(Range::Full) as f64) as i64 - 1;
            let (x, y) = (numbers(1, n, bound), numbers(2, n, bound));
            let [x0, x1] = shares::<R, Full>(ring, 3, &x);
            let [y0, y1] = shares::<R, Full>(ring, 4, &y);
            let [t0, t1] = triples(ring, n, 9);
            let out =
                run(ring, [(x0, y0, t0), (x1, y1, t1)], async |p, (x, y, t)| mul(p, AT, &x, &y, t).await)
                    .unwrap();
            out.assert_priced(Demand { n }.cost(ring));
            let want: Vec<i64> = x.iter().zip(&y).map(|(x, y)| x * y).collect();
            assert_eq!(out.join(ring), want);
        }
    }

    #[test]
    fn correct_and_priced() {
        rings(check, check);
    }

    #[test]
    fn simulatable() {
        // Shifting x at server 1 and its mask alike changes no byte of server 0's view.
        fn check<R: SecureRing>(ring: &R) {
            let n = 50;
            let (y, delta) = (numbers(2, n, 1000), numbers(5, n, 1000));
            let view = |shifted: bool| {
                let [x0, x1] = shares::<R, Full>(ring, 3, &numbers(1, n, 1000));
                let [y0, y1] = shares::<R, Full>(ring, 4, &y);
                let [t0, mut t1] = triples(ring, n, 9);
                let mut x1 = x1.into_words();
                if shifted {
                    shift(ring, Range::Full, &mut x1, &delta);
                    shift(ring, Range::Full, &mut t1.a, &delta);
                }
                let inputs = [(x0, y0, t0), (Share::new(x1), y1, t1)];
                run(ring, inputs, async |p, (x, y, t)| mul(p, AT, &x, &y, t).await).unwrap().views
            };
            assert_eq!(view(false)[0], view(true)[0]);
        }
        rings(check, check);
    }
}
