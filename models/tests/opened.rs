//! Manifests that would make the servers open what nobody may see are refused, whatever else they get right.

use std::path::Path;

use sharelens_models::config::Task;
use sharelens_models::manifest::OutputInfo;
use sharelens_models::program::detect::Stage;
use sharelens_models::program::{Arrange, Instruction, Layer, Program};
use sharelens_models::{Manifest, Model, Options, prepare};
use sharelens_ops::detect::{KeepFirst, RankDetections, Suppress, TopAnchors, Unsettled};
use sharelens_ops::layers::Select;
use sharelens_protocol::ring::Range;

fn shipped() -> Manifest {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/bccd_frcnn_tiny");
    let model = Model::import(&dir, None).expect("supported");
    let side: usize = model.graph().input_shape.iter().product();
    let samples = vec![vec![0.25; side], (0..side).map(|i| (i % 97) as f32 / 97.0).collect()];
    let options = Options { margin: 2.0, tolerance: 1e9, ..Options::default() };
    let (prepared, _) = prepare(&model, &samples, &options).expect("there is room");
    prepared.manifest().expect("it fits")
}

fn layer(op: Instruction, inputs: &[u32], shape: &[usize], range: Range) -> Layer {
    Layer { name: "hostile".into(), op, inputs: inputs.to_vec(), shape: shape.to_vec(), range, scale: 1024.0 }
}

fn stage(stage: Stage, inputs: &[u32], shape: &[usize]) -> Layer {
    let limits = vec![1.0; inputs.len()];
    let range = stage.kind().yields().range();
    layer(Instruction::Detect { stage: Box::new(stage), limits }, inputs, shape, range)
}

/// A manifest of these layers on an input of this shape, with the last of them for its result.
fn manifest(input_shape: &[usize], layers: Vec<Layer>) -> Manifest {
    let mut m = shipped();
    let last = layers.len() as u32;
    let shape = layers[layers.len() - 1].shape.clone();
    m.outputs =
        vec![OutputInfo { name: "out".into(), shape, columns: Vec::new(), finish: None, proved: false }];
    m.config.preprocess = None;
    m.config.detection = None;
    m.config.task = Task::Other;
    m.program = Program {
        input_shape: input_shape.to_vec(),
        input_scale: 255.0,
        layers,
        outputs: vec![last],
        watched: None,
        ..m.program
    };
    m
}

fn refused(input_shape: &[usize], layers: Vec<Layer>, what: &str) {
    let e = manifest(input_shape, layers).validate().expect_err(what).to_string();
    assert!(e.contains("bits that no sign made"), "{what}: {e}");
}

fn reshape(from: u32, shape: &[usize]) -> Layer {
    layer(Instruction::Arrange(Arrange::Reshape), &[from], shape, Range::Full)
}

#[test]
fn pixels_are_no_bits() {
    // What showed a picture of 64 pixels to both servers: keep bits that are pixels. With one row as well as with many.
    for rows in [1, 2, 32] {
        let picture = [2, rows];
        let first = Select { axes: vec![vec![0], (0..rows as u32).collect()] };
        let start = vec![
            layer(Instruction::Arrange(Arrange::Select(first)), &[0], &[1, rows], Range::Full),
            reshape(1, &[rows, 1]),
        ];
        let keep = |list: u32, bits: u32| {
            let s = KeepFirst { rows, width: 1, columns: 1, k: rows };
            stage(Stage::KeepFirst(s), &[list, bits], &[rows, 1])
        };
        let with = |more: Vec<Layer>| [start.clone(), more].concat();
        refused(&picture, with(vec![keep(2, 0)]), "pixels for keep bits");
        let count = stage(Stage::Unsettled(Unsettled { rows, steps: 1 }), &[0], &[1]);
        refused(&picture, with(vec![count]), "pixels counted as bits");
        // The same for ways to make numbers of pixels, also such as should be 0 or 1.
        for op in [
            Instruction::Relu,
            Instruction::Lift,
            Instruction::Clip { lo: Some(0), hi: Some(1) },
            Instruction::Arrange(Arrange::Reshape),
        ] {
            let numbers = layer(op, &[0], &picture, Range::Full);
            refused(&picture, with(vec![numbers, keep(2, 3)]), "numbers for keep bits");
        }
    }
}

