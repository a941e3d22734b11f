//! The tiles in plain Rust: the reference for the others, and what other processors run.

use super::conv::{MAX_P, Micro, Tile};
use super::residue::{MAX_PRODUCT, magic32, multiple_above, reduce32};

const LANES: usize = 8;
const P: usize = 4;

/// Residues modulo `m`.
pub(super) struct Residue {
    m: u8,
    magic: u32,
    /// A multiple of `m` that makes every sum non-negative.
    bias: i32,
}

impl Residue {
    pub(super) fn new(m: u8) -> Self {
        let bias = multiple_above(Self::CHUNK as u32 * MAX_PRODUCT, m) as i32;
        Self { m, magic: magic32(m), bias }
    }
}

impl Micro for Residue {
    type In = u8;
    type X = u8;
    /// Words, although bytes would do: from bytes LLVM makes scalar products.
    type W = i16;
    type Acc = u8;
    const GROUP: usize = 1;
    const LANES: usize = LANES;
    const MAX_V: usize = 1;
    const CHUNK: usize = 6144;

    fn pixels(_: usize) -> usize {
        P
    }

    fn stage(src: &[u8], dst: &mut [u8]) {
        dst.copy_from_slice(src);
    }

    fn in_place(src: &[u8]) -> Option<&[u8]> {
        Some(src)
    }

    unsafe fn tile(&self, t: &Tile<'_, Self>) {
        debug_assert_eq!(t.vectors, 1);
        // The bias and the accumulator fit beside the products: 2 * 6144 * 254 * 127 + 254 + 255 < 2^31.
        let mut sum = [[self.bias; LANES]; P];
        let mut w = t.w;
        for s in t.segments {
            for k in 0..s.groups {
                // SAFETY: `w` advances by `LANES` per k-group, within the weights of the segments.
                let row = unsafe { w.cast::<[i16; LANES]>().read() };
                w = w.wrapping_add(LANES);
                for (x, sum) in t.x.iter().zip(&mut sum) {
                    // SAFETY: pixels beyond `t.pixels` repeat a valid one, and `k < s.groups`.
                    let x = i16::from(unsafe { *x.add(s.offset + k) });
                    // At most 254 * 127 each.
                    let products = row.map(|w| x.wrapping_mul(w));
                    for (sum, product) in sum.iter_mut().zip(products) {
                        *sum = sum.wrapping_add(i32::from(product));
                    }
                }
            }
        }
        for (p, sum) in sum.iter().enumerate().take(t.pixels) {
            // SAFETY: the caller lends `channels` elements of each pixel.
            let acc = unsafe { std::slice::from_raw_parts_mut(t.acc.add(p * t.stride), t.channels) };
            for (acc, sum) in acc.iter_mut().zip(sum) {
                *acc = reduce32((sum + i32::from(*acc)) as u32, self.m, self.magic);
            }
        }
    }
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
    const MAX_V: usize = 1;
    const CHUNK: usize = 1536;

    fn pixels(_: usize) -> usize {
        P
    }

    fn stage(src: &[u64], dst: &mut [u64]) {
        dst.copy_from_slice(src);
    }

    fn in_place(src: &[u64]) -> Option<&[u64]> {
        Some(src)
    }

    unsafe fn tile(&self, t: &Tile<'_, Self>) {
        debug_assert_eq!(t.vectors, 1);
        let mut sum = [[0u64; 4]; P];
        let mut w = t.w;
        for s in t.segments {
            for k in 0..s.groups {
                // SAFETY: `w` advances by `LANES` per k-group, within the weights of the segments.
                let row = unsafe { w.cast::<[u64; 4]>().read() };
                w = w.wrapping_add(4);
                for (x, sum) in t.x.iter().zip(&mut sum) {
                    // SAFETY: pixels beyond `t.pixels` repeat a valid one, and `k < s.groups`.
                    let x = unsafe { *x.add(s.offset + k) };
                    for (sum, w) in sum.iter_mut().zip(row) {
                        *sum = sum.wrapping_add(x.wrapping_mul(w));
                    }
                }
            }
        }
        for (p, sum) in sum.iter().enumerate().take(t.pixels) {
            // SAFETY: the caller lends `channels` elements of each pixel.
            let acc = unsafe { std::slice::from_raw_parts_mut(t.acc.add(p * t.stride), t.channels) };
            for (acc, sum) in acc.iter_mut().zip(sum) {
                *acc = acc.wrapping_add(*sum);
            }
        }
    }
}

const _: () = assert!(P <= MAX_P);
