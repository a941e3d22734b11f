//! `.slm`, a prepared model in one file: a safetensors container with the folded weights as tensors
//! (`<node>.weight`, `<node>.bias`) and everything else as JSON in its metadata.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, View};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::graph::{Graph, Parameters};
use crate::model::read;
use crate::prepare::{Calibration, Prepared};

/// Version of the format.
const VERSION: u32 = 4;
/// Key of the JSON among the metadata.
const KEY: &str = "sharelens";

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    version: u32,
    config: Cow<'a, Config>,
    graph: Cow<'a, Graph>,
    calibration: Cow<'a, Calibration>,
}

/// A vector of floats as safetensors writes it.
struct Floats<'a> {
    values: &'a [f32],
    shape: [usize; 1],
}

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}

/// Name of a tensor of node `i`.
fn names(i: usize) -> [String; 2] {
    [format!("{i}.weight"), format!("{i}.bias")]
}

impl Prepared {
    /// The file's bytes; equal for equal models.
    ///
    /// # Errors
    ///
    /// If the container refuses the model.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let bad = |e: &dyn std::fmt::Display| Error::Prepared(e.to_string());
        let header = Header {
            version: VERSION,
            config: Cow::Borrowed(&self.config),
            graph: Cow::Borrowed(&self.graph),
            calibration: Cow::Borrowed(&self.calibration),
        };
        let json = serde_json::to_string(&header).map_err(|e| bad(&e))?;
        let mut tensors = Vec::new();
        for (i, node) in self.graph.nodes.iter().enumerate() {
            if let Some(Parameters { weight, bias }) = node.op.parameters() {
                let vectors = [weight, bias].into_iter().zip(names(i)).filter(|(v, _)| !v.is_empty());
                tensors
                    .extend(vectors.map(|(values, name)| (name, Floats { values, shape: [values.len()] })));
            }
        }
        safetensors::serialize(tensors, Some(HashMap::from([(KEY.to_owned(), json)]))).map_err(|e| bad(&e))
    }

    /// From the file's bytes, checked throughout.
    ///
    /// # Errors
    ///
    /// The first thing that does not hold together.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bad = |e: &dyn std::fmt::Display| Error::Prepared(e.to_string());
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| bad(&e))?;
        let json =
            metadata.metadata().as_ref().and_then(|m| m.get(KEY)).ok_or_else(|| {
                Error::Prepared("it is a safetensors file, but not a prepared model".into())
            })?;
        let header: Header<'_> = serde_json::from_str(json).map_err(|e| bad(&e))?;
        if header.version != VERSION {
            let found = header.version;
            return Err(Error::Prepared(format!(
                "version {found} of the format, this release reads version {VERSION}: prepare the model again"
            )));
        }
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| bad(&e))?;
        let floats = |name: &str| -> Result<Vec<f32>> {
            let Ok(t) = tensors.tensor(name) else { return Ok(Vec::new()) };
            if t.dtype() != Dtype::F32 {
                return Err(Error::Prepared(format!("tensor {name} is not of 32-bit floats")));
            }
            Ok(t.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        };
        let mut graph = header.graph.into_owned();
        let mut expected = 0;
        for (i, node) in graph.nodes.iter_mut().enumerate() {
            if let Some(p) = node.op.parameters_mut() {
                let [weight, bias] = names(i);
                *p = Parameters { weight: floats(&weight)?, bias: floats(&bias)? };
                expected += usize::from(!p.weight.is_empty()) + usize::from(!p.bias.is_empty());
            }
        }
        if tensors.len() != expected {
            return Err(Error::Prepared(format!("{} tensors, {expected} are used", tensors.len())));
        }
        graph.validate()?;
        let config = header.config.into_owned();
        config.validate(&graph.input_shape)?;
        let calibration = header.calibration.into_owned();
        let finite = |v: &f64| v.is_finite() && *v >= 0.0;
        if calibration.peaks.len() != graph.nodes.len() + 1
            || !calibration.peaks.iter().all(finite)
            || !(1.0..=1e6).contains(&calibration.margin)
            || !(1.0..=1e12).contains(&calibration.cap)
        {
            return Err(Error::Prepared("its calibration does not match its network".into()));
        }
        let prepared = Self { config, graph, calibration };
        prepared.manifest()?;
        Ok(prepared)
    }

    /// Writes the file.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.to_bytes()?).map_err(|source| Error::File { path: path.into(), source })
    }

    /// Reads a file, checked throughout.
    ///
    /// # Errors
    ///
    /// As [`Prepared::from_bytes`].
    pub fn load(path: &Path) -> Result<Self> {
        Self::from_bytes(&read(path)?)
    }
}
