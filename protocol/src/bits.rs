//! Packed vectors of bits, 64 to a word, for XOR sharing.

use crate::buffer;
use crate::secret::Secret;

/// `n` bits; bit `i` is bit `i % 64` of word `i / 64`. Bits beyond `n` in the last word are unspecified in
/// memory and never sent.
pub type Bits = Secret<u64>;

/// Words that hold `n` bits.
pub const fn words(n: usize) -> usize {
    n.div_ceil(64)
}

/// Bytes that `n` bits take in a message.
pub const fn bytes(n: usize) -> usize {
    n.div_ceil(8)
}

/// `planes` bit vectors of length `n` each, as one message: each padded to whole bytes, unused bits zero.
pub fn pack(planes: &[u64], n: usize) -> Vec<u8> {
    let (w, b) = (words(n), bytes(n));
    if w == 0 {
        return Vec::new();
    }
    let mut out = buffer::with_capacity(planes.len() / w * b);
    for plane in planes.chunks_exact(w) {
        let start = out.len();
        out.extend_from_slice(&bytemuck::cast_slice(plane)[..b]);
        if !n.is_multiple_of(8) {
            out[start + b - 1] &= (1 << (n % 8)) - 1;
        }
    }
    out
}

/// Reads what [`pack`] wrote, for as many planes as there are bytes; `None` if the length is not a multiple.
pub fn unpack(message: &[u8], n: usize) -> Option<Vec<u64>> {
    let (w, b) = (words(n), bytes(n));
    if b == 0 || !message.len().is_multiple_of(b) {
        return message.is_empty().then(Vec::new);
    }
    let mut out = buffer::with_capacity(message.len() / b * w);
    for plane in message.chunks_exact(b) {
        out.extend(plane.chunks(8).map(|c| {
            let mut word = [0; 8];
            word[..c.len()].copy_from_slice(c);
            u64::from_le_bytes(word)
        }));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_and_unpacks() {
        for n in [1, 7, 8, 9, 63, 64, 65, 200] {
            let planes: Vec<u64> =
                (0..3 * words(n) as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            let message = pack(&planes, n);
            assert_eq!(message.len(), 3 * bytes(n));
            let back = unpack(&message, n).unwrap();
            for plane in 0..3 {
                for i in 0..n {
                    let bit = |v: &[u64]| v[plane * words(n) + i / 64] >> (i % 64) & 1;
                    assert_eq!(bit(&planes), bit(&back), "n {n} plane {plane} bit {i}");
                }
            }
            assert_eq!(pack(&back, n), message, "unused bits are zero");
        }
        assert_eq!(unpack(&[1, 2, 3], 9), None);
    }
}