#[test]
fn bits_that_were_computed_with_are_no_bits() {
    let good = shipped();
    good.validate().expect("as it was prepared");
    let at = |kind: &str| good.program.layers.iter().position(|l| l.op.label() == kind).expect("there");
    let (suppress, keep) = (at("suppress"), at("keep first"));
    assert_eq!(good.program.layers[keep].inputs[1], suppress as u32 + 1);
    let shape = good.program.layers[suppress].shape.clone();
    let bits = suppress as u32 + 1;
    let all: Vec<Vec<u32>> = shape.iter().map(|&n| (0..n as u32).collect()).collect();
    for (op, inputs) in [
        (Instruction::Arrange(Arrange::Reshape), vec![bits]),
        (Instruction::Arrange(Arrange::Add), vec![bits, bits]),
        (Instruction::Arrange(Arrange::Sub), vec![bits, bits]),
        (Instruction::Arrange(Arrange::Select(Select { axes: all })), vec![bits]),
        (Instruction::Arrange(Arrange::Transpose { permutation: vec![0, 1] }), vec![bits]),
        (Instruction::Arrange(Arrange::Concat { axis: 0 }), vec![bits]),
        (Instruction::Relu, vec![bits]),
        (Instruction::Lift, vec![bits]),
    ] {
        let mut m = good.clone();
        // In place of a layer before the stage, which nothing else of this test needs.
        let moved = layer(op.clone(), &inputs, &shape, Range::Full);
        m.program.layers.insert(keep, moved);
        for l in &mut m.program.layers[keep + 1..] {
            l.inputs.iter_mut().filter(|r| **r > keep as u32).for_each(|r| *r += 1);
        }
        let results = m.program.outputs.iter_mut().chain(&mut m.program.watched);
        results.filter(|r| **r > keep as u32).for_each(|r| *r += 1);
        m.validate().expect("nothing reads them");
        m.program.layers[keep + 1].inputs[1] = keep as u32 + 1;
        let e = m.validate().expect_err("not the bits of the sign").to_string();
        assert!(e.contains("bits that no sign made"), "{op:?}: {e}");
    }
}

#[test]
fn every_register_but_the_bits_is_refused_for_bits() {
    let good = shipped();
    for (i, l) in good.program.layers.iter().enumerate() {
        let Instruction::Detect { stage, .. } = &l.op else { continue };
        for (j, &own) in l.inputs.iter().enumerate() {
            if stage.kind().wants(j) != sharelens_models::program::Kind::Bits {
                continue;
            }
            for r in (0..=i as u32).filter(|&r| r != own) {
                let mut m = good.clone();
                m.program.layers[i].inputs[j] = r;
                assert!(m.validate().is_err(), "layer {i} reads register {r} as bits");
            }
        }
    }
}

#[test]
fn orders_of_any_numbers_are_taken_since_keys_are_clamped() {
    // Ranking pixels is no leak any more, so it need not be refused: the keys are clamped whatever the words are.
    let top = TopAnchors { grid: [8, 8], anchors: vec![[0.0, 0.0, 1.0, 1.0]], k: 4, levels: Vec::new() };
    let deltas = Select { axes: vec![vec![0], (0..8).collect(), (0..8).collect(), vec![0; 4]] };
    let layers = vec![
        layer(Instruction::Arrange(Arrange::Select(deltas)), &[0], &[1, 8, 8, 4], Range::Full),
        stage(Stage::TopAnchors(top), &[0, 1], &[4, 8]),
    ];
    manifest(&[1, 8, 8, 1], layers).validate().expect("sound");
    let rank = RankDetections { proposals: 64, classes: 1 };
    let suppress = Suppress {
        rows: 64,
        width: 7,
        extent: sharelens_ops::detect::Extent { width: 8.0, height: 8.0, scale: 1024.0 },
        least_side: 1,
        least: vec![],
        class: None,
        classes: 0,
        threshold: 0.5,
        steps: 2,
    };
    let boxes = Select { axes: vec![(0..64).collect(), vec![0; 4]] };
    let layers = vec![
        reshape(0, &[64, 1]),
        layer(Instruction::Arrange(Arrange::Select(boxes)), &[1], &[64, 4], Range::Full),
        stage(Stage::RankDetections(rank), &[1, 2, 2], &[64, 7]),
        stage(Stage::Suppress(suppress), &[3], &[2, 64]),
        stage(Stage::KeepFirst(KeepFirst { rows: 64, width: 7, columns: 6, k: 8 }), &[3, 4], &[8, 6]),
    ];
    manifest(&[1, 8, 8, 1], layers).validate().expect("sound");
}

#[test]
fn planning_is_bounded_before_it_is_done() {
    // Each of these is a few bytes of a manifest, and a list of a quarter of a million rows to whoever plans it.
    let levels = sharelens_ops::detect::rank::levels(1 << 18, 1000);
    let top = TopAnchors { grid: [512, 512], anchors: vec![[0.0, 0.0, 1.0, 1.0]], k: 1000, levels };
    let repeat = |axes: Vec<Vec<u32>>| Instruction::Arrange(Arrange::Select(Select { axes }));
    let side = || (0..512).collect::<Vec<u32>>();
    let stages = |n: usize| {
        let deltas =
            layer(repeat(vec![vec![0], side(), side(), vec![0; 4]]), &[0], &[1, 512, 512, 4], Range::Full);
        let tops = (0..n).map(|_| stage(Stage::TopAnchors(top.clone()), &[0, 1], &[1000, 8]));
        manifest(&[1, 512, 512, 1], std::iter::once(deltas).chain(tops).collect())
    };
    stages(8).validate().expect("a large detector");
    let e = stages(9).validate().expect_err("too many rows to be put in order").to_string();
    assert!(e.contains("rows"), "{e}");
}
