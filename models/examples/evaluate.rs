//! Agreement of floats and fixed-point twin with stored references, over whole directories.
//!
//! ```text
//! cargo run --release -p sharelens-models --example evaluate -- MODEL_DIR PICTURE_DIR [IMAGES.npz]
//! ```
//!
//! `MODEL_DIR` holds `model.onnx`, `config.json` and `reference/`; `PICTURE_DIR` the pictures that
//! `reference/files.json` names.

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use safetensors::SafeTensors;
use sharelens_models::image::{Picture, normalise};
use sharelens_models::{Arithmetic, Model, Options, prepare};
use tract_onnx::prelude::*;

fn floats(tensors: &SafeTensors<'_>, name: &str) -> Option<Vec<f32>> {
    let data = tensors.tensor(name).ok()?.data();
    Some(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn largest_difference(a: &[f64], b: impl IntoIterator<Item = f64>) -> f64 {
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

fn top(v: &[f64]) -> usize {
    (0..v.len()).max_by(|&a, &b| v[a].total_cmp(&v[b])).unwrap_or(0)
}

/// `[n, c, h, w]` of one image to `[n, h, w, c]`.
fn to_storage(x: &[f32], shape: &[usize]) -> Vec<f32> {
    let &[_, h, w, c] = shape else { return x.to_vec() };
    (0..h * w * c).map(|i| x[i % c * h * w + i / c]).collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, pictures, rest @ ..] = &args[..] else {
        return Err("MODEL_DIR PICTURE_DIR [IMAGES.npz]".into());
    };
    let dir = Path::new(dir);
    let model = Model::import(&dir.join("model.onnx"), None)?;
    let preprocess = model.config().preprocess.clone().ok_or("the model takes no pictures")?;
    let files: Vec<String> =
        serde_json::from_str(&std::fs::read_to_string(dir.join("reference/files.json"))?)?;
    let bytes = std::fs::read(dir.join("reference/reference.safetensors"))?;
    let stored = SafeTensors::deserialize(&bytes)?;
    let mut inputs = Vec::new();
    for f in &files {
        inputs.push(model.input(&Picture::load(&Path::new(pictures).join(f))?)?);
    }
    println!("{} pictures", inputs.len());

    // Inputs and outputs as stored with the model.
    let reference = ["logits", "mask_logits", "outputs", "output", "denoised"]
        .into_iter()
        .find_map(|n| floats(&stored, n));
    let inputs_at: Vec<usize> = match stored.tensor("input_index") {
        Ok(t) => {
            let size = t.data().len() / t.shape()[0];
            t.data().chunks_exact(size).map(|b| usize::from(b[0]) + usize::from(b[1]) * 256).collect()
        }
        Err(_) => (0..files.len()).collect(),
    };
    let n = model.graph().len(0);
    let exact: Vec<(usize, Vec<f32>)> = floats(&stored, "inputs")
        .map(|all| {
            inputs_at
                .into_iter()
                .zip(all.chunks_exact(n).map(|x| to_storage(x, &model.graph().input_shape)))
                .collect()
        })
        .unwrap_or_default();
    let worst = exact.iter().map(|(i, x)| {
        largest_difference(
            &x.iter().map(|&v| v.into()).collect::<Vec<_>>(),
            inputs[*i].iter().map(|&v| v.into()),
        )
    });
    println!(
        "inputs: pictures against {} stored: largest difference {:.2e}",
        exact.len(),
        worst.fold(0.0, f64::max)
    );

    let start = Instant::now();
    let (prepared, report) = prepare(&model, &inputs[..inputs.len().min(16)], &Options::default())?;
    println!(
        "prepared in {:.1} s: {}, error {:.5}",
        start.elapsed().as_secs_f64(),
        report.arithmetic,
        report.error
    );
    println!("{:?}", report.changes);
    report.refused.iter().for_each(|r| println!("refused: {r}"));
    for v in &report.values {
        println!(
            "  {:40} {:16} peak {:9.3} scale 2^{:5.2} headroom {:.1}",
            v.name, v.op, v.peak, v.scale_bits, v.headroom
        );
    }
    if let Some(reference) = &reference {
        let m = reference.len() / files.len().max(1);
        for (i, x) in &exact {
            let y = &prepared.float(x)?[0];
            if y.len() != m {
                continue;
            }
            let d = largest_difference(y, reference[i * m..(i + 1) * m].iter().map(|&v| v.into()));
            if *i < 4 || d > 1e-4 {
                println!("stored input {i}: float against stored output: {d:.2e}");
            }
        }
    }

    let graph = dir.join("model.onnx");
    let other = tract_onnx::onnx().model_for_path(graph)?.into_optimized()?.into_runnable()?;
    let mut worst = 0f64;
    for x in inputs.iter().take(3) {
        // To the file's order and back.
        let &[n, h, w, c] = &model.graph().input_shape[..] else { break };
        let ordered: Vec<f32> = (0..x.len()).map(|i| x[i % (h * w) * c + i / (h * w)]).collect();
        let input = Tensor::from_shape(&[n, c, h, w], &ordered)?;
        let theirs = other.run(tvec!(input.into()))?;
        let theirs: Vec<f64> = theirs[0].to_plain_array_view::<f32>()?.iter().map(|&v| v.into()).collect();
        worst = worst.max(largest_difference(&prepared.float(x)?[0], theirs));
    }
    println!("float against tract: {worst:.2e}");

    let mut all = inputs;
    if let Some(npz) = rest.first() {
        let images = npz::images(Path::new(npz))?;
        println!("{} more pictures in {npz}", images.len());
        for image in images {
            let picture = Picture { rows: 128, columns: 128, channels: 1, pixels: image, notes: vec![] };
            all.push(normalise(&picture.fit(&preprocess)?, &preprocess));
        }
    }
    for arithmetic in [prepared.arithmetic().clone(), Arithmetic::Z64] {
        let twin = prepared.twin(&arithmetic)?;
        let (mut worst, mut total, mut same) = (0f64, 0f64, 0);
        let mut seconds = [0f64; 2];
        for x in &all {
            let start = Instant::now();
            let float = &prepared.float(x)?[0];
            seconds[0] += start.elapsed().as_secs_f64();
            let start = Instant::now();
            let fixed = &twin.run(x)?[0];
            seconds[1] += start.elapsed().as_secs_f64();
            let d = largest_difference(fixed, float.iter().copied());
            worst = worst.max(d);
            total += d;
            same += usize::from(top(float) == top(fixed));
        }
        let n = all.len() as f64;
        println!(
            "{arithmetic}: twin against float over {n} inputs: largest {worst:.5}, mean of largest {:.5}, same top {same}; {:.3} s float, {:.3} s twin each",
            total / n,
            seconds[0] / n,
            seconds[1] / n
        );
    }
    Ok(())
}

/// The `images` of a NumPy archive, each with numbers from 0 to 255.
mod npz {
    use std::io::Read;
    use std::path::Path;

    use super::Error;

    fn number(bytes: &[u8]) -> usize {
        bytes.iter().rev().fold(0, |a, &b| a << 8 | usize::from(b))
    }

    pub fn images(path: &Path) -> Result<Vec<Vec<f64>>, Box<dyn Error>> {
        let bytes = std::fs::read(path)?;
        // The central directory: entries that start with PK 1 2.
        let mut at = bytes.windows(4).position(|w| w == b"PK\x01\x02").ok_or("no directory")?;
        while bytes[at..].starts_with(b"PK\x01\x02") {
            let entry = &bytes[at..];
            let (packed, name, extra, comment) = (
                number(&entry[20..24]),
                number(&entry[28..30]),
                number(&entry[30..32]),
                number(&entry[32..34]),
            );
            if &entry[46..46 + name] == b"images.npy" {
                let local = &bytes[number(&entry[42..46])..];
                let data = 30 + number(&local[26..28]) + number(&local[28..30]);
                let mut out = Vec::new();
                flate2::read::DeflateDecoder::new(&local[data..data + packed]).read_to_end(&mut out)?;
                let header = 10 + number(&out[8..10]);
                let pixels = out[header..].chunks_exact(128 * 128);
                return Ok(pixels.map(|p| p.iter().map(|&v| f64::from(v)).collect()).collect());
            }
            at += 46 + name + extra + comment;
        }
        Err("no images.npy".into())
    }
}
