//! Direct convolution in the clear, for integers of the twin and floats of the reference alike.

use rayon::prelude::*;
use sharelens_protocol::ring::kernel::Conv;

/// A number that a convolution can add up.
pub trait Number: Copy + Send + Sync {
    /// The neutral element of addition.
    const ZERO: Self;

    /// `self + a * b`; integers wrap, and callers bound their sums beforehand.
    fn mul_acc(self, a: Self, b: Self) -> Self;

    /// `self + b`.
    fn plus(self, b: Self) -> Self;
}

macro_rules! integers {
    ($($t:ty)*) => {$(
        impl Number for $t {
            const ZERO: Self = 0;
            fn mul_acc(self, a: Self, b: Self) -> Self {
                self.wrapping_add(a.wrapping_mul(b))
            }
            fn plus(self, b: Self) -> Self {
                self.wrapping_add(b)
            }
        }
    )*};
}
integers!(i64 i128);

impl Number for f64 {
    const ZERO: Self = 0.0;
    fn mul_acc(self, a: Self, b: Self) -> Self {
        self + a * b
    }
    fn plus(self, b: Self) -> Self {
        self + b
    }
}

/// Output channels computed together.
const LANES: usize = 8;
/// Output pixels computed together.
const PIXELS: usize = 2;
/// Up to this many output pixels are computed by channels rather than by pixels.
pub(super) const FEW: usize = 3;

/// `x` `[n, h, w, c_in]` times `weights` `[c_out, kh, kw, c_in / groups]` plus `bias` `[c_out]`, as `[n, oh, ow, c_out]`.
///
/// # Panics
///
/// If the slices do not have the lengths that `conv` states, or `conv` is not valid.
pub fn convolve<T: Number + From<W>, W: Copy + Sync>(
    conv: &Conv,
    x: &[T],
    weights: &[W],
    bias: &[T],
) -> Vec<T> {
    assert!(conv.is_valid() && x.len() == conv.in_len() && weights.len() == conv.weight_len());
    assert_eq!(bias.len(), conv.c_out);
    let padded = Padded::new(conv, x);
    let pixels = conv.n * conv.out_h() * conv.out_w();
    if conv.groups == 1 && pixels <= FEW {
        return by_channels(conv, &padded, weights, bias);
    }
    let mut out = vec![T::ZERO; conv.out_len()];
    let chunk = pixels.div_ceil(8 * rayon::current_num_threads()).next_multiple_of(PIXELS);
    let packed = Packed::new(conv, weights);
    let run = |(i, part): (usize, &mut [T])| match &packed {
        Packed::Blocks(packed) => block_chunk(conv, &padded, packed, bias, i * chunk, part),
        Packed::Taps(packed) => depthwise_chunk(conv, &padded, packed, bias, i * chunk, part),
        Packed::No => naive_chunk(conv, &padded, weights, bias, i * chunk, part),
    };
    if conv.macs() < 1 << 15 {
        out.chunks_mut(chunk * conv.c_out).enumerate().for_each(run);
    } else {
        out.par_chunks_mut(chunk * conv.c_out).enumerate().for_each(run);
    }
    out
}

/// The input with its zero border written out, so that no tap needs a bounds decision.
pub(super) struct Padded<T> {
    pub(super) data: Vec<T>,
    rows: usize,
    columns: usize,
}

impl<T: Number> Padded<T> {
    pub(super) fn new(conv: &Conv, x: &[T]) -> Self {
        let (rows, columns) = (conv.h + conv.pad[0] + conv.pad[2], conv.w + conv.pad[1] + conv.pad[3]);
        if conv.pad == [0; 4] {
            return Self { data: x.to_vec(), rows, columns };
        }
        let mut data = vec![T::ZERO; conv.n * rows * columns * conv.c_in];
        let line = conv.w * conv.c_in;
        for (i, source) in x.chunks_exact(line).enumerate() {
            let (image, row) = (i / conv.h, i % conv.h);
            let at = ((image * rows + row + conv.pad[0]) * columns + conv.pad[1]) * conv.c_in;
            data[at..at + line].copy_from_slice(source);
        }
        Self { data, rows, columns }
    }

