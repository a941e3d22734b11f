//! The local end of a sign protocol: functions with one bend at zero from opened values and dealt shares, one
//! residue plane at a time. Formulas and notation are those of `sign`.

use super::residue::magic16;
use super::vectorised;

/// What one plane's constants are.
#[derive(Clone, Copy, Debug)]
pub struct Bend {
    /// The modulus.
    pub m: u8,
    /// Whether this share includes public summands.
    pub first: bool,
    /// Slope for x >= 0, divided by two, modulo m.
    pub positive: u8,
    /// Slope for x < 0, divided by two, modulo m.
    pub negative: u8,
    /// P modulo m.
    pub p: u8,
}

/// Opened values and dealt shares of one plane whose modulus divides P. Bits are bytes of 0 and 1.
#[derive(Clone, Copy)]
pub struct Masked<'a> {
    /// c = sign ^ beta.
    pub c: &'a [u8],
    /// z modulo m.
    pub z: &'a [u8],
    /// Share of r.
    pub r: &'a [u8],
    /// Share of beta.
    pub beta: &'a [u8],
    /// Share of beta r.
    pub beta_r: &'a [u8],
}

/// The same for a modulus of Q, where the terms with P do not vanish.
#[derive(Clone, Copy)]
pub struct Wrapped<'a> {
    /// What both kinds of plane need.
    pub masked: Masked<'a>,
    /// The lowest bit of z.
    pub l: &'a [u8],
    /// Share of rho.
    pub rho: &'a [u8],
    /// Share of beta rho.
    pub beta_rho: &'a [u8],
}

