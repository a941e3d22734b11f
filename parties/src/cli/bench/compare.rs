//! `bench compare`: two measurements of the same things.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use sharelens::report::Bytes;
use sharelens::text;

use super::machine::Machine;
use super::report::Spread;
use crate::cli::{Ui, show};

#[derive(Debug, Args)]
pub struct Compare {
    /// Output of `bench --json`: one document or a list.
    old: PathBuf,
    /// The same, later.
    new: PathBuf,
    /// Fail if a median takes longer by more than this.
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = percent)]
    fail_over: f64,
}

/// `10%` or `10`, as a share of one.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix('%').unwrap_or(text).trim().parse().ok();
    let fits = number.filter(|p: &f64| (0.0..=1e6).contains(p)).map(|p| p / 100.0);
    fits.ok_or_else(|| format!("{text:?} is no percentage, as 10%"))
}

/// The phases of a run, and whether they mean something where they overlap.
const PHASES: [(&str, bool); 3] = [("offline", false), ("online", false), ("total", true)];

/// What is read of a document of `bench`. Files of earlier versions lack some of it.
#[derive(Clone, Debug, Deserialize)]
struct Measurement {
    model: String,
    ring: String,
    mode: String,
    link: String,
    #[serde(default)]
    overlap: bool,
    runs: Runs,
    #[serde(default)]
    cost: Costs,
    #[serde(default)]
    machine: Machine,
}

#[derive(Clone, Debug, Deserialize)]
struct Runs {
    offline: Spread,
    online: Spread,
    total: Spread,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Costs {
    offline: Option<Counts>,
    online: Option<Counts>,
}

#[derive(Clone, Debug, Deserialize)]
struct Counts {
    rounds: Option<u64>,
    bytes: Option<Bytes>,
}

impl Measurement {
    /// Whether both are of the same thing.
    fn same(&self, other: &Self) -> bool {
        let key = |m: &Self| [&m.model, &m.ring, &m.mode, &m.link].map(String::clone);
        key(self) == key(other) && self.overlap == other.overlap
    }

    fn name(&self) -> String {
        let mode = if self.mode == "three" { String::new() } else { format!(", mode {}", self.mode) };
        let overlap = if self.overlap { ", overlapped" } else { "" };
        format!("{} ({}, {}{mode}{overlap})", self.model, self.ring, self.link)
    }

    /// Seconds and counts of a phase.
    fn phase(&self, phase: &str) -> (f64, Option<&Counts>) {
        let (spread, counts) = match phase {
            "offline" => (&self.runs.offline, self.cost.offline.as_ref()),
            "online" => (&self.runs.online, self.cost.online.as_ref()),
            _ => (&self.runs.total, None),
        };
        (spread.median(), counts)
    }
}

/// Ratios of medians, new to old, of what is in both; the names of the rest.
#[derive(Debug, Serialize)]
struct Comparison {
    limit: f64,
    rows: Vec<Row>,
    worse: Vec<String>,
    notes: Vec<String>,
    only_old: Vec<String>,
    only_new: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    case: String,
    phase: &'static str,
    old: f64,
    new: f64,
    ratio: f64,
    rounds: [Option<u64>; 2],
    /// Of all nodes.
    bytes: [Option<u64>; 2],
}

impl Compare {
    pub fn run(self, ui: Ui) -> Result<()> {
        let (old, new) = (load(&self.old)?, load(&self.new)?);
        let comparison = compare(&old, &new, self.fail_over)?;
        ui.result(&comparison, words(&comparison, &self))?;
        if !comparison.worse.is_empty() {
            bail!("slower by more than {} %: {}", self.fail_over * 100.0, comparison.worse.join(", "));
        }
        Ok(())
    }
}

fn load(file: &Path) -> Result<Vec<Measurement>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        All(Vec<Measurement>),
        One(Box<Measurement>),
    }
    let text = std::fs::read_to_string(file).with_context(|| show(file))?;
    let parsed = serde_json::from_str(&text);
    let all = match parsed
        .with_context(|| format!("{}: is not what `sharelens bench --json` prints", show(file)))?
    {
        Either::All(all) => all,
        Either::One(one) => vec![*one],
    };
    let measured = |m: &Measurement| PHASES.iter().all(|(phase, _)| m.phase(phase).0.is_finite());
    ensure!(all.iter().all(measured), "{}: holds a measurement without runs", show(file));
    Ok(all)
}

