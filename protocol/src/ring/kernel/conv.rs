//! The walk over a convolution, shared by every kernel: what differs is one register tile.
//!
//! Inputs are staged band by band (a few output rows, as much as half an L2 cache holds) into scratch
//! `[padded row][padded column][c_in / groups]`. There the taps of one kernel row are contiguous, so the sum
//! over `K` is a few long *runs*, each cut into *k-groups* of `GROUP` elements (four for VNNI), rounded up
//! with zero weights. Weights lie `[block of channels][run][k-group][lane][GROUP]`: a tile of a few pixels
//! by one block reads them once, in order. Without padding the input itself serves as scratch.

use std::cell::Cell;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use super::Conv;

/// The most pixels a register tile covers.
pub(super) const MAX_P: usize = 8;
/// Bytes of staged input per band: with a block of weights it should fit a private L2.
const BAND_BYTES: usize = 192 << 10;
/// Work below this is not worth waking another thread.
const PARALLEL_MACS: u64 = 1_000_000;
/// Readable bytes behind the last staged element: kernels round up to whole k-groups and vectors.
const SLACK_BYTES: usize = 64;

/// A register tile and the types it works on.
pub(super) trait Micro: Sync {
    /// Elements of the input.
    type In: Pod + Sync;
    /// Elements of the scratch.
    type X: Pod;
    /// Packed weights.
    type W: Pod + Sync;
    /// Elements of the accumulator.
    type Acc: Pod + Send;
    /// Elements of `K` multiplied by one instruction into one lane.
    const GROUP: usize;
    /// Output channels of one vector.
    const LANES: usize;
    /// The most vectors of a block.
    const MAX_V: usize;
    /// The most elements of `K` in one call of `tile`; keeps a block of weights in cache and sums exact.
    const CHUNK: usize;

    /// Pixels per tile for blocks of `vectors`; at most `MAX_P`.
    fn pixels(vectors: usize) -> usize;
    /// Converts input elements to scratch elements.
    fn stage(src: &[Self::In], dst: &mut [Self::X]);
    /// The input as scratch, where no conversion is needed.
    fn in_place(src: &[Self::In]) -> Option<&[Self::X]>;
    /// Adds the products of one tile to the accumulator.
    ///
    /// # Safety
    /// The processor has the tile's instructions; `1 <= pixels <= Self::pixels(vectors)`,
    /// `1 <= vectors <= MAX_V`, `1 <= channels <= vectors * LANES`. For every `p < MAX_P` and segment `s`,
    /// `x[p] + s.offset` is readable for `s.groups * GROUP` elements; `w` is readable for
    /// `vectors * LANES * GROUP` elements per k-group of all segments and aligned to 64 bytes if
    /// `LANES * GROUP` elements are a multiple of that; `acc + p * stride` is readable and
    /// writable for `channels` elements, and nobody else touches those.
    unsafe fn tile(&self, tile: &Tile<'_, Self>);

    /// Stores the products of one tile as what an accumulator of zeros would become, and may ask for
    /// memory from `ahead` on, which need not be valid.
    ///
    /// # Safety
    /// As for `tile`.
    unsafe fn product(&self, tile: &Tile<'_, Self>, ahead: *const Self::W) {
        let _ = ahead;
        for p in 0..tile.pixels {
            // SAFETY: the caller lends `channels` elements of each pixel; zeros are valid, as for all `Pod`.
            unsafe { tile.acc.add(p * tile.stride).write_bytes(0, tile.channels) };
        }
        // SAFETY: the caller's promises.
        unsafe { self.tile(tile) }
    }
}

/// The operands of one tile.
pub(super) struct Tile<'a, M: Micro + ?Sized> {
    pub(super) x: [*const M::X; MAX_P],
    pub(super) pixels: usize,
    pub(super) segments: &'a [Segment],
    pub(super) w: *const M::W,
    pub(super) vectors: usize,
    pub(super) acc: *mut M::Acc,
    pub(super) stride: usize,
    pub(super) channels: usize,
}

