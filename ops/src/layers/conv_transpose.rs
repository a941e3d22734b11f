//! Transposed convolution as one ordinary convolution and a permutation.
//!
//! An output row Y = y + pad gets input row i through kernel row k when Y = i*s + k. Writing Y = j*s + r and
//! k = t*s + r shows that the outputs of one phase r are an ordinary convolution of the input with every s-th
//! kernel row. All s_h*s_w phases together are one convolution with s_h*s_w*c_out output channels; moving each
//! phase to its place is local. Every output element comes from exactly one channel, so the bias is exact even
//! where kernel positions overlap.

use serde::{Deserialize, Serialize};
use sharelens_protocol::ring::kernel::Conv;

/// A transposed convolution of `[n, h, w, c_in]`. Weights are `[c_in, kh, kw, c_out / groups]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ConvTranspose {
    /// Images.
    pub n: usize,
    /// Input rows.
    pub h: usize,
    /// Input columns.
    pub w: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Kernel rows and columns.
    pub kernel: [usize; 2],
    /// Stride.
    pub stride: [usize; 2],
    /// Rows and columns taken off the result: top, left, bottom, right.
    pub pad: [usize; 4],
    /// Dilation of the kernel.
    pub dilation: [usize; 2],
    /// Rows and columns added at the bottom and the right.
    pub output_padding: [usize; 2],
    /// Groups.
    pub groups: usize,
}

impl ConvTranspose {
    /// Rows (0) or columns (1) of the output; `None` if there are none or the numbers are out of bounds.
    pub fn out(&self, axis: usize) -> Option<usize> {
        let input = [self.h, self.w][axis];
        let spread = input.checked_sub(1)?.checked_mul(self.stride[axis])?;
        let span = self.kernel[axis].checked_sub(1)?.checked_mul(self.dilation[axis])?.checked_add(1)?;
        let total = spread.checked_add(span)?.checked_add(self.output_padding[axis])?;
        total.checked_sub(self.pad[axis])?.checked_sub(self.pad[axis + 2]).filter(|&o| o > 0 && o < 1 << 24)
    }

    /// Whether the numbers describe a transposed convolution that [`ConvTranspose::conv`] can state.
    pub fn is_valid(&self) -> bool {
        let sane = |v: &usize| *v > 0 && *v < 1 << 12;
        self.kernel.iter().chain(&self.stride).chain(&self.dilation).all(sane)
            && self.pad.iter().chain(&self.output_padding).all(|&p| p < 1 << 12)
            && self.groups > 0
            && self.c_in.is_multiple_of(self.groups)
            && self.c_out.is_multiple_of(self.groups)
            && (0..2).all(|a| self.out(a).is_some())
            && self.c_out.checked_mul(self.stride[0] * self.stride[1]).is_some_and(|c| c < 1 << 24)
            && self.conv().is_valid()
    }

    /// Taps of each phase along `axis`.
    fn taps(&self, axis: usize) -> usize {
        ((self.kernel[axis] - 1) * self.dilation[axis] + 1).div_ceil(self.stride[axis])
    }

    /// The convolution of all phases.
    pub fn conv(&self) -> Conv {
        let taps = [self.taps(0), self.taps(1)];
        // The last block of outputs may lie beyond the input (output padding).
        let beyond = |axis: usize| {
            let last = self.out(axis).unwrap_or(1) + self.pad[axis] - 1;
            (last / self.stride[axis] + 1).saturating_sub([self.h, self.w][axis])
        };
        Conv {
            n: self.n,
            h: self.h,
            w: self.w,
            c_in: self.c_in,
            c_out: self.c_out * self.stride[0] * self.stride[1],
            kernel: taps,
            stride: [1, 1],
            pad: [taps[0] - 1, taps[1] - 1, beyond(0), beyond(1)],
            dilation: [1, 1],
            groups: self.groups,
        }
    }

    /// Channel of the convolution that holds output channel `o` at phase `(r, q)`.
    fn channel(&self, o: usize, r: usize, q: usize) -> usize {
        let per_group = self.c_out / self.groups;
        let phase = r * self.stride[1] + q;
        ((o / per_group) * self.stride[0] * self.stride[1] + phase) * per_group + o % per_group
    }

    /// Weights of [`ConvTranspose::conv`] from those of the transposed convolution.
    pub fn weights<T: Copy + Default>(&self, weights: &[T]) -> Vec<T> {
        let conv = self.conv();
        let [th, tw] = conv.kernel;
        let (per_in, per_out) = (self.c_in / self.groups, self.c_out / self.groups);
        let mut out = vec![T::default(); conv.weight_len()];
        for i in 0..self.c_in {
            for ky in 0..self.kernel[0] {
                for kx in 0..self.kernel[1] {
                    let (y, x) = (ky * self.dilation[0], kx * self.dilation[1]);
                    let (r, q) = (y % self.stride[0], x % self.stride[1]);
                    let (u, v) = (th - 1 - y / self.stride[0], tw - 1 - x / self.stride[1]);
                    for within in 0..per_out {
                        let o = self.channel(i / per_in * per_out + within, r, q);
                        out[((o * th + u) * tw + v) * per_in + i % per_in] =
                            weights[((i * self.kernel[0] + ky) * self.kernel[1] + kx) * per_out + within];
                    }
                }
            }
        }
        out
    }

