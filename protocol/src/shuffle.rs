//! A shared list in an order that nobody knows.
//!
//! Functionality  from [x], `rows` rows, deliver a fresh [pi(x)] for a uniformly random permutation pi of the
//!                rows; reveals nothing, neither x nor pi.
//! Security       semi-honest, perfect given ideal permutations and masks: each message is covered by a uniform
//!                mask, and each server knows one of the two permutations that pi is made of.
//! Cost           the helper sends `2 bytes(range)` per element to server 1; online 2 rounds, `bytes(range)` per
//!                element each way: server 1 sends in the first, server 0 in the second.
//! Source         permute and share of Chase, Ghosh, Poburinnaya, ASIACRYPT 2020, once for each server, with
//!                its shares of the translation dealt by the helper instead of drawn from a punctured PRF.
//!
//! For pi_p, known to server p alone, the other server q holds a and b, and p holds Delta = pi_p(a) - b. q sends
//! x_q - a; p takes pi_p(x_p + x_q - a) + Delta = pi_p(x) - b for its share, q takes b. pi_0 goes first.
//!
//! A server applies its own permutation by reading memory in that order.

use crate::buffer;
use crate::channel::Channel;
use crate::correlation::{Dealer, Kind, Part, Receiver, SecureRing};
use crate::cost::Cost;
use crate::error::{Error, Result};
use crate::party::Party;
use crate::prg::{Prg, Purpose, Stream};
use crate::ring::{Domain, Range, Ring, par};
use crate::role::Server;
use crate::secret::Secret;
use crate::share::{self, Share};
use crate::step::Step;

/// A list to be shuffled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Demand {
    /// Rows, whose order is shuffled.
    pub rows: usize,
    /// Elements of a row.
    pub columns: usize,
    /// Their domain.
    pub range: Range,
}

impl Demand {
    /// Elements of the list.
    pub const fn len(&self) -> usize {
        self.rows * self.columns
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn message_len<R: Ring>(&self, ring: &R) -> usize {
        self.len() * ring.bytes(self.range)
    }

    fn draw<R: Ring>(&self, ring: &R, prg: &Prg, step: Step, purpose: Purpose) -> Secret<R::Word> {
        ring.uniform(self.range, prg.at(step, purpose), self.len())
    }

    fn own<R: Ring>(&self, ring: &R, prg: &Prg, step: Step) -> Own<R> {
        Own {
            order: permute(self.rows, &mut prg.stream(step, Purpose::ShuffleOrder, 0, 0)),
            mask: self.draw(ring, prg, step, Purpose::ShuffleMask),
        }
    }

    /// The rows of `x` in another order: row `i` of the result is row `order[i]`.
    fn permuted<R: Ring>(&self, ring: &R, order: &[u32], x: &[R::Word]) -> Secret<R::Word> {
        let n = self.len().max(1);
        let mut out = Secret::zeroed(x.len());
        debug_assert_eq!(x.len(), ring.planes(self.range) * self.len());
        par::each(n, out.chunks_exact_mut(n).zip(x.chunks_exact(n)), |(out, x)| {
            for (out, &row) in out.chunks_exact_mut(self.columns).zip(order) {
                out.copy_from_slice(&x[row as usize * self.columns..][..self.columns]);
            }
        });
        out
    }

    /// What server 1 must hold so that it and what server 0 expands from `prg` fit orders and masks.
    fn correct<R: SecureRing>(
        &self,
        ring: &R,
        [first, second]: [Own<R>; 2],
        prg: &Prg,
        step: Step,
    ) -> Vec<u8> {
        // b = pi_0(a) - Delta, then Delta' = pi_1(a') - b'.
        let parts = [
            (&first.order, &second.mask, Purpose::ShuffleFirst),
            (&second.order, &first.mask, Purpose::ShuffleSecond),
        ];
        let mut out = buffer::with_capacity(self.correction_len(ring));
        for (order, mask, purpose) in parts {
            let mut part = self.permuted(ring, order, mask);
            ring.sub(self.range, &mut part, &self.draw(ring, prg, step, purpose));
            out.extend_from_slice(bytemuck::cast_slice(&part));
        }
        out
    }
}

impl<R: SecureRing> Kind<R> for Demand {
    type Part = Correlation<R>;

    fn correction_len(&self, ring: &R) -> usize {
        2 * self.message_len(ring)
    }

