//! Shared randomness: AES-128 in counter mode, one stream per (seed, step, purpose, plane, chunk).
//!
//! Two holders of a seed expand the same values at the same [`Step`]. The counter block spells out what the
//! bytes are for, so two purposes never see the same keystream:
//! step (8 bytes) | purpose (1) | plane (1) | chunk (2) | block counter (4).

use aes::Aes128Enc;
use aes::cipher::{Block, BlockCipherEncrypt, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;

use crate::buffer;
use crate::step::Step;

/// A 256-bit secret shared with the helper (or the client), from which streams are expanded.
#[derive(Clone, zeroize::Zeroize, zeroize::ZeroizeOnDrop)]
pub struct Seed([u8; 32]);

impl Seed {
    /// Draws a fresh seed from the operating system.
    ///
    /// # Errors
    /// When the operating system has no entropy to give.
    pub fn random() -> Result<Self, rand::rngs::SysError> {
        use rand::TryRng;
        let mut bytes = [0; 32];
        rand::rngs::SysRng.try_fill_bytes(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Takes bytes received from their owner over a confidential link.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for a confidential link.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The generator of this seed within `context` (the session or model load it was drawn for).
    pub fn prg(&self, context: &[u8]) -> Prg {
        let mut key = [0; 16];
        Hkdf::<Sha256>::new(Some(b"sharelens prg 1"), &self.0)
            .expand(context, &mut key)
            .expect("16 bytes are within the output limit of HKDF");
        let prg = Prg {
            cipher: Aes128Enc::new(&key.into()),
            #[cfg(any(test, feature = "insecure-testing"))]
            tampering: Box::default(),
        };
        zeroize::Zeroize::zeroize(&mut key);
        prg
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed(..)")
    }
}

macro_rules! purposes {
    ($($(#[$doc:meta])* $name:ident $(= $number:literal)?,)*) => {
        /// What a stream is used for. Every draw in the code has a purpose of its own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Purpose {
            $($(#[$doc])* $name $(= $number)?,)*
        }

        impl Purpose {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

purposes! {
    /// A share of a client's input.
    Input = 1,
    /// A share of a model's weight.
    Weight,
    /// A share of a model's bias.
    Bias,
    /// The lasting mask B of a weight.
    WeightMask,
    /// The mask A of a linear layer's input.
    LinearMask,
    /// Server 0's share of a dealt product of masks.
    LinearProduct,
    /// The mask r of a comparison.
    CompareMask,
    /// Server 0's shares of the one-hot digits of r.
    CompareDigits,
    /// Masks of the bits opened in the merging tree.
    TreeMask,
    /// Server 0's shares of products of tree masks.
    TreeProduct,
    /// Server 0's share of the sign bit of r.
    FlipBit,
    /// The mask beta of a sign bit.
    SignMask,
    /// Server 0's shares of numbers derived from r and beta.
    SignDerived,
    /// The mask r of a conversion.
    ConvertMask,
    /// Server 0's shares of numbers derived from the mask of a conversion.
    ConvertDerived,
    /// The masks of a multiplication's left factor.
    MulLeft,
    /// The masks of a multiplication's right factor.
    MulRight,
    /// Server 0's share of the product of the two.
    MulProduct,
    /// A fresh sharing of zero between the servers, which hides from the helper what it dealt.
    Rerandomise,
    /// A server's own permutation in a shuffle.
    ShuffleOrder,
    /// The mask of what a server lets the other permute.
    ShuffleMask,
    /// Server 0's part of what is dealt for its own permutation.
    ShuffleFirst,
    /// Server 0's part of what is dealt for server 1's permutation.
    ShuffleSecond,
    /// The masks of the left operands of matrix products.
    ProductLeft,
    /// The mask of their common right operand.
    ProductRight,
    /// Server 0's shares of the products of the two.
    ProductDealt,
    /// Tests.
    Test,
}

/// Expands a seed.
pub struct Prg {
    cipher: Aes128Enc,
    #[cfg(any(test, feature = "insecure-testing"))]
    tampering: Box<insecure::Tampering>,
}

impl Prg {
    /// The streams for one purpose.
    pub const fn at(&self, step: Step, purpose: Purpose) -> Streams<'_> {
        Streams { prg: self, step, purpose }
    }

    /// The stream for one purpose, plane and chunk of the call at `step`.
    pub fn stream(&self, step: Step, purpose: Purpose, plane: usize, chunk: usize) -> Stream<'_> {
        let plane = u8::try_from(plane).expect("fewer than 256 planes");
        let chunk = u16::try_from(chunk).expect("fewer than 65536 chunks");
        let mut block = [0; 16];
        block[..8].copy_from_slice(&step.call_start().to_bits().to_le_bytes());
        block[8] = purpose as u8;
        block[9] = plane;
        block[10..12].copy_from_slice(&chunk.to_le_bytes());
        Stream {
            cipher: &self.cipher,
            block,
            counter: 0,
            #[cfg(any(test, feature = "insecure-testing"))]
            script: self.tampering.drawn(block),
        }
    }
}

/// The streams of one purpose at one step.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// The generator.
    pub prg: &'a Prg,
    /// Where.
    pub step: Step,
    /// What for.
    pub purpose: Purpose,
}

impl<'a> Streams<'a> {
    /// The stream of one plane and chunk.
    pub fn stream(self, plane: usize, chunk: usize) -> Stream<'a> {
        self.prg.stream(self.step, self.purpose, plane, chunk)
    }
}

impl std::fmt::Debug for Prg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prg(..)")
    }
}

/// A keystream, read once from the start.
pub struct Stream<'a> {
    cipher: &'a Aes128Enc,
    block: [u8; 16],
    counter: u64,
    /// What a test says instead of the cipher.
    #[cfg(any(test, feature = "insecure-testing"))]
    script: Option<std::sync::Arc<Vec<u8>>>,
}

impl Stream<'_> {
    /// The next `out.len()` bytes, rounded up to whole blocks: what is left of the last block is skipped.
    ///
    /// # Panics
    /// After 2^32 blocks, which no step asks for.
    pub fn fill(&mut self, out: &mut [u8]) {
        // What the widest AES units take at once; fewer blocks would pass one after the other.
        const BATCH: usize = 64;
        // Stays in the nearest cache between counting and encrypting.
        const PART: usize = 4 * BATCH;
        #[cfg(any(test, feature = "insecure-testing"))]
        if let Some(script) = &self.script {
            self.counter = insecure::read(script, self.counter, out);
            return;
        }
        let (blocks, last) = out.as_chunks_mut::<16>();
        let (parts, rest) = blocks.split_at_mut(blocks.len() / BATCH * BATCH);
        for part in parts.chunks_mut(PART) {
            self.encrypt(part);
        }
        let left = rest.len() + usize::from(!last.is_empty());
        if left == 0 {
            return;
        }
        let mut batch = [[0; 16]; BATCH];
        let start = self.counter;
        // A whole batch is cheaper than a dozen single blocks.
        self.encrypt(&mut batch[..if left > 12 { BATCH } else { left }]);
        self.counter = start + left as u64;
        rest.copy_from_slice(&batch[..rest.len()]);
        last.copy_from_slice(&batch[rest.len()][..last.len()]);
        batch.fill([0; 16]);
        std::hint::black_box(&batch);
    }

    /// The next blocks.
    fn encrypt(&mut self, blocks: &mut [[u8; 16]]) {
        let end = self.counter + blocks.len() as u64;
        assert!(end <= 1 << 32, "a stream is shorter than 2^32 blocks");
        let prefix = u128::from_le_bytes(self.block);
        for (block, counter) in blocks.iter_mut().zip(self.counter..) {
            *block = (prefix | u128::from(counter) << 96).to_le_bytes();
        }
        self.counter = end;
        self.cipher.encrypt_blocks(Block::<Aes128Enc>::cast_slice_from_core_mut(blocks));
    }

    /// `n` words of uniform bits.
    pub fn words(&mut self, n: usize) -> Vec<u64> {
        let mut words = buffer::zeroed(n);
        self.fill(bytemuck::cast_slice_mut(&mut words));
        words
    }
}

/// Randomness that a test chooses. Nothing of this is in a build that anybody runs.
#[cfg(any(test, feature = "insecure-testing"))]
pub mod insecure {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::{Arc, Mutex};

    use super::{Prg, Purpose};

    /// Which stream of a call: what for, plane (or lane), chunk.
    pub type Which = (Purpose, u8, u16);

    /// What a generator yields instead of its keystream, and what was drawn from it.
    #[derive(Default)]
    pub(super) struct Tampering {
        all: bool,
        purposes: BTreeSet<Purpose>,
        scripts: BTreeMap<Which, Arc<Vec<u8>>>,
        drawn: Mutex<Vec<[u8; 12]>>,
    }

    fn which(block: &[u8]) -> Which {
        let purpose = Purpose::ALL.iter().find(|p| **p as u8 == block[8]);
        (*purpose.expect("a purpose"), block[9], u16::from_le_bytes([block[10], block[11]]))
    }

    impl Tampering {
        /// Notes that a stream is drawn; its bytes, if a test chose them.
        pub(super) fn drawn(&self, block: [u8; 16]) -> Option<Arc<Vec<u8>>> {
            let coordinates = block[..12].try_into().expect("12 bytes");
            self.drawn.lock().expect("no test panics while it holds this").push(coordinates);
            let which = which(&block);
            if self.all || self.purposes.contains(&which.0) {
                return Some(Arc::default());
            }
            self.scripts.get(&which).cloned()
        }
    }

    /// Fills `out` from `script`, from `counter` blocks on, with zeros behind its end; the blocks read so far.
    pub(super) fn read(script: &[u8], counter: u64, out: &mut [u8]) -> u64 {
        let start = 16 * counter as usize;
        let from = script.get(start..).unwrap_or_default();
        let known = from.len().min(out.len());
        out[..known].copy_from_slice(&from[..known]);
        out[known..].fill(0);
        counter + out.len().div_ceil(16) as u64
    }

    impl Prg {
        /// The same, with zeros for every stream: a party whose own randomness is fixed.
        #[must_use]
        pub fn insecure_constant(mut self) -> Self {
            self.tampering.all = true;
            self
        }

        /// The same, with zeros for all streams of one purpose.
        #[must_use]
        pub fn insecure_without(mut self, purpose: Purpose) -> Self {
            self.tampering.purposes.insert(purpose);
            self
        }

        /// The same, with these bytes, then zeros, for one stream.
        #[must_use]
        pub fn insecure_scripted(mut self, which: Which, bytes: Vec<u8>) -> Self {
            self.tampering.scripts.insert(which, Arc::new(bytes));
            self
        }

        /// The streams that were drawn, each once.
        pub fn insecure_streams(&self) -> BTreeSet<Which> {
            self.tampering.drawn.lock().expect("as above").iter().map(|block| which(block)).collect()
        }

        /// How many streams were drawn, and how many of them more than once.
        pub fn insecure_drawn(&self) -> (usize, usize) {
            let drawn = self.tampering.drawn.lock().expect("as above");
            let distinct: BTreeSet<_> = drawn.iter().collect();
            (drawn.len(), drawn.len() - distinct.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn first(seed: u8, context: &[u8], step: Step, purpose: Purpose, plane: usize, chunk: usize) -> [u8; 16] {
        let mut out = [0; 16];
        Seed::from_bytes([seed; 32]).prg(context).stream(step, purpose, plane, chunk).fill(&mut out);
        out
    }

    #[test]
    fn every_coordinate_separates() {
        let s = Step::layer(1).call(1);
        let streams = [
            first(0, b"a", s, Purpose::Test, 0, 0),
            first(1, b"a", s, Purpose::Test, 0, 0),
            first(0, b"b", s, Purpose::Test, 0, 0),
            first(0, b"a", s.call(2), Purpose::Test, 0, 0),
            first(0, b"a", Step::layer(2).call(1), Purpose::Test, 0, 0),
            first(0, b"a", s, Purpose::Input, 0, 0),
            first(0, b"a", s, Purpose::Test, 1, 0),
            first(0, b"a", s, Purpose::Test, 0, 1),
        ];
        assert_eq!(streams.iter().collect::<HashSet<_>>().len(), streams.len());
        assert_eq!(
            streams[0],
            first(0, b"a", s.message(5), Purpose::Test, 0, 0),
            "messages share the call's"
        );
    }

    #[test]
    fn how_it_is_read_does_not_matter() {
        let prg = Seed::from_bytes([3; 32]).prg(b"x");
        let stream = || prg.stream(Step::layer(0), Purpose::Test, 0, 0);
        let mut whole = vec![0; 16 * 100];
        stream().fill(&mut whole);
        let mut parts = vec![0; 16 * 100];
        let mut s = stream();
        for part in parts.chunks_mut(16 * 7) {
            s.fill(part);
        }
        assert_eq!(whole, parts);
        // Whole batches, padded ones, single blocks and a part of a block.
        for len in [1, 15, 16, 17, 192, 208, 209, 1008, 1023, 1024, 1025, 1040, 1300] {
            let (mut one, mut s) = (vec![0; len], stream());
            s.fill(&mut one);
            assert_eq!(one, whole[..len], "{len} bytes");
            let next = len.next_multiple_of(16);
            let mut after = [0; 16];
            s.fill(&mut after);
            assert_eq!(after, whole[next..next + 16], "after {len} bytes");
        }
    }

    #[test]
    fn golden() {
        // Both ends must agree across versions and machines.
        let mut out = [0; 8];
        Seed::from_bytes([7; 32]).prg(b"golden").stream(Step::layer(1), Purpose::Input, 2, 3).fill(&mut out);
        assert_eq!(u64::from_le_bytes(out), GOLDEN);
    }

    const GOLDEN: u64 = 16653697185739156491;

    #[test]
    fn prints_nothing() {
        assert_eq!(format!("{:?}", Seed::from_bytes([7; 32])), "Seed(..)");
    }
}
