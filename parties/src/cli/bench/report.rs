//! Measurements as documents and for people.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sharelens::control::Start;
use sharelens::outcome::{Difference, Outcome};
use sharelens::report::{self, Bytes, LayerReport, Phase, layers_table};
use sharelens::{Result, text};
use sharelens_protocol::compare::Rounds;

use super::machine::Machine;
use super::measure::{Measured, Place, Sample, Settings};
use super::subject::Subject;
use super::yardstick::Yardstick;

/// Results of more numbers than this are left out of reports.
const SHOWN: usize = 4096;

/// Seconds of several runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one, or the mean of both; none without runs.
    pub median: Option<f64>,
    #[serde(default)]
    pub min: Option<f64>,
    #[serde(default)]
    pub max: Option<f64>,
    /// In the order they were measured.
    #[serde(default)]
    pub all: Vec<f64>,
}

impl Spread {
    /// Of these runs.
    pub fn of(runs: &[f64]) -> Self {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        Self {
            median: (n > 0).then(|| f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2])),
            min: sorted.first().copied(),
            max: sorted.last().copied(),
            all: runs.to_vec(),
        }
    }

    /// The median, or no number.
    pub fn median(&self) -> f64 {
        self.median.unwrap_or(f64::NAN)
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [min, max] = [self.min, self.max].map(|v| v.unwrap_or(f64::NAN));
        write!(f, "{:9.4} s   ({min:.4} to {max:.4})", self.median())
    }
}

fn spread(samples: &[Sample], seconds: impl Fn(&Sample) -> f64) -> Spread {
    Spread::of(&samples.iter().map(seconds).collect::<Vec<_>>())
}

/// One subject at one place.
#[derive(Debug, Serialize)]
pub struct Document {
    model: String,
    mode: crate::cli::Mode,
    ring: &'static str,
    rounds: Rounds,
    arithmetic: String,
    image: Option<String>,
    input_shape: Vec<usize>,
    operation: bool,
    link: String,
    overlap: bool,
    parties: &'static str,
    result: Option<Outcome>,
    plain: Option<Outcome>,
    float: Option<Outcome>,
    max_abs_error: f64,
    max_float_error: Option<f64>,
    cost: Cost,
    runs: Runs,
    not_counted: NotCounted,
    peak_memory: BTreeMap<String, Option<u64>>,
    yardstick: Yardstick,
    machine: Machine,
}

#[derive(Debug, Serialize)]
struct Cost {
    offline: Phase,
    online: Phase,
    layers: Vec<LayerReport>,
}

