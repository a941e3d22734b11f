//! Arithmetic on whole residue planes: safe loops that LLVM vectorises, compiled for each instruction set.
//!
//! Words of 16 bits carry the products: `254 * 254` plus two residues stays below `2^16`, where Barrett needs
//! one high and one low multiplication. No branch or index depends on a value.

use super::residue::{lazy16, magic16, magic32, reduce16, reduce32};
use super::vectorised;

/// Elements handled at a time by the loops over several planes; their temporaries stay in L1.
const BLOCK: usize = 256;

vectorised! {
    /// `a = (a + b) mod m`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_mod(m: u8, a: &mut [u8], b: &[u8]) = add_body
}
vectorised! {
    /// `a = (a - b) mod m`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn sub_mod(m: u8, a: &mut [u8], b: &[u8]) = sub_body
}
vectorised! {
    /// `a = -a mod m`.
    pub fn neg_mod(m: u8, a: &mut [u8]) = neg_body
}
vectorised! {
    /// `a = c a mod m`.
    pub fn mul_const_mod(m: u8, c: u8, a: &mut [u8]) = mul_const_body
}
vectorised! {
    /// `a = a b mod m`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn mul_mod(m: u8, a: &mut [u8], b: &[u8]) = mul_body
}
vectorised! {
    /// `acc = (acc + c a) mod m`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn mul_add_const_mod(m: u8, c: u8, a: &[u8], acc: &mut [u8]) = mul_add_const_body
}
vectorised! {
    /// `acc = (acc + a b) mod m`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn mul_add_mod(m: u8, a: &[u8], b: &[u8], acc: &mut [u8]) = mul_add_body
}
vectorised! {
    /// `out = x mod m`, for any `x`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn reduce_u32(m: u8, x: &[u32], out: &mut [u8]) = reduce_u32_body
}
vectorised! {
    /// `out = x mod m` in `[0, m)`, for any `x`, negative ones too.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn reduce_i64(m: u8, x: &[i64], out: &mut [u8]) = reduce_i64_body
}
vectorised! {
    /// Divides `x` in `[0, M)` by `Q`, where `M = P Q`, `P` the product of the `k` moduli `p` and `Q` of the `l`
    /// moduli `q`, all coprime: `out` is `floor(x / Q) mod p_i`, or, with `ceil`, `-floor(((M - x) mod M) / Q)
    /// mod p_i`, the ceiling. `planes` holds the `n` residues of each modulus, those of `p` first; `out` holds
    /// `n` of each of `p`.
    ///
    /// With `r = x mod Q` as mixed-radix digits `d_j` of weight `q_0 .. q_(j-1)`, the floor is
    /// `(x - r) / Q`, whose residue modulo `p_i` needs the digits only.
    ///
    /// # Panics
    /// If lengths disagree, a modulus is below 2, `q` has none or more than four, or they are not coprime.
    pub fn rescale(p: &[u8], q: &[u8], ceil: bool, planes: &[u8], n: usize, out: &mut [u8]) = rescale_body
}
vectorised! {
    /// The integer in `[0, P)` with the given residues, `P < 2^32` the product of the one to four coprime moduli
    /// `p`; `planes` holds the `n` residues of each.
    ///
    /// # Panics
    /// If lengths disagree, a modulus is below 2, there are none or more than four, they are not coprime, or
    /// `P >= 2^32`.
    pub fn compose_u32(p: &[u8], planes: &[u8], n: usize, out: &mut [u32]) = compose_body
}

#[inline(always)]
fn add(m: u8, a: u8, b: u8) -> u8 {
    let gap = m.wrapping_sub(b);
    if a < gap { a.wrapping_add(b) } else { a.wrapping_sub(gap) }
}

#[inline(always)]
fn add_body(m: u8, a: &mut [u8], b: &[u8]) {
    assert_eq!(a.len(), b.len());
    for (a, &b) in a.iter_mut().zip(b) {
        *a = add(m, *a, b);
    }
}

#[inline(always)]
fn sub_body(m: u8, a: &mut [u8], b: &[u8]) {
    assert_eq!(a.len(), b.len());
    for (a, &b) in a.iter_mut().zip(b) {
        let wrap = if *a < b { m } else { 0 };
        *a = a.wrapping_sub(b).wrapping_add(wrap);
    }
}

#[inline(always)]
fn neg(m: u8, a: u8) -> u8 {
    if a == 0 { 0 } else { m.wrapping_sub(a) }
}

#[inline(always)]
fn neg_body(m: u8, a: &mut [u8]) {
    for a in a {
        *a = neg(m, *a);
    }
}

