//! What a sign needs in the residue number system.
//!
//! P is zero modulo its own moduli, so the terms with rho, which carry a factor P, are dealt and computed
//! modulo those of Q only; and r itself is shared modulo P already.

use super::{Combine, Derived, Output, Plain, Row, SignRing};
use crate::ring::{Ring, Rns};

impl SignRing for Rns {
    fn rows(&self, output: Output) -> Vec<Row> {
        let (k, all) = (self.k(), self.k() + self.l());
        let rows = |what, planes: std::ops::Range<usize>| planes.map(move |plane| Row { what, plane });
        match output {
            Output::Bit => rows(Derived::Beta, 0..all).collect(),
            Output::Reduced => rows(Derived::Beta, 0..k).chain(rows(Derived::BetaMask, 0..k)).collect(),
            Output::Full => rows(Derived::Beta, 0..all)
                .chain(rows(Derived::BetaMask, 0..all))
                .chain(rows(Derived::Mask, k..all))
                .chain(rows(Derived::Flip, k..all))
                .chain(rows(Derived::BetaFlip, k..all))
                .collect(),
        }
    }

    fn derive(&self, row: Row, plain: &Plain<'_, Self>) -> Vec<u8> {
        let n = plain.number.len();
        let mask = || {
            if row.plane < self.k() {
                plain.r[row.plane * n..(row.plane + 1) * n].to_vec()
            } else {
                self.reduce_plane(row.plane, plain.number)
            }
        };
        match row.what {
            Derived::Beta => bytes(plain.beta, n),
            Derived::Mask => mask(),
            Derived::BetaMask => and(mask(), &bytes(plain.beta, n)),
            Derived::Flip => bytes(plain.flip, n),
            Derived::BetaFlip => and(bytes(plain.flip, n), &bytes(plain.beta, n)),
        }
    }

    fn combine(&self, output: Output, v: &Combine<'_, Self>) -> Vec<u8> {
        let n = v.n;
        let planes = self.planes(output.range());
        let c = bytes(v.c, n);
        let l = bytes(v.flip, n);
        let rows = self.rows(output);
        let row = |what, plane| {
            let i = rows.iter().position(|r| *r == Row { what, plane }).expect("a row of this output");
            &v.derived[i * n..(i + 1) * n]
        };
        let mut out = vec![0; planes * n];
        if n == 0 {
            return out;
        }
        crate::ring::par::each(n, out.chunks_exact_mut(n).enumerate(), |(plane, out)| {
            let m = u32::from(self.modulus(plane));
            let first = v.role.is_first();
            let beta = row(Derived::Beta, plane);
            if output == Output::Bit {
                // b = c + (1 - 2c) beta.
                for i in 0..n {
                    let (c, b) = (u32::from(c[i]), u32::from(beta[i]));
                    let negated = c * (m - b) + (1 - c) * b;
                    out[i] = ((negated + c * u32::from(first)) % m) as u8;
                }
                return;
            }
            let half = u32::from(self.half(plane));
            let positive = u32::from(self.residue(plane, v.slopes.positive.into()));
            let negative = u32::from(self.residue(plane, v.slopes.negative.into()));
            let beta_mask = row(Derived::BetaMask, plane);
            let public = u32::from(first);
            if plane < self.k() {
                let (z, r) = (&v.z[plane * n..(plane + 1) * n], &v.r[plane * n..(plane + 1) * n]);
                for i in 0..n {
                    let z = u32::from(z[i]);
                    // d = 2 beta x, u = 2 x.
                    let d = (z * u32::from(beta[i]) + m - u32::from(beta_mask[i])) % m;
                    let u = z * public + m - u32::from(r[i]);
                    let rest = (u + m - d) % m;
                    let (up, down) = if c[i] == 1 { (d, rest) } else { (rest, d) };
                    out[i] = ((up * positive + down * negative) % m * half % m) as u8;
                }
            } else {
                let p = u32::from(self.residue(plane, self.big_p().into()));
                let z = self.reduce_plane(plane, v.number);
                let (r, rho) = (row(Derived::Mask, plane), row(Derived::Flip, plane));
                let beta_rho = row(Derived::BetaFlip, plane);
                for i in 0..n {
                    let (z, l) = (u32::from(z[i]), u32::from(l[i]));
                    let (beta, rho, beta_rho) =
                        (u32::from(beta[i]), u32::from(rho[i]), u32::from(beta_rho[i]));
                    // t = P (l ^ rho), dt = beta t; u = z - r, du = beta u.
                    let t = (if l == 1 { public + m - rho } else { rho }) * p % m;
                    let dt = (if l == 1 { beta + m - beta_rho } else { beta_rho }) * p % m;
                    let u = (z * public + m - u32::from(r[i])) % m;
                    let du = (z * beta + m - u32::from(beta_mask[i])) % m;
                    // Twice x is u + t where x >= 0 and u - t where x < 0.
                    let (up, down) = if c[i] == 1 {
                        (du + dt, u + 2 * m - t + 2 * m - du + dt)
                    } else {
                        (u + t + 2 * m - du - dt, du + m - dt)
                    };
                    out[i] = ((up % m * positive + down % m * negative) % m * half % m) as u8;
                }
            }
        });
        out
    }
}

/// Bits as bytes of 0 and 1.
fn bytes(bits: &[u64], n: usize) -> Vec<u8> {
    let mut out = vec![0; n];
    for (out, word) in out.chunks_mut(64).zip(bits) {
        for (i, o) in out.iter_mut().enumerate() {
            *o = (word >> i & 1) as u8;
        }
    }
    out
}

/// `a` where `bit` is 1, else 0.
fn and(mut a: Vec<u8>, bit: &[u8]) -> Vec<u8> {
    a.iter_mut().zip(bit).for_each(|(a, b)| *a &= b.wrapping_neg());
    a
}
