//! Arithmetic: what an element is, in two domains.

pub mod kernel;
pub mod rns;
pub mod z64;

use std::fmt::Debug;

use bytemuck::Pod;

use crate::buffer;
use crate::prg::Streams;
use crate::secret::Secret;
use kernel::Conv;

pub use rns::{Moduli, Rns};
pub use z64::Z64;

mod sealed {
    pub trait Sealed {}
}

/// Which of the two number ranges an element lives in. In the residue number system `Full` is Z_M and
/// `Reduced` is Z_P with M = P*Q; in Z_2^64 they are the same ring and differ in name only.
pub trait Domain: sealed::Sealed + Copy + Send + Sync + std::fmt::Debug + 'static {
    /// The domain as a value.
    const RANGE: Range;
}

/// Input of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {}

/// Output of a rescale, input of comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduced {}

/// A [`Domain`] as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Range {
    /// Z_M.
    Full,
    /// Z_P.
    Reduced,
}

impl sealed::Sealed for Full {}
impl sealed::Sealed for Reduced {}
impl Domain for Full {
    const RANGE: Range = Range::Full;
}
impl Domain for Reduced {
    const RANGE: Range = Range::Reduced;
}

/// Elements that are handled at once: a chunk fits the cache, and chunks run in parallel.
pub const CHUNK: usize = 1 << 14;

/// An index that [`Ring::gather`] reads as zero.
pub const ZERO: u32 = u32::MAX;

/// A ring Z_M with what secure inference needs of it.
///
/// A vector of `n` elements is `planes(range) * n` words, plane by plane; the planes of `Reduced` are a prefix
/// of those of `Full`. Words are canonical. All methods run in time that depends on lengths only, save the
/// rejection sampling, whose rejected draws say nothing about those accepted.
pub trait Ring: Clone + PartialEq + Debug + Send + Sync + 'static {
    /// Machine word of a plane.
    type Word: Pod + Send + Sync + PartialEq + Debug;
    /// An integer of the range that comparisons work on.
    type Compared: Pod + Send + Sync + Debug;
    /// Weights arranged for the kernels.
    type Packed: Send + Sync;

    /// Words per element.
    fn planes(&self, range: Range) -> usize;

    /// Bytes per element, in memory and on the wire.
    fn bytes(&self, range: Range) -> usize {
        self.planes(range) * size_of::<Self::Word>()
    }

    /// What `rescale` divides by.
    fn divisor(&self) -> u64;

    /// 1/2 in `Full`, if there is one.
    fn one_half(&self) -> Option<i64>;

    /// Half of what a number in `range` may span: |x| <= bound is representable.
    fn bound(&self, range: Range) -> i64;

    /// Fills one plane of a vector with uniform elements from the streams of `lane`.
    fn uniform_plane(&self, plane: usize, lane: usize, streams: Streams<'_>, out: &mut [Self::Word]);

    /// `n` uniform elements, the lanes being the planes.
    fn uniform(&self, range: Range, streams: Streams<'_>, n: usize) -> Secret<Self::Word> {
        let mut out = Secret::zeroed(self.planes(range) * n);
        if n > 0 {
            par::each(n, out.chunks_exact_mut(n).enumerate(), |(plane, out)| {
                self.uniform_plane(plane, plane, streams, out);
            });
        }
        out
    }

    /// Whether all words are canonical, which what a peer sent must be.
    fn is_canonical(&self, range: Range, words: &[Self::Word]) -> bool {
        let n = words.len() / self.planes(range);
        n == 0
            || words.chunks_exact(n).enumerate().all(|(plane, words)| self.is_canonical_plane(plane, words))
    }

    /// The same for one plane.
    fn is_canonical_plane(&self, plane: usize, words: &[Self::Word]) -> bool;

    /// `a += b` in one plane.
    fn add_plane(&self, plane: usize, a: &mut [Self::Word], b: &[Self::Word]);
    /// `a -= b` in one plane.
    fn sub_plane(&self, plane: usize, a: &mut [Self::Word], b: &[Self::Word]);

    /// `a += b`.
    fn add(&self, range: Range, a: &mut [Self::Word], b: &[Self::Word]);
    /// `a -= b`.
    fn sub(&self, range: Range, a: &mut [Self::Word], b: &[Self::Word]);
    /// `a *= factor`.
    fn scale(&self, range: Range, a: &mut [Self::Word], factor: i64);
    /// `a *= b` elementwise.
    fn mul(&self, range: Range, a: &mut [Self::Word], b: &[Self::Word]);
    /// Integers to elements.
    fn encode(&self, range: Range, x: &[i64]) -> Vec<Self::Word>;
    /// Elements to integers nearest zero.
    fn decode(&self, range: Range, words: &[Self::Word]) -> Vec<i64>;

    /// Arranges weights for [`Self::apply`].
    fn pack(&self, conv: &Conv, w: &[Self::Word]) -> Self::Packed;
    /// `acc += x * w` in `Full`.
    fn apply(&self, conv: &Conv, x: &[Self::Word], w: &Self::Packed, acc: &mut [Self::Word]);

    /// Bits of the numbers that a sign compares.
    fn compare_bits(&self) -> u32;
    /// What is opened to find the sign of x under the mask r: `x` becomes a share of z.
    fn mask_for_sign(&self, x: &mut [Self::Word], r: &[Self::Word]);
    /// Splits z, or r, into the number that is compared and the bit that is XORed to the outcome:
    /// sign(x) = bit(z) ^ bit(r) ^ [number(z) < number(r)].
    fn split_for_sign(&self, z: &[Self::Word], n: usize) -> (Secret<Self::Compared>, Secret<u64>);
    /// For one digit of 4 bits at `shift`: [digit = r's] and [digit < r's] as shares, from z and the share of
    /// the one-hot vector of r's digit.
    fn lookup(&self, z: &[Self::Compared], shift: u32, onehot: &[u16], eq: &mut [u64], lt: &mut [u64]);
    /// The digit of 4 bits at `shift`.
    fn digit(&self, x: Self::Compared, shift: u32) -> u32;
}

