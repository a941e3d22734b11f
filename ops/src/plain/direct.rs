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

/// `x` `[n, h, w, c_in]` times `weights` `[c_out, kh, kw, c_in / groups]` plus `bias` `[c_out]`, as `[n, oh, ow, c_out]`.
///
/// # Panics
///
/// If the slices do not have the lengths that `conv` states, or `conv` is not valid.
pub fn convolve<T: Number>(conv: &Conv, x: &[T], weights: &[T], bias: &[T]) -> Vec<T> {
    assert!(conv.is_valid() && x.len() == conv.in_len() && weights.len() == conv.weight_len());
    assert_eq!(bias.len(), conv.c_out);
    let padded = Padded::new(conv, x);
    let mut out = vec![T::ZERO; conv.out_len()];
    let pixels = conv.n * conv.out_h() * conv.out_w();
    let chunk = pixels.div_ceil(8 * rayon::current_num_threads()).next_multiple_of(PIXELS);
    let blocked = (conv.c_out / conv.groups >= LANES).then(|| pack(conv, weights));
    let run = |(i, part): (usize, &mut [T])| match &blocked {
        Some(packed) => block_chunk(conv, &padded, packed, bias, i * chunk, part),
        None => naive_chunk(conv, &padded, weights, bias, i * chunk, part),
    };
    if conv.macs() < 1 << 15 {
        out.chunks_mut(chunk * conv.c_out).enumerate().for_each(run);
    } else {
        out.par_chunks_mut(chunk * conv.c_out).enumerate().for_each(run);
    }
    out
}

/// The input with its zero border written out, so that no tap needs a bounds decision.
struct Padded<T> {
    data: Vec<T>,
    rows: usize,
    columns: usize,
}

impl<T: Number> Padded<T> {
    fn new(conv: &Conv, x: &[T]) -> Self {
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
    fn start(&self, conv: &Conv, p: usize) -> usize {
        let (oh, ow) = (conv.out_h(), conv.out_w());
        let (image, y, x) = (p / (oh * ow), p / ow % oh, p % ow);
        ((image * self.rows + y * conv.stride[0]) * self.columns + x * conv.stride[1]) * conv.c_in
    }

    fn tap(&self, conv: &Conv, ky: usize, kx: usize) -> usize {
        (ky * conv.dilation[0] * self.columns + kx * conv.dilation[1]) * conv.c_in
    }
}

/// Weights as `[group][block][kh][kw][c_in / groups][LANES]`, zero beyond the last channel of a group.
fn pack<T: Number>(conv: &Conv, weights: &[T]) -> Vec<T> {
    let (per_in, per_out) = (conv.c_in / conv.groups, conv.c_out / conv.groups);
    let k = conv.kernel[0] * conv.kernel[1] * per_in;
    let blocks = per_out.div_ceil(LANES);
    let mut packed = vec![T::ZERO; conv.groups * blocks * k * LANES];
    for (o, row) in weights.chunks_exact(k).enumerate() {
        let (group, within) = (o / per_out, o % per_out);
        let base = (group * blocks + within / LANES) * k * LANES + within % LANES;
        for (j, &w) in row.iter().enumerate() {
            packed[base + j * LANES] = w;
        }
    }
    packed
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

/// For groups of few output channels, depthwise among them.
fn naive_chunk<T: Number>(
    conv: &Conv,
    x: &Padded<T>,
    weights: &[T],
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
                        acc = acc.mul_acc(a, b);
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
            Conv::dense(5, 33, 17),
        ];
        for conv in cases {
            let x: Vec<i64> = (0..conv.in_len() as i64).map(|i| i * 7919 % 201 - 100).collect();
            let w: Vec<i64> = (0..conv.weight_len() as i64).map(|i| i * 104729 % 151 - 75).collect();
            let b: Vec<i64> = (0..conv.c_out as i64).map(|i| i * 31 - 9).collect();
            let expected = reference(&conv, &x, &w, &b);
            assert_eq!(convolve(&conv, &x, &w, &b), expected, "{conv:?}");
            let f = |v: &[i64]| v.iter().map(|&v| v as f64).collect::<Vec<_>>();
            assert_eq!(convolve(&conv, &f(&x), &f(&w), &f(&b)), f(&expected));
        }
    }
}
