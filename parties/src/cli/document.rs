//! The document of one picture, as `--json` prints it and files keep it.

use std::path::Path;

use serde::Serialize;
use sharelens::outcome::{Difference, Outcome, Ranges, Warning};
use sharelens::report::{self, CostReport, Total};
use sharelens::{Pin, Result};
use sharelens_models::Manifest;

use super::{Mode, show};

/// What `infer`, `plain` and `demo` say of one picture. What a command does not know is left out.
#[derive(Debug, Serialize)]
pub struct Document {
    /// Which model ran.
    pub model: String,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The key of whoever shared it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Pin>,
    /// Where correlations came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Which arithmetic.
    pub ring: &'static str,
    /// The file.
    pub image: String,
    /// Whether all numbers that were looked at stayed in the range in which they can be trusted. If not, the result must
    /// not be relied on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_range: Option<bool>,
    /// The same by layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ranges: Option<Ranges>,
    /// What the model says.
    pub result: Outcome,
    /// The same by the bit-exact reference in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain: Option<Outcome>,
    /// The same by floats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub float: Option<Outcome>,
    /// How far the result is from the reference in the clear.
    #[serde(flatten)]
    pub difference: Option<Difference>,
    /// Rounds, bytes and seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostReport>,
    /// What the links would add elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wan: Option<Total>,
}

impl Document {
    /// What to know before relying on it; the result's own warnings are in its text.
    pub fn warnings(&self) -> Vec<Warning> {
        let ranges = self.ranges.clone().filter(|ranges| !ranges.in_range());
        ranges.map(Warning::OutOfRange).into_iter().collect()
    }

    /// With the result of `outputs` alone.
    pub fn new(manifest: &Manifest, image: &Path, outputs: &[Vec<f64>]) -> Result<Self> {
        Ok(Self {
            model: manifest.config.name.clone(),
            version: None,
            owner: None,
            mode: None,
            ring: report::ring(manifest),
            image: show(image),
            in_range: None,
            ranges: None,
            result: Outcome::new(manifest, outputs)?,
            plain: None,
            float: None,
            difference: None,
            cost: None,
            wan: None,
        })
    }
}
