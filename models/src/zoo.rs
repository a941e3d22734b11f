//! Well-known networks of ImageNet size, written as ONNX files with random weights of trained proportions.
//!
//! What inference costs depends on shapes alone, and how precise it is on ranges; neither needs a training run.
//! Convolutions start as He and others (ICCV 2015) start them; the statistics of each batch normalisation are
//! those of the numbers that reach it for a few pictures, layer by layer, and the last layer is scaled to
//! logits of the usual spread. So every range is one that training would keep, too. The bytes go through
//! [`crate::onnx::import`] like anybody's model.
//!
//! ```
//! use sharelens_models::zoo::{self, Network};
//! use sharelens_models::prepare;
//!
//! # fn main() -> sharelens_models::Result<()> {
//! let built = zoo::build("lenet5".parse::<Network>()?, &zoo::Options::default())?;
//! let (prepared, report) = prepare(&built.model()?, &built.calibration, &built.options)?;
//! assert_eq!(prepared.plain(&built.calibration[0])?[0].len(), 10);
//! assert!(report.error <= built.options.tolerance);
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::str::FromStr;

use prost::Message;

use crate::config::{Channels, Config, Preprocess, Resize, Task};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::onnx;
use crate::prepare;

mod architectures;
mod builder;
mod measure;
mod pictures;
mod random;

use pictures::Purpose;

/// Rows and columns that a network may be built for.
pub const MAX_SIDE: usize = 1024;
/// Pictures that one input may hold: as many as import accepts at the usual sides.
pub const MAX_BATCH: usize = 32;
/// Classes that a classifier may have.
pub const MAX_CLASSES: usize = 1 << 15;

/// Largest error of an output that preparation accepts, over the spread of the outputs. Weights of 16 bits leave
/// half of this in the deepest networks.
const TOLERANCE: f64 = 0.02;

/// A network that can be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Network {
    /// LeCun and others, Proc. IEEE 1998, with ReLU and max-pools; 28x28, one channel.
    LeNet5,
    /// He and others, CVPR 2016.
    ResNet18,
    /// The same, deeper.
    ResNet34,
    /// The same, of bottlenecks, with strides in their 3x3 convolutions.
    ResNet50,
    /// Simonyan and Zisserman, ICLR 2015, configuration D.
    Vgg16,
    /// Its convolutions and pools alone.
    Vgg16Features,
    /// Sandler and others, CVPR 2018.
    MobileNetV2,
    /// Huang and others, CVPR 2017.
    DenseNet121,
    /// Ronneberger and others, MICCAI 2015, padded and with batch normalisation, 32 to 512 channels, one mask.
    UNet,
    /// Zhang and others, IEEE TIP 2017: 17 layers of 64 channels, one channel of grey.
    DnCnn,
}

impl Network {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::LeNet5,
        Self::ResNet18,
        Self::ResNet34,
        Self::ResNet50,
        Self::Vgg16,
        Self::Vgg16Features,
        Self::MobileNetV2,
        Self::DenseNet121,
        Self::UNet,
        Self::DnCnn,
    ];

    /// The name that [`FromStr`] takes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::LeNet5 => "lenet5",
            Self::ResNet18 => "resnet18",
            Self::ResNet34 => "resnet34",
            Self::ResNet50 => "resnet50",
            Self::Vgg16 => "vgg16",
            Self::Vgg16Features => "vgg16-features",
            Self::MobileNetV2 => "mobilenetv2",
            Self::DenseNet121 => "densenet121",
            Self::UNet => "unet",
            Self::DnCnn => "dncnn",
        }
    }

    /// Rows and columns of its pictures, if nothing else is asked for.
    pub const fn side(self) -> usize {
        match self {
            Self::LeNet5 => 28,
            Self::UNet => 256,
            Self::DnCnn => 128,
            _ => 224,
        }
    }

    /// What a side has to be a multiple of.
    pub const fn unit(self) -> usize {
        match self {
            Self::LeNet5 => 4,
            Self::DnCnn => 1,
            _ => 16,
        }
    }

    /// The smallest side: from there on something is left of a picture after all halvings.
    pub const fn least_side(self) -> usize {
        match self {
            Self::LeNet5 | Self::UNet | Self::DnCnn => 16,
            _ => 32,
        }
    }

    /// What it is for.
    pub const fn task(self) -> Task {
        match self {
            Self::Vgg16Features => Task::Other,
            Self::UNet => Task::Segmentation,
            Self::DnCnn => Task::Denoising,
            _ => Task::Classification,
        }
    }

    /// Its classes, if nothing else is asked for; none unless it is a classifier.
    pub const fn classes(self) -> usize {
        match (self, self.task()) {
            (Self::LeNet5, _) => 10,
            (_, Task::Classification) => 1000,
            _ => 0,
        }
    }

    /// Standard deviation that the output of the last linear layer is brought to.
    const fn spread(self) -> f64 {
        match self {
            // Noise of 25 grey values.
            Self::DnCnn => 25.0 / 255.0,
            Self::Vgg16Features => 1.0,
            _ => 2.0,
        }
    }

    fn preprocess(self, side: usize) -> Preprocess {
        let (channels, mean, std) = match self {
            Self::LeNet5 => (Channels::Luma, vec![0.1307], vec![0.3081]),
            Self::DnCnn => (Channels::Luma, vec![0.0], vec![1.0]),
            _ => (Channels::Rgb, vec![0.485, 0.456, 0.406], vec![0.229, 0.224, 0.225]),
        };
        Preprocess { channels, size: [side; 2], resize: Resize::Triangle, scale: 1.0 / 255.0, mean, std }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Network {
    type Err = Error;

    /// By name; capitals, dashes and underscores make no difference.
    fn from_str(s: &str) -> Result<Self> {
        let plain = |s: &str| s.replace(['-', '_'], "").to_ascii_lowercase();
        let found = Self::ALL.into_iter().find(|n| plain(n.name()) == plain(s));
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::Config(format!("no network is named {:.40}; there are {names}", s.escape_default()))
        })
    }
}

