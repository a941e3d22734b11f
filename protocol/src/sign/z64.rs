//! What a sign needs in Z_2^64.

use super::{Combine, Derived, MaskForms, Row, SignOutput, SignRing};
use crate::ring::Z64;
use crate::secret::Secret;

fn bit(bits: &[u64], i: usize) -> u64 {
    bits[i / 64] >> (i % 64) & 1
}

impl SignRing for Z64 {
    fn rows(&self, output: SignOutput) -> Vec<Row> {
        let beta = Row { what: Derived::Beta, plane: 0 };
        match output {
            SignOutput::Bit => vec![beta],
            SignOutput::Reduced | SignOutput::Full => vec![beta, Row { what: Derived::BetaMask, plane: 0 }],
        }
    }

    fn derive(&self, row: Row, plain: &MaskForms<'_, Self>) -> Secret<u64> {
        let beta = |i| bit(plain.beta, i);
        match row.what {
            Derived::Beta => (0..plain.r.len()).map(beta).collect::<Vec<_>>().into(),
            _ => {
                let words = plain.r.iter().enumerate().map(|(i, r)| beta(i).wrapping_neg() & r);
                words.collect::<Vec<_>>().into()
            }
        }
    }

    fn combine(&self, output: SignOutput, v: &Combine<'_, Self>) -> Secret<u64> {
        let (beta, beta_mask) = v.derived.split_at(v.n);
        let public = u64::from(v.role.is_first());
        let (positive, negative) = (v.slopes.positive as u64, v.slopes.negative as u64);
        (0..v.n)
            .map(|i| {
                let c = bit(v.c, i);
                if output == SignOutput::Bit {
                    return if c == 1 { public.wrapping_sub(beta[i]) } else { beta[i] };
                }
                let x = (v.z[i] * public).wrapping_sub(v.r[i]);
                let masked = v.z[i].wrapping_mul(beta[i]).wrapping_sub(beta_mask[i]);
                let rest = x.wrapping_sub(masked);
                let (up, down) = if c == 1 { (masked, rest) } else { (rest, masked) };
                up.wrapping_mul(positive).wrapping_add(down.wrapping_mul(negative))
            })
            .collect::<Vec<_>>()
            .into()
    }
}
