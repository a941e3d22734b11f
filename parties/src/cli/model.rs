//! `model inspect`, `prepare`, `check` and `share`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use sharelens::client::Patience;
use sharelens::config::LinkConfig;
use sharelens::control::ModelId;
use sharelens::outcome::Tensor;
use sharelens::{Client, Cluster, Identity, Role, engine};
use sharelens_models::config::Preprocess;
use sharelens_models::image::Picture;
use sharelens_models::{Arithmetic, Inspection, Manifest, Model, Options, Prepared};
use sharelens_ops::plain::Weights;

use sharelens_protocol::compare::Rounds;

use super::{KeyArgs, RingName, RoundsName, Ui, Wan, show};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Which operators are supported, parameters, multiplications.
    Inspect {
        /// An ONNX model, or the directory of a detector.
        model: PathBuf,
    },
    /// Fold, quantise and choose moduli.
    Prepare(Prepare),
    /// Compare the fixed-point model with the float one.
    Check {
        /// A prepared model.
        model: PathBuf,
        /// Directory of images.
        #[arg(long, value_name = "DIR")]
        images: PathBuf,
        /// Also write each input with what floats and fixed point make of it, one JSON document a line: for
        /// models/scripts/against_onnx_runtime.py.
        #[arg(long, value_name = "FILE")]
        export: Option<PathBuf>,
    },
    /// Share a prepared model among the nodes of a cluster.
    Share(Share),
}

#[derive(Debug, Args)]
pub struct Prepare {
    /// An ONNX model, or the directory of a detector: rpn.onnx, box_head.onnx and config.json.
    model: PathBuf,
    /// Its classes and preprocessing [default: config.json beside the model].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of images to calibrate with.
    #[arg(long, value_name = "DIR")]
    calibrate: PathBuf,
    /// Room that every value must have beyond the largest one seen, as a factor.
    #[arg(long, default_value_t = Options::default().margin)]
    margin: f64,
    /// Largest error of an output that the choice of moduli may cause.
    #[arg(long, default_value_t = Options::default().tolerance)]
    tolerance: f64,
    /// Numbers of moduli for comparisons and for scales, as 3,2 [default: the fewest that are good enough].
    #[arg(long, value_name = "K,L", value_parser = moduli)]
    moduli: Option<(usize, usize)>,
    /// Steps of a detector's two suppressions of overlapping boxes; as many as boxes are always enough [default: as
    /// config.json says, or 12].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    nms_steps: Option<u16>,
    /// File to write.
    #[arg(short, long)]
    output: PathBuf,
}

/// `K,L`.
pub fn moduli(text: &str) -> Result<(usize, usize), String> {
    let pair = text.split_once(',').and_then(|(k, l)| Some((k.trim().parse().ok()?, l.trim().parse().ok()?)));
    pair.ok_or_else(|| format!("{text:?} is not of the form K,L"))
}

#[derive(Debug, Args)]
pub struct Share {
    /// A prepared model.
    model: PathBuf,
    /// The nodes.
    #[arg(long, default_value = "cluster.toml")]
    cluster: PathBuf,
    /// What clients will call it.
    #[arg(long)]
    name: String,
    /// Which version of it.
    #[arg(long, default_value_t = 1)]
    version: u32,
    /// Which arithmetic.
    #[arg(long, value_enum, default_value_t)]
    ring: RingName,
    /// What comparisons trade rounds for [default: by --wan, else balanced].
    #[arg(long, value_enum)]
    rounds: Option<RoundsName>,
    /// The link between the servers, to choose by.
    #[arg(long, value_name = "RTTms,MBIT")]
    wan: Option<Wan>,
    #[command(flatten)]
    key: KeyArgs,
}

pub fn run(command: Command, ui: Ui) -> Result<()> {
    match command {
        Command::Inspect { model } => inspect(&model, ui),
        Command::Prepare(prepare) => prepare.run(ui),
        Command::Check { model, images, export } => check(&model, &images, export.as_deref(), ui),
        Command::Share(share) => share.run(ui),
    }
}

/// A prepared model's file.
pub fn load(file: &Path) -> Result<Prepared> {
    Prepared::load(file).with_context(|| show(file))
}

/// The ring to run a prepared model in.
pub fn arithmetic(prepared: &Prepared, ring: RingName) -> Result<Arithmetic> {
    match ring {
        RingName::Rns => Ok(prepared.arithmetic().clone()),
        RingName::Z64 if prepared.config().detection.is_some() => {
            bail!("detectors need more than one scale, which --ring z64 has not: use --ring rns")
        }
        RingName::Z64 => Ok(Arithmetic::Z64),
    }
}

/// A picture as the input of a model. What decoding changed is logged.
pub fn input(preprocess: Option<&Preprocess>, file: &Path) -> Result<Vec<f32>> {
    let preprocess = preprocess.context("this model does not take pictures")?;
    let picture = Picture::load(file)?;
    for note in &picture.notes {
        tracing::warn!("{}: {note}", show(file));
    }
    picture.input(preprocess).with_context(|| show(file))
}