/// Consecutive k-groups of one run, `offset` elements from the pixel's first tap.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) offset: usize,
    pub(super) groups: usize,
}

/// A 64-byte line, for alignment: a vector that straddles two lines costs two loads.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);
// SAFETY: zero bytes are a valid array of bytes.
unsafe impl Zeroable for Line {}
// SAFETY: one array of bytes as long as the alignment, so no padding, and every bit pattern is valid.
unsafe impl Pod for Line {}

/// Weights in a kernel's own order; wiped on drop.
pub(super) struct Packed(Vec<Line>);

impl Packed {
    pub(super) fn zeroed<W: Pod>(len: usize) -> Self {
        Self(vec![Line::zeroed(); (len * size_of::<W>()).div_ceil(64)])
    }

    pub(super) fn as_slice<W: Pod>(&self) -> &[W] {
        bytemuck::cast_slice(&self.0)
    }

    pub(super) fn as_mut_slice<W: Pod>(&mut self) -> &mut [W] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        crate::buffer::wipe(&mut self.0);
    }
}

/// What of a convolution determines the order of its packed weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    c_in: usize,
    c_out: usize,
    kernel: [usize; 2],
    groups: usize,
    merged: bool,
}

impl Shape {
    pub(super) fn new(conv: &Conv) -> Self {
        let merged = conv.dilation[1] == 1 || conv.kernel[1] == 1;
        Self { c_in: conv.c_in, c_out: conv.c_out, kernel: conv.kernel, groups: conv.groups, merged }
    }

    /// Whether every channel is convolved alone, by `depthwise`.
    pub(super) fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.c_in && self.groups == self.c_out
    }
}

/// The sum over `K` as `runs` of `len` contiguous elements.
struct Runs {
    count: usize,
    len: usize,
    groups: usize,
}

impl Runs {
    fn new(conv: &Conv, group: usize) -> Self {
        let channels = conv.c_in / conv.groups;
        let [kh, kw] = conv.kernel;
        let (count, len) =
            if conv.dilation[1] == 1 || kw == 1 { (kh, kw * channels) } else { (kh * kw, channels) };
        Self { count, len, groups: len.div_ceil(group) }
    }

    /// All k-groups of one lane.
    fn total(&self) -> usize {
        self.count * self.groups
    }
}

/// Ranges of vectors, as even as possible so that no block is left with one lonely vector.
pub(super) fn blocks(channels: usize, lanes: usize, max_v: usize) -> impl Fn(usize) -> Range<usize> {
    let vectors = channels.div_ceil(lanes);
    let count = vectors.div_ceil(max_v);
    move |i| i * vectors / count..(i + 1) * vectors / count
}

pub(super) fn block_count(channels: usize, lanes: usize, max_v: usize) -> usize {
    channels.div_ceil(lanes).div_ceil(max_v)
}

/// Weights `[c_out, kh, kw, c_in / groups]` in the order of `M`'s tiles, each through `map`.
pub(super) fn pack<M: Micro, S: Copy>(conv: &Conv, w: &[S], map: impl Fn(S) -> M::W) -> Packed {
    assert!(conv.is_valid() && w.len() == conv.weight_len(), "weights do not fit the convolution");
    let runs = Runs::new(conv, M::GROUP);
    let per_group = conv.c_out / conv.groups;
    let lanes = per_group.div_ceil(M::LANES) * M::LANES;
    let per_lane = runs.total() * M::GROUP;
    let mut packed = Packed::zeroed::<M::W>(conv.groups * lanes * per_lane);
    let out = packed.as_mut_slice::<M::W>();
    let block = blocks(per_group, M::LANES, M::MAX_V);
    for group in 0..conv.groups {
        for vectors in (0..block_count(per_group, M::LANES, M::MAX_V)).map(&block) {
            let first = vectors.start * M::LANES;
            let width = vectors.len() * M::LANES;
            let out = &mut out[(group * lanes + first) * per_lane..][..width * per_lane];
            for lane in 0..width.min(per_group - first) {
                let k = runs.count * runs.len;
                let w = &w[(group * per_group + first + lane) * k..][..k];
                for (r, run) in w.chunks_exact(runs.len).enumerate() {
                    for (e, &v) in run.iter().enumerate() {
                        let at = r * runs.groups + e / M::GROUP;
                        out[(at * width + lane) * M::GROUP + e % M::GROUP] = map(v);
                    }
                }
            }
        }
    }
    packed
}