    /// Where the window of output pixel `p` starts.
    pub(super) fn start(&self, conv: &Conv, p: usize) -> usize {
        let (oh, ow) = (conv.out_h(), conv.out_w());
        let (image, y, x) = (p / (oh * ow), p / ow % oh, p % ow);
        ((image * self.rows + y * conv.stride[0]) * self.columns + x * conv.stride[1]) * conv.c_in
    }

    /// What the kernel sees at output pixel `p`, all groups, `[kh, kw, c_in]`.
    pub(super) fn patch(&self, conv: &Conv, p: usize, to: &mut [T]) {
        let start = self.start(conv, p);
        // Neighbouring columns are one run of memory.
        let run = if conv.dilation[1] == 1 { conv.kernel[1] } else { 1 };
        for (i, part) in to.chunks_exact_mut(run * conv.c_in).enumerate() {
            let (ky, kx) = (i * run / conv.kernel[1], i * run % conv.kernel[1]);
            let at = start + self.tap(conv, ky, kx);
            part.copy_from_slice(&self.data[at..at + part.len()]);
        }
    }

    pub(super) fn tap(&self, conv: &Conv, ky: usize, kx: usize) -> usize {
        (ky * conv.dilation[0] * self.columns + kx * conv.dilation[1]) * conv.c_in
    }
}

/// Weights in the order in which they are read.
enum Packed<T> {
    /// `[group][block][kh][kw][c_in / groups][LANES]`, zero beyond the last channel of a group.
    Blocks(Vec<T>),
    /// `[kh][kw][channel]`, where each channel is a group.
    Taps(Vec<T>),
    /// As they are.
    No,
}

impl<T: Number> Packed<T> {
    fn new<W: Copy>(conv: &Conv, weights: &[W]) -> Self
    where
        T: From<W>,
    {
        let (per_in, per_out) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
        let k = conv.kernel[0] * conv.kernel[1] * per_in;
        if per_in == 1 && per_out == 1 {
            let tap = |t: usize| weights.iter().skip(t).step_by(k).map(|&w| T::from(w));
            return Self::Taps((0..k).flat_map(tap).collect());
        }
        if per_out < LANES {
            return Self::No;
        }
        let blocks = per_out.div_ceil(LANES);
        let mut packed = vec![T::ZERO; conv.groups * blocks * k * LANES];
        for (o, row) in weights.chunks_exact(k).enumerate() {
            let (group, within) = (o / per_out, o % per_out);
            let base = (group * blocks + within / LANES) * k * LANES + within % LANES;
            for (j, &w) in row.iter().enumerate() {
                packed[base + j * LANES] = w.into();
            }
        }
        Self::Blocks(packed)
    }
}

/// For few pixels of many channels, dense layers above all: each weight is read once, from where it is.
fn by_channels<T: Number + From<W>, W: Copy + Sync>(
    conv: &Conv,
    x: &Padded<T>,
    weights: &[W],
    bias: &[T],
) -> Vec<T> {
    let pixels = conv.n * conv.out_h() * conv.out_w();
    let k = weights.len() / conv.c_out;
    let mut patches = vec![T::ZERO; pixels * k];
    patches.chunks_exact_mut(k).enumerate().for_each(|(p, patch)| x.patch(conv, p, patch));
    let dot = |(row, &b): (&[W], &T)| -> [T; FEW] {
        let mut sums = [b; FEW];
        for (sum, patch) in sums.iter_mut().zip(patches.chunks_exact(k)) {
            let mut acc = [T::ZERO; LANES];
            let (rows, patches) = (row.chunks(LANES), patch.chunks(LANES));
            for (row, patch) in rows.zip(patches) {
                for (a, (&w, &x)) in acc.iter_mut().zip(row.iter().zip(patch)) {
                    *a = a.mul_acc(x, w.into());
                }
            }
            *sum = acc.into_iter().fold(*sum, T::plus);
        }
        sums
    };
    let least = (1 << 15) / k + 1;
    let sums: Vec<[T; FEW]> = weights.par_chunks_exact(k).zip(bias).with_min_len(least).map(dot).collect();
    (0..pixels).flat_map(|p| sums.iter().map(move |s| s[p])).collect()
}

