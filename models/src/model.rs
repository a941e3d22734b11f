//! A network as imported, with what is known about it.

use std::path::Path;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::image::Picture;
use crate::onnx;

/// An imported network.
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) graph: Graph,
    pub(crate) config: Config,
}

impl Model {
    /// From an ONNX file and its `config.json`, by default the one beside it.
    ///
    /// # Errors
    ///
    /// See [`onnx::import`] and [`Config::load`].
    pub fn import(path: &Path, config: Option<&Path>) -> Result<Self> {
        let graph = onnx::import(&read(path)?)?;
        let beside = path.with_file_name("config.json");
        let config = match config {
            Some(c) => Config::load(c, &graph)?,
            None if beside.exists() => Config::load(&beside, &graph)?,
            None => Config::guess(&graph),
        };
        Ok(Self { graph, config })
    }

    /// From the bytes of both files.
    ///
    /// # Errors
    ///
    /// As [`Model::import`].
    pub fn from_bytes(onnx: &[u8], config: Option<&str>) -> Result<Self> {
        let graph = onnx::import(onnx)?;
        let config = match config {
            Some(text) => Config::parse(text, &graph)?,
            None => Config::guess(&graph),
        };
        Ok(Self { graph, config })
    }

    /// The network as imported.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Name, task, classes, preprocessing.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A picture as the network's input.
    ///
    /// # Errors
    ///
    /// If this network does not take pictures, or not this one.
    pub fn input(&self, picture: &Picture) -> Result<Vec<f32>> {
        let p = self.config.preprocess.as_ref();
        picture.input(p.ok_or_else(|| Error::Image("this network does not take pictures".into()))?)
    }
}

/// A model file, if it is not too large.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let file = |source| Error::File { path: path.into(), source };
    let size = std::fs::metadata(path).map_err(file)?.len();
    if size > onnx::MAX_FILE {
        let what = "the size of the file in bytes".into();
        return Err(Error::Limit { what, found: size, allowed: onnx::MAX_FILE });
    }
    std::fs::read(path).map_err(file)
}
