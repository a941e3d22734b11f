//! Annotated boxes from Pascal VOC files, and what detections are worth against them.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::{Map, Value};
use sharelens_models::config::Config;
use sharelens_models::detect::Detections;
use sharelens_models::detect::precision::{self, Truth};

use sharelens::text;

use super::show;

/// Bytes that an annotation file may have.
const MAX_BYTES: u64 = 1 << 20;
/// Elements and texts of such a file.
const MAX_NODES: u32 = 1 << 16;
/// Overlap from which a box is found.
const OVERLAP: f64 = 0.5;

/// One file: boxes in pixels of the picture it belongs to.
#[derive(Debug, Default, PartialEq)]
struct Annotation {
    /// Columns and rows of the picture, if the file says.
    size: Option<[f64; 2]>,
    /// Class and corners x1, y1, x2, y2. Boxes without extent are left out.
    objects: Vec<(String, [f64; 4])>,
}

/// The annotated boxes of a picture, in pixels of the network's input, from `dir/STEM.xml`. Classes that the model
/// does not know are left out, and said in the log.
pub fn truth(dir: &Path, image: &Path, config: &Config) -> Result<Truth> {
    let preprocess = config.preprocess.as_ref().context("this model does not take pictures")?;
    let file = annotation_file(dir, image);
    let annotation = load(&file).with_context(|| show(&file))?;
    let (columns, rows) = image::image_dimensions(image).with_context(|| show(image))?;
    let source = [f64::from(columns), f64::from(rows)];
    if let Some([w, h]) = annotation.size.filter(|size| *size != source) {
        bail!("{}: is for a picture of {w}x{h}, and {} has {columns}x{rows}", show(&file), show(image));
    }
    let [h, w] = preprocess.size;
    let scale = [w as f64 / source[0], h as f64 / source[1]];
    let mut truth = Truth::default();
    for (name, corners) in annotation.objects {
        let Some(label) = config.classes.iter().skip(1).position(|c| *c == name) else {
            tracing::warn!("{}: the model has no class {name:?}", show(&file));
            continue;
        };
        truth.labels.push(label + 1);
        truth.boxes.push([0, 1, 2, 3].map(|i| corners[i] * scale[i % 2]));
    }
    Ok(truth)
}

/// Whether the annotations of a picture are there and can be read.
pub fn check(dir: &Path, image: &Path) -> Result<()> {
    let file = annotation_file(dir, image);
    load(&file).map(|_| ()).with_context(|| show(&file))
}

/// Average precision at an overlap of a half, by class (null for one without boxes), and its mean as `mAP`.
pub fn ap50(config: &Config, found: &[Detections], truth: &[Truth]) -> Value {
    let classes = config.classes.len().saturating_sub(1);
    let all = precision::average_precision(found, truth, classes, OVERLAP);
    let named = config.classes.iter().skip(1).cloned().zip(all.iter().map(|&v| v.into()));
    let mut out: Map<String, Value> = named.collect();
    out.insert("mAP".into(), precision::mean(&all).into());
    out.into()
}

/// The same in one line, the mean last.
pub fn words(config: &Config, ap50: &Value) -> String {
    let entries = config.classes.iter().skip(1).map(String::as_str).chain(["mAP"]);
    let number = |v: &Value| v.as_f64().map_or_else(|| "-".into(), |v| format!("{v:.4}"));
    entries
        .map(|class| format!("{} {}", text::one_line(class), number(&ap50[class])))
        .collect::<Vec<_>>()
        .join("   ")
}

fn annotation_file(dir: &Path, image: &Path) -> PathBuf {
    let mut name = image.file_stem().unwrap_or_default().to_os_string();
    name.push(".xml");
    dir.join(name)
}

fn load(file: &Path) -> Result<Annotation> {
    let mut text = String::new();
    std::fs::File::open(file)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= MAX_BYTES, "it has more than {MAX_BYTES} bytes");
    parse(&text)
}

