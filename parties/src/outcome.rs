//! What a model says about a picture, as types: for programs that embed a client, for JSON, and for people.

use std::fmt;

use serde::{Deserialize, Serialize};
use sharelens_models::Manifest;
use sharelens_models::check::{CONFIDENT, settled, top};
use sharelens_models::config::Task;
use sharelens_models::detect::{self, Detections};
use sharelens_models::finish::{self, Function};

use crate::error::{Error, Result};
use crate::text;

/// The result of one picture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Of a detector.
    Detection(Detection),
    /// Of a classifier.
    Classification(Classification),
    /// Of any other network.
    Tensors(Tensors),
}

/// Objects that were found, the best first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// x1, y1, x2, y2 in pixels of the model's input.
    pub boxes: Vec<[f64; 4]>,
    /// Classes, the background being 0.
    pub labels: Vec<usize>,
    /// Probabilities.
    pub scores: Vec<f64>,
    /// Names of the labels, where the model has them.
    pub classes: Vec<Option<String>>,
    /// Whether suppression of overlapping boxes came to an end in its number of steps. If not, boxes may be missing
    /// or doubled.
    pub settled: bool,
}

/// One class of several, or one answer for each label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classification {
    /// The class with the largest logit. Of a single logit that ends in a sigmoid: 1 if it is positive, else 0.
    pub label: usize,
    /// Its name, where the model has one.
    pub class: Option<String>,
    /// One for each class.
    pub logits: Vec<f64>,
    /// Their softmax; where the network ends in a sigmoid, that of each.
    pub probabilities: Vec<f64>,
    /// Names of all labels, where each is answered for itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// Numbers by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensors {
    /// In the order of the model.
    pub outputs: Vec<Tensor>,
}

/// One output of a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// As the model names it.
    pub name: String,
    /// As the model has it: channels before rows and columns.
    pub shape: Vec<usize>,
    /// In the order of the shape, after the network's final activation.
    pub values: Vec<f64>,
}

/// What a user must know about a result before relying on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Suppression did not settle.
    Unsettled,
    /// Numbers left their range.
    OutOfRange(Ranges),
}

/// Whether a picture drove numbers out of the range in which they can be trusted: more than half of what their modulus
/// can tell apart. Servers look at all of a small layer and at a sample of a large one, and learn nothing; the client
/// gets the counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ranges {
    /// In the order of the network, outputs last.
    pub layers: Vec<Watched>,
}

/// What was found in one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// As the model names it.
    pub layer: String,
    /// Numbers that were looked at.
    pub sampled: u64,
    /// How many of them were outside.
    pub outside: u64,
}

impl Ranges {
    /// Whether no number that was looked at was outside.
    pub fn in_range(&self) -> bool {
        self.layers.iter().all(|l| l.outside == 0)
    }

    /// The layers with numbers outside.
    pub fn exceeded(&self) -> impl Iterator<Item = &Watched> {
        self.layers.iter().filter(|l| l.outside > 0)
    }

    /// Takes counts that were opened. One that cannot be right counts for all.
    pub(crate) fn counted(&mut self, watched: &[(&str, usize)], counts: &[i64]) {
        self.layers.extend(watched.iter().zip(counts).map(|(&(layer, sampled), &count)| {
            let sampled = sampled as u64;
            let outside = u64::try_from(count).ok().filter(|c| *c <= sampled).unwrap_or(sampled);
            Watched { layer: layer.into(), sampled, outside }
        }));
    }

