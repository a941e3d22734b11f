//! Small networks with a catch, against what ONNX Runtime yields for them (`data/onnx/record.py`): what is accepted has the right
//! values, and what cannot have them is refused.

mod common;

use std::path::PathBuf;

use common::to_storage;
use sharelens_models::{Model, Options, prepare};

/// Those that are refused, and a word of why.
const REFUSED: [(&str, &str); 2] =
    [("bn_training_opset9", "training mode"), ("cast_to_int_and_back", "not of floats")];

fn file(name: &str) -> Vec<u8> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/onnx");
    std::fs::read(dir.join(name)).unwrap()
}

#[test]
fn values_are_those_of_another_runtime() {
    let expected: serde_json::Value = serde_json::from_slice(&file("expected.json")).unwrap();
    let mut right = 0;
    for (name, expected) in expected.as_object().unwrap() {
        let bytes = file(&format!("{name}.onnx"));
        let dims: Vec<i64> = serde_json::from_value(expected["input"].clone()).unwrap();
        let shape: Vec<usize> = serde_json::from_value(expected["shape"].clone()).unwrap();
        let values: Vec<f64> = serde_json::from_value(expected["values"].clone()).unwrap();
        let model = match (Model::from_bytes(&bytes, None), REFUSED.iter().find(|(n, _)| n == name)) {
            (Ok(model), None) => model,
            (Err(e), Some((_, why))) => {
                assert!(e.to_string().contains(why), "{name}: {e}");
                continue;
            }
            (outcome, _) => panic!("{name}: {:?}", outcome.err()),
        };
        let n = dims.iter().product::<i64>();
        let x: Vec<f32> = (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
        // A channels-last input is stored as it is.
        let input = if name.starts_with("nhwc") { x } else { to_storage(&x, &dims) };
        let options = Options { stress: false, ..Options::default() };
        let (prepared, _) = prepare(&model, std::slice::from_ref(&input), &options).unwrap();
        let info = &prepared.manifest().unwrap().outputs[0];
        let twin = prepared.twin(prepared.arithmetic()).unwrap();
        let whole = info.finish.as_ref().is_some_and(|f| f.shape.is_some());
        for (what, found, near) in [
            ("floats", prepared.float(&input).unwrap(), 1e-5),
            ("fixed point", twin.run(&input).unwrap(), if whole { 1e-9 } else { 0.02 }),
        ] {
            let (found_shape, found) = info.finished(&found[0]);
            assert_eq!(found_shape, shape, "{name}");
            assert_eq!(found.len(), values.len(), "{name}");
            for (i, (f, e)) in found.iter().zip(&values).enumerate() {
                assert!((f - e).abs() < near * e.abs().max(1.0), "{name}, {what}, [{i}]: {f}, expected {e}");
            }
        }
        right += 1;
    }
    assert_eq!(right, 54);
}

#[test]
fn names_are_as_many_as_classes() {
    let onnx = file("sigmoid_multilabel_classification.onnx");
    let with = |names: &str| Model::from_bytes(&onnx, Some(&format!("\u{feff}{{\"classes\": {names}}}")));
    with(r#"["a", "b", "c", "d"]"#).expect("four labels, behind a byte order mark");
    with("[]").expect("no names");
    for wrong in [r#"["a"]"#, r#"["a", "b", "c"]"#, r#"["a", "b", "c", "d", "e"]"#] {
        let e = with(wrong).expect_err(wrong).to_string();
        assert!(e.contains("tells 4 classes apart"), "{e}");
    }
    // No and yes.
    let one = file("sigmoid_single_logit_classification.onnx");
    Model::from_bytes(&one, Some(r#"{"classes": ["healthy", "ill"]}"#)).expect("one number tells two apart");
    Model::from_bytes(&one, Some(r#"{"classes": ["a", "b", "c"]}"#)).expect_err("three names");
    // A detector's names, the background among them.
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/bccd_frcnn_tiny");
    let [rpn, head] = ["rpn.onnx", "box_head.onnx"].map(|f| std::fs::read(dir.join(f)).unwrap());
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    Model::detector(&rpn, &head, &config).expect("as it is shipped");
    let shifted = config.replace("\"background\",", "");
    assert_ne!(shifted, config);
    let e = Model::detector(&rpn, &head, &shifted).expect_err("every name is shifted").to_string();
    assert!(e.contains("the background among them"), "{e}");
    let flat = config.replace("\"min_size\": 0.001", "\"min_size\": 0.0");
    assert_ne!(flat, config);
    let e = Model::detector(&rpn, &head, &flat).expect_err("proposals without width").to_string();
    assert!(e.contains("rpn.min_size"), "{e}");
}

#[test]
fn a_picture_with_colours_last_is_named() {
    // No transpose that turns it round: then the axes mean what ONNX says.
    let config = r#"{"preprocess": {"input_size": [8, 8]}}"#;
    let builder = common::Builder::new(13, &[1, 8, 8, 3]).node("Relu", &["x"], "y", &[]);
    let e = Model::from_bytes(&builder.build(&["y"]), Some(config)).expect_err("eight channels").to_string();
    assert!(e.contains("channels first"), "{e}");
}

#[test]
fn weights_beside_the_model_are_read_and_no_other_file_is() {
    use prost::Message;
    use sharelens_models::onnx::proto::{Entry, ModelProto};
    let whole = file("softmax_axis1_map_op13.onnx");
    let apart = |location: &str, offset: usize, dir: &std::path::Path| {
        let mut model = ModelProto::decode(&whole[..]).unwrap();
        let weights: Vec<u8> = {
            let tensor = &mut model.graph.as_mut().unwrap().initializer[0];
            let data = match tensor.raw_data.is_empty() {
                true => tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
                false => std::mem::take(&mut tensor.raw_data),
            };
            tensor.float_data.clear();
            tensor.data_location = 1;
            let entry = |key: &str, value: String| Entry { key: key.into(), value };
            tensor.external_data = vec![
                entry("location", location.into()),
                entry("offset", offset.to_string()),
                entry("length", data.len().to_string()),
            ];
            [vec![9; 8], data].concat()
        };
        std::fs::write(dir.join("weights.bin"), &weights).unwrap();
        let path = dir.join("model.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        path
    };
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("model");
    std::fs::create_dir(&dir).unwrap();
    let model = Model::import(&apart("weights.bin", 8, &dir), None).expect("as in one file");
    let same = Model::from_bytes(&whole, None).unwrap();
    assert_eq!(model.graph(), same.graph());
    // Out of the directory, by name or by a link; behind the end; without a name.
    std::fs::copy(dir.join("weights.bin"), home.path().join("weights.bin")).unwrap();
    let mut wrong =
        vec![("../weights.bin", 8, "beside the model"), ("weights.bin", 9, "end behind"), ("", 0, "beside")];
    let absolute = home.path().join("weights.bin");
    wrong.push((absolute.to_str().unwrap(), 8, "beside the model"));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&absolute, dir.join("link.bin")).unwrap();
        wrong.push(("link.bin", 8, "link out of the model's directory"));
        let made = std::process::Command::new("mkfifo").arg(dir.join("pipe.bin")).status().unwrap();
        assert!(made.success());
        wrong.push(("pipe.bin", 0, "no plain file"));
    }
    for (location, offset, why) in wrong {
        let e = Model::import(&apart(location, offset, &dir), None).expect_err(location).to_string();
        assert!(e.contains(why), "{location}: {e}");
    }
    let bytes = std::fs::read(apart("weights.bin", 8, &dir)).unwrap();
    assert!(Model::from_bytes(&bytes, None).unwrap_err().to_string().contains("given as a file"));
}
