//! The shipped classifier: floats against its stored reference and another implementation, fixed point
//! against floats, files and manifests against damage.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use safetensors::SafeTensors;
use sharelens_models::image::Picture;
use sharelens_models::{Arithmetic, Error, Manifest, Model, Options, Prepared, check, inspect, prepare};
use sharelens_protocol::ring::Moduli;
use tract_onnx::prelude::*;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

fn model() -> Model {
    Model::import(&data().join("brain_mri_cnn/model.onnx"), None).expect("it is supported")
}

fn pictures(model: &Model) -> Vec<Vec<f32>> {
    let names = std::fs::read_to_string(data().join("brain_mri_cnn/files.json")).expect("shipped");
    let names: Vec<String> = serde_json::from_str(&names).expect("a list");
    let one = |n: &String| Picture::load(&data().join("brain_mri").join(n)).and_then(|p| model.input(&p));
    names.iter().map(|n| one(n).expect("a picture")).collect()
}

/// Stored inputs (one channel, so in storage order) and logits.
fn reference() -> (Vec<Vec<f32>>, Vec<Vec<f64>>) {
    let bytes = std::fs::read(data().join("brain_mri_cnn/reference.safetensors")).expect("shipped");
    let stored = SafeTensors::deserialize(&bytes).expect("sound");
    let floats = |name: &str| -> Vec<f32> {
        let data = stored.tensor(name).expect("there").data();
        data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    let inputs = floats("inputs").chunks_exact(64 * 64).map(<[f32]>::to_vec).collect();
    let logits = floats("logits").chunks_exact(4).map(|l| l.iter().map(|&v| v.into()).collect()).collect();
    (inputs, logits)
}

fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

fn ready() -> Prepared {
    static READY: OnceLock<Prepared> = OnceLock::new();
    let prepare = || {
        let model = model();
        prepare(&model, &pictures(&model), &Options::default()).expect("there is room").0
    };
    READY.get_or_init(prepare).clone()
}

#[test]
fn pictures_become_the_stored_inputs() {
    let (stored, _) = reference();
    for (i, (mine, stored)) in pictures(&model()).iter().zip(&stored).enumerate() {
        // Decoders round differently by a unit of 255 in places; the unit is 0.022 here.
        let worst = mine.iter().zip(stored).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(worst < 0.03, "picture {i}: {worst}");
    }
}

#[test]
fn floats_equal_the_reference_and_another_implementation() {
    let (inputs, logits) = reference();
    let prepared = ready();
    let path = data().join("brain_mri_cnn/model.onnx");
    let other = tract_onnx::onnx()
        .model_for_path(path)
        .and_then(|m| m.into_optimized())
        .and_then(|m| m.into_runnable());
    let other = other.expect("tract plans it");
    for (x, expected) in inputs.iter().zip(&logits) {
        let mine = &prepared.float(x).expect("runs")[0];
        assert!(difference(mine, expected) < 1e-4);
        let input = Tensor::from_shape(&[1, 1, 64, 64], x).expect("right size");
        let theirs = other.run(tvec!(input.into())).expect("tract runs it");
        let theirs: Vec<f64> =
            theirs[0].to_plain_array_view::<f32>().expect("floats").iter().map(|&v| v.into()).collect();
        assert!(difference(mine, &theirs) < 1e-4);
    }
}

#[test]
fn fixed_point_agrees_in_every_ring() {
    let prepared = ready();
    let inputs = pictures(&model());
    let rings = [(3, 2), (3, 3), (4, 2), (4, 4)].map(|(k, l)| Arithmetic::usual(k, l).expect("exists"));
    for ring in rings.into_iter().chain([Arithmetic::Z64]) {
        let twin = prepared.twin(&ring).expect("it fits");
        for x in &inputs {
            let (fixed, float) = (&twin.run(x).expect("in range")[0], &prepared.float(x).expect("runs")[0]);
            assert!(difference(fixed, float) < 0.02, "{ring}: {fixed:?} {float:?}");
        }
    }
    let checked = check(&prepared, &inputs).expect("in range");
    assert_eq!((checked.inputs, checked.same_class), (8, Some(8)));
    assert!(checked.max_error < 0.01 && checked.tightest.headroom > 1.5, "{checked:?}");
}

#[test]
fn report_states_margins() {
    let model = model();
    let (_, report) = prepare(&model, &pictures(&model), &Options::default()).expect("there is room");
    assert!(report.error < 0.008 && report.inputs == [8, 14]);
    assert_eq!((report.changes.folded, report.changes.pools_moved, report.changes.movements), (4, 4, 1));
    assert!(report.values.iter().all(|v| v.headroom >= 1.999), "the margin is two");
    let wide = Options {
        margin: 64.0,
        arithmetic: Some(Arithmetic::usual(2, 2).expect("exists")),
        ..Options::default()
    };
    let Err(Error::Range(why)) = prepare(&model, &pictures(&model), &wide) else {
        panic!("16 bits do not hold that")
    };
    assert!(why.contains("fc1") && why.contains("reach"), "{why}");
}

#[test]
fn overflow_is_refused_with_the_name_of_the_layer() {
    let prepared = ready();
    let huge: Vec<f32> = pictures(&model())[0].iter().map(|v| v * 300.0).collect();
    let error = prepared.plain(&huge).expect_err("far beyond calibration");
    assert!(matches!(&error, Error::Overflow { layer, .. } if !layer.is_empty()), "{error}");
    let error = prepared.plain(&huge[1..]).expect_err("too short");
    assert!(error.to_string().contains("4096"), "{error}");
}

#[test]
fn inspection_counts() {
    let report = inspect(&data().join("brain_mri_cnn/model.onnx")).expect("sound");
    let network = report.network.expect("supported");
    assert_eq!((report.operators["Conv"], network.macs), (4, 12_517_888));
    assert_eq!(network.outputs, [("logits".to_owned(), vec![1, 4])]);
}

#[test]
fn files_survive_a_round_trip_and_refuse_damage() {
    let prepared = ready();
    let bytes = prepared.to_bytes().expect("writes");
    assert_eq!(bytes, prepared.to_bytes().expect("writes"), "equal models make equal files");
    let back = Prepared::from_bytes(&bytes).expect("reads");
    assert_eq!(back.manifest().expect("valid"), prepared.manifest().expect("valid"));
    assert_eq!(
        back.quantised(&Arithmetic::Z64).expect("fits"),
        prepared.quantised(&Arithmetic::Z64).expect("fits")
    );
    for keep in [0, 4, 100, bytes.len() / 2, bytes.len() - 1] {
        assert!(Prepared::from_bytes(&bytes[..keep]).is_err(), "{keep} bytes");
    }
    // A NaN among the weights.
    let mut damaged = bytes.clone();
    let end = damaged.len();
    damaged[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(Prepared::from_bytes(&damaged).unwrap_err().to_string().contains("finite"));
    // Numbers of the header changed, of equal length.
    let text = String::from_utf8_lossy(&bytes[..4000]).into_owned();
    for (from, to) in [("64", "99"), ("[1,", "[7,"), ("\\\"version\\\":4", "\\\"version\\\":9")] {
        let at = text.find(from).expect("in the header");
        let mut damaged = bytes.clone();
        damaged[at..at + from.len()].copy_from_slice(to.as_bytes());
        assert!(Prepared::from_bytes(&damaged).is_err(), "{from} to {to}");
    }
}

#[test]
fn manifests_of_a_peer_are_checked() {
    let good = ready().manifest().expect("valid");
    let json = serde_json::to_string(&good).expect("writes");
    let back: Manifest = serde_json::from_str(&json).expect("reads");
    assert_eq!(back, good);
    type Spoil = (&'static str, fn(&mut Manifest));
    let spoil: &[Spoil] = &[
        ("version", |m| m.version = 7),
        ("divisor", |m| m.program.bounds.divisor += 1),
        ("moduli", |m| m.arithmetic = Arithmetic::Rns(Moduli { p: vec![255, 253], q: vec![2] })),
        ("input shape", |m| m.program.input_shape = vec![1, 64, 64, 3]),
        ("vast input", |m| m.program.input_shape = vec![usize::MAX, 2, 2]),
        ("scale", |m| m.program.layers[0].scale = f64::NAN),
        ("shape", |m| m.program.layers[1].shape[1] += 1),
        ("forward reference", |m| m.program.layers[0].inputs = vec![5]),
        ("no input", |m| m.program.layers[2].inputs.clear()),
        ("domain", |m| m.program.layers[0].range = sharelens_protocol::ring::Range::Full),
        ("output register", |m| m.program.outputs = vec![99]),
        ("output shape", |m| m.outputs[0].shape = vec![1, 5]),
        ("outputs", |m| m.outputs.clear()),
        ("weights", |m| {
            for layer in &mut m.program.layers {
                if let sharelens_models::program::Instruction::Linear { map, .. } = &mut layer.op {
                    map.weight = 0;
                }
            }
        }),
        ("convolution", |m| {
            if let sharelens_models::program::Instruction::Linear { map, .. } = &mut m.program.layers[0].op {
                map.conv.stride = [0, 0];
            }
        }),
        ("windows", |m| {
            if let sharelens_models::program::Instruction::MaxPool(p) = &mut m.program.layers[1].op {
                p.rows.before = 70;
            }
        }),
    ];
    for (what, spoil) in spoil {
        let mut bad = good.clone();
        spoil(&mut bad);
        assert!(bad.validate().is_err(), "{what}");
    }
    assert!(good.decode(0, &[0; 3]).is_err() && good.decode(1, &[0; 4]).is_err());
}

#[test]
fn planning_needs_the_manifest_alone() {
    use sharelens_ops::planner::{Length, Planner};
    use sharelens_protocol::compare::Rounds;
    use sharelens_protocol::ring::Rns;

    let manifest = ready().manifest().expect("valid");
    let mut planner = Planner::<Rns>::new(Rounds::Balanced);
    let input = Length::new(manifest.program.input_len());
    let mut layers = 0;
    let run = sharelens_models::run(&manifest.program, &mut planner, input, |_| layers += 1);
    let outputs = futures::executor::block_on(run).expect("lengths fit");
    let looks = manifest.program.watched().len();
    assert_eq!((outputs, layers), (vec![Length::new(4), Length::new(looks)], manifest.program.layers.len()));
    // Six linear layers, five ReLUs, four pools of two levels, a look at ranges; everything else is local.
    let plan = planner.finish();
    assert_eq!(plan.maps().count(), 6);
    assert_eq!(plan.demands().len(), 6 + 5 + 4 * 2 + 1);
}