    fn cost(&self, ring: &R) -> Cost {
        Cost::there_and_back(self.message_len(ring)).with_dealt(self.correction_len(ring))
    }

    fn deal(&self, dealer: &Dealer<'_, R>, step: Step) -> Result<Vec<u8>> {
        let &Dealer { ring, prgs, .. } = dealer;
        Ok(self.correct(ring, prgs.map(|prg| self.own(ring, prg, step)), prgs[0], step))
    }

    fn expand(&self, server: &Receiver<'_, R>, step: Step, correction: Secret<u8>) -> Result<Correlation<R>> {
        let &Receiver { ring, role, prg, .. } = server;
        let own = self.own(ring, prg, step);
        let [first, second] = match role {
            Server::Server0 => [Purpose::ShuffleFirst, Purpose::ShuffleSecond]
                .map(|purpose| self.draw(ring, prg, step, purpose)),
            Server::Server1 => {
                let (first, second) = correction.split_at(correction.len() / 2);
                let read = |part| share::from_bytes(ring, self.range, step, part);
                [read(first)?, read(second)?]
            }
        };
        Ok(Correlation { demand: *self, own, first, second })
    }
}

/// What a server draws alone.
struct Own<R: Ring> {
    /// Its permutation: where row `i` comes from.
    order: Secret<u32>,
    /// a, or a'.
    mask: Secret<R::Word>,
}

/// One server's correlation for one shuffle.
pub struct Correlation<R: Ring> {
    demand: Demand,
    own: Own<R>,
    /// Delta at server 0, b at server 1.
    first: Secret<R::Word>,
    /// b' at server 0, Delta' at server 1.
    second: Secret<R::Word>,
}

impl<R: SecureRing> Part for Correlation<R> {
    fn bytes(&self) -> usize {
        size_of_val(&*self.own.order) + 3 * size_of_val(&*self.first)
    }
}

/// `n` numbers below `n` in a uniformly random order: Fisher and Yates.
fn permute(n: usize, stream: &mut Stream<'_>) -> Secret<u32> {
    let n = u32::try_from(n).expect("vectors are shorter than 2^31");
    let mut order = Secret::new((0..n).collect::<Vec<u32>>());
    let mut draw = Below { stream, words: Secret::zeroed(0), used: 0 };
    for last in (1..n).rev() {
        order.swap(last as usize, draw.at_most(last) as usize);
    }
    order
}

/// A server's own permutation, for tests of what it sees.
#[cfg(test)]
pub fn own_order(n: usize, prg: &Prg, step: Step) -> Secret<u32> {
    permute(n, &mut prg.stream(step, Purpose::ShuffleOrder, 0, 0))
}

/// Uniform numbers by rejection.
struct Below<'a, 'b> {
    stream: &'a mut Stream<'b>,
    words: Secret<u64>,
    used: usize,
}

impl Below<'_, '_> {
    /// Uniform in `0..=most`, which is not 0: as many bits as `most` has, drawn again when they exceed it. How often says
    /// nothing about the number that is kept.
    fn at_most(&mut self, most: u32) -> u32 {
        let mask = u32::MAX >> most.leading_zeros();
        loop {
            if self.used == self.words.len() {
                self.words = self.stream.words(128).into();
                self.used = 0;
            }
            let number = self.words[self.used] as u32 & mask;
            self.used += 1;
            if number <= most {
                return number;
            }
        }
    }
}

/// The rows of `x` in an order that nobody knows.
///
/// # Errors
/// As [`Party::take`], and if the peer's words are not canonical.
pub async fn shuffle<R: Ring, C: Channel, D: Domain>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: Share<R, D>,
    correlation: Correlation<R>,
) -> Result<Share<R, D>> {
    let Correlation { demand, own, first, second } = correlation;
    debug_assert_eq!((demand.range, demand.len()), (D::RANGE, x.len(party.ring)));
    Ok(if party.role.is_first() {
        let x = permute_shared(party, step, &demand, x.into_words(), &own.order, &first).await?;
        give_masked(party, step.message(1), &demand, x, &own.mask).await?;
        Share::new(second)
    } else {
        give_masked(party, step, &demand, x.into_words(), &own.mask).await?;
        Share::new(permute_shared(party, step.message(1), &demand, first, &own.order, &second).await?)
    })
}

/// Sends `x - mask`, for the peer to permute.
async fn give_masked<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    demand: &Demand,
    mut x: Secret<R::Word>,
    mask: &[R::Word],
) -> Result<()> {
    party.ring.sub(demand.range, &mut x, mask);
    party.give(step, share::into_bytes(x)).await
}

