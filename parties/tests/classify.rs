//! The shipped classifier by all parties in one process: the engine that nodes run, over a virtual link.

use std::time::Duration;

use sharelens::control::Start;
use sharelens::local::Link;
use sharelens::{LocalCluster, engine};
use sharelens_models::check::top;
use sharelens_models::image::Picture;
use sharelens_models::{Arithmetic, Model, Options, Prepared, prepare};
use sharelens_protocol::cost::Cost;

const ONNX: &[u8] = include_bytes!("../../models/data/brain_mri_cnn/model.onnx");
const CONFIG: &str = include_str!("../../models/data/brain_mri_cnn/config.json");
const PICTURES: [&[u8]; 3] = [
    include_bytes!("../../models/data/brain_mri/glioma-gg_218.jpg"),
    include_bytes!("../../models/data/brain_mri/no_tumor-image_39.jpg"),
    include_bytes!("../../models/data/brain_mri/pituitary-p_230.jpg"),
];

/// The shipped classifier, prepared, and pictures for it.
fn classifier() -> (Prepared, Vec<Vec<f32>>) {
    let model = Model::from_bytes(ONNX, Some(CONFIG)).unwrap();
    let inputs: Vec<Vec<f32>> =
        PICTURES.iter().map(|p| model.input(&Picture::decode(p).unwrap()).unwrap()).collect();
    let (prepared, _) = prepare(&model, &inputs, &Options::default()).unwrap();
    (prepared, inputs)
}

#[test]
fn an_image_sent_at_once_yields_the_same_sooner() {
    let (prepared, inputs) = classifier();
    let manifest = prepared.manifest().unwrap();
    let weights = prepared.quantised(prepared.arithmetic()).unwrap();
    let (seed, words) = engine::share_weights(&manifest, &weights).unwrap();
    let encoded = engine::encode_manifest(&manifest).unwrap();
    // So slow that computing hardly counts.
    let link = Link::new(40.0, 2.0);
    let cluster = LocalCluster::start(engine::runner(), link, &encoded, seed, &words).unwrap();
    let image = engine::share_image(&manifest, &inputs[0]).unwrap();
    let [first, at_once] = [Start::Prepared, Start::AtOnce].map(|start| {
        let run = cluster.run_from(&image, start).unwrap();
        let logits =
            engine::open_result(&manifest, [&run.outputs[0], &run.outputs[1]]).unwrap().outputs.remove(0);
        (run, logits)
    });
    assert_eq!(top(&first.1), top(&at_once.1));
    assert!(first.1.iter().zip(&at_once.1).all(|(a, b)| (a - b).abs() < 0.02));
    let (first, at_once) = (first.0, at_once.0);
    assert_eq!((first.dealt_bytes, first.online_bytes), (at_once.dealt_bytes, at_once.online_bytes));
    assert_eq!(first.ledgers[0].total().sent, at_once.ledgers[0].total().sent);
    assert_eq!((first.offline, at_once.offline), (first.prepared, link.rtt / 2));
    // The servers wait for the last correlation, and then for little.
    let upload = link.rtt + link.delivery(image.words.len() + 16);
    let dealt = link.transfer(usize::try_from(at_once.dealt_bytes).unwrap());
    let end = upload + at_once.online;
    assert!(
        end > dealt && end < dealt + first.online / 2,
        "{end:?}, {dealt:?} for dealing, {:?}",
        first.online
    );
}

