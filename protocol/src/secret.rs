//! Memory that is wiped when it is let go, and prints as nothing.

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

/// Words that belong to a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T: Pod>(Vec<T>);

impl<T: Pod> Secret<T> {
    /// Takes over `words`.
    pub const fn new(words: Vec<T>) -> Self {
        Self(words)
    }

    /// `n` zero words.
    pub fn zeroed(n: usize) -> Self {
        Self(vec![T::zeroed(); n])
    }

    /// Gives the words away, for a message that is masked or meant for the receiver.
    pub fn into_inner(mut self) -> Vec<T> {
        std::mem::take(&mut self.0)
    }

    /// Keeps the first `n` words and wipes the rest.
    pub fn truncate(&mut self, n: usize) {
        if n < self.0.len() {
            wipe(&mut self.0[n..]);
            self.0.truncate(n);
        }
    }
}

/// Overwrites at the speed of memory; `zeroize` would go word by word, which shows at hundreds of megabytes.
pub(crate) fn wipe<T: Pod>(words: &mut [T]) {
    words.fill(T::zeroed());
    std::hint::black_box(words);
}

impl<T: Pod> Drop for Secret<T> {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl<T: Pod> Deref for Secret<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pod> DerefMut for Secret<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Pod> From<Vec<T>> for Secret<T> {
    fn from(words: Vec<T>) -> Self {
        Self(words)
    }
}

impl<T: Pod> std::fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret(.. {} words)", self.0.len())
    }
}