/// Parallel loops that stay on this thread when the work is too small to share.
pub(crate) mod par {
    use rayon::prelude::*;

    /// Fewest elements worth another thread.
    const WORTH: usize = 1 << 14;

    /// Runs `f` on each item; `n` says how much work an item is, in elements.
    pub fn each<T: Send>(n: usize, items: impl Iterator<Item = T>, f: impl Fn(T) + Send + Sync) {
        let items: Vec<T> = items.collect();
        if items.len() > 1 && n * items.len() > 2 * WORTH && rayon::current_num_threads() > 1 {
            items.into_par_iter().for_each(f);
        } else {
            items.into_iter().for_each(f);
        }
    }

    /// Maps each item, likewise.
    pub fn map<T: Send, U: Send>(
        n: usize,
        items: impl Iterator<Item = T>,
        f: impl Fn(T) -> U + Send + Sync,
    ) -> Vec<U> {
        let items: Vec<T> = items.collect();
        if items.len() > 1 && n * items.len() > 2 * WORTH && rayon::current_num_threads() > 1 {
            items.into_par_iter().map(f).collect()
        } else {
            items.into_iter().map(f).collect()
        }
    }
}

/// Reads elements at public places: `out[i] = (parts[0] ++ parts[1] ++ ...)[index[i]]`, zero at [`ZERO`].
///
/// # Panics
/// If an index lies beyond the parts.
pub fn gather<W: Pod + Send + Sync>(planes: usize, parts: &[&[W]], index: &[u32]) -> Vec<W> {
    /// Elements that a run must have on average to be copied as a whole.
    const LONG: usize = 8;
    let mut out = buffer::zeroed(planes * index.len());
    if index.is_empty() {
        return out;
    }
    // Most places come in runs: rows, channels, whole vectors.
    let next = |a: u32, b: u32| a != ZERO && b != ZERO && b == a + 1;
    let breaks = index.iter().zip(&index[1..]).filter(|&(&a, &b)| !next(a, b)).count();
    let runs: Vec<&[u32]> = if (breaks + 1) * LONG <= index.len() {
        index.chunk_by(|&a, &b| next(a, b)).collect()
    } else {
        Vec::new()
    };
    let lens: Vec<usize> = parts.iter().map(|p| p.len() / planes).collect();
    par::each(index.len(), out.chunks_exact_mut(index.len()).enumerate(), |(plane, mut out)| {
        let plane_of = |part: usize| &parts[part][plane * lens[part]..(plane + 1) * lens[part]];
        if !runs.is_empty() {
            for run in &runs {
                let (now, later) = out.split_at_mut(run.len());
                if run[0] != ZERO {
                    copy_run(now, run[0] as usize, (0..parts.len()).map(plane_of));
                }
                out = later;
            }
            return;
        }
        let joined: Vec<W>;
        let source = match parts {
            [_] => plane_of(0),
            _ => {
                joined = (0..parts.len()).map(plane_of).collect::<Vec<_>>().concat();
                &joined
            }
        };
        for (o, &i) in out.iter_mut().zip(index) {
            *o = if i == ZERO { W::zeroed() } else { source[i as usize] };
        }
    });
    out
}

