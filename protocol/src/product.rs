//! Products of two secret matrices, one of which may stay for several.
//!
//! Functionality  from [X_1], [X_2], ... and [Y] deliver [X_t * Y^T], group by group; reveals nothing.
//! Security       semi-honest, perfect given ideal masks: F = Y - B and each E_t = X_t - A_t are uniform.
//! Cost           the helper sends `bytes(Full)` per element of each product to server 1; online 1 round for
//!                each product, `bytes(Full)` per element of X_t each way, and of Y with the first.
//! Source         Beaver, CRYPTO 1991, for matrices as in SecureML, IEEE S&P 2017, section 4. With one product
//!                for each server instead of two where 2 has an inverse, as derived in [`bilinear`].
//!
//! C_t = -(A_{t,0} - A_{t,1}) * (B_0 - B_1)^T and share_i = (E_t + 2A_i) * (F/2 + B_i)^T + C_i. In Z_2^64, where
//! nothing can be halved, C_t = A_t * B^T, and the two products of a share are one with twice the inner length:
//! share_i = [E_t | A_i] * [B_i + i F | F]^T + C_i. Keeping B is safe because every A_t is fresh: F and all E_t
//! together are uniform.
//!
//! [`bilinear`]: crate::bilinear

use crate::channel::Channel;
use crate::correlation::{self, Dealer, Kind, Receiver, SecureRing};
use crate::cost::Cost;
use crate::error::{Error, Result};
use crate::party::Party;
use crate::prg::{Prg, Purpose};
use crate::ring::kernel::Conv;
use crate::ring::{Full, Range, Ring, par};
use crate::role::Server;
use crate::secret::Secret;
use crate::share::{self, Share};
use crate::step::Step;

/// `groups` products of `[m, k]` with `[n, k]` transposed, the right operand used `uses` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Independent products.
    pub groups: usize,
    /// Rows of the left operand.
    pub m: usize,
    /// Length of what is summed over.
    pub k: usize,
    /// Rows of the right operand.
    pub n: usize,
    /// Products with the same right operand, one after the other.
    pub uses: usize,
}

impl Shape {
    /// Elements of one left operand.
    pub const fn left_len(&self) -> usize {
        self.groups * self.m * self.k
    }

    /// Elements of the right operand.
    pub const fn right_len(&self) -> usize {
        self.groups * self.n * self.k
    }

    /// Elements of one product.
    pub const fn out_len(&self) -> usize {
        self.groups * self.m * self.n
    }

    /// Whether the numbers describe products at all: none is zero, and no vector has 2^31 elements.
    pub fn is_valid(&self) -> bool {
        let fits = |count: usize, columns: usize| {
            let len = [self.groups, count, columns].into_iter().try_fold(1, usize::checked_mul);
            len.is_some_and(|len| 0 < len && len < 1 << 31)
        };
        self.k < 1 << 24
            && self.dense(2 * self.k).is_valid()
            && self.uses < 1 << 24
            && fits(self.uses * self.m, 2 * self.k)
            && fits(self.uses * self.m, self.n)
            && fits(self.n, 2 * self.k)
    }

    /// One group as a kernel knows it, with sums of `k` products.
    const fn dense(&self, k: usize) -> Conv {
        Conv::dense(self.m, k, self.n)
    }

    /// One server's shares of all A_t, `[uses, groups, m, k]`, and of B.
    fn masks<R: Ring>(&self, ring: &R, prg: &Prg, step: Step) -> [Secret<R::Word>; 2] {
        [(Purpose::ProductLeft, self.uses * self.left_len()), (Purpose::ProductRight, self.right_len())]
            .map(|(purpose, n)| ring.uniform(Range::Full, prg.at(step, purpose), n))
    }

    /// Server 0's shares of all C_t, `[uses, groups, m, n]`.
    fn dealt<R: Ring>(&self, ring: &R, prg: &Prg, step: Step) -> Secret<R::Word> {
        ring.uniform(Range::Full, prg.at(step, Purpose::ProductDealt), self.uses * self.out_len())
    }

