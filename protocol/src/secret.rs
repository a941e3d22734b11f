//! Memory that is wiped when it is let go, and prints as nothing. Large vectors come from [`buffer`] and return
//! there.

use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

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

    /// Whole words that lie in memory as `bytes` do, copied.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut words = Self::zeroed(bytes.len() / size_of::<T>());
        bytemuck::cast_slice_mut(&mut words).copy_from_slice(bytes);
        words
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

/// Words of a message, kept where they were received.
pub(crate) enum Within<T: Pod + Send> {
    /// Some of its bytes, which lie as words do.
    Message(Arc<Secret<u8>>, Range<usize>),
    /// A copy of those that do not, or words that were never sent.
    Own(Secret<T>),
}

impl<T: Pod + Send> Within<T> {
    /// The words in these bytes of `message`, a whole number of them.
    pub(crate) fn new(message: &Arc<Secret<u8>>, bytes: Range<usize>) -> Self {
        let words: Result<&[T], _> = bytemuck::try_cast_slice(&message[bytes.clone()]);
        match words {
            Ok(_) => Self::Message(message.clone(), bytes),
            Err(_) => Self::Own(Secret::read(&message[bytes])),
        }
    }
}

impl<T: Pod + Send> Deref for Within<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match self {
            Self::Message(message, bytes) => bytemuck::cast_slice(&message[bytes.clone()]),
            Self::Own(words) => words,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_wherever_they_lie() {
        let words: Vec<u16> = (0..100).collect();
        for start in 0..4 {
            let mut bytes = vec![9; start];
            bytes.extend_from_slice(bytemuck::cast_slice(&words));
            bytes.push(9);
            let message = Arc::new(Secret::new(bytes));
            let within = Within::<u16>::new(&message, start..start + 200);
            let aligned = message[start..].as_ptr().addr().is_multiple_of(2);
            assert_eq!(matches!(within, Within::Message(..)), aligned, "copied only where it must be");
            assert_eq!(within[..], words);
        }
    }
}