/// All pictures of a directory, in the order of their names.
pub fn inputs(preprocess: Option<&Preprocess>, dir: &Path) -> Result<Vec<Vec<f32>>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| show(dir))? {
        let file = entry.with_context(|| show(dir))?.path();
        let extension = file.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        if matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg")) {
            files.push(file);
        }
    }
    if files.is_empty() {
        bail!("{}: has no PNG or JPEG files", show(dir));
    }
    files.sort();
    files.iter().map(|file| input(preprocess, file)).collect()
}

fn inspect(file: &Path, ui: Ui) -> Result<()> {
    if file.is_dir() {
        return inspect_detector(file, ui);
    }
    let inspection = sharelens_models::inspect(file).with_context(|| show(file))?;
    ui.result(&inspection, inspection_words(&inspection))
}

/// Both graphs, and whether they fit together.
fn inspect_detector(dir: &Path, ui: Ui) -> Result<()> {
    let (mut json, mut text) = (serde_json::Map::new(), String::new());
    for name in ["rpn.onnx", "box_head.onnx"] {
        let file = dir.join(name);
        let inspection = sharelens_models::inspect(&file).with_context(|| show(&file))?;
        text += &format!("{name}\n{}\n", inspection_words(&inspection));
        json.insert(name.into(), serde_json::to_value(&inspection)?);
    }
    let model = Model::import(dir, None).with_context(|| show(dir))?;
    if let Some(d) = &model.config().detection {
        text += &format!(
            "detector: the best {} anchors, {} proposals, at most {} detections; {} and {} steps of suppression",
            d.rpn.before, d.rpn.after, d.head.detections, d.rpn.steps, d.head.steps
        );
        json.insert("detection".into(), serde_json::to_value(d)?);
    }
    ui.result(&json, text.trim_end())
}

fn inspection_words(inspection: &Inspection) -> String {
    let mut text = String::new();
    for (operator, count) in &inspection.operators {
        text += &format!("{count:>6}  {operator}\n");
    }
    for node in &inspection.unsupported {
        text += &format!("not supported: {node}\n");
    }
    if let Some(n) = &inspection.network {
        text += &format!(
            "input {} {:?}, {} parameters, {} multiply-accumulates",
            n.input, n.input_shape, n.parameters, n.macs
        );
    }
    text.trim_end().into()
}

impl Prepare {
    fn run(self, ui: Ui) -> Result<()> {
        let mut model =
            Model::import(&self.model, self.config.as_deref()).with_context(|| show(&self.model))?;
        if let Some(steps) = self.nms_steps {
            model.set_suppression_steps(steps.into()).with_context(|| show(&self.model))?;
        }
        let samples = inputs(model.config().preprocess.as_ref(), &self.calibrate)?;
        let arithmetic = self.moduli.map(|(k, l)| Arithmetic::usual(k, l)).transpose()?;
        let options =
            Options { margin: self.margin, tolerance: self.tolerance, arithmetic, ..Options::default() };
        let (prepared, report) = sharelens_models::prepare(&model, &samples, &options)?;
        prepared.save(&self.output).with_context(|| show(&self.output))?;
        let mut text = String::new();
        for refused in &report.refused {
            text += &format!("turned down: {refused}\n");
        }
        let tightest = report.values.iter().min_by(|a, b| a.headroom.total_cmp(&b.headroom));
        if let Some(t) = tightest {
            text +=
                &format!("least room: {} ({}), {:.2} times its calibrated range\n", t.name, t.op, t.headroom);
        }
        if let Some(relative) = report.relative {
            text += &format!(
                "outputs are off by at most {:.2e}, {:.2} % of how far their numbers are apart{}\n",
                report.error,
                100.0 * relative,
                if relative > 0.01 {
                    ": A RANKING MAY BE LOST; try more moduli, as --moduli 4,4"
                } else {
                    ""
                }
            );
        }
        let proved = report.values.iter().filter(|v| v.proved).count();
        let all = report.values.len();
        text += &if proved == all {
            "in range for any picture: proved for every layer\n".to_string()
        } else {
            format!(
                "in range for any picture: proved for {proved} of {all} values; for the others as far as these pictures \
                 show, so every run looks at them and tells the client what left its range\n"
            )
        };
        text += "not compared with another runtime: `model check --export` and models/scripts/against_onnx_runtime.py do that\n";
        text += &format!(
            "{}: {} bytes per element\nwrote {}",
            report.arithmetic,
            report.bytes_per_element,
            show(&self.output)
        );
        ui.result(&report, text)
    }
}