    /// What server 1 must hold so that it and what server 0 expands from `prg` add up to all C_t.
    fn correct<R: Ring>(&self, ring: &R, masks: [[Secret<R::Word>; 2]; 2], prg: &Prg, step: Step) -> Vec<u8> {
        let [[mut a, b0], [a1, mut b]] = masks;
        if ring.one_half().is_some() {
            ring.sub(Range::Full, &mut a, &a1);
            ring.sub(Range::Full, &mut b, &b0);
        } else {
            ring.add(Range::Full, &mut a, &a1);
            ring.add(Range::Full, &mut b, &b0);
        }
        drop((a1, b0));
        let conv = self.dense(self.k);
        let packed = pack(ring, &conv, &[Part::all(ring, &b)]);
        let mut c = Secret::zeroed(self.uses * self.out_len() * ring.planes(Range::Full));
        multiply(ring, &conv, &[Part::all(ring, &a)], |i| &packed[i % self.groups], &mut c);
        ring.sub(Range::Full, &mut c, &self.dealt(ring, prg, step));
        share::into_bytes(c)
    }
}

impl<R: SecureRing> Kind<R> for Shape {
    type Part = Masks<R>;

    fn correction_len(&self, ring: &R) -> usize {
        self.uses * self.out_len() * ring.bytes(Range::Full)
    }

    /// Cost of all uses.
    fn cost(&self, ring: &R) -> Cost {
        let elements = self.uses * self.left_len() + self.right_len();
        Cost::online(self.uses as u64, elements * ring.bytes(Range::Full))
            .with_dealt(self.correction_len(ring))
    }

    fn deal(&self, dealer: &Dealer<'_, R>, step: Step) -> Result<Vec<u8>> {
        let &Dealer { ring, prgs, .. } = dealer;
        Ok(self.correct(ring, prgs.map(|prg| self.masks(ring, prg, step)), prgs[0], step))
    }

    fn expand(&self, server: &Receiver<'_, R>, step: Step, correction: Secret<u8>) -> Result<Masks<R>> {
        let &Receiver { ring, role, prg, .. } = server;
        let [a, b] = self.masks(ring, prg, step);
        let c = match role {
            Server::Server0 => self.dealt(ring, prg, step),
            Server::Server1 => share::from_message(ring, Range::Full, step, correction)?,
        };
        Ok(Masks { shape: *self, a, b, c })
    }
}

/// Elements `at..at + len` of a vector of `n` in `Full`.
#[derive(Clone, Copy)]
struct Part<'a, W> {
    words: &'a [W],
    n: usize,
    at: usize,
    len: usize,
}

impl<'a, W> Part<'a, W> {
    fn all<R: Ring<Word = W>>(ring: &R, words: &'a [W]) -> Self {
        let n = words.len() / ring.planes(Range::Full);
        Self { words, n, at: 0, len: n }
    }

    const fn is_all(&self) -> bool {
        self.len == self.n
    }

    /// The `i`-th run of `len` elements.
    const fn run(self, i: usize, len: usize) -> Self {
        Self { at: self.at + i * len, len, ..self }
    }

    fn plane(self, plane: usize) -> &'a [W] {
        &self.words[plane * self.n + self.at..][..self.len]
    }
}

