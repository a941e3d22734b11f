//! What an inference cost or would cost, as types: rounds, bytes and seconds, by phase and by layer.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sharelens_models::Manifest;
use sharelens_protocol::channel::HEADER_BYTES;
use sharelens_protocol::compare::Rounds;
use sharelens_protocol::cost::Ledger;

use crate::client::Inference;
use crate::control::Start;
use crate::engine;
use crate::error::Result;
use crate::text;

/// What an inference cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CostReport {
    /// Whether preprocessing went on beside the online phase.
    pub overlapped: bool,
    /// Seconds from the request until all was preprocessed.
    pub prepared_seconds: f64,
    /// From the request until the image could be sent.
    pub offline: Phase,
    /// From the image to the result.
    pub online: Phase,
    /// Of the online phase at server 0, in the order of the program.
    pub layers: Vec<LayerReport>,
}

/// One phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// By the wall clock.
    pub seconds: f64,
    /// Exchanges one after the other.
    pub rounds: u64,
    /// Sent, by node.
    pub bytes: Bytes,
}

/// Bytes that each node sent, framing included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// By server 0.
    pub server0: u64,
    /// By server 1.
    pub server1: u64,
    /// By the helper.
    pub helper: u64,
}

impl Bytes {
    /// By all.
    pub const fn total(&self) -> u64 {
        self.server0 + self.server1 + self.helper
    }
}

/// What a layer cost a server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerReport {
    /// As the model names it; none for what belongs to no layer.
    pub name: Option<String>,
    /// The kind of layer.
    pub op: Option<String>,
    /// Of its result.
    pub shape: Option<Vec<usize>>,
    /// Exchanges one after the other. Layers that do not depend on each other share theirs.
    pub rounds: u64,
    /// Sent by one server, framing included.
    pub bytes: u64,
    /// Dealt to server 1, framing included: of a plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dealt_bytes: Option<u64>,
    /// By the wall clock, or on the link of a plan.
    pub seconds: f64,
}

const MIB: f64 = (1 << 20) as f64;

impl CostReport {
    /// Of an inference that was started so. Where preprocessing overlapped with the online phase, `offline` ends when
    /// the image could be sent, and `prepared_seconds` says when preprocessing did.
    pub fn new(manifest: &Manifest, inference: &Inference, start: Start) -> Self {
        let [r0, r1] = &inference.reports;
        Self {
            overlapped: start == Start::AtOnce,
            prepared_seconds: r0.offline_seconds.max(r1.offline_seconds) - inference.queued_seconds,
            offline: Phase {
                seconds: inference.offline_seconds,
                rounds: 1,
                bytes: Bytes {
                    server0: r0.offline_sent,
                    server1: r1.offline_sent,
                    helper: r0.helper_sent + r1.helper_sent,
                },
            },
            online: Phase {
                seconds: inference.online_seconds,
                rounds: rounds(manifest, &r0.ledger),
                bytes: Bytes { server0: r0.online_sent, server1: r1.online_sent, helper: 0 },
            },
            layers: layers(manifest, &r0.ledger),
        }
    }

    /// Seconds from the request to the end of preprocessing, whatever ran beside it.
    pub const fn preprocessing_seconds(&self) -> f64 {
        if self.overlapped { self.prepared_seconds } else { self.offline.seconds }
    }

    /// Seconds from the request to the result.
    pub const fn total_seconds(&self) -> f64 {
        self.offline.seconds + self.online.seconds
    }

    /// A table of the layers.
    pub fn layers_table(&self) -> String {
        layers_table(&self.layers)
    }
}

/// Phases in two or three lines; [`CostReport::layers_table`] has the rest.
impl fmt::Display for CostReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (offline, online) = (&self.offline, &self.online);
        let beside = if self.overlapped { "   beside the online phase" } else { "" };
        let (dealt, sent) = (offline.bytes.helper as f64 / MIB, online.bytes.server0 as f64 / MIB);
        writeln!(f, "  preprocessing {:8.3} s   {dealt:8.2} MiB{beside}", self.preprocessing_seconds())?;
        let (seconds, rounds) = (online.seconds, online.rounds);
        write!(
            f,
            "  online        {seconds:8.3} s   {rounds:8} rounds   {sent:8.2} MiB sent by each server"
        )?;
        if self.overlapped {
            write!(f, "\n  in all        {:8.3} s", self.total_seconds())?;
        }
        Ok(())
    }
}

/// The columns of a table of layers.
pub const LAYER_COLUMNS: [&str; 5] = ["layer", "op", "rounds", "MiB", "ms"];

impl LayerReport {
    /// Its row in a table, safe to print.
    pub fn row(&self) -> [String; 5] {
        let word = |v: &Option<String>| v.as_deref().map(text::one_line).unwrap_or_default();
        [
            word(&self.name),
            word(&self.op),
            self.rounds.to_string(),
            format!("{:.3}", self.bytes as f64 / MIB),
            format!("{:.2}", self.seconds * 1e3),
        ]
    }
}

/// A table of layers.
pub fn layers_table(layers: &[LayerReport]) -> String {
    let rows: Vec<_> = layers.iter().map(LayerReport::row).collect();
    text::columns(&LAYER_COLUMNS, &rows)
}

