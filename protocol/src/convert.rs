//! Lift (Z_P to Z_M) and truncation (Z_2^64): one opening, no comparison.
//!
//! Functionality  residue number system: from [x] mod P, |x| < P/4, deliver [x] mod M.
//!                Z_2^64: from [x], |x| < 2^62, deliver [x / 2^16] with an error in (-1, 1).
//!                Reveals nothing.
//! Security       semi-honest; perfect given ideal masks: z is masked by a uniform r.
//! Cost           1 round, `bytes(Reduced)` per element each way. Dealt per element: `2 l` bytes for l moduli
//!                of Q, or 16 bytes in Z_2^64.
//! Source         the wrap of a bounded masked number as in Escudero et al., CRYPTO 2020, section 5, with the
//!                dealer knowing the mask. Notation: y = x + offset in the lower half of the range,
//!                z = y + r; then y = z - r + wrap * range with wrap = [r in upper half][z in lower half],
//!                which is linear in the dealt bit [r in upper half].
//!
//! In the residue number system rescaling needs no protocol at all: see [`Rns::rescale`].

use crate::buffer;
use crate::channel::Channel;
use crate::correlation::{Dealer, Kind, Part, Receiver, SecureRing};
use crate::cost::Cost;
use crate::error::Result;
use crate::party::Party;
use crate::prg::{Prg, Purpose};
use crate::ring::kernel::{self, Bend};
use crate::ring::{Full, Range, Reduced, Ring, Rns, Z64, par, z64};
use crate::role::Server;
use crate::secret::Secret;
use crate::share::{self, Share};
use crate::step::Step;

/// Which conversion of a ring takes a round; the other one is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interactive {
    /// `Reduced` to `Full`.
    Lift,
    /// Division by the ring's divisor.
    Rescale,
}

/// A ring with its conversions between domains.
pub trait ConvertRing: Ring {
    /// The conversion that takes a round.
    const INTERACTIVE: Interactive;

    /// The conversion that is free: one server's share of the result.
    fn convert_locally(&self, role: Server, x: &[Self::Word]) -> Secret<Self::Word>;

    /// The number added before masking, so that what is masked is not negative.
    fn offset(&self) -> i64;

    /// The planes in which the helper deals two numbers each: one from r, and [r in upper half].
    fn dealt_planes(&self) -> std::ops::Range<usize>;

    /// The two numbers for one plane, from the mask r.
    fn dealt(&self, plane: usize, r: &[Self::Word]) -> [Secret<Self::Word>; 2];

    /// The share of the result, from the share of x, the opened z and the dealt shares (for each plane the
    /// number, then the bit).
    fn finish(
        &self,
        role: Server,
        x: &[Self::Word],
        z: &[Self::Word],
        dealt: &[Self::Word],
    ) -> Secret<Self::Word>;
}

/// One conversion of `n` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Demand {
    /// Elements.
    pub n: usize,
}

impl<R: SecureRing> Kind<R> for Demand {
    type Part = Mask<R>;

    fn correction_len(&self, ring: &R) -> usize {
        2 * ring.dealt_planes().len() * size_of::<R::Word>() * self.n
    }

    fn cost(&self, ring: &R) -> Cost {
        Cost::online(1, self.n * ring.bytes(Range::Reduced)).with_dealt(self.correction_len(ring))
    }

    fn deal(&self, dealer: &Dealer<'_, R>, step: Step) -> Result<Vec<u8>> {
        let &Dealer { ring, prgs, .. } = dealer;
        let [mut r, other] = prgs.map(|prg| draw(ring, self.n, prg, step));
        ring.add(Range::Reduced, &mut r, &other);
        Ok(correct(ring, &r, prgs[0], step))
    }

    fn expand(&self, server: &Receiver<'_, R>, step: Step, correction: Secret<u8>) -> Result<Mask<R>> {
        let (&Receiver { ring, role, prg, .. }, n) = (server, self.n);
        let dealt = match role {
            Server::Server0 => expand(ring, n, prg, step),
            Server::Server1 => {
                let words: Secret<R::Word> = Secret::read(&correction);
                let mut planes = ring.dealt_planes().flat_map(|p| [p, p]).zip(words.chunks_exact(n.max(1)));
                if !planes.all(|(plane, w)| ring.is_canonical_plane(plane, w)) {
                    return Err(share::not_canonical(step));
                }
                words
            }
        };
        Ok(Mask { r: draw(ring, n, prg, step), dealt })
    }
}