#[inline(always)]
fn mul_add(m: u8, magic: u16, a: u8, b: u8, c: u8) -> u8 {
    let product = u16::from(a).wrapping_mul(u16::from(b));
    reduce16(product.wrapping_add(u16::from(c)), m, magic)
}

#[inline(always)]
fn mul_const_body(m: u8, c: u8, a: &mut [u8]) {
    assert!(m >= 2);
    let magic = magic16(m);
    for a in a {
        *a = mul_add(m, magic, *a, c, 0);
    }
}

#[inline(always)]
fn mul_body(m: u8, a: &mut [u8], b: &[u8]) {
    assert!(m >= 2 && a.len() == b.len());
    let magic = magic16(m);
    for (a, &b) in a.iter_mut().zip(b) {
        *a = mul_add(m, magic, *a, b, 0);
    }
}

#[inline(always)]
fn mul_add_const_body(m: u8, c: u8, a: &[u8], acc: &mut [u8]) {
    assert!(m >= 2 && a.len() == acc.len());
    let magic = magic16(m);
    for (acc, &a) in acc.iter_mut().zip(a) {
        *acc = mul_add(m, magic, a, c, *acc);
    }
}

#[inline(always)]
fn mul_add_body(m: u8, a: &[u8], b: &[u8], acc: &mut [u8]) {
    assert!(m >= 2 && a.len() == acc.len() && b.len() == acc.len());
    let magic = magic16(m);
    for ((acc, &a), &b) in acc.iter_mut().zip(a).zip(b) {
        *acc = mul_add(m, magic, a, b, *acc);
    }
}

#[inline(always)]
fn reduce_u32_body(m: u8, x: &[u32], out: &mut [u8]) {
    assert!(m >= 2 && x.len() == out.len());
    let magic = magic32(m);
    for (out, &x) in out.iter_mut().zip(x) {
        *out = reduce32(x, m, magic);
    }
}

#[inline(always)]
fn reduce_i64_body(m: u8, x: &[i64], out: &mut [u8]) {
    assert!(m >= 2 && x.len() == out.len());
    let magic = magic32(m);
    let modulus = u32::from(m);
    let power = ((1u64 << 32) % u64::from(m)) as u32;
    // x = (high + 2^31) 2^32 + low - 2^63 with the sign bit flipped; `lift` cancels the last.
    let lift = (modulus - ((1u64 << 63) % u64::from(m)) as u32) % modulus;
    for (out, &x) in out.iter_mut().zip(x) {
        let x = x as u64 ^ 1 << 63;
        let high = u32::from(reduce32((x >> 32) as u32, m, magic));
        let low = u32::from(reduce32(x as u32, m, magic));
        *out = reduce32(high * power + low + lift, m, magic);
    }
}

/// `v^-1 mod m`.
fn inverse(v: u32, m: u8) -> u8 {
    let m = u32::from(m);
    (1..m).find(|i| v % m * i % m == 1).expect("the moduli are coprime") as u8
}

/// Mixed-radix digits of a number given by its residues: digit `j` is the sum over `i < j` of
/// `factor[j][i] * d_i`, plus `factor[j][j]` times residue `j`, modulo `moduli[j]`.
struct Digits<'a> {
    moduli: &'a [u8],
    factor: [[u16; 4]; 4],
}

impl<'a> Digits<'a> {
    fn new(moduli: &'a [u8]) -> Self {
        assert!((1..=4).contains(&moduli.len()) && moduli.iter().all(|&m| m >= 2), "one to four moduli");
        let mut factor = [[0; 4]; 4];
        for (j, &m) in moduli.iter().enumerate() {
            // x_j = d_0 + d_1 q_0 + .. + d_j q_0..q_(j-1), solved for d_j.
            let weight = |i: usize| moduli[..i].iter().fold(1, |w, &q| w * u32::from(q) % u32::from(m));
            let inverse = u32::from(inverse(weight(j), m));
            let m = u32::from(m);
            for (i, factor) in factor[j][..j].iter_mut().enumerate() {
                *factor = ((m - weight(i)) % m * inverse % m) as u16;
            }
            factor[j][j] = inverse as u16;
        }
        Self { moduli, factor }
    }

