//! Sign, ReLU and other functions with one bend, from one comparison.
//!
//! Functionality  from [x] in `Reduced`, |x| below half the range, deliver shares of [x < 0], of max(x, 0), or
//!                of a x for x >= 0 and b x for x < 0, in `Full` or `Reduced`, and reveal nothing; or deliver
//!                [x < 0] to both servers, and reveal nothing else ([`open`]).
//! Security       semi-honest, perfect given the dealt shares: z is masked by a uniform r, every bit of the
//!                tree and the sign bit by a fresh bit. Where the sign itself is opened, the other server's
//!                share of it follows from the result and the own share.
//! Cost           rounds: z, the levels of the [`Tree`], c. Bytes each way: `bytes(Reduced)` per element for
//!                z, then the tree's planes and one plane for c. Dealt: [`Demand::correction_len`]. Opening the
//!                sign costs the same rounds and bytes, with c the sign itself, and [`Comparison`] less dealt.
//! Source         masked opening with a dealt mask as in Rabbit, FC 2021; the closed form for max(x, 0) of a
//!                masked number mod an odd P is derived below.
//!
//! In the residue number system z = 2x + r mod P, so sign(x) = lsb(z) ^ lsb(r) ^ [z < r]. With l = lsb(z),
//! rho = lsb(r), b = sign(x): 2x = z - r + P (l ^ rho) where b = 0 and z - r - P (l ^ rho) where b = 1, as
//! integers, hence also mod M. In Z_2^64 z = x + r and sign(x) = msb(z) ^ msb(r) ^ [z' < r'] on the low 63
//! bits, and x = z - r. The helper also deals a bit beta and the products of beta with what depends on r; the
//! servers open c = b ^ beta and the rest is linear.

mod rns;
mod z64;

use serde::{Deserialize, Serialize};

use std::sync::Arc;

use crate::bits;
use crate::buffer;
use crate::channel::Channel;
use crate::compare::{self, Rounds, Tree};
use crate::correlation::{Dealer, Kind, Part, Receiver, SecureRing};
use crate::cost::Cost;
use crate::error::Result;
use crate::party::Party;
use crate::prg::{Prg, Purpose};
use crate::ring::{Domain, Full, Range, Reduced, Ring, par};
use crate::role::Server;
use crate::secret::{Secret, Within};
use crate::share::{self, Share};
use crate::step::Step;

/// What is computed from the sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SignOutput {
    /// [x < 0] in `Full`.
    Bit,
    /// max(x, 0) in `Reduced`.
    Reduced,
    /// Any function with one bend at zero, in `Full`.
    Full,
}

impl SignOutput {
    /// The domain of the result.
    pub const fn range(self) -> Range {
        match self {
            Self::Reduced => Range::Reduced,
            Self::Bit | Self::Full => Range::Full,
        }
    }
}

/// A batch of signs to be opened. Every other result starts from the same comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Comparison {
    /// Elements.
    pub n: usize,
    /// Which tree.
    pub rounds: Rounds,
}

/// A batch of signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Demand {
    /// Elements.
    pub n: usize,
    /// What for.
    pub output: SignOutput,
    /// Which tree.
    pub rounds: Rounds,
}

/// A number the helper deals, as shares mod the modulus of one plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    what: Derived,
    plane: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Derived {
    /// beta.
    Beta,
    /// beta * r.
    BetaMask,
    /// r.
    Mask,
    /// rho, the bit of r that is XORed to the comparison.
    Flip,
    /// beta * rho.
    BetaFlip,
}

impl Row {
    /// The plane whose modulus its shares are taken by.
    pub const fn plane(self) -> usize {
        self.plane
    }

    /// The PRG lane: one for each pair of number and plane.
    const fn lane(self) -> usize {
        self.what as usize * 16 + self.plane
    }
}

/// What a comparison in the clear knows of the masks: r as words, its bit, and beta.
pub struct MaskForms<'a, R: Ring> {
    /// r, plane by plane.
    pub r: &'a [R::Word],
    /// r as integers: what is compared.
    pub number: &'a [R::Compared],
    /// rho.
    pub flip: &'a [u64],
    /// beta.
    pub beta: &'a [u64],
}

