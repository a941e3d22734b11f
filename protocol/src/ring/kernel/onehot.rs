//! Lookup of a four-bit digit in a one-hot table held as 16 bits.

use super::Isa;

/// For every element, with digit `d = (z[i] >> shift) & 15`: bit `i` of `eq` is bit `d` of `onehot[i]`, bit `i`
/// of `gt` the parity of the bits of `onehot[i]` above `d`. Bits are packed from the low end of each word; the
/// rest of the last word becomes zero.
///
/// # Panics
/// If `z` and `onehot` differ in length, `eq` or `gt` are not `len / 64` words, rounded up, or `shift >= 32`.
pub fn lookup_onehot(isa: Isa, z: &[u32], shift: u32, onehot: &[u16], eq: &mut [u64], gt: &mut [u64]) {
    assert!(shift < 32, "shift beyond the element");
    blocks(z, onehot, eq, gt, |z, onehot| match isa.usable() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `usable` is at most `Isa::detect`, which found these AVX-512 subsets.
        Isa::Avx512 => unsafe { avx512_u32(z, shift, onehot) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `usable` is at most `Isa::detect`, which found AVX2.
        Isa::Avx2 => unsafe { avx2_block(&digits(z, shift), onehot) },
        _ => portable(&digits(z, shift), onehot),
    });
}

/// [`lookup_onehot`] for wide elements.
///
/// # Panics
/// As there, but if `shift >= 64`.
pub fn lookup_onehot_u64(isa: Isa, z: &[u64], shift: u32, onehot: &[u16], eq: &mut [u64], gt: &mut [u64]) {
    assert!(shift < 64, "shift beyond the element");
    blocks(z, onehot, eq, gt, |z, onehot| match isa.usable() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `usable` is at most `Isa::detect`, which found these AVX-512 subsets.
        Isa::Avx512 => unsafe { avx512_u64(z, shift, onehot) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `usable` is at most `Isa::detect`, which found AVX2.
        Isa::Avx2 => unsafe { avx2_block(&digits(z, shift), onehot) },
        _ => portable(&digits(z, shift), onehot),
    });
}

/// Feeds `run` 64 elements at a time, the last ones filled up with zeros, which give zeros.
#[inline(always)]
fn blocks<T: Copy + Default>(
    z: &[T],
    onehot: &[u16],
    eq: &mut [u64],
    gt: &mut [u64],
    run: impl Fn(&[T; 64], &[u16; 64]) -> (u64, u64),
) {
    assert_eq!(z.len(), onehot.len(), "one table per element");
    let words = z.len().div_ceil(64);
    assert!(eq.len() == words && gt.len() == words, "one bit per element");
    let (z, z_rest) = z.as_chunks::<64>();
    let (onehot, onehot_rest) = onehot.as_chunks::<64>();
    for (((z, onehot), eq), gt) in z.iter().zip(onehot).zip(eq.iter_mut()).zip(gt.iter_mut()) {
        (*eq, *gt) = run(z, onehot);
    }
    if !z_rest.is_empty() {
        let (mut z, mut onehot) = ([T::default(); 64], [0; 64]);
        z[..z_rest.len()].copy_from_slice(z_rest);
        onehot[..onehot_rest.len()].copy_from_slice(onehot_rest);
        (eq[words - 1], gt[words - 1]) = run(&z, &onehot);
    }
}

trait Digit: Copy {
    fn digit(self, shift: u32) -> u16;
}

impl Digit for u32 {
    #[inline(always)]
    fn digit(self, shift: u32) -> u16 {
        (self >> shift) as u16 & 15
    }
}

impl Digit for u64 {
    #[inline(always)]
    fn digit(self, shift: u32) -> u16 {
        (self >> shift) as u16 & 15
    }
}

#[inline(always)]
fn digits<T: Digit>(z: &[T; 64], shift: u32) -> [u16; 64] {
    z.map(|z| z.digit(shift))
}