/// One server's correlation.
pub struct Mask<R: Ring> {
    r: Secret<R::Word>,
    dealt: Secret<R::Word>,
}

impl<R: SecureRing> Part for Mask<R> {
    fn bytes(&self) -> usize {
        size_of_val(&*self.r) + size_of_val(&*self.dealt)
    }
}

fn draw<R: Ring>(ring: &R, n: usize, prg: &Prg, step: Step) -> Secret<R::Word> {
    ring.uniform(Range::Reduced, prg.at(step, Purpose::ConvertMask), n)
}

fn expand<R: ConvertRing>(ring: &R, n: usize, prg: &Prg, step: Step) -> Secret<R::Word> {
    let mut out = Secret::zeroed(2 * ring.dealt_planes().len() * n);
    let rows = ring.dealt_planes().flat_map(|p| [(p, 2 * p), (p, 2 * p + 1)]);
    par::each(n, rows.zip(out.chunks_exact_mut(n.max(1))), |((plane, lane), out)| {
        ring.uniform_plane(plane, lane, prg.at(step, Purpose::ConvertDerived), out);
    });
    out
}

/// What server 1 must hold so that its shares and those server 0 expands from `prg` fit the mask `r`.
fn correct<R: SecureRing>(ring: &R, r: &[R::Word], prg: &Prg, step: Step) -> Vec<u8> {
    let n = r.len() / ring.planes(Range::Reduced);
    let own = expand(ring, n, prg, step);
    let rows = ring.dealt_planes().flat_map(|p| ring.dealt(p, r).map(|row| (p, row)));
    let mut out = buffer::with_capacity(Demand { n }.correction_len(ring));
    for ((plane, mut row), own) in rows.zip(own.chunks_exact(n.max(1))) {
        ring.sub_plane(plane, &mut row, own);
        out.extend_from_slice(bytemuck::cast_slice(&row));
    }
    out
}

async fn convert<R: ConvertRing, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &[R::Word],
    mask: Mask<R>,
) -> Result<Secret<R::Word>> {
    let ring = party.ring;
    let mut masked = Secret::copied(x);
    ring.add(Range::Reduced, &mut masked, &mask.r);
    if party.role.is_first() {
        let n = masked.len() / ring.planes(Range::Reduced);
        let offset = ring.encode(Range::Reduced, &[ring.offset()]);
        let offset: Vec<_> = offset.iter().flat_map(|o| std::iter::repeat_n(*o, n)).collect();
        ring.add(Range::Reduced, &mut masked, &offset);
    }
    let z = party.open(step, Range::Reduced, masked).await?;
    Ok(ring.finish(party.role, x, &z, &mask.dealt))
}

/// The same numbers in `Full`. `mask` is needed by rings whose [`ConvertRing::INTERACTIVE`] is the lift.
///
/// # Errors
/// As [`Channel`].
pub async fn lift<R: ConvertRing, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Reduced>,
    mask: Option<Mask<R>>,
) -> Result<Share<R, Full>> {
    Ok(Share::new(match mask {
        Some(mask) => convert(party, step, x.words(), mask).await?,
        None => party.ring.convert_locally(party.role, x.words()),
    }))
}

/// `x / divisor`, rounded up or down at random. `mask` is needed by rings whose [`ConvertRing::INTERACTIVE`] is
/// the rescale.
///
/// Functionality: the result is floor(x / divisor) or one more, depending on the shares; each server knows its
/// own part of the coin, the client none.
///
/// # Errors
/// As [`Channel`].
pub async fn rescale<R: ConvertRing, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Full>,
    mask: Option<Mask<R>>,
) -> Result<Share<R, Reduced>> {
    Ok(Share::new(match mask {
        Some(mask) => convert(party, step, x.words(), mask).await?,
        None => party.ring.convert_locally(party.role, x.words()),
    }))
}

impl ConvertRing for Rns {
    const INTERACTIVE: Interactive = Interactive::Lift;

    fn convert_locally(&self, role: Server, x: &[u8]) -> Secret<u8> {
        self.rescale(role.is_first(), x)
    }

    fn offset(&self) -> i64 {
        (self.big_p() / 4) as i64
    }

