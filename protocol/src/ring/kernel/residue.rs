//! Convolution of one residue channel: packed weights and the choice of a kernel.

use super::conv::{self, Micro, Packed, Shape};
use super::winograd::{self, Points};
use super::{Conv, Isa, depthwise, portable};

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// The weights of one residue channel in the order of one kernel, balanced to signed bytes; wiped on drop.
pub struct PackedWeights {
    isa: Isa,
    m: u8,
    shape: Shape,
    points: Option<Points>,
    packed: Packed,
}

impl PackedWeights {
    /// Packs residues `w` in `[0, m)`, `[c_out, kh, kw, c_in / groups]`, for convolutions of this kernel,
    /// channels, groups, stride and column dilation; images and padding may differ later. Where
    /// minimal filtering pays, weights are transformed for it and take four to five and a half times the memory.
    ///
    /// # Panics
    /// If the convolution is not valid, `w` has another length, or `m < 2`.
    pub fn pack(isa: Isa, conv: &Conv, m: u8, w: &[u8]) -> Self {
        Self::pack_as(isa, conv, m, w, Points::choose(conv, m))
    }

    /// The same for a sum over all taps, whatever pays: to compare with.
    ///
    /// # Panics
    /// As [`PackedWeights::pack`].
    pub fn pack_direct(isa: Isa, conv: &Conv, m: u8, w: &[u8]) -> Self {
        Self::pack_as(isa, conv, m, w, None)
    }

    fn pack_as(isa: Isa, conv: &Conv, m: u8, w: &[u8], points: Option<Points>) -> Self {
        assert!(m >= 2, "no residues modulo {m}");
        assert!(conv.is_valid() && w.len() == conv.weight_len(), "weights do not fit the convolution");
        let isa = isa.usable();
        let shape = Shape::new(conv);
        let map = |v| balanced(v, m);
        let packed = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if shape.is_depthwise() => depthwise::pack_by_four(conv, w, map),
            _ if shape.is_depthwise() => depthwise::pack(conv, w, map),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => pack_for::<avx512::Residue>(points, conv, m, w, map),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => pack_for::<avx2::Residue>(points, conv, m, w, map),
            _ => pack_for::<portable::Residue>(points, conv, m, w, |v| i16::from(map(v))),
        };
        Self { isa, m, shape, points, packed }
    }
}

fn pack_for<M: Micro>(
    points: Option<Points>,
    conv: &Conv,
    m: u8,
    w: &[u8],
    map: impl Fn(u8) -> M::W,
) -> Packed {
    match points {
        Some(points) => winograd::pack::<M>(points, conv, m, w, map),
        None => conv::pack::<M, _>(conv, w, map),
    }
}

/// `acc = (acc + x * w) mod m`: residues `x` `[n, h, w, c_in]` and `acc` `[n, oh, ow, c_out]` in `[0, m)`,
/// exact for every input and any number of products per output.
///
/// Runs the kernel the weights were packed for. Large convolutions spread over the current rayon pool.
///
/// # Panics
/// If lengths, modulus, instruction set or convolution are not those the weights were packed for.
pub fn conv_accumulate(isa: Isa, conv: &Conv, m: u8, x: &[u8], w: &PackedWeights, acc: &mut [u8]) {
    assert!(conv.is_valid() && w.shape == Shape::new(conv), "weights packed for another convolution");
    assert!(w.points.is_none() || conv.stride == [1, 1], "weights packed for another convolution");
    assert!(w.m == m && w.isa == isa.usable(), "weights packed for another modulus or instruction set");
    if w.shape.is_depthwise() {
        return depthwise::accumulate(isa, conv, m, x, &w.packed, acc);
    }
    let taps = if w.points.is_some() { 1 } else { conv.kernel[0] * conv.kernel[1] };
    let products = taps * (conv.c_in / conv.groups);
    // SAFETY: `w.isa` went through `usable` when packing, so the processor has it; the weights were packed
    // by the same arm of `pack` and the shapes were just compared.
    unsafe {
        match w.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => accumulate_by(&avx512::Residue::for_sums(m, products), conv, x, w, acc),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => accumulate_by(&avx2::Residue::new(m), conv, x, w, acc),
            _ => accumulate_by(&portable::Residue::new(m), conv, x, w, acc),
        }
    }
}

/// # Safety
/// The processor has `w.isa`, which `micro` is for, with the modulus of `w`; `conv` has the shape of `w`.
unsafe fn accumulate_by<M: Micro<In = u8, Acc = u8>>(
    micro: &M,
    conv: &Conv,
    x: &[u8],
    w: &PackedWeights,
    acc: &mut [u8],
) {
    // SAFETY: the caller's promises.
    unsafe {
        match w.points {
            Some(points) => winograd::accumulate(w.isa, micro, points, conv, w.m, x, &w.packed, acc),
            None => conv::accumulate(micro, conv, x, &w.packed, acc),
        }
    }
}

/// The representative of `v` in `[-m/2, m/2]`, within `[-127, 127]`. Without a branch: `v` is secret.
#[inline(always)]
pub(super) fn balanced(v: u8, m: u8) -> i8 {
    let above = 0u8.wrapping_sub(u8::from(v > m / 2));
    v.wrapping_sub(m & above) as i8
}

/// The smallest multiple of `m` that is at least `v`.
pub(super) const fn multiple_above(v: u32, m: u8) -> u32 {
    v.div_ceil(m as u32) * m as u32
}

/// Bound on `|x * w|` for a residue and a balanced weight.
pub(super) const MAX_PRODUCT: u32 = 254 * 127;

/// Barrett's quotient for 16 bits: `v - m * (v * magic >> 16)` is in `[0, 2m)` for every `v < 2^16`, because
/// `v / m - v * magic / 2^16 = v * (2^16 mod m) / (m * 2^16) < 1`.
pub(super) const fn magic16(m: u8) -> u16 {
    (65536 / m as u32) as u16
}

/// Barrett's quotient for 32 bits, with the same bound for every `v < 2^32`.
pub(super) const fn magic32(m: u8) -> u32 {
    ((1u64 << 32) / m as u64) as u32
}

/// `v mod m` for any `v`, given `magic32(m)`.
#[inline(always)]
pub(super) fn reduce32(v: u32, m: u8, magic: u32) -> u8 {
    let q = ((u64::from(v) * u64::from(magic)) >> 32) as u32;
    let r = v.wrapping_sub(q.wrapping_mul(u32::from(m)));
    r.min(r.wrapping_sub(u32::from(m))) as u8
}