fn parse(text: &str) -> Result<Annotation> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options)?;
    let root = document.root_element();
    ensure!(root.has_tag_name("annotation"), "it is no Pascal VOC annotation");
    let size = match child(root, "size") {
        Some(size) => {
            let sides = [number(size, "width")?, number(size, "height")?];
            // Zero is how some tools say that they do not know.
            sides.iter().all(|&v| v > 0.0).then_some(sides)
        }
        None => None,
    };
    let mut out = Annotation { size, objects: Vec::new() };
    for (i, object) in root.children().filter(|n| n.has_tag_name("object")).enumerate() {
        let read = || -> Result<(String, [f64; 4])> {
            let name = child(object, "name").and_then(|n| n.text()).map(str::trim).unwrap_or_default();
            ensure!(!name.is_empty(), "it has no name");
            let bounds = child(object, "bndbox").context("it has no bndbox")?;
            let mut corners = [0.0; 4];
            for (corner, tag) in corners.iter_mut().zip(["xmin", "ymin", "xmax", "ymax"]) {
                *corner = number(bounds, tag)?;
            }
            Ok((name.to_owned(), corners))
        };
        let (name, [x1, y1, x2, y2]) = read().with_context(|| format!("object {}", i + 1))?;
        if x1 < x2 && y1 < y2 {
            out.objects.push((name, [x1, y1, x2, y2]));
        }
    }
    Ok(out)
}

fn child<'a, 'input>(node: Node<'a, 'input>, tag: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|n| n.has_tag_name(tag))
}

fn number(node: Node<'_, '_>, tag: &str) -> Result<f64> {
    let text = child(node, tag).and_then(|n| n.text()).with_context(|| format!("it has no {tag}"))?;
    let value: f64 = text.trim().parse().ok().with_context(|| format!("{tag} {text:?} is no number"))?;
    ensure!(value.abs() <= 1e6, "{tag} {text:?} is out of range");
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "<annotation><size><width>640</width><height>480</height></size>
        <object><name> RBC </name><bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax>30</xmax><ymax>40</ymax></bndbox></object>
        <object><name>WBC</name><bndbox><xmin>9</xmin><ymin>2</ymin><xmax>9</xmax><ymax>4</ymax></bndbox></object>
        </annotation>";

    #[test]
    fn boxes_with_extent_are_read() {
        let read = parse(GOOD).unwrap();
        assert_eq!(read.size, Some([640.0, 480.0]));
        assert_eq!(read.objects, [("RBC".to_string(), [1.0, 2.5, 30.0, 40.0])]);
        assert_eq!(parse("<annotation/>").unwrap(), Annotation::default());
        assert_eq!(parse(&GOOD.replace("640", "0")).unwrap().size, None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let says = |text: &str, what: &str| {
            let e = format!("{:#}", parse(text).unwrap_err());
            assert!(e.contains(what), "{e}");
        };
        says(&GOOD.replace("2.5", "two"), "object 1: ymin \"two\" is no number");
        says(&GOOD.replace("2.5", "nan"), "out of range");
        says(&GOOD.replace("2.5", "-1e300"), "out of range");
        says(&GOOD.replace("<xmax>9</xmax>", ""), "object 2: it has no xmax");
        says(&GOOD.replace("<name>WBC</name>", ""), "object 2: it has no name");
        says(&GOOD.replace("bndbox", "box"), "it has no bndbox");
        says("<html/>", "no Pascal VOC annotation");
        for keep in 0..GOOD.len() - 20 {
            assert!(!GOOD.is_char_boundary(keep) || parse(&GOOD[..keep]).is_err(), "{keep} bytes");
        }
        let entities = format!("<!DOCTYPE a [<!ENTITY b \"c\">]>{GOOD}");
        assert!(parse(&entities).is_err());
        assert!(parse(&format!("<annotation>{}</annotation>", "<a/>".repeat(1 << 17))).is_err());
    }

    #[test]
    fn long_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.xml");
        std::fs::write(&file, format!("{GOOD}{}", " ".repeat(1 << 20))).unwrap();
        assert!(load(&file).unwrap_err().to_string().contains("bytes"));
        std::fs::write(&file, GOOD).unwrap();
        assert_eq!(load(&file).unwrap().objects.len(), 1);
    }

    #[test]
    fn precision_is_named() {
        let config = Config {
            name: "m".into(),
            task: sharelens_models::config::Task::Detection,
            classes: ["background", "RBC", "WBC"].map(String::from).to_vec(),
            preprocess: None,
            detection: None,
        };
        let b = [0.0, 0.0, 10.0, 10.0];
        let found = Detections { boxes: vec![b], labels: vec![1], scores: vec![0.9] };
        let ap = ap50(&config, &[found], &[Truth { boxes: vec![b], labels: vec![1] }]);
        assert_eq!(ap, serde_json::json!({ "RBC": 1.0, "WBC": null, "mAP": 1.0 }));
        assert_eq!(words(&config, &ap), "RBC 1.0000   WBC -   mAP 1.0000");
    }
}
