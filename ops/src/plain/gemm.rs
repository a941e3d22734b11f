//! Convolutions as matrix products in `f64`: as fast as the machine multiplies, and exact for integers whose
//! sums stay small.

use std::borrow::Cow;

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};
use rayon::prelude::*;
use sharelens_protocol::ring::kernel::Conv;

use super::direct::{self, FEW, Padded};
use super::largest;

/// `f64` adds integers exactly up to 2^53; half of that leaves room for the rounding of bounds themselves.
const EXACT: f64 = (1u64 << 52) as f64;
/// Elements of the patches that one thread has in memory at a time.
const PATCHES: usize = 1 << 18;
/// Output pixels of one product: enough to hide the packing of weights, few enough to share among threads.
const MIN_ROWS: usize = 16;
const MAX_ROWS: usize = 512;
/// Multiply-accumulates from which packing pays.
const SMALL: u64 = 1 << 15;

/// Whether products pay: groups are too narrow for them, and few pixels read each weight but once.
fn pays(conv: &Conv) -> bool {
    conv.groups == 1 && conv.macs() >= SMALL && conv.n * conv.out_h() * conv.out_w() > FEW
}

/// As [`direct::convolve`], in another order of summation.
///
/// # Panics
///
/// If the slices do not have the lengths that `conv` states, or `conv` is not valid.
pub fn convolve<W: Copy + Sync>(conv: &Conv, x: &[f64], weights: &[W], bias: &[f64]) -> Vec<f64>
where
    f64: From<W>,
{
    assert!(conv.is_valid() && x.len() == conv.in_len() && weights.len() == conv.weight_len());
    assert_eq!(bias.len(), conv.c_out);
    if !pays(conv) {
        return direct::convolve(conv, x, weights, bias);
    }
    let weights: Vec<f64> = weights.par_iter().map(|&w| w.into()).collect();
    let mut out = vec![0.0; conv.out_len()];
    out.chunks_exact_mut(conv.c_out).for_each(|pixel| pixel.copy_from_slice(bias));
    products(conv, x, &weights, &mut out);
    out
}

/// As [`direct::convolve`], bit for bit: sums are modulo 2^64.
///
/// # Panics
///
/// As [`convolve`].
pub fn convolve_exact(conv: &Conv, x: &[i64], weights: &[i64], bias: &[i64]) -> Vec<i64> {
    assert!(conv.is_valid() && x.len() == conv.in_len() && weights.len() == conv.weight_len());
    assert_eq!(bias.len(), conv.c_out);
    // What a sum of products is at most, for inputs of at most 1.
    let heaviest = heaviest(conv, weights);
    let reach = largest(x) as f64;
    // Inputs are cut at bit `cut`, and sums of the lower parts then fit, their magnitude being at most 2^(cut - 1).
    let cut = if heaviest * reach < EXACT { 64 } else { (EXACT / heaviest.max(1.0)).log2().floor() as i32 };
    let splits = (1..64).contains(&cut);
    let fits = cut == 64 || splits && heaviest * (reach / f64::from(cut).exp2() + 1.0) < EXACT;
    if !pays(conv) || !fits {
        return direct::convolve(conv, x, weights, bias);
    }
    let weights: Vec<f64> = weights.par_iter().map(|&w| w as f64).collect();
    let product = |part: &(dyn Fn(i64) -> i64 + Sync)| {
        let x: Vec<f64> = x.par_iter().map(|&v| part(v) as f64).collect();
        let mut out = vec![0.0; conv.out_len()];
        products(conv, &x, &weights, &mut out);
        out
    };
    let biases = bias.iter().cycle();
    if !splits {
        let sums = product(&|v| v);
        return sums.iter().zip(biases).map(|(&s, &b)| (s as i64).wrapping_add(b)).collect();
    }
    // v = upper * 2^cut + lower, the lower part from -2^(cut - 1).
    let upper = |v: i64| (v >> cut) + (v >> (cut - 1) & 1);
    let lower = product(&|v| v.wrapping_sub(upper(v) << cut));
    let upper = product(&upper);
    let sum =
        |((&l, &u), &b): ((&f64, &f64), &i64)| (l as i64).wrapping_add(((u as i64) << cut).wrapping_add(b));
    lower.iter().zip(&upper).zip(biases).map(sum).collect()
}

/// Largest sum of magnitudes of the weights of one output channel. Exact wherever it is below 2^53.
pub(super) fn heaviest(conv: &Conv, weights: &[i64]) -> f64 {
    let taps = weights.len() / conv.c_out;
    let sum = |row: &[i64]| row.iter().map(|w| w.unsigned_abs() as f64).sum();
    weights.par_chunks_exact(taps).map(sum).reduce(|| 0.0, f64::max)
}

/// Adds patches times weights to `out`.
fn products(conv: &Conv, x: &[f64], weights: &[f64], out: &mut [f64]) {
    let (pixels, k) = (conv.n * conv.out_h() * conv.out_w(), weights.len() / conv.c_out);
    let weights = ArrayView2::from_shape((conv.c_out, k), weights).expect("one row per output channel");
    let share = pixels.div_ceil(rayon::current_num_threads());
    let rows = (PATCHES / k).min(share).clamp(MIN_ROWS, MAX_ROWS);
    // Pixels of a 1x1 convolution are its patches.
    let flat = conv.kernel == [1, 1] && conv.stride == [1, 1] && conv.pad == [0; 4];
    let padded = if flat { None } else { Some(Padded::new(conv, x)) };
    out.par_chunks_mut(rows * conv.c_out).enumerate().for_each(|(i, part)| {
        let count = part.len() / conv.c_out;
        let patches = match &padded {
            None => Cow::Borrowed(&x[i * rows * k..][..count * k]),
            Some(padded) => {
                let mut patches = vec![0.0; count * k];
                let each = patches.chunks_exact_mut(k).enumerate();
                each.for_each(|(j, patch)| padded.patch(conv, i * rows + j, patch));
                Cow::Owned(patches)
            }
        };
        let patches = ArrayView2::from_shape((count, k), &patches).expect("one row per pixel");
        let mut part = ArrayViewMut2::from_shape((count, conv.c_out), part).expect("one row per pixel");
        general_mat_mul(1.0, &patches, &weights.t(), 1.0, &mut part);
    });
}