    /// Takes an output, which the client sees itself. Outputs differ more from picture to picture than sums inside do, so
    /// only the last quarter of what their modulus can tell apart counts as outside.
    pub(crate) fn seen(&mut self, name: &str, integers: &[i64], quarter: i64) {
        let most = (quarter + quarter / 2) as u64;
        let outside = integers.iter().filter(|v| v.unsigned_abs() > most).count();
        self.layers.push(Watched {
            layer: name.into(),
            sampled: integers.len() as u64,
            outside: outside as u64,
        });
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsettled => {
                "suppression of overlapping boxes did not settle in its number of steps, so boxes may be missing or \
                 doubled: prepare the model again with a larger --nms-steps"
            }
            Self::OutOfRange(ranges) => {
                let layers = ranges.exceeded().map(|l| {
                    format!("{} ({} of {} looked at)", text::one_line(&l.layer), l.outside, l.sampled)
                });
                let layers = layers.take(4).collect::<Vec<_>>().join(", ");
                return write!(
                    f,
                    "DO NOT TRUST THIS RESULT: the picture drives numbers out of the range that the model was prepared \
                     for, in {layers}; prepare the model with pictures like this one, or with a larger --margin"
                );
            }
        })
    }
}

impl Outcome {
    /// What `outputs`, the opened numbers of a run, say.
    ///
    /// # Errors
    /// [`Error::Config`] if a classifier has no output.
    pub fn new(manifest: &Manifest, outputs: &[Vec<f64>]) -> Result<Self> {
        let class = |label: usize| manifest.config.classes.get(label).cloned();
        if let Some(Detections { boxes, labels, scores }) = detections(manifest, outputs) {
            let classes = labels.iter().map(|label| class(*label)).collect();
            let settled = settled(outputs);
            return Ok(Self::Detection(Detection { boxes, labels, scores, classes, settled }));
        }
        if manifest.config.task != Task::Classification {
            let named = manifest.outputs.iter().zip(outputs).map(|(info, values)| {
                let (shape, values) = info.finished(values);
                Tensor { name: info.name.clone(), shape, values }
            });
            return Ok(Self::Tensors(Tensors { outputs: named.collect() }));
        }
        let empty = || Error::config("the model".as_ref(), "it has no output to tell a class from");
        let logits = outputs.first().ok_or_else(empty)?;
        let finish = manifest.outputs.first().and_then(|info| info.finish.as_ref());
        let sigmoid = finish.is_some_and(|f| f.function == Function::Sigmoid);
        let label = match logits[..] {
            // One number tells no from yes.
            [logit] if sigmoid => usize::from(logit > 0.0),
            _ => top(logits).ok_or_else(empty)?,
        };
        let probabilities = match finish {
            Some(finish) if sigmoid => finish.apply(logits),
            _ => finish::softmax(logits),
        };
        Ok(Self::Classification(Classification {
            label,
            class: class(label),
            logits: logits.clone(),
            labels: match logits.len() {
                n if sigmoid && n > 1 => (0..n).map(|i| class(i).unwrap_or_else(|| i.to_string())).collect(),
                _ => vec![],
            },
            probabilities,
        }))
    }

    /// What to know before relying on it.
    pub fn warnings(&self) -> Vec<Warning> {
        match self {
            Self::Detection(found) if !found.settled => vec![Warning::Unsettled],
            _ => vec![],
        }
    }
}

impl Detection {
    /// What the columns of [`rows`](Self::rows) are.
    pub const COLUMNS: [&str; 6] = ["label", "score", "x1", "y1", "x2", "y2"];

    /// One row for each box, safe to print.
    pub fn rows(&self) -> Vec<[String; 6]> {
        let row = |(i, corners): (usize, &[f64; 4])| {
            let class = self.classes.get(i).cloned().flatten();
            let class = class.map_or_else(|| self.labels[i].to_string(), |c| text::one_line(&c));
            let [x1, y1, x2, y2] = corners.map(|v| format!("{v:.1}"));
            [class, format!("{:.3}", self.scores[i]), x1, y1, x2, y2]
        };
        self.boxes.iter().enumerate().map(row).collect()
    }
}