    fn dealt_planes(&self) -> std::ops::Range<usize> {
        self.k()..self.k() + self.l()
    }

    fn dealt(&self, plane: usize, r: &[u8]) -> [Secret<u8>; 2] {
        let r = self.compose(r);
        let upper = r.iter().map(|&r| u8::from(u64::from(r) > self.big_p() / 2));
        [self.reduce_plane(plane, &r), upper.collect::<Vec<_>>().into()]
    }

    fn finish(&self, role: Server, x: &[u8], z: &[u8], dealt: &[u8]) -> Secret<u8> {
        let n = x.len() / self.k();
        let z = self.compose(z);
        let lower: Vec<u8> = z.iter().map(|&z| u8::from(u64::from(z) <= self.big_p() / 2)).collect();
        // Modulo the moduli of P nothing changes.
        let mut out = Secret::zeroed(self.planes(Range::Full) * n);
        out[..x.len()].copy_from_slice(x);
        if n == 0 {
            return out;
        }
        let rows = out[x.len()..].chunks_exact_mut(n).zip(dealt.chunks_exact(2 * n)).enumerate();
        par::each(n, rows, |(i, (out, dealt))| {
            let plane = self.k() + i;
            let (r, upper) = dealt.split_at(n);
            let offset = self.residue(plane, self.offset().into());
            let p = self.residue(plane, self.big_p().into());
            let k = Bend { m: self.modulus(plane), first: role.is_first(), positive: 0, negative: 0, p };
            kernel::unwrap_mask(self.isa(), &k, offset, &self.reduce_plane(plane, &z), r, &lower, upper, out);
        });
        out
    }
}

impl ConvertRing for Z64 {
    const INTERACTIVE: Interactive = Interactive::Rescale;

    fn convert_locally(&self, _: Server, x: &[u64]) -> Secret<u64> {
        Secret::copied(x)
    }

    fn offset(&self) -> i64 {
        1 << 62
    }

    fn dealt_planes(&self) -> std::ops::Range<usize> {
        0..1
    }

    fn dealt(&self, _: usize, r: &[u64]) -> [Secret<u64>; 2] {
        [z64::SHIFT, 63].map(|by| r.iter().map(|r| r >> by).collect::<Vec<_>>().into())
    }