/// Opened values and one server's dealt shares, for the last step.
pub struct Combine<'a, R: Ring> {
    role: Server,
    n: usize,
    z: &'a [R::Word],
    number: &'a [R::Compared],
    /// l, the bit of z.
    flip: &'a [u64],
    /// c.
    c: &'a [u64],
    /// This server's share of r.
    r: &'a [R::Word],
    derived: &'a [R::Word],
    slopes: Slopes,
}

/// The two slopes of a function with one bend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slopes {
    /// For x >= 0.
    pub positive: i64,
    /// For x < 0.
    pub negative: i64,
}

impl Slopes {
    /// max(x, 0).
    pub const RELU: Self = Self { positive: 1, negative: 0 };
}

/// A ring in which signs are computed.
pub trait SignRing: Ring {
    /// The rows that `output` needs.
    fn rows(&self, output: SignOutput) -> Vec<Row>;
    /// A row in the clear.
    fn derive(&self, row: Row, plain: &MaskForms<'_, Self>) -> Secret<Self::Word>;
    /// The share of the result, from opened values and dealt shares.
    fn combine(&self, output: SignOutput, values: &Combine<'_, Self>) -> Secret<Self::Word>;
}

impl Comparison {
    fn tree<R: Ring>(&self, ring: &R) -> Tree {
        Tree::new(ring.compare_bits(), self.rounds)
    }

    /// One server's random masks.
    fn draw<R: Ring>(&self, ring: &R, prg: &Prg, step: Step) -> Masks<R> {
        Masks {
            r: ring.uniform(Range::Reduced, prg.at(step, Purpose::CompareMask), self.n),
            tree: compare::draw_masks(&self.tree(ring), self.n, prg, step),
        }
    }

    /// Appends what server 1 must hold so that its shares and those server 0 expands from `prg` fit `masks`,
    /// whose r is `number` with the bit `flip`.
    #[expect(
        clippy::too_many_arguments,
        reason = "r comes in its three forms, each of which is costly to make"
    )]
    fn correct<R: Ring>(
        &self,
        ring: &R,
        masks: &Masks<R>,
        number: &[R::Compared],
        flip: &[u64],
        prg: &Prg,
        step: Step,
        out: &mut Vec<u8>,
    ) {
        compare::deal(ring, &self.tree(ring), number, &masks.tree, prg, step, out);
        let share = Secret::new(prg.stream(step, Purpose::FlipBit, 0, 0).words(bits::words(self.n)));
        let flip: Vec<u64> = flip.iter().zip(share.iter()).map(|(a, b)| a ^ b).collect();
        out.extend(bits::pack(&flip, self.n));
    }

    /// One server's correlation, from what comes behind the first `start` bytes of a correction.
    fn expand_behind<R: SecureRing>(
        &self,
        server: &Receiver<'_, R>,
        step: Step,
        correction: &Arc<Secret<u8>>,
        start: usize,
    ) -> Compared<R> {
        let (&Receiver { ring, role, prg, .. }, n) = (server, self.n);
        let Masks { r, tree: masks } = self.draw(ring, prg, step);
        let (tree, flip) = match role {
            Server::Server0 => (0..0, prg.stream(step, Purpose::FlipBit, 0, 0).words(bits::words(n))),
            Server::Server1 => {
                let end = correction.len() - bits::bytes(n);
                (start..end, bits::unpack(&correction[end..], n).expect("the length was checked on receipt"))
            }
        };
        let dealt = compare::prepare(&self.tree(ring), n, role, prg, step, masks, (correction, tree));
        Compared { n, r, flip: flip.into(), dealt }
    }
}

impl<R: SecureRing> Kind<R> for Comparison {
    type Part = Compared<R>;

    fn correction_len(&self, ring: &R) -> usize {
        self.tree(ring).correction_len(self.n) + bits::bytes(self.n)
    }

    fn cost(&self, ring: &R) -> Cost {
        let tree = self.tree(ring);
        let bytes = self.n * ring.bytes(Range::Reduced) + tree.bytes(self.n) + bits::bytes(self.n);
        Cost::online(tree.rounds() as u64 + 2, bytes).with_dealt(self.correction_len(ring))
    }

    fn deal(&self, dealer: &Dealer<'_, R>, step: Step) -> Result<Vec<u8>> {
        let &Dealer { ring, prgs, .. } = dealer;
        let [own, other] = prgs.map(|prg| self.draw(ring, prg, step));
        let masks = own.sum(ring, &other);
        let (number, flip) = masks.split(ring, self.n);
        let mut out = buffer::with_capacity(self.correction_len(ring));
        self.correct(ring, &masks, &number, &flip, prgs[0], step, &mut out);
        Ok(out)
    }

