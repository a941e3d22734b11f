//! What adds or moves numbers and leaves their meaning as it is: the same in a network ([`crate::graph::Op`]) as in a
//! program ([`crate::program::Instruction`]), with real numbers as with shares.

use serde::{Deserialize, Serialize};
use sharelens_ops::layers::{ConvTranspose, Select, movement};

use crate::graph::{MAX_ELEMENTS, conv_fits};

/// Sums, differences and movements of numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrange {
    /// Sum of two values of one shape.
    Add,
    /// Difference of two values of one shape.
    Sub,
    /// Joined along an axis.
    Concat {
        /// Which, in storage order.
        axis: usize,
    },
    /// Padding, slices, repetition.
    Select(Select),
    /// Axes in another order.
    Transpose {
        /// Axis `i` of the output is axis `permutation[i]` of the input.
        permutation: Vec<usize>,
    },
    /// The same numbers under another shape.
    Reshape,
    /// The phases of a transposed convolution put in their places.
    Phases(ConvTranspose),
}

impl Arrange {
    /// A word for reports.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Concat { .. } => "concat",
            Self::Select(_) => "select",
            Self::Transpose { .. } => "transpose",
            Self::Reshape => "reshape",
            Self::Phases(_) => "phases",
        }
    }

    /// How many values it reads; none if any number will do.
    pub const fn arity(&self) -> Option<usize> {
        match self {
            Self::Add | Self::Sub => Some(2),
            Self::Concat { .. } => None,
            _ => Some(1),
        }
    }

    /// Where each element of the result stands in the inputs one after the other; none for sums and differences, and for
    /// a reshape, which moves nothing.
    pub fn index(&self, shapes: &[&[usize]]) -> Option<Vec<u32>> {
        Some(match self {
            Self::Add | Self::Sub | Self::Reshape => return None,
            Self::Concat { axis } => {
                movement::concat(&shapes.iter().map(|s| s.to_vec()).collect::<Vec<_>>(), *axis)
            }
            Self::Select(select) => select.index(shapes[0]),
            Self::Transpose { permutation } => movement::transpose(shapes[0], permutation),
            Self::Phases(t) => t.index(),
        })
    }

    /// Checks it against the shapes of its inputs, as many as [`Self::arity`] says, and of its result.
    ///
    /// # Errors
    ///
    /// What does not fit, in words.
    pub fn check(&self, inputs: &[&[usize]], out: &[usize]) -> Result<(), String> {
        let x = inputs[0];
        let len = |s: &[usize]| s.iter().product::<usize>();
        let (fits, why) = match self {
            Self::Add | Self::Sub => (x == inputs[1] && x == out, "summands differ in shape"),
            Self::Concat { axis } => {
                let axis = *axis;
                let rest = |s: &&[usize]| {
                    s.len() == out.len() && (0..out.len()).all(|a| a == axis || s[a] == out[a])
                };
                let fits = axis < out.len() && inputs.iter().all(rest);
                let along = |sum: Option<usize>, s: &&[usize]| sum?.checked_add(*s.get(axis)?);
                let joined = inputs.iter().fold(Some(0), along);
                (fits && joined == Some(out[axis]), "parts do not fit together")
            }
            Self::Select(s) => (s.is_valid(x) && s.shape() == out, "positions do not match"),
            Self::Transpose { permutation } => {
                let mut sorted = permutation.clone();
                sorted.sort_unstable();
                let fits = sorted.iter().copied().eq(0..x.len())
                    && permutation.iter().map(|&a| x[a]).eq(out.iter().copied());
                (fits, "not a permutation of its axes")
            }
            Self::Reshape => (len(x) == len(out), "the number of elements changes"),
            Self::Phases(t) => {
                let size = [t.n, t.h, t.w, t.c_in, t.c_out].into_iter().all(|v| v > 0 && v <= MAX_ELEMENTS);
                let fits = size
                    && t.is_valid()
                    && conv_fits(&t.conv())
                    && len(x) == t.conv().out_len()
                    && t.out(0).zip(t.out(1)).is_some_and(|(h, w)| out == [t.n, h, w, t.c_out]);
                (fits, "phases do not match")
            }
        };
        if fits { Ok(()) } else { Err(format!("{why}; input {x:?}, output {out:?}")) }
    }
}