/// A `1x1` convolution is a matrix product; as a column of pixels it splits anywhere and needs no copy.
pub(super) fn flatten(conv: &Conv) -> Conv {
    if conv.kernel == [1, 1] && conv.stride == [1, 1] && conv.pad == [0; 4] {
        Conv { n: 1, h: conv.n * conv.h * conv.w, w: 1, dilation: [1, 1], ..*conv }
    } else {
        *conv
    }
}

/// Output rows of one image and units of output channels, done by one thread.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) image: usize,
    pub(super) rows: Range<usize>,
    pub(super) units: Range<usize>,
}

/// Cuts the work into bands that fit the cache, and further if threads would be idle.
pub(super) fn tasks(conv: &Conv, row_bytes: usize, units: usize) -> Vec<Task> {
    let (oh, ow) = (conv.out_h(), conv.out_w());
    let threads = if conv.macs() > PARALLEL_MACS { rayon::current_num_threads() } else { 1 };
    let fitting = (BAND_BYTES / row_bytes.max(1)).saturating_sub(span(conv, 0)) / conv.stride[0] + 1;
    let mut per_band = fitting.min(oh);
    if threads > 1 {
        // Two bands a thread even out a busy neighbour; very small ones would only restage their borders.
        let wanted = (oh * conv.n).div_ceil(2 * threads);
        per_band = per_band.min(wanted.max(48usize.div_ceil(ow)));
    }
    let bands = oh.div_ceil(per_band);
    let parts = if bands * conv.n >= threads { 1 } else { threads.div_ceil(bands * conv.n).min(units) };
    let mut tasks = Vec::with_capacity(conv.n * bands * parts);
    for image in 0..conv.n {
        for band in 0..bands {
            let rows = band * oh / bands..(band + 1) * oh / bands;
            for part in 0..parts {
                let units = part * units / parts..(part + 1) * units / parts;
                tasks.push(Task { image, rows: rows.clone(), units });
            }
        }
    }
    tasks
}

/// Runs every task, on the current pool if there are several.
pub(super) fn for_each<T: Sync>(tasks: &[T], run: impl Fn(&T) + Sync + Send) {
    if tasks.len() > 1 && rayon::current_num_threads() > 1 {
        tasks.par_iter().for_each(&run);
    } else {
        tasks.iter().for_each(run);
    }
}

/// Rows (0) or columns (1) of input under the kernel.
pub(super) fn span(conv: &Conv, axis: usize) -> usize {
    conv.dilation[axis] * (conv.kernel[axis] - 1) + 1
}

/// Columns of the scratch.
pub(super) fn padded_width(conv: &Conv) -> usize {
    conv.w + conv.pad[1] + conv.pad[3]
}

/// An accumulator shared by tasks that write disjoint parts of it.
pub(super) struct Shared<T>(pub(super) *mut T);
// SAFETY: every task writes the output rows and channels of its own `Task`, and `tasks` makes these disjoint;
// the pointer itself is only copied.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn get(&self) -> *mut T {
        self.0
    }
}

