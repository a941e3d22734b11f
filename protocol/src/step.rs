//! Where in a session something happens.
//!
//! One `Step` names a message, separates the streams of the PRG and labels the ledger, so that neither a
//! message nor a mask can be used twice.

use serde::{Deserialize, Serialize};

/// The path session / layer / call / message, in one word. Layers are nodes of the program, calls number the
/// protocols that a layer runs, messages number the sends of one protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Step(u64);

impl Step {
    /// The start of layer `index`.
    pub const fn layer(index: u32) -> Self {
        Self((index as u64) << 32)
    }

    /// The `call`-th protocol of this layer.
    pub const fn call(self, call: u16) -> Self {
        Self((self.0 & !0xffff_ffff) | (call as u64) << 16)
    }

    /// The `index`-th message of this call.
    pub const fn message(self, index: u16) -> Self {
        Self((self.0 & !0xffff) | index as u64)
    }

    /// Which layer this step belongs to.
    pub const fn layer_index(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The protocol call this step belongs to, with the message number cleared.
    pub const fn call_start(self) -> Self {
        Self(self.0 & !0xffff)
    }

    /// The word on the wire.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// From the word on the wire.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "layer {} call {} message {}", self.0 >> 32, self.0 >> 16 & 0xffff, self.0 & 0xffff)
    }
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Step({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap() {
        let s = Step::layer(7).call(3).message(9);
        assert_eq!((s.layer_index(), s.to_bits() & 0xffff, s.to_bits() >> 16 & 0xffff), (7, 9, 3));
        assert_eq!(s.call_start(), Step::layer(7).call(3));
        assert_ne!(s.call(4), s);
        assert_eq!(Step::from_bits(s.to_bits()), s);
        assert_eq!(s.to_string(), "layer 7 call 3 message 9");
    }
}
