//! What is measured: a model with an input, from a file or from what comes along.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use sharelens_models::config::Preprocess;
use sharelens_models::image::Picture;
use sharelens_models::{
    Arithmetic, Manifest, Model, Options as Prepare, Prepared, Twin, calibrate, prepare, zoo,
};
use sharelens_ops::plain::Weights;

use crate::cli::shipped::{self, Shipped};
use crate::cli::{Ui, model, show};

/// Something to run.
pub struct Subject {
    /// What it is called in reports and comparisons.
    pub name: String,
    /// What is public about it.
    pub manifest: Manifest,
    /// Its secret weights.
    pub weights: Arc<Vec<Weights>>,
    /// What it is run on, in storage order.
    pub input: Vec<f32>,
    /// What the twin in the clear yields.
    pub plain: Vec<Vec<f64>>,
    /// What floats yield, for a network.
    pub float: Option<Vec<Vec<f64>>>,
    /// The network as a file, for other runtimes.
    pub onnx: Option<Vec<u8>>,
    /// Whether it is a single operation.
    pub operation: bool,
}

/// How a model and its input come about.
#[derive(Debug, Args)]
pub struct Options {
    /// Rows and columns of a well-known network's input [default: as usual for it].
    #[arg(long)]
    side: Option<usize>,
    /// Pictures per input of a well-known network.
    #[arg(long)]
    batch: Option<usize>,
    /// Classes and preprocessing of an ONNX file [default: config.json beside it].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Images to calibrate an ONNX file with [default: synthetic inputs].
    #[arg(long, value_name = "DIR")]
    calibrate: Option<PathBuf>,
    /// Image to run on [default: one that comes along, or a synthetic input].
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// ONNX file of a prepared model, for plain float inference.
    #[arg(long, value_name = "FILE")]
    onnx: Option<PathBuf>,
    /// Where to keep the prepared model and to look for it the next time.
    #[arg(long, value_name = "FILE.slm")]
    keep: Option<PathBuf>,
}

/// A network that is not prepared yet.
struct Network {
    name: String,
    model: Model,
    onnx: Option<Vec<u8>>,
    calibration: Vec<Vec<f32>>,
    input: Vec<f32>,
    /// How to prepare it.
    how: Prepare,
}

/// The model called `name`: a file, or one that comes along.
pub fn model(name: &str, options: &Options, arithmetic: Option<&Arithmetic>, ui: Ui) -> Result<Subject> {
    let path = Path::new(name);
    let ends = |e: &str| path.extension().is_some_and(|x| x.eq_ignore_ascii_case(e));
    let shipped = shipped::ALL.into_iter().find(|s| s.name == name);
    let fixed = ends("slm") || ends("onnx") || shipped.is_some();
    if fixed && (options.side.is_some() || options.batch.is_some()) {
        bail!("--side and --batch are for well-known networks; {name} has its shape");
    }
    if ends("slm") {
        let prepared = model::load(path)?;
        let onnx = options
            .onnx
            .as_ref()
            .map(|f| sharelens_models::model::read_onnx(f).with_context(|| show(f)))
            .transpose()?;
        let input =
            options.input(prepared.config().preprocess.as_ref(), &prepared.graph().input_shape, None)?;
        return subject(stem(path), &prepared, onnx, input, arithmetic);
    }
    let bar = ui.progress(1, "building");
    let network = match shipped {
        _ if ends("onnx") => options.file(path)?,
        Some(shipped) => options.shipped(shipped)?,
        None => options.zoo(name)?,
    };
    bar.finish_and_clear();
    let prepared = options.prepared(&network, arithmetic, ui)?;
    subject(network.name, &prepared, network.onnx, network.input, arithmetic)
}

impl Options {
    fn file(&self, path: &Path) -> Result<Network> {
        let model = Model::import(path, self.config.as_deref()).with_context(|| show(path))?;
        let onnx = Some(sharelens_models::model::read_onnx(path).with_context(|| show(path))?);
        let (preprocess, shape) = (model.config().preprocess.as_ref(), &model.graph().input_shape);
        let calibration = match &self.calibrate {
            Some(dir) => model::inputs(preprocess, dir)?,
            None => synthetic(preprocess, shape),
        };
        let input = self.input(preprocess, shape, calibration.first().cloned())?;
        let how = Prepare { stress: self.calibrate.is_some(), ..Prepare::default() };
        Ok(Network { name: stem(path), onnx, calibration, input, model, how })
    }