thread_local! {
    static SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Lends the thread's scratch, at least `len` elements and the slack, contents unspecified.
pub(super) fn with_scratch<X: Pod, R>(len: usize, f: impl FnOnce(&mut [X]) -> R) -> R {
    let lines = (len * size_of::<X>() + SLACK_BYTES).div_ceil(64);
    let mut scratch = SCRATCH.take();
    if scratch.len() < lines {
        scratch.resize(lines, Line::zeroed());
    }
    let result = f(bytemuck::cast_slice_mut(&mut scratch[..lines]));
    // It held an input, which may be a mask.
    crate::buffer::wipe(&mut scratch[..lines]);
    SCRATCH.set(scratch);
    result
}

/// Copies the input under output rows `rows` to scratch with its padding: channels `channels` of each pixel.
pub(super) fn stage_band<I: Pod, X: Pod>(
    conv: &Conv,
    image: &[I],
    rows: &Range<usize>,
    channels: Range<usize>,
    stage: impl Fn(&[I], &mut [X]),
    out: &mut [X],
) {
    let [_, left, _, right] = conv.pad;
    let count = channels.len();
    let pitch = padded_width(conv) * count;
    let first = rows.start * conv.stride[0];
    let last = (rows.end - 1) * conv.stride[0] + span(conv, 0);
    for (row, out) in (first..last).zip(out.chunks_exact_mut(pitch)) {
        let Some(y) = row.checked_sub(conv.pad[0]).filter(|&y| y < conv.h) else {
            out.fill(X::zeroed());
            continue;
        };
        out[..left * count].fill(X::zeroed());
        out[pitch - right * count..].fill(X::zeroed());
        let src = &image[y * conv.w * conv.c_in..][..conv.w * conv.c_in];
        let dst = &mut out[left * count..pitch - right * count];
        if count == conv.c_in {
            stage(src, dst);
        } else {
            for (src, dst) in src.chunks_exact(conv.c_in).zip(dst.chunks_exact_mut(count)) {
                stage(&src[channels.clone()], dst);
            }
        }
    }
}

/// `acc += x * w` by the tiles of `micro`; depthwise convolutions excepted.
///
/// # Safety
/// The processor has the instructions of `micro`; `packed` was made by `pack::<M, _>` for the same [`Shape`].
pub(super) unsafe fn accumulate<M: Micro>(
    micro: &M,
    conv: &Conv,
    x: &[M::In],
    packed: &Packed,
    acc: &mut [M::Acc],
) {
    let conv = &flatten(conv);
    let channels = conv.c_in / conv.groups;
    let per_group = conv.c_out / conv.groups;
    let runs = Runs::new(conv, M::GROUP);
    let direct = conv.pad == [0; 4] && conv.groups == 1 && runs.len.is_multiple_of(M::GROUP);
    let pitch = padded_width(conv) * channels;
    let chunks = chunks(conv, &runs, pitch, M::GROUP, M::CHUNK);
    let block = blocks(per_group, M::LANES, M::MAX_V);
    let units = block_count(per_group, M::LANES, M::MAX_V);
    let lanes = per_group.div_ceil(M::LANES) * M::LANES;
    let per_lane = runs.total() * M::GROUP;
    let weights = packed.as_slice::<M::W>();
    assert!(weights.len() >= conv.groups * lanes * per_lane, "weights packed for another convolution");
    assert!(x.len() == conv.in_len() && acc.len() == conv.out_len(), "lengths do not fit the convolution");
    let (oh, ow) = (conv.out_h(), conv.out_w());
    let image_len = conv.h * conv.w * conv.c_in;
    let acc = Shared(acc.as_mut_ptr());

    for_each(&tasks(conv, pitch * size_of::<M::X>(), units), |task| {
        let image = &x[task.image * image_len..][..image_len];
        let in_rows = (task.rows.len() - 1) * conv.stride[0] + span(conv, 0);
        // SAFETY: the caller vouches for the processor. Entries of `x` that no pixel has filled point to the
        // band's first pixel or an earlier tile's, which are as valid as the others. `band` holds `in_rows` rows of `pitch` elements, which
        // cover all taps of the task's pixels; a run rounded up to whole k-groups ends at most `GROUP - 1`
        // elements behind its last tap, and either the slack follows the band or (`direct`) nothing is
        // rounded. The weights of a chunk start `chunk.start` k-groups into their block and were checked to
        // be that long; blocks start at multiples of `LANES * GROUP` elements in a vector
        // aligned to 64 bytes. Output pixels and channels of tasks, groups, blocks and tiles are disjoint and
        // inside `acc`, whose length was checked.
        let compute = |band: &[M::X], group: usize| unsafe {
            for vectors in task.units.clone().map(&block) {
                let first = vectors.start * M::LANES;
                let width = vectors.len() * M::LANES;
                let w = weights.as_ptr().add((group * lanes + first) * per_lane);
                let row0 = task.image * oh + task.rows.start;
                let acc = acc.get().add(row0 * ow * conv.c_out + group * per_group + first);
                let limit = M::pixels(vectors.len());
                for chunk in &chunks {
                    let mut tile = Tile::<M> {
                        x: [band.as_ptr(); MAX_P],
                        pixels: 0,
                        segments: &chunk.segments,
                        w: w.add(chunk.start * width * M::GROUP),
                        vectors: vectors.len(),
                        acc,
                        stride: conv.c_out,
                        channels: width.min(per_group - first),
                    };
                    let (mut y, mut column) = (0, 0);
                    let mut left = task.rows.len() * ow;
                    while left > 0 {
                        tile.pixels = left.min(limit);
                        for x in &mut tile.x[..tile.pixels] {
                            *x = band.as_ptr().add(y * pitch + column);
                            column += conv.stride[1] * channels;
                            if column == ow * conv.stride[1] * channels {
                                (y, column) = (y + conv.stride[0], 0);
                            }
                        }
                        micro.tile(&tile);
                        // May end outside `acc` after the last tile, where it is not used.
                        tile.acc = tile.acc.wrapping_add(tile.pixels * conv.c_out);
                        left -= tile.pixels;
                    }
                }
            }
        };
        if let Some(x) = M::in_place(image).filter(|_| direct) {
            compute(&x[task.rows.start * conv.stride[0] * pitch..][..in_rows * pitch], 0);
        } else {
            with_scratch(in_rows * pitch, |scratch| {
                for group in 0..conv.groups {
                    let range = group * channels..(group + 1) * channels;
                    stage_band(conv, image, &task.rows, range, M::stage, scratch);
                    compute(scratch, group);
                }
            });
        }
    });
}

/// A part of the sum over `K` that one call of a tile takes.
struct Chunk {
    start: usize,
    segments: Vec<Segment>,
}

fn chunks(conv: &Conv, runs: &Runs, pitch: usize, group: usize, limit: usize) -> Vec<Chunk> {
    let channels = conv.c_in / conv.groups;
    let per_row = runs.count / conv.kernel[0];
    let count = (runs.total() * group).div_ceil(limit);
    let mut chunks = Vec::with_capacity(count);
    for i in 0..count {
        let (start, end) = (i * runs.total() / count, (i + 1) * runs.total() / count);
        let mut segments = Vec::new();
        let mut at = start;
        while at < end {
            let (run, inside) = (at / runs.groups, at % runs.groups);
            let groups = (runs.groups - inside).min(end - at);
            let (ky, kx) = (run / per_row, run % per_row);
            let tap = ky * conv.dilation[0] * pitch + kx * conv.dilation[1] * channels;
            segments.push(Segment { offset: tap + inside * group, groups });
            at += groups;
        }
        chunks.push(Chunk { start, segments });
    }
    chunks
}

/// Writes out the calls for each number of pixels and vectors, so that tiles live in registers.
#[cfg(target_arch = "x86_64")]
macro_rules! monomorphise {
    ($t:ident => $f:ident $args:tt; $($v:literal: $($p:literal)*),*) => {
        match ($t.vectors, $t.pixels) {
            $($(($v, $p) => $f::<$p, $v> $args,)*)*
            _ => unreachable!("no such tile"),
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use monomorphise;