/// Rows of `width` elements: the first of each of `parts` side by side, then the second of each, and so on.
fn beside<R: Ring>(ring: &R, parts: &[Part<'_, R::Word>], width: usize) -> Secret<R::Word> {
    let n = parts.iter().map(|part| part.len).sum();
    let mut out = Secret::zeroed(n * ring.planes(Range::Full));
    par::each(n, out.chunks_exact_mut(n).enumerate(), |(plane, out)| {
        for (i, part) in parts.iter().enumerate() {
            let rows = out.chunks_exact_mut(parts.len() * width);
            for (out, row) in rows.zip(part.plane(plane).chunks_exact(width)) {
                out[i * width..(i + 1) * width].copy_from_slice(row);
            }
        }
    });
    out
}

/// For the kernels: the right operands of as many products as `parts` hold, their columns side by side.
fn pack<R: Ring>(ring: &R, conv: &Conv, parts: &[Part<'_, R::Word>]) -> Vec<R::Packed> {
    let (width, len) = (conv.c_in / parts.len(), conv.weight_len() / parts.len());
    par::map(conv.weight_len(), 0..parts[0].len / len, |i| {
        if let [part] = parts
            && part.is_all()
            && len == part.len
        {
            return ring.pack(conv, part.words);
        }
        let parts: Vec<_> = parts.iter().map(|part| part.run(i, len)).collect();
        ring.pack(conv, &beside(ring, &parts, width))
    })
}

/// `acc[i] += x[i] * w(i)` for as many products as `x` holds: operands one after the other, with their columns
/// side by side, and likewise the results.
fn multiply<'p, R: Ring>(
    ring: &R,
    conv: &Conv,
    x: &[Part<'_, R::Word>],
    w: impl Fn(usize) -> &'p R::Packed + Send + Sync,
    acc: &mut [R::Word],
) {
    let (width, len) = (conv.c_in / x.len(), conv.in_len() / x.len());
    let left = |i| {
        let parts: Vec<_> = x.iter().map(|part| part.run(i, len)).collect();
        beside(ring, &parts, width)
    };
    let count = x[0].len / len;
    if count == 1 {
        return match x {
            [x] if x.is_all() => ring.apply(conv, x.words, w(0), acc),
            _ => ring.apply(conv, &left(0), w(0), acc),
        };
    }
    let n = conv.out_len();
    let work = usize::try_from(conv.macs() / 64).expect("fits") + conv.in_len();
    let all = Part::all(ring, acc);
    let products = par::map(work, 0..count, |i| {
        let mut out = beside(ring, &[all.run(i, n)], n);
        ring.apply(conv, &left(i), w(i), &mut out);
        out
    });
    for (plane, acc) in acc.chunks_exact_mut(count * n).enumerate() {
        for (acc, product) in acc.chunks_exact_mut(n).zip(&products) {
            acc.copy_from_slice(&product[plane * n..(plane + 1) * n]);
        }
    }
}

/// One server's correlation for one operand.
pub struct Masks<R: Ring> {
    shape: Shape,
    /// Shares of all A_t.
    a: Secret<R::Word>,
    /// Share of B.
    b: Secret<R::Word>,
    /// Shares of all C_t.
    c: Secret<R::Word>,
}

impl<R: SecureRing> correlation::Part for Masks<R> {
    fn bytes(&self) -> usize {
        size_of_val(&*self.a) + size_of_val(&*self.b) + size_of_val(&*self.c)
    }
}

impl<R: Ring> Masks<R> {
    /// Takes [Y] as the operand of the products that this correlation is for.
    pub fn operand(self, y: Share<R, Full>) -> Operand<R> {
        let Self { shape, a, b, c } = self;
        Operand { shape, used: 0, a, c, right: Right::Masked { y: y.into_words(), b } }
    }
}

/// A right operand at a server, and the masks of the products that are still to come.
///
/// Products that were asked for and are not made leave masks unspent, which is safe; the ledger then shows
/// less than the plan.
pub struct Operand<R: Ring> {
    shape: Shape,
    used: usize,
    a: Secret<R::Word>,
    c: Secret<R::Word>,
    right: Right<R>,
}

enum Right<R: Ring> {
    /// Not opened yet.
    Masked {
        /// This server's share of Y.
        y: Secret<R::Word>,
        /// This server's share of B.
        b: Secret<R::Word>,
    },
    /// F/2 + B_i, or [B_i + i F | F] where nothing can be halved, group by group.
    Open(Vec<R::Packed>),
}

impl<R: Ring> Right<R> {
    fn opened(&self) -> &[R::Packed] {
        let Self::Open(own) = self else { unreachable!("the first product opens it") };
        own
    }
}

/// [X * Y^T].
///
/// # Errors
/// As [`Party::open`]; [`Error::Config`] if [X] has another shape or the operand was used as often as it may be.
pub async fn product<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    operand: &mut Operand<R>,
    x: &Share<R, Full>,
) -> Result<Share<R, Full>> {
    let (ring, shape) = (party.ring, operand.shape);
    let (left, right, out) = (shape.left_len(), shape.right_len(), shape.out_len());
    if x.len(ring) != left {
        return Err(Error::Config(format!("{step}: a factor of another shape")));
    }
    if operand.used == shape.uses {
        return Err(Error::Config(format!("{step}: an operand used too often")));
    }
    let at = operand.used;
    operand.used += 1;
    let a = Part::all(ring, &operand.a).run(at, left);
    // E, and with the first product F in the same message.
    let mut parts = vec![[Part::all(ring, x.words()), a]];
    if let Right::Masked { y, b } = &operand.right {
        parts.push([Part::all(ring, y), Part::all(ring, b)]);
    }
    let masked = masked(ring, &parts);
    // A lone product takes what was dealt as it is.
    let mut z = if shape.uses == 1 {
        std::mem::replace(&mut operand.c, Secret::zeroed(0))
    } else {
        beside(ring, &[Part::all(ring, &operand.c).run(at, out)], out)
    };
    if let Some(half) = ring.one_half() {
        let other = party.swap(step, Range::Full, masked).await?;
        let other = Part::all(ring, &other);
        let conv = shape.dense(shape.k);
        // E + 2A_i = (x_i + A_i) + (x_j - A_j), and 2 (F/2 + B_i) likewise.
        if let Right::Masked { y, b } = &operand.right {
            let f = Part { at: left, len: right, ..other };
            let mut own = sum(ring, [Part::all(ring, y), Part::all(ring, b), f]);
            ring.scale(Range::Full, &mut own, half);
            operand.right = Right::Open(pack(ring, &conv, &[Part::all(ring, &own)]));
        }
        let x = sum(ring, [Part::all(ring, x.words()), a, other.run(0, left)]);
        let own = operand.right.opened();
        multiply(ring, &conv, &[Part::all(ring, &x)], |g| &own[g], &mut z);
    } else {
        let opened = party.open(step, Range::Full, masked).await?;
        let opened = Part::all(ring, &opened);
        let conv = shape.dense(2 * shape.k);
        if let Right::Masked { b, .. } = &mut operand.right {
            let f = Part { at: left, len: right, ..opened };
            if !party.role.is_first() {
                ring.add(Range::Full, b, &beside(ring, &[f], right));
            }
            operand.right = Right::Open(pack(ring, &conv, &[Part::all(ring, b), f]));
        }
        let own = operand.right.opened();
        multiply(ring, &conv, &[opened.run(0, left), a], |g| &own[g], &mut z);
    }
    Ok(Share::new(z))
}

/// The sum of parts of one length.
fn sum<R: Ring>(ring: &R, parts: [Part<'_, R::Word>; 3]) -> Secret<R::Word> {
    let [first, rest @ ..] = parts;
    let mut out = Secret::zeroed(first.len * ring.planes(Range::Full));
    par::each(first.len, out.chunks_exact_mut(first.len).enumerate(), |(plane, out)| {
        out.copy_from_slice(first.plane(plane));
        rest.iter().for_each(|part| ring.add_plane(plane, out, part.plane(plane)));
    });
    out
}

/// Each of `parts` less its mask, one after the other.
fn masked<R: Ring>(ring: &R, parts: &[[Part<'_, R::Word>; 2]]) -> Secret<R::Word> {
    let n = parts.iter().map(|[x, _]| x.len).sum();
    let mut out = Secret::zeroed(n * ring.planes(Range::Full));
    par::each(n, out.chunks_exact_mut(n).enumerate(), |(plane, mut out)| {
        for [x, mask] in parts {
            let (own, rest) = out.split_at_mut(x.len);
            own.copy_from_slice(x.plane(plane));
            ring.sub_plane(plane, own, mask.plane(plane));
            out = rest;
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{Moduli, Rns, Z64};
    use crate::testing::{AT, Run, numbers, prgs, rings, run, shares, shift};

    const SHAPES: [Shape; 6] = [
        Shape { groups: 1, m: 1, k: 1, n: 1, uses: 1 },
        Shape { groups: 1, m: 20, k: 30, n: 70, uses: 1 },
        Shape { groups: 5, m: 9, k: 4, n: 7, uses: 1 },
        Shape { groups: 1, m: 1, k: 33, n: 17, uses: 4 },
        Shape { groups: 3, m: 2, k: 5, n: 6, uses: 3 },
        Shape { groups: 1, m: 65, k: 600, n: 129, uses: 2 },
    ];

    fn naive(s: &Shape, x: &[i64], y: &[i64]) -> Vec<i64> {
        let mut out = Vec::new();
        for (g, i, j) in (0..s.out_len()).map(|at| (at / (s.m * s.n), at / s.n % s.m, at % s.n)) {
            let (x, y) = (&x[(g * s.m + i) * s.k..][..s.k], &y[(g * s.n + j) * s.k..][..s.k]);
            out.push(x.iter().zip(y).map(|(x, y)| x * y).sum());
        }
        out
    }

    /// Both correlations, after `adjust` has seen server 1's shares of all A_t and of B.
    fn correlations<R: SecureRing>(
        ring: &R,
        shape: Shape,
        adjust: impl Fn(&mut [Secret<R::Word>; 2]),
    ) -> [Masks<R>; 2] {
        let prgs = prgs(50);
        let own = shape.masks(ring, &prgs[0], AT);
        let mut other = shape.masks(ring, &prgs[1], AT);
        adjust(&mut other);
        let correction = shape.correct(ring, [own, other.clone()], &prgs[0], AT);
        assert_eq!(correction.len(), shape.correction_len(ring));
        let [zero, one] = Server::BOTH.map(|role| Receiver::new(ring, role, &prgs[role.index()]));
        let c0 = zero.receive(AT, &shape, vec![]).unwrap();
        let c1 = one.receive(AT, &shape, correction).unwrap();
        let [a, b] = other;
        [c0, Masks { a, b, ..c1 }]
    }

    /// Both servers, `uses` products: the results one after the other.
    fn go<R: SecureRing>(
        ring: &R,
        x: [Vec<Share<R, Full>>; 2],
        y: [Share<R, Full>; 2],
        masks: [Masks<R>; 2],
    ) -> Run<Vec<Share<R, Full>>> {
        let ([x0, x1], [y0, y1], [m0, m1]) = (x, y, masks);
        run(ring, [(x0, y0, m0), (x1, y1, m1)], async |p, (x, y, m)| {
            let (mut operand, mut out) = (m.operand(y), Vec::new());
            for (t, x) in x.iter().enumerate() {
                out.push(product(p, AT.call(2 + t as u16), &mut operand, x).await?);
            }
            Ok(out)
        })
        .unwrap()
    }

    fn left<R: SecureRing>(ring: &R, x: &[Vec<i64>]) -> [Vec<Share<R, Full>>; 2] {
        x.iter()
            .enumerate()
            .map(|(t, x)| shares(ring, 10 + t as u8, x).into())
            .unzip::<_, _, Vec<_>, _>()
            .into()
    }

    #[test]
    fn correct_and_priced() {
        fn check<R: SecureRing>(ring: &R) {
            for shape in SHAPES {
                assert!(shape.is_valid());
                let bound = f64::sqrt(ring.bound(Range::Full) as f64 / shape.k as f64) as i64 - 1;
                let x: Vec<Vec<i64>> =
                    (0..shape.uses).map(|t| numbers(t as u8, shape.left_len(), bound)).collect();
                let y = numbers(77, shape.right_len(), bound);
                let prgs = prgs(50);
                let masks = correlations(ring, shape, |_| ());
                let dealt = shape.deal(&Dealer::new(ring, [&prgs[0], &prgs[1]]), AT).unwrap();
                assert_eq!(dealt, share::to_bytes(&masks[1].c), "the helper does the same");
                let out = go(ring, left(ring, &x), shares(ring, 4, &y), masks);
                out.assert_priced(shape.cost(ring));
                let [z0, z1] = out.out;
                for ((z0, z1), x) in z0.into_iter().zip(z1).zip(&x) {
                    let z = share::join(ring, Range::Full, z0.into_words(), z1.words());
                    assert_eq!(z, naive(&shape, x, &y), "{shape:?}");
                }
            }
        }
        rings(check, check);
    }

    #[test]
    fn simulatable() {
        // Moving an operand and its mask alike changes no byte of the other server's view: of server 0's by
        // server 1's masks, and the other way round with the roles of the shares exchanged.
        fn check<R: SecureRing>(ring: &R) {
            let shape = Shape { groups: 2, m: 3, k: 5, n: 4, uses: 2 };
            let (nx, ny) = (shape.left_len(), shape.right_len());
            let x: Vec<Vec<i64>> = (0..2).map(|t| numbers(t, nx, 99)).collect();
            let by = [numbers(6, nx, 99), numbers(7, nx, 99)];
            for who in Server::BOTH {
                let view = |moved: bool| {
                    let (mut x, mut y) = (left(ring, &x), shares(ring, 4, &numbers(3, ny, 99)));
                    let mut masks = correlations(ring, shape, |_| ());
                    if moved {
                        let from = who.peer().index();
                        for (x, by) in x[from].iter_mut().zip(&by) {
                            ring.add(Range::Full, x.words_mut(), &ring.encode(Range::Full, by));
                        }
                        ring.add(
                            Range::Full,
                            y[from].words_mut(),
                            &ring.encode(Range::Full, &numbers(8, ny, 99)),
                        );
                        shift(ring, Range::Full, &mut masks[from].a, &by.concat());
                        shift(ring, Range::Full, &mut masks[from].b, &numbers(8, ny, 99));
                    }
                    go(ring, x, y, masks).views[who.index()].clone()
                };
                assert_eq!(view(false), view(true), "{who}");
            }
        }
        rings(check, check);
    }

    #[test]
    fn masks_moved_with_the_operands_give_the_product_of_those() {
        // What the other server cannot see is not lost: the moved operands are multiplied.
        let ring = Z64::new();
        let shape = Shape { groups: 1, m: 2, k: 3, n: 2, uses: 1 };
        let (x, y, by) = (numbers(1, 6, 99), numbers(2, 6, 99), numbers(3, 6, 99));
        let [x0, mut x1] = shares::<_, Full>(&ring, 5, &x);
        ring.add(Range::Full, x1.words_mut(), &ring.encode(Range::Full, &by));
        let masks = correlations(&ring, shape, |m| shift(&ring, Range::Full, &mut m[0], &by));
        let [z0, z1] = go(&ring, [vec![x0], vec![x1]], shares(&ring, 4, &y), masks).out;
        let moved: Vec<i64> = x.iter().zip(&by).map(|(x, b)| x + b).collect();
        let z = share::join(&ring, Range::Full, z0[0].clone().into_words(), z1[0].words());
        assert_eq!(z, naive(&shape, &moved, &y));
    }

    #[test]
    fn misuse_is_refused() {
        let ring = Rns::new(Moduli::usual(2, 1).unwrap()).unwrap();
        let shape = Shape { groups: 1, m: 2, k: 3, n: 2, uses: 1 };
        let bad = vec![255; shape.correction_len(&ring)];
        let got = Receiver::new(&ring, Server::Server1, &prgs(1)[1]).receive(AT, &shape, bad);
        assert!(matches!(got.err(), Some(Error::Peer { .. })));
        let inputs = || {
            let ([y0, y1], [m0, m1]) = (shares(&ring, 4, &[1; 6]), correlations(&ring, shape, |_| ()));
            [(y0, m0), (y1, m1)]
        };
        let out = run(&ring, inputs(), async |p, (y, m)| {
            let mut operand = m.operand(y);
            product(p, AT, &mut operand, &Share::new(vec![0; 15])).await
        });
        assert!(matches!(out.err(), Some(Error::Config(_))), "five elements instead of six");
        let out = run(&ring, inputs(), async |p, (y, m)| {
            let (mut operand, x) = (m.operand(y), Share::new(vec![0; 18]));
            product(p, AT, &mut operand, &x).await?;
            product(p, AT.call(2), &mut operand, &x).await
        });
        assert!(matches!(out.err(), Some(Error::Config(_))), "used twice");
        // A peer that sends bytes which are no residues, or too few.
        for message in [vec![255; 36], vec![0; 35], vec![0; 18]] {
            let out = run(&ring, inputs(), async |p, (y, m)| {
                if p.role.is_first() {
                    return product(p, AT, &mut m.operand(y), &Share::new(vec![0; 18])).await.map(|_| ());
                }
                p.give(AT, message.clone()).await
            });
            assert!(matches!(out.err(), Some(Error::Peer { .. })), "{} bytes", message.len());
        }
    }

    #[test]
    fn shapes_that_are_none() {
        let good = Shape { groups: 64, m: 896, k: 40, n: 7, uses: 1 };
        assert!(good.is_valid());
        for size in [0, 1 << 30, usize::MAX] {
            for bad in [
                Shape { groups: size, ..good },
                Shape { m: size, ..good },
                Shape { k: size, ..good },
                Shape { n: size, ..good },
                Shape { uses: size, ..good },
            ] {
                assert!(!bad.is_valid(), "{bad:?}");
            }
        }
    }
}
