//! Pictures that drive numbers out of what calibration saw.

use std::path::Path;

use sharelens_models::image::Picture;
use sharelens_models::{Arithmetic, Model, Options, prepare};

/// A network whose calibration pictures are faint: `adv.png` drives its convolution 16 times beyond them. ONNX Runtime
/// gives (16.0, 0.464).
#[test]
fn room_is_made_for_any_picture_where_it_is_within_reach() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/overflow");
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let model = Model::from_bytes(&std::fs::read(dir.join("model.onnx")).unwrap(), Some(&config)).unwrap();
    let input = |name: &str| model.input(&Picture::load(&dir.join(name)).unwrap()).unwrap();
    let calibration: Vec<_> = (0..4).map(|i| input(&format!("cal/c{i}.png"))).collect();
    let (prepared, report) = prepare(&model, &calibration, &Options::default()).unwrap();
    assert!(report.values.iter().all(|v| v.proved), "{:?}", report.values);
    let manifest = prepared.manifest().unwrap();
    assert!(manifest.program.watched().is_empty() && manifest.outputs.iter().all(|o| o.proved));
    let found = prepared.twin(prepared.arithmetic()).unwrap().run(&input("adv.png")).unwrap();
    // Within two thousandths of what it reaches.
    assert!((found[0][0] - 16.0).abs() < 0.032 && (found[0][1] - 0.464).abs() < 0.032, "{found:?}");
    // Where the worst case is out of reach, a run looks instead.
    let config = config.replace(r#""std": [0.5]"#, r#""std": [1e-5]"#);
    let adversarial = input("adv.png");
    let model = Model::from_bytes(&std::fs::read(dir.join("model.onnx")).unwrap(), Some(&config)).unwrap();
    let (prepared, report) =
        prepare(&model, &calibration, &Options { stress: false, ..Options::default() }).unwrap();
    assert!(report.values.iter().all(|v| !v.proved));
    assert_eq!(prepared.manifest().unwrap().program.watched().len(), 1);
    let twin = prepared.twin(&Arithmetic::usual(2, 2).unwrap()).unwrap();
    assert!(twin.run(&adversarial).is_err());
}

#[test]
fn manifests_that_look_in_other_ways_are_refused() {
    use sharelens_models::program::Instruction;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/brain_mri_cnn/model.onnx");
    let model = Model::import(&dir, None).unwrap();
    let n = model.graph().input_shape.iter().product();
    let options =
        Options { tolerance: 1e9, arithmetic: Some(Arithmetic::usual(3, 2).unwrap()), ..Options::default() };
    let (prepared, _) = prepare(&model, &[vec![0.5; n]], &options).unwrap();
    let good = prepared.manifest().unwrap();
    good.validate().unwrap();
    let at =
        |op: fn(&Instruction) -> bool| good.program.layers.iter().position(|l| op(&l.op)).expect("there");
    let (sample, look) =
        (at(|op| matches!(op, Instruction::Sample { .. })), at(|op| *op == Instruction::Outside));
    let spoil = |what: &str, change: &dyn Fn(&mut sharelens_models::Manifest)| {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(bad.validate().is_err(), "{what}");
    };
    let looks = |stride, shift, factor| Instruction::Sample { stride, shift, factor };
    spoil("a step of zero", &|m| m.program.layers[sample].op = looks(0, 0, 1));
    spoil("a step beyond the end", &|m| m.program.layers[sample].op = looks(usize::MAX, 0, 1));
    spoil("a factor of zero", &|m| m.program.layers[sample].op = looks(1, 0, 0));
    spoil("a shift without end", &|m| m.program.layers[sample].op = looks(1, i64::MIN, 1));
    spoil("a sample of another length", &|m| m.program.layers[sample].shape[0] += 1);
    spoil("a count of nothing", &|m| m.program.layers[look].inputs.clear());
    spoil("fewer counts", &|m| m.program.layers[look].shape[0] += 1);
    spoil("a register for counts that holds none", &|m| m.program.watched = Some(1));
    spoil("no register", &|m| m.program.watched = Some(0));
    spoil("a register beyond the end", &|m| m.program.watched = Some(u32::MAX));
    spoil("looks without end", &|m| {
        let look = m.program.layers[look].clone();
        m.program.layers.extend(std::iter::repeat_n(look, 20));
    });
}

#[test]
fn outputs_that_hardly_differ_keep_their_ranking() {
    // The shipped classifier with logits a thousandth as large, as a network that was not trained has them.
    use prost::Message;
    use sharelens_models::onnx::proto::ModelProto;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let bytes = std::fs::read(dir.join("brain_mri_cnn/model.onnx")).unwrap();
    let mut file = ModelProto::decode(&bytes[..]).unwrap();
    let graph = file.graph.as_mut().unwrap();
    let last: Vec<String> = graph.node.last().unwrap().input[1..].to_vec();
    for tensor in graph.initializer.iter_mut().filter(|t| last.contains(&t.name)) {
        for v in &mut tensor.float_data {
            *v /= 1000.0;
        }
        for b in tensor.raw_data.chunks_exact_mut(4) {
            let v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]) / 1000.0;
            b.copy_from_slice(&v.to_le_bytes());
        }
    }
    let config = std::fs::read_to_string(dir.join("brain_mri_cnn/config.json")).unwrap();
    let model = Model::from_bytes(&file.encode_to_vec(), Some(&config)).unwrap();
    let mut names: Vec<_> =
        std::fs::read_dir(dir.join("brain_mri")).unwrap().map(|f| f.unwrap().path()).collect();
    names.retain(|f| f.extension().is_some_and(|e| e == "jpg"));
    names.sort();
    let inputs: Vec<_> = names.iter().map(|f| model.input(&Picture::load(f).unwrap()).unwrap()).collect();
    let (prepared, report) = prepare(&model, &inputs, &Options::default()).unwrap();
    assert!(report.relative.unwrap() <= 0.01, "{:?} of {:?}", report.relative, report.error);
    assert!(report.error < 0.0004, "far below what is accepted elsewhere: {}", report.error);
    let twin = prepared.twin(prepared.arithmetic()).unwrap();
    let top = sharelens_models::check::top;
    for input in &inputs {
        let (float, fixed) = (prepared.float(input).unwrap(), twin.run(input).unwrap());
        assert_eq!(top(&float[0]), top(&fixed[0]), "{float:?} {fixed:?}");
    }
}
