//! What `config.json` beside a model says: the task, the classes, and how pictures become inputs.

mod keys;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::detect;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::image::MAX_SAMPLES;

/// Bytes that a configuration may have.
const MAX_BYTES: u64 = 1 << 20;

/// What a network is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One label per picture.
    #[default]
    Classification,
    /// Boxes with labels and scores.
    Detection,
    /// A mask.
    Segmentation,
    /// The picture without its noise.
    Denoising,
    /// Numbers without further meaning.
    Other,
}

/// Which numbers of a pixel the network sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// (299 R + 587 G + 114 B) / 1000.
    Luma,
    /// Red, green, blue.
    Rgb,
}

impl Channels {
    /// Numbers per pixel.
    pub const fn count(self) -> usize {
        match self {
            Self::Luma => 1,
            Self::Rgb => 3,
        }
    }
}

/// How a picture of another size becomes one of the network's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// Separable triangle filter, antialiased when shrinking.
    Triangle,
    /// The mean of square blocks of this side; the picture has to have exactly the size that needs.
    BlockMean(usize),
}

/// From a picture to the network's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Numbers per pixel.
    pub channels: Channels,
    /// Rows and columns.
    pub size: [usize; 2],
    /// How they come about.
    pub resize: Resize,
    /// Factor from 0..255 to what the statistics refer to.
    pub scale: f64,
    /// Subtracted, per channel.
    pub mean: Vec<f64>,
    /// Divided by, per channel.
    pub std: Vec<f64>,
}

/// Everything about a network that is not in its graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// Name of the model.
    pub name: String,
    /// What it is for.
    pub task: Task,
    /// Names of the classes, in the order of the scores.
    pub classes: Vec<String>,
    /// How pictures become inputs; none for a network whose input is no picture.
    pub preprocess: Option<Preprocess>,
    /// Settings of a two-stage detector, if it is one.
    pub detection: Option<detect::Settings>,
}

/// The file as it is written.
#[derive(Deserialize)]
struct File {
    name: Option<String>,
    task: Option<String>,
    #[serde(default)]
    classes: Vec<String>,
    preprocess: Option<FilePreprocess>,
}

#[derive(Deserialize)]
struct FilePreprocess {
    channels: Option<String>,
    resize: Option<String>,
    input_size: Option<[usize; 2]>,
    block_mean: Option<usize>,
    source_size: Option<[usize; 2]>,
    scale: Option<f64>,
    mean: Option<Vec<f64>>,
    std: Option<Vec<f64>>,
}

impl Config {
    /// From the JSON text of `config.json`, completed by what the graph's input shows.
    ///
    /// # Errors
    ///
    /// If it is not understood or contradicts the graph.
    pub fn parse(text: &str, graph: &Graph) -> Result<Self> {
        let bad = |why: String| Error::Config(why);
        // Editors of some systems put a byte order mark in front.
        let text = text.trim_start_matches('\u{feff}');
        keys::check(text)?;
        let file: File = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
        let task = match file.task.as_deref() {
            None | Some("classification") => Task::Classification,
            Some("detection") => Task::Detection,
            Some("segmentation") => Task::Segmentation,
            Some("denoising") => Task::Denoising,
            Some("other") => Task::Other,
            Some(other) => return Err(bad(format!("task {other} is not known"))),
        };
        let name = file.name.unwrap_or_else(|| graph.name.clone());
        let default = Preprocess::for_input(&graph.input_shape);
        let preprocess = match (file.preprocess, default) {
            (Some(p), Some(default)) => Some(p.complete(default)?),
            (Some(_), None) if matches!(graph.input_shape[..], [_, _, 1 | 3, _]) => {
                let [n, h, w, c] = graph.input_shape[..] else { unreachable!("of four axes") };
                return Err(bad(format!(
                    "preprocess is for pictures, and the input has shape {:?}: if its last axis are colours, export \
                     with channels first, or put a Transpose in front",
                    [n, c, h, w]
                )));
            }
            // A graph that is one part of a model need not take pictures.
            (_, default) => default,
        };
        let config = Self { name, task, classes: file.classes, preprocess, detection: None };
        config.validate(&graph.input_shape)?;
        Ok(config)
    }

    /// From a file.
    ///
    /// # Errors
    ///
    /// As [`Config::parse`], and if it cannot be read.
    pub fn load(path: &Path, graph: &Graph) -> Result<Self> {
        Self::parse(&Self::read(path)?, graph)
    }

    /// The text of such a file, if it is not too large.
    pub(crate) fn read(path: &Path) -> Result<String> {
        let file = |source| Error::File { path: path.into(), source };
        let size = std::fs::metadata(path).map_err(file)?.len();
        if size > MAX_BYTES {
            return Err(Error::Limit {
                what: "the size of config.json".into(),
                found: size,
                allowed: MAX_BYTES,
            });
        }
        std::fs::read_to_string(path).map_err(file)
    }