/// Fills `out` from place `from` on of what `parts` make one after the other.
fn copy_run<'a, W: Pod>(mut out: &mut [W], mut from: usize, parts: impl Iterator<Item = &'a [W]>) {
    for part in parts {
        let Some(rest) = part.get(from..) else {
            from -= part.len();
            continue;
        };
        let (now, later) = out.split_at_mut(rest.len().min(out.len()));
        now.copy_from_slice(&rest[..now.len()]);
        (out, from) = (later, 0);
    }
    assert!(out.is_empty(), "an index lies beyond the parts");
}

/// Words of a plane each in `period`, repeated along `n` elements of each plane.
///
/// # Panics
/// If `n` is not a multiple of the elements in `period`.
pub fn repeat<W: Pod>(planes: usize, period: &[W], n: usize) -> Vec<W> {
    let len = period.len() / planes;
    assert!(len > 0 && n.is_multiple_of(len), "constants repeat along the vector");
    let mut out = Vec::with_capacity(planes * n);
    for plane in period.chunks_exact(len) {
        let (start, end) = (out.len(), out.len() + n);
        if n == 0 {
            continue;
        }
        out.extend_from_slice(plane);
        // Doubling: short periods are many.
        while out.len() < end {
            let have = (out.len() - start).min(end - out.len());
            out.extend_from_within(start..start + have);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathers_runs_and_single_places_alike() {
        // Two planes of three parts, the second of them empty: element i of plane p is 100 p + i.
        let word = |plane: u8, i: u8| 100 * plane + i;
        let part = |places: std::ops::Range<u8>| -> Vec<u8> {
            (0..2).flat_map(|p| places.clone().map(move |i| word(p, i))).collect()
        };
        let parts = [part(0..20), part(20..20), part(20..50)];
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let all: Vec<u32> = (0..50).collect();
        let across = [&all[13..42], &all[0..20], &all[20..50]].concat();
        let zeros = [&all[1..30], &[ZERO; 2], &all[48..50], &[ZERO], &all[0..19]].concat();
        let back: Vec<u32> = (0..50).rev().collect();
        for index in [all, across, zeros, back, vec![ZERO, 3, ZERO], vec![]] {
            let want: Vec<u8> = (0..2)
                .flat_map(|p| index.iter().map(move |&i| if i == ZERO { 0 } else { word(p, i as u8) }))
                .collect();
            assert_eq!(gather(2, &parts, &index), want, "{index:?}");
        }
    }

    #[test]
    #[should_panic(expected = "beyond the parts")]
    fn runs_end_within_the_parts() {
        let index: Vec<u32> = (0..21).collect();
        gather(1, &[&[1u8; 20]], &index);
    }

    #[test]
    fn repeats_by_plane() {
        assert_eq!(repeat(2, &[1u8, 2, 3, 4, 5, 6], 6), [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]);
        assert_eq!(repeat(1, &[7u8], 5), [7; 5]);
        assert_eq!(repeat(2, &[1u8, 2], 0), [0u8; 0]);
    }
}
