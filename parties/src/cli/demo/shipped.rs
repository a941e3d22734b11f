//! The model and the pictures that come with the program.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sharelens_models::image::Picture;
use sharelens_models::{Model, Options, Prepared};

macro_rules! data {
    ($file:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/data/", $file)).as_slice()
    };
}

/// A tumour slice that was not used in training.
pub const IMAGE: (&str, &[u8]) = ("pituitary-p_230.jpg", data!("brain_mri/pituitary-p_230.jpg"));

const CALIBRATION: [&[u8]; 8] = [
    data!("brain_mri/glioma-gg_218.jpg"),
    data!("brain_mri/glioma-gg_519.jpg"),
    data!("brain_mri/meningioma-m1_165.jpg"),
    data!("brain_mri/meningioma-m3_92.jpg"),
    data!("brain_mri/no_tumor-image_39.jpg"),
    data!("brain_mri/no_tumor-image_165.jpg"),
    data!("brain_mri/pituitary-p_230.jpg"),
    data!("brain_mri/pituitary-p_677.jpg"),
];

/// Writes the picture to `dir`.
pub fn image(dir: &Path) -> Result<PathBuf> {
    let file = dir.join(IMAGE.0);
    std::fs::write(&file, IMAGE.1).with_context(|| file.display().to_string())?;
    Ok(file)
}

/// The classifier, prepared with all pictures and stress inputs.
pub fn model() -> Result<Prepared> {
    let config = std::str::from_utf8(data!("brain_mri_cnn/config.json")).context("config.json")?;
    let model = Model::from_bytes(data!("brain_mri_cnn/model.onnx"), Some(config))?;
    let samples = CALIBRATION
        .iter()
        .map(|bytes| model.input(&Picture::decode(bytes)?))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(sharelens_models::prepare(&model, &samples, &Options::default())?.0)
}
