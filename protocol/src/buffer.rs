//! Large vectors that are used again: a fresh page costs more than what is computed on it.
//!
//! An allocator gives large vectors back to the system, which clears their pages before it hands them out anew.
//! Vectors of a session are short-lived, large and of few lengths, so those of [`SMALL`] bytes and more are kept
//! here instead, wiped, and at most [`KEPT`] bytes of them in a process. What fits none of the kept ones is
//! allocated, and as much that has lain here longest is let go: kept and used vectors together never take more
//! memory than the used ones did at their peak.

use std::any::{Any, TypeId};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::Pod;

/// Bytes from which on a vector is kept.
pub const SMALL: usize = 1 << 17;

/// Bytes that are kept at most.
pub const KEPT: usize = 1 << 29;

static POOL: Pool = Pool::new(KEPT);

/// `n` zero words.
pub fn zeroed<T: Pod + Send>(n: usize) -> Vec<T> {
    POOL.zeroed(n)
}

/// An empty vector with room for `n` words.
pub fn with_capacity<T: Pod + Send>(n: usize) -> Vec<T> {
    POOL.with_capacity(n)
}

/// A copy of `words`.
pub fn copied<T: Pod + Send>(words: &[T]) -> Vec<T> {
    let mut out = with_capacity(words.len());
    out.extend_from_slice(words);
    out
}

/// Wipes `words` and keeps the vector for the next who asks.
pub fn give<T: Pod + Send>(words: Vec<T>) {
    POOL.give(words);
}

/// Overwrites at the speed of memory; `zeroize` would go word by word, which shows at hundreds of megabytes.
pub(crate) fn wipe<T: Pod>(words: &mut [T]) {
    words.fill(T::zeroed());
    std::hint::black_box(words);
}

/// Wiped vectors of any type.
struct Pool {
    most: usize,
    shelf: Mutex<Shelf>,
}

struct Shelf {
    /// Bytes of all that is kept.
    held: usize,
    /// The longest kept first.
    kept: Vec<Kept>,
}

struct Kept {
    of: TypeId,
    bytes: usize,
    /// A `Vec` of zeros.
    words: Box<dyn Any + Send>,
}

