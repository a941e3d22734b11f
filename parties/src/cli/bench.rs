//! `bench`: models and single operations on this machine, and two such measurements compared.
//!
//! Offline is everything that happens before the image: the request, dealing, and preparing on both servers.
//! Online is from sending the shares of the image to having the shares of the result. With `--overlap` the image is
//! sent as soon as the session is set up, and online includes waiting for what is not prepared yet. All parties run on this
//! machine, as three processes over loopback, or in one process on a virtual link.

mod compare;
mod machine;
mod measure;
mod ops;
mod report;
mod subject;
mod yardstick;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use sharelens::config::LinkConfig;
use sharelens::control::Start;
use sharelens_models::Arithmetic;

use super::{Mode, RingName, RoundsName, Ui, Wan, model};
use measure::Place;
use report::Document;
use subject::Subject;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Bench {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Single operations.
    Ops(Ops),
    /// Whether a measurement got worse.
    Compare(compare::Compare),
}

#[derive(Debug, Args)]
struct ModelArgs {
    /// A prepared model (.slm), an ONNX file, brain_mri_cnn, bccd_frcnn, or a well-known network with random weights:
    /// lenet5, resnet18, resnet34, resnet50, vgg16, vgg16-features, mobilenetv2, densenet121, unet, dncnn, as in
    /// resnet18:64 with the side of its input.
    #[arg(required = true, value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    options: subject::Options,
}

#[derive(Debug, Args)]
struct Ops {
    /// relu, clip, lift, product (two secret matrices), matmul, conv, maxpool; with a shape as relu:1048576,
    /// product:1024x1024x1024 (rows, inner, columns), conv:64x56x56 or maxpool:64x112x112 (channels, rows, columns).
    #[arg(required = true, value_delimiter = ',', value_name = "OP[:SHAPE]")]
    ops: Vec<ops::Spec>,
    /// Elements of the input, for operations without a shape.
    #[arg(long, value_delimiter = ',', value_parser = ops::size, default_value = "1e3,1e6", value_name = "N")]
    sizes: Vec<usize>,
    #[command(flatten)]
    how: How,
}

/// How to measure.
#[derive(Debug, Args)]
struct How {
    /// Runs that count; one more before them does not.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
    /// Where: loopback (three processes), lan (1 ms, 1 Gbit/s) or RTTms:MBITmbit; links other than loopback are
    /// virtual, with all parties in one process [default: loopback].
    #[arg(long, value_delimiter = ',', value_name = "LINK")]
    wan: Vec<Place>,
    /// All parties in one process, on a virtual lan unless --wan says otherwise.
    #[arg(long)]
    in_process: bool,
    /// Three processes with relays between them that delay, as 40ms:100mbit.
    #[arg(long, value_delimiter = ',', value_name = "LINK", value_parser = measure::relay)]
    relay: Vec<Place>,
    /// Send the input at once: preprocessing goes on beside the online phase, which includes waiting for it, and what
    /// counts is the total [default: the phases one after the other, each measured alone].
    #[arg(long)]
    overlap: bool,
    /// Threads that each party computes on [default: one per core].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Where correlations come from.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    /// Which arithmetic.
    #[arg(long, value_enum, default_value_t)]
    ring: RingName,
    /// What comparisons trade rounds for [default: what each link deserves].
    #[arg(long, value_enum)]
    rounds: Option<RoundsName>,
    /// Numbers of moduli for comparisons and for scales, as 3,2 [default: as prepared; 3,2 for operations].
    #[arg(long, value_name = "K,L", value_parser = model::moduli)]
    moduli: Option<(usize, usize)>,
}

impl Bench {
    pub fn run(self, ui: Ui) -> Result<()> {
        match self.what {
            Some(What::Compare(compare)) => compare.run(ui),
            Some(What::Ops(ops)) => ops.run(ui),
            None => {
                let name = self.model.model.context("MODEL is missing")?;
                let arithmetic = self.how.arithmetic()?;
                let make = |ui| subject::model(&name, &self.model.options, arithmetic.as_ref(), ui);
                self.how.measure(ui, &[&make])
            }
        }
    }
}

impl Ops {
    fn run(self, ui: Ui) -> Result<()> {
        let arithmetic = match self.how.arithmetic()? {
            Some(arithmetic) => arithmetic,
            None => Arithmetic::usual(3, 2)?,
        };
        let mut makes: Vec<Box<dyn Fn(Ui) -> Result<Subject>>> = Vec::new();
        for spec in &self.ops {
            for op in spec.sized(&self.sizes) {
                let arithmetic = arithmetic.clone();
                makes.push(Box::new(move |_| op.subject(&arithmetic)));
            }
        }
        self.how.measure(ui, &makes.iter().map(|m| &**m).collect::<Vec<_>>())
    }
}

impl How {
    /// What the arguments insist on.
    fn arithmetic(&self) -> Result<Option<Arithmetic>> {
        match (self.ring, self.moduli) {
            (RingName::Z64, Some(_)) => bail!("--moduli is for --ring rns"),
            (RingName::Z64, None) => Ok(Some(Arithmetic::Z64)),
            (RingName::Rns, moduli) => Ok(moduli.map(|(k, l)| Arithmetic::usual(k, l)).transpose()?),
        }
    }

    fn places(&self) -> Vec<Place> {
        let mut places = self.wan.clone();
        if places.is_empty() && self.in_process {
            places.push(Place::lan());
        }
        places.extend(&self.relay);
        if places.is_empty() {
            places.push(Place::Loopback);
        }
        places
    }

    /// Measures each subject at each place. Subjects are made one at a time: they may be large.
    fn measure(&self, ui: Ui, subjects: &[&dyn Fn(Ui) -> Result<Subject>]) -> Result<()> {
        let places = self.places();
        if self.in_process && places.contains(&Place::Loopback) {
            bail!("--in-process has no loopback: give a virtual link, as --wan lan");
        }
        let threads = self.threads.map(usize::from);
        machine::set_threads(threads)?;
        let start = Start::overlapped(self.overlap);
        let settings = measure::Settings { runs: self.runs.into(), threads, start, mode: self.mode };
        let mut documents = Vec::new();
        for make in subjects {
            let mut subject = make(ui)?;
            let yardstick = yardstick::measure(&subject, threads, self.runs.into());
            for place in &places {
                subject.manifest.rounds = super::rounds(&subject.manifest, self.rounds, place.wan())?;
                let measured = measure::run(&subject, *place, &settings, ui)
                    .with_context(|| format!("{} at {place}", subject.name))?;
                let document = Document::new(&subject, *place, &settings, &measured, &yardstick)?;
                if !ui.json {
                    ui.print(document.text(!ui.quiet));
                }
                documents.push(document);
            }
        }
        if ui.json {
            super::output(match &documents[..] {
                [one] => serde_json::to_string_pretty(one)?,
                all => serde_json::to_string_pretty(all)?,
            });
        }
        Ok(())
    }
}

/// `[link]` for a link with these properties.
fn link_config(wan: Wan) -> LinkConfig {
    LinkConfig { rtt_ms: wan.rtt_ms.max(0.1), bandwidth_mbit: wan.mbit, ..LinkConfig::default() }
}
