//! Which stages a detector has, and what each reads and yields.
//!
//! A stage has two forms, which share this: in real units ([`crate::detect::Stage`], part of a network) and in integers
//! of one ring ([`crate::program::detect::Stage`], part of a program).

use sharelens_protocol::ring::Range;

/// A stage without its settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageKind {
    /// The best anchors.
    TopAnchors,
    /// Anchors to boxes.
    Decode,
    /// Which rows stay.
    Suppress,
    /// How many rows a suppression has not settled.
    Unsettled,
    /// The rows that stay, in front.
    KeepFirst,
    /// Features of boxes.
    RoiAlign,
    /// Probabilities of all classes but the first.
    Scores,
    /// Proposals to boxes of each class.
    DecodeClasses,
    /// Candidates by descending score.
    RankDetections,
}

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Numbers of the larger domain.
    Full,
    /// Numbers of the smaller domain.
    Reduced,
    /// Bits that a sign made, 0 or 1 whatever was shared, in the larger domain. They may be read as numbers; numbers
    /// are never read as bits, since places are computed from these and opened.
    Bits,
}

impl Kind {
    /// The domain of its numbers.
    pub const fn range(self) -> Range {
        match self {
            Self::Full | Self::Bits => Range::Full,
            Self::Reduced => Range::Reduced,
        }
    }

    /// Whether it may be read where `wanted` is due. Numbers of the larger domain are taken to the smaller one.
    pub const fn serves(self, wanted: Self) -> bool {
        match wanted {
            Self::Reduced => true,
            Self::Full => matches!(self, Self::Full | Self::Bits),
            Self::Bits => matches!(self, Self::Bits),
        }
    }
}

impl From<Range> for Kind {
    fn from(range: Range) -> Self {
        match range {
            Range::Full => Self::Full,
            Range::Reduced => Self::Reduced,
        }
    }
}

impl StageKind {
    /// A word for reports.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TopAnchors => "top anchors",
            Self::Decode => "decode",
            Self::Suppress => "suppress",
            Self::Unsettled => "unsettled",
            Self::KeepFirst => "keep first",
            Self::RoiAlign => "roi align",
            Self::Scores => "scores",
            Self::DecodeClasses => "decode classes",
            Self::RankDetections => "rank",
        }
    }

    /// How many registers it reads.
    pub const fn arity(self) -> usize {
        match self {
            Self::Decode | Self::Suppress | Self::Unsettled | Self::Scores => 1,
            Self::TopAnchors | Self::KeepFirst | Self::RoiAlign | Self::DecodeClasses => 2,
            Self::RankDetections => 3,
        }
    }

    /// What input `j` has to be.
    pub const fn wants(self, j: usize) -> Kind {
        match (self, j) {
            (Self::TopAnchors | Self::Decode | Self::Scores, _)
            | (Self::DecodeClasses, 1)
            | (Self::RankDetections, 0) => Kind::Reduced,
            (Self::Unsettled, _) | (Self::KeepFirst, 1) => Kind::Bits,
            _ => Kind::Full,
        }
    }

    /// What it yields.
    pub const fn yields(self) -> Kind {
        match self {
            Self::TopAnchors | Self::Scores => Kind::Reduced,
            Self::Suppress => Kind::Bits,
            _ => Kind::Full,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Kind::{Bits, Full, Reduced};

    #[test]
    fn nothing_but_bits_serves_as_bits() {
        for (kind, wanted, serves) in [
            (Bits, Bits, true),
            (Full, Bits, false),
            (Reduced, Bits, false),
            (Bits, Full, true),
            (Reduced, Full, false),
            (Full, Reduced, true),
        ] {
            assert_eq!(kind.serves(wanted), serves, "{kind:?} as {wanted:?}");
        }
    }
}