fn portable(digits: &[u16; 64], onehot: &[u16; 64]) -> (u64, u64) {
    let (mut eq, mut gt) = (0, 0);
    for (i, (&d, &t)) in digits.iter().zip(onehot).enumerate() {
        let from = t >> d;
        let mut above = from >> 1;
        for half in [8, 4, 2, 1] {
            above ^= above >> half;
        }
        eq |= u64::from(from & 1) << i;
        gt |= u64::from(above & 1) << i;
    }
    (eq, gt)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2_block(digits: &[u16; 64], onehot: &[u16; 64]) -> (u64, u64) {
    use std::arch::x86_64::*;

    let (mut eq, mut gt) = (0, 0);
    for i in 0..8 {
        // SAFETY: eight words at `8 i` of 64.
        let (d, t) = unsafe {
            (
                _mm256_cvtepu16_epi32(_mm_loadu_si128(digits.as_ptr().add(8 * i).cast())),
                _mm256_cvtepu16_epi32(_mm_loadu_si128(onehot.as_ptr().add(8 * i).cast())),
            )
        };
        let from = _mm256_srlv_epi32(t, d);
        let mut above = _mm256_srli_epi32::<1>(from);
        above = _mm256_xor_si256(above, _mm256_srli_epi32::<8>(above));
        above = _mm256_xor_si256(above, _mm256_srli_epi32::<4>(above));
        above = _mm256_xor_si256(above, _mm256_srli_epi32::<2>(above));
        above = _mm256_xor_si256(above, _mm256_srli_epi32::<1>(above));
        let sign = |v| _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_slli_epi32::<31>(v))) as u8;
        eq |= u64::from(sign(from)) << (8 * i);
        gt |= u64::from(sign(above)) << (8 * i);
    }
    (eq, gt)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bitalg")]
fn avx512_u32(z: &[u32; 64], shift: u32, onehot: &[u16; 64]) -> (u64, u64) {
    use std::arch::x86_64::*;

    let shift = _mm_cvtsi32_si128(shift as i32);
    let mut d = [_mm256_setzero_si256(); 4];
    for (i, d) in d.iter_mut().enumerate() {
        // SAFETY: 16 elements at `16 i` of 64.
        let z = unsafe { _mm512_loadu_si512(z.as_ptr().add(16 * i).cast()) };
        *d = _mm512_cvtepi32_epi16(_mm512_srl_epi32(z, shift));
    }
    let low = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(d[0]), d[1]);
    let high = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(d[2]), d[3]);
    avx512_masks([low, high], onehot)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bitalg")]
fn avx512_u64(z: &[u64; 64], shift: u32, onehot: &[u16; 64]) -> (u64, u64) {
    use std::arch::x86_64::*;

    let shift = _mm_cvtsi32_si128(shift as i32);
    let mut d = [_mm512_setzero_si512(); 2];
    for (half, d) in d.iter_mut().enumerate() {
        let mut words = [_mm_setzero_si128(); 4];
        for (i, words) in words.iter_mut().enumerate() {
            // SAFETY: eight elements at `32 half + 8 i` of 64.
            let z = unsafe { _mm512_loadu_si512(z.as_ptr().add(32 * half + 8 * i).cast()) };
            *words = _mm512_cvtepi64_epi16(_mm512_srl_epi64(z, shift));
        }
        let low = _mm256_set_m128i(words[1], words[0]);
        let high = _mm256_set_m128i(words[3], words[2]);
        *d = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
    }
    avx512_masks(d, onehot)
}

/// The digits still carry what was above them.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bitalg")]
fn avx512_masks(d: [std::arch::x86_64::__m512i; 2], onehot: &[u16; 64]) -> (u64, u64) {
    use std::arch::x86_64::*;

    let one = _mm512_set1_epi16(1);
    let (mut eq, mut gt) = (0, 0);
    for (i, d) in d.into_iter().enumerate() {
        // SAFETY: 32 words at `32 i` of 64.
        let t = unsafe { _mm512_loadu_si512(onehot.as_ptr().add(32 * i).cast()) };
        let from = _mm512_srlv_epi16(t, _mm512_and_si512(d, _mm512_set1_epi16(15)));
        let above = _mm512_popcnt_epi16(_mm512_srli_epi16::<1>(from));
        eq |= u64::from(_mm512_test_epi16_mask(from, one)) << (32 * i);
        gt |= u64::from(_mm512_test_epi16_mask(above, one)) << (32 * i);
    }
    (eq, gt)
}