/// Writes inputs and outputs in the order of the network's file, after its last functions.
fn export(prepared: &Prepared, inputs: &[Vec<f32>], file: &Path) -> Result<()> {
    let twin = prepared.twin(prepared.arithmetic())?;
    let manifest = twin.manifest();
    let mut out = BufWriter::new(File::create(file).with_context(|| show(file))?);
    for input in inputs {
        let finished = |outputs: Vec<Vec<f64>>| -> Vec<Tensor> {
            let named = manifest.outputs.iter().zip(outputs).map(|(info, values)| {
                let (shape, values) = info.finished(&values);
                Tensor { name: info.name.clone(), shape, values }
            });
            named.collect()
        };
        let mut shape = manifest.program.input_shape.clone();
        let mut values = input.clone();
        if let [n, h, w, c] = shape[..] {
            let order = sharelens_ops::layers::movement::transpose(&[n, h, w, c], &[0, 3, 1, 2]);
            (shape, values) = (vec![n, c, h, w], order.into_iter().map(|i| input[i as usize]).collect());
        }
        let document = serde_json::json!({
            "input": { "shape": shape, "values": values },
            "float": finished(prepared.float(input)?),
            "plain": finished(twin.run(input)?),
        });
        writeln!(out, "{document}").with_context(|| show(file))?;
    }
    out.flush().with_context(|| show(file))
}

fn check(file: &Path, images: &Path, to: Option<&Path>, ui: Ui) -> Result<()> {
    let prepared = load(file)?;
    let inputs = inputs(prepared.config().preprocess.as_ref(), images)?;
    if let Some(to) = to {
        export(&prepared, &inputs, to)?;
    }
    let check = sharelens_models::check(&prepared, &inputs)?;
    let what = if check.detections.is_some() { " of logits and deltas" } else { "" };
    let mut text = format!(
        "{} images: largest difference{what} {:.6}, mean {:.6}",
        check.inputs, check.max_error, check.mean_error
    );
    if let (Some(agreement), Some(unsettled)) = (check.detections, check.unsettled) {
        text += &format!(
            "\ndetections scored {} or more: {} the same within {:.3} px and {:.5} in score, {} without a partner",
            sharelens_models::check::CONFIDENT,
            agreement.matched,
            agreement.pixels,
            agreement.score,
            agreement.alone
        );
        if unsettled > 0 {
            text += &format!(
                "\nsuppression did not settle on {unsettled} images: prepare the model again with a larger --nms-steps"
            );
        }
    }
    if let Some(same) = check.same_class {
        text += &format!("\nsame class: {same} of {}", check.inputs);
    }
    text += &format!("\nleast room: {}, {:.2} times", check.tightest.layer, check.tightest.headroom);
    ui.result(&check, text)
}

impl Share {
    fn run(self, ui: Ui) -> Result<()> {
        let prepared = load(&self.model)?;
        let cluster = Cluster::load(&self.cluster)?;
        let id = ModelId { name: self.name, version: self.version };
        let identity = self.key.identity()?;
        let trade = (self.rounds, self.wan);
        let rounds =
            super::runtime()?.block_on(share(&prepared, self.ring, trade, &cluster, &id, identity, ui))?;
        let json = serde_json::json!({ "model": id.name, "version": id.version, "rounds": rounds });
        ui.done(&json, format!("model {id} is shared with all three nodes"))
    }
}

/// Splits a model and hands its shares to the nodes.
pub async fn share(
    prepared: &Prepared,
    ring: RingName,
    (asked, wan): (Option<RoundsName>, Option<Wan>),
    cluster: &Cluster,
    id: &ModelId,
    identity: std::sync::Arc<Identity>,
    ui: Ui,
) -> Result<Rounds> {
    let arithmetic = arithmetic(prepared, ring)?;
    let (mut manifest, weights) = (prepared.manifest_for(&arithmetic)?, prepared.quantised(&arithmetic)?);
    manifest.rounds = super::rounds(&manifest, asked, wan)?;
    upload(&manifest, &weights, cluster, id, identity, &LinkConfig::default(), ui).await?;
    Ok(manifest.rounds)
}

/// Splits the weights of a manifest and hands all to the nodes.
pub async fn upload(
    manifest: &Manifest,
    weights: &[Weights],
    cluster: &Cluster,
    id: &ModelId,
    identity: std::sync::Arc<Identity>,
    link: &LinkConfig,
    ui: Ui,
) -> Result<()> {
    let (seed, words) = engine::share_weights(manifest, weights)?;
    let manifest = engine::encode_manifest(manifest)?;
    let bar = ui.progress(3 * manifest.len() as u64 + words.len() as u64 + 32, "sharing");
    let client = Client::connect(cluster, &Role::ALL, identity, link, Patience::default()).await?;
    let shared = client.share(id, manifest, &seed, words, |bytes| bar.inc(bytes)).await;
    client.close().await;
    bar.finish_and_clear();
    Ok(shared?)
}
