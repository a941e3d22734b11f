//! Where results of several images go besides the terminal: files, COCO's format, average precision.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use sharelens::{outcome, text};
use sharelens_models::Manifest;
use sharelens_models::config::Config;
use sharelens_models::detect::Detections;
use sharelens_models::detect::precision::Truth;
use sharelens_models::image::Picture;

use super::document::Document;
use super::{NotAll, NotTrusted, Ui, annotations, draw, output, show};

#[derive(Debug, Args)]
pub struct Outputs {
    /// Where to write results: NAME.json for each image, and NAME-boxes.png if boxes were found in it.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// File for all boxes in COCO's result format, in pixels of the images.
    #[arg(long, value_name = "FILE")]
    coco: Option<PathBuf>,
    /// Directory with NAME.xml (Pascal VOC) for each image: also print average precision at an overlap of 0.5.
    #[arg(long, value_name = "DIR")]
    annotations: Option<PathBuf>,
}

/// Takes the result of one image after the other.
pub struct Collector<'a> {
    to: &'a Outputs,
    ui: Ui,
    documents: Vec<Value>,
    /// How many images there are.
    images: usize,
    /// Images without a result.
    failed: usize,
    /// Images whose result must not be relied on.
    untrusted: usize,
    coco: Vec<Value>,
    /// Of the model, once there is a result.
    config: Option<Config>,
    truth: Vec<Truth>,
    found: Vec<Detections>,
    /// By floats, where they are at hand.
    float: Vec<Detections>,
}

impl<'a> Collector<'a> {
    /// Nothing collected yet. Annotations of `images` are read, so that a missing one is noticed before any run.
    pub fn new(to: &'a Outputs, images: &[PathBuf], ui: Ui) -> Result<Self> {
        if let Some(dir) = &to.annotations {
            images.iter().try_for_each(|image| annotations::check(dir, image))?;
        }
        if let Some(out) = &to.out {
            std::fs::create_dir_all(out).with_context(|| show(out))?;
            different_names(images)?;
            // Before hours of computing, not after.
            tempfile::tempfile_in(out).with_context(|| show(out))?;
        }
        if let Some(file) = &to.coco {
            let open = std::fs::OpenOptions::new().create(true).append(true).open(file);
            open.with_context(|| show(file))?;
        }
        let (documents, coco, truth, found, float) = Default::default();
        let images = images.len();
        Ok(Self {
            to,
            ui,
            documents,
            images,
            failed: 0,
            untrusted: 0,
            coco,
            config: None,
            truth,
            found,
            float,
        })
    }

    /// Takes note of an image that cannot be read or does not suit the model; of several, the others go on. Any other error is
    /// handed back: it would be that of the others, too.
    pub fn failed(&mut self, image: &Path, e: anyhow::Error) -> Result<()> {
        if self.images == 1 || !e.is::<OfImage>() {
            return Err(e);
        }
        let message = text::one_line(&format!("{e:#}"));
        eprintln!("error: {}: {message}", show(image));
        self.documents.push(json!({ "image": show(image), "error": message }));
        self.failed += 1;
        Ok(())
    }

    /// Takes one image's outputs and document.
    pub fn add(
        &mut self,
        image: &Path,
        manifest: &Manifest,
        outputs: &[Vec<f64>],
        float: Option<&[Vec<f64>]>,
        document: Document,
    ) -> Result<()> {
        if self.ui.json {
            for warning in document.warnings().into_iter().chain(document.result.warnings()) {
                tracing::warn!("{}: {warning}", show(image));
            }
        }
        let found = outcome::detections(manifest, outputs);
        if let Some(out) = &self.to.out {
            let named = |end: &str| {
                let mut name = image.file_stem().unwrap_or_default().to_os_string();
                name.push(end);
                out.join(name)
            };
            let file = named(".json");
            std::fs::write(&file, serde_json::to_string_pretty(&document)?).with_context(|| show(&file))?;
            if let Some(found) = &found {
                boxes_picture(image, manifest, found, &named("-boxes.png"))?;
            }
        }
        self.untrusted += usize::from(document.in_range == Some(false));
        self.documents.push(serde_json::to_value(&document)?);
        if self.to.coco.is_none() && self.to.annotations.is_none() {
            return Ok(());
        }
        let found = found.context("--coco and --annotations are for detectors, and this model is none")?;
        self.coco.extend(coco(self.documents.len(), image, &manifest.config, &found)?);
        if let Some(dir) = &self.to.annotations {
            self.truth.push(annotations::truth(dir, image, &manifest.config)?);
            self.found.push(found);
            self.float.extend(float.and_then(|float| outcome::detections(manifest, float)));
        }
        self.config = Some(manifest.config.clone());
        Ok(())
    }

