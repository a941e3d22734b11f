//! `client init`: the key of a hospital or a model owner, and what operators need to enrol it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

use super::{KeyArgs, Ui, show};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the user's key, unless there is one, and write its public card.
    Init(Init),
}

#[derive(Debug, Args)]
pub struct Init {
    /// Whose key this is; goes into the card.
    #[arg(long)]
    name: String,
    /// Directory to write the card to.
    #[arg(long, default_value = ".")]
    card_dir: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
}

pub fn run(command: Command, ui: Ui) -> Result<()> {
    let Command::Init(init) = command;
    let name = &init.name;
    sharelens::control::check_name(name).context("--name")?;
    let identity = init.key.identity()?;
    std::fs::create_dir_all(&init.card_dir).with_context(|| show(&init.card_dir))?;
    let file = init.card_dir.join(format!("{name}.card"));
    sharelens::enrolment::ClientCard { name: name.clone(), pin: identity.pin() }.save(&file)?;
    let json = serde_json::json!({ "name": name, "pin": identity.pin(), "card": show(&file) });
    let text = format!(
        "wrote {} (public)\nkey {}\nnext: each operator enrols it with `sharelens node allow {name}.card`",
        show(&file),
        identity.pin()
    );
    ui.done(&json, text)
}
