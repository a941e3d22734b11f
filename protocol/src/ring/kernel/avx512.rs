//! AVX-512 tiles: `vpdpbusd` for residues, `vpmullq` for Z_2^64.
//!
//! Six pixels by 64 output channels are 24 accumulators; each k-group loads four vectors of weights and
//! broadcasts six times four activations, 10 loads for 24 multiplications.
//!
//! The sums leave as residues by two more `vpdpbusd`: the bytes of `v` times `2^(8i) mod m`, balanced, take
//! 32 bits to 18, then 18 to 16, where a Barrett step on words ends it.

use std::arch::asm;
use std::arch::x86_64::*;

use super::conv::{Micro, Tile, monomorphise};
use super::residue::{MAX_PRODUCT, balanced, magic16, multiple_above};

/// Residues modulo `m`.
pub(super) struct Residue {
    m: u8,
    /// A multiple of `m` that makes every sum non-negative.
    bias: u32,
    /// Balanced `2^(8i) mod m` for the bytes of the sum, and a multiple of `m` above what they subtract.
    first: (i32, u32),
    /// The same for the bytes of that, where it does not fit a word.
    second: Option<(i32, u32)>,
    magic: u16,
}

impl Residue {
    pub(super) fn new(m: u8) -> Self {
        Self::for_sums(m, Self::CHUNK)
    }

    /// The same for sums of at most `products`, up to `CHUNK`: fewer have less to fold.
    pub(super) fn for_sums(m: u8, products: usize) -> Self {
        let largest = products.min(Self::CHUNK) as u32 * MAX_PRODUCT;
        let bias = multiple_above(largest, m);
        let (first, mut max) = fold(m, bias + largest);
        let mut second = None;
        if max >= 1 << 16 {
            let (constants, folded) = fold(m, max);
            (second, max) = (Some(constants), folded);
        }
        assert!(max < 1 << 16);
        Self { m, bias, first, second, magic: magic16(m) }
    }

    /// What the sums start from; up to `CHUNK` products fit.
    pub(super) fn bias(&self) -> u32 {
        self.bias
    }
}

/// Constants that fold values up to `max` modulo `m`, and the largest result.
fn fold(m: u8, max: u32) -> ((i32, u32), u32) {
    let (mut power, mut packed, mut below, mut above) = (1u32, [0u8; 4], 0, 0);
    for (i, byte) in packed.iter_mut().enumerate() {
        // The largest byte here: full below the top byte of `max`.
        let top = (max >> (8 * i)).min(255);
        let factor = balanced(power as u8, m);
        *byte = factor as u8;
        let product = top * u32::from(factor.unsigned_abs());
        *if factor < 0 { &mut below } else { &mut above } += product;
        power = power * 256 % u32::from(m);
    }
    let offset = multiple_above(below, m);
    ((i32::from_le_bytes(packed), offset), offset + above)
}

impl Micro for Residue {
    type In = u8;
    type X = u8;
    type W = i8;
    type Acc = u8;
    const GROUP: usize = 4;
    const LANES: usize = 16;
    const MAX_V: usize = 4;
    const CHUNK: usize = 6144;

    fn pixels(vectors: usize) -> usize {
        if vectors == 4 { 6 } else { 8 }
    }

    fn stage(src: &[u8], dst: &mut [u8]) {
        dst.copy_from_slice(src);
    }

    fn in_place(src: &[u8]) -> Option<&[u8]> {
        Some(src)
    }

    unsafe fn tile(&self, t: &Tile<'_, Self>) {
        // SAFETY: the caller's promises are those of `residue_tile`.
        unsafe {
            monomorphise!(t => residue_tile(t, self);
                1: 1 2 3 4 5 6 7 8, 2: 1 2 3 4 5 6 7 8, 3: 1 2 3 4 5 6 7 8, 4: 1 2 3 4 5 6)
        }
    }

    unsafe fn product(&self, t: &Tile<'_, Self>, ahead: *const i8) {
        // SAFETY: the caller's promises are those of `product_tile`.
        unsafe {
            monomorphise!(t => product_tile(t, self, ahead);
                1: 1 2 3 4 5 6 7 8, 2: 1 2 3 4 5 6 7 8, 3: 1 2 3 4 5 6 7 8, 4: 1 2 3 4 5 6)
        }
    }
}

