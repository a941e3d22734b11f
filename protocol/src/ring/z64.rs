//! Z_2^64, the well-known reference instance. `Full` and `Reduced` are the same numbers.

use super::kernel as k;
use super::kernel::{Conv, Isa};
use super::{CHUNK, Range, Ring, par};
use crate::prg::Streams;
use crate::secret::Secret;

/// Bits that a rescale drops.
pub const SHIFT: u32 = 16;

/// Integers modulo 2^64 in one plane of words.
#[derive(Clone, Debug, PartialEq)]
pub struct Z64 {
    isa: Isa,
}

impl Z64 {
    /// With the kernels for this machine.
    pub fn new() -> Self {
        Self { isa: Isa::detect() }
    }
}

impl Default for Z64 {
    fn default() -> Self {
        Self::new()
    }
}

impl Ring for Z64 {
    type Word = u64;
    type Compared = u64;
    type Packed = k::PackedWeights64;

    fn planes(&self, _: Range) -> usize {
        1
    }

    fn divisor(&self) -> u64 {
        1 << SHIFT
    }

    fn one_half(&self) -> Option<i64> {
        None
    }

    fn bound(&self, _: Range) -> i64 {
        i64::MAX
    }

    fn uniform_plane(&self, _: usize, lane: usize, streams: Streams<'_>, out: &mut [u64]) {
        par::each(CHUNK, out.chunks_mut(CHUNK).enumerate(), |(chunk, out)| {
            streams.stream(lane, chunk).fill(bytemuck::cast_slice_mut(out));
        });
    }

    fn is_canonical_plane(&self, _: usize, _: &[u64]) -> bool {
        true
    }

    fn add_plane(&self, _: usize, a: &mut [u64], b: &[u64]) {
        self.add(Range::Full, a, b);
    }

    fn sub_plane(&self, _: usize, a: &mut [u64], b: &[u64]) {
        self.sub(Range::Full, a, b);
    }

    fn add(&self, _: Range, a: &mut [u64], b: &[u64]) {
        assert_eq!(a.len(), b.len(), "operands of one length");
        a.iter_mut().zip(b).for_each(|(a, b)| *a = a.wrapping_add(*b));
    }

    fn sub(&self, _: Range, a: &mut [u64], b: &[u64]) {
        assert_eq!(a.len(), b.len(), "operands of one length");
        a.iter_mut().zip(b).for_each(|(a, b)| *a = a.wrapping_sub(*b));
    }

    fn scale(&self, _: Range, a: &mut [u64], factor: i64) {
        a.iter_mut().for_each(|a| *a = a.wrapping_mul(factor as u64));
    }

    fn mul(&self, _: Range, a: &mut [u64], b: &[u64]) {
        assert_eq!(a.len(), b.len(), "operands of one length");
        a.iter_mut().zip(b).for_each(|(a, b)| *a = a.wrapping_mul(*b));
    }

    fn encode(&self, _: Range, x: &[i64]) -> Vec<u64> {
        x.iter().map(|&x| x as u64).collect()
    }

    fn decode(&self, _: Range, words: &[u64]) -> Vec<i64> {
        words.iter().map(|&w| w as i64).collect()
    }

    fn pack(&self, conv: &Conv, w: &[u64]) -> Self::Packed {
        k::PackedWeights64::pack(self.isa, conv, w)
    }

    fn apply(&self, conv: &Conv, x: &[u64], w: &Self::Packed, acc: &mut [u64]) {
        k::conv_accumulate_u64(self.isa, conv, x, w, acc);
    }

    fn compare_bits(&self) -> u32 {
        63
    }

    fn mask_for_sign(&self, x: &mut [u64], r: &[u64]) {
        self.add(Range::Reduced, x, r);
    }

    fn split_for_sign(&self, z: &[u64], n: usize) -> (Secret<u64>, Secret<u64>) {
        debug_assert_eq!(z.len(), n);
        let top = z.chunks(64).map(|c| c.iter().rev().fold(0, |w, v| w << 1 | v >> 63));
        let low = z.iter().map(|v| v & (u64::MAX >> 1));
        (low.collect::<Vec<_>>().into(), top.collect::<Vec<_>>().into())
    }

    fn lookup(&self, z: &[u64], shift: u32, onehot: &[u16], eq: &mut [u64], lt: &mut [u64]) {
        k::lookup_onehot_u64(self.isa, z, shift, onehot, eq, lt);
    }

    fn digit(&self, x: u64, shift: u32) -> u32 {
        (x >> shift & 15) as u32
    }
}
