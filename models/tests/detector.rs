//! The shipped detector, stage by stage against the reference that comes with it (computed in 64-bit floats
//! beside the training code), and as a whole.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use futures::executor::block_on;
use safetensors::SafeTensors;
use sharelens_models::detect::{Detections, Settings, compare};
use sharelens_models::image::Picture;
use sharelens_models::program::Instruction;
use sharelens_models::program::detect::Stage;
use sharelens_models::{Error, Manifest, Model, Options, Prepared, prepare};
use sharelens_ops::Plain;
use sharelens_ops::detect::{Extent, RoiAlign};
use sharelens_ops::number::{Number, Scope};
use sharelens_ops::plain::Rounding;
use sharelens_protocol::Step;
use sharelens_protocol::ring::Full;

const PICTURES: [&str; 3] = ["BloodImage_00007", "BloodImage_00062", "BloodImage_00065"];
const STRIDE: f64 = 8.0;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

/// As the reference saw it: decoders of JPEG files differ by a unit of 255 in places, which moves logits by 0.2.
fn picture(model: &Model, name: &str) -> Vec<f32> {
    let file = data().join("bccd_frcnn/pictures").join(name).with_extension("png");
    let picture = Picture::load(&file).expect("shipped");
    model.input(&picture).expect("of the right size")
}

fn ready() -> &'static (Model, Prepared) {
    static READY: OnceLock<(Model, Prepared)> = OnceLock::new();
    READY.get_or_init(|| {
        let model = Model::import(&data().join("bccd_frcnn"), None).expect("it is supported");
        let samples: Vec<_> = PICTURES.iter().map(|p| picture(&model, p)).collect();
        let (prepared, report) = prepare(&model, &samples, &Options::default()).expect("there is room");
        assert!(report.error < 2e-3, "logits or deltas are off by {}", report.error);
        (model, prepared)
    })
}

/// A stored tensor.
fn reference(name: &str) -> Vec<f64> {
    let bytes = std::fs::read(data().join("bccd_frcnn/reference.safetensors")).expect("shipped");
    let stored = SafeTensors::deserialize(&bytes).expect("sound");
    let tensor = stored.tensor(name).expect("there");
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
}