/// What to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Rows and columns of the input; those that are usual for the network, if none are given.
    pub side: Option<usize>,
    /// Pictures per input.
    pub batch: usize,
    /// Decides weights and made-up pictures.
    pub seed: u64,
    /// Classes of a classifier; as many as are usual, if none are given.
    pub classes: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { side: None, batch: 1, seed: 1, classes: None }
    }
}

/// A network that was built.
#[derive(Clone, Debug)]
pub struct Built {
    /// Which one.
    pub network: Network,
    /// The ONNX file; input `image`, `[batch, channels, side, side]`.
    pub onnx: Vec<u8>,
    /// Task, classes and, for single pictures, preprocessing.
    pub config: Config,
    /// Inputs to calibrate on, `[batch, side, side, channels]`.
    pub calibration: Vec<Vec<f32>>,
    /// How to prepare it: the tolerance goes by the spread of its outputs.
    pub options: prepare::Options,
    preprocess: Preprocess,
    batch: usize,
}

impl Built {
    /// The network as imported.
    ///
    /// # Errors
    ///
    /// If it is beyond the limits of import.
    pub fn model(&self) -> Result<Model> {
        let graph = onnx::import(&self.onnx)?;
        self.config.validate(&graph.input_shape)?;
        Ok(Model { graph, config: self.config.clone() })
    }

    /// The text of its `config.json`.
    pub fn config_json(&self) -> String {
        self.config.to_json()
    }

    /// Other inputs, `[batch, side, side, channels]`: what calibration has not seen.
    ///
    /// # Errors
    ///
    /// If a picture cannot be decoded, which would be a mistake of this crate.
    pub fn inputs(&self, count: usize, seed: u64) -> Result<Vec<Vec<f32>>> {
        pictures::inputs(&self.preprocess, self.batch, count, seed, Purpose::Trial)
    }
}

/// Builds a network, measuring its statistics on a few pictures.
///
/// # Errors
///
/// [`Error::Config`] if the options are beyond what the network or this machine can take.
pub fn build(network: Network, options: &Options) -> Result<Built> {
    let Options { batch, seed, .. } = *options;
    let side = options.side.unwrap_or(network.side());
    let (unit, least) = (network.unit(), network.least_side());
    if !side.is_multiple_of(unit) || !(least..=MAX_SIDE).contains(&side) {
        return Err(Error::Config(format!(
            "{network} takes sides from {least} to {MAX_SIDE} in steps of {unit}, not {side}"
        )));
    }
    if !(1..=MAX_BATCH).contains(&batch) {
        return Err(Error::Config(format!("a batch of {batch}; 1 to {MAX_BATCH} are possible")));
    }
    let classes = match (network.task(), options.classes) {
        (Task::Classification, Some(c)) if (2..=MAX_CLASSES).contains(&c) => c,
        (_, None) => network.classes(),
        (_, Some(c)) => return Err(Error::Config(format!("{network} cannot have {c} classes"))),
    };
    let preprocess = network.preprocess(side);
    let plan = architectures::plan(network, side, classes, seed);
    let mut plan = measure::fit(plan, network.spread(), &preprocess, seed)?;
    plan.set_batch(batch);
    let onnx = plan.model().encode_to_vec();
    drop(plan);
    let calibration =
        pictures::inputs(&preprocess, batch, pictures::CALIBRATION, seed, Purpose::Calibration)?;
    let config = Config {
        name: network.name().into(),
        task: network.task(),
        classes: (0..classes).map(|i| format!("class {i}")).collect(),
        preprocess: (batch == 1).then(|| preprocess.clone()),
        detection: None,
    };
    let tolerance = match network {
        // One grey value.
        Network::DnCnn => 1.0 / 255.0,
        _ => TOLERANCE * network.spread(),
    };
    let options = prepare::Options { tolerance, ..prepare::Options::default() };
    Ok(Built { network, onnx, config, calibration, options, preprocess, batch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for network in Network::ALL {
            assert_eq!(network.to_string().parse::<Network>().expect("known"), network);
        }
        assert_eq!("ResNet-18".parse::<Network>().expect("known"), Network::ResNet18);
        assert!("resnet19".parse::<Network>().unwrap_err().to_string().contains("resnet18"));
    }

    #[test]
    fn impossible_wishes_are_refused() {
        let lenet = |options: Options| build(Network::LeNet5, &options).map(|_| ()).unwrap_err().to_string();
        let usual = Options::default;
        assert!(lenet(Options { side: Some(30), ..usual() }).contains("steps of 4"));
        assert!(lenet(Options { side: Some(1 << 40), ..usual() }).contains("1024"));
        assert!(lenet(Options { batch: 0, ..usual() }).contains("batch"));
        assert!(lenet(Options { classes: Some(0), ..usual() }).contains("0 classes"));
        let masks = build(Network::UNet, &Options { classes: Some(3), ..usual() }).map(|_| ());
        assert!(masks.unwrap_err().to_string().contains("classes"));
    }

    #[test]
    fn one_seed_is_one_network() {
        let bytes =
            |seed| build(Network::LeNet5, &Options { seed, ..Options::default() }).expect("builds").onnx;
        assert_eq!(bytes(3), bytes(3));
        assert_ne!(bytes(3), bytes(4));
    }
}