    fn finish(&self, role: Server, _: &[u64], z: &[u64], dealt: &[u64]) -> Secret<u64> {
        let (r, upper) = dealt.split_at(z.len());
        let public = u64::from(role.is_first());
        let offset = (self.offset() as u64) >> z64::SHIFT;
        (0..z.len())
            .map(|i| {
                let lower = 1 - (z[i] >> 63);
                ((z[i] >> z64::SHIFT).wrapping_sub(offset).wrapping_mul(public))
                    .wrapping_sub(r[i])
                    .wrapping_add((lower.wrapping_mul(upper[i])) << (64 - z64::SHIFT))
            })
            .collect::<Vec<_>>()
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{AT, numbers, prgs, rings, run, shares, shift};

    fn masks<R: SecureRing>(ring: &R, n: usize, shifted: Option<&[i64]>) -> [Mask<R>; 2] {
        let prgs = prgs(8);
        let mut r1 = draw(ring, n, &prgs[1], AT);
        if let Some(by) = shifted {
            ring.sub(Range::Reduced, &mut r1, &ring.encode(Range::Reduced, by));
        }
        let mut r = draw(ring, n, &prgs[0], AT);
        ring.add(Range::Reduced, &mut r, &r1);
        let correction = correct(ring, &r, &prgs[0], AT);
        let demand = Demand { n };
        assert_eq!(correction.len(), demand.correction_len(ring));
        if shifted.is_none() {
            let dealer = Dealer::new(ring, [&prgs[0], &prgs[1]]);
            assert_eq!(correction, demand.deal(&dealer, AT).unwrap());
        }
        let [zero, one] = Server::BOTH.map(|role| Receiver::new(ring, role, &prgs[role.index()]));
        let m1 = one.receive(AT, &demand, correction).unwrap();
        [zero.receive(AT, &demand, vec![]).unwrap(), Mask { r: r1, ..m1 }]
    }

    #[test]
    fn lift_is_exact_and_priced() {
        fn check(ring: &Rns) {
            for n in [1, 7, 400] {
                let x = numbers(1, n, (ring.big_p() / 4) as i64);
                let [x0, x1] = shares::<_, Reduced>(ring, 2, &x);
                let [m0, m1] = masks(ring, n, None);
                let out = run(ring, [(x0, m0), (x1, m1)], async |p, (x, m)| lift(p, AT, &x, Some(m)).await)
                    .unwrap();
                out.assert_priced(Demand { n }.cost(ring));
                assert_eq!(out.join(ring), x);
            }
        }
        rings(check, |ring| {
            let x = numbers(1, 100, i64::MAX);
            let out = run(ring, shares(ring, 2, &x), async |p, x| lift(p, AT, &x, None).await).unwrap();
            out.assert_priced(Cost::default());
            assert_eq!(out.join(ring), x);
        });
    }

    /// Asserts floor(x / d) or one more.
    fn assert_rescaled(x: &[i64], y: &[i64], d: i64) {
        for (x, y) in x.iter().zip(y) {
            let floor = x.div_euclid(d);
            assert!(*y == floor || *y == floor + 1, "{x} / {d} gave {y}");
        }
    }

    #[test]
    fn rescale_is_within_one_for_every_number() {
        rings(
            |ring| {
                for seed in 0..20 {
                    // One step short of the edge, where rounding down would leave the smaller range.
                    let x = numbers(seed, 500, ring.bound(Range::Full) - ring.divisor() as i64);
                    let shares = shares::<_, Full>(ring, seed + 100, &x);
                    let out = run(ring, shares, async |p, x| rescale(p, AT, &x, None).await).unwrap();
                    out.assert_priced(Cost::default());
                    assert_rescaled(&x, &out.join(ring), ring.divisor() as i64);
                }
            },
            |ring| {
                for n in [1, 7, 400] {
                    let x = numbers(1, n, 1 << 62);
                    let [x0, x1] = shares::<_, Full>(ring, 2, &x);
                    let [m0, m1] = masks(ring, n, None);
                    let out =
                        run(ring, [(x0, m0), (x1, m1)], async |p, (x, m)| rescale(p, AT, &x, Some(m)).await);
                    let out = out.unwrap();
                    out.assert_priced(Demand { n }.cost(ring));
                    assert_rescaled(&x, &out.join(ring), 1 << z64::SHIFT);
                }
            },
        );
    }

    #[test]
    fn rescale_is_unbiased() {
        let ring = Rns::new(crate::ring::Moduli::usual(3, 2).unwrap()).unwrap();
        let d = ring.divisor() as i64;
        for part in [d / 10, d / 2, d * 9 / 10] {
            let n = 20_000;
            let out = run(&ring, shares::<_, Full>(&ring, 5, &vec![77 * d + part; n]), async |p, x| {
                rescale(p, AT, &x, None).await
            });
            let up = out.unwrap().join(&ring).iter().filter(|&&y| y == 78).count() as f64 / n as f64;
            let want = part as f64 / d as f64;
            // Four standard deviations.
            assert!(
                (up - want).abs() < 4.0 * (want * (1.0 - want) / n as f64).sqrt(),
                "{up} instead of {want}"
            );
        }
    }

    #[test]
    fn simulatable() {
        fn check<R: SecureRing>(ring: &R) {
            let n = 60;
            let delta = numbers(5, n, 1000);
            let view = |shifted: Option<&[i64]>| {
                let [x0, x1] = shares::<R, Reduced>(ring, 3, &numbers(1, n, 1000));
                let mut x1 = x1.into_words();
                if let Some(by) = shifted {
                    shift(ring, Range::Reduced, &mut x1, by);
                }
                let [m0, m1] = masks(ring, n, shifted);
                let out = run(ring, [(x0, m0), (Share::<R, Reduced>::new(x1), m1)], async |p, (x, m)| {
                    convert(p, AT, x.words(), m).await
                });
                out.unwrap().views
            };
            assert_eq!(view(None)[0], view(Some(&delta))[0]);
        }
        rings(check, check);
    }

    #[test]
    fn a_malformed_correction_is_refused() {
        let ring = Rns::new(crate::ring::Moduli::usual(3, 2).unwrap()).unwrap();
        let (demand, prgs) = (Demand { n: 4 }, prgs(1));
        let bad = vec![255; demand.correction_len(&ring)];
        assert!(Receiver::new(&ring, Server::Server1, &prgs[1]).receive(AT, &demand, bad).is_err());
    }
}
