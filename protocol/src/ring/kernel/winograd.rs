//! Minimal filtering (Winograd) for `3x3` kernels with stride 1: 16 outputs from 36 or 49 products instead of 144.
//!
//! `Y = A^T [(G w G^T) * (B^T d B)] A` for a tile `d` of 6x6 inputs and `Y` of 4x4 outputs, `*` element by
//! element and summed over the input channels: one matrix product of tiles by channels per element. The
//! transforms are exact, because all divisions are in `G` and their divisors invertible modulo `m`:
//!
//! * [`Points::Six`] interpolates at 0, 1, -1, 2, -1/2 and infinity and divides by 2, 3 and 5.
//! * [`Points::Seven`] interpolates at 0, 1, -1, infinity and modulo `x^2 + 1` (three products, Karatsuba), and
//!   divides by 2 only: for every odd modulus.
//!
//! Rows of `A` and `B` are scaled to integers small enough that a tile is transformed in 16-bit words without
//! a reduction in between; in Z_2^64 none of this exists, since 2 has no inverse there.
//!
//! Transformed tiles lie `[element][tile][channel]`, a block of tiles at a time, so that scratch is bounded;
//! weights `[unit of channels][element][block][k-group][lane][GROUP]`.

use std::ops::Range;

use super::conv::{self, MAX_P, Micro, Packed, Segment, Shared, Tile};
use super::residue::{magic32, multiple_above, reduce32};
use super::words::{Modulus, Words};
use super::{Conv, Isa, vectorised};

/// Outputs of a tile along each axis.
const OUT: usize = 4;
/// Inputs of a tile along each axis.
const IN: usize = OUT + 2;
/// Channels of a unit at most, and bytes of a transformed row of it.
const UNIT: usize = 64;
/// Bytes of transformed tiles of a block: beside weights they should stay in a private L2.
const BLOCK_BYTES: usize = 256 << 10;
/// Tiles of a block at least, so that weights from memory are used often enough.
const MIN_BLOCK: usize = 3 * MAX_P;
/// Bytes between the elements, without which they would meet in one set of the cache.
const GAP: usize = 64;
/// Bytes of staged input of a task.
const BAND_BYTES: usize = 256 << 10;
/// With fewer tiles in an image or fewer channels, transforms or the longer weights cost more than is saved.
const MIN_TILES: usize = 12;
const MIN_CHANNELS: usize = 64;
/// What one call of every tile sums.
const MAX_CHANNELS: usize = 6144;

/// Where the polynomials are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Points {
    Six,
    Seven,
}

impl Points {
    /// The algorithm for a convolution modulo `m`, if one pays. Of `m` and public shapes only.
    pub(super) fn choose(conv: &Conv, m: u8) -> Option<Self> {
        let fits = conv.kernel == [3, 3]
            && conv.stride == [1, 1]
            && conv.dilation == [1, 1]
            && conv.groups == 1
            && conv.c_in.min(conv.c_out) >= MIN_CHANNELS
            && conv.c_in <= MAX_CHANNELS
            && conv.out_h().div_ceil(OUT) * conv.out_w().div_ceil(OUT) >= MIN_TILES;
        if !fits || m.is_multiple_of(2) {
            None
        } else if m.is_multiple_of(3) || m.is_multiple_of(5) {
            Some(Self::Seven)
        } else {
            Some(Self::Six)
        }
    }

    /// Products per tile and channel.
    fn products(self) -> usize {
        match self {
            Self::Six => 36,
            Self::Seven => 49,
        }
    }
}

/// One of the algorithms along one axis, `N` points.
trait Filter<const N: usize> {
    /// `G` times `DIVISOR`.
    const G: [[i32; 3]; N];
    const DIVISOR: u32;
    /// `B^T`, which `input` multiplies by.
    const B: [[i32; IN]; N];
    /// `A^T`, which `output` multiplies by.
    const A: [[i32; N]; OUT];

    /// # Safety
    /// As all of [`Words`].
    unsafe fn input<W: Words>(d: [W; IN]) -> [W; N];

    /// # Safety
    /// As all of [`Words`].
    unsafe fn output<W: Words>(p: [W; N]) -> [W; OUT];
}

struct Six;

