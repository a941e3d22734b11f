//! The models and the pictures that come with the program.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sharelens_models::image::Picture;
use sharelens_models::{Model, Options, Prepared};

macro_rules! data {
    ($file:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/data/", $file)).as_slice()
    };
}

/// A model with what is needed to show it.
#[derive(Debug)]
pub struct Shipped {
    /// What it is called.
    pub name: &'static str,
    /// One graph, or those before and behind the proposals of a detector.
    graphs: &'static [&'static [u8]],
    config: &'static [u8],
    /// A picture that was not used in training.
    pub image: (&'static str, &'static [u8]),
    calibration: &'static [&'static [u8]],
}

/// A classifier of brain MRI slices.
pub const CLASSIFIER: Shipped = Shipped {
    name: "brain_mri_cnn",
    graphs: &[data!("brain_mri_cnn/model.onnx")],
    config: data!("brain_mri_cnn/config.json"),
    image: ("pituitary-p_230.jpg", data!("brain_mri/pituitary-p_230.jpg")),
    calibration: &[
        data!("brain_mri/glioma-gg_218.jpg"),
        data!("brain_mri/glioma-gg_519.jpg"),
        data!("brain_mri/meningioma-m1_165.jpg"),
        data!("brain_mri/meningioma-m3_92.jpg"),
        data!("brain_mri/no_tumor-image_39.jpg"),
        data!("brain_mri/no_tumor-image_165.jpg"),
        data!("brain_mri/pituitary-p_230.jpg"),
        data!("brain_mri/pituitary-p_677.jpg"),
    ],
};

/// A detector of blood cells.
pub const DETECTOR: Shipped = Shipped {
    name: "bccd_frcnn",
    graphs: &[data!("bccd_frcnn/rpn.onnx"), data!("bccd_frcnn/box_head.onnx")],
    config: data!("bccd_frcnn/config.json"),
    image: ("BloodImage_00007.jpg", data!("bccd/BloodImage_00007.jpg")),
    calibration: &[
        data!("bccd/BloodImage_00007.jpg"),
        data!("bccd/BloodImage_00062.jpg"),
        data!("bccd/BloodImage_00065.jpg"),
    ],
};

/// Everything that comes along.
pub const ALL: [&Shipped; 2] = [&CLASSIFIER, &DETECTOR];

impl Shipped {
    /// Writes the picture to `dir`.
    pub fn image(&self, dir: &Path) -> Result<PathBuf> {
        let file = dir.join(self.image.0);
        std::fs::write(&file, self.image.1).with_context(|| file.display().to_string())?;
        Ok(file)
    }

    /// The network as one ONNX file, if it is one.
    pub const fn onnx(&self) -> Option<&'static [u8]> {
        match self.graphs {
            &[graph] => Some(graph),
            _ => None,
        }
    }

    /// The model as imported.
    pub fn network(&self) -> Result<Model> {
        let config = std::str::from_utf8(self.config).context("config.json")?;
        Ok(match self.graphs {
            [rpn, head] => Model::detector(rpn, head, config)?,
            graphs => Model::from_bytes(graphs.first().context("no graph")?, Some(config))?,
        })
    }

    /// What to calibrate it with.
    pub fn calibration(&self) -> Result<Vec<Vec<f32>>> {
        let model = self.network()?;
        let one = |bytes: &&[u8]| model.input(&Picture::decode(bytes)?);
        Ok(self.calibration.iter().map(one).collect::<Result<_, _>>()?)
    }

    /// The model, prepared with all pictures and stress inputs.
    pub fn model(&self) -> Result<Prepared> {
        Ok(sharelens_models::prepare(&self.network()?, &self.calibration()?, &Options::default())?.0)
    }
}
