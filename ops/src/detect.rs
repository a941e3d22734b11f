//! Two-stage detection on shares: what lies between the convolutions of Faster R-CNN and its list of boxes.
//!
//! Nothing is opened but orders of lists that were shuffled by permutations nobody knows. Boxes are corners
//! x1, y1, x2, y2 in units of the feature stride, so that areas stay far inside the range. Lists are padded to
//! public lengths; how many of their rows mean something is hidden.
//!
//! Source: Ren et al., NeurIPS 2015, with the semantics of torchvision's implementation.

pub mod anchors;
pub mod decode;
pub mod keep;
pub mod levels;
pub mod rank;
pub mod roi_align;
pub mod suppress;

pub use anchors::TopAnchors;
pub use decode::{Decode, DecodeClasses, Extent};
pub use keep::KeepFirst;
pub use levels::Levels;
pub use rank::{Level, RankDetections};
pub use roi_align::RoiAlign;
pub use suppress::{Suppress, Unsettled};

/// Places of `columns` in rows of `width`, row by row.
pub(crate) fn columns(rows: usize, width: usize, columns: &[usize]) -> Vec<u32> {
    (0..rows).flat_map(|r| columns.iter().map(move |c| (r * width + c) as u32)).collect()
}

/// Places of whole rows.
pub(crate) fn rows(index: &[u32], width: usize) -> Vec<u32> {
    index.iter().flat_map(|&r| (0..width as u32).map(move |c| r * width as u32 + c)).collect()
}

#[cfg(test)]
mod tests;