    fn shipped(&self, shipped: &Shipped) -> Result<Network> {
        let (model, calibration) = (shipped.network()?, shipped.calibration()?);
        let preprocess = model.config().preprocess.as_ref();
        let usual = model.input(&Picture::decode(shipped.image.1)?)?;
        let input = self.input(preprocess, &model.graph().input_shape, Some(usual))?;
        let (name, onnx) = (shipped.name.into(), shipped.onnx().map(<[u8]>::to_vec));
        let how = Prepare::default();
        Ok(Network { name, onnx, calibration, input, model, how })
    }

    /// A well-known network with random weights, `NAME` or `NAME:SIDE`.
    fn zoo(&self, name: &str) -> Result<Network> {
        let (word, side) = match name.split_once(':') {
            None => (name, self.side),
            Some((word, side)) => (
                word,
                Some(side.parse().map_err(|_| anyhow::anyhow!("{side:?} is no side, as in resnet18:64"))?),
            ),
        };
        let network: zoo::Network = word.parse().map_err(|e| {
            let along = shipped::ALL.map(|s| s.name).join(" or ");
            anyhow::anyhow!("{name:?} is no .slm or .onnx file, and not {along}; {e}")
        })?;
        let batch = self.batch.unwrap_or(1);
        let built = zoo::build(network, &zoo::Options { side, batch, ..zoo::Options::default() })?;
        let model = built.model()?;
        let usual = built.inputs(1, 1)?.pop();
        let input = self.input(model.config().preprocess.as_ref(), &model.graph().input_shape, usual)?;
        let batch = if batch == 1 { String::new() } else { format!(" batch {batch}") };
        let name = format!("{network}:{}{batch}", side.unwrap_or(network.side()));
        Ok(Network {
            name,
            onnx: Some(built.onnx),
            calibration: built.calibration,
            input,
            model,
            how: built.options,
        })
    }

    /// The input: the picture given, or `usual`, or a synthetic one.
    fn input(&self, p: Option<&Preprocess>, shape: &[usize], usual: Option<Vec<f32>>) -> Result<Vec<f32>> {
        match (&self.image, usual) {
            (Some(file), _) => model::input(p, file),
            (None, Some(usual)) => Ok(usual),
            (None, None) => synthetic(p, shape).pop().context("no input"),
        }
    }

    fn prepared(&self, network: &Network, arithmetic: Option<&Arithmetic>, ui: Ui) -> Result<Prepared> {
        if let Some(file) = self.keep.as_ref().filter(|f| f.exists()) {
            let prepared = model::load(file)?;
            if prepared.graph().input_shape != network.model.graph().input_shape {
                bail!("{}: is another model than {}", show(file), network.name);
            }
            return Ok(prepared);
        }
        let bar = ui.progress(1, "preparing");
        // Z_2^64 has room for everything; the moduli are chosen all the same, for files that are kept.
        let wanted = arithmetic.filter(|a| **a != Arithmetic::Z64).cloned();
        let how = Prepare { arithmetic: wanted, ..network.how.clone() };
        let (prepared, _) = prepare(&network.model, &network.calibration, &how)?;
        bar.finish_and_clear();
        if let Some(file) = &self.keep {
            prepared.save(file).with_context(|| show(file))?;
        }
        Ok(prepared)
    }
}

fn subject(
    name: String,
    prepared: &Prepared,
    onnx: Option<Vec<u8>>,
    input: Vec<f32>,
    arithmetic: Option<&Arithmetic>,
) -> Result<Subject> {
    let arithmetic = arithmetic.unwrap_or(prepared.arithmetic());
    let (manifest, weights) = (prepared.manifest_for(arithmetic)?, prepared.quantised(arithmetic)?);
    let float = Some(prepared.float(&input)?);
    Subject { name, manifest, weights, input, plain: Vec::new(), float, onnx, operation: false }.with_twin()
}

impl Subject {
    /// With the result of the twin.
    pub fn with_twin(mut self) -> Result<Self> {
        self.plain = Twin::new(self.manifest.clone(), self.weights.clone())?.run(&self.input)?;
        Ok(self)
    }
}

/// Inputs of a network that nobody gave any for: black, white, grey, checkerboards and noise, or noise alone.
fn synthetic(preprocess: Option<&Preprocess>, shape: &[usize]) -> Vec<Vec<f32>> {
    match preprocess {
        Some(p) => calibrate::stress(p, &[]),
        None => (1..=4).map(|seed| noise(shape.iter().product(), seed)).collect(),
    }
}

/// Uniform in -1..1 from a fixed congruential sequence: the same on every machine.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
