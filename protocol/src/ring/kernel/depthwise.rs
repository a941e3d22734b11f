//! Depthwise convolution: every channel alone, so vectors run along the channels of a pixel.
//!
//! Weights lie `[block of channels][tap][channel]`, a block being 64 bytes of input. With VNNI four taps are
//! multiplied at once: two rounds of unpacking turn four vectors of 64 channels into four of 16 channels by
//! four taps, and the packing of the epilogue undoes their order.

use bytemuck::Pod;

use super::conv::{self, Packed, Shared};
use super::residue::{MAX_PRODUCT, magic32, multiple_above, reduce32};
use super::{Conv, Isa, vectorised};

#[cfg(target_arch = "x86_64")]
use super::avx512;

/// Taps summed before a reduction.
const CHUNK: usize = 6144;

/// Channels of a block of elements `T`.
const fn block<T>() -> usize {
    64 / size_of::<T>()
}

/// Weights `[channel][tap]` as `[block][tap][channel]`.
pub(super) fn pack<T: Copy, W: Pod>(conv: &Conv, w: &[T], map: impl Fn(T) -> W) -> Packed {
    let (taps, width) = (conv.kernel[0] * conv.kernel[1], block::<T>());
    let mut packed = Packed::zeroed::<W>(conv.c_in.div_ceil(width) * width * taps);
    let out = packed.as_mut_slice();
    for (channel, w) in w.chunks_exact(taps).enumerate() {
        for (tap, &v) in w.iter().enumerate() {
            out[(channel / width * taps + tap) * width + channel % width] = map(v);
        }
    }
    packed
}

/// Weights as `[block][four taps][vector][lane][tap]`, vector `j` of a block holding four channels of each 16.
#[cfg(target_arch = "x86_64")]
pub(super) fn pack_by_four(conv: &Conv, w: &[u8], map: impl Fn(u8) -> i8) -> Packed {
    let taps = conv.kernel[0] * conv.kernel[1];
    let fours = taps.div_ceil(4);
    let mut packed = Packed::zeroed::<i8>(conv.c_in.div_ceil(64) * fours * 256);
    let out = packed.as_mut_slice();
    for (channel, w) in w.chunks_exact(taps).enumerate() {
        let (lane, vector, inside) = (channel % 64 / 16, channel % 16 / 4, channel % 4);
        for (tap, &v) in w.iter().enumerate() {
            let at = (channel / 64 * fours + tap / 4) * 256 + vector * 64 + lane * 16 + inside * 4;
            out[at + tap % 4] = map(v);
        }
    }
    packed
}

/// Residues: `acc = (acc + x * w) mod m`.
pub(super) fn accumulate(isa: Isa, conv: &Conv, m: u8, x: &[u8], w: &Packed, acc: &mut [u8]) {
    for_each_band(conv, x, acc, |conv, band, acc| match isa.usable() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `usable` is at most `Isa::detect`, which found AVX-512 with VNNI.
        Isa::Avx512 => unsafe { vnni_band(conv, m, band, w.as_slice(), acc) },
        _ => residue_band(isa, conv, m, band, w.as_slice(), acc),
    });
}

/// Z_2^64.
pub(super) fn accumulate_u64(isa: Isa, conv: &Conv, x: &[u64], w: &Packed, acc: &mut [u64]) {
    for_each_band(conv, x, acc, |conv, band, acc| word_band(isa, conv, band, w.as_slice(), acc));
}

/// Stages bands of rows and calls `run` with each and its part of the accumulator.
fn for_each_band<T: Pod + Send + Sync>(
    conv: &Conv,
    x: &[T],
    acc: &mut [T],
    run: impl Fn(&Conv, &[T], &mut [T]) + Sync,
) {
    assert!(x.len() == conv.in_len() && acc.len() == conv.out_len(), "lengths do not fit the convolution");
    let (oh, row) = (conv.out_h(), conv.out_w() * conv.c_out);
    let pitch = conv::padded_width(conv) * conv.c_in;
    let image_len = conv.h * conv.w * conv.c_in;
    let acc = Shared(acc.as_mut_ptr());
    conv::for_each(&conv::tasks(conv, pitch * size_of::<T>(), 1), |task| {
        let image = &x[task.image * image_len..][..image_len];
        let in_rows = (task.rows.len() - 1) * conv.stride[0] + conv::span(conv, 0);
        // SAFETY: the rows of the task, inside the accumulator whose length was checked; with a single unit
        // no other task has these rows.
        let acc = unsafe {
            let first = acc.get().add((task.image * oh + task.rows.start) * row);
            std::slice::from_raw_parts_mut(first, task.rows.len() * row)
        };
        conv::with_scratch(in_rows * pitch, |band| {
            let copy = |src: &[T], dst: &mut [T]| dst.copy_from_slice(src);
            conv::stage_band(conv, image, &task.rows, 0..conv.c_in, copy, band);
            run(conv, band, acc);
        });
    });
}

/// Offsets of the taps from a pixel's first.
fn taps(conv: &Conv) -> Vec<usize> {
    let pitch = conv::padded_width(conv) * conv.c_in;
    let [kh, kw] = conv.kernel;
    let at = |t: usize| t / kw * conv.dilation[0] * pitch + t % kw * conv.dilation[1] * conv.c_in;
    (0..kh * kw).map(at).collect()
}