    fn expand(&self, server: &Receiver<'_, R>, step: Step, correction: Secret<u8>) -> Result<Compared<R>> {
        Ok(self.expand_behind(server, step, &Arc::new(correction), 0))
    }
}

impl Demand {
    const fn comparison(&self) -> Comparison {
        Comparison { n: self.n, rounds: self.rounds }
    }

    fn rows_len<R: SignRing>(&self, ring: &R) -> usize {
        ring.rows(self.output).len() * size_of::<R::Word>() * self.n
    }

    /// One server's mask of the signs.
    fn draw(&self, prg: &Prg, step: Step) -> Secret<u64> {
        prg.stream(step, Purpose::SignMask, 0, 0).words(bits::words(self.n)).into()
    }

    /// What server 1 must hold so that its shares and those server 0 expands from `prg` fit the masks.
    fn correct<R: SecureRing>(
        &self,
        ring: &R,
        masks: &Masks<R>,
        beta: &[u64],
        prg: &Prg,
        step: Step,
    ) -> Vec<u8> {
        let n = self.n;
        let (number, flip) = masks.split(ring, n);
        let mut out = buffer::with_capacity(self.correction_len(ring));
        let plain = MaskForms { r: &masks.r, number: &number, flip: &flip, beta };
        let rows = par::map(n, ring.rows(self.output).into_iter(), |row| {
            let mut words = ring.derive(row, &plain);
            let mut share = Secret::zeroed(n);
            ring.uniform_plane(row.plane, row.lane(), prg.at(step, Purpose::SignDerived), &mut share);
            ring.sub_plane(row.plane, &mut words, &share);
            words
        });
        rows.iter().for_each(|row| out.extend_from_slice(bytemuck::cast_slice(row)));
        self.comparison().correct(ring, masks, &number, &flip, prg, step, &mut out);
        out
    }
}

impl<R: SecureRing> Kind<R> for Demand {
    type Part = Correlation<R>;

    fn correction_len(&self, ring: &R) -> usize {
        self.rows_len(ring) + self.comparison().correction_len(ring)
    }

    fn cost(&self, ring: &R) -> Cost {
        self.comparison().cost(ring).with_dealt(self.correction_len(ring))
    }

    fn deal(&self, dealer: &Dealer<'_, R>, step: Step) -> Result<Vec<u8>> {
        let &Dealer { ring, prgs, .. } = dealer;
        let [own, other] = prgs.map(|prg| self.comparison().draw(ring, prg, step));
        let [mut beta, other_beta] = prgs.map(|prg| self.draw(prg, step));
        xor(&mut beta, &other_beta);
        Ok(self.correct(ring, &own.sum(ring, &other), &beta, prgs[0], step))
    }

    fn expand(&self, server: &Receiver<'_, R>, step: Step, correction: Secret<u8>) -> Result<Correlation<R>> {
        let (&Receiver { ring, role, prg, .. }, n) = (server, self.n);
        let rows = ring.rows(self.output);
        let (correction, len) = (Arc::new(correction), self.rows_len(ring));
        let derived = match role {
            Server::Server0 => {
                let mut derived = Secret::zeroed(rows.len() * n);
                par::each(n, rows.iter().zip(derived.chunks_exact_mut(n.max(1))), |(row, out)| {
                    ring.uniform_plane(row.plane, row.lane(), prg.at(step, Purpose::SignDerived), out);
                });
                Within::Own(derived)
            }
            Server::Server1 => {
                let derived = Within::new(&correction, 0..len);
                if !rows
                    .iter()
                    .zip(derived.chunks_exact(n.max(1)))
                    .all(|(row, w)| ring.is_canonical_plane(row.plane, w))
                {
                    return Err(share::not_canonical(step));
                }
                derived
            }
        };
        let compared = self.comparison().expand_behind(server, step, &correction, len);
        Ok(Correlation { output: self.output, beta: self.draw(prg, step), derived, compared })
    }
}

/// The random part of a comparison, one server's or the sum.
struct Masks<R: Ring> {
    r: Secret<R::Word>,
    tree: Secret<u64>,
}

impl<R: Ring> Masks<R> {
    fn sum(mut self, ring: &R, other: &Self) -> Self {
        ring.add(Range::Reduced, &mut self.r, &other.r);
        xor(&mut self.tree, &other.tree);
        self
    }