    /// The digits of `len <= BLOCK` elements from `at` on; `planes` are `n` apart. `negative` negates first.
    #[inline(always)]
    fn compute(
        &self,
        negative: bool,
        planes: &[u8],
        n: usize,
        at: usize,
        len: usize,
        out: &mut [[u16; BLOCK]; 4],
    ) {
        for (j, &m) in self.moduli.iter().enumerate() {
            let magic = magic16(m);
            let (digits, rest) = out.split_at_mut(j);
            let digit = &mut rest[0][..len];
            let residues = &planes[j * n + at..][..len];
            scale(m, self.factor[j][j], negative, residues, digit);
            for (digits, &factor) in digits.iter().zip(&self.factor[j]) {
                accumulate(m, factor, &digits[..len], digit);
            }
            for digit in digit {
                *digit = u16::from(reduce16(*digit, m, magic));
            }
        }
    }
}

/// `out = f x` or `-f x`, below `2m`.
#[inline(always)]
fn scale(m: u8, f: u16, negative: bool, x: &[u8], out: &mut [u16]) {
    let magic = magic16(m);
    // m - x may be m itself: m * 254 still fits.
    let (flip, offset) = if negative { (u16::MAX, u16::from(m) + 1) } else { (0, 0) };
    for (out, &x) in out.iter_mut().zip(x) {
        let x = (u16::from(x) ^ flip).wrapping_add(offset);
        *out = lazy16(x.wrapping_mul(f), m, magic);
    }
}

/// `out += f d`, both below `2m`: `254 * 254 + 2 * 255 < 2^16`.
#[inline(always)]
fn accumulate(m: u8, f: u16, d: &[u16], out: &mut [u16]) {
    let magic = magic16(m);
    for (out, &d) in out.iter_mut().zip(d) {
        *out = lazy16(d.wrapping_mul(f).wrapping_add(*out), m, magic);
    }
}

#[inline(always)]
fn rescale_body(p: &[u8], q: &[u8], ceil: bool, planes: &[u8], n: usize, out: &mut [u8]) {
    let k = p.len();
    assert!(planes.len() == (k + q.len()) * n && out.len() == k * n, "one plane per modulus");
    assert!(p.iter().all(|&m| m >= 2));
    let digits = Digits::new(q);
    // The floor modulo p_i is x_i / Q - sum of d_j w_j / Q.
    let factors: Vec<[u16; 5]> = p
        .iter()
        .map(|&m| {
            let modulus = u32::from(m);
            let weight = |j: usize| q[..j].iter().fold(1, |w, &q| w * u32::from(q) % modulus);
            let inverse = u32::from(inverse(weight(q.len()), m));
            let mut factors = [0; 5];
            for (j, factor) in factors[..q.len()].iter_mut().enumerate() {
                *factor = ((modulus - weight(j)) % modulus * inverse % modulus) as u16;
            }
            factors[4] = inverse as u16;
            factors
        })
        .collect();
    let (p_planes, q_planes) = planes.split_at(k * n);
    let mut radix = [[0u16; BLOCK]; 4];
    let mut sum = [0u16; BLOCK];
    for at in (0..n).step_by(BLOCK) {
        let len = (n - at).min(BLOCK);
        digits.compute(ceil, q_planes, n, at, len, &mut radix);
        for (i, (&m, factors)) in p.iter().zip(&factors).enumerate() {
            let magic = magic16(m);
            let sum = &mut sum[..len];
            scale(m, factors[4], ceil, &p_planes[i * n + at..][..len], sum);
            for (radix, &factor) in radix[..q.len()].iter().zip(factors) {
                accumulate(m, factor, &radix[..len], sum);
            }
            for (out, &sum) in out[i * n + at..][..len].iter_mut().zip(sum.iter()) {
                let floor = reduce16(sum, m, magic);
                *out = if ceil { neg(m, floor) } else { floor };
            }
        }
    }
}

#[inline(always)]
fn compose_body(p: &[u8], planes: &[u8], n: usize, out: &mut [u32]) {
    assert!(planes.len() == p.len() * n && out.len() == n, "one plane per modulus");
    assert!(p.iter().map(|&m| u64::from(m)).product::<u64>() < 1 << 32, "the product must fit 32 bits");
    let digits = Digits::new(p);
    let mut radix = [[0u16; BLOCK]; 4];
    for at in (0..n).step_by(BLOCK) {
        let len = (n - at).min(BLOCK);
        digits.compute(false, planes, n, at, len, &mut radix);
        let out = &mut out[at..][..len];
        out.fill(0);
        for (radix, &m) in radix[..p.len()].iter().zip(p).rev() {
            for (out, &digit) in out.iter_mut().zip(radix) {
                *out = out.wrapping_mul(u32::from(m)).wrapping_add(u32::from(digit));
            }
        }
    }
}