/// Start in the band and in the accumulator of every output pixel.
fn pixels(conv: &Conv, rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let (ow, c) = (conv.out_w(), conv.c_in);
    let (down, right) = (conv.stride[0] * conv::padded_width(conv) * c, conv.stride[1] * c);
    (0..rows).flat_map(move |y| (0..ow).map(move |x| (y * down + x * right, (y * ow + x) * c)))
}

vectorised! {
    fn residue_band(conv: &Conv, m: u8, band: &[u8], w: &[i8], acc: &mut [u8]) = residue_band_body
}

#[inline(always)]
fn residue_band_body(conv: &Conv, m: u8, band: &[u8], w: &[i8], acc: &mut [u8]) {
    let taps = taps(conv);
    let magic = magic32(m);
    let bias = multiple_above(CHUNK as u32 * MAX_PRODUCT, m) as i32;
    let rows = acc.len() / (conv.out_w() * conv.c_out);
    for (first, w) in (0..conv.c_in).step_by(64).zip(w.chunks_exact(64 * taps.len())) {
        let count = (conv.c_in - first).min(64);
        for (taps, w) in taps.chunks(CHUNK).zip(w.chunks(64 * CHUNK)) {
            for (from, to) in pixels(conv, rows) {
                let mut sum = [bias; 64];
                for (&tap, w) in taps.iter().zip(w.as_chunks::<64>().0) {
                    let x = &band[from + first + tap..][..64];
                    for ((sum, &x), &w) in sum.iter_mut().zip(x).zip(w) {
                        *sum += i32::from(i16::from(x) * i16::from(w));
                    }
                }
                for (acc, sum) in acc[to + first..][..count].iter_mut().zip(sum) {
                    *acc = reduce32((sum + i32::from(*acc)) as u32, m, magic);
                }
            }
        }
    }
}

vectorised! {
    fn word_band(conv: &Conv, band: &[u64], w: &[u64], acc: &mut [u64]) = word_band_body
}

#[inline(always)]
fn word_band_body(conv: &Conv, band: &[u64], w: &[u64], acc: &mut [u64]) {
    let taps = taps(conv);
    let rows = acc.len() / (conv.out_w() * conv.c_out);
    for (first, w) in (0..conv.c_in).step_by(8).zip(w.chunks_exact(8 * taps.len())) {
        let count = (conv.c_in - first).min(8);
        for (from, to) in pixels(conv, rows) {
            let mut sum = [0u64; 8];
            for (&tap, w) in taps.iter().zip(w.as_chunks::<8>().0) {
                let x = &band[from + first + tap..][..8];
                for ((sum, &x), &w) in sum.iter_mut().zip(x).zip(w) {
                    *sum = sum.wrapping_add(x.wrapping_mul(w));
                }
            }
            for (acc, sum) in acc[to + first..][..count].iter_mut().zip(sum) {
                *acc = acc.wrapping_add(sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn vnni_band(conv: &Conv, m: u8, band: &[u8], w: &[i8], acc: &mut [u8]) {
    use std::arch::x86_64::*;

    let constants = avx512::Residue::new(m);
    let mut taps = taps(conv);
    // Four at a time; the missing ones have zero weights.
    taps.resize(taps.len().next_multiple_of(4), 0);
    let rows = acc.len() / (conv.out_w() * conv.c_out);
    for (first, w) in (0..conv.c_in).step_by(64).zip(w.chunks_exact(64 * taps.len())) {
        let count = (conv.c_in - first).min(64);
        let mask = u64::MAX >> (64 - count);
        for (taps, w) in taps.chunks(CHUNK).zip(w.chunks(64 * CHUNK)) {
            let furthest = taps.iter().max().map_or(0, |&tap| tap + first);
            for (from, to) in pixels(conv, rows) {
                let x = &band[from..][..furthest + 64];
                let acc = &mut acc[to + first..][..count];
                let mut sum = [_mm512_set1_epi32(constants.bias() as i32); 4];
                for (taps, w) in taps.as_chunks::<4>().0.iter().zip(w.as_chunks::<256>().0) {
                    // SAFETY: `x` reaches 64 bytes behind the furthest tap, `first` included.
                    let [a, b, c, d] =
                        taps.map(|tap| unsafe { _mm512_loadu_si512(x.as_ptr().add(first + tap).cast()) });
                    let (ab_low, ab_high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
                    let (cd_low, cd_high) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
                    let quads = [
                        _mm512_unpacklo_epi16(ab_low, cd_low),
                        _mm512_unpackhi_epi16(ab_low, cd_low),
                        _mm512_unpacklo_epi16(ab_high, cd_high),
                        _mm512_unpackhi_epi16(ab_high, cd_high),
                    ];
                    for (j, quad) in quads.into_iter().enumerate() {
                        // SAFETY: `w` is 256 bytes, four vectors.
                        let w = unsafe { _mm512_loadu_si512(w.as_ptr().add(64 * j).cast()) };
                        sum[j] = _mm512_dpbusd_epi32(sum[j], quad, w);
                    }
                }
                let residues = avx512::residues_interleaved(&constants, sum, 4);
                // SAFETY: the mask selects the `count` bytes of `acc`.
                unsafe {
                    let at = acc.as_mut_ptr().cast::<i8>();
                    let old = _mm512_maskz_loadu_epi8(mask, at);
                    _mm512_mask_storeu_epi8(at, mask, avx512::add_mod(residues, old, m));
                }
            }
        }
    }
}
