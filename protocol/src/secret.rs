//! Memory that is wiped when it is let go, and prints as nothing. Large vectors come from [`buffer`] and return
//! there.

use std::ops::{Deref, DerefMut};

use bytemuck::Pod;

use crate::buffer;

/// Words that belong to a secret.
#[derive(PartialEq, Eq)]
pub struct Secret<T: Pod + Send>(Vec<T>);

impl<T: Pod + Send> Secret<T> {
    /// Takes over `words`.
    pub const fn new(words: Vec<T>) -> Self {
        Self(words)
    }

    /// `n` zero words.
    pub fn zeroed(n: usize) -> Self {
        Self(buffer::zeroed(n))
    }

    /// A copy of `words`.
    pub fn copied(words: &[T]) -> Self {
        Self(buffer::copied(words))
    }

    /// Gives the words away, for a message that is masked or meant for the receiver.
    pub fn into_inner(mut self) -> Vec<T> {
        std::mem::take(&mut self.0)
    }

    /// Keeps the first `n` words and wipes the rest.
    pub fn truncate(&mut self, n: usize) {
        if n < self.0.len() {
            buffer::wipe(&mut self.0[n..]);
            self.0.truncate(n);
        }
    }
}

impl<T: Pod + Send> Drop for Secret<T> {
    fn drop(&mut self) {
        buffer::give(std::mem::take(&mut self.0));
    }
}

impl<T: Pod + Send> Clone for Secret<T> {
    fn clone(&self) -> Self {
        Self::copied(self)
    }
}

impl<T: Pod + Send> AsRef<[T]> for Secret<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T: Pod + Send> Deref for Secret<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pod + Send> DerefMut for Secret<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Pod + Send> From<Vec<T>> for Secret<T> {
    fn from(words: Vec<T>) -> Self {
        Self(words)
    }
}

impl<T: Pod + Send> std::fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret(.. {} words)", self.0.len())
    }
}
