//! The residue number system: Z_M as residues of one byte, M = P*Q.

use serde::{Deserialize, Serialize};

use super::kernel as k;
use super::kernel::{Conv, Isa};
use super::{CHUNK, Range, Ring, par};
use crate::error::{Error, Result};
use crate::prg::Streams;
use crate::secret::Secret;

/// The moduli of a residue number system: comparison part `p`, scale part `q`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Moduli {
    /// Their product P bounds what is compared.
    pub p: Vec<u8>,
    /// Their product Q is what a rescale divides by.
    pub q: Vec<u8>,
}

impl Moduli {
    /// The usual moduli, largest first: `k` for P, then `l` for Q.
    ///
    /// # Errors
    /// As [`Rns::new`].
    pub fn usual(k: usize, l: usize) -> Result<Self> {
        const USUAL: [u8; 8] = [255, 253, 251, 247, 241, 239, 233, 229];
        if k + l > USUAL.len() {
            return Err(Error::Config(format!("{k} and {l} moduli: at most {} in all", USUAL.len())));
        }
        let m = Self { p: USUAL[..k].to_vec(), q: USUAL[k..k + l].to_vec() };
        Rns::new(m.clone()).map(|_| m)
    }
}

/// Arithmetic in Z_M, residue by residue. Planes: those of P, then those of Q.
#[derive(Clone, Debug, PartialEq)]
pub struct Rns {
    moduli: Moduli,
    all: Vec<u8>,
    big_p: u64,
    big_q: u64,
    isa: Isa,
}

impl Rns {
    /// Checks the moduli and selects kernels for this machine.
    ///
    /// # Errors
    /// [`Error::Config`] unless P has 2 to 4 moduli and Q 1 to 4, all odd, at least 3 and pairwise coprime,
    /// with P and Q below 2^32.
    pub fn new(moduli: Moduli) -> Result<Self> {
        Self::with_isa(moduli, Isa::detect())
    }

    /// The same with chosen kernels.
    ///
    /// # Errors
    /// As [`Rns::new`].
    pub fn with_isa(moduli: Moduli, isa: Isa) -> Result<Self> {
        let refuse =
            |why: String| Err(Error::Config(format!("moduli {:?} and {:?}: {why}", moduli.p, moduli.q)));
        if !(2..=4).contains(&moduli.p.len()) || !(1..=4).contains(&moduli.q.len()) {
            return refuse("2 to 4 are needed for P and 1 to 4 for Q".into());
        }
        let all: Vec<u8> = moduli.p.iter().chain(&moduli.q).copied().collect();
        for (i, &m) in all.iter().enumerate() {
            if m < 3 || m.is_multiple_of(2) {
                return refuse(format!("{m} is not an odd number of at least 3"));
            }
            if let Some(o) = all[..i].iter().find(|&&o| gcd(o, m) != 1) {
                return refuse(format!("{o} and {m} have a common factor"));
            }
        }
        let product = |part: &[u8]| part.iter().map(|&m| u64::from(m)).product::<u64>();
        let (big_p, big_q) = (product(&moduli.p), product(&moduli.q));
        Ok(Self { moduli, all, big_p, big_q, isa })
    }

    /// The moduli.
    pub const fn moduli(&self) -> &Moduli {
        &self.moduli
    }

    /// The modulus of a plane.
    pub fn modulus(&self, plane: usize) -> u8 {
        self.all[plane]
    }

    /// P.
    pub const fn big_p(&self) -> u64 {
        self.big_p
    }

    /// Number of moduli of P.
    pub fn k(&self) -> usize {
        self.moduli.p.len()
    }

    /// Number of moduli of Q.
    pub fn l(&self) -> usize {
        self.moduli.q.len()
    }

    /// The kernels in use.
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// One server's part of x / Q: server 0 rounds its share down, server 1 rounds its own up, so that the
    /// sum is x / Q with an error below one (the wrap of the shares is a multiple of M, and M / Q = P).
    pub fn rescale(&self, first: bool, x: &[u8]) -> Secret<u8> {
        let n = x.len() / self.all.len();
        let mut out = Secret::zeroed(self.k() * n);
        k::rescale(self.isa, &self.moduli.p, &self.moduli.q, !first, x, n, &mut out);
        out
    }

