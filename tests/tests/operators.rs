//! Small networks, one for each kind of operator, on shares: the secure run gives what the twin gives, costs what was planned, and
//! sends the same messages whatever the input is.

use std::path::{Path, PathBuf};

use sharelens::LocalCluster;
use sharelens::engine::{encode_manifest, open_result, plan, runner, share_image, share_weights};
use sharelens::local::Link;
use sharelens_models::{Arithmetic, Model, Options, prepare};

fn networks() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/data/onnx");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).expect("shipped").map(|f| f.expect("listed").path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    files
}

#[test]
fn every_kind_of_operator_runs_on_shares() {
    let mut run = 0;
    for file in networks() {
        // Two of them are to be refused.
        let Ok(model) = Model::import(&file, None) else { continue };
        let name = file.file_stem().and_then(|n| n.to_str()).expect("a name").to_string();
        let n: usize = model.graph().input_shape.iter().product();
        let inputs: Vec<Vec<f32>> =
            (1..3).map(|k| (0..n).map(|i| ((i * 37 * k + 5) % 101) as f32 / 100.0).collect()).collect();
        let options = Options { stress: false, ..Options::default() };
        let (mut prepared, _) = prepare(&model, &inputs, &options).unwrap_or_else(|e| panic!("{name}: {e}"));
        if run % 4 == 3 {
            // Also in the other ring, where it has room.
            let z64 = Options { arithmetic: Some(Arithmetic::Z64), ..options };
            if let Ok((other, _)) = prepare(&model, &inputs, &z64) {
                prepared = other;
            }
        }
        let manifest = prepared.manifest().expect("it fits");
        let weights = prepared.quantised(prepared.arithmetic()).expect("they fit");
        let (seed, words) = share_weights(&manifest, &weights).expect("they are its own");
        let bytes = encode_manifest(&manifest).expect("it is short");
        let cluster =
            LocalCluster::start(runner(), Link::new(1.0, 1e6), &bytes, seed, &words).expect("loads");
        let planned = plan(&manifest).expect("it fits");
        let twin = prepared.twin(prepared.arithmetic()).expect("it fits");
        let mut sent = Vec::new();
        for input in &inputs {
            let done = cluster
                .run(&share_image(&manifest, input).expect("fits"))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            let [a, b] = &done.outputs;
            let opened = open_result(&manifest, [a, b]).expect("opens");
            assert!(opened.ranges.in_range(), "{name}: {:?}", opened.ranges);
            let plain = twin.run(input).expect("in range");
            for (found, plain) in opened.outputs.iter().zip(&plain) {
                let largest = plain.iter().fold(1f64, |a, v| a.max(v.abs()));
                for (i, (f, p)) in found.iter().zip(plain).enumerate() {
                    assert!((f - p).abs() < 0.01 * largest, "{name} [{i}]: {f} on shares, {p} in the clear");
                }
            }
            for ledger in &done.ledgers {
                for (layer, cost) in &planned {
                    let found = ledger
                        .entries()
                        .find(|(i, _)| i == layer)
                        .map(|(_, e)| (e.sent.rounds, e.sent.bytes));
                    assert_eq!(found, Some((cost.rounds, cost.bytes)), "{name}, layer {layer}");
                }
            }
            sent.push((done.dealt_bytes, done.online_bytes));
        }
        assert_eq!(sent[0], sent[1], "{name}: lengths depend on the input");
        run += 1;
    }
    assert_eq!(run, 54);
}
