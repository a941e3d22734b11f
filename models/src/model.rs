//! A network as imported, with what is known about it.

use std::path::Path;

use crate::config::{Config, Task};
use crate::detect;
use crate::error::{Error, Result};
use crate::finish::Function;
use crate::graph::{Graph, Op};
use crate::image::Picture;
use crate::onnx;

/// An imported network.
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) graph: Graph,
    pub(crate) config: Config,
}

impl Model {
    /// From an ONNX file and its `config.json`, by default the one beside it; or from the directory of a
    /// detector, with `rpn.onnx`, `box_head.onnx` and `config.json`.
    ///
    /// # Errors
    ///
    /// See [`onnx::import`], [`Config::load`] and [`Model::detector`].
    pub fn import(path: &Path, config: Option<&Path>) -> Result<Self> {
        if path.is_dir() {
            let beside = path.join("config.json");
            let text = Config::read(config.unwrap_or(&beside))?;
            return Self::detector(
                &read_onnx(&path.join("rpn.onnx"))?,
                &read_onnx(&path.join("box_head.onnx"))?,
                &text,
            );
        }
        let graph = onnx::import(&read_onnx(path)?)?;
        let beside = path.with_file_name("config.json");
        let config = match config {
            Some(c) => Config::load(c, &graph)?,
            None if beside.exists() => Config::load(&beside, &graph)?,
            None => Config::guess(&graph),
        };
        Self { graph, config }.named()
    }

    /// Checks that there are as many names as classes.
    fn named(self) -> Result<Self> {
        let (names, output) = (self.config.classes.len(), &self.graph.outputs[0]);
        let sigmoid = output.finish.as_ref().is_some_and(|f| f.function == Function::Sigmoid);
        let classes = match self.config.task {
            // Of one picture of a batch.
            Task::Classification => output.original_shape.iter().skip(1).product(),
            Task::Segmentation => output.original_shape.get(1).copied().unwrap_or(1),
            _ => return Ok(self),
        };
        // One number may tell two classes apart.
        let binary = classes == 1 && names == 2 && (sigmoid || self.config.task == Task::Segmentation);
        if names != 0 && names != classes && !binary {
            return Err(Error::Config(format!(
                "classes has {names} names, and the network tells {classes} classes apart"
            )));
        }
        Ok(self)
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
        Self { graph, config }.named()
    }

    /// A two-stage detector: `rpn` yields features, logits and deltas, `head` takes the features of proposals and
    /// yields class logits and box deltas, and `config` holds anchors, thresholds and preprocessing.
    ///
    /// # Errors
    ///
    /// As [`Model::import`], and if the parts do not fit together.
    pub fn detector(rpn: &[u8], head: &[u8], config: &str) -> Result<Self> {
        let (first, head) = (onnx::import(rpn)?, onnx::import(head)?);
        let mut parsed = Config::parse(config, &first)?;
        let settings = detect::Settings::parse(config)?;
        let classes = head.outputs.iter().map(|o| head.len(o.value)).min().unwrap_or(0)
            / head.input_shape.first().copied().unwrap_or(1).max(1);
        let names = parsed.classes.len();
        if names != 0 && names != classes {
            return Err(Error::Config(format!(
                "classes has {names} names, the background among them, and the box head tells {classes} classes apart"
            )));
        }
        let graph = detect::compose::compose(first, &head, &settings)?;
        parsed.task = Task::Detection;
        parsed.detection = Some(settings);
        Ok(Self { graph, config: parsed })
    }

    /// Gives both suppressions of a detector this many steps; as many as they have rows are always enough.
    ///
    /// # Errors
    ///
    /// If this is no detector, or without any step.
    pub fn set_suppression_steps(&mut self, steps: usize) -> Result<()> {
        let Some(settings) = &mut self.config.detection else {
            return Err(Error::Config("steps of suppression are for detectors, and this is none".into()));
        };
        if steps == 0 {
            return Err(Error::Config("suppression takes at least one step".into()));
        }
        for i in 0..self.graph.nodes.len() {
            let rows = match self.graph.nodes[i].op {
                Op::Detect(detect::Stage::Suppress { .. }) => self.graph.nodes[i].shape[1],
                Op::Detect(detect::Stage::Unsettled { .. }) => {
                    self.graph.shape(self.graph.nodes[i].inputs[0])[1]
                }
                _ => continue,
            };
            if let Op::Detect(
                detect::Stage::Suppress { steps: own, .. } | detect::Stage::Unsettled { steps: own },
            ) = &mut self.graph.nodes[i].op
            {
                *own = steps.min(rows.max(2));
            }
        }
        (settings.rpn.steps, settings.head.steps) = (steps, steps);
        Ok(())
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

/// An ONNX file with its weights, if it is not too large: what lies in other files beside it is put into one.
///
/// # Errors
///
/// [`Error::File`], [`Error::Limit`], or what is wrong with the weights.
pub fn read_onnx(path: &Path) -> Result<Vec<u8>> {
    onnx::external::inline(read(path)?, path.parent().unwrap_or(Path::new(".")))
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
