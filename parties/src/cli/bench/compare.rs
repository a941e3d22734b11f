//! `bench compare`: two measurements of the same things.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::cli::{Ui, show, text};

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

/// What has to be equal for two measurements to be of the same thing.
const KEYS: [&str; 4] = ["model", "ring", "mode", "link"];
/// What has to be equal for their seconds to be comparable.
const MACHINE: [&str; 4] = ["cpu", "cores", "threads", "instructions"];
const PHASES: [&str; 3] = ["offline", "online", "total"];

impl Compare {
    pub fn run(self, ui: Ui) -> Result<()> {
        let (old, new) = (load(&self.old)?, load(&self.new)?);
        let comparison = compare(&old, &new, self.fail_over)?;
        ui.result(&comparison, words(&comparison, &self))?;
        let worse: Vec<&str> = strings(&comparison["worse"]);
        if !worse.is_empty() {
            bail!("slower by more than {} %: {}", self.fail_over * 100.0, worse.join(", "));
        }
        Ok(())
    }
}

fn load(file: &Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(file).with_context(|| show(file))?;
    let document: Value = serde_json::from_str(&text).with_context(|| show(file))?;
    let all = match document {
        Value::Array(all) => all,
        one => vec![one],
    };
    for document in &all {
        let fit = KEYS.iter().all(|key| document[key].is_string())
            && PHASES.iter().all(|phase| median(document, phase).is_some());
        if !fit {
            bail!("{}: is not what `sharelens bench --json` prints", show(file));
        }
    }
    Ok(all)
}

fn median(document: &Value, phase: &str) -> Option<f64> {
    document["runs"][phase]["median"].as_f64()
}

fn name(document: &Value) -> String {
    let [model, ring, mode, link] = KEYS.map(|key| document[key].as_str().unwrap_or(""));
    let mode = if mode == "three" { String::new() } else { format!(", mode {mode}") };
    let overlap = if overlapped(document) { ", overlapped" } else { "" };
    format!("{model} ({ring}, {link}{mode}{overlap})")
}

/// Older files do not say: nothing was.
fn overlapped(document: &Value) -> bool {
    document["overlap"] == true
}

/// What is compared. Of phases that overlap only the whole has a meaning.
fn phases(document: &Value) -> &'static [&'static str] {
    if overlapped(document) { &PHASES[2..] } else { &PHASES }
}

/// Ratios of medians, new to old, of what is in both; the names of the rest.
fn compare(old: &[Value], new: &[Value], limit: f64) -> Result<Value> {
    let (mut rows, mut worse, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    let same =
        |a: &Value, b: &Value| KEYS.iter().all(|key| a[key] == b[key]) && overlapped(a) == overlapped(b);
    for before in old {
        let Some(after) = new.iter().find(|n| same(before, n)) else { continue };
        let case = name(before);
        let differs = |key: &&str| before["machine"][key] != after["machine"][key];
        let other: Vec<&str> = MACHINE.into_iter().filter(differs).collect();
        if !other.is_empty() {
            notes.push(format!("{case}: another machine ({})", other.join(", ")));
        }
        for phase in phases(before) {
            let [a, b] = [before, after].map(|d| median(d, phase).unwrap_or(f64::NAN));
            let ratio = b / a;
            if ratio > 1.0 + limit {
                worse.push(format!("{case} {phase}, {ratio:.2} times"));
            }
            let bytes = |d: &Value| sum(&d["cost"][phase]["bytes"]);
            let rounds = |d: &Value| d["cost"][phase]["rounds"].clone();
            rows.push(json!({
                "case": case, "phase": phase, "old": a, "new": b, "ratio": ratio,
                "rounds": [rounds(before), rounds(after)], "bytes": [bytes(before), bytes(after)],
            }));
        }
    }
    if rows.is_empty() {
        bail!("the two files have nothing in common");
    }
    let only = |a: &[Value], b: &[Value]| -> Vec<String> {
        a.iter().filter(|x| !b.iter().any(|y| same(x, y))).map(name).collect()
    };
    Ok(json!({
        "limit": limit, "rows": rows, "worse": worse, "notes": notes,
        "only_old": only(old, new), "only_new": only(new, old),
    }))
}

/// Of all nodes.
fn sum(bytes: &Value) -> Option<u64> {
    bytes.as_object().map(|nodes| nodes.values().filter_map(Value::as_u64).sum())
}

fn words(comparison: &Value, files: &Compare) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["case", "phase", "old s", "new s", "ratio", "rounds", "bytes"]);
    for row in comparison["rows"].as_array().into_iter().flatten() {
        let number = |key: &str| format!("{:.4}", row[key].as_f64().unwrap_or(f64::NAN));
        let count = |key: &str| match (&row[key][0], &row[key][1]) {
            (Value::Null, _) | (_, Value::Null) => String::new(),
            (a, b) if a == b => a.to_string(),
            (a, b) => format!("{a} -> {b}"),
        };
        table.add_row([
            text::one_line(row["case"].as_str().unwrap_or("")),
            row["phase"].as_str().unwrap_or("").to_string(),
            number("old"),
            number("new"),
            format!("{:.3}", row["ratio"].as_f64().unwrap_or(f64::NAN)),
            count("rounds"),
            count("bytes"),
        ]);
    }
    let mut text = table.to_string();
    for note in strings(&comparison["notes"]) {
        text += &format!("\n{note}");
    }
    for (key, file) in [("only_old", &files.old), ("only_new", &files.new)] {
        for case in strings(&comparison[key]) {
            text += &format!("\nonly in {}: {case}", show(file));
        }
    }
    text
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(model: &str, seconds: f64) -> Value {
        let run = json!({ "median": seconds });
        let cost = json!({ "rounds": 5, "bytes": { "server0": 3, "server1": 4, "helper": 0 } });
        json!({
            "model": model, "ring": "rns", "mode": "three", "link": "loopback",
            "runs": { "offline": run, "online": run, "total": run },
            "cost": { "offline": cost, "online": cost },
        })
    }

    #[test]
    fn what_got_slower_is_named() {
        let old = [document("a", 1.0), document("b", 1.0), document("c", 1.0)];
        let new = [document("a", 1.09), document("b", 1.2), document("d", 1.0)];
        let comparison = compare(&old, &new, 0.1).unwrap();
        assert_eq!(comparison["rows"].as_array().unwrap().len(), 6);
        assert_eq!(comparison["rows"][0]["bytes"], json!([7, 7]));
        let worse = strings(&comparison["worse"]);
        assert_eq!(worse.len(), 3);
        assert!(worse.iter().all(|w| w.starts_with("b (rns, loopback)") && w.ends_with("1.20 times")));
        assert!(strings(&comparison["notes"]).is_empty());
        let mut elsewhere = new.clone();
        elsewhere[0]["machine"] = json!({ "threads": 9 });
        assert_eq!(
            strings(&compare(&old, &elsewhere, 0.1).unwrap()["notes"]),
            ["a (rns, loopback): another machine (threads)"]
        );
        assert_eq!(strings(&comparison["only_old"]), ["c (rns, loopback)"]);
        assert_eq!(strings(&comparison["only_new"]), ["d (rns, loopback)"]);
        assert!(strings(&compare(&old, &new, 0.25).unwrap()["worse"]).is_empty());
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