fn compare(old: &[Measurement], new: &[Measurement], limit: f64) -> Result<Comparison> {
    let (mut rows, mut worse, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for before in old {
        let Some(after) = new.iter().find(|n| before.same(n)) else { continue };
        let case = before.name();
        let other = before.machine.differences(&after.machine);
        if !other.is_empty() {
            notes.push(format!("{case}: another machine ({})", other.join(", ")));
        }
        for (phase, _) in PHASES.into_iter().filter(|(_, whole)| *whole || !before.overlap) {
            let [(old, was), (new, is)] = [before, after].map(|m| m.phase(phase));
            let ratio = new / old;
            if ratio > 1.0 + limit {
                worse.push(format!("{case} {phase}, {ratio:.2} times"));
            }
            rows.push(Row {
                case: case.clone(),
                phase,
                old,
                new,
                ratio,
                rounds: [was, is].map(|c| c.and_then(|c| c.rounds)),
                bytes: [was, is].map(|c| c.and_then(|c| c.bytes).map(|b| b.total())),
            });
        }
    }
    ensure!(!rows.is_empty(), "the two files have nothing in common");
    let only = |a: &[Measurement], b: &[Measurement]| -> Vec<String> {
        a.iter().filter(|x| !b.iter().any(|y| x.same(y))).map(Measurement::name).collect()
    };
    Ok(Comparison { limit, rows, worse, notes, only_old: only(old, new), only_new: only(new, old) })
}

fn words(comparison: &Comparison, files: &Compare) -> String {
    let count = |counts: [Option<u64>; 2]| match counts {
        [Some(a), Some(b)] if a == b => a.to_string(),
        [Some(a), Some(b)] => format!("{a} -> {b}"),
        _ => String::new(),
    };
    let row = |row: &Row| {
        [
            text::one_line(&row.case),
            row.phase.to_string(),
            format!("{:.4}", row.old),
            format!("{:.4}", row.new),
            format!("{:.3}", row.ratio),
            count(row.rounds),
            count(row.bytes),
        ]
    };
    let rows: Vec<_> = comparison.rows.iter().map(row).collect();
    let head = ["case", "phase", "old s", "new s", "ratio", "rounds", "bytes"];
    let mut text = text::columns(&head, &rows);
    for note in &comparison.notes {
        text += &format!("\n{note}");
    }
    for (only, file) in [(&comparison.only_old, &files.old), (&comparison.only_new, &files.new)] {
        for case in only {
            text += &format!("\nonly in {}: {case}", show(file));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn document(model: &str, seconds: f64) -> Measurement {
        let run = json!({ "median": seconds });
        let cost = json!({ "rounds": 5, "bytes": { "server0": 3, "server1": 4, "helper": 0 } });
        let document = json!({
            "model": model, "ring": "rns", "mode": "three", "link": "loopback",
            "runs": { "offline": run, "online": run, "total": run },
            "cost": { "offline": cost, "online": cost },
        });
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn what_got_slower_is_named() {
        let old = [document("a", 1.0), document("b", 1.0), document("c", 1.0)];
        let new = [document("a", 1.09), document("b", 1.2), document("d", 1.0)];
        let comparison = compare(&old, &new, 0.1).unwrap();
        assert_eq!(comparison.rows.len(), 6);
        assert_eq!(comparison.rows[0].bytes, [Some(7); 2]);
        let worse = &comparison.worse;
        assert_eq!(worse.len(), 3);
        assert!(worse.iter().all(|w| w.starts_with("b (rns, loopback)") && w.ends_with("1.20 times")));
        assert!(comparison.notes.is_empty());
        let mut elsewhere = new.clone();
        elsewhere[0].machine.threads = Some(9);
        assert_eq!(
            compare(&old, &elsewhere, 0.1).unwrap().notes,
            ["a (rns, loopback): another machine (threads)"]
        );
        assert_eq!(comparison.only_old, ["c (rns, loopback)"]);
        assert_eq!(comparison.only_new, ["d (rns, loopback)"]);
        assert!(compare(&old, &new, 0.25).unwrap().worse.is_empty());
        assert!(compare(&old[2..], &new, 0.1).unwrap_err().to_string().contains("nothing in common"));
    }

    #[test]
    fn percentages() {
        assert_eq!((percent("10%"), percent("5"), percent("0 %")), (Ok(0.1), Ok(0.05), Ok(0.0)));
        for bad in ["", "%", "-1", "x", "inf"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
