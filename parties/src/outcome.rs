//! What a model says about a picture, as types: for programs that embed a client, for JSON, and for people.

use std::fmt;

use serde::{Deserialize, Serialize};
use sharelens_models::Manifest;
use sharelens_models::check::{CONFIDENT, settled, top};
use sharelens_models::config::Task;
use sharelens_models::detect::{self, Detections};
use sharelens_models::graph::FinalActivation;

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

/// One class of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classification {
    /// The class with the largest logit.
    pub label: usize,
    /// Its name, where the model has one.
    pub class: Option<String>,
    /// One for each class.
    pub logits: Vec<f64>,
    /// Their softmax.
    pub probabilities: Vec<f64>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Suppression did not settle.
    Unsettled,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unsettled => {
                "suppression of overlapping boxes did not settle in its number of steps, so boxes may be missing or \
                 doubled: prepare the model again with a larger --nms-steps"
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
            let named = manifest.outputs.iter().zip(outputs).map(|(info, values)| Tensor {
                name: info.name.clone(),
                shape: info.shape.clone(),
                values: activate(info.activation, values),
            });
            return Ok(Self::Tensors(Tensors { outputs: named.collect() }));
        }
        let empty = || Error::config("the model".as_ref(), "it has no output to tell a class from");
        let logits = outputs.first().ok_or_else(empty)?;
        let label = top(logits).ok_or_else(empty)?;
        let probabilities = activate(Some(FinalActivation::Softmax), logits);
        Ok(Self::Classification(Classification {
            label,
            class: class(label),
            logits: logits.clone(),
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

fn activate(activation: Option<FinalActivation>, x: &[f64]) -> Vec<f64> {
    match activation {
        None => x.to_vec(),
        Some(FinalActivation::Sigmoid) => x.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Some(FinalActivation::Softmax) => {
            let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|e| e / sum).collect()
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
        let class = self.class.as_ref().map_or_else(|| self.label.to_string(), |c| text::one_line(c));
        let probability = self.probabilities.get(self.label).copied().unwrap_or(f64::NAN);
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
    fn probabilities_sum_to_one_even_for_large_logits() {
        let p = activate(Some(FinalActivation::Softmax), &[1000.0, 999.0]);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12 && p[0] > p[1]);
        assert_eq!(activate(Some(FinalActivation::Sigmoid), &[0.0]), [0.5]);
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
        let class =
            Classification { label: 0, class: Some("a".into()), logits: vec![1.0], probabilities: vec![1.0] };
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
    fn names_of_a_model_cannot_forge_lines_or_steer_the_terminal() {
        let evil = "\u{1b}[2Jx\n  label    no_tumor";
        let classified = Classification {
            label: 0,
            class: Some(evil.into()),
            logits: vec![1.0],
            probabilities: vec![1.0],
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
