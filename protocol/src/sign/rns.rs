//! What a sign needs in the residue number system.
//!
//! P is zero modulo its own moduli, so the terms with rho, which carry a factor P, are dealt and computed
//! modulo those of Q only; and r itself is shared modulo P already.

use super::{Combine, Derived, MaskForms, Row, SignOutput, SignRing};
use crate::ring::kernel::{self, Bend, Masked, Wrapped};
use crate::ring::{Ring, Rns, par};
use crate::secret::Secret;

impl SignRing for Rns {
    fn rows(&self, output: SignOutput) -> Vec<Row> {
        let (k, all) = (self.k(), self.k() + self.l());
        let rows = |what, planes: std::ops::Range<usize>| planes.map(move |plane| Row { what, plane });
        match output {
            SignOutput::Bit => rows(Derived::Beta, 0..all).collect(),
            SignOutput::Reduced => rows(Derived::Beta, 0..k).chain(rows(Derived::BetaMask, 0..k)).collect(),
            SignOutput::Full => rows(Derived::Beta, 0..all)
                .chain(rows(Derived::BetaMask, 0..all))
                .chain(rows(Derived::Mask, k..all))
                .chain(rows(Derived::Flip, k..all))
                .chain(rows(Derived::BetaFlip, k..all))
                .collect(),
        }
    }

    fn derive(&self, row: Row, plain: &MaskForms<'_, Self>) -> Secret<u8> {
        let n = plain.number.len();
        let mask = || {
            if row.plane < self.k() {
                Secret::copied(&plain.r[row.plane * n..(row.plane + 1) * n])
            } else {
                self.reduce_plane(row.plane, plain.number)
            }
        };
        let bits = |bits: &[u64]| {
            let mut out = Secret::zeroed(n);
            kernel::spread_bits(self.isa(), bits, &mut out);
            out
        };
        let with_beta = |mut a: Secret<u8>| {
            kernel::keep_where(self.isa(), &mut a, &bits(plain.beta));
            a
        };
        match row.what {
            Derived::Beta => bits(plain.beta),
            Derived::Mask => mask(),
            Derived::BetaMask => with_beta(mask()),
            Derived::Flip => bits(plain.flip),
            Derived::BetaFlip => with_beta(bits(plain.flip)),
        }
    }

    fn combine(&self, output: SignOutput, v: &Combine<'_, Self>) -> Secret<u8> {
        let n = v.n;
        let mut out = Secret::zeroed(self.planes(output.range()) * n);
        if n == 0 {
            return out;
        }
        let (mut c, mut l) = (Secret::zeroed(n), Secret::zeroed(n));
        kernel::spread_bits(self.isa(), v.c, &mut c);
        kernel::spread_bits(self.isa(), v.flip, &mut l);
        let rows = self.rows(output);
        let row = |what, plane| {
            let i = rows.iter().position(|r| *r == Row { what, plane }).expect("a row of this output");
            &v.derived[i * n..(i + 1) * n]
        };
        par::each(n, out.chunks_exact_mut(n).enumerate(), |(plane, out)| {
            let m = self.modulus(plane);
            let first = v.role.is_first();
            let beta = row(Derived::Beta, plane);
            if output == SignOutput::Bit {
                return kernel::unmask_bit(self.isa(), m, first, &c, beta, out);
            }
            let halved = |slope: i64| self.residue(plane, i128::from(slope) * i128::from(self.half(plane)));
            let k = Bend {
                m,
                first,
                positive: halved(v.slopes.positive),
                negative: halved(v.slopes.negative),
                p: self.residue(plane, self.big_p().into()),
            };
            let beta_r = row(Derived::BetaMask, plane);
            if plane < self.k() {
                let own = plane * n..(plane + 1) * n;
                let values = Masked { c: &c, z: &v.z[own.clone()], r: &v.r[own], beta, beta_r };
                kernel::bend(self.isa(), &k, &values, out);
            } else {
                let z = self.reduce_plane(plane, v.number);
                let masked = Masked { c: &c, z: &z, r: row(Derived::Mask, plane), beta, beta_r };
                let (rho, beta_rho) = (row(Derived::Flip, plane), row(Derived::BetaFlip, plane));
                kernel::bend_wrapped(self.isa(), &k, &Wrapped { masked, l: &l, rho, beta_rho }, out);
            }
        });
        out
    }
}
