//! AVX2 tiles: `vpmaddwd` for residues (`vpmaddubsw` would saturate), `vpmuludq` and `vpmulld` for Z_2^64.
//!
//! Activations are staged as words, weights stay bytes and are widened by the load. Four pixels by 16
//! channels are eight accumulators.

use std::arch::asm;
use std::arch::x86_64::*;

use super::conv::{Micro, Tile, monomorphise};
use super::residue::{MAX_PRODUCT, balanced, magic16, multiple_above};

/// Residues modulo `m`.
pub(super) struct Residue {
    m: u8,
    /// A multiple of `m` that makes every sum non-negative.
    bias: u32,
    /// `1` and balanced `2^15 mod m` as words.
    factor: i32,
    /// Multiples of `m` above what `factor` subtracts in the first and second fold.
    offset: [u32; 2],
    magic: u16,
}

impl Residue {
    pub(super) fn new(m: u8) -> Self {
        let bias = multiple_above(Self::CHUNK as u32 * MAX_PRODUCT, m);
        let mut max = bias + Self::CHUNK as u32 * MAX_PRODUCT;
        let power = balanced(((1u32 << 15) % u32::from(m)) as u8, m);
        let mut offset = [0; 2];
        for offset in &mut offset {
            // The upper part must be a positive word.
            assert!(max >> 15 < 1 << 15);
            let part = (max >> 15) * u32::from(power.unsigned_abs());
            (*offset, max) = if power < 0 {
                let offset = multiple_above(part, m);
                (offset, offset + 32767)
            } else {
                (0, 32767 + part)
            };
        }
        assert!(max < 1 << 16);
        let factor = (i32::from(power) << 16) | 1;
        Self { m, bias, factor, offset, magic: magic16(m) }
    }
}

impl Micro for Residue {
    type In = u8;
    type X = i16;
    type W = i8;
    type Acc = u8;
    const GROUP: usize = 2;
    const LANES: usize = 8;
    const MAX_V: usize = 2;
    const CHUNK: usize = 6144;

    fn pixels(vectors: usize) -> usize {
        if vectors == 2 { 6 } else { 8 }
    }

    fn stage(src: &[u8], dst: &mut [i16]) {
        for (dst, &src) in dst.iter_mut().zip(src) {
            *dst = i16::from(src);
        }
    }

    fn in_place(_: &[u8]) -> Option<&[i16]> {
        None
    }

    unsafe fn tile(&self, t: &Tile<'_, Self>) {
        // SAFETY: the caller's promises are those of `residue_tile`.
        unsafe { monomorphise!(t => residue_tile(t, self); 1: 1 2 3 4 5 6 7 8, 2: 1 2 3 4 5 6) }
    }
}

/// # Safety
/// As [`Micro::tile`], with `P` pixels and `V` vectors.
#[target_feature(enable = "avx2")]
unsafe fn residue_tile<const P: usize, const V: usize>(t: &Tile<'_, Residue>, c: &Residue) {
    let mut sum = [[_mm256_set1_epi32(c.bias as i32); V]; P];
    let mut w = t.w;
    for s in t.segments {
        let mut x = [t.x[0]; P];
        for (x, from) in x.iter_mut().zip(&t.x) {
            // SAFETY: the segment starts inside the scratch.
            *x = unsafe { from.add(s.offset) };
        }
        for k in 0..s.groups {
            let mut row = [_mm256_setzero_si256(); V];
            for (v, row) in row.iter_mut().enumerate() {
                // SAFETY: `V` vectors of 16 bytes per k-group.
                *row = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(w.add(16 * v).cast()) });
            }
            w = w.wrapping_add(16 * V);
            for (x, sum) in x.iter().zip(&mut sum) {
                // SAFETY: `k < s.groups`, two elements each.
                let x = _mm256_set1_epi32(unsafe { x.add(2 * k).cast::<i32>().read_unaligned() });
                for (sum, &row) in sum.iter_mut().zip(&row) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, row));
                }
            }
        }
    }
    for (p, sum) in sum.iter().enumerate() {
        let low = fold(c, sum[0]);
        let high = if V > 1 { fold(c, sum[V - 1]) } else { low };
        // Words of 128-bit lanes: low 0..4, high 0..4 | low 4..8, high 4..8; put back in order.
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
        // SAFETY: the caller lends `t.channels` bytes, at most 16.
        unsafe {
            let acc = t.acc.add(p * t.stride);
            if t.channels == 16 {
                let old = _mm_loadu_si128(acc.cast());
                _mm_storeu_si128(acc.cast(), finish(c, words, old));
            } else {
                let mut bytes = [0u8; 16];
                std::ptr::copy_nonoverlapping(acc, bytes.as_mut_ptr(), t.channels);
                let old = _mm_loadu_si128(bytes.as_ptr().cast());
                _mm_storeu_si128(bytes.as_mut_ptr().cast(), finish(c, words, old));
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), acc, t.channels);
            }
        }
    }
}