#[test]
fn labels_are_right_costs_are_planned_and_delays_are_counted() {
    let (prepared, inputs) = classifier();
    let rtt = Duration::from_millis(40);
    for arithmetic in [prepared.arithmetic().clone(), Arithmetic::Z64] {
        let manifest = prepared.manifest_for(&arithmetic).unwrap();
        let (seed, words) =
            engine::share_weights(&manifest, &prepared.quantised(&arithmetic).unwrap()).unwrap();
        let encoded = engine::encode_manifest(&manifest).unwrap();
        let link = Link::new(40.0, 100.0);
        let cluster = LocalCluster::start(engine::runner(), link, &encoded, seed, &words).unwrap();
        let plan = engine::plan(&manifest).unwrap();
        let planned: Cost = plan.values().copied().sum();
        let mut sizes = Vec::new();
        for input in &inputs {
            let run = cluster.run(&engine::share_image(&manifest, input).unwrap()).unwrap();
            let opened = engine::open_result(&manifest, [&run.outputs[0], &run.outputs[1]]).unwrap();
            assert!(opened.ranges.in_range(), "{:?}", opened.ranges);
            // In Z_2^64 there is room for any picture, so nothing has to be looked at.
            assert_eq!(opened.ranges.layers.is_empty(), arithmetic == Arithmetic::Z64);
            let logits = opened.outputs;
            let float = prepared.float(input).unwrap();
            assert_eq!(top(&logits[0]), top(&float[0]), "{arithmetic}");
            for (got, want) in logits[0].iter().zip(&float[0]) {
                assert!((got - want).abs() < 0.02, "{arithmetic}: {got} instead of {want}");
            }
            for ledger in &run.ledgers {
                for (layer, entry) in ledger.entries() {
                    let planned = plan.get(&layer).copied().unwrap_or_default();
                    let online = |c: Cost| (c.rounds, c.messages, c.bytes);
                    assert_eq!(online(entry.sent), online(planned), "layer {layer}");
                    assert_eq!(entry.received_bytes, planned.bytes, "layer {layer}");
                }
            }
            assert_eq!(run.ledgers[0].total().sent.dealt, 0, "server 0 gets a seed alone");
            assert_eq!(run.ledgers[1].total().sent.dealt, planned.dealt);
            // Every round waits for one message, half a round trip away. What looks at ranges runs beside the rest.
            let rounds = manifest.program.rounds(|layer| plan.get(&layer).map_or(0, |c| c.rounds));
            let looks = !manifest.program.watched().is_empty();
            assert_eq!(rounds < planned.rounds, looks, "the look at ranges takes no rounds of its own");
            let waits = rtt / 2 * u32::try_from(rounds).unwrap();
            assert!(run.online >= waits, "{:?} for {rounds} rounds", run.online);
            sizes.push((run.online_bytes, run.dealt_bytes));
        }
        sizes.dedup();
        assert_eq!(sizes.len(), 1, "bytes do not depend on the picture");
    }
}

#[test]
fn what_leaves_its_range_is_told_to_the_client_alone() {
    let (prepared, inputs) = classifier();
    let glaring: Vec<f32> = inputs[0].iter().map(|v| v * 300.0).collect();
    let refused = engine::share_image(&prepared.manifest().unwrap(), &glaring).err().unwrap().to_string();
    assert!(refused.contains("no picture becomes"), "{refused}");
    assert!(!refused.contains(&glaring[0].to_string()), "an error shows no number of an image: {refused}");
    // The same network for pictures of a far larger contrast: no worst case is within reach, and everything is looked at.
    let config = CONFIG.replace("\"std\": [\n   0.18", "\"std\": [\n   0.00018");
    assert_ne!(config, CONFIG);
    let model = Model::from_bytes(ONNX, Some(&config)).unwrap();
    let (prepared, _) = prepare(&model, &inputs, &Options { stress: false, ..Options::default() }).unwrap();
    let manifest = prepared.manifest().unwrap();
    let weights = prepared.quantised(prepared.arithmetic()).unwrap();
    let (seed, words) = engine::share_weights(&manifest, &weights).unwrap();
    let encoded = engine::encode_manifest(&manifest).unwrap();
    let link = Link::new(0.0, 1e6);
    let cluster = LocalCluster::start(engine::runner(), link, &encoded, seed, &words).unwrap();
    let messages = |run: &sharelens::local::LocalRun| (run.online_bytes, run.dealt_bytes);
    let usual = cluster.run(&engine::share_image(&manifest, &inputs[0]).unwrap()).unwrap();
    let twin = prepared.twin(prepared.arithmetic()).unwrap();
    assert!(matches!(twin.run(&glaring), Err(sharelens_models::Error::Overflow { .. })));
    let run = cluster.run(&engine::share_image(&manifest, &glaring).unwrap()).unwrap();
    assert_eq!(messages(&run), messages(&usual), "servers see the same lengths");
    let opened = engine::open_result(&manifest, [&run.outputs[0], &run.outputs[1]]).unwrap();
    let outside: Vec<_> = opened.ranges.exceeded().map(|l| l.layer.as_str()).collect();
    assert!(!opened.ranges.in_range());
    assert!(outside.contains(&"/features/features.0/Conv") && outside.len() > 3, "{:?}", opened.ranges);
    let opened = engine::open_result(&manifest, [&usual.outputs[0], &usual.outputs[1]]).unwrap();
    assert!(opened.ranges.in_range(), "{:?}", opened.ranges);
}