/// This server's share of its own permutation of [x]: `order(x_p + x_q - a) + delta`.
async fn permute_shared<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    demand: &Demand,
    mut x: Secret<R::Word>,
    order: &[u32],
    delta: &[R::Word],
) -> Result<Secret<R::Word>> {
    let ring = party.ring;
    let received = party.take(step, demand.message_len(ring)).await?;
    ring.add(demand.range, &mut x, &share::from_message(ring, demand.range, step, received)?);
    let mut out = demand.permuted(ring, order, &x);
    ring.add(demand.range, &mut out, delta);
    Ok(out)
}

/// Checks that opened places are a permutation.
///
/// # Errors
/// [`Error::Peer`] if they are none.
pub fn permutation(step: Step, places: &[i64]) -> Result<Vec<u32>> {
    let mut seen = vec![false; places.len()];
    let place = |&p: &i64| {
        let slot = usize::try_from(p).ok().and_then(|p| seen.get_mut(p));
        (!std::mem::replace(slot?, true)).then_some(p as u32)
    };
    let places: Option<Vec<u32>> = places.iter().map(place).collect();
    places.ok_or_else(|| Error::Peer { step, expected: "a permutation".into(), found: "none".into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlation::Ideal;
    use crate::prg::Seed;
    use crate::ring::{Full, Moduli, Reduced, Rns, Z64};
    use crate::testing::{AT, Run, numbers, prgs, rings, run, shares, shift};

    /// Both correlations, after `adjust` has seen what the servers draw.
    fn correlations<R: SecureRing>(
        ring: &R,
        demand: Demand,
        seed: u8,
        adjust: impl Fn(&mut [Own<R>; 2]),
    ) -> [Correlation<R>; 2] {
        let prgs = prgs(seed);
        let draw = || {
            let mut own = [0, 1].map(|i| demand.own(ring, &prgs[i], AT));
            adjust(&mut own);
            own
        };
        let correction = demand.correct(ring, draw(), &prgs[0], AT);
        assert_eq!(correction.len(), demand.correction_len(ring));
        let [own0, own1] = draw();
        let [zero, one] = Server::BOTH.map(|role| Receiver::new(ring, role, &prgs[role.index()]));
        let c0 = zero.receive(AT, &demand, vec![]).unwrap();
        let c1 = one.receive(AT, &demand, correction).unwrap();
        [Correlation { own: own0, ..c0 }, Correlation { own: own1, ..c1 }]
    }

    fn go<R: SecureRing, D: Domain>(
        ring: &R,
        x: [Share<R, D>; 2],
        correlations: [Correlation<R>; 2],
    ) -> Run<Share<R, D>> {
        let ([x0, x1], [c0, c1]) = (x, correlations);
        run(ring, [(x0, c0), (x1, c1)], async |p, (x, c)| shuffle(p, AT, x, c).await).unwrap()
    }

    fn check<R: SecureRing, D: Domain>(ring: &R) {
        for (rows, columns) in [(1, 3), (2, 1), (7, 5), (300, 1), (40, 33)] {
            let demand = Demand { rows, columns, range: D::RANGE };
            let x = numbers(1, demand.len(), ring.bound(D::RANGE));
            let [c0, c1] = correlations(ring, demand, 7, |_| ());
            let orders = [&c0, &c1].map(|c| c.own.order.clone());
            let out = go::<R, D>(ring, shares(ring, 3, &x), [c0, c1]);
            out.assert_priced(demand.cost(ring));
            let want: Vec<i64> = orders[1]
                .iter()
                .flat_map(|&i| {
                    let from = orders[0][i as usize] as usize * columns;
                    x[from..from + columns].to_vec()
                })
                .collect();
            assert_eq!(out.join(ring), want, "{rows} rows of {columns}");
        }
    }

    #[test]
    fn correct_and_priced() {
        rings(check::<_, Full>, check::<_, Full>);
        rings(check::<_, Reduced>, check::<_, Reduced>);
    }

    #[test]
    fn simulatable() {
        // Moving x and what masks it alike changes no byte that the other server receives.
        fn check<R: SecureRing>(ring: &R) {
            let demand = Demand { rows: 20, columns: 3, range: Range::Full };
            let (x, by) = (numbers(1, demand.len(), 999), numbers(5, demand.len(), 999));
            // Server 0 receives x_1 - a.
            let view = |moved: bool| {
                let [x0, mut x1] = shares::<R, Full>(ring, 3, &x);
                let c = correlations(ring, demand, 7, |own| {
                    if moved {
                        shift(ring, Range::Full, &mut own[1].mask, &by);
                    }
                });
                if moved {
                    ring.add(Range::Full, x1.words_mut(), &ring.encode(Range::Full, &by));
                }
                let out = go(ring, [x0, x1], c);
                (out.views[0].clone(), out.join(ring))
            };
            let (still, moved) = (view(false), view(true));
            assert_eq!(still.0, moved.0);
            assert_ne!(still.1, moved.1, "another list");
            // Server 1 receives pi_0(x - a) + Delta - a'.
            let view = |moved: bool| {
                let [mut x0, x1] = shares::<R, Full>(ring, 3, &x);
                let c = correlations(ring, demand, 7, |own| {
                    if moved {
                        let by = demand.permuted(ring, &own[0].order, &ring.encode(Range::Full, &by));
                        ring.add(Range::Full, &mut own[0].mask, &by);
                    }
                });
                if moved {
                    ring.add(Range::Full, x0.words_mut(), &ring.encode(Range::Full, &by));
                }
                let out = go(ring, [x0, x1], c);
                (out.views[1].clone(), out.join(ring))
            };
            let (still, moved) = (view(false), view(true));
            assert_eq!(still.0, moved.0);
            assert_ne!(still.1, moved.1, "another list");
        }
        rings(check, check);
    }

    #[test]
    fn orders_of_the_other_server_do_not_show() {
        // Another permutation at one server, and masks to match: the other receives the same bytes, from the
        // helper, too, and still the list comes out in another order.
        fn check<R: SecureRing>(ring: &R) {
            let demand = Demand { rows: 20, columns: 2, range: Range::Reduced };
            let x = numbers(1, demand.len(), 999);
            let reversed: Vec<u32> = (0..20).rev().collect();
            // pi_0: server 1 sees pi_0(x - a) + Delta - a' and b = pi_0(a) - Delta.
            let swap = |c0: &mut Correlation<R>, c1: &Correlation<R>| {
                let [x0, x1] = shares::<R, Reduced>(ring, 3, &x);
                let mut masked = x1.into_words();
                ring.sub(Range::Reduced, &mut masked, &c1.own.mask);
                ring.add(Range::Reduced, &mut masked, x0.words());
                let other = Secret::new(reversed.clone());
                let change = |v: &[R::Word]| {
                    let mut change = demand.permuted(ring, &other, v);
                    ring.sub(Range::Reduced, &mut change, &demand.permuted(ring, &c0.own.order, v));
                    change
                };
                let (by_mask, mut by_list) = (change(&c1.own.mask), change(&masked));
                // Delta, so that b stays; a', so that the message stays; b', so that Delta' stays.
                ring.add(Range::Reduced, &mut c0.first, &by_mask);
                ring.add(Range::Reduced, &mut by_list, &by_mask);
                ring.add(Range::Reduced, &mut c0.own.mask, &by_list);
                ring.add(Range::Reduced, &mut c0.second, &demand.permuted(ring, &c1.own.order, &by_list));
                c0.own.order = other;
            };
            // All that server 1 holds stays as it is.
            let view = |other: bool| {
                let [mut c0, c1] = correlations(ring, demand, 7, |_| ());
                if other {
                    swap(&mut c0, &c1);
                }
                let out = go(ring, shares::<R, Reduced>(ring, 3, &x), [c0, c1]);
                let order = |list: Vec<i64>| -> Vec<usize> {
                    list.iter().map(|v| x.iter().position(|x| x == v).expect("one of the list")).collect()
                };
                (out.views[1].clone(), order(out.join(ring)))
            };
            assert_eq!(view(false).0, view(true).0);
            assert_ne!(view(false).1, view(true).1);
            // pi_1 never leaves server 1: what server 0 receives does not depend on it.
            let view = |other: bool| {
                let c = correlations(ring, demand, 7, |own| {
                    if other {
                        own[1].order = Secret::new(reversed.clone());
                    }
                });
                let out = go(ring, shares::<R, Reduced>(ring, 3, &x), c);
                (out.views[0].clone(), out.join(ring))
            };
            assert_eq!(view(false).0, view(true).0);
            assert_ne!(view(false).1, view(true).1);
        }
        rings(check, check);
    }

    /// Chi-square of how often each of the 24 orders of four rows occurs. Above 64 in one of 100,000 tries.
    fn chi_square(orders: impl Iterator<Item = Vec<u32>>) -> f64 {
        let mut counts = std::collections::BTreeMap::<Vec<u32>, f64>::new();
        let mut total = 0.0;
        for order in orders {
            *counts.entry(order).or_default() += 1.0;
            total += 1.0;
        }
        assert!(counts.len() <= 24);
        let due = total / 24.0;
        (24 - counts.len()) as f64 * due + counts.values().map(|c| (c - due) * (c - due) / due).sum::<f64>()
    }

    #[test]
    fn every_order_is_as_likely() {
        let ring = Z64::new();
        let demand = Demand { rows: 4, columns: 1, range: Range::Reduced };
        let shuffled = |prgs: [&Prg; 2]| {
            let (both, _) = Ideal::new(&ring, prgs).both(AT, &demand).unwrap();
            let out = go(&ring, shares::<_, Reduced>(&ring, 3, &[0, 1, 2, 3]), both);
            out.join(&ring).into_iter().map(|v| v as u32).collect()
        };
        let prg = |i: u32| Seed::from_bytes([9; 32]).prg(&i.to_le_bytes());
        let (tries, fixed) = (4_800, prg(u32::MAX));
        // Of both together, and of each alone while the other's seed stays: neither decides the order.
        assert!(chi_square((0..tries).map(|i| shuffled([&prg(2 * i), &prg(2 * i + 1)]))) < 64.0);
        assert!(chi_square((0..tries).map(|i| shuffled([&fixed, &prg(i)]))) < 64.0);
        assert!(chi_square((0..tries).map(|i| shuffled([&prg(i), &fixed]))) < 64.0);
        // The statistic would notice: the same seeds again and again, or a shuffle of the first three.
        assert!(chi_square((0..100).map(|_| shuffled([&fixed, &fixed]))) > 64.0);
    }

    #[test]
    fn numbers_are_drawn_evenly() {
        let prg = Seed::from_bytes([9; 32]).prg(b"below");
        let mut stream = prg.stream(AT, Purpose::Test, 0, 0);
        let mut draw = Below { stream: &mut stream, words: Secret::zeroed(0), used: 0 };
        for most in [1, 2, 4, 5, 6] {
            let mut counts = vec![0.0f64; most as usize + 1];
            (0..10_000).for_each(|_| counts[draw.at_most(most) as usize] += 1.0);
            let due = 10_000.0 / counts.len() as f64;
            let chi: f64 = counts.iter().map(|c| (c - due).powi(2) / due).sum();
            assert!(chi < 40.0, "{counts:?}");
        }
    }

    #[test]
    fn malformed_messages_are_refused() {
        let ring = Rns::new(Moduli::usual(2, 1).unwrap()).unwrap();
        let demand = Demand { rows: 3, columns: 2, range: Range::Reduced };
        let bad = vec![255; demand.correction_len(&ring)];
        let got = Receiver::new(&ring, Server::Server1, &prgs(1)[1]).receive(AT, &demand, bad);
        assert!(matches!(got.err(), Some(Error::Peer { .. })));
        // A peer that sends bytes which are no residues, or too few: 255 is none modulo 255.
        for message in [vec![255; 12], vec![0; 11], vec![0; 13]] {
            let [x0, x1] = shares::<_, Reduced>(&ring, 3, &[1; 6]);
            let [c0, _] = correlations(&ring, demand, 7, |_| ());
            let out = run(&ring, [(x0, Some(c0)), (x1, None)], async |p, (x, c)| match c {
                Some(c) => shuffle(p, AT, x, c).await.map(|_| ()),
                None => p.give(AT, message.clone()).await,
            });
            assert!(matches!(out.err(), Some(Error::Peer { .. })), "{message:?}");
        }
    }

    #[test]
    fn what_is_no_permutation_is_refused() {
        assert_eq!(permutation(AT, &[2, 0, 1]), Ok(vec![2, 0, 1]));
        assert_eq!(permutation(AT, &[]), Ok(vec![]));
        for bad in [&[0, 0][..], &[1, 2], &[-1, 0], &[0, i64::MAX], &[i64::MIN]] {
            assert!(matches!(permutation(AT, bad), Err(Error::Peer { .. })), "{bad:?}");
        }
    }
}