    /// Bias of [`ConvTranspose::conv`]: each phase has that of its channel.
    pub fn bias<T: Copy + Default>(&self, bias: &[T]) -> Vec<T> {
        let mut out = vec![T::default(); self.c_out * self.stride[0] * self.stride[1]];
        for (o, &b) in bias.iter().enumerate() {
            for r in 0..self.stride[0] {
                for q in 0..self.stride[1] {
                    out[self.channel(o, r, q)] = b;
                }
            }
        }
        out
    }

    /// The index map from the output of [`ConvTranspose::conv`] to `[n, oh, ow, c_out]`.
    pub fn index(&self) -> Vec<u32> {
        let conv = self.conv();
        let (h, w) = (conv.out_h(), conv.out_w());
        let (oh, ow) = (self.out(0).unwrap_or(0), self.out(1).unwrap_or(0));
        let mut index = Vec::with_capacity(self.n * oh * ow * self.c_out);
        for n in 0..self.n {
            for y in self.pad[0]..self.pad[0] + oh {
                for x in self.pad[1]..self.pad[1] + ow {
                    let pixel = (n * h + y / self.stride[0]) * w + x / self.stride[1];
                    let (r, q) = (y % self.stride[0], x % self.stride[1]);
                    index
                        .extend((0..self.c_out).map(|o| (pixel * conv.c_out + self.channel(o, r, q)) as u32));
                }
            }
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::numbers;
    use super::*;
    use crate::plain::direct::convolve;

    /// The definition: every input element scattered through the kernel.
    fn scatter(t: &ConvTranspose, x: &[i64], w: &[i64], bias: &[i64]) -> Vec<i64> {
        let (oh, ow) = (t.out(0).expect("valid"), t.out(1).expect("valid"));
        let (per_in, per_out) = (t.c_in / t.groups, t.c_out / t.groups);
        let mut out: Vec<i64> = bias.iter().copied().cycle().take(t.n * oh * ow * t.c_out).collect();
        for n in 0..t.n {
            for (y, x0, i) in
                (0..t.h).flat_map(|y| (0..t.w).flat_map(move |x| (0..t.c_in).map(move |i| (y, x, i))))
            {
                for (ky, kx) in (0..t.kernel[0]).flat_map(|a| (0..t.kernel[1]).map(move |b| (a, b))) {
                    let oy = (y * t.stride[0] + ky * t.dilation[0]) as i64 - t.pad[0] as i64;
                    let ox = (x0 * t.stride[1] + kx * t.dilation[1]) as i64 - t.pad[1] as i64;
                    if oy < 0 || ox < 0 || oy >= oh as i64 || ox >= ow as i64 {
                        continue;
                    }
                    for o in 0..per_out {
                        out[((n * oh + oy as usize) * ow + ox as usize) * t.c_out
                            + i / per_in * per_out
                            + o] += x[((n * t.h + y) * t.w + x0) * t.c_in + i]
                            * w[((i * t.kernel[0] + ky) * t.kernel[1] + kx) * per_out + o];
                    }
                }
            }
        }
        out
    }

    #[test]
    fn equals_the_scatter() {
        let base = ConvTranspose {
            n: 1,
            h: 3,
            w: 4,
            c_in: 3,
            c_out: 2,
            kernel: [2, 2],
            stride: [2, 2],
            pad: [0; 4],
            dilation: [1, 1],
            output_padding: [0, 0],
            groups: 1,
        };
        let cases = [
            base,
            ConvTranspose { kernel: [3, 3], pad: [1; 4], output_padding: [1, 1], ..base },
            ConvTranspose { kernel: [4, 4], pad: [1; 4], n: 2, ..base },
            ConvTranspose { kernel: [3, 2], stride: [1, 3], pad: [0, 1, 2, 0], ..base },
            ConvTranspose { kernel: [1, 1], output_padding: [1, 1], ..base },
            ConvTranspose { kernel: [3, 3], dilation: [2, 3], stride: [2, 1], ..base },
            ConvTranspose { c_in: 4, c_out: 6, groups: 2, kernel: [3, 3], pad: [2, 1, 0, 1], ..base },
        ];
        for t in cases {
            assert!(t.is_valid(), "{t:?}");
            let x = numbers(t.n * t.h * t.w * t.c_in);
            let w = numbers(t.c_in * t.kernel[0] * t.kernel[1] * t.c_out / t.groups);
            let b: Vec<i64> = (1..=t.c_out as i64).collect();
            let all = convolve(&t.conv(), &x, &t.weights(&w), &t.bias(&b));
            let out: Vec<i64> = t.index().iter().map(|&i| all[i as usize]).collect();
            assert_eq!(out, scatter(&t, &x, &w, &b), "{t:?}");
        }
    }
}