/// `[c, h, w]` to `[h, w, c]`.
fn channels_last(x: &[f64], c: usize) -> Vec<f64> {
    let n = x.len() / c;
    (0..x.len()).map(|i| x[i % c * n + i / c]).collect()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

#[test]
fn objectness_and_deltas() {
    let (model, prepared) = ready();
    let twin = prepared.twin(prepared.arithmetic()).expect("it fits");
    let twin = twin.until(&["/cls_logits/Conv", "/bbox_pred/Conv"]).expect("so the layers are called");
    let input = picture(model, PICTURES[0]);
    for rounding in [Rounding::Nearest, Rounding::Random(5)] {
        let (found, _) = twin.run_storage(&input, rounding).expect("in range");
        let logits = channels_last(&reference("rpn_logits"), 3);
        let deltas = channels_last(&reference("rpn_deltas"), 12);
        for (found, wanted) in [(&found[0], logits), (&found[1], deltas)] {
            let worst = largest_difference(found, &wanted);
            assert!(worst < 2e-3, "off by {worst}");
        }
    }
}

#[test]
fn anchors_proposals_and_their_features() {
    let (model, prepared) = ready();
    let twin = prepared.twin(prepared.arithmetic()).expect("it fits");
    let twin = twin.until(&["rpn.decode", "rpn.proposals"]).expect("so the layers are called");
    let input = picture(model, PICTURES[0]);
    let (found, _) = twin.run_storage(&input, Rounding::Random(6)).expect("in range");
    let pixels = |v: &[f64]| v.iter().map(|v| v * STRIDE).collect::<Vec<_>>();
    let worst = largest_difference(&pixels(&found[0]), &reference("topk_boxes"));
    assert!(worst < 0.02, "decoded boxes are off by {worst} pixels");
    let wanted = reference("proposals");
    let (own, padding) = found[1].split_at(wanted.len());
    let worst = largest_difference(&pixels(own), &wanted);
    assert!(worst < 0.02, "proposals are off by {worst} pixels");
    assert!(
        padding.iter().all(|&v| v == 0.0) && !padding.is_empty(),
        "fewer proposals than there is room for"
    );

    // RoIAlign of the reference's own boxes on its own features.
    let bounds = prepared.arithmetic().bounds().expect("usable");
    let features = channels_last(&reference("features"), 128);
    let wanted = reference("roi_features");
    let k = wanted.len() / (128 * 49);
    let stage = RoiAlign {
        boxes: k,
        map: [30, 40, 128],
        extent: Extent { width: 40.0, height: 30.0, scale: 16_384.0 },
        bins: 7,
        samples: 2,
        aligned: false,
        scale: 65_536.0,
    };
    let scale = 65_536.0;
    let mut e = Plain::new(bounds, Default::default()).with_rounding(Rounding::Random(8));
    let scope = &mut Scope::new(Step::layer(1), bounds);
    let integers = features.iter().map(|v| (v * scale).round() as i64).collect::<Vec<_>>();
    let features = Number::<Plain, Full>::new(scope, integers.into(), scale, 28.0).expect("fits");
    let boxes: Vec<i64> =
        reference("proposals")[..4 * k].iter().map(|v| (v / STRIDE * 16_384.0).round() as i64).collect();
    let found = block_on(stage.run(&mut e, scope, &features, &boxes.into())).expect("in range");
    let found: Vec<f64> = found.integers().as_slice().iter().map(|&v| v as f64 / found.scale()).collect();
    let per_box = found.chunks_exact(49 * 128).zip(wanted.chunks_exact(49 * 128));
    let worst = per_box.map(|(f, w)| largest_difference(f, &channels_last(w, 128))).fold(0.0, f64::max);
    assert!(worst < 2e-3, "features of proposals are off by {worst}");
}

#[test]
fn detections() {
    let (model, prepared) = ready();
    let text = std::fs::read_to_string(data().join("bccd_frcnn/detections.json")).expect("shipped");
    let stored: serde_json::Value = serde_json::from_str(&text).expect("sound");
    for name in PICTURES {
        let list = |key: &str| stored[name][key].as_array().expect("a list").clone();
        let corners = |b: &serde_json::Value| [0, 1, 2, 3].map(|i: usize| b[i].as_f64().expect("a number"));
        let wanted = Detections {
            boxes: list("boxes").iter().map(corners).collect(),
            labels: list("labels").iter().map(|l| l.as_u64().expect("a class") as usize).collect(),
            scores: list("scores").iter().map(|s| s.as_f64().expect("a number")).collect(),
        };
        assert!(stored[name]["stable_to"].as_f64().is_some_and(|s| s >= 1e-3), "comparable");
        let input = picture(model, name);
        let twin = prepared.twin(prepared.arithmetic()).expect("it fits");
        let (fixed, _) = twin.run_storage(&input, Rounding::Random(9)).expect("in range");
        let float = prepared.float(&input).expect("of the right size");
        for (how, out) in [("fixed", &fixed), ("float", &float)] {
            assert_eq!((out[1][0], out[2][0]), (0.0, 0.0), "{how}: settled");
            let found = Detections::from_rows(&out[0], STRIDE);
            assert_eq!(found.len(), wanted.len(), "{name} {how}");
            let agreement = compare(&found, &wanted, 0.5);
            assert!(agreement.matched > 5 && agreement.alone == 0, "{name} {how}: {agreement:?}");
            assert!(agreement.pixels < 1.0 && agreement.score < 0.02, "{name} {how}: {agreement:?}");
        }
    }
}

#[test]
fn files_and_manifests_keep_a_detector() {
    let (model, prepared) = ready();
    let again = Prepared::from_bytes(&prepared.to_bytes().expect("writes")).expect("reads");
    let input = picture(model, PICTURES[1]);
    assert_eq!(prepared.plain(&input).expect("in range"), again.plain(&input).expect("in range"));

    let manifest = prepared.manifest().expect("it fits");
    manifest.validate().expect("it holds together");
    let stages = manifest.program.layers.iter().filter(|l| l.name.starts_with("rpn.")).count();
    assert!(stages >= 4);
    let changed = |change: &dyn Fn(&mut Manifest)| {
        let mut m = manifest.clone();
        change(&mut m);
        m.validate().expect_err("it was changed")
    };
    let at = |name: &str| manifest.program.layers.iter().position(|l| l.name == name).expect("there");
    for name in ["rpn.top", "rpn.suppress", "rpn.proposals", "roi_align", "box.rank", "box.detections"] {
        let i = at(name);
        assert!(matches!(changed(&|m| m.program.layers[i].shape[0] += 1), Error::Manifest(_)), "{name}");
        assert!(matches!(changed(&|m| m.program.layers[i].inputs.clear()), Error::Manifest(_)), "{name}");
    }
    // Numbers that overflow whatever is computed from them, before anything says no.
    let stage = |name: &'static str, change: fn(&mut Stage)| {
        let i = at(name);
        changed(&|m| match &mut m.program.layers[i].op {
            Instruction::Detect { stage, .. } => change(stage),
            other => panic!("{other:?} is no stage"),
        });
    };
    stage("rpn.top", |s| {
        if let Stage::TopAnchors(s) = s {
            s.grid = [usize::MAX; 2]
        }
    });
    stage("rpn.top", |s| {
        if let Stage::TopAnchors(s) = s {
            s.levels[0].group = usize::MAX
        }
    });
    stage("rpn.decode", |s| {
        if let Stage::Decode(s) = s {
            s.rows = usize::MAX
        }
    });
    stage("rpn.suppress", |s| {
        if let Stage::Suppress(s) = s {
            s.least_side = i64::MIN
        }
    });
    stage("rpn.suppress", |s| {
        if let Stage::Suppress(s) = s {
            s.steps = usize::MAX
        }
    });
    stage("box.suppress", |s| {
        if let Stage::Suppress(s) = s {
            s.least[0].1 = i64::MIN
        }
    });
    stage("rpn.proposals", |s| {
        if let Stage::KeepFirst(s) = s {
            s.rows = usize::MAX
        }
    });
    stage("roi_align", |s| {
        if let Stage::RoiAlign(s) = s {
            s.map = [usize::MAX; 3]
        }
    });
    stage("roi_align", |s| {
        if let Stage::RoiAlign(s) = s {
            s.extent.scale = f64::NAN
        }
    });
    stage("box.decode", |s| {
        if let Stage::DecodeClasses(s) = s {
            s.proposals = usize::MAX
        }
    });
    stage("box.rank", |s| {
        if let Stage::RankDetections(s) = s {
            s.classes = usize::MAX
        }
    });
    changed(&|m| m.outputs[0].columns[4] = 0.0);
    changed(&|m| _ = m.outputs[0].columns.pop());
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let text = std::fs::read_to_string(data().join("bccd_frcnn/config.json")).expect("shipped");
    assert!(Settings::parse(&text).is_ok());
    let good: serde_json::Value = serde_json::from_str(&text).expect("sound");
    let bad = |path: &str, value: serde_json::Value| {
        let mut v = good.clone();
        *v.pointer_mut(path).expect("there") = value;
        assert!(matches!(Settings::parse(&v.to_string()), Err(Error::Config(_))), "{path}");
    };
    bad("/feature_stride", 0.0.into());
    bad("/anchors/base/0/2", (-11.0).into());
    bad("/rpn/nms_iou", 1.5.into());
    bad("/rpn/pre_nms_top_n", 0.into());
    bad("/rpn/post_nms_top_n", 100_000.into());
    bad("/rpn/max_dw_dh", 90.0.into());
    bad("/roi_align/spatial_scale", 0.25.into());
    bad("/box/score_threshold", (-0.1).into());
    bad("/box/delta_weights/1", 9.0.into());
    bad("/box/detections_per_image", 0.into());
    // The box head takes 64 proposals.
    let mut other = good.clone();
    other["rpn"]["post_nms_top_n"] = 32.into();
    let read = |f: &str| std::fs::read(data().join("bccd_frcnn").join(f)).expect("shipped");
    let error = Model::detector(&read("rpn.onnx"), &read("box_head.onnx"), &other.to_string());
    assert!(error.expect_err("it does not fit").to_string().contains("box head"));
}