/// Rounds of a run: fewer than the sum over layers where some run side by side.
pub fn rounds(manifest: &Manifest, ledger: &Ledger) -> u64 {
    let of = |layer| ledger.entries().find(|(i, _)| *i == layer).map_or(0, |(_, e)| e.sent.rounds);
    manifest.program.rounds(of)
}

fn layer(manifest: &Manifest, index: u32) -> LayerReport {
    let layer = manifest.program.layers.get(index as usize);
    LayerReport {
        name: layer.map(|l| l.name.clone()),
        op: layer.map(|l| l.op.label().to_string()),
        shape: layer.map(|l| l.shape.clone()),
        rounds: 0,
        bytes: 0,
        dealt_bytes: None,
        seconds: 0.0,
    }
}

/// What each layer cost the server with this ledger.
pub fn layers(manifest: &Manifest, ledger: &Ledger) -> Vec<LayerReport> {
    let entry = |(index, entry): (u32, &sharelens_protocol::cost::Entry)| LayerReport {
        rounds: entry.sent.rounds,
        bytes: entry.sent.bytes + entry.sent.messages * HEADER_BYTES as u64,
        seconds: entry.seconds,
        ..layer(manifest, index)
    };
    ledger.entries().map(entry).collect()
}

/// Name of the ring, as in arguments.
pub const fn ring(manifest: &Manifest) -> &'static str {
    match manifest.arithmetic {
        sharelens_models::Arithmetic::Rns(_) => "rns",
        sharelens_models::Arithmetic::Z64 => "z64",
    }
}

/// What an inference would cost over a link, computing not counted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanReport {
    /// Which model.
    pub model: String,
    /// Which arithmetic.
    pub ring: String,
    /// What comparisons trade rounds for.
    pub rounds: Rounds,
    /// Of the link.
    pub rtt_ms: f64,
    /// Of the link, in each direction.
    pub mbit: f64,
    /// In all.
    pub total: Total,
    /// In the order of the program.
    pub layers: Vec<LayerReport>,
}

/// All layers together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Total {
    /// Exchanges one after the other.
    pub rounds: u64,
    /// Sent by one server, framing included.
    pub bytes: u64,
    /// Dealt to server 1, framing included.
    pub dealt_bytes: u64,
    /// On the link between the servers.
    pub seconds: f64,
}

impl PlanReport {
    /// A round is an exchange in both directions at once: half a round trip, and the bytes of one direction. Layers that
    /// do not depend on each other share rounds.
    ///
    /// # Errors
    /// [`crate::Error::Config`] if the manifest cannot be planned.
    pub fn new(manifest: &Manifest, rtt_ms: f64, mbit: f64) -> Result<Self> {
        let seconds = |rounds: u64, bytes: u64| rounds as f64 * rtt_ms / 2e3 + bytes as f64 * 8e-6 / mbit;
        let planned: BTreeMap<u32, _> = engine::plan(manifest)?;
        let rounds = manifest.program.rounds(|layer| planned.get(&layer).map_or(0, |c| c.rounds));
        let framing = HEADER_BYTES as u64;
        let (mut layers, mut bytes, mut dealt_bytes) = (Vec::new(), 0, 0);
        for (&index, cost) in &planned {
            let (sent, dealt) = (cost.bytes + framing * cost.messages, cost.dealt + framing * cost.deals);
            (bytes, dealt_bytes) = (bytes + sent, dealt_bytes + dealt);
            layers.push(LayerReport {
                rounds: cost.rounds,
                bytes: sent,
                dealt_bytes: Some(dealt),
                seconds: seconds(cost.rounds, sent),
                ..layer(manifest, index)
            });
        }
        Ok(Self {
            model: manifest.config.name.clone(),
            ring: ring(manifest).into(),
            rounds: manifest.rounds,
            rtt_ms,
            mbit,
            total: Total { rounds, bytes, dealt_bytes, seconds: seconds(rounds, bytes) },
            layers,
        })
    }
}

/// A table of layers and a line of totals.
impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = |layer: &LayerReport| {
            let [name, op, rounds, mib, ms] = layer.row();
            [name, op, rounds, mib, format!("{:.3}", layer.dealt_bytes.unwrap_or(0) as f64 / MIB), ms]
        };
        let rows: Vec<_> = self.layers.iter().map(row).collect();
        let head = ["layer", "op", "rounds", "MiB", "dealt MiB", "ms"];
        writeln!(f, "{}", text::columns(&head, &rows))?;
        let Total { rounds, bytes, dealt_bytes, seconds } = self.total;
        let (sent, dealt) = (bytes as f64 / MIB, dealt_bytes as f64 / MIB);
        write!(
            f,
            "{rounds} rounds, {sent:.3} MiB sent by each server, {dealt:.3} MiB dealt, {seconds:.3} s on the link \
             (computing not counted)"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_layers_cannot_forge_lines_or_steer_the_terminal() {
        let layer = LayerReport {
            name: Some("\u{1b}[2Jx\nconv".into()),
            op: Some("conv".into()),
            shape: None,
            rounds: 1,
            bytes: 1 << 20,
            dealt_bytes: None,
            seconds: 0.5,
        };
        let table = layers_table(&[layer]);
        assert!(table.lines().count() == 2 && !table.contains('\u{1b}'), "{table:?}");
        assert!(table.ends_with("1.000  500.00"), "{table:?}");
    }
}