/// Folds a biased sum to 16 bits: twice the low 15 bits and the rest times `2^15 mod m`.
#[inline]
#[target_feature(enable = "avx2")]
fn fold(c: &Residue, mut v: __m256i) -> __m256i {
    for offset in c.offset {
        let low = _mm256_and_si256(v, _mm256_set1_epi32(0x7fff));
        let parts = _mm256_blend_epi16::<0b1010_1010>(low, _mm256_add_epi32(v, v));
        let folded = _mm256_madd_epi16(parts, _mm256_set1_epi32(c.factor));
        v = _mm256_add_epi32(folded, _mm256_set1_epi32(offset as i32));
    }
    v
}

/// Sixteen words and old residues to new residues.
#[inline]
#[target_feature(enable = "avx2")]
fn finish(c: &Residue, words: __m256i, old: __m128i) -> __m128i {
    let m = _mm256_set1_epi16(i16::from(c.m));
    let q = mul_high(words, _mm256_set1_epi16(c.magic as i16));
    let r = _mm256_sub_epi16(words, _mm256_mullo_epi16(q, m));
    let r = _mm256_min_epu16(r, _mm256_sub_epi16(r, m));
    let r = _mm256_add_epi16(r, _mm256_cvtepu8_epi16(old));
    let r = _mm256_min_epu16(r, _mm256_sub_epi16(r, m));
    _mm_packus_epi16(_mm256_castsi256_si128(r), _mm256_extracti128_si256::<1>(r))
}

/// High halves of the products of words; see the same in `avx512`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn mul_high(a: __m256i, b: __m256i) -> __m256i {
    let high;
    // SAFETY: an AVX2 instruction on registers only, without side effects or flags.
    unsafe {
        asm!("vpmulhuw {}, {}, {}", lateout(ymm_reg) high, in(ymm_reg) a, in(ymm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    high
}

/// Z_2^64.
pub(super) struct Word;

impl Micro for Word {
    type In = u64;
    type X = u64;
    type W = u64;
    type Acc = u64;
    const GROUP: usize = 1;
    const LANES: usize = 4;
    const MAX_V: usize = 2;
    const CHUNK: usize = 1536;

    fn pixels(vectors: usize) -> usize {
        if vectors == 2 { 2 } else { 4 }
    }

    fn stage(src: &[u64], dst: &mut [u64]) {
        dst.copy_from_slice(src);
    }

    fn in_place(src: &[u64]) -> Option<&[u64]> {
        Some(src)
    }

    unsafe fn tile(&self, t: &Tile<'_, Self>) {
        // SAFETY: the caller's promises are those of `word_tile`.
        unsafe { monomorphise!(t => word_tile(t); 1: 1 2 3 4, 2: 1 2) }
    }
}

/// `x w = lo lo + 2^32 (lo hi + hi lo)`: the outer products gather in `low`, both inner ones, of which only
/// 32 bits count, in the halves of `cross`.
///
/// # Safety
/// As [`Micro::tile`], with `P` pixels and `V` vectors.
#[target_feature(enable = "avx2")]
unsafe fn word_tile<const P: usize, const V: usize>(t: &Tile<'_, Word>) {
    let mut low = [[_mm256_setzero_si256(); V]; P];
    let mut cross = low;
    let mut w = t.w;
    for s in t.segments {
        let mut x = [t.x[0]; P];
        for (x, from) in x.iter_mut().zip(&t.x) {
            // SAFETY: the segment starts inside the scratch.
            *x = unsafe { from.add(s.offset) };
        }
        for k in 0..s.groups {
            let mut row = [_mm256_setzero_si256(); V];
            for (v, row) in row.iter_mut().enumerate() {
                // SAFETY: `V` vectors of four words per k-group.
                *row = unsafe { _mm256_loadu_si256(w.add(4 * v).cast()) };
            }
            w = w.wrapping_add(4 * V);
            for (p, x) in x.iter().enumerate() {
                // SAFETY: `k < s.groups`.
                let x = _mm256_set1_epi64x(unsafe { *x.add(k) } as i64);
                let swapped = _mm256_shuffle_epi32::<0b10_11_00_01>(x);
                for (v, &row) in row.iter().enumerate() {
                    low[p][v] = _mm256_add_epi64(low[p][v], _mm256_mul_epu32(x, row));
                    cross[p][v] = _mm256_add_epi32(cross[p][v], _mm256_mullo_epi32(swapped, row));
                }
            }
        }
    }
    for p in 0..P {
        for v in 0..V {
            let cross = cross[p][v];
            let both = _mm256_add_epi32(cross, _mm256_srli_epi64::<32>(cross));
            let sum = _mm256_add_epi64(low[p][v], _mm256_slli_epi64::<32>(both));
            let mut words = [0u64; 4];
            // SAFETY: `words` has four words; the caller lends `t.channels` words of each pixel.
            unsafe {
                _mm256_storeu_si256(words.as_mut_ptr().cast(), sum);
                let count = (t.channels - 4 * v).min(4);
                let acc = std::slice::from_raw_parts_mut(t.acc.add(p * t.stride + 4 * v), count);
                for (acc, word) in acc.iter_mut().zip(words) {
                    *acc = acc.wrapping_add(word);
                }
            }
        }
    }
}