    /// Writes and prints what concerns all images. With `--json`: the document of one image, a list of several, or
    /// with annotations an object with this list and the precision. `ended` is how the last of them ended: what was
    /// computed before an error is written, too.
    pub fn finish(self, ended: Result<()>) -> Result<()> {
        let (images, failed, untrusted) = (self.images, self.failed, self.untrusted);
        if ended.is_ok() || !self.documents.is_empty() {
            self.write()?;
        }
        ended?;
        if untrusted > 0 {
            return Err(NotTrusted { images: untrusted, failed }.into());
        }
        if failed > 0 { Err(NotAll { failed, all: images }.into()) } else { Ok(()) }
    }

    fn write(mut self) -> Result<()> {
        if let Some(file) = &self.to.coco {
            std::fs::write(file, serde_json::to_string_pretty(&self.coco)?).with_context(|| show(file))?;
            self.ui.say(format_args!("wrote {}", show(file)));
        }
        let mut document = if self.images == 1 && self.documents.len() == 1 && self.to.annotations.is_none() {
            self.documents.remove(0)
        } else {
            Value::Array(self.documents)
        };
        if let (Some(config), Some(_)) = (&self.config, &self.to.annotations) {
            document = json!({ "images": document });
            let all = [("ap50", "AP at 0.5", &self.found), ("float_ap50", "in floats", &self.float)];
            for (key, words, found) in all.into_iter().filter(|(.., found)| found.len() == self.truth.len()) {
                document[key] = annotations::ap50(config, found, &self.truth);
                if !self.ui.json {
                    let images = self.truth.len();
                    self.ui.print(format_args!(
                        "{words:<10} {}   ({images} images)",
                        annotations::words(config, &document[key])
                    ));
                }
            }
        }
        if self.ui.json {
            output(serde_json::to_string_pretty(&document)?);
        }
        Ok(())
    }
}

/// Said of errors that are those of an image, and of no other one.
#[derive(Debug)]
pub struct OfImage;

impl std::fmt::Display for OfImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the image")
    }
}

/// Results are named after images, so two of one name would overwrite each other.
fn different_names(images: &[PathBuf]) -> Result<()> {
    let mut seen = std::collections::HashMap::new();
    for image in images {
        if let Some(other) = seen.insert(image.file_stem(), image) {
            bail!(
                "{} and {} would have results of the same name: give them other names, or run them apart",
                show(other),
                show(image)
            );
        }
    }
    Ok(())
}

/// Writes the image with boxes drawn into it.
pub fn boxes_picture(image: &Path, manifest: &Manifest, found: &Detections, file: &Path) -> Result<()> {
    let preprocess = manifest.config.preprocess.as_ref().context("this model does not take pictures")?;
    draw::save(&Picture::load(image)?, preprocess.size, found, &manifest.config.classes, file)
}

/// Entries of COCO's result format. Images are numbered from 1 in the order given.
fn coco(id: usize, image: &Path, config: &Config, found: &Detections) -> Result<Vec<Value>> {
    let preprocess = config.preprocess.as_ref().context("this model does not take pictures")?;
    let (columns, rows) = image::image_dimensions(image).with_context(|| show(image))?;
    let [h, w] = preprocess.size;
    let scale = [f64::from(columns) / w as f64, f64::from(rows) / h as f64];
    let entry = |i: usize| {
        let [x1, y1, x2, y2] = [0, 1, 2, 3].map(|a| found.boxes[i][a] * scale[a % 2]);
        json!({
            "image_id": id,
            "file_name": image.file_name().map(|n| n.to_string_lossy()),
            "category_id": found.labels[i],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": found.scores[i],
        })
    };
    Ok((0..found.len()).map(entry).collect())
}

#[cfg(test)]
mod tests {
    use sharelens::outcome::{Outcome, Ranges, Tensors, Watched};

    use super::*;

    #[test]
    fn a_result_that_must_not_be_trusted_ends_the_command_with_a_code_of_its_own() {
        let to = Outputs { out: None, coco: None, annotations: None };
        let ui = Ui { json: false, quiet: true };
        let watched = |outside| Watched { layer: "conv".into(), sampled: 9, outside };
        let document = |outside| Document {
            model: "m".into(),
            version: None,
            owner: None,
            mode: None,
            ring: "rns",
            image: "a.png".into(),
            in_range: Some(outside == 0),
            ranges: Some(Ranges { layers: vec![watched(0), watched(outside)] }),
            result: Outcome::Tensors(Tensors { outputs: vec![] }),
            plain: None,
            float: None,
            difference: None,
            cost: None,
            wan: None,
        };
        let manifest = shipped();
        for (outside, ok) in [(0, true), (2, false)] {
            let mut collector = Collector::new(&to, &[], ui).unwrap();
            let document = document(outside);
            assert_eq!(document.warnings().is_empty(), ok);
            collector.add(Path::new("a.png"), &manifest, &[vec![0.0]], None, document).unwrap();
            let end = collector.finish(Ok(()));
            assert_eq!(end.is_ok(), ok);
            assert!(end.is_ok() || end.unwrap_err().is::<NotTrusted>());
        }
    }

    fn shipped() -> Manifest {
        super::super::shipped::CLASSIFIER.model().unwrap().manifest().unwrap()
    }
}