impl Pool {
    const fn new(most: usize) -> Self {
        Self { most, shelf: Mutex::new(Shelf { held: 0, kept: Vec::new() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn zeroed<T: Pod + Send>(&self, n: usize) -> Vec<T> {
        match self.take(n) {
            Some(mut words) => {
                // They are zeros as far as they go.
                words.resize(n, T::zeroed());
                words
            }
            None => vec![T::zeroed(); n],
        }
    }

    fn with_capacity<T: Pod + Send>(&self, n: usize) -> Vec<T> {
        match self.take(n) {
            Some(mut words) => {
                words.clear();
                words
            }
            None => Vec::with_capacity(n),
        }
    }

    /// A kept vector with room for `n` words and little more.
    fn take<T: Pod + Send>(&self, n: usize) -> Option<Vec<T>> {
        let bytes = size_of::<T>().checked_mul(n)?;
        if bytes < SMALL {
            return None;
        }
        let (found, spare) = self.lock().take(TypeId::of::<T>(), bytes);
        // Unmapping takes time, which others need not wait for.
        drop(spare);
        found.map(|words| *words.downcast().expect("of the type that was asked for"))
    }

    fn give<T: Pod + Send>(&self, mut words: Vec<T>) {
        wipe(&mut words);
        let bytes = size_of::<T>() * words.capacity();
        if bytes < SMALL || bytes > self.most {
            return;
        }
        let kept = Kept { of: TypeId::of::<T>(), bytes, words: Box::new(words) };
        let refused = self.lock().give(kept, self.most);
        drop(refused);
    }
}

impl Shelf {
    /// The smallest that fits, or as much as will now be allocated of what has been kept longest.
    fn take(&mut self, of: TypeId, bytes: usize) -> (Option<Box<dyn Any + Send>>, Vec<Kept>) {
        let fits = |k: &Kept| k.of == of && (bytes..=bytes + bytes / 8).contains(&k.bytes);
        let best = self.kept.iter().enumerate().filter(|(_, k)| fits(k)).min_by_key(|(_, k)| k.bytes);
        if let Some((at, _)) = best {
            let found = self.kept.remove(at);
            self.held -= found.bytes;
            return (Some(found.words), Vec::new());
        }
        let mut freed = 0;
        let oldest = self.kept.iter().take_while(|k| {
            let more = freed < bytes;
            freed += k.bytes;
            more
        });
        let oldest = oldest.count();
        let spare: Vec<Kept> = self.kept.drain(..oldest).collect();
        self.held -= spare.iter().map(|k| k.bytes).sum::<usize>();
        (None, spare)
    }

    /// Gives back what there is no room for.
    fn give(&mut self, kept: Kept, most: usize) -> Option<Kept> {
        if self.held + kept.bytes > most {
            return Some(kept);
        }
        self.held += kept.bytes;
        self.kept.push(kept);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: usize = SMALL;

    /// Bytes and vectors kept.
    fn state(pool: &Pool) -> (usize, usize) {
        let shelf = pool.lock();
        (shelf.held, shelf.kept.len())
    }

    #[test]
    fn is_wiped_and_used_again() {
        let pool = Pool::new(1 << 30);
        let words = vec![7u8; N + 5];
        let at = words.as_ptr();
        pool.give(words);
        assert_eq!(pool.lock().held, N + 5);
        let again: Vec<u8> = pool.zeroed(N);
        assert_eq!((again.as_ptr(), again.len()), (at, N), "the same memory");
        assert!(again.iter().all(|&b| b == 0));
        assert_eq!(pool.lock().held, 0);
        // Longer than what was wiped, but within its room.
        pool.give(again);
        let longer: Vec<u8> = pool.zeroed(N + 5);
        assert_eq!(longer.as_ptr(), at);
        assert_eq!(longer, vec![0; N + 5]);
        pool.give(longer);
        let empty: Vec<u8> = pool.with_capacity(N);
        assert_eq!((empty.as_ptr(), empty.len()), (at, 0));
    }

    #[test]
    fn what_is_kept_is_zero() {
        let pool = Pool::new(1 << 30);
        let mut words: Vec<u64> = pool.zeroed(N);
        words.fill(u64::MAX);
        words.truncate(N / 2);
        pool.give(words);
        let shelf = pool.lock();
        let kept: &Vec<u64> = shelf.kept[0].words.downcast_ref().unwrap();
        assert_eq!(kept.len(), N / 2, "no more is known to be zero");
        assert!(kept.iter().all(|&w| w == 0));
    }

    #[test]
    fn neither_other_types_nor_other_sizes_are_given() {
        let pool = Pool::new(1 << 30);
        pool.give(vec![0u8; 8 * N]);
        assert_eq!(pool.take::<u64>(N).map(|w| w.len()), None, "bytes are no words");
        pool.give(vec![0u8; 8 * N]);
        assert!(pool.take::<u8>(7 * N).is_none(), "an eighth more at most");
        pool.give(vec![0u8; 8 * N]);
        assert!(pool.take::<u8>(8 * N + 1).is_none(), "too small");
        pool.give(vec![0u8; SMALL - 1]);
        assert_eq!(pool.lock().held, 0, "small ones are not kept");
        assert!(pool.take::<u64>(usize::MAX).is_none());
    }

    #[test]
    fn the_closest_fit_is_given() {
        let pool = Pool::new(1 << 30);
        for len in [N + N / 10, N + 1, N + N / 20] {
            pool.give(vec![0u8; len]);
        }
        assert_eq!(pool.take::<u8>(N).unwrap().capacity(), N + 1);
    }

    #[test]
    fn is_bounded() {
        let pool = Pool::new(3 * N);
        for _ in 0..5 {
            pool.give(vec![1u8; N]);
        }
        assert_eq!(state(&pool), (3 * N, 3));
        pool.give(vec![1u8; 4 * N]);
        assert_eq!(pool.lock().held, 3 * N);
    }

    #[test]
    fn the_longest_kept_make_room_for_what_fits_none() {
        let pool = Pool::new(1 << 30);
        for len in [N, 2 * N, 3 * N, 4 * N] {
            pool.give(vec![0u8; len]);
        }
        assert_eq!(pool.zeroed::<u16>(N + N / 2).len(), N + N / 2);
        assert_eq!(pool.lock().kept.iter().map(|k| k.bytes).collect::<Vec<_>>(), [3 * N, 4 * N]);
        assert_eq!(pool.lock().held, 7 * N);
        // All that was kept, and no more.
        drop(pool.zeroed::<u16>(20 * N));
        assert_eq!(state(&pool), (0, 0));
    }

    #[test]
    fn threads_share_it() {
        let pool = Pool::new(8 * N);
        std::thread::scope(|s| {
            for thread in 1..=4u8 {
                let pool = &pool;
                s.spawn(move || {
                    for round in 0..50 {
                        let mut words: Vec<u8> = pool.zeroed(N + 64 * (round % 7));
                        assert!(words.iter().all(|&b| b == 0), "nobody else writes to it");
                        words.fill(thread);
                        std::thread::yield_now();
                        assert!(words.iter().all(|&b| b == thread));
                        pool.give(words);
                    }
                });
            }
        });
        let shelf = pool.lock();
        assert_eq!(shelf.held, shelf.kept.iter().map(|k| k.bytes).sum::<usize>());
        assert!(shelf.held <= 8 * N && !shelf.kept.is_empty());
    }
}