vectorised! {
    /// `out = positive x [x >= 0] + negative x [x < 0]`, this server's share, in a plane of P.
    ///
    /// # Panics
    /// If a slice is shorter than `out`.
    pub fn bend(k: &Bend, v: &Masked<'_>, out: &mut [u8]) = bend_body
}
vectorised! {
    /// The same in a plane of Q.
    ///
    /// # Panics
    /// If a slice is shorter than `out`.
    pub fn bend_wrapped(k: &Bend, v: &Wrapped<'_>, out: &mut [u8]) = wrapped_body
}
vectorised! {
    /// `out = c + (1 - 2c) beta`, this server's share of the sign.
    ///
    /// # Panics
    /// If a slice is shorter than `out`.
    pub fn unmask_bit(m: u8, first: bool, c: &[u8], beta: &[u8], out: &mut [u8]) = unmask_body
}
vectorised! {
    /// `out = [first] (z - offset) - r + p upper lower mod m`: the end of a lift in one plane, where `upper` is
    /// shared and `lower` public, a byte of 0 or 1.
    ///
    /// # Panics
    /// If a slice is shorter than `out`.
    pub fn unwrap_mask(k: &Bend, offset: u8, z: &[u8], r: &[u8], lower: &[u8], upper: &[u8], out: &mut [u8]) = unwrap_body
}
vectorised! {
    /// Bits as bytes of 0 and 1; as many as `out` is long.
    ///
    /// # Panics
    /// If there are fewer bits.
    pub fn spread_bits(bits: &[u64], out: &mut [u8]) = spread_body
}
vectorised! {
    /// `a` where `bit` is 1, else 0.
    ///
    /// # Panics
    /// If `bit` is shorter than `a`.
    pub fn keep_where(a: &mut [u8], bit: &[u8]) = keep_body
}

/// A representative of `v` in `[0, 2m)`, given `magic16(m)`.
#[inline(always)]
fn lazy16(v: u16, m: u8, magic: u16) -> u16 {
    let q = ((u32::from(v) * u32::from(magic)) >> 16) as u16;
    v.wrapping_sub(q.wrapping_mul(u16::from(m)))
}

/// `v mod m` for any `v < 2^16`, given `magic16(m)`.
#[inline(always)]
fn reduce16(v: u16, m: u8, magic: u16) -> u8 {
    once(lazy16(v, m, magic), u16::from(m)) as u8
}

/// `v - m` if that is not negative, for v < 2m < 2^16.
#[inline(always)]
fn once(v: u16, m: u16) -> u16 {
    v.min(v.wrapping_sub(m))
}

/// `a` if `bit` is 1, `b` if it is 0.
#[inline(always)]
fn pick(bit: u8, a: u16, b: u16) -> u16 {
    let mask = u16::from(bit).wrapping_neg();
    b ^ (a ^ b) & mask
}

#[inline(always)]
fn combine(k: &Bend, magic: u16, up: u16, down: u16) -> u8 {
    // Each product is below 254 * 255, each lazy remainder below 2m.
    let up = lazy16(up.wrapping_mul(u16::from(k.positive)), k.m, magic);
    let down = lazy16(down.wrapping_mul(u16::from(k.negative)), k.m, magic);
    reduce16(up.wrapping_add(down), k.m, magic)
}

#[inline(always)]
fn bend_body(k: &Bend, v: &Masked<'_>, out: &mut [u8]) {
    let n = out.len();
    let (c, z, r, beta, beta_r) = (&v.c[..n], &v.z[..n], &v.r[..n], &v.beta[..n], &v.beta_r[..n]);
    let (m, magic) = (u16::from(k.m), magic16(k.m));
    let public = if k.first { u16::MAX } else { 0 };
    for i in 0..n {
        let zi = u16::from(z[i]);
        // d = 2 beta x, u = 2 x.
        let beta_z = u16::from(reduce16(zi.wrapping_mul(u16::from(beta[i])), k.m, magic));
        let d = once(beta_z.wrapping_add(m).wrapping_sub(u16::from(beta_r[i])), m);
        let u = once((zi & public).wrapping_add(m).wrapping_sub(u16::from(r[i])), m);
        let rest = once(u.wrapping_add(m).wrapping_sub(d), m);
        out[i] = combine(k, magic, pick(c[i], d, rest), pick(c[i], rest, d));
    }
}

#[inline(always)]
fn wrapped_body(k: &Bend, v: &Wrapped<'_>, out: &mut [u8]) {
    let n = out.len();
    let (c, z, r) = (&v.masked.c[..n], &v.masked.z[..n], &v.masked.r[..n]);
    let (beta, beta_r) = (&v.masked.beta[..n], &v.masked.beta_r[..n]);
    let (l, rho, beta_rho) = (&v.l[..n], &v.rho[..n], &v.beta_rho[..n]);
    let (m, magic) = (u16::from(k.m), magic16(k.m));
    let public = if k.first { u16::MAX } else { 0 };
    let p = u16::from(k.p);
    let times = |a: u16, b: u16| u16::from(reduce16(a.wrapping_mul(b), k.m, magic));
    let minus = |a: u16, b: u16| once(a.wrapping_add(m).wrapping_sub(b), m);
    let plus = |a: u16, b: u16| once(a.wrapping_add(b), m);
    for i in 0..n {
        let zi = u16::from(z[i]);
        let b = u16::from(beta[i]);
        // t = P (l ^ rho), dt = beta t; u = z - r, du = beta u. Twice x is u + t or u - t.
        let (t, dt) = (times(p, u16::from(rho[i])), times(p, u16::from(beta_rho[i])));
        let t = pick(l[i], minus(p & public, t), t);
        let dt = pick(l[i], minus(times(p, b), dt), dt);
        let u = minus(zi & public, u16::from(r[i]));
        let du = minus(times(zi, b), u16::from(beta_r[i]));
        let (over, under) = (plus(du, dt), minus(du, dt));
        let up = pick(c[i], over, minus(plus(u, t), over));
        let down = pick(c[i], minus(minus(u, t), under), under);
        out[i] = combine(k, magic, up, down);
    }
}

#[inline(always)]
fn unmask_body(m: u8, first: bool, c: &[u8], beta: &[u8], out: &mut [u8]) {
    let n = out.len();
    let (c, beta, m) = (&c[..n], &beta[..n], u16::from(m));
    let one = u16::from(first);
    for i in 0..n {
        let b = u16::from(beta[i]);
        out[i] = pick(c[i], once(one.wrapping_add(m).wrapping_sub(b), m), b) as u8;
    }
}

#[inline(always)]
fn unwrap_body(k: &Bend, offset: u8, z: &[u8], r: &[u8], lower: &[u8], upper: &[u8], out: &mut [u8]) {
    let n = out.len();
    let (z, r, lower, upper) = (&z[..n], &r[..n], &lower[..n], &upper[..n]);
    let (m, magic) = (u16::from(k.m), magic16(k.m));
    let public = if k.first { u16::MAX } else { 0 };
    for i in 0..n {
        let y = u16::from(z[i]).wrapping_add(m).wrapping_sub(u16::from(offset)) & public;
        let y = y.wrapping_add(m).wrapping_sub(u16::from(r[i]));
        let kept = u16::from(upper[i]) & u16::from(lower[i]).wrapping_neg();
        let wrap = u16::from(reduce16(kept.wrapping_mul(u16::from(k.p)), k.m, magic));
        out[i] = reduce16(y.wrapping_add(wrap), k.m, magic);
    }
}

#[inline(always)]
fn spread_body(bits: &[u64], out: &mut [u8]) {
    assert!(bits.len() * 64 >= out.len());
    for (out, &word) in out.chunks_mut(64).zip(bits) {
        for (i, out) in out.chunks_mut(8).enumerate() {
            // Copies of the byte, each keeping one of its bits.
            let byte = word >> (8 * i) & 0xff;
            let kept = byte.wrapping_mul(0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
            let ones = (kept.wrapping_add(0x7f7f_7f7f_7f7f_7f7f) | kept) >> 7 & 0x0101_0101_0101_0101;
            out.copy_from_slice(&ones.to_le_bytes()[..out.len()]);
        }
    }
}

#[inline(always)]
fn keep_body(a: &mut [u8], bit: &[u8]) {
    let bit = &bit[..a.len()];
    for (a, b) in a.iter_mut().zip(bit) {
        *a &= b.wrapping_neg();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::kernel::Isa;

    #[test]
    fn spreads_every_bit() {
        let words = [0x8000_0000_0000_0001, 0x0123_4567_89ab_cdef, u64::MAX, 0];
        for (isa, n) in Isa::available().into_iter().flat_map(|isa| [0, 1, 63, 64, 65, 250].map(|n| (isa, n)))
        {
            let mut out = vec![9; n];
            spread_bits(isa, &words, &mut out);
            for (i, &o) in out.iter().enumerate() {
                assert_eq!(u64::from(o), words[i / 64] >> (i % 64) & 1, "{isa:?} bit {i}");
            }
        }
    }

    /// Every combination of shares, against the formulas in wide integers.
    #[test]
    fn equals_the_formulas() {
        for (m, first) in [(255u8, true), (253, false), (7, true), (3, false)] {
            let n = 4000;
            let mut state = 1u64;
            let mut draw = |below: u64| -> Vec<u8> {
                (0..n)
                    .map(|_| {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        ((state >> 33) % below) as u8
                    })
                    .collect()
            };
            let big = u64::from(m);
            let (c, l) = (draw(2), draw(2));
            let [z, r, beta, beta_r, rho, beta_rho] = [(); 6].map(|()| draw(big));
            let masked = Masked { c: &c, z: &z, r: &r, beta: &beta, beta_r: &beta_r };
            let wrapped = Wrapped { masked, l: &l, rho: &rho, beta_rho: &beta_rho };
            let k = Bend { m, first, positive: m - 1, negative: m / 2, p: m - 2 };
            for isa in Isa::available() {
                let (mut flat, mut bent, mut bit) = (vec![0; n], vec![0; n], vec![0; n]);
                bend(isa, &k, &masked, &mut flat);
                bend_wrapped(isa, &k, &wrapped, &mut bent);
                unmask_bit(isa, m, first, &c, &beta, &mut bit);
                for i in 0..n {
                    let g = |v: &[u8]| i64::from(v[i]);
                    let public = i64::from(first);
                    let value = |p: i64| {
                        let t = p * if l[i] == 1 { public - g(&rho) } else { g(&rho) };
                        let dt = p * if l[i] == 1 { g(&beta) - g(&beta_rho) } else { g(&beta_rho) };
                        let (u, du) = (g(&z) * public - g(&r), g(&z) * g(&beta) - g(&beta_r));
                        let (up, down) =
                            if c[i] == 1 { (du + dt, u - t - du + dt) } else { (u + t - du - dt, du - dt) };
                        (i64::from(k.positive) * up + i64::from(k.negative) * down).rem_euclid(big as i64)
                    };
                    assert_eq!(g(&flat), value(0), "{isa:?} m {m}");
                    assert_eq!(g(&bent), value(i64::from(k.p)), "{isa:?} m {m}");
                    let want = if c[i] == 1 { public - g(&beta) } else { g(&beta) };
                    assert_eq!(g(&bit), want.rem_euclid(big as i64));
                }
            }
        }
    }
}
