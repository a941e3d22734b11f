//! Builds well-known networks; writes them as files, or prepares and checks them.
//!
//! ```text
//! cargo run --release -p sharelens-models --example zoo -- [--side N] [--batch N] [--seed N] [--out DIR] [--check] [NETWORK...]
//! ```
//!
//! `--out` writes `NETWORK.onnx` and `NETWORK.json` for `sharelens model prepare`; `--check` prints a row of
//! `benches/results/networks-accuracy.md` for each. Without names, all networks are built.

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use sharelens_models::check::top;
use sharelens_models::config::Task;
use sharelens_models::prepare;
use sharelens_models::zoo::{self, Built, Network};
use sharelens_ops::plain::Rounding;

/// Inputs to check on, none of them used to calibrate.
const INPUTS: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let mut options = zoo::Options::default();
    let (mut out, mut check, mut networks) = (None::<PathBuf>, false, Vec::new());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--side" => options.side = Some(value()?.parse()?),
            "--batch" => options.batch = value()?.parse()?,
            "--seed" => options.seed = value()?.parse()?,
            "--out" => out = Some(value()?.into()),
            "--check" => check = true,
            name => networks.push(name.parse::<Network>()?),
        }
    }
    if networks.is_empty() {
        networks = Network::ALL.to_vec();
    }
    if let Some(dir) = &out {
        std::fs::create_dir_all(dir)?;
    }
    if check {
        println!(
            "| network | input | parameters | multiply-accumulates | moduli | error allowed | largest error | spread of outputs | agreement | build, prepare, twin: s |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
    }
    for network in networks {
        let start = Instant::now();
        let built = zoo::build(network, &options)?;
        if let Some(dir) = &out {
            std::fs::write(dir.join(format!("{network}.onnx")), &built.onnx)?;
            std::fs::write(dir.join(format!("{network}.json")), built.config_json())?;
        }
        if check {
            row(built, start.elapsed().as_secs_f64(), options.seed)?;
        }
    }
    Ok(())
}

fn row(built: Built, build_seconds: f64, seed: u64) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let model = built.model()?;
    let (prepared, report) = prepare(&model, &built.calibration, &built.options)?;
    let prepare_seconds = start.elapsed().as_secs_f64();
    report.refused.iter().for_each(|r| eprintln!("{}: refused {r}", built.network));
    let shape = &model.graph().input_shape;
    let input: Vec<String> = shape.iter().map(usize::to_string).collect();
    let (parameters, macs) = (model.graph().parameter_count(), model.graph().macs());
    let batch = shape[0];
    drop(model);

    let twin = prepared.twin(prepared.arithmetic())?;
    let info = &twin.manifest().outputs[0];
    let (mut worst, mut same, mut count) = (0f64, 0, 0);
    let mut all = Vec::new();
    let mut seconds = 0.0;
    for (i, x) in built.inputs(INPUTS, seed)?.iter().enumerate() {
        let float = prepared.float(x)?.remove(0);
        let start = Instant::now();
        let fixed = info.original(&twin.run_storage(x, Rounding::Random(i as u64))?.0[0]);
        seconds += start.elapsed().as_secs_f64();
        worst = float.iter().zip(&fixed).fold(worst, |m, (a, b)| m.max((a - b).abs()));
        match built.network.task() {
            Task::Classification => {
                let pictures = float.chunks(float.len() / batch).zip(fixed.chunks(float.len() / batch));
                same += pictures.clone().filter(|(a, b)| top(a) == top(b)).count();
                count += pictures.count();
            }
            Task::Segmentation => {
                same += float.iter().zip(&fixed).filter(|(a, b)| (**a > 0.0) == (**b > 0.0)).count();
                count += float.len();
            }
            _ => {}
        }
        all.extend(float);
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let spread = (all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64).sqrt();
    let agreement = match built.network.task() {
        Task::Classification => format!("top-1 {same} of {count}"),
        Task::Segmentation => format!("{:.4} % of mask pixels", 100.0 * same as f64 / count as f64),
        _ => String::new(),
    };
    println!(
        "| {} | {} | {:.2} M | {:.3} G | {} | {:.4} | {worst:.4} | {spread:.2} | {agreement} | {build_seconds:.1}, {prepare_seconds:.1}, {:.2} |",
        built.network,
        input.join("x"),
        parameters as f64 / 1e6,
        macs as f64 / 1e9,
        report.arithmetic,
        built.options.tolerance,
        seconds / INPUTS as f64
    );
    Ok(())
}
