//! `model inspect`, `prepare`, `check` and `share`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::{KeyArgs, RingName, Ui};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Which operators are supported, parameters, multiplications.
    Inspect {
        /// An ONNX model.
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
    },
    /// Share a prepared model among the nodes of a cluster.
    Share(Share),
}

#[derive(Debug, Args)]
pub struct Prepare {
    /// An ONNX model.
    model: PathBuf,
    /// Directory of images to calibrate with.
    #[arg(long, value_name = "DIR")]
    calibrate: PathBuf,
    /// File to write.
    #[arg(short, long)]
    output: PathBuf,
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
    #[command(flatten)]
    key: KeyArgs,
}

pub fn run(command: Command, _ui: Ui) -> Result<()> {
    let name = match command {
        Command::Inspect { .. } => "inspect",
        Command::Prepare(_) => "prepare",
        Command::Check { .. } => "check",
        Command::Share(_) => "share",
    };
    bail!("`model {name}` is not in this version")
}
