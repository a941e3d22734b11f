//! Measurements as JSON and for people.

use anyhow::Result;
use serde_json::{Value, json};
use sharelens::control::Start;

use super::machine;
use super::measure::{Measured, Place, Sample, Settings};
use super::subject::Subject;
use crate::cli::{result, text};

/// Results of more numbers than this are left out of reports.
const SHOWN: usize = 4096;

/// Seconds of several runs.
pub struct Spread {
    sorted: Vec<f64>,
    runs: Vec<f64>,
}

impl Spread {
    /// Of these runs, of which there is at least one.
    pub fn of(runs: &[f64]) -> Self {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { sorted, runs: runs.to_vec() }
    }

    /// The middle one, or the mean of both.
    pub fn median(&self) -> f64 {
        let n = self.sorted.len();
        match n {
            0 => f64::NAN,
            _ => f64::midpoint(self.sorted[(n - 1) / 2], self.sorted[n / 2]),
        }
    }

    /// Median, extremes and all.
    pub fn json(&self) -> Value {
        json!({
            "median": self.median(),
            "min": self.sorted.first(),
            "max": self.sorted.last(),
            "all": self.runs,
        })
    }
}

fn spread(samples: &[Sample], seconds: impl Fn(&Sample) -> f64) -> Spread {
    Spread::of(&samples.iter().map(seconds).collect::<Vec<_>>())
}

/// The document of one subject at one place.
pub fn document(
    subject: &Subject,
    place: Place,
    settings: &Settings,
    measured: &Measured,
    yardstick: &Value,
) -> Result<Value> {
    let manifest = &subject.manifest;
    let samples = &measured.samples;
    let last = samples.last().unwrap_or(&measured.warm_up);
    let outputs = |outputs: &[Vec<f64>]| {
        if outputs.iter().map(Vec::len).sum::<usize>() > SHOWN {
            return Ok(Value::Null);
        }
        result::result(manifest, outputs)
    };
    let [online, offline] = [spread(samples, |s| s.online), spread(samples, |s| s.offline)];
    let total = spread(samples, |s| s.offline + s.online);
    let mut layers = result::layers(manifest, &last.ledger);
    for (layer, (index, _)) in layers.iter_mut().zip(last.ledger.entries()) {
        let of = |s: &Sample| s.ledger.entries().find(|(i, _)| *i == index).map_or(0.0, |(_, e)| e.seconds);
        layer["seconds"] = spread(samples, of).median().into();
    }
    let [o0, o1, oh] = last.offline_bytes;
    let [n0, n1] = last.online_bytes;
    let mut yardstick = yardstick.clone();
    if let Some(seconds) = yardstick["seconds"]["median"].as_f64() {
        yardstick["online_ratio"] = (online.median() / seconds).into();
    }
    let float = subject.float.as_deref();
    Ok(json!({
        "model": subject.name,
        "mode": settings.mode,
        "ring": result::ring(manifest),
        "rounds": manifest.rounds,
        "arithmetic": manifest.arithmetic.to_string(),
        "image": null,
        "input_shape": manifest.program.input_shape,
        "operation": subject.operation,
        "link": place.to_string(),
        "overlap": settings.start == Start::AtOnce,
        "parties": if matches!(place, Place::Virtual(_)) { "one process" } else { "three processes" },
        "result": outputs(&last.outputs)?,
        "plain": outputs(&subject.plain)?,
        "float": float.map(outputs).transpose()?,
        "max_abs_error": result::max_abs_error(manifest, &last.outputs, &subject.plain),
        "max_float_error": float.map(|float| result::max_abs_error(manifest, &last.outputs, float)),
        "cost": {
            "offline": {
                "seconds": offline.median(),
                "rounds": 1,
                "bytes": { "server0": o0, "server1": o1, "helper": oh },
            },
            "online": {
                "seconds": online.median(),
                "rounds": result::rounds(manifest, &last.ledger),
                "bytes": { "server0": n0, "server1": n1, "helper": 0 },
            },
            "layers": layers,
        },
        "runs": {
            "count": samples.len(),
            "offline": offline.json(),
            "online": online.json(),
            "total": total.json(),
            "overlap_seconds": spread(samples, |s| s.overlap).median(),
        },
        "not_counted": {
            "load_seconds": measured.load,
            "warm_up": { "offline": measured.warm_up.offline, "online": measured.warm_up.online },
        },
        "peak_memory": measured.memory,
        "yardstick": yardstick,
        "machine": machine::describe(settings.threads),
    }))
}