    /// r as numbers that are compared, and its bit rho.
    fn split(&self, ring: &R, n: usize) -> (Secret<R::Compared>, Secret<u64>) {
        ring.split_for_sign(&self.r, n)
    }
}

fn xor(a: &mut [u64], b: &[u64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
}

/// One server's correlation for one [`Comparison`].
pub struct Compared<R: Ring> {
    n: usize,
    r: Secret<R::Word>,
    flip: Secret<u64>,
    dealt: compare::Dealt,
}

impl<R: SecureRing> Part for Compared<R> {
    fn bytes(&self) -> usize {
        size_of_val(&*self.r) + size_of_val(&*self.flip) + self.dealt.bytes()
    }
}

/// One server's correlation for one [`Demand`].
pub struct Correlation<R: Ring> {
    output: SignOutput,
    beta: Secret<u64>,
    derived: Within<R::Word>,
    compared: Compared<R>,
}

impl<R: SecureRing> Part for Correlation<R> {
    fn bytes(&self) -> usize {
        size_of_val(&*self.beta) + size_of_val(&*self.derived) + self.compared.bytes()
    }
}

/// max(x, 0) in the domain `D`, whose correlation must be of that output.
///
/// # Errors
/// As [`Channel`].
pub async fn relu<R: SignRing, C: Channel, D: Domain>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Reduced>,
    correlation: Correlation<R>,
) -> Result<Share<R, D>> {
    debug_assert_eq!(correlation.output.range(), D::RANGE);
    Ok(Share::new(run(party, step, x, correlation, Slopes::RELU).await?))
}

/// `positive * x` for x >= 0, `negative * x` for x < 0.
///
/// # Errors
/// As [`Channel`].
pub async fn slopes<R: SignRing, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Reduced>,
    correlation: Correlation<R>,
    slopes: Slopes,
) -> Result<Share<R, Full>> {
    debug_assert_eq!(correlation.output, SignOutput::Full);
    Ok(Share::new(run(party, step, x, correlation, slopes).await?))
}

/// [x < 0].
///
/// # Errors
/// As [`Channel`].
pub async fn is_negative<R: SignRing, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Reduced>,
    correlation: Correlation<R>,
) -> Result<Share<R, Full>> {
    debug_assert_eq!(correlation.output, SignOutput::Bit);
    Ok(Share::new(run(party, step, x, correlation, Slopes::RELU).await?))
}

/// max(x, 0) and [x < 0], from one comparison, whose correlation must be for [`SignOutput::Full`]: what is dealt for a
/// bend holds what a bit needs.
///
/// # Errors
/// As [`Channel`].
pub async fn relu_and_sign<R: SignRing, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Reduced>,
    correlation: Correlation<R>,
) -> Result<(Share<R, Full>, Share<R, Full>)> {
    debug_assert_eq!(correlation.output, SignOutput::Full);
    let outputs = [SignOutput::Full, SignOutput::Bit];
    let [bend, bit] = run_for(party, step, x, correlation, Slopes::RELU, outputs).await?;
    Ok((Share::new(bend), Share::new(bit)))
}

/// [x < 0] in the open, known to both servers: bit `i` is bit `i % 64` of word `i / 64`.
///
/// # Errors
/// As [`Channel`].
pub async fn open<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Reduced>,
    correlation: Compared<R>,
) -> Result<Vec<u64>> {
    let n = correlation.n;
    let signs = compare(party, step, x, correlation).await?;
    Ok(open_bits(party, signs.next, n, signs.own).await?.into_inner())
}

async fn run<R: SignRing, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Reduced>,
    correlation: Correlation<R>,
    slopes: Slopes,
) -> Result<Secret<R::Word>> {
    let output = correlation.output;
    let [out] = run_for(party, step, x, correlation, slopes, [output]).await?;
    Ok(out)
}

/// Several results of one comparison. The rows that are dealt for the correlation's output start with those of each of
/// `outputs`.
async fn run_for<R: SignRing, C: Channel, const K: usize>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Reduced>,
    correlation: Correlation<R>,
    slopes: Slopes,
    outputs: [SignOutput; K],
) -> Result<[Secret<R::Word>; K]> {
    let Correlation { beta, derived, compared, .. } = correlation;
    let n = compared.n;
    let Signs { z, number, flip, own: mut c, r, next } = compare(party, step, x, compared).await?;
    // c = sign ^ beta.
    xor(&mut c, &beta);
    let c = open_bits(party, next, n, c).await?;
    let values = Combine {
        role: party.role,
        n,
        z: &z,
        number: &number,
        flip: &flip,
        c: &c,
        r: &r,
        derived: &derived,
        slopes,
    };
    Ok(outputs.map(|output| party.ring.combine(output, &values)))
}

