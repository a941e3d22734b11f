//! Stand-ins with the signatures of the kernels, until those land.
#![allow(missing_docs)]
use super::kernel::{Conv, Isa};
impl Isa {
    pub fn detect() -> Self {
        Self::Portable
    }
}
pub fn add_mod(_: Isa, m: u8, a: &mut [u8], b: &[u8]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a = ((*a as u16 + *b as u16) % m as u16) as u8
    }
}
pub fn sub_mod(_: Isa, m: u8, a: &mut [u8], b: &[u8]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a = ((*a as u16 + m as u16 - *b as u16) % m as u16) as u8
    }
}
pub fn mul_const_mod(_: Isa, m: u8, c: u8, a: &mut [u8]) {
    for a in a.iter_mut() {
        *a = ((*a as u16 * c as u16) % m as u16) as u8
    }
}
pub fn mul_mod(_: Isa, m: u8, a: &mut [u8], b: &[u8]) {
    for (a, b) in a.iter_mut().zip(b) {
        *a = ((*a as u16 * *b as u16) % m as u16) as u8
    }
}
pub fn mul_add_mod(_: Isa, m: u8, a: &[u8], b: &[u8], acc: &mut [u8]) {
    for ((a, b), c) in a.iter().zip(b).zip(acc) {
        *c = ((*a as u32 * *b as u32 + *c as u32) % m as u32) as u8
    }
}
pub fn reduce_u32(_: Isa, m: u8, x: &[u32], out: &mut [u8]) {
    for (x, o) in x.iter().zip(out) {
        *o = (x % m as u32) as u8
    }
}
pub fn reduce_i64(_: Isa, m: u8, x: &[i64], out: &mut [u8]) {
    for (x, o) in x.iter().zip(out) {
        *o = x.rem_euclid(m as i64) as u8
    }
}
pub fn compose_u32(_: Isa, p: &[u8], planes: &[u8], n: usize, out: &mut [u32]) {
    let big: u64 = p.iter().map(|&m| m as u64).product();
    for i in 0..n {
        let mut v = 0u64;
        for (c, &m) in p.iter().enumerate() {
            let rest = big / m as u64;
            let inv = (1..m as u64).find(|t| rest % m as u64 * t % m as u64 == 1).unwrap_or(1);
            v = (v + planes[c * n + i] as u64 * rest % big * inv) % big;
        }
        out[i] = v as u32;
    }
}
pub fn rescale(isa: Isa, p: &[u8], q: &[u8], ceil: bool, planes: &[u8], n: usize, out: &mut [u8]) {
    let (k, l) = (p.len(), q.len());
    let mut low = vec![0u32; n];
    let mut qs = planes[k * n..(k + l) * n].to_vec();
    if ceil {
        for (c, &m) in q.iter().enumerate() {
            for v in &mut qs[c * n..(c + 1) * n] {
                *v = (m - *v) % m
            }
        }
    }
    compose_u32(isa, q, &qs, n, &mut low);
    let big: u64 = q.iter().map(|&m| m as u64).product();
    for (c, &m) in p.iter().enumerate() {
        let m = m as u64;
        let inv = (1..m).find(|t| big % m * t % m == 1).unwrap();
        for i in 0..n {
            let x = planes[c * n + i] as u64;
            let x = if ceil { (m - x) % m } else { x };
            let v = (x + m - low[i] as u64 % m) % m * inv % m;
            out[c * n + i] = (if ceil { (m - v) % m } else { v }) as u8;
        }
    }
}
pub fn uniform_residues(_: Isa, m: u8, random: &[u8], out: &mut [u8], mut filled: usize) -> usize {
    for &b in random {
        if b < m && filled < out.len() {
            out[filled] = b;
            filled += 1;
        }
    }
    filled
}
fn look(d: u64, h: u16) -> (u64, u64) {
    ((h as u64 >> d) & 1, ((h as u64 >> (d + 1)).count_ones() & 1) as u64)
}
pub fn lookup_onehot(_: Isa, z: &[u32], shift: u32, onehot: &[u16], eq: &mut [u64], gt: &mut [u64]) {
    eq.fill(0);
    gt.fill(0);
    for (i, (z, h)) in z.iter().zip(onehot).enumerate() {
        let (e, g) = look((z >> shift & 15) as u64, *h);
        eq[i / 64] |= e << (i % 64);
        gt[i / 64] |= g << (i % 64);
    }
}
pub fn lookup_onehot_u64(_: Isa, z: &[u64], shift: u32, onehot: &[u16], eq: &mut [u64], gt: &mut [u64]) {
    eq.fill(0);
    gt.fill(0);
    for (i, (z, h)) in z.iter().zip(onehot).enumerate() {
        let (e, g) = look(z >> shift & 15, *h);
        eq[i / 64] |= e << (i % 64);
        gt[i / 64] |= g << (i % 64);
    }
}
pub struct PackedWeights(Vec<u8>);
impl PackedWeights {
    pub fn pack(_: Isa, _: &Conv, _: u8, w: &[u8]) -> Self {
        Self(w.to_vec())
    }
}
pub struct PackedWeights64(Vec<u64>);
impl PackedWeights64 {
    pub fn pack(_: Isa, _: &Conv, w: &[u64]) -> Self {
        Self(w.to_vec())
    }
}
fn conv<T>(c: &Conv, x: &[T], w: &[T], mut add: impl FnMut(usize, &T, &T)) {
    let (ci, co) = (c.c_in / c.groups, c.c_out / c.groups);
    for n in 0..c.n {
        for y in 0..c.out_h() {
            for xx in 0..c.out_w() {
                for o in 0..c.c_out {
                    for ky in 0..c.kernel[0] {
                        for kx in 0..c.kernel[1] {
                            let (iy, ix) =
                                (y * c.stride[0] + ky * c.dilation[0], xx * c.stride[1] + kx * c.dilation[1]);
                            if iy < c.pad[0] || ix < c.pad[1] || iy - c.pad[0] >= c.h || ix - c.pad[1] >= c.w
                            {
                                continue;
                            }
                            for i in 0..ci {
                                add(
                                    ((n * c.out_h() + y) * c.out_w() + xx) * c.c_out + o,
                                    &x[((n * c.h + iy - c.pad[0]) * c.w + ix - c.pad[1]) * c.c_in
                                        + o / co * ci
                                        + i],
                                    &w[((o * c.kernel[0] + ky) * c.kernel[1] + kx) * ci + i],
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}
pub fn conv_accumulate(_: Isa, c: &Conv, m: u8, x: &[u8], w: &PackedWeights, acc: &mut [u8]) {
    conv(c, x, &w.0, |o, x, w| acc[o] = ((acc[o] as u32 + *x as u32 * *w as u32) % m as u32) as u8);
}
pub fn conv_accumulate_u64(_: Isa, c: &Conv, x: &[u64], w: &PackedWeights64, acc: &mut [u64]) {
    conv(c, x, &w.0, |o, x, w| acc[o] = acc[o].wrapping_add(x.wrapping_mul(*w)));
}
