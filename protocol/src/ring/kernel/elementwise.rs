//! Arithmetic on whole residue planes. No branch or index depends on a value.
//!
//! Sums and reductions are safe loops that LLVM vectorises. Products live in words of 16 bits: `254 * 254` plus
//! two residues stays below `2^16`, where Barrett needs one high and one low multiplication.

use std::ops::Range;

use super::residue::{magic32, reduce32};
use super::vectorised;
use super::words::{Modulus, Words};

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
    pub fn mul_const_mod(m: u8, c: u8, a: &mut [u8]) = mul_const_body::<Words>
}
vectorised! {
    /// `a = a b mod m`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn mul_mod(m: u8, a: &mut [u8], b: &[u8]) = mul_body::<Words>
}
vectorised! {
    /// `acc = (acc + c a) mod m`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn mul_add_const_mod(m: u8, c: u8, a: &[u8], acc: &mut [u8]) = mul_add_const_body::<Words>
}
vectorised! {
    /// `acc = (acc + a b) mod m`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn mul_add_mod(m: u8, a: &[u8], b: &[u8], acc: &mut [u8]) = mul_add_body::<Words>
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

/// # Safety
/// The processor has the instructions of `W`; so for the next three.
#[inline(always)]
unsafe fn mul_const_body<W: Words>(m: u8, c: u8, a: &mut [u8]) {
    // SAFETY: the caller knows the processor.
    unsafe { products::<W>(m, Operand::Out, Operand::Const(c), Operand::Const(0), a) }
}

/// # Safety
/// See `mul_const_body`.
#[inline(always)]
unsafe fn mul_body<W: Words>(m: u8, a: &mut [u8], b: &[u8]) {
    // SAFETY: the caller knows the processor.
    unsafe { products::<W>(m, Operand::Out, Operand::Plane(b), Operand::Const(0), a) }
}

/// # Safety
/// See `mul_const_body`.
#[inline(always)]
unsafe fn mul_add_const_body<W: Words>(m: u8, c: u8, a: &[u8], acc: &mut [u8]) {
    // SAFETY: the caller knows the processor.
    unsafe { products::<W>(m, Operand::Plane(a), Operand::Const(c), Operand::Out, acc) }
}

/// # Safety
/// See `mul_const_body`.
#[inline(always)]
unsafe fn mul_add_body<W: Words>(m: u8, a: &[u8], b: &[u8], acc: &mut [u8]) {
    // SAFETY: the caller knows the processor.
    unsafe { products::<W>(m, Operand::Plane(a), Operand::Plane(b), Operand::Out, acc) }
}

/// What a product is made of; known where `products` is inlined, so that matching costs nothing.
#[derive(Clone, Copy)]
enum Operand<'a> {
    Const(u8),
    Plane(&'a [u8]),
    /// What the output holds before.
    Out,
}

impl Operand<'_> {
    /// # Safety
    /// The processor has the instructions of `W`; `at + LANES` is inside `out` and the plane.
    // Not a closure: that would be compiled, and called, without the instructions.
    #[inline(always)]
    unsafe fn load<W: Words>(self, out: &[u8], at: usize) -> W {
        // SAFETY: the caller's promises.
        unsafe {
            match self {
                Self::Const(c) => W::splat(u16::from(c)),
                Self::Plane(plane) => W::load(plane.as_ptr().add(at)),
                Self::Out => W::load(out.as_ptr().add(at)),
            }
        }
    }
}

/// `out = a b + c mod m`: whole vectors by `W`, the rest one by one.
///
/// # Safety
/// The processor has the instructions of `W`.
#[inline(always)]
unsafe fn products<W: Words>(m: u8, a: Operand<'_>, b: Operand<'_>, c: Operand<'_>, out: &mut [u8]) {
    assert!(m >= 2);
    let whole = out.len() - out.len() % W::LANES;
    // SAFETY: the caller knows the processor, and `[u16; 1]` is plain Rust.
    unsafe {
        products_in::<W>(m, a, b, c, 0..whole, out);
        products_in::<[u16; 1]>(m, a, b, c, whole..out.len(), out);
    }
}

/// # Safety
/// The processor has the instructions of `W`; the range is inside `out` and a multiple of `LANES` long.
#[inline(always)]
unsafe fn products_in<W: Words>(
    m: u8,
    a: Operand<'_>,
    b: Operand<'_>,
    c: Operand<'_>,
    range: Range<usize>,
    out: &mut [u8],
) {
    for operand in [a, b, c] {
        if let Operand::Plane(plane) = operand {
            assert_eq!(plane.len(), out.len());
        }
    }
    // SAFETY: the caller knows the processor. Planes are as long as `out`, and `LANES` elements from `at` on are
    // inside the range, hence inside each.
    unsafe {
        let modulus = Modulus::<W>::new(m);
        for at in range.step_by(W::LANES) {
            let (a, b, c) = (a.load::<W>(out, at), b.load(out, at), c.load(out, at));
            modulus.once(modulus.mul_add(a, b, c)).store(out.as_mut_ptr().add(at));
        }
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
