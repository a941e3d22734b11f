//! What fixed point costs in quality: PSNR of a denoiser, Dice of a segmenter, against floats over a directory.
//!
//! ```text
//! cargo run --release -p sharelens-models --example quality -- MODEL_DIR PICTURE_DIR [TOLERANCE]
//! ```
//!
//! `MODEL_DIR` holds `model.onnx` and `config.json`. For a denoiser `PICTURE_DIR` holds clean pictures, to which
//! noise is added; for a segmenter pictures `NAME.png` with masks `NAME_mask.png`. Folders inside are searched.

use std::error::Error;
use std::path::{Path, PathBuf};

use sharelens_models::config::{Preprocess, Task};
use sharelens_models::image::Picture;
use sharelens_models::{Model, Options, prepare};
use sharelens_ops::plain::Rounding;

/// Standard deviation of the noise, on the scale 0..1.
const NOISE: f64 = 25.0 / 255.0;
/// Inputs to calibrate on.
const CALIBRATION: usize = 8;

fn files(dir: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, found)?;
        } else if matches!(path.extension().and_then(|e| e.to_str()), Some("png" | "jpg" | "jpeg")) {
            found.push(path);
        }
    }
    Ok(())
}

/// Sums of twelve uniform numbers: mean 0, variance 1, the same on every machine.
fn noise(n: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0).collect()
}

fn psnr(clean: &[f64], y: &[f64]) -> f64 {
    let square: f64 = clean.iter().zip(y).map(|(a, b)| (a - b).powi(2)).sum();
    -10.0 * (square / clean.len() as f64).log10()
}

fn dice(truth: &[f64], logits: &[f64]) -> f64 {
    let found = logits.iter().map(|&v| f64::from(v > 0.0));
    let both: f64 = truth.iter().zip(found.clone()).map(|(t, f)| t * f).sum();
    let total = truth.iter().sum::<f64>() + found.sum::<f64>();
    if total == 0.0 { 1.0 } else { 2.0 * both / total }
}

/// An input, and what the output is held against.
type Case = (Vec<f32>, Vec<f64>);

fn cases(task: Task, p: &Preprocess, files: &[PathBuf]) -> Result<Vec<Case>, Box<dyn Error>> {
    let is_mask = |f: &&PathBuf| f.file_stem().is_some_and(|s| s.to_string_lossy().ends_with("_mask"));
    let mut cases = Vec::new();
    for (i, file) in files.iter().filter(|f| !is_mask(f)).enumerate() {
        let picture = Picture::load(file)?;
        cases.push(match task {
            Task::Denoising => {
                let clean: Vec<f64> = picture.input(p)?.iter().map(|&v| v.into()).collect();
                let noise = noise(clean.len(), i as u64 + 1);
                (clean.iter().zip(noise).map(|(c, n)| (c + NOISE * n) as f32).collect(), clean)
            }
            Task::Segmentation => {
                let name = format!("{}_mask.png", file.file_stem().unwrap_or_default().to_string_lossy());
                let mask = Picture::load(&file.with_file_name(name))?.fit(p)?;
                (picture.input(p)?, mask.iter().map(|&v| f64::from(v >= 127.5)).collect())
            }
            other => {
                return Err(
                    format!("quality is measured of denoisers and segmenters, not of {other:?}").into()
                );
            }
        });
    }
    Ok(cases)
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, pictures, rest @ ..] = &args[..] else {
        return Err("MODEL_DIR PICTURE_DIR [TOLERANCE]".into());
    };
    let model = Model::import(&Path::new(dir).join("model.onnx"), None)?;
    let preprocess = model.config().preprocess.clone().ok_or("the model takes no pictures")?;
    let mut found = Vec::new();
    files(Path::new(pictures), &mut found)?;
    found.sort();
    let task = model.config().task;
    let cases = cases(task, &preprocess, &found)?;
    let mut options = Options::default();
    if let Some(tolerance) = rest.first() {
        options.tolerance = tolerance.parse()?;
    }
    let step = cases.len().div_ceil(CALIBRATION).max(1);
    let calibration: Vec<Vec<f32>> = cases.iter().step_by(step).map(|(x, _)| x.clone()).collect();
    let (prepared, report) = prepare(&model, &calibration, &options)?;
    report.refused.iter().for_each(|r| eprintln!("refused {r}"));
    println!(
        "{}: {}, error {:.5} of {} allowed",
        prepared.config().name,
        report.arithmetic,
        report.error,
        options.tolerance
    );

    let twin = prepared.twin(prepared.arithmetic())?;
    let quality = |truth: &[f64], y: &[f64]| match task {
        Task::Denoising => psnr(truth, y),
        _ => 100.0 * dice(truth, y),
    };
    let (mut before, mut float, mut fixed) = (0.0, 0.0, 0.0);
    let (mut worst, mut apart) = (0f64, 0f64);
    for (i, (x, truth)) in cases.iter().enumerate() {
        // One channel: the order in storage is the original one.
        let real = prepared.float(x)?.remove(0);
        let whole = twin.run_storage(x, Rounding::Random(i as u64))?.0.remove(0);
        let [a, b] = [&real, &whole].map(|y| quality(truth, y));
        before += quality(truth, &x.iter().map(|&v| v.into()).collect::<Vec<_>>());
        float += a;
        fixed += b;
        worst = worst.max((a - b).abs());
        apart = real.iter().zip(&whole).fold(apart, |m, (a, b)| m.max((a - b).abs()));
    }
    let n = cases.len() as f64;
    let (name, unit) = if task == Task::Denoising { ("PSNR", "dB") } else { ("Dice", "points") };
    if task == Task::Denoising {
        println!("noisy: {name} {:.3} {unit}", before / n);
    }
    println!(
        "{n} pictures: {name} {:.3} {unit} in floats, {:.3} in fixed point; largest difference of a picture {worst:.4}, of an output {apart:.4}",
        float / n,
        fixed / n
    );
    Ok(())
}
