//! Vectors of 16-bit words, for modular products of residues.
//!
//! LLVM misses the high half of a 16-bit product whose factor is loop-invariant, and widens to 32 bits; so these
//! few operations are spelled out.

use super::residue::magic16;

/// As many words as there are bytes in a vector: bytes go in and out, words in between.
///
/// The instructions of an implementation are only named here; whoever calls must know that they exist.
pub(super) trait Words: Copy {
    /// Words in `Self`.
    const LANES: usize;

    /// # Safety
    /// The processor has the instructions; so for all methods.
    unsafe fn splat(v: u16) -> Self;
    /// # Safety
    /// `src` is readable for `LANES` bytes.
    unsafe fn load(src: *const u8) -> Self;
    /// # Safety
    /// `dst` is writable for `LANES` bytes. All words are below 256.
    unsafe fn store(self, dst: *mut u8);
    /// # Safety
    /// See `splat`.
    unsafe fn add(self, other: Self) -> Self;
    /// # Safety
    /// See `splat`.
    unsafe fn sub(self, other: Self) -> Self;
    /// # Safety
    /// See `splat`.
    unsafe fn mul_low(self, other: Self) -> Self;
    /// # Safety
    /// See `splat`.
    unsafe fn mul_high(self, other: Self) -> Self;
    /// # Safety
    /// See `splat`.
    unsafe fn min(self, other: Self) -> Self;
}

/// A modulus in every lane.
#[derive(Clone, Copy)]
pub(super) struct Modulus<W> {
    m: W,
    magic: W,
}

impl<W: Words> Modulus<W> {
    /// # Safety
    /// As all of [`Words`].
    #[inline(always)]
    pub(super) unsafe fn new(m: u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { m: W::splat(u16::from(m)), magic: W::splat(magic16(m)) } }
    }

    /// A representative in `[0, 2m)` of any word; see `magic16`.
    ///
    /// # Safety
    /// As all of [`Words`].
    #[inline(always)]
    pub(super) unsafe fn lazy(self, v: W) -> W {
        // SAFETY: the caller's promise.
        unsafe { v.sub(v.mul_high(self.magic).mul_low(self.m)) }
    }

    /// The residue of `v` in `[0, 2m)`.
    ///
    /// # Safety
    /// As all of [`Words`].
    #[inline(always)]
    pub(super) unsafe fn once(self, v: W) -> W {
        // SAFETY: the caller's promise.
        unsafe { v.min(v.sub(self.m)) }
    }

    /// The negative of a residue.
    ///
    /// # Safety
    /// As all of [`Words`].
    #[inline(always)]
    pub(super) unsafe fn neg(self, v: W) -> W {
        // SAFETY: the caller's promise.
        unsafe { self.once(self.m.sub(v)) }
    }

    /// `a b + c` in `[0, 2m)`, for residues `a`, `b` below 255 and `c` below 510.
    ///
    /// # Safety
    /// As all of [`Words`].
    #[inline(always)]
    pub(super) unsafe fn mul_add(self, a: W, b: W, c: W) -> W {
        // 254 * 254 + 509 < 2^16.
        // SAFETY: the caller's promise.
        unsafe { self.lazy(a.mul_low(b).add(c)) }
    }
}

/// Plain Rust: 16 words for whole vectors, one for what remains.
impl<const N: usize> Words for [u16; N] {
    const LANES: usize = N;

    #[inline(always)]
    unsafe fn splat(v: u16) -> Self {
        [v; N]
    }
    #[inline(always)]
    unsafe fn load(src: *const u8) -> Self {
        // SAFETY: `N` readable bytes.
        unsafe { src.cast::<[u8; N]>().read() }.map(u16::from)
    }
    #[inline(always)]
    unsafe fn store(self, dst: *mut u8) {
        // SAFETY: `N` writable bytes.
        unsafe { dst.cast::<[u8; N]>().write(self.map(|v| v as u8)) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        zip(self, other, u16::wrapping_add)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        zip(self, other, u16::wrapping_sub)
    }
    #[inline(always)]
    unsafe fn mul_low(self, other: Self) -> Self {
        zip(self, other, u16::wrapping_mul)
    }
    #[inline(always)]
    unsafe fn mul_high(self, other: Self) -> Self {
        zip(self, other, |a, b| ((u32::from(a) * u32::from(b)) >> 16) as u16)
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        zip(self, other, u16::min)
    }
}

#[inline(always)]
fn zip<const N: usize>(mut a: [u16; N], b: [u16; N], f: impl Fn(u16, u16) -> u16) -> [u16; N] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = f(*a, b);
    }
    a
}

/// Two vectors, of the even bytes and of the odd ones: masks and shifts move no lane.
#[cfg(target_arch = "x86_64")]
macro_rules! words {
    ($name:ident, $vector:ident, $lanes:literal: $splat:ident $load:ident $store:ident $and:ident $or:ident
        $right:ident $left:ident $add:ident $sub:ident $low:ident $high:ident $min:ident) => {
        #[derive(Clone, Copy)]
        pub(in crate::ring::kernel) struct $name($vector, $vector);

        impl Words for $name {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn splat(v: u16) -> Self {
                // SAFETY: the caller knows the processor.
                unsafe { Self($splat(v as i16), $splat(v as i16)) }
            }
            #[inline(always)]
            unsafe fn load(src: *const u8) -> Self {
                // SAFETY: `LANES` readable bytes; the caller knows the processor.
                unsafe {
                    let both = $load(src.cast());
                    Self($and(both, $splat(0xff)), $right::<8>(both))
                }
            }
            #[inline(always)]
            unsafe fn store(self, dst: *mut u8) {
                // SAFETY: `LANES` writable bytes; the caller knows the processor.
                unsafe { $store(dst.cast(), $or(self.0, $left::<8>(self.1))) }
            }
            words!(both add $add; both sub $sub; both mul_low $low; both mul_high $high; both min $min);
        }
    };
    ($(both $method:ident $f:ident);*) => {
        $(#[inline(always)]
        unsafe fn $method(self, other: Self) -> Self {
            // SAFETY: the caller knows the processor.
            unsafe { Self($f(self.0, other.0), $f(self.1, other.1)) }
        })*
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Ymm, Zmm};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Words;
    use crate::ring::kernel::avx2::mul_high as avx2_mul_high;
    use crate::ring::kernel::avx512::mul_high as avx512_mul_high;
    use std::arch::x86_64::*;

    words!(Ymm, __m256i, 32: _mm256_set1_epi16 _mm256_loadu_si256 _mm256_storeu_si256 _mm256_and_si256
        _mm256_or_si256 _mm256_srli_epi16 _mm256_slli_epi16 _mm256_add_epi16 _mm256_sub_epi16
        _mm256_mullo_epi16 avx2_mul_high _mm256_min_epu16);
    words!(Zmm, __m512i, 64: _mm512_set1_epi16 _mm512_loadu_si512 _mm512_storeu_si512 _mm512_and_si512
        _mm512_or_si512 _mm512_srli_epi16 _mm512_slli_epi16 _mm512_add_epi16 _mm512_sub_epi16
        _mm512_mullo_epi16 avx512_mul_high _mm512_min_epu16);
}