/// # Safety
/// As [`Micro::tile`], with `P` pixels and `V` vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn residue_tile<const P: usize, const V: usize>(t: &Tile<'_, Residue>, c: &Residue) {
    // SAFETY: the caller's promises.
    let mut out = unsafe { sums::<P, V, false>(t, c, t.w) };
    let mask = u64::MAX >> (64 - t.channels);
    // All loads before the first store: a masked load behind a masked store to its neighbour would wait for it.
    for (p, out) in out.iter_mut().enumerate() {
        // SAFETY: the mask selects `t.channels` bytes, which the caller lends.
        let old = unsafe { _mm512_maskz_loadu_epi8(mask, t.acc.add(p * t.stride).cast()) };
        *out = add_mod(*out, old, c.m);
    }
    for (p, &out) in out.iter().enumerate() {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_epi8(t.acc.add(p * t.stride).cast(), mask, out) };
    }
}

/// # Safety
/// As [`Micro::product`], with `P` pixels and `V` vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn product_tile<const P: usize, const V: usize>(t: &Tile<'_, Residue>, c: &Residue, ahead: *const i8) {
    // SAFETY: the caller's promises.
    let out = unsafe { sums::<P, V, true>(t, c, ahead) };
    let mask = u64::MAX >> (64 - t.channels);
    for (p, &out) in out.iter().enumerate() {
        // SAFETY: the mask selects `t.channels` bytes, which the caller lends.
        unsafe { _mm512_mask_storeu_epi8(t.acc.add(p * t.stride).cast(), mask, out) };
    }
}

/// Residues of the products of one tile. With `AHEAD` asks for two lines of memory per k-group from `ahead` on.
///
/// # Safety
/// As [`Micro::tile`], with `P` pixels and `V` vectors, except that the accumulator is not touched.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn sums<const P: usize, const V: usize, const AHEAD: bool>(
    t: &Tile<'_, Residue>,
    c: &Residue,
    mut ahead: *const i8,
) -> [__m512i; P] {
    let mut sum = [[_mm512_set1_epi32(c.bias as i32); V]; P];
    let mut w = t.w;
    for s in t.segments {
        let mut x = [t.x[0]; P];
        for (x, from) in x.iter_mut().zip(&t.x) {
            // SAFETY: the segment starts inside the scratch.
            *x = unsafe { from.add(s.offset) };
        }
        for k in 0..s.groups {
            let mut row = [_mm512_setzero_si512(); V];
            for (v, row) in row.iter_mut().enumerate() {
                // SAFETY: `V` aligned vectors of 64 bytes per k-group.
                *row = unsafe { _mm512_load_si512(w.add(64 * v).cast()) };
            }
            w = w.wrapping_add(64 * V);
            if AHEAD {
                // No effect but on time, wherever they point.
                _mm_prefetch::<_MM_HINT_T1>(ahead);
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(64));
                ahead = ahead.wrapping_add(128);
            }
            for (x, sum) in x.iter().zip(&mut sum) {
                // SAFETY: `k < s.groups`, four elements each.
                let x = _mm512_set1_epi32(unsafe { x.add(4 * k).cast::<i32>().read_unaligned() });
                for (sum, &row) in sum.iter_mut().zip(&row) {
                    *sum = _mm512_dpbusd_epi32(*sum, x, row);
                }
            }
        }
    }
    let mut out = [_mm512_setzero_si512(); P];
    for (out, sum) in out.iter_mut().zip(&sum) {
        let mut four = [_mm512_setzero_si512(); 4];
        four[..V].copy_from_slice(sum);
        *out = residues(c, four, V);
    }
    out
}

/// Reduces `vectors` of four biased sums to residues in order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn residues(c: &Residue, sum: [__m512i; 4], vectors: usize) -> __m512i {
    // Packing interleaves 128-bit lanes: four bytes of each vector in turn. This puts them back.
    let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    _mm512_permutexvar_epi32(order, residues_interleaved(c, sum, vectors))
}

/// The same, each 128-bit lane holding four residues of each vector in turn.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn residues_interleaved(c: &Residue, mut sum: [__m512i; 4], vectors: usize) -> __m512i {
    for sum in &mut sum[..vectors] {
        *sum = _mm512_dpbusd_epi32(splat(c.first.1), *sum, splat(c.first.0 as u32));
    }
    if let Some((factors, offset)) = c.second {
        for sum in &mut sum[..vectors] {
            *sum = _mm512_dpbusd_epi32(splat(offset), *sum, splat(factors as u32));
        }
    }
    let low = reduce_words(c, _mm512_packus_epi32(sum[0], sum[1]));
    let high = if vectors > 2 { reduce_words(c, _mm512_packus_epi32(sum[2], sum[3])) } else { low };
    _mm512_packus_epi16(low, high)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn splat(v: u32) -> __m512i {
    _mm512_set1_epi32(v as i32)
}

