//! A whole detector on shares, all parties in one process with the engine that nodes run: its result, its cost, and
//! that nothing about its messages depends on the picture.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sharelens::LocalCluster;
use sharelens::engine::{encode_manifest, open_result, plan, runner, share_image, share_weights};
use sharelens::local::Link;
use sharelens::runner::{InputShare, Run, Runner, Sizes};
use sharelens_models::detect::{Detections, Settings, compare};
use sharelens_models::image::Picture;
use sharelens_models::{Manifest, Model, Options, Prepared, prepare};
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::correlation::Clock;
use sharelens_protocol::cost::{Cost, Ledger};
use sharelens_protocol::prg::Seed;
use sharelens_protocol::{Channel, Error, Result, Server, Step};

/// What a server sends and receives: in order, whether it was sent, where, and how long it is.
type Transcript = Vec<(bool, Step, usize)>;

/// The engine, writing down every message of the online phase.
struct Tapped<R> {
    engine: R,
    seen: Arc<Mutex<[Transcript; 2]>>,
}

struct Tap<'a, C> {
    channel: &'a mut C,
    seen: Transcript,
}

impl<C: Channel> Channel for Tap<'_, C> {
    async fn send(&mut self, step: Step, bytes: Vec<u8>) -> Result<()> {
        self.seen.push((true, step, bytes.len()));
        self.channel.send(step, bytes).await
    }

    async fn next(&mut self, due: Step) -> Result<(Step, usize)> {
        self.channel.next(due).await
    }

    async fn recv(&mut self, step: Step, len: usize) -> Result<Vec<u8>> {
        let bytes = self.channel.recv(step, len).await?;
        self.seen.push((false, step, bytes.len()));
        Ok(bytes)
    }
}

impl<R: Runner> Runner for Tapped<R> {
    type Model = R::Model;
    type Weights = R::Weights;
    type Masks = R::Masks;
    type Store = R::Store;

    fn model(
        &self,
        manifest: &[u8],
        fits: impl FnOnce(&Sizes) -> sharelens::Result<()>,
    ) -> sharelens::Result<Self::Model> {
        self.engine.model(manifest, fits)
    }
    fn sizes(&self, model: &Self::Model) -> Sizes {
        self.engine.sizes(model)
    }
    async fn load<C: Channel>(
        &self,
        server: Server,
        model: &Self::Model,
        share: InputShare,
        seed: &Seed,
        context: &[u8],
        peer: &mut C,
    ) -> Result<Self::Weights, Error> {
        self.engine.load(server, model, share, seed, context, peer).await
    }
    fn masks(&self, model: &Self::Model, seeds: &[Seed; 2], context: &[u8]) -> Result<Self::Masks, Error> {
        self.engine.masks(model, seeds, context)
    }
    fn store(&self, model: &Self::Model, cap: usize) -> Self::Store {
        self.engine.store(model, cap)
    }
    fn set_clock(&self, store: &Self::Store, clock: Arc<dyn Clock>) {
        self.engine.set_clock(store, clock);
    }
    async fn preprocess<C: Channel>(
        &self,
        run: Run<'_, Self>,
        seed: &Seed,
        helper: &mut C,
    ) -> Result<(), Error> {
        self.engine.preprocess(inner(run), seed, helper).await
    }
    fn ready(&self, store: &Self::Store) -> Result<(), Error> {
        self.engine.ready(store)
    }
    async fn online<C: Channel>(
        &self,
        run: Run<'_, Self>,
        image: InputShare,
        peer: &mut C,
    ) -> Result<(Vec<u8>, Ledger), Error> {
        let server = run.server;
        let mut tap = Tap { channel: peer, seen: Vec::new() };
        let done = self.engine.online(inner(run), image, &mut tap).await;
        self.seen.lock().expect("nobody panicked")[server.index()] = tap.seen;
        done
    }
    fn end(&self, store: &Self::Store) {
        self.engine.end(store);
    }
    async fn deal<C: Channel>(
        &self,
        model: &Self::Model,
        masks: &Self::Masks,
        seeds: &[Seed; 2],
        context: &[u8],
        server1: &mut C,
    ) -> Result<(), Error> {
        self.engine.deal(model, masks, seeds, context, server1).await
    }
}

