//! Convolution over Z_2^64: packed weights and the choice of a kernel.

use super::conv::{self, Packed, Shape};
use super::{Conv, Isa, depthwise, portable};

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

/// Weights over Z_2^64 in the order of one kernel; wiped on drop.
pub struct PackedWeights64 {
    isa: Isa,
    shape: Shape,
    packed: Packed,
}

impl PackedWeights64 {
    /// Packs `w`, `[c_out, kh, kw, c_in / groups]`, for convolutions of this kernel, channels, groups and
    /// column dilation; images, stride and padding may differ later.
    ///
    /// # Panics
    /// If the convolution is not valid or `w` has another length.
    pub fn pack(isa: Isa, conv: &Conv, w: &[u64]) -> Self {
        assert!(conv.is_valid() && w.len() == conv.weight_len(), "weights do not fit the convolution");
        let isa = isa.usable();
        let shape = Shape::new(conv);
        let packed = match isa {
            _ if shape.is_depthwise() => depthwise::pack(conv, w, |v| v),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => conv::pack::<avx512::Word, _>(conv, w, |v| v),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => conv::pack::<avx2::Word, _>(conv, w, |v| v),
            _ => conv::pack::<portable::Word, _>(conv, w, |v| v),
        };
        Self { isa, shape, packed }
    }
}

/// `acc = acc + x * w` in Z_2^64: `x` `[n, h, w, c_in]`, `acc` `[n, oh, ow, c_out]`.
///
/// Runs the kernel the weights were packed for. Large convolutions spread over the current rayon pool.
///
/// # Panics
/// If lengths, instruction set or convolution are not those the weights were packed for.
pub fn conv_accumulate_u64(isa: Isa, conv: &Conv, x: &[u64], w: &PackedWeights64, acc: &mut [u64]) {
    assert!(conv.is_valid() && w.shape == Shape::new(conv), "weights packed for another convolution");
    assert!(w.isa == isa.usable(), "weights packed for another instruction set");
    if w.shape.is_depthwise() {
        return depthwise::accumulate_u64(isa, conv, x, &w.packed, acc);
    }
    // SAFETY: `w.isa` went through `usable` when packing, so the processor has it; the weights were packed
    // by the same arm of `pack` and the shapes were just compared.
    unsafe {
        match w.isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => conv::accumulate(&avx512::Word, conv, x, &w.packed, acc),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => conv::accumulate(&avx2::Word, conv, x, &w.packed, acc),
            _ => conv::accumulate(&portable::Word, conv, x, &w.packed, acc),
        }
    }
}
