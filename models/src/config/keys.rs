//! Which keys `config.json` may have, and what those that nothing reads must say.
//!
//! A key that is misspelt, or that asks for something else than is done, would change what a model means without a word.
//! So every key is known here, or it is an error.

use serde_json::Value;

use crate::error::{Error, Result};

/// What a key is for.
enum Key {
    /// It is read.
    Read,
    /// It is a note for people.
    Note,
    /// It describes what is always done.
    Says(&'static [&'static str]),
    /// It is on.
    On,
    /// It holds further keys.
    Keys(&'static [(&'static str, Key)]),
}

use Key::{Keys, Note, On, Read, Says};

const PREPROCESS: &[(&str, Key)] = &[
    ("channels", Read),
    ("resize", Read),
    ("input_size", Read),
    ("block_mean", Read),
    ("source_size", Read),
    ("scale", Read),
    ("mean", Read),
    ("std", Read),
];

const COMMON: &[(&str, Key)] = &[
    ("name", Read),
    ("task", Read),
    ("classes", Read),
    ("preprocess", Keys(PREPROCESS)),
    ("opset", Note),
    ("mask", Says(&["logit > 0"])),
    ("noise_sigma", Note),
];

const DETECTION: &[(&str, Key)] = &[
    ("feature_stride", Read),
    ("feature_size", Note),
    ("feature_channels", Note),
    ("boxes", Note),
    (
        "anchors",
        Keys(&[
            ("base", Read),
            ("per_location", Read),
            // What `base` was made from.
            ("sizes", Note),
            ("aspect_ratios", Note),
            ("count", Note),
            ("centre", Says(&["(x * stride, y * stride)"])),
            ("order", Says(&["row-major over y, x, then anchor"])),
        ]),
    ),
    (
        "rpn",
        Keys(&[
            ("pre_nms_top_n", Read),
            ("post_nms_top_n", Read),
            ("nms_iou", Read),
            ("min_size", Read),
            ("max_dw_dh", Read),
            ("delta_weights", Read),
            ("nms_steps", Read),
            ("clip_to_image", On),
            ("logit_layout", Says(&["1 x A x Hf x Wf"])),
            ("delta_layout", Says(&["1 x (A*4) x Hf x Wf; channel = anchor*4 + {dx,dy,dw,dh}"])),
        ]),
    ),
    (
        "roi_align",
        Keys(&[("output", Read), ("sampling_ratio", Read), ("spatial_scale", Read), ("aligned", Read)]),
    ),
    (
        "box",
        Keys(&[
            ("delta_weights", Read),
            ("max_dw_dh", Read),
            ("score_threshold", Read),
            ("min_size", Read),
            ("nms_iou", Read),
            ("detections_per_image", Read),
            ("nms_steps", Read),
            ("score", Says(&["softmax"])),
            ("nms", Says(&["per class"])),
            ("delta_layout", Says(&["R x (classes*4); index = class*4 + {dx,dy,dw,dh}"])),
        ]),
    ),
];

/// Refuses keys that nothing would heed. Those that begin with `_` are comments.
///
/// # Errors
///
/// [`Error::Config`] naming the key and what it may be.
pub fn check(text: &str) -> Result<()> {
    let value: Value = serde_json::from_str(text).map_err(|e| Error::Config(e.to_string()))?;
    let detection = value["task"] == "detection" || value.get("feature_stride").is_some();
    let known: Vec<&(&str, Key)> = COMMON.iter().chain(if detection { DETECTION } else { &[] }).collect();
    walk(&value, "", &known)
}

fn walk(value: &Value, path: &str, known: &[&(&str, Key)]) -> Result<()> {
    let Value::Object(fields) = value else {
        return Err(Error::Config(format!("{} is not an object", if path.is_empty() { "it" } else { path })));
    };
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with('_')) {
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let Some((_, key)) = known.iter().find(|(key, _)| key == name) else {
            let nearest = known.iter().map(|(key, _)| *key).min_by_key(|key| distance(key, name));
            let hint = nearest.map_or(String::new(), |key| format!("; is {key} meant?"));
            return Err(Error::Config(format!("the key {at} is not known{hint}")));
        };
        match key {
            Read | Note => {}
            Says(all) => {
                if !all.iter().any(|said| value == said) {
                    return Err(Error::Config(format!(
                        "{at} is {value}, and only {:?} is supported",
                        all.join(", ")
                    )));
                }
            }
            On => {
                if *value != Value::Bool(true) {
                    return Err(Error::Config(format!("{at} is {value}, and only true is supported")));
                }
            }
            Keys(inner) => {
                if !value.is_null() {
                    walk(value, &at, &inner.iter().collect::<Vec<_>>())?;
                }
            }
        }
    }
    Ok(())
}

/// How many letters have to change, come or go.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = change.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nothing_would_heed_is_refused() {
        for (text, said) in [
            (r#"{"preprocess": {"men": [0.5]}}"#, "preprocess.men is not known; is mean meant?"),
            (r#"{"clases": []}"#, "is classes meant?"),
            (r#"{"task": "classification", "rpn": {}}"#, "the key rpn is not known"),
            (r#"{"task": "detection", "rpn": {"clip_to_image": false}}"#, "only true is supported"),
            (r#"{"task": "detection", "box": {"score": "sigmoid"}}"#, "only \"softmax\" is supported"),
            (r#"{"task": "detection", "box": {"nms": "agnostic"}}"#, "only \"per class\" is supported"),
            (r#"{"preprocess": 3}"#, "preprocess is not an object"),
            ("[]", "it is not an object"),
        ] {
            let e = check(text).expect_err(text).to_string();
            assert!(e.contains(said), "{text}: {e}");
        }
        check(r#"{"_note": 1, "opset": 17, "preprocess": null}"#).expect("in order");
        check(include_str!("../../data/bccd_frcnn/config.json")).expect("shipped");
        check(include_str!("../../data/brain_mri_cnn/config.json")).expect("shipped");
    }

    #[test]
    fn letters_that_change() {
        for (a, b, d) in [("mean", "men", 1), ("std", "std", 0), ("", "abc", 3), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), d);
        }
    }
}