impl fmt::Display for Detection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows();
        f.write_str(&text::columns(&Self::COLUMNS, &rows))?;
        if self.boxes.is_empty() {
            f.write_str("\n  nothing was found")?;
        }
        if !self.settled {
            write!(f, "\n  warning: {}", Warning::Unsettled)?;
        }
        Ok(())
    }
}

impl fmt::Display for Classification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.labels.is_empty() {
            let rows: Vec<[String; 2]> = self
                .labels
                .iter()
                .zip(&self.probabilities)
                .map(|(label, p)| [text::one_line(label), format!("{p:.4}")])
                .collect();
            return f.write_str(&text::columns(&["label", "probability"], &rows));
        }
        let class = self.class.as_ref().map_or_else(|| self.label.to_string(), |c| text::one_line(c));
        let probability = match (self.label, &self.probabilities[..]) {
            // Of no, where one number is that of yes.
            (0, [yes]) if self.logits.len() == 1 && *yes < 0.5 => 1.0 - yes,
            (_, [yes]) => *yes,
            (label, all) => all.get(label).copied().unwrap_or(f64::NAN),
        };
        write!(f, "  label    {class}   probability {probability:.4}")
    }
}

impl fmt::Display for Tensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Tensor { name, shape, .. }) in self.outputs.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}  output   {} {shape:?}", text::one_line(name))?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Detection(found) => found.fmt(f),
            Self::Classification(found) => found.fmt(f),
            Self::Tensors(found) => found.fmt(f),
        }
    }
}

/// What a detector found, in pixels of its input; none for other models.
pub fn detections(manifest: &Manifest, outputs: &[Vec<f64>]) -> Option<Detections> {
    let settings = manifest.config.detection.as_ref()?;
    Some(Detections::from_rows(outputs.first()?, settings.stride))
}

/// How far two results of the same picture are apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The largest difference of any number; of a detector, of coordinates of the same detection in pixels.
    pub max_abs_error: f64,
    /// Of detectors, over all detections that one of both scores at least a half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<Differs>,
}

/// How far two lists of detections are apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Differs {
    /// Largest difference of a coordinate of partners, in pixels.
    pub pixels: f64,
    /// Largest difference of their scores.
    pub score: f64,
    /// Detections with a partner.
    pub matched: usize,
    /// Detections without.
    pub alone: usize,
}

impl Difference {
    /// Of two runs of one model on one picture.
    pub fn of(manifest: &Manifest, a: &[Vec<f64>], b: &[Vec<f64>]) -> Self {
        if let (Some(a), Some(b)) = (detections(manifest, a), detections(manifest, b)) {
            let detect::Agreement { pixels, score, matched, alone } = detect::compare(&a, &b, CONFIDENT);
            return Self { max_abs_error: pixels, differs: Some(Differs { pixels, score, matched, alone }) };
        }
        let numbers = a.iter().flatten().zip(b.iter().flatten());
        Self { max_abs_error: numbers.fold(0.0, |m: f64, (a, b)| m.max((a - b).abs())), differs: None }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Differs { pixels, score, matched, alone }) = self.differs else {
            return write!(f, "plaintext differs by at most {:.6}", self.max_abs_error);
        };
        write!(
            f,
            "plaintext differs by at most {pixels:.3} px, {score:.5} in score   ({matched} detections scored \
             {CONFIDENT} or more)"
        )?;
        if alone != 0 {
            write!(f, "; {alone} have no partner")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(class: &str, settled: bool) -> Detection {
        Detection {
            boxes: vec![[1.0, 2.0, 30.25, 40.0]],
            labels: vec![2],
            scores: vec![0.98765],
            classes: vec![Some(class.into())],
            settled,
        }
    }

    #[test]
    fn detections_are_a_table_and_unsettled_ones_warn() {
        let text = found("WBC", true).to_string();
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines, [Detection::COLUMNS.to_vec(), vec!["WBC", "0.988", "1.0", "2.0", "30.2", "40.0"]]);
        let unsettled = Outcome::Detection(found("WBC", false));
        assert_eq!(unsettled.warnings(), [Warning::Unsettled]);
        assert!(unsettled.to_string().contains("--nms-steps"));
    }