fn inner<R: Runner>(run: Run<'_, Tapped<R>>) -> Run<'_, R> {
    let Run { server, model, weights, store, context } = run;
    Run { server, model, weights, store, context }
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/data")
}

fn smear(model: &Model, name: &str) -> Vec<f32> {
    let file = data().join("bccd_frcnn/pictures").join(name).with_extension("png");
    model.input(&Picture::load(&file).expect("shipped")).expect("of the right size")
}

/// A detector, prepared on a picture, and that picture.
fn detector(name: &str) -> (Prepared, Vec<f32>) {
    let model = Model::import(&data().join(name), None).expect("it is supported");
    let input = smear(&model, "BloodImage_00062");
    let (prepared, _) = prepare(&model, std::slice::from_ref(&input), &Options::default()).expect("fits");
    (prepared, input)
}

fn start<R: Runner>(prepared: &Prepared, manifest: &Manifest, runner: R) -> LocalCluster<R> {
    let weights = prepared.quantised(prepared.arithmetic()).expect("they fit");
    let (seed, words) = share_weights(manifest, &weights).expect("they are its own");
    let bytes = encode_manifest(manifest).expect("it is short");
    LocalCluster::start(runner, LINK, &bytes, seed, &words).expect("loads")
}

/// A round takes an hour, for whoever computes as for whoever sends: clocks show how many came one after the other.
const LINK: Link = Link { rtt: Duration::from_secs(7200), bandwidth: 1e12 };

#[test]
fn nothing_but_the_result_depends_on_the_picture() {
    let (prepared, full) = detector("bccd_frcnn_tiny");
    let manifest = prepared.manifest().expect("it fits");
    let seen = Arc::<Mutex<[Transcript; 2]>>::default();
    let cluster = start(&prepared, &manifest, Tapped { engine: runner(), seen: seen.clone() });
    let stride = prepared.config().detection.as_ref().expect("a detector").stride;
    let twin = prepared.twin(prepared.arithmetic()).expect("it fits");
    // One colour all over, in which the detector sees nothing.
    let colours = [-4.0f32, 0.0, 2.0, 4.0, -8.0, -2.0];
    let blank = |v: f32| vec![v; full.len()];
    let sees = |input: &[f32]| Detections::from_rows(&twin.run(input).expect("in range")[0], stride).len();
    let empty = colours.map(blank).into_iter().find(|p| sees(p) == 0).expect("a picture without cells");

    let mut transcripts = Vec::new();
    let mut counts = Vec::new();
    for input in [&full, &empty] {
        let run = cluster.run(&share_image(&manifest, input).expect("fits")).expect("runs");
        let [a, b] = &run.outputs;
        let found = open_result(&manifest, [a, b]).expect("opens").outputs;
        let plain = twin.run(input).expect("in range");
        let [found_list, plain_list] = [&found, &plain].map(|o| Detections::from_rows(&o[0], stride));
        let agreement = compare(&found_list, &plain_list, 0.5);
        assert_eq!(agreement.alone, 0, "{agreement:?}");
        assert!(agreement.pixels < 0.1 && agreement.score < 2e-3, "{agreement:?}");
        counts.push(found_list.len());

        // What is measured is what was planned, layer by layer and to the byte.
        for ledger in &run.ledgers {
            let planned = plan(&manifest).expect("planned before");
            for (layer, cost) in &planned {
                let sent = ledger.entries().find(|(i, _)| i == layer).map(|(_, e)| e.sent);
                assert_eq!(
                    sent.map(|s| (s.rounds, s.bytes)),
                    Some((cost.rounds, cost.bytes)),
                    "layer {layer}"
                );
            }
        }
        transcripts.push(std::mem::take(&mut *seen.lock().expect("nobody panicked")));
    }
    assert!(counts[0] > 10 && counts[1] == 0, "a smear and nothing: {counts:?}");
    assert!(transcripts[0].iter().all(|t| t.len() > 400));
    assert_eq!(transcripts[0], transcripts[1], "messages differ between a full picture and an empty one");
}

#[test]
fn fewer_rounds_where_links_are_long() {
    let (prepared, input) = detector("bccd_frcnn_tiny");
    let usual = prepared.manifest().expect("it fits");
    let fewest = Manifest { rounds: Rounds::Fewest, ..usual.clone() };
    let planned = |m: &Manifest| {
        let plan = plan(m).expect("it fits");
        m.program.rounds(|layer| plan.get(&layer).map_or(0, |c| c.rounds))
    };
    assert!(planned(&fewest) + 50 < planned(&usual), "{} {}", planned(&fewest), planned(&usual));
    let cluster = start(&prepared, &fewest, runner());
    let run = cluster.run(&share_image(&fewest, &input).expect("fits")).expect("runs");
    let of = |layer| run.ledgers[0].entries().find(|(i, _)| *i == layer).map_or(0, |(_, e)| e.sent.rounds);
    assert_eq!(fewest.program.rounds(of), planned(&fewest));
    // Whoever sends the last message of a shuffle is ahead of the other one by a round, hence not quite all.
    let hours = run.online.as_secs() / 3600;
    assert!((planned(&fewest) - 8..=planned(&fewest)).contains(&hours), "{hours} of {}", planned(&fewest));
    let sum: u64 = run.ledgers[0].entries().map(|(_, e)| e.sent.rounds).sum();
    assert!(planned(&fewest) + 10 < sum, "scores and boxes are computed side by side");
    let [a, b] = &run.outputs;
    let found = open_result(&fewest, [a, b]).expect("opens").outputs;
    let plain = prepared.plain(&input).expect("in range");
    let stride = prepared.config().detection.as_ref().expect("a detector").stride;
    let [found, plain] = [&found, &plain].map(|o| Detections::from_rows(&o[0], stride));
    let agreement = compare(&found, &plain, 0.5);
    assert!(agreement.matched > 5 && agreement.alone == 0 && agreement.pixels < 0.1, "{agreement:?}");
}

#[test]
fn rounds_behind_the_backbone_follow_the_formula() {
    for name in ["bccd_frcnn", "bccd_frcnn_tiny"] {
        let text = std::fs::read_to_string(data().join(name).join("config.json")).expect("shipped");
        let settings = Settings::parse(&text).expect("shipped");
        let (prepared, _) = detector(name);
        let manifest = prepared.manifest().expect("it fits");
        let layers = &manifest.program.layers;
        let start = layers.iter().position(|l| l.name == "rpn.top").expect("a detector") as u32;
        let planned = plan(&manifest).expect("it fits");
        let rounds = |layer| planned.get(&layer).map_or(0, |c: &Cost| c.rounds);
        let behind = |layer| if layer < start { 0 } else { rounds(layer) };
        let found = manifest.program.rounds(behind);
        eprintln!(
            "{name} {found} all {} sum {}",
            manifest.program.rounds(rounds),
            planned.values().map(|c| c.rounds).sum::<u64>()
        );
        for (i, l) in layers.iter().enumerate() {
            eprintln!("{i} {} {} {:?} {}", l.name, l.op.label(), l.inputs, rounds(i as u32));
        }
        let sharelens_models::program::Instruction::Detect { stage, .. } = &layers[start as usize].op else {
            panic!("not a stage")
        };
        let sharelens_models::program::detect::Stage::TopAnchors(top) = &**stage else {
            panic!("not the anchors")
        };
        let levels = top.levels.len() as u64;
        let steps = (settings.rpn.steps + settings.head.steps) as u64;
        // PROTOCOLS.md, "Detection".
        assert_eq!(found, 124 + 4 * levels + 5 * steps, "{name}");
        assert!(found <= 400, "{name}");
    }
}
