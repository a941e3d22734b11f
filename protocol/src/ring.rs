//! Arithmetic: what an element is, in two domains.

pub mod kernel;

mod sealed {
    pub trait Sealed {}
}

/// Which of the two number ranges an element lives in. In the residue number system `Full` is Z_M and
/// `Reduced` is Z_P with M = P*Q; in Z_2^64 they are the same ring and differ in name only.
pub trait Domain: sealed::Sealed + Copy + Send + Sync + std::fmt::Debug + 'static {
    /// The domain as a value.
    const RANGE: Range;
}

/// Input of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {}

/// Output of a rescale, input of comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduced {}

/// A [`Domain`] as a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Range {
    /// Z_M.
    Full,
    /// Z_P.
    Reduced,
}

impl sealed::Sealed for Full {}
impl sealed::Sealed for Reduced {}
impl Domain for Full {
    const RANGE: Range = Range::Full;
}
impl Domain for Reduced {
    const RANGE: Range = Range::Reduced;
}