#[derive(Debug, Serialize)]
struct Runs {
    count: usize,
    offline: Spread,
    online: Spread,
    total: Spread,
    overlap_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct NotCounted {
    load_seconds: f64,
    warm_up: WarmUp,
}

#[derive(Debug, Serialize)]
struct WarmUp {
    offline: f64,
    online: f64,
}

impl Document {
    /// Of these measurements.
    pub fn new(
        subject: &Subject,
        place: Place,
        settings: &Settings,
        measured: &Measured,
        yardstick: &Yardstick,
    ) -> Result<Self> {
        let manifest = &subject.manifest;
        let samples = &measured.samples;
        let last = samples.last().unwrap_or(&measured.warm_up);
        let outcome = |outputs: &[Vec<f64>]| {
            let shown = outputs.iter().map(Vec::len).sum::<usize>() <= SHOWN;
            shown.then(|| Outcome::new(manifest, outputs)).transpose()
        };
        let [online, offline] = [spread(samples, |s| s.online), spread(samples, |s| s.offline)];
        let mut layers = report::layers(manifest, &last.ledger);
        for (layer, (index, _)) in layers.iter_mut().zip(last.ledger.entries()) {
            let of =
                |s: &Sample| s.ledger.entries().find(|(i, _)| *i == index).map_or(0.0, |(_, e)| e.seconds);
            layer.seconds = spread(samples, of).median();
        }
        let ([o0, o1, helper], [n0, n1]) = (last.offline_bytes, last.online_bytes);
        let error = |other: &[Vec<f64>]| Difference::of(manifest, &last.outputs, other).max_abs_error;
        let float = subject.float.as_deref();
        Ok(Self {
            model: subject.name.clone(),
            mode: settings.mode,
            ring: report::ring(manifest),
            rounds: manifest.rounds,
            arithmetic: manifest.arithmetic.to_string(),
            image: None,
            input_shape: manifest.program.input_shape.clone(),
            operation: subject.operation,
            link: place.to_string(),
            overlap: settings.start == Start::AtOnce,
            parties: if matches!(place, Place::Virtual(_)) { "one process" } else { "three processes" },
            result: outcome(&last.outputs)?,
            plain: outcome(&subject.plain)?,
            float: float.map(outcome).transpose()?.flatten(),
            max_abs_error: error(&subject.plain),
            max_float_error: float.map(error),
            cost: Cost {
                offline: Phase {
                    seconds: offline.median(),
                    rounds: 1,
                    bytes: Bytes { server0: o0, server1: o1, helper },
                },
                online: Phase {
                    seconds: online.median(),
                    rounds: report::rounds(manifest, &last.ledger),
                    bytes: Bytes { server0: n0, server1: n1, helper: 0 },
                },
                layers,
            },
            runs: Runs {
                count: samples.len(),
                total: spread(samples, |s| s.offline + s.online),
                overlap_seconds: spread(samples, |s| s.overlap).median,
                offline,
                online: online.clone(),
            },
            not_counted: NotCounted {
                load_seconds: measured.load,
                warm_up: WarmUp { offline: measured.warm_up.offline, online: measured.warm_up.online },
            },
            peak_memory: measured.memory.clone(),
            yardstick: yardstick.clone().against(online.median()),
            machine: Machine::describe(settings.threads),
        })
    }

    /// For people. `details`: also memory, floats, machine and layers.
    pub fn text(&self, details: bool) -> String {
        let word = text::one_line;
        let (runs, Cost { offline, online, layers }) = (&self.runs, &self.cost);
        let mut lines = vec![format!(
            "{}   {}   {}, {}   medians of {} runs after one that does not count",
            word(&self.model),
            self.ring,
            word(&self.link),
            self.parties,
            runs.count,
        )];
        lines.push(format!(
            "  {}  {}   {} sent by the helper{}",
            if self.overlap { "set-up " } else { "offline" },
            runs.offline,
            mib(Some(offline.bytes.helper)),
            if self.overlap { " from then on" } else { "" },
        ));
        lines.push(format!(
            "  online   {}   {} rounds, {} sent by each server",
            runs.online,
            online.rounds,
            mib(Some(online.bytes.server0)),
        ));
        lines.push(format!("  in all   {}", runs.total));
        if self.operation {
            let alone: f64 = layers.iter().map(|l| l.seconds).sum();
            lines.push(format!(
                "  of online, the operation without sending its input and result: {alone:.4} s"
            ));
        }
        let overlap = runs.overlap_seconds.unwrap_or(0.0);
        if self.overlap {
            lines.push(format!("  preparing took {overlap:.4} s of the online phase"));
        } else if overlap > 0.05 * online.seconds {
            lines.push(format!(
                "  preparing went on for {overlap:.4} s of the online phase: memory is capped"
            ));
        }
        if !details {
            return lines.join("\n");
        }
        let memory: Vec<String> =
            self.peak_memory.iter().map(|(name, bytes)| format!("{name} {}", mib(*bytes))).collect();
        lines.push(format!("  peak resident memory: {}", memory.join(", ")));
        lines.push(format!("  {}", self.yardstick));
        lines.push(format!("  {}", self.machine));
        lines.push(layers_table(layers));
        lines.join("\n")
    }
}

fn mib(bytes: Option<u64>) -> String {
    match bytes {
        Some(bytes) => format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20)),
        None => "unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]);
        let json = serde_json::to_value(&spread).unwrap();
        let due = serde_json::json!({ "median": 2.0, "min": 1.0, "max": 3.0, "all": [3.0, 1.0, 2.0] });
        assert_eq!(json, due);
        assert_eq!(Spread::of(&[4.0, 1.0]).median(), 2.5);
        assert_eq!(Spread::of(&[]).median, None);
    }
}