impl Filter<6> for Six {
    const G: [[i32; 3]; 6] = [[15, 0, 0], [-5, -5, -5], [5, -5, 5], [1, 2, 4], [-4, 2, -1], [0, 0, 15]];
    const DIVISOR: u32 = 30;
    const B: [[i32; IN]; 6] = [
        [2, 3, -4, -3, 2, 0],
        [0, -2, -5, -1, 2, 0],
        [0, 2, 1, -5, 2, 0],
        [0, -1, -2, 1, 2, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 2, 3, -4, -3, 2],
    ];
    const A: [[i32; 6]; OUT] =
        [[1, 1, 1, 1, 8, 0], [0, 1, -1, 2, -4, 0], [0, 1, 1, 4, 2, 0], [0, 1, -1, 8, -1, 1]];

    #[inline(always)]
    unsafe fn input<W: Words>(d: [W; IN]) -> [W; 6] {
        // SAFETY: the caller's promise.
        unsafe {
            let (u, v) = (d[3].sub(d[1]), d[4].sub(d[2]));
            let (u2, v2) = (u.add(u), v.add(v));
            let e = v2.sub(d[3].add(d[3]).add(d[3]));
            let f = u2.sub(d[2].add(d[2]).add(d[2]));
            let first = v.sub(d[2].sub(d[0]));
            let last = d[5].sub(d[3]).sub(u);
            [
                first.add(first).sub(u2.add(u)),
                e.add(f),
                e.sub(f),
                u.add(v2),
                v.sub(u2),
                last.add(last).sub(v2.add(v)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn output<W: Words>(p: [W; 6]) -> [W; OUT] {
        // SAFETY: the caller's promise.
        unsafe {
            let (s, t) = (p[1].add(p[2]), p[1].sub(p[2]));
            let (a2, b2) = (p[3].add(p[3]), p[4].add(p[4]));
            let (a4, b4) = (a2.add(a2), b2.add(b2));
            [
                p[0].add(s).add(p[3]).add(b4.add(b4)),
                t.add(a2).sub(b4),
                s.add(a4).add(b2),
                t.add(a4.add(a4)).sub(p[4]).add(p[5]),
            ]
        }
    }
}

struct Seven;

impl Filter<7> for Seven {
    const G: [[i32; 3]; 7] = [[4, 0, 0], [1, 1, 1], [1, -1, 1], [2, 0, -2], [0, 2, 0], [2, 2, -2], [0, 0, 4]];
    const DIVISOR: u32 = 4;
    const B: [[i32; IN]; 7] = [
        [1, 0, 0, 0, -1, 0],
        [0, 1, 1, 1, 1, 0],
        [0, -1, 1, -1, 1, 0],
        [0, -1, -1, 1, 1, 0],
        [0, -1, 1, 1, -1, 0],
        [0, 1, 0, -1, 0, 0],
        [0, -1, 0, 0, 0, 1],
    ];
    const A: [[i32; 7]; OUT] =
        [[1, 1, 1, 1, 0, 1, 0], [0, 1, -1, 0, 1, 1, 0], [0, 1, 1, -1, 0, -1, 0], [0, 1, -1, 0, -1, -1, 1]];

    #[inline(always)]
    unsafe fn input<W: Words>(d: [W; IN]) -> [W; 7] {
        // SAFETY: the caller's promise.
        unsafe {
            let (odd, even) = (d[1].add(d[3]), d[2].add(d[4]));
            let (u, v) = (d[1].sub(d[3]), d[4].sub(d[2]));
            let last = d[5].sub(d[1]);
            [d[0].sub(d[4]), even.add(odd), even.sub(odd), v.sub(u), d[2].sub(d[4]).sub(u), u, last]
        }
    }

    #[inline(always)]
    unsafe fn output<W: Words>(p: [W; 7]) -> [W; OUT] {
        // SAFETY: the caller's promise.
        unsafe {
            let (s, t) = (p[1].add(p[2]), p[1].sub(p[2]));
            let (a, b) = (p[3].add(p[5]), p[4].add(p[5]));
            [p[0].add(s).add(a), t.add(b), s.sub(a), t.sub(b).add(p[6])]
        }
    }
}

/// The largest sums of negative and of positive terms when a matrix with these rows is applied to rows and
/// columns of residues below 255.
const fn bounds<const R: usize, const C: usize>(rows: &[[i32; C]; R]) -> (u32, u32) {
    let (mut below, mut above) = ([0; R], [0; R]);
    let mut i = 0;
    while i < R * C {
        let v = rows[i / C][i % C];
        if v < 0 {
            below[i / C] -= v
        } else {
            above[i / C] += v
        }
        i += 1;
    }
    let (mut negative, mut positive) = (0, 0);
    let mut i = 0;
    while i < R * R {
        let (a, b) = (i / R, i % R);
        let n = below[a] * above[b] + above[a] * below[b];
        let p = below[a] * below[b] + above[a] * above[b];
        if n > negative {
            negative = n;
        }
        if p > positive {
            positive = p;
        }
        i += 1;
    }
    (negative as u32 * 254, positive as u32 * 254)
}

// Sums, the multiple of `m` that makes them non-negative and the accumulator fit words.
const _: () = {
    let all = [bounds(&Six::B), bounds(&Six::A), bounds(&Seven::B), bounds(&Seven::A)];
    let mut i = 0;
    while i < all.len() {
        assert!(all[i].0 + 254 + all[i].1 + 254 < 1 << 16);
        i += 1;
    }
};

/// Elements of `K` of one lane.
fn per_lane<M: Micro>(conv: &Conv) -> usize {
    conv.c_in.next_multiple_of(M::GROUP)
}

/// Channels of a unit: whole vectors of every kernel, as even as possible.
fn unit(conv: &Conv, i: usize) -> Range<usize> {
    let sixteens = conv::blocks(conv.c_out, 16, UNIT / 16)(i);
    sixteens.start * 16..(sixteens.end * 16).min(conv.c_out)
}

/// Weights `[c_out, 3, 3, c_in]` modulo `m`, transformed, each through `map`.
pub(super) fn pack<M: Micro>(
    points: Points,
    conv: &Conv,
    m: u8,
    w: &[u8],
    map: impl Fn(u8) -> M::W,
) -> Packed {
    match points {
        Points::Six => pack_with::<M, Six, 6>(conv, m, w, map),
        Points::Seven => pack_with::<M, Seven, 7>(conv, m, w, map),
    }
}

fn pack_with<M: Micro, F: Filter<N>, const N: usize>(
    conv: &Conv,
    m: u8,
    w: &[u8],
    map: impl Fn(u8) -> M::W,
) -> Packed {
    let (magic, modulus) = (magic32(m), u32::from(m));
    let divisor = F::DIVISOR * F::DIVISOR % modulus;
    let inverse =
        (0..modulus).find(|i| i * divisor % modulus == 1 % modulus).expect("chosen to be invertible");
    // Above what the sums of a row and a column of `G` subtract: both within 15 times a residue.
    let bias = multiple_above(225 * 254, m) as i32;
    let per_lane = per_lane::<M>(conv);
    let mut packed = Packed::zeroed::<M::W>(conv.c_out.next_multiple_of(16) * per_lane * N * N);
    let out = packed.as_mut_slice::<M::W>();
    for unit in (0..conv::block_count(conv.c_out, 16, UNIT / 16)).map(|i| unit(conv, i)) {
        let lanes = unit.len().next_multiple_of(16);
        let out = &mut out[unit.start * per_lane * N * N..][..lanes * per_lane * N * N];
        let block = conv::blocks(unit.len(), M::LANES, M::MAX_V);
        for vectors in (0..conv::block_count(unit.len(), M::LANES, M::MAX_V)).map(block) {
            let (first, width) = (vectors.start * M::LANES, vectors.len() * M::LANES);
            for lane in 0..width.min(unit.len() - first) {
                let w = &w[(unit.start + first + lane) * 9 * conv.c_in..][..9 * conv.c_in];
                for c in 0..conv.c_in {
                    let g: [i32; 9] = std::array::from_fn(|tap| i32::from(w[tap * conv.c_in + c]));
                    let rows: [[i32; 3]; N] = F::G.map(|row| {
                        std::array::from_fn(|x| row[0] * g[x] + row[1] * g[3 + x] + row[2] * g[6 + x])
                    });
                    for (element, (row, by)) in
                        rows.iter().flat_map(|row| F::G.iter().map(move |by| (row, by))).enumerate()
                    {
                        let sum = row[0] * by[0] + row[1] * by[1] + row[2] * by[2];
                        let sum = reduce32((sum + bias) as u32, m, magic);
                        let at = (element * lanes + first) * per_lane
                            + (c / M::GROUP * width + lane) * M::GROUP
                            + c % M::GROUP;
                        out[at] = map(reduce32(u32::from(sum) * inverse, m, magic));
                    }
                }
            }
        }
    }
    packed
}

/// Rows of tiles of one image and units of output channels, done by one thread.
struct Task {
    image: usize,
    rows: Range<usize>,
    units: Range<usize>,
}

fn tasks(conv: &Conv, pitch: usize, units: usize) -> Vec<Task> {
    let rows = conv.out_h().div_ceil(OUT);
    let threads = rayon::current_num_threads();
    let fitting = ((BAND_BYTES / pitch).saturating_sub(2) / OUT).clamp(1, rows);
    let bands = rows.div_ceil(fitting);
    // Two tasks a thread even out a busy neighbour; units first, since bands would read all weights again.
    let wanted = if threads > 1 { (2 * threads).div_ceil(bands * conv.n) } else { 1 };
    let parts = wanted.min(units);
    let bands = (bands * wanted.div_ceil(parts)).min(rows);
    let mut tasks = Vec::with_capacity(conv.n * bands * parts);
    for image in 0..conv.n {
        for band in 0..bands {
            for part in 0..parts {
                tasks.push(Task {
                    image,
                    rows: band * rows / bands..(band + 1) * rows / bands,
                    units: part * units / parts..(part + 1) * units / parts,
                });
            }
        }
    }
    tasks
}

/// `acc = (acc + x * w) mod m`.
///
/// # Safety
/// The processor has the instructions of `micro`, which is for `m`; `packed` was made by `pack::<M>` with the
/// same points for the same channels.
#[allow(clippy::too_many_arguments, reason = "a kernel, its points, modulus, geometry and planes")]
pub(super) unsafe fn accumulate<M: Micro<In = u8, Acc = u8>>(
    isa: Isa,
    micro: &M,
    points: Points,
    conv: &Conv,
    m: u8,
    x: &[u8],
    packed: &Packed,
    acc: &mut [u8],
) {
    assert!(x.len() == conv.in_len() && acc.len() == conv.out_len(), "lengths do not fit the convolution");
    assert!(conv.kernel == [3, 3] && conv.stride == [1, 1] && conv.dilation == [1, 1] && conv.groups == 1);
    let (oh, ow) = (conv.out_h(), conv.out_w());
    let across = ow.div_ceil(OUT);
    // Whole tiles, by padding that no output reads.
    let mut whole = *conv;
    whole.pad[2] += oh.next_multiple_of(OUT) - oh;
    whole.pad[3] += ow.next_multiple_of(OUT) - ow;
    let pitch = conv::padded_width(&whole) * conv.c_in;
    let products = points.products();
    let per_lane = per_lane::<M>(conv);
    let weights = packed.as_slice::<M::W>();
    assert!(weights.len() >= conv.c_out.next_multiple_of(16) * per_lane * products && conv.c_in <= M::CHUNK);
    let row = conv.c_in.next_multiple_of(64);
    let units = conv::block_count(conv.c_out, 16, UNIT / 16);
    let image_len = conv.h * conv.w * conv.c_in;
    let target = Shared(acc.as_mut_ptr());
    let run = |task: &Task| {
        let image = &x[task.image * image_len..][..image_len];
        let band_len = ((task.rows.len() * OUT + 2) * pitch + 64).next_multiple_of(64);
        let tiles = task.rows.len() * across;
        let fitting = (BLOCK_BYTES / (products * (row + UNIT))).max(MIN_BLOCK);
        let even = tiles.div_ceil(tiles.div_ceil(fitting));
        let count = even.next_multiple_of(M::pixels(M::MAX_V)).min(tiles);
        let (inputs, sums) = (products * (count * row + GAP), products * (count * UNIT + GAP));
        let staged = if M::in_place(&[]).is_some() { 0 } else { count * row * size_of::<M::X>() + 64 };
        conv::with_scratch(band_len + inputs + sums + staged, |scratch: &mut [u8]| {
            let (band, scratch) = scratch.split_at_mut(band_len);
            let (inputs, scratch) = scratch.split_at_mut(inputs);
            let (sums, scratch) = scratch.split_at_mut(sums);
            let staged: &mut [M::X] = bytemuck::cast_slice_mut(&mut scratch[..staged / 64 * 64]);
            let rows = task.rows.start * OUT..task.rows.end * OUT;
            conv::stage_band(&whole, image, &rows, 0..conv.c_in, |s, d| d.copy_from_slice(s), band);
            for start in (0..tiles).step_by(count) {
                let block = Block { start, count: count.min(tiles - start), across };
                let from = Band { bytes: band, pitch, step: conv.c_in };
                match points {
                    Points::Six => input_six(isa, m, from, block, inputs, row),
                    Points::Seven => input_seven(isa, m, from, block, inputs, row),
                }
                for unit in task.units.clone().map(|i| unit(conv, i)) {
                    let lanes = unit.len().next_multiple_of(16);
                    let weights = &weights[unit.start * per_lane * products..][..lanes * per_lane * products];
                    for (element, weights) in weights.chunks_exact(lanes * per_lane).enumerate() {
                        let inputs = &inputs[element * block.plane(row)..][..block.plane(row)];
                        let sums = &mut sums[element * block.plane(UNIT)..][..block.count * UNIT];
                        // SAFETY: the processor has the instructions, says the caller.
                        unsafe { multiply(micro, inputs, row, per_lane, weights, unit.len(), sums, staged) };
                    }
                    // SAFETY: the outputs of the task's rows and units are in `acc`, whose length was checked,
                    // and no other task has them.
                    let target = unsafe {
                        let first = task.image * oh * ow * conv.c_out + unit.start;
                        Target {
                            acc: target.get().add(first),
                            top: task.rows.start * OUT,
                            size: [oh, ow],
                            step: conv.c_out,
                            channels: unit.len(),
                        }
                    };
                    match points {
                        Points::Six => output_six(isa, m, sums, block, target),
                        Points::Seven => output_seven(isa, m, sums, block, target),
                    }
                }
            }
        });
    };
    let tasks = tasks(conv, pitch, units);
    conv::for_each(&tasks, run);
}

/// One matrix product: `sums` `[tile][UNIT]` from `inputs` `[tile][row]` and weights of a unit.
///
/// # Safety
/// The processor has the instructions of `micro`.
#[allow(clippy::too_many_arguments, reason = "three matrices and their geometry")]
unsafe fn multiply<M: Micro<In = u8, Acc = u8>>(
    micro: &M,
    inputs: &[u8],
    row: usize,
    per_lane: usize,
    weights: &[M::W],
    channels: usize,
    sums: &mut [u8],
    staged: &mut [M::X],
) {
    let count = sums.len() / UNIT;
    let x = match M::in_place(inputs) {
        Some(x) => x,
        None => {
            M::stage(&inputs[..count * row], &mut staged[..count * row]);
            &*staged
        }
    };
    assert!(x.len() >= count * row && per_lane <= row && channels <= UNIT);
    assert!(weights.len() >= channels.next_multiple_of(M::LANES) * per_lane);
    let segments = [Segment { offset: 0, groups: per_lane / M::GROUP }];
    let block = conv::blocks(channels, M::LANES, M::MAX_V);
    for vectors in (0..conv::block_count(channels, M::LANES, M::MAX_V)).map(block) {
        let (first, width) = (vectors.start * M::LANES, vectors.len() * M::LANES);
        let limit = M::pixels(vectors.len());
        for start in (0..count).step_by(limit) {
            let pixels = limit.min(count - start);
            // SAFETY: rows `start..start + pixels` are inside `x` and at least `per_lane` long; the weights of
            // the block start at whole vectors in weights aligned to 64 bytes and were checked to be that long;
            // `channels` fit a row of sums, which nobody else has.
            unsafe {
                let tile = Tile::<M> {
                    x: std::array::from_fn(|p| x.as_ptr().add((start + p.min(pixels - 1)) * row)),
                    pixels,
                    segments: &segments,
                    w: weights.as_ptr().add(first * per_lane),
                    vectors: vectors.len(),
                    acc: sums.as_mut_ptr().add(start * UNIT + first),
                    stride: UNIT,
                    channels: width.min(channels - first),
                };
                // The next block's weights, half with each of the first two tiles.
                let next = width * per_lane * (2 + (start / limit).min(1)) / 2;
                micro.product(&tile, tile.w.wrapping_add(next));
            }
        }
    }
}

/// Tiles `start..start + count` of a band with `across` tiles in a row.
#[derive(Clone, Copy)]
struct Block {
    start: usize,
    count: usize,
    across: usize,
}

impl Block {
    /// Bytes from one element to the next, with `row` bytes a tile.
    fn plane(self, row: usize) -> usize {
        self.count * row + GAP
    }

    /// Row and column of every tile.
    fn tiles(self) -> impl Iterator<Item = (usize, usize)> {
        (self.start..self.start + self.count).map(move |t| (t / self.across, t % self.across))
    }
}

/// Staged input: `step` bytes a pixel, `pitch` a row.
#[derive(Clone, Copy)]
struct Band<'a> {
    bytes: &'a [u8],
    pitch: usize,
    step: usize,
}

/// The first `channels` of each pixel of an image of outputs, which is `size` and has `step` bytes a pixel: readable
/// and writable through `acc` from row `top` on, by nobody else as long as this lives. Says who makes one.
#[derive(Clone, Copy)]
struct Target {
    acc: *mut u8,
    top: usize,
    size: [usize; 2],
    step: usize,
    channels: usize,
}

vectorised! {
    /// Transforms the tiles of a block: `out` `[element][tile][row]`, residues.
    fn input_six(m: u8, from: Band<'_>, block: Block, out: &mut [u8], row: usize) = input_six_body::<Words>
}
vectorised! {
    /// The same with seven points.
    fn input_seven(m: u8, from: Band<'_>, block: Block, out: &mut [u8], row: usize) = input_seven_body::<Words>
}
vectorised! {
    /// Transforms `sums` `[element][tile][UNIT]` back and adds them to the target.
    fn output_six(m: u8, sums: &[u8], block: Block, to: Target) = output_six_body::<Words>
}
vectorised! {
    /// The same with seven points.
    fn output_seven(m: u8, sums: &[u8], block: Block, to: Target) = output_seven_body::<Words>
}

/// # Safety
/// The processor has the instructions of `W`; so for all below.
#[inline(always)]
unsafe fn input_six_body<W: Words>(m: u8, from: Band<'_>, block: Block, out: &mut [u8], row: usize) {
    // SAFETY: the caller's promise.
    unsafe { input::<W, Six, 6>(m, from, block, out, row) }
}

/// # Safety
/// See `input_six_body`.
#[inline(always)]
unsafe fn input_seven_body<W: Words>(m: u8, from: Band<'_>, block: Block, out: &mut [u8], row: usize) {
    // SAFETY: the caller's promise.
    unsafe { input::<W, Seven, 7>(m, from, block, out, row) }
}

/// # Safety
/// See `input_six_body`.
#[inline(always)]
unsafe fn output_six_body<W: Words>(m: u8, sums: &[u8], block: Block, to: Target) {
    // SAFETY: the caller's promise.
    unsafe { output::<W, Six, 6>(m, sums, block, to) }
}

/// # Safety
/// See `input_six_body`.
#[inline(always)]
unsafe fn output_seven_body<W: Words>(m: u8, sums: &[u8], block: Block, to: Target) {
    // SAFETY: the caller's promise.
    unsafe { output::<W, Seven, 7>(m, sums, block, to) }
}

/// # Safety
/// See `input_six_body`.
#[inline(always)]
unsafe fn input<W: Words, F: Filter<N>, const N: usize>(
    m: u8,
    from: Band<'_>,
    block: Block,
    out: &mut [u8],
    row: usize,
) {
    let plane = block.plane(row);
    let last = block.tiles().last().map_or(0, |(y, _)| (y * OUT + IN) * from.pitch);
    assert!(from.bytes.len() >= last + 64 && block.across * OUT * from.step < from.pitch);
    assert!(row >= from.step.next_multiple_of(W::LANES) && out.len() >= N * N * plane);
    // SAFETY: tiles lie inside the band, and a vector that reaches beyond its last pixel inside the 64 bytes
    // behind; what is made of those bytes meets zero weights or nothing. A row holds whole vectors.
    unsafe {
        let modulus = Modulus::<W>::new(m);
        let bias = W::splat(multiple_above(bounds(&F::B).0, m) as u16);
        for (t, (y, x)) in block.tiles().enumerate() {
            for c in (0..from.step).step_by(W::LANES) {
                let src = from.bytes.as_ptr().add(y * OUT * from.pitch + x * OUT * from.step + c);
                let mut columns = [[bias; IN]; N];
                for j in 0..IN {
                    let mut d = [bias; IN];
                    for (i, d) in d.iter_mut().enumerate() {
                        *d = W::load(src.add(i * from.pitch + j * from.step));
                    }
                    for (columns, v) in columns.iter_mut().zip(&F::input(d)) {
                        columns[j] = *v;
                    }
                }
                let dst = out.as_mut_ptr().add(t * row + c);
                for (i, columns) in columns.iter().enumerate() {
                    for (j, v) in F::input(*columns).iter().enumerate() {
                        modulus.once(modulus.lazy(v.add(bias))).store(dst.add((i * N + j) * plane));
                    }
                }
            }
        }
    }
}

/// # Safety
/// See `input_six_body`.
#[inline(always)]
unsafe fn output<W: Words, F: Filter<N>, const N: usize>(m: u8, sums: &[u8], block: Block, to: Target) {
    let plane = block.plane(UNIT);
    assert!(sums.len() >= N * N * plane && to.channels <= UNIT && UNIT.is_multiple_of(W::LANES));
    // SAFETY: rows of sums hold whole vectors. Of the target only pixels inside the image and channels below
    // `to.channels` are touched.
    unsafe {
        let modulus = Modulus::<W>::new(m);
        let bias = W::splat(multiple_above(bounds(&F::A).0, m) as u16);
        for (t, (y, x)) in block.tiles().enumerate() {
            let (y, x) = (to.top + y * OUT, x * OUT);
            for c in (0..to.channels).step_by(W::LANES) {
                let src = sums.as_ptr().add(t * UNIT + c);
                let mut columns = [[bias; N]; OUT];
                for j in 0..N {
                    let mut p = [bias; N];
                    for (i, p) in p.iter_mut().enumerate() {
                        *p = W::load(src.add((i * N + j) * plane));
                    }
                    for (columns, v) in columns.iter_mut().zip(&F::output(p)) {
                        columns[j] = *v;
                    }
                }
                let count = (to.channels - c).min(W::LANES);
                for (i, columns) in columns.iter().enumerate() {
                    for (j, v) in F::output(*columns).iter().enumerate() {
                        if y + i >= to.size[0] || x + j >= to.size[1] {
                            continue;
                        }
                        let acc = to.acc.add(((y + i) * to.size[1] + x + j) * to.step + c);
                        let mut part = [0; UNIT];
                        let mut place = acc;
                        if count < W::LANES {
                            place = part.as_mut_ptr();
                            std::ptr::copy_nonoverlapping(acc, place, count);
                        }
                        let sum = v.add(bias).add(W::load(place));
                        modulus.once(modulus.lazy(sum)).store(place);
                        if count < W::LANES {
                            std::ptr::copy_nonoverlapping(place, acc, count);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The straight-line transforms are the matrices, whose bounds the words are sized for.
    fn check<F: Filter<N>, const N: usize>() {
        for k in 0..IN {
            let unit: [[u16; 1]; IN] = std::array::from_fn(|i| [u16::from(i == k)]);
            // SAFETY: plain Rust.
            let column = unsafe { F::input(unit) };
            assert_eq!(column.map(|[v]| i32::from(v as i16)), std::array::from_fn(|i| F::B[i][k]));
        }
        for k in 0..N {
            let unit: [[u16; 1]; N] = std::array::from_fn(|i| [u16::from(i == k)]);
            // SAFETY: plain Rust.
            let column = unsafe { F::output(unit) };
            assert_eq!(column.map(|[v]| i32::from(v as i16)), std::array::from_fn(|i| F::A[i][k]));
        }
        // Every tap of the kernel at every output, as integers times the divisor.
        for tap in 0..3 {
            for input in 0..IN {
                for (output, row) in F::A.iter().enumerate() {
                    let sum: i32 = (0..N).map(|n| row[n] * F::G[n][tap] * F::B[n][input]).sum();
                    assert_eq!(sum, if input == output + tap { F::DIVISOR as i32 } else { 0 });
                }
            }
        }
        assert!(F::G.iter().all(|row| row.iter().map(|v| v.abs()).sum::<i32>() <= 15));
    }

    /// The 2D transform by matrices on both sides, as integers.
    fn both_sides<const R: usize, const C: usize>(rows: &[[i32; C]; R], d: &[u8]) -> Vec<i64> {
        let mut out = Vec::new();
        for (a, b) in rows.iter().flat_map(|a| rows.iter().map(move |b| (a, b))) {
            let products = (0..C * C).map(|i| i64::from(a[i / C] * b[i % C]) * i64::from(d[i]));
            out.push(products.sum());
        }
        out
    }

    /// Tiles with the largest residue wherever one output's terms are negative, or positive, and 0 elsewhere.
    fn extremes<const R: usize, const C: usize>(rows: &[[i32; C]; R], m: u8) -> Vec<Vec<u8>> {
        let signs = [1, -1].into_iter().flat_map(|sign| rows.iter().map(move |a| (sign, a)));
        let pairs = signs.flat_map(|(sign, a)| rows.iter().map(move |b| (sign, a, b)));
        let tile = |(sign, a, b): (i32, &[i32; C], &[i32; C])| {
            (0..C * C).map(|i| if sign * a[i / C] * b[i % C] > 0 { m - 1 } else { 0 }).collect()
        };
        pairs.map(tile).chain([vec![m - 1; C * C]]).collect()
    }

    type Input = fn(Isa, u8, Band<'_>, Block, &mut [u8], usize);
    type Output = fn(Isa, u8, &[u8], Block, Target);

    fn check_extremes<F: Filter<N>, const N: usize>(m: u8, input: Input, output: Output) {
        let block = Block { start: 0, count: 1, across: 1 };
        let reduced = |v: i64| v.rem_euclid(m.into()) as u8;
        for isa in Isa::available() {
            for tile in extremes(&F::B, m) {
                let mut band: Vec<u8> = tile.iter().flat_map(|&v| [v; 64]).collect();
                band.extend([0; 64]);
                let mut out = vec![0; N * N * (64 + GAP)];
                input(isa, m, Band { bytes: &band, pitch: IN * 64, step: 64 }, block, &mut out, 64);
                let wanted = both_sides(&F::B, &tile).into_iter().flat_map(|v| [reduced(v); 64]);
                let out = out.chunks_exact(64 + GAP).flat_map(|out| &out[..64]).copied();
                assert!(out.eq(wanted), "{isa:?} m={m} {tile:?}");
            }
            for tile in extremes(&F::A, m) {
                let sums: Vec<u8> = tile.iter().flat_map(|&v| [v; UNIT + GAP]).collect();
                // A vector, and one that is cut.
                for channels in [64, 63] {
                    for before in [0, m - 1] {
                        let mut acc = vec![before; OUT * OUT * 64];
                        let size = [OUT; 2];
                        let to = Target { acc: acc.as_mut_ptr(), top: 0, size, step: 64, channels };
                        output(isa, m, &sums, block, to);
                        for (acc, v) in acc.chunks_exact(64).zip(both_sides(&F::A, &tile)) {
                            let wanted = reduced(v + i64::from(before));
                            assert!(acc[..channels].iter().all(|&v| v == wanted), "{isa:?} m={m} {tile:?}");
                            assert!(acc[channels..].iter().all(|&v| v == before), "{isa:?} m={m} {tile:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn transforms_are_exact_at_the_edges_of_words() {
        for m in [7, 127, 131, 169, 229, 239, 247, 251, 253] {
            check_extremes::<Six, 6>(m, input_six, output_six);
        }
        for m in [3, 5, 129, 245, 253, 255] {
            check_extremes::<Seven, 7>(m, input_seven, output_seven);
        }
    }

    #[test]
    fn algorithms_are_correlations() {
        check::<Six, 6>();
        check::<Seven, 7>();
    }
}