/// A document of [`document`] for people.
pub fn text(document: &Value, details: bool) -> String {
    let word = |v: &Value| text::one_line(v.as_str().unwrap_or(""));
    let runs = &document["runs"];
    let seconds = |v: &Value| {
        let [median, min, max] = ["median", "min", "max"].map(|key| v[key].as_f64().unwrap_or(f64::NAN));
        format!("{median:9.4} s   ({min:.4} to {max:.4})")
    };
    let (offline, online) = (&document["cost"]["offline"], &document["cost"]["online"]);
    let layers = document["cost"]["layers"].as_array().map_or(&[][..], Vec::as_slice);
    let mut lines = vec![format!(
        "{}   {}   {}, {}   medians of {} runs after one that does not count",
        word(&document["model"]),
        word(&document["ring"]),
        word(&document["link"]),
        word(&document["parties"]),
        runs["count"],
    )];
    let overlapped = document["overlap"] == true;
    lines.push(format!(
        "  {}  {}   {} sent by the helper{}",
        if overlapped { "set-up " } else { "offline" },
        seconds(&runs["offline"]),
        mib(&offline["bytes"]["helper"]),
        if overlapped { " from then on" } else { "" },
    ));
    lines.push(format!(
        "  online   {}   {} rounds, {} sent by each server",
        seconds(&runs["online"]),
        online["rounds"],
        mib(&online["bytes"]["server0"]),
    ));
    lines.push(format!("  in all   {}", seconds(&runs["total"])));
    if document["operation"] == true {
        let alone: f64 = layers.iter().filter_map(|l| l["seconds"].as_f64()).sum();
        lines.push(format!("  of online, the operation without sending its input and result: {alone:.4} s"));
    }
    let overlap = runs["overlap_seconds"].as_f64().unwrap_or(0.0);
    if overlapped {
        lines.push(format!("  preparing took {overlap:.4} s of the online phase"));
    } else if overlap > 0.05 * online["seconds"].as_f64().unwrap_or(0.0) {
        lines.push(format!("  preparing went on for {overlap:.4} s of the online phase: memory is capped"));
    }
    if !details {
        return lines.join("\n");
    }
    let memory = document["peak_memory"].as_object().into_iter().flatten();
    let memory: Vec<String> = memory.map(|(name, bytes)| format!("{name} {}", mib(bytes))).collect();
    lines.push(format!("  peak resident memory: {}", memory.join(", ")));
    let yardstick = &document["yardstick"];
    lines.push(match yardstick["online_ratio"].as_f64() {
        Some(ratio) => format!(
            "  plain floats by {}, {} threads:{}; online takes {ratio:.1} times as long",
            word(&yardstick["runtime"]),
            yardstick["threads"],
            seconds(&yardstick["seconds"]),
        ),
        None => format!("  plain floats: {}", word(&yardstick["unavailable"])),
    });
    lines.push(format!("  {}", machine::words(&document["machine"])));
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(["layer", "op", "rounds", "MiB", "ms"]);
    for layer in layers {
        let ms = layer["seconds"].as_f64().unwrap_or(f64::NAN) * 1e3;
        let bytes = layer["bytes"].as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20);
        table.add_row([
            word(&layer["name"]),
            word(&layer["op"]),
            layer["rounds"].to_string(),
            format!("{bytes:.3}"),
            format!("{ms:.2}"),
        ]);
    }
    lines.push(table.to_string());
    lines.join("\n")
}

fn mib(bytes: &Value) -> String {
    match bytes.as_f64() {
        Some(bytes) => format!("{:.2} MiB", bytes / f64::from(1 << 20)),
        None => "unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let spread = Spread::of(&[3.0, 1.0, 2.0]);
        assert_eq!(spread.median(), 2.0);
        assert_eq!(spread.json(), json!({ "median": 2.0, "min": 1.0, "max": 3.0, "all": [3.0, 1.0, 2.0] }));
        assert_eq!(Spread::of(&[4.0, 1.0]).median(), 2.5);
    }
}
