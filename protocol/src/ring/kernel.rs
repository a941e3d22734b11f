//! The hot loops, chosen at run time by instruction set. All `unsafe` of the project lives below here.
//!
//! A residue plane is a `&[u8]` of values in `[0, m)`. Feature maps are NHWC: the channels of one pixel are
//! contiguous. Every kernel is exact for every input and agrees bit for bit with its portable twin.
#![allow(unsafe_code, reason = "vector instructions; denied everywhere else")]

use std::sync::OnceLock;

mod bend;
mod conv;
mod depthwise;
mod elementwise;
mod onehot;
mod portable;
mod reject;
mod rescale;
mod residue;
#[cfg(test)]
mod tests;
mod winograd;
mod words;
mod z64;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

pub use bend::{Bend, Masked, Wrapped, bend, bend_wrapped, keep_where, spread_bits, unmask_bit, unwrap_mask};
pub use elementwise::{
    add_mod, mul_add_const_mod, mul_add_mod, mul_const_mod, mul_mod, neg_mod, reduce_i64, reduce_u32, sub_mod,
};
pub use onehot::{lookup_onehot, lookup_onehot_u64};
pub use reject::uniform_residues;
pub use rescale::{compose_u32, rescale};
pub use residue::{PackedWeights, conv_accumulate};
pub use z64::{PackedWeights64, conv_accumulate_u64};

/// An instruction set a kernel is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// AVX2.
    Avx2,
    /// AVX-512 F, BW, DQ, VL, VNNI, VBMI2 and BITALG: Ice Lake, Zen 4 and later.
    Avx512,
}

impl Isa {
    /// The best instruction set of this processor, or a plainer one that the environment variable `SHARELENS_KERNELS`
    /// names: `portable`, `avx2` or `avx512`. Asked once. Results do not depend on it.
    ///
    /// # Panics
    /// If the variable names no instruction set, or one that this processor lacks.
    pub fn detect() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let best = Self::of_processor();
            let Some(name) = std::env::var_os("SHARELENS_KERNELS") else { return best };
            let named = match name.to_str() {
                Some("portable") => Some(Self::Portable),
                Some("avx2") => Some(Self::Avx2),
                Some("avx512") => Some(Self::Avx512),
                _ => None,
            };
            let named = named.filter(|named| *named <= best);
            named.unwrap_or_else(|| panic!("SHARELENS_KERNELS={} is not to be had here", name.display()))
        })
    }

    fn of_processor() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("popcnt") {
            let all = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("avx512vbmi2")
                && is_x86_feature_detected!("avx512bitalg");
            return if all { Self::Avx512 } else { Self::Avx2 };
        }
        Self::Portable
    }

    /// Every instruction set this processor has, from plain to best.
    pub fn available() -> Vec<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512].into_iter().filter(|&isa| isa <= Self::detect()).collect()
    }

    /// What of `self` may be executed here. An `Isa` is a plain value anyone can make, so no kernel may
    /// trust it: each dispatches on this, which never exceeds what the processor reported.
    fn usable(self) -> Self {
        self.min(Self::detect())
    }
}