    #[test]
    fn the_keys_of_json_are_a_contract() {
        let detection = Outcome::Detection(found("WBC", true));
        let class = Classification {
            label: 0,
            class: Some("a".into()),
            logits: vec![1.0],
            probabilities: vec![1.0],
            labels: vec![],
        };
        let tensor = Tensor { name: "y".into(), shape: vec![1], values: vec![0.5] };
        for (outcome, json) in [
            (
                detection,
                r#"{"boxes":[[1.0,2.0,30.25,40.0]],"labels":[2],"scores":[0.98765],"classes":["WBC"],"settled":true}"#,
            ),
            (
                Outcome::Classification(class),
                r#"{"label":0,"class":"a","logits":[1.0],"probabilities":[1.0]}"#,
            ),
            (
                Outcome::Tensors(Tensors { outputs: vec![tensor] }),
                r#"{"outputs":[{"name":"y","shape":[1],"values":[0.5]}]}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&outcome).unwrap(), json);
            assert_eq!(serde_json::from_str::<Outcome>(json).unwrap(), outcome);
        }
    }

    #[test]
    fn a_network_that_ends_in_a_sigmoid_answers_for_each_label() {
        let manifest = |n: usize, finish| {
            let model = sharelens_models::Model::from_bytes(
                include_bytes!("../../models/data/brain_mri_cnn/model.onnx"),
                Some(include_str!("../../models/data/brain_mri_cnn/config.json")),
            );
            let model = model.unwrap();
            let side = model.graph().input_shape[1];
            let inputs = [vec![0.5; side * side]];
            let (prepared, _) = sharelens_models::prepare(&model, &inputs, &Default::default()).unwrap();
            let mut manifest = prepared.manifest().unwrap();
            manifest.outputs[0].finish = finish;
            manifest.outputs[0].shape = vec![1, n];
            manifest
        };
        let of = |n, finish, logits: &[f64]| match Outcome::new(&manifest(n, finish), &[logits.to_vec()]) {
            Ok(Outcome::Classification(c)) => c,
            other => panic!("{other:?}"),
        };
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        let sigmoid = || Some(finish::Finish::sigmoid());
        let several = of(4, sigmoid(), &[-0.222, 0.438, -0.499, -0.886]);
        assert!(near(&several.probabilities, &[0.4447, 0.6078, 0.3778, 0.2919]), "{several:?}");
        assert!(several.to_string().lines().count() == 5 && several.to_string().contains("no_tumor"));
        let (yes, no) = (of(1, sigmoid(), &[2.0]), of(1, sigmoid(), &[-2.0]));
        assert_eq!((yes.label, no.label), (1, 0));
        assert!(near(&yes.probabilities, &[0.8808]) && near(&no.probabilities, &[0.1192]));
        assert!(yes.to_string().contains("0.8808") && no.to_string().contains("0.8808"));
        assert!(near(&of(2, None, &[0.0, 0.0]).probabilities, &[0.5, 0.5]));
    }

    #[test]
    fn names_of_a_model_cannot_forge_lines_or_steer_the_terminal() {
        let evil = "\u{1b}[2Jx\n  label    no_tumor";
        let classified = Classification {
            label: 0,
            class: Some(evil.into()),
            logits: vec![1.0],
            probabilities: vec![1.0],
            labels: vec![],
        };
        let tensor = Tensor { name: evil.into(), shape: vec![1], values: vec![] };
        for (text, lines) in [
            (found(evil, true).to_string(), 2),
            (classified.to_string(), 1),
            (Tensors { outputs: vec![tensor] }.to_string(), 1),
        ] {
            assert!(text.lines().count() == lines && !text.contains('\u{1b}'), "{text:?}");
        }
    }
}