fn block_chunk<T: Number>(conv: &Conv, x: &Padded<T>, packed: &[T], bias: &[T], first: usize, out: &mut [T]) {
    let (per_in, per_out) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
    let taps = conv.kernel[0] * conv.kernel[1];
    let blocks = per_out.div_ceil(LANES);
    let offsets: Vec<usize> =
        (0..taps).map(|t| x.tap(conv, t / conv.kernel[1], t % conv.kernel[1])).collect();
    for (i, pixels) in out.chunks_mut(PIXELS * conv.c_out).enumerate() {
        let count = pixels.len() / conv.c_out;
        let starts: [usize; PIXELS] =
            std::array::from_fn(|j| x.start(conv, first + i * PIXELS + j.min(count - 1)));
        for (b, block) in packed.chunks_exact(taps * per_in * LANES).enumerate() {
            let (group, lane) = (b / blocks, b % blocks * LANES);
            let mut acc = [[T::ZERO; LANES]; PIXELS];
            for (offset, rows) in offsets.iter().zip(block.chunks_exact(per_in * LANES)) {
                let inputs: [&[T]; PIXELS] = starts.map(|s| &x.data[s + offset + group * per_in..][..per_in]);
                for (c, row) in rows.chunks_exact(LANES).enumerate() {
                    for (acc, input) in acc.iter_mut().zip(inputs) {
                        for (a, &w) in acc.iter_mut().zip(row) {
                            *a = a.mul_acc(input[c], w);
                        }
                    }
                }
            }
            let from = group * per_out + lane;
            let lanes = LANES.min(per_out - lane);
            for (pixel, acc) in pixels.chunks_exact_mut(conv.c_out).zip(&acc) {
                for l in 0..lanes {
                    pixel[from + l] = acc[l].plus(bias[from + l]);
                }
            }
        }
    }
}

/// For channels that are filtered each alone.
fn depthwise_chunk<T: Number>(
    conv: &Conv,
    x: &Padded<T>,
    taps: &[T],
    bias: &[T],
    first: usize,
    out: &mut [T],
) {
    for (i, pixel) in out.chunks_exact_mut(conv.c_out).enumerate() {
        let start = x.start(conv, first + i);
        pixel.copy_from_slice(bias);
        for (t, row) in taps.chunks_exact(conv.c_out).enumerate() {
            let at = start + x.tap(conv, t / conv.kernel[1], t % conv.kernel[1]);
            for (y, (&a, &w)) in pixel.iter_mut().zip(x.data[at..].iter().zip(row)) {
                *y = y.mul_acc(a, w);
            }
        }
    }
}

