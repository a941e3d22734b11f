//! `cluster create` and `cluster verify`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Subcommand;
use sharelens::config::{Card, NodeConfig};
use sharelens::{Cluster, Identity, Role, text};

use super::{Ui, show};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write cluster.toml from the cards of the three nodes.
    Create {
        /// The cards, in any order.
        #[arg(long, num_args = 3, required = true, value_name = "CARD")]
        cards: Vec<PathBuf>,
        /// File to write.
        #[arg(short, long, default_value = "cluster.toml")]
        output: PathBuf,
    },
    /// Print the code of cluster.toml, which must be the same at all operators.
    Verify {
        /// The file.
        cluster: PathBuf,
        /// Also check that this node's own card is in it.
        #[arg(long, value_name = "NODE.TOML")]
        config: Option<PathBuf>,
    },
}

pub fn run(command: Command, ui: Ui) -> Result<()> {
    match command {
        Command::Create { cards, output } => {
            let cards = cards.iter().map(|file| Card::load(file)).collect::<Result<Vec<_>, _>>()?;
            let cluster = Cluster::new(cards)?;
            cluster.save(&output)?;
            let head = format!("wrote {}\n", show(&output));
            print(ui, &cluster, &format!("{head}read this code to the other operators:"), None)
        }
        Command::Verify { cluster: file, config } => {
            let cluster = Cluster::load(&file)?;
            let own = config.map(|config| own_role(&cluster, &show(&file), &config)).transpose()?;
            let head = match own {
                Some(role) => format!("the card of {role} (this node) is in it\ncode:"),
                None => "code:".into(),
            };
            print(ui, &cluster, &head, own)
        }
    }
}

fn own_role(cluster: &Cluster, file: &str, config: &std::path::Path) -> Result<Role> {
    let config = NodeConfig::load(config)?;
    let pin = Identity::load(&config.key_file)?.pin();
    let pinned = cluster.card(config.role).pin;
    if pinned != pin {
        bail!("{file} pins {pinned} for {}, but this node's key is {pin}: exchange cards again", config.role);
    }
    Ok(config.role)
}

fn print(ui: Ui, cluster: &Cluster, head: &str, own: Option<Role>) -> Result<()> {
    let nodes: Vec<&Card> = Role::ALL.iter().map(|r| cluster.card(*r)).collect();
    let json = serde_json::json!({ "code": cluster.code(), "nodes": nodes, "own": own });
    let row = |card: &&Card| {
        let [name, public] = [&card.name, &card.public].map(|word| text::one_line(word));
        [card.role.to_string(), name, public, card.pin.to_string()]
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    let table = text::columns(&["node", "name", "address", "key"], &rows);
    ui.result(&json, format!("{table}\n{head}  {}", cluster.code()))
}