/// Compiles one inlinable loop for each instruction set and selects at run time: a safe one, which LLVM
/// vectorises, or (`body::<Words>`) an unsafe one generic over the vector, which may assume that the processor
/// has the vector's instructions.
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident::<Words>) => {
        vectorised!(
            @ [$(#[$doc])* $vis] $name [$($arg: $ty),*]
            // SAFETY: compiled for the vector's instructions.
            unsafe { $body::<crate::ring::kernel::words::Ymm>($($arg),*) },
            // SAFETY: compiled for the vector's instructions.
            unsafe { $body::<crate::ring::kernel::words::Zmm>($($arg),*) },
            // SAFETY: plain Rust.
            unsafe { $body::<[u16; 16]>($($arg),*) }
        );
    };
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        vectorised!(
            @ [$(#[$doc])* $vis] $name [$($arg: $ty),*] $body($($arg),*), $body($($arg),*), $body($($arg),*)
        );
    };
    (@ [$($head:tt)*] $name:ident [$($arg:ident: $ty:ty),*] $avx2:expr, $avx512:expr, $plain:expr) => {
        #[allow(clippy::too_many_arguments, reason = "moduli, geometry and planes are what a loop needs")]
        $($head)* fn $name(isa: crate::ring::kernel::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[allow(clippy::too_many_arguments, reason = "moduli, geometry and planes are what a loop needs")]
                #[target_feature(enable = "avx2,popcnt")]
                fn avx2($($arg: $ty),*) {
                    $avx2
                }
                #[allow(clippy::too_many_arguments, reason = "moduli, geometry and planes are what a loop needs")]
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,popcnt")]
                fn avx512($($arg: $ty),*) {
                    $avx512
                }
                match isa.usable() {
                    // SAFETY: `usable` is at most `Isa::detect`, which found AVX2 and POPCNT.
                    crate::ring::kernel::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: `usable` is at most `Isa::detect`, which found these AVX-512 subsets.
                    crate::ring::kernel::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    crate::ring::kernel::Isa::Portable => {}
                }
            }
            let _ = isa;
            $plain
        }
    };
}
use vectorised;

/// A two-dimensional convolution (cross-correlation), which also serves dense layers: a `1x1` kernel over
/// `h = 1`, `w = rows` is the matrix product of `[rows, c_in]` with the transpose of `[c_out, c_in]`.
///
/// Input `[n, h, w, c_in]`, weights `[c_out, kh, kw, c_in / groups]`, output `[n, oh, ow, c_out]`; all dense
/// and row-major. Padding reads as zero. Output channel `o` belongs to group `o / (c_out / groups)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Conv {
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
    /// Stride along rows and columns.
    pub stride: [usize; 2],
    /// Zero padding: top, left, bottom, right.
    pub pad: [usize; 4],
    /// Dilation along rows and columns.
    pub dilation: [usize; 2],
    /// Groups; `groups == c_in` is a depthwise convolution.
    pub groups: usize,
}

impl Conv {
    /// The matrix product `[rows, k] x [cols, k]^T`.
    pub const fn dense(rows: usize, k: usize, cols: usize) -> Self {
        Self {
            n: 1,
            h: 1,
            w: rows,
            c_in: k,
            c_out: cols,
            kernel: [1, 1],
            stride: [1, 1],
            pad: [0; 4],
            dilation: [1, 1],
            groups: 1,
        }
    }

    /// Output rows.
    pub const fn out_h(&self) -> usize {
        (self.h + self.pad[0] + self.pad[2] - self.dilation[0] * (self.kernel[0] - 1) - 1) / self.stride[0]
            + 1
    }

    /// Output columns.
    pub const fn out_w(&self) -> usize {
        (self.w + self.pad[1] + self.pad[3] - self.dilation[1] * (self.kernel[1] - 1) - 1) / self.stride[1]
            + 1
    }

    /// Elements of the input.
    pub const fn in_len(&self) -> usize {
        self.n * self.h * self.w * self.c_in
    }

    /// Elements of the weights.
    pub const fn weight_len(&self) -> usize {
        self.c_out * self.kernel[0] * self.kernel[1] * (self.c_in / self.groups)
    }

    /// Elements of the output.
    pub const fn out_len(&self) -> usize {
        self.n * self.out_h() * self.out_w() * self.c_out
    }

    /// Multiply-accumulates, padding included.
    pub const fn macs(&self) -> u64 {
        (self.n * self.out_h() * self.out_w()) as u64 * self.weight_len() as u64
    }

    /// Whether the numbers describe a convolution at all: no zero extents, kernel inside the padded input,
    /// groups dividing both channel counts, sizes within 2^31.
    pub fn is_valid(&self) -> bool {
        let fits = |v: usize| v > 0 && v < 1 << 24;
        let span = |i: usize| self.dilation[i].checked_mul(self.kernel[i] - 1).map(|v| v + 1);
        [self.n, self.h, self.w, self.c_in, self.c_out, self.groups].into_iter().all(fits)
            && self.kernel.into_iter().chain(self.stride).chain(self.dilation).all(fits)
            && self.pad.into_iter().all(|p| p < 1 << 20)
            && self.c_in.is_multiple_of(self.groups)
            && self.c_out.is_multiple_of(self.groups)
            && span(0).is_some_and(|s| s <= self.h + self.pad[0] + self.pad[2])
            && span(1).is_some_and(|s| s <= self.w + self.pad[1] + self.pad[3])
            && [
                [self.n * self.h, self.w, self.c_in],
                [self.n * self.out_h(), self.out_w(), self.c_out],
                [self.c_out, self.kernel[0] * self.kernel[1], self.c_in / self.groups],
            ]
            .into_iter()
            .all(|[a, b, c]| a.checked_mul(b).and_then(|v| v.checked_mul(c)).is_some_and(|v| v < 1 << 31))
    }
}