/// Barrett on words, exact for all 16 bits; see `magic16`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn reduce_words(c: &Residue, v: __m512i) -> __m512i {
    let m = _mm512_set1_epi16(i16::from(c.m));
    let q = mul_high(v, _mm512_set1_epi16(c.magic as i16));
    let r = _mm512_sub_epi16(v, _mm512_mullo_epi16(q, m));
    _mm512_min_epu16(r, _mm512_sub_epi16(r, m))
}

/// High halves of the products of words. LLVM knows the intrinsic as a shifted 32-bit product, hoists the
/// widening of a constant factor out of loops, and then no longer recognises the instruction.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn mul_high(a: __m512i, b: __m512i) -> __m512i {
    let high;
    // SAFETY: an AVX-512BW instruction on registers only, without side effects or flags.
    unsafe {
        asm!("vpmulhuw {}, {}, {}", lateout(zmm_reg) high, in(zmm_reg) a, in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    high
}

/// `a + b mod m` on bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn add_mod(a: __m512i, b: __m512i, m: u8) -> __m512i {
    let m = _mm512_set1_epi8(m as i8);
    let gap = _mm512_sub_epi8(m, a);
    // b < m - a: no wrap, so a + b; otherwise b - (m - a).
    let difference = _mm512_sub_epi8(b, gap);
    _mm512_mask_add_epi8(difference, _mm512_cmplt_epu8_mask(b, gap), a, b)
}

/// Z_2^64.
pub(super) struct Word;

impl Micro for Word {
    type In = u64;
    type X = u64;
    type W = u64;
    type Acc = u64;
    const GROUP: usize = 1;
    const LANES: usize = 8;
    const MAX_V: usize = 4;
    const CHUNK: usize = 1536;

    fn pixels(vectors: usize) -> usize {
        if vectors == 4 { 6 } else { 8 }
    }

    fn stage(src: &[u64], dst: &mut [u64]) {
        dst.copy_from_slice(src);
    }

    fn in_place(src: &[u64]) -> Option<&[u64]> {
        Some(src)
    }

    unsafe fn tile(&self, t: &Tile<'_, Self>) {
        // SAFETY: the caller's promises are those of `word_tile`.
        unsafe {
            monomorphise!(t => word_tile(t);
                1: 1 2 3 4 5 6 7 8, 2: 1 2 3 4 5 6 7 8, 3: 1 2 3 4 5 6 7 8, 4: 1 2 3 4 5 6)
        }
    }
}

/// # Safety
/// As [`Micro::tile`], with `P` pixels and `V` vectors.
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn word_tile<const P: usize, const V: usize>(t: &Tile<'_, Word>) {
    let mut sum = [[_mm512_setzero_si512(); V]; P];
    let mut w = t.w;
    for s in t.segments {
        let mut x = [t.x[0]; P];
        for (x, from) in x.iter_mut().zip(&t.x) {
            // SAFETY: the segment starts inside the scratch.
            *x = unsafe { from.add(s.offset) };
        }
        for k in 0..s.groups {
            let mut row = [_mm512_setzero_si512(); V];
            for (v, row) in row.iter_mut().enumerate() {
                // SAFETY: `V` aligned vectors of eight words per k-group.
                *row = unsafe { _mm512_load_si512(w.add(8 * v).cast()) };
            }
            w = w.wrapping_add(8 * V);
            for (x, sum) in x.iter().zip(&mut sum) {
                // SAFETY: `k < s.groups`.
                let x = _mm512_set1_epi64(unsafe { *x.add(k) } as i64);
                for (sum, &row) in sum.iter_mut().zip(&row) {
                    *sum = _mm512_add_epi64(*sum, _mm512_mullo_epi64(x, row));
                }
            }
        }
    }
    for (p, sum) in sum.iter().enumerate() {
        for (v, &sum) in sum.iter().enumerate() {
            let mask = 0xff_u8 >> (8 - t.channels.saturating_sub(8 * v).clamp(1, 8));
            // SAFETY: every vector of a block holds at least one of `t.channels`; the mask selects those.
            unsafe {
                let acc = t.acc.add(p * t.stride + 8 * v).cast::<i64>();
                let old = _mm512_maskz_loadu_epi64(mask, acc);
                _mm512_mask_storeu_epi64(acc, mask, _mm512_add_epi64(old, sum));
            }
        }
    }
}
