//! Layers that only move numbers: index maps for [`Engine::gather`](crate::Engine::gather).

use serde::{Deserialize, Serialize};

use crate::engine::ZERO;

/// `out[i0, i1, ...] = x[axes[0][i0], axes[1][i1], ...]`, or zero where an entry is [`ZERO`]: padding, slices,
/// repetition along an axis and enlargement by the nearest neighbour, all at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Select {
    /// For each axis of the output, which index of the input it reads.
    pub axes: Vec<Vec<u32>>,
}

impl Select {
    /// Everything, of a value of this shape.
    pub fn all(shape: &[usize]) -> Self {
        Self { axes: shape.iter().map(|&d| (0..d as u32).collect()).collect() }
    }

    /// Shape of the result.
    pub fn shape(&self) -> Vec<usize> {
        self.axes.iter().map(Vec::len).collect()
    }

    /// Whether it can be applied to a value of this shape.
    pub fn is_valid(&self, shape: &[usize]) -> bool {
        self.axes.len() == shape.len()
            && self
                .axes
                .iter()
                .zip(shape)
                .all(|(axis, &d)| !axis.is_empty() && axis.iter().all(|&i| i == ZERO || (i as usize) < d))
    }

    /// The index map for an input of this shape.
    pub fn index(&self, shape: &[usize]) -> Vec<u32> {
        let mut index = vec![0u32];
        for (axis, &d) in self.axes.iter().zip(shape) {
            let step = |base: u32, i: u32| {
                if base == ZERO || i == ZERO { ZERO } else { base * d as u32 + i }
            };
            index = index.iter().flat_map(|&base| axis.iter().map(move |&i| step(base, i))).collect();
        }
        index
    }
}

/// The index map of `out = x` with axes permuted: axis `i` of the output is axis `permutation[i]` of the input.
pub fn transpose(shape: &[usize], permutation: &[usize]) -> Vec<u32> {
    let mut strides = vec![1usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    let mut index = vec![0u32];
    for &axis in permutation {
        let stride = strides[axis] as u32;
        let extent = shape[axis] as u32;
        index = index.iter().flat_map(|&base| (0..extent).map(move |i| base + i * stride)).collect();
    }
    index
}

/// The index map that joins values of these shapes along `axis`.
pub fn concat(shapes: &[Vec<usize>], axis: usize) -> Vec<u32> {
    let outer: usize = shapes[0][..axis].iter().product();
    let lines: Vec<u32> = shapes.iter().map(|s| s[axis..].iter().product::<usize>() as u32).collect();
    let starts = shapes.iter().scan(0u32, |at, s| {
        let start = *at;
        *at += s.iter().product::<usize>() as u32;
        Some(start)
    });
    let parts: Vec<(u32, u32)> = starts.zip(lines).collect();
    (0..outer as u32)
        .flat_map(|o| parts.iter().flat_map(move |&(start, line)| start + o * line..start + (o + 1) * line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn select_pads_slices_and_repeats() {
        let s = Select { axes: vec![vec![ZERO, 0, 1], vec![2, 0, 0]] };
        assert!(s.is_valid(&[2, 3]) && !s.is_valid(&[2, 2]) && !s.is_valid(&[6]));
        assert_eq!(s.index(&[2, 3]), [ZERO, ZERO, ZERO, 2, 0, 0, 5, 3, 3]);
        assert_eq!(Select::all(&[2, 3]).index(&[2, 3]), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn transpose_moves_axes() {
        assert_eq!(transpose(&[2, 3], &[1, 0]), [0, 3, 1, 4, 2, 5]);
        // [n, h, w, c] to [n, c, h, w]
        assert_eq!(transpose(&[1, 2, 2, 2], &[0, 3, 1, 2]), [0, 2, 4, 6, 1, 3, 5, 7]);
    }

    #[test]
    fn concat_joins_along_any_axis() {
        assert_eq!(concat(&[vec![2, 1], vec![2, 2]], 1), [0, 2, 3, 1, 4, 5]);
        assert_eq!(concat(&[vec![1, 2], vec![2, 2]], 0), [0, 1, 2, 3, 4, 5]);
    }
}