/// What a comparison leaves: z in the open, and shares of the signs.
struct Signs<R: Ring> {
    z: Secret<R::Word>,
    number: Secret<R::Compared>,
    /// l, the bit of z.
    flip: Secret<u64>,
    /// This server's XOR share of the signs.
    own: Secret<u64>,
    /// This server's share of r.
    r: Secret<R::Word>,
    /// The next message.
    next: Step,
}

/// Opens z and compares it with r.
async fn compare<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    x: &Share<R, Reduced>,
    correlation: Compared<R>,
) -> Result<Signs<R>> {
    let ring = party.ring;
    let Compared { n, r, flip: own_flip, dealt } = correlation;
    let mut masked = Secret::copied(x.words());
    ring.mask_for_sign(&mut masked, &r);
    let z = party.open(step, Range::Reduced, masked).await?;
    let (number, flip) = ring.split_for_sign(&z, n);

    let next = step.message(1 + dealt.rounds() as u16);
    let mut own = compare::less_than(party, step.message(1), &number, dealt).await?;
    xor(&mut own, &own_flip);
    if party.role.is_first() {
        xor(&mut own, &flip);
    }
    Ok(Signs { z, number, flip, own, r, next })
}

/// Opens XOR shares of `n` bits.
async fn open_bits<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    n: usize,
    own: Secret<u64>,
) -> Result<Secret<u64>> {
    let received = party.exchange(step, bits::pack(&own, n)).await?;
    let mut bits = Secret::new(bits::unpack(&received, n).expect("as long as what was sent"));
    xor(&mut bits, &own);
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlation::Ideal;
    use crate::testing::{AT, Run, numbers, prgs, reduced_bound, rings, run, shares, shift};

    fn correlations<R: SecureRing>(
        ring: &R,
        demand: Demand,
        adjust: impl Fn(&mut Masks<R>, &mut Secret<u64>),
    ) -> [Correlation<R>; 2] {
        let prgs = prgs(40);
        let [own, mut other] = [0, 1].map(|i| demand.comparison().draw(ring, &prgs[i], AT));
        let [mut sum, mut beta] = [0, 1].map(|i| demand.draw(&prgs[i], AT));
        adjust(&mut other, &mut beta);
        xor(&mut sum, &beta);
        let correction = demand.correct(ring, &own.sum(ring, &other), &sum, &prgs[0], AT);
        assert_eq!(correction.len(), demand.correction_len(ring));
        let [zero, one] = Server::BOTH.map(|role| Receiver::new(ring, role, &prgs[role.index()]));
        let c0 = zero.receive(AT, &demand, vec![]).unwrap();
        let c1 = one.receive(AT, &demand, correction).unwrap();
        let Masks { r, tree } = other;
        let compared = Compared { r, dealt: c1.compared.dealt.with_masks(tree), ..c1.compared };
        [c0, Correlation { beta, compared, ..c1 }]
    }

    fn go<R: SecureRing>(ring: &R, x: &[i64], demand: Demand, slopes: Slopes) -> Run<Secret<R::Word>> {
        let [x0, x1] = shares::<R, Reduced>(ring, 2, x);
        let [c0, c1] = correlations(ring, demand, |_, _| ());
        let out = run(ring, [(x0, c0), (x1, c1)], async |p, (x, c)| super::run(p, AT, &x, c, slopes).await)
            .unwrap();
        out.assert_priced(demand.cost(ring));
        out
    }

    fn join<R: Ring>(ring: &R, output: SignOutput, out: Run<Secret<R::Word>>) -> Vec<i64> {
        let [a, b] = out.out;
        share::join(ring, output.range(), a, &b)
    }

    fn check<R: SecureRing>(ring: &R) {
        for rounds in [Rounds::Balanced, Rounds::Fewest] {
            for n in [0, 1, 8, 63, 65, 700] {
                let x = numbers(n as u8, n, ring.bound(Range::Reduced));
                for output in [SignOutput::Bit, SignOutput::Reduced, SignOutput::Full] {
                    let demand = Demand { n, output, rounds };
                    let want: Vec<i64> = x
                        .iter()
                        .map(|&x| if output == SignOutput::Bit { i64::from(x < 0) } else { x.max(0) })
                        .collect();
                    assert_eq!(
                        join(ring, output, go(ring, &x, demand, Slopes::RELU)),
                        want,
                        "{output:?} {rounds:?} {n}"
                    );
                }
                let slopes = Slopes { positive: 50, negative: -7 };
                let small: Vec<i64> = x.iter().map(|x| x / 60).collect();
                let want: Vec<i64> = small.iter().map(|&x| if x < 0 { -7 * x } else { 50 * x }).collect();
                let demand = Demand { n, output: SignOutput::Full, rounds };
                assert_eq!(join(ring, SignOutput::Full, go(ring, &small, demand, slopes)), want);
            }
        }
    }

    #[test]
    fn correct_and_priced() {
        rings(check, check);
    }

    #[test]
    fn opened_signs() {
        fn check<R: SecureRing>(ring: &R) {
            for (n, rounds) in [(1, Rounds::Balanced), (65, Rounds::Fewest), (700, Rounds::Balanced)] {
                let x = numbers(n as u8, n, ring.bound(Range::Reduced));
                let demand = Comparison { n, rounds };
                let prgs = prgs(40);
                let ([c0, c1], _) = Ideal::new(ring, [&prgs[0], &prgs[1]]).both(AT, &demand).unwrap();
                let [x0, x1] = shares::<R, Reduced>(ring, 2, &x);
                let inputs = [(x0, c0), (x1, c1)];
                let out = run(ring, inputs, async |p, (x, c)| open(p, AT, &x, c).await).unwrap();
                out.assert_priced(demand.cost(ring));
                for bits in &out.out {
                    for (i, &x) in x.iter().enumerate() {
                        assert_eq!(bits[i / 64] >> (i % 64) & 1 == 1, x < 0, "{i} of {n}: {x}");
                    }
                }
            }
        }
        rings(check, check);
    }

    #[test]
    fn every_number_of_a_small_ring() {
        let ring = crate::ring::Rns::new(crate::ring::Moduli { p: vec![7, 5], q: vec![3, 11] }).unwrap();
        let bound = ring.bound(Range::Reduced);
        let x: Vec<i64> = (-bound..=bound).cycle().take(35 * 100).collect();
        for output in [SignOutput::Bit, SignOutput::Reduced, SignOutput::Full] {
            let demand = Demand { n: x.len(), output, rounds: Rounds::Balanced };
            let out = join(&ring, output, go(&ring, &x, demand, Slopes::RELU));
            for (x, y) in x.iter().zip(out) {
                assert_eq!(y, if output == SignOutput::Bit { i64::from(*x < 0) } else { *x.max(&0) });
            }
        }
    }

    #[test]
    fn costs_as_documented() {
        let rns = |k, l| crate::ring::Rns::new(crate::ring::Moduli::usual(k, l).unwrap()).unwrap();
        for (ring, bytes, dealt) in [(rns(3, 3), 4.5, 35.0), (rns(3, 2), 4.5, 30.0), (rns(4, 2), 6.0, 40.0)] {
            let n = 1 << 16;
            let cost = Demand { n, output: SignOutput::Full, rounds: Rounds::Balanced }.cost(&ring);
            assert_eq!(cost.bytes as f64 / n as f64, bytes);
            assert!((cost.dealt as f64 / n as f64) < dealt && cost.rounds == 4, "{cost:?}");
        }
    }

    /// Which bits are in the open at the end.
    #[derive(Clone, Copy, PartialEq)]
    enum Ending {
        /// The masked signs.
        Masked,
        /// The signs.
        Open,
    }

    /// Server 0's view when server 1's share of x is moved by `by` and all its masks are moved so that what it
    /// masks stays covered by the same bits.
    fn view<R: SecureRing>(ring: &R, demand: Demand, by: Option<&[i64]>, ending: Ending) -> Vec<u8> {
        let n = demand.n;
        let x = numbers(1, n, 1 << 12);
        let prgs = prgs(40);
        let total = |r1: &Secret<R::Word>| {
            let mut r = demand.comparison().draw(ring, &prgs[0], AT).r;
            ring.add(Range::Reduced, &mut r, r1);
            r
        };
        let z_of = |x: &[i64], r: &[R::Word]| {
            let mut z = ring.encode(Range::Reduced, x);
            ring.mask_for_sign(&mut z, r);
            ring.split_for_sign(&z, n)
        };
        let [x0, x1] = shares::<R, Reduced>(ring, 2, &x);
        let mut x1 = x1.into_words();
        let moved: Vec<i64> = by.map_or(x.clone(), |by| x.iter().zip(by).map(|(x, d)| x + d).collect());
        let [c0, c1] = correlations(ring, demand, |masks, beta| {
            let Some(by) = by else { return };
            let before = total(&masks.r);
            // z stays if r moves against x.
            let mut minus = ring.encode(Range::Reduced, &by.iter().map(|b| -b).collect::<Vec<_>>());
            ring.mask_for_sign(&mut minus, &masks.r.clone());
            masks.r = minus.into();
            let after = total(&masks.r);
            let wires = |x: &[i64], r: &[R::Word]| {
                let (z, l) = z_of(x, r);
                let (number, flip) = ring.split_for_sign(r, n);
                let (inputs, less) = compare::wires(ring, &demand.comparison().tree(ring), &z, &number);
                let sign: Vec<u64> =
                    less.iter().zip(flip.iter()).zip(l.iter()).map(|((a, b), c)| a ^ b ^ c).collect();
                (inputs, sign, z)
            };
            let ((a, sign_a, za), (b, sign_b, zb)) = (wires(&x, &before), wires(&moved, &after));
            assert_eq!(
                bytemuck::cast_slice::<_, u8>(&za),
                bytemuck::cast_slice::<_, u8>(&zb),
                "z is the same"
            );
            masks.tree.iter_mut().zip(a.iter().zip(&b)).for_each(|(m, (a, b))| *m ^= a ^ b);
            beta.iter_mut().zip(sign_a.iter().zip(&sign_b)).for_each(|(m, (a, b))| *m ^= a ^ b);
        });
        if let Some(by) = by {
            shift(ring, Range::Reduced, &mut x1, by);
        }
        let inputs = [(x0, c0), (Share::new(x1), c1)];
        if ending == Ending::Open {
            let out = run(ring, inputs, async |p, (x, c)| open(p, AT, &x, c.compared).await).unwrap();
            let bit = |i: usize| out.out[0][i / 64] >> (i % 64) & 1 == 1;
            assert!(moved.iter().enumerate().all(|(i, &x)| bit(i) == (x < 0)), "still the right signs");
            return out.views[0].clone();
        }
        let out = run(ring, inputs, async |p, (x, c)| super::run(p, AT, &x, c, Slopes::RELU).await).unwrap();
        let want: Vec<i64> = moved.iter().map(|&x| x.max(0)).collect();
        let views = out.views.clone();
        assert_eq!(join(ring, demand.output, out), want, "still the right result");
        views[0].clone()
    }

    #[test]
    fn simulatable() {
        fn check<R: SecureRing>(ring: &R) {
            for rounds in [Rounds::Balanced, Rounds::Fewest] {
                let demand = Demand { n: 130, output: SignOutput::Full, rounds };
                let by = numbers(6, 130, 1 << 12);
                let views = [None, Some(&by[..])].map(|by| view(ring, demand, by, Ending::Masked));
                assert_eq!(views[0], views[1]);
                // What opens are the signs: they are all that may decide what is seen.
                let x = numbers(1, 130, 1 << 12);
                let same: Vec<i64> = x.iter().map(|&x| x / 2).collect();
                let views = [None, Some(&same[..])].map(|by| view(ring, demand, by, Ending::Open));
                assert_eq!(views[0], views[1]);
                let views = [None, Some(&by[..])].map(|by| view(ring, demand, by, Ending::Open));
                assert_ne!(views[0], views[1], "other signs are seen");
            }
        }
        rings(check, check);
    }

    #[test]
    fn a_malformed_correction_is_refused() {
        let ring = crate::ring::Rns::new(crate::ring::Moduli::usual(3, 2).unwrap()).unwrap();
        let demand = Demand { n: 4, output: SignOutput::Full, rounds: Rounds::Balanced };
        let bad = vec![255; demand.correction_len(&ring)];
        assert!(Receiver::new(&ring, Server::Server1, &prgs(1)[1]).receive(AT, &demand, bad).is_err());
        assert!(reduced_bound(&ring) > 0);
    }
}