    /// The JSON text that [`Config::parse`] reads.
    pub fn to_json(&self) -> String {
        let preprocess = self.preprocess.as_ref().map(|p| {
            let mut fields = serde_json::json!({
                "channels": match p.channels {
                    Channels::Luma => "luma",
                    Channels::Rgb => "RGB",
                },
                "input_size": p.size,
                "scale": p.scale,
                "mean": p.mean,
                "std": p.std,
            });
            match p.resize {
                Resize::Triangle => fields["resize"] = "triangle".into(),
                Resize::BlockMean(side) => fields["block_mean"] = side.into(),
            }
            fields
        });
        let file = serde_json::json!({
            "name": self.name,
            "task": self.task,
            "classes": self.classes,
            "preprocess": preprocess,
        });
        format!("{file:#}\n")
    }

    /// What can be said from the graph alone.
    pub fn guess(graph: &Graph) -> Self {
        let preprocess = Preprocess::for_input(&graph.input_shape);
        Self { name: graph.name.clone(), task: Task::Other, classes: Vec::new(), preprocess, detection: None }
    }

    /// Checks it against the input's shape.
    ///
    /// # Errors
    ///
    /// If they do not agree.
    pub fn validate(&self, input: &[usize]) -> Result<()> {
        if self.classes.len() > 1 << 16 || self.classes.iter().chain([&self.name]).any(|s| s.len() > 1 << 10)
        {
            return Err(Error::Config("too many or too long names".into()));
        }
        self.detection.as_ref().map_or(Ok(()), detect::Settings::validate)?;
        self.preprocess.as_ref().map_or(Ok(()), |p| p.validate(input))
    }
}

impl Preprocess {
    /// The smallest and largest number of each channel: black and white, in whichever order.
    pub fn range(&self) -> Vec<(f64, f64)> {
        let of = |(mean, std): (&f64, &f64)| {
            let (a, b) = ((0.0 - mean) / std, (255.0 * self.scale - mean) / std);
            (a.min(b), a.max(b))
        };
        self.mean.iter().zip(&self.std).map(of).collect()
    }

    /// Plain 0..1 numbers for a picture-like input.
    pub fn for_input(shape: &[usize]) -> Option<Self> {
        let &[1, h, w, c] = shape else { return None };
        let channels = match c {
            1 => Channels::Luma,
            3 => Channels::Rgb,
            _ => return None,
        };
        let (mean, std) = (vec![0.0; c], vec![1.0; c]);
        Some(Self { channels, size: [h, w], resize: Resize::Triangle, scale: 1.0 / 255.0, mean, std })
    }

    fn validate(&self, input: &[usize]) -> Result<()> {
        let bad = |why: String| Err(Error::Config(why));
        let c = self.channels.count();
        if input != [1, self.size[0], self.size[1], c] {
            return bad(format!(
                "pictures of {:?} with {c} channels for an input of shape {input:?}",
                self.size
            ));
        }
        if input.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).is_none_or(|n| n > MAX_SAMPLES) {
            return bad(format!("pictures of {:?}: at most {MAX_SAMPLES} numbers are accepted", self.size));
        }
        if self.mean.len() != c || self.std.len() != c {
            return bad(format!(
                "{} means and {} deviations for {c} channels",
                self.mean.len(),
                self.std.len()
            ));
        }
        if !self.mean.iter().chain(&self.std).chain([&self.scale]).all(|v| v.is_finite() && v.abs() < 1e6)
            || self.std.iter().any(|&s| s < 1e-9)
        {
            return bad("scale, mean or std out of range".into());
        }
        match self.resize {
            Resize::BlockMean(b) if !(1..=64).contains(&b) => bad(format!("block_mean {b} is not 1 to 64")),
            _ => Ok(()),
        }
    }
}

impl FilePreprocess {
    fn complete(self, default: Preprocess) -> Result<Preprocess> {
        let channels = match self.channels.as_deref() {
            None => default.channels,
            Some(s) if s.to_ascii_lowercase().starts_with("luma") => Channels::Luma,
            Some("RGB" | "rgb") => Channels::Rgb,
            Some(other) => return Err(Error::Config(format!("channels {other:?} are not known"))),
        };
        let resize = match (self.block_mean, self.resize.as_deref()) {
            (Some(b), _) => Resize::BlockMean(b),
            (None, None) => Resize::Triangle,
            (None, Some(s)) if s.starts_with("triangle") => Resize::Triangle,
            (None, Some(other)) => return Err(Error::Config(format!("resize {other:?} is not known"))),
        };
        let size = self.input_size.unwrap_or(default.size);
        if let (Resize::BlockMean(b), Some(source)) = (&resize, self.source_size)
            && size.map(|d| d.checked_mul(*b)) != source.map(Some)
        {
            return Err(Error::Config(format!(
                "preprocess.source_size is {source:?}, which is not input_size times block_mean"
            )));
        }
        Ok(Preprocess {
            channels,
            size,
            resize,
            scale: self.scale.unwrap_or(default.scale),
            mean: self.mean.unwrap_or(default.mean),
            std: self.std.unwrap_or(default.std),
        })
    }
}
