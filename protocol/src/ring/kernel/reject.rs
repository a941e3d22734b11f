//! Uniform residues from random bytes, by rejection.

use super::Isa;

/// Appends to `out`, from `filled` on, every byte of `random` below `m`, in order, until `out` is full;
/// returns how much of `out` is filled now. Uniform bytes give uniform residues. What follows in `out` behind
/// the returned count is unspecified.
///
/// # Panics
/// If `m` is zero or `filled > out.len()`.
pub fn uniform_residues(isa: Isa, m: u8, random: &[u8], out: &mut [u8], filled: usize) -> usize {
    assert!(m > 0 && filled <= out.len(), "more residues filled than there is room for");
    match isa.usable() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `usable` is at most `Isa::detect`, which found AVX-512 with VBMI2.
        Isa::Avx512 => unsafe { avx512(m, random, out, filled) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `usable` is at most `Isa::detect`, which found AVX2 and POPCNT.
        Isa::Avx2 => unsafe { avx2(m, random, out, filled) },
        _ => portable(m, random, out, filled),
    }
}

fn portable(m: u8, random: &[u8], out: &mut [u8], mut filled: usize) -> usize {
    for &byte in random {
        // Written in any case, kept if below `m`: no branch on the byte.
        let Some(slot) = out.get_mut(filled) else { break };
        *slot = byte;
        filled += usize::from(byte < m);
    }
    filled
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
fn avx512(m: u8, random: &[u8], out: &mut [u8], mut filled: usize) -> usize {
    use std::arch::x86_64::*;

    let bound = _mm512_set1_epi8(m as i8);
    let (blocks, _) = random.as_chunks::<64>();
    let mut used = 0;
    for block in blocks {
        let Some(slot) = out.get_mut(filled..).and_then(|out| out.first_chunk_mut::<64>()) else { break };
        // SAFETY: 64 bytes to read and 64 to write. (Compressing to memory would take microcode on Zen 4.)
        unsafe {
            let bytes = _mm512_loadu_si512(block.as_ptr().cast());
            let mask = _mm512_cmplt_epu8_mask(bytes, bound);
            _mm512_storeu_si512(slot.as_mut_ptr().cast(), _mm512_maskz_compress_epi8(mask, bytes));
            filled += mask.count_ones() as usize;
        }
        used += 64;
    }
    portable(m, &random[used..], out, filled)
}

/// `SHIFTS[mask]` moves the bytes selected by `mask` to the front.
#[cfg(target_arch = "x86_64")]
static SHIFTS: [[u8; 8]; 256] = {
    let mut table = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut bit, mut count) = (0, 0);
        while bit < 8 {
            if mask >> bit & 1 == 1 {
                table[mask][count] = bit as u8;
                count += 1;
            }
            bit += 1;
        }
        mask += 1;
    }
    table
};

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,popcnt")]
fn avx2(m: u8, random: &[u8], out: &mut [u8], mut filled: usize) -> usize {
    use std::arch::x86_64::*;

    let last = _mm256_set1_epi8((m - 1) as i8);
    let (blocks, _) = random.as_chunks::<32>();
    let mut used = 0;
    for block in blocks {
        let Some(slot) = out.get_mut(filled..).and_then(|out| out.first_chunk_mut::<32>()) else { break };
        // SAFETY: 32 bytes to read and 32 to write.
        let mask = unsafe {
            let bytes = _mm256_loadu_si256(block.as_ptr().cast());
            _mm256_storeu_si256(slot.as_mut_ptr().cast(), bytes);
            _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(bytes, last), bytes)) as u32
        };
        if mask == u32::MAX {
            filled += 32;
        } else {
            // Which bytes were rejected is independent of the accepted ones, so it may steer and index.
            for (eight, mask) in block.as_chunks::<8>().0.iter().zip(mask.to_le_bytes()) {
                // SAFETY: eight bytes to read from each; at most eight per step are written, and the 32 bytes
                // of the slot reach from the first to the last of these.
                unsafe {
                    let bytes = _mm_loadl_epi64(eight.as_ptr().cast());
                    let shift = _mm_loadl_epi64(SHIFTS[usize::from(mask)].as_ptr().cast());
                    _mm_storel_epi64(out.as_mut_ptr().add(filled).cast(), _mm_shuffle_epi8(bytes, shift));
                }
                filled += mask.count_ones() as usize;
            }
        }
        used += 32;
    }
    portable(m, &random[used..], out, filled)
}