/// For groups of few output channels.
fn naive_chunk<T: Number + From<W>, W: Copy>(
    conv: &Conv,
    x: &Padded<T>,
    weights: &[W],
    bias: &[T],
    first: usize,
    out: &mut [T],
) {
    let (per_in, per_out) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
    for (i, pixel) in out.chunks_mut(conv.c_out).enumerate() {
        let start = x.start(conv, first + i);
        for (o, y) in pixel.iter_mut().enumerate() {
            let group = o / per_out;
            let mut w = weights[o * conv.kernel[0] * conv.kernel[1] * per_in..].chunks_exact(per_in);
            let mut acc = bias[o];
            for ky in 0..conv.kernel[0] {
                for kx in 0..conv.kernel[1] {
                    let at = start + x.tap(conv, ky, kx) + group * per_in;
                    let row = w.next().expect("one row of weights per tap");
                    for (&a, &b) in x.data[at..at + per_in].iter().zip(row) {
                        acc = acc.mul_acc(a, b.into());
                    }
                }
            }
            *y = acc;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain::gemm;

    /// The definition, index by index.
    fn reference(conv: &Conv, x: &[i64], w: &[i64], bias: &[i64]) -> Vec<i64> {
        let (per_in, per_out) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
        let mut out = Vec::new();
        for n in 0..conv.n {
            for oy in 0..conv.out_h() {
                for ox in 0..conv.out_w() {
                    for (o, &bias) in bias.iter().enumerate() {
                        let mut sum = bias;
                        for ky in 0..conv.kernel[0] {
                            for kx in 0..conv.kernel[1] {
                                let y =
                                    (oy * conv.stride[0] + ky * conv.dilation[0]) as i64 - conv.pad[0] as i64;
                                let xx =
                                    (ox * conv.stride[1] + kx * conv.dilation[1]) as i64 - conv.pad[1] as i64;
                                if y < 0 || xx < 0 || y >= conv.h as i64 || xx >= conv.w as i64 {
                                    continue;
                                }
                                for c in 0..per_in {
                                    let i = ((n * conv.h + y as usize) * conv.w + xx as usize) * conv.c_in
                                        + o / per_out * per_in
                                        + c;
                                    let j = ((o * conv.kernel[0] + ky) * conv.kernel[1] + kx) * per_in + c;
                                    sum += x[i] * w[j];
                                }
                            }
                        }
                        out.push(sum);
                    }
                }
            }
        }
        out
    }

    /// The same modulo 2^64, by another way than sums of words.
    fn wrapping(conv: &Conv, x: &[i64], w: &[i64], bias: &[i64]) -> Vec<i64> {
        let wide = |v: &[i64]| v.iter().map(|&v| i128::from(v)).collect::<Vec<_>>();
        convolve(conv, &wide(x), &wide(w), &wide(bias)).into_iter().map(|v| v as i64).collect()
    }

    #[test]
    fn agrees_with_the_definition() {
        let base = Conv { n: 1, h: 7, w: 6, ..Conv::dense(1, 3, 5) };
        let cases = [
            Conv { c_in: 3, c_out: 19, kernel: [3, 2], pad: [1, 0, 2, 1], ..base },
            Conv {
                n: 2,
                c_in: 4,
                c_out: 16,
                kernel: [3, 3],
                stride: [2, 1],
                dilation: [2, 2],
                groups: 2,
                ..base
            },
            Conv { c_in: 6, c_out: 6, kernel: [3, 3], pad: [1; 4], groups: 6, ..base },
            Conv { c_in: 1, c_out: 8, kernel: [5, 5], stride: [3, 3], pad: [2; 4], ..base },
            Conv { c_in: 5, c_out: 12, kernel: [7, 5], pad: [0, 1, 0, 0], ..base },
            Conv { c_in: 40, c_out: 30, kernel: [3, 3], dilation: [1, 2], pad: [1; 4], ..base },
            Conv { n: 3, c_in: 32, c_out: 50, stride: [2, 2], ..base },
            Conv { n: 3, c_in: 64, c_out: 50, ..base },
            Conv::dense(5, 33, 17),
            Conv::dense(1, 1000, 170),
            Conv::dense(3, 333, 70),
        ];
        for conv in cases {
            let x: Vec<i64> = (0..conv.in_len() as i64).map(|i| i * 7919 % 201 - 100).collect();
            let w: Vec<i64> = (0..conv.weight_len() as i64).map(|i| i * 104729 % 151 - 75).collect();
            let b: Vec<i64> = (0..conv.c_out as i64).map(|i| i * 31 - 9).collect();
            let expected = reference(&conv, &x, &w, &b);
            assert_eq!(convolve(&conv, &x, &w, &b), expected, "{conv:?}");
            let f = |v: &[i64]| v.iter().map(|&v| v as f64).collect::<Vec<_>>();
            assert_eq!(convolve(&conv, &f(&x), &f(&w), &f(&b)), f(&expected));
            assert_eq!(gemm::convolve(&conv, &f(&x), &f(&w), &f(&b)), f(&expected));
            assert_eq!(gemm::convolve_exact(&conv, &x, &w, &b), expected);
            // Too wide for one product, for two, and for any.
            for (by, weights_by) in [(44, 0), (54, 0), (20, 30), (50, 40)] {
                let wide: Vec<i64> = x.iter().enumerate().map(|(i, v)| (v << by) + i as i64).collect();
                let w: Vec<i64> = w.iter().map(|w| w << weights_by).collect();
                assert_eq!(gemm::convolve_exact(&conv, &wide, &w, &b), wrapping(&conv, &wide, &w, &b));
            }
        }
    }
}
