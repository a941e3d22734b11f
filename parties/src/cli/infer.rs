//! `infer`, `plain` and `plan`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use super::{KeyArgs, Mode, RingName, Ui};

#[derive(Debug, Args)]
pub struct Infer {
    /// The nodes.
    #[arg(long, default_value = "cluster.toml")]
    cluster: PathBuf,
    /// Name of the model.
    #[arg(long)]
    model: String,
    /// Which version; the newest by default.
    #[arg(long)]
    version: Option<u32>,
    /// Images.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Where to write results.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Where correlations come from.
    #[arg(long, value_enum, default_value_t)]
    mode: Mode,
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(Debug, Args)]
pub struct Plain {
    /// A prepared model.
    model: PathBuf,
    /// Images.
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Which arithmetic.
    #[arg(long, value_enum, default_value_t)]
    ring: RingName,
}

#[derive(Debug, Args)]
pub struct Plan {
    /// A prepared model.
    model: PathBuf,
    /// Round-trip time in milliseconds.
    #[arg(long, default_value_t = 1.0)]
    rtt: f64,
    /// Bandwidth in Mbit/s.
    #[arg(long, default_value_t = 1000.0)]
    mbit: f64,
    /// Which arithmetic.
    #[arg(long, value_enum, default_value_t)]
    ring: RingName,
}

impl Infer {
    pub fn run(self, _ui: Ui) -> Result<()> {
        self.mode.check()?;
        bail!("`infer` is not in this version")
    }
}

impl Plain {
    pub fn run(self, _ui: Ui) -> Result<()> {
        bail!("`plain` is not in this version")
    }
}

impl Plan {
    pub fn run(self, _ui: Ui) -> Result<()> {
        bail!("`plan` is not in this version")
    }
}