    /// Integers in [0, P) from residues modulo P.
    pub fn compose(&self, planes: &[u8]) -> Secret<u32> {
        let n = planes.len() / self.k();
        let mut out = Secret::zeroed(n);
        k::compose_u32(self.isa, &self.moduli.p, planes, n, &mut out);
        out
    }

    /// Integers modulo the modulus of `plane`.
    pub fn reduce_plane(&self, plane: usize, x: &[u32]) -> Secret<u8> {
        let mut out = Secret::zeroed(x.len());
        k::reduce_u32(self.isa, self.all[plane], x, &mut out);
        out
    }

    /// A number modulo the modulus of `plane`.
    pub fn residue(&self, plane: usize, x: i128) -> u8 {
        x.rem_euclid(i128::from(self.all[plane])) as u8
    }

    /// 1/2 modulo the modulus of `plane`.
    pub fn half(&self, plane: usize) -> u8 {
        self.all[plane] / 2 + 1
    }

    fn planes_of<'a>(
        &self,
        range: Range,
        words: &'a mut [u8],
    ) -> impl Iterator<Item = (usize, &'a mut [u8])> {
        let n = (words.len() / self.planes(range)).max(1);
        words.chunks_exact_mut(n).enumerate()
    }

    fn zip(&self, range: Range, a: &mut [u8], b: &[u8], f: impl Fn(Isa, u8, &mut [u8], &[u8]) + Sync + Send) {
        assert_eq!(a.len(), b.len(), "operands of one length");
        let n = a.len() / self.planes(range);
        par::each(n / 4, self.planes_of(range, a), |(i, a)| {
            f(self.isa, self.all[i], a, &b[i * n..(i + 1) * n])
        });
    }
}

