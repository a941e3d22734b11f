//! Which ring a model runs in.

use serde::{Deserialize, Serialize};
use sharelens_ops::plain::Bounds;
use sharelens_protocol::ring::{Moduli, Rns};

use crate::error::{Error, Result};

/// A ring and what a rescale divides by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arithmetic {
    /// The residue number system of these moduli.
    Rns(Moduli),
    /// Z_2^64 with rescaling by 2^16.
    Z64,
}

/// Bits that a rescale removes in Z_2^64.
pub const Z64_FRACTION_BITS: u32 = 16;

impl Arithmetic {
    /// The usual moduli, `k` for comparisons and `l` for scales.
    ///
    /// # Errors
    ///
    /// If there are no such moduli.
    pub fn usual(k: usize, l: usize) -> Result<Self> {
        Ok(Self::Rns(Moduli::usual(k, l)?))
    }

    /// What is representable.
    ///
    /// # Errors
    ///
    /// If the moduli are not usable.
    pub fn bounds(&self) -> Result<Bounds> {
        match self {
            Self::Rns(m) => {
                Rns::new(m.clone())?;
                Bounds::rns(&m.p, &m.q).ok_or_else(|| Error::Manifest(format!("moduli {m:?} are not usable")))
            }
            Self::Z64 => Ok(Bounds::z64(Z64_FRACTION_BITS)),
        }
    }

    /// Bytes per element where products live.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Rns(m) => m.p.len() + m.q.len(),
            Self::Z64 => 8,
        }
    }
}

impl std::fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rns(m) => write!(f, "moduli {:?} for comparisons and {:?} for scales", m.p, m.q),
            Self::Z64 => write!(f, "Z_2^64"),
        }
    }
}
