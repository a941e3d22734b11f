//! What a share is: one server's part of a vector, additive in the ring.

use std::marker::PhantomData;

use crate::buffer;
use crate::error::{Error, Result};
use crate::prg::{Prg, Purpose};
use crate::ring::{Domain, Full, Range, Reduced, Ring};
use crate::secret::Secret;
use crate::step::Step;

/// One server's additive share of a vector in domain `D`. Wiped on drop; prints as its length.
pub struct Share<R: Ring, D: Domain> {
    words: Secret<R::Word>,
    domain: PhantomData<D>,
}

impl<R: Ring, D: Domain> Share<R, D> {
    /// From the words of a share.
    pub fn new(words: impl Into<Secret<R::Word>>) -> Self {
        Self { words: words.into(), domain: PhantomData }
    }

    /// Elements.
    pub fn len(&self, ring: &R) -> usize {
        self.words.len() / ring.planes(D::RANGE)
    }

    /// The words, plane by plane.
    pub fn words(&self) -> &[R::Word] {
        &self.words
    }

    /// The words, to compute on.
    pub fn words_mut(&mut self) -> &mut [R::Word] {
        &mut self.words
    }

    /// The words, given away.
    pub fn into_words(self) -> Secret<R::Word> {
        self.words
    }
}

impl<R: Ring> Share<R, Full> {
    /// A share of the same numbers in the smaller range.
    pub fn reduce(&self, ring: &R) -> Share<R, Reduced> {
        let n = self.len(ring);
        Share::new(Secret::copied(&self.words[..ring.planes(Range::Reduced) * n]))
    }
}

impl<R: Ring, D: Domain> Clone for Share<R, D> {
    fn clone(&self) -> Self {
        Self { words: self.words.clone(), domain: PhantomData }
    }
}

impl<R: Ring, D: Domain> std::fmt::Debug for Share<R, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Share(..)")
    }
}

/// The words as a message.
pub fn to_bytes<W: bytemuck::Pod>(words: &[W]) -> Vec<u8> {
    buffer::copied(bytemuck::cast_slice(words))
}

/// The same, without a copy where words are bytes.
pub fn into_bytes<W: bytemuck::Pod + Send>(words: Secret<W>) -> Vec<u8> {
    bytemuck::allocation::try_cast_vec(words.into_inner())
        .unwrap_or_else(|(_, words)| to_bytes(&Secret::new(words)))
}

/// Reads a message of words of `range`.
///
/// # Errors
/// [`Error::Peer`] if a word is not canonical, or the bytes are not whole elements.
pub fn from_bytes<R: Ring>(ring: &R, range: Range, step: Step, bytes: &[u8]) -> Result<Secret<R::Word>> {
    from_message(ring, range, step, Secret::copied(bytes))
}

/// The same, without a copy where words are bytes.
///
/// # Errors
/// As [`from_bytes`].
pub fn from_message<R: Ring>(
    ring: &R,
    range: Range,
    step: Step,
    bytes: Secret<u8>,
) -> Result<Secret<R::Word>> {
    if !bytes.len().is_multiple_of(ring.bytes(range)) {
        let found = format!("{} bytes", bytes.len());
        return Err(Error::Peer { step, expected: "whole elements".into(), found });
    }
    let words = bytemuck::allocation::try_cast_vec(bytes.into_inner())
        .map_or_else(|(_, bytes)| Secret::read(&Secret::new(bytes)), Secret::new);
    if ring.is_canonical(range, &words) {
        return Ok(words);
    }
    Err(not_canonical(step))
}

pub(crate) fn not_canonical(step: Step) -> Error {
    Error::Peer { step, expected: "residues below their moduli".into(), found: "larger ones".into() }
}

/// Splits a secret into a seed's expansion (server 0) and a correction (server 1).
///
/// The client shares its image and the model owner its weights this way: server 0 gets 32 bytes, server 1 the
/// correction.
pub fn split<R: Ring>(
    ring: &R,
    range: Range,
    prg: &Prg,
    step: Step,
    purpose: Purpose,
    x: &[i64],
) -> Secret<R::Word> {
    let mut words = Secret::new(ring.encode(range, x));
    ring.sub(range, &mut words, &ring.uniform(range, prg.at(step, purpose), x.len()));
    words
}

/// Adds two shares and reads them as integers nearest zero.
pub fn join<R: Ring>(ring: &R, range: Range, mut a: Secret<R::Word>, b: &[R::Word]) -> Vec<i64> {
    ring.add(range, &mut a, b);
    ring.decode(range, &a)
}