fn gcd(a: u8, b: u8) -> u8 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Ring for Rns {
    type Word = u8;
    type Compared = u32;
    type Packed = Vec<k::PackedWeights>;

    fn planes(&self, range: Range) -> usize {
        match range {
            Range::Full => self.all.len(),
            Range::Reduced => self.moduli.p.len(),
        }
    }

    fn divisor(&self) -> u64 {
        self.big_q
    }

    fn one_half(&self) -> Option<i64> {
        // (M + 1) / 2: M is odd.
        Some(self.bound(Range::Full) + 1)
    }

    fn bound(&self, range: Range) -> i64 {
        let m = match range {
            Range::Full => u128::from(self.big_p) * u128::from(self.big_q),
            Range::Reduced => u128::from(self.big_p),
        };
        i64::try_from((m - 1) / 2).expect("eight moduli below 2^8 give M < 2^64")
    }

    fn uniform_plane(&self, plane: usize, lane: usize, streams: Streams<'_>, out: &mut [u8]) {
        let m = self.all[plane];
        par::each(CHUNK, out.chunks_mut(CHUNK).enumerate(), |(chunk, out)| {
            let mut stream = streams.stream(lane, chunk);
            let mut random = [0; 4096];
            let mut filled = 0;
            while filled < out.len() {
                // About as many bytes as are still missing, in whole blocks.
                let wanted = (out.len() - filled) * 256 / usize::from(m) + 16;
                let take = wanted.next_multiple_of(16).min(random.len());
                stream.fill(&mut random[..take]);
                filled = k::uniform_residues(self.isa, m, &random[..take], out, filled);
            }
            zeroize::Zeroize::zeroize(&mut random);
        });
    }

    fn is_canonical_plane(&self, plane: usize, words: &[u8]) -> bool {
        words.iter().fold(0, |a, &b| a.max(b)) < self.all[plane]
    }

    fn add_plane(&self, plane: usize, a: &mut [u8], b: &[u8]) {
        k::add_mod(self.isa, self.all[plane], a, b);
    }

    fn sub_plane(&self, plane: usize, a: &mut [u8], b: &[u8]) {
        k::sub_mod(self.isa, self.all[plane], a, b);
    }

    fn add(&self, range: Range, a: &mut [u8], b: &[u8]) {
        self.zip(range, a, b, k::add_mod);
    }

    fn sub(&self, range: Range, a: &mut [u8], b: &[u8]) {
        self.zip(range, a, b, k::sub_mod);
    }

    fn mul(&self, range: Range, a: &mut [u8], b: &[u8]) {
        self.zip(range, a, b, k::mul_mod);
    }

    fn scale(&self, range: Range, a: &mut [u8], factor: i64) {
        let n = a.len() / self.planes(range);
        par::each(n / 4, self.planes_of(range, a), |(i, a)| {
            k::mul_const_mod(self.isa, self.all[i], self.residue(i, factor.into()), a);
        });
    }

    fn encode(&self, range: Range, x: &[i64]) -> Vec<u8> {
        let mut out = vec![0; self.planes(range) * x.len()];
        par::each(x.len(), self.planes_of(range, &mut out), |(i, out)| {
            k::reduce_i64(self.isa, self.all[i], x, out)
        });
        out
    }

    fn decode(&self, range: Range, words: &[u8]) -> Vec<i64> {
        let planes = self.planes(range);
        let n = words.len() / planes;
        let modulus = self.all[..planes].iter().map(|&m| i128::from(m)).product::<i128>();
        // Mixed radix: x = d0 + m0*(d1 + m1*(d2 + ...)).
        let inverse = |a: u64, m: u8| (1..u64::from(m)).find(|t| a * t % u64::from(m) == 1).unwrap_or(0);
        let radix: Vec<i128> =
            (0..planes).map(|i| self.all[..i].iter().map(|&m| i128::from(m)).product()).collect();
        let inverses: Vec<i128> = (0..planes)
            .map(|i| inverse((radix[i] % i128::from(self.all[i])) as u64, self.all[i]).into())
            .collect();
        (0..n)
            .map(|e| {
                let x = (0..planes).fold(0, |x, i| {
                    let m = i128::from(self.all[i]);
                    let digit = (i128::from(words[i * n + e]) - x).rem_euclid(m) * inverses[i] % m;
                    x + digit * radix[i]
                });
                (if x > modulus / 2 { x - modulus } else { x }) as i64
            })
            .collect()
    }

    fn pack(&self, conv: &Conv, w: &[u8]) -> Self::Packed {
        let n = conv.weight_len();
        assert_eq!(w.len(), n * self.all.len(), "weights of the stated shape");
        par::map(n, self.all.iter().enumerate(), |(i, &m)| {
            k::PackedWeights::pack(self.isa, conv, m, &w[i * n..(i + 1) * n])
        })
    }

    fn apply(&self, conv: &Conv, x: &[u8], w: &Self::Packed, acc: &mut [u8]) {
        let n = conv.in_len();
        assert_eq!(
            (x.len(), acc.len()),
            (n * self.all.len(), conv.out_len() * self.all.len()),
            "shapes agree"
        );
        let work = usize::try_from(conv.macs() / 64).expect("fits");
        par::each(work, self.planes_of(Range::Full, acc), |(i, acc)| {
            k::conv_accumulate(self.isa, conv, self.all[i], &x[i * n..(i + 1) * n], &w[i], acc);
        });
    }

    fn compare_bits(&self) -> u32 {
        (self.big_p - 1).ilog2() + 1
    }

    fn mask_for_sign(&self, x: &mut [u8], r: &[u8]) {
        self.scale(Range::Reduced, x, 2);
        self.add(Range::Reduced, x, r);
    }

    fn split_for_sign(&self, z: &[u8], n: usize) -> (Secret<u32>, Secret<u64>) {
        let z = self.compose(z);
        debug_assert_eq!(z.len(), n);
        let low = z.chunks(64).map(|c| c.iter().rev().fold(0, |w, v| w << 1 | u64::from(v & 1)));
        let low = low.collect::<Vec<_>>().into();
        (z, low)
    }

    fn lookup(&self, z: &[u32], shift: u32, onehot: &[u16], eq: &mut [u64], lt: &mut [u64]) {
        k::lookup_onehot(self.isa, z, shift, onehot, eq, lt);
    }

    fn digit(&self, x: u32, shift: u32) -> u32 {
        x >> shift & 15
    }
}
