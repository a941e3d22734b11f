//! Results and costs, as JSON and for people.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sharelens::client::Inference;
use sharelens::control::Start;
use sharelens_models::Manifest;
use sharelens_models::check::{CONFIDENT, settled};
use sharelens_models::config::Task;
use sharelens_models::detect::{self, Detections};
use sharelens_models::graph::FinalActivation;
use sharelens_protocol::channel::HEADER_BYTES;
use sharelens_protocol::cost::{Entry, Ledger};

use super::text;

/// Outputs as the task has them: detections in pixels of the input, a label with its class, or vectors with names.
pub fn result(manifest: &Manifest, outputs: &[Vec<f64>]) -> Result<Value> {
    let first = outputs.first().context("the model has no output")?;
    if let Some(found) = detections(manifest, outputs) {
        let class = |&label: &usize| manifest.config.classes.get(label);
        return Ok(json!({
            "boxes": found.boxes,
            "labels": found.labels,
            "scores": found.scores,
            "classes": found.labels.iter().map(class).collect::<Vec<_>>(),
            "settled": settled(outputs),
        }));
    }
    if manifest.config.task != Task::Classification {
        let named = manifest.outputs.iter().zip(outputs).map(|(info, values)| {
            json!({ "name": info.name, "shape": info.shape, "values": activate(info.activation, values) })
        });
        return Ok(json!({ "outputs": named.collect::<Vec<_>>() }));
    }
    let label = sharelens_models::check::top(first).context("the output is empty")?;
    Ok(json!({
        "label": label,
        "class": manifest.config.classes.get(label),
        "logits": first,
        "probabilities": activate(Some(FinalActivation::Softmax), first),
    }))
}

fn activate(activation: Option<FinalActivation>, x: &[f64]) -> Vec<f64> {
    match activation {
        None => x.to_vec(),
        Some(FinalActivation::Sigmoid) => x.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
        Some(FinalActivation::Softmax) => {
            let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|e| e / sum).collect()
        }
    }
}

/// What a detector found, in pixels of its input; none for other models.
pub fn detections(manifest: &Manifest, outputs: &[Vec<f64>]) -> Option<Detections> {
    let settings = manifest.config.detection.as_ref()?;
    Some(Detections::from_rows(outputs.first()?, settings.stride))
}

/// How far two results are apart, as entries of `json`: `max_abs_error`, and for detectors `differs`, over all
/// detections that one of both scores at least a half.
pub fn differ(json: &mut Value, manifest: &Manifest, a: &[Vec<f64>], b: &[Vec<f64>]) {
    json["max_abs_error"] = max_abs_error(manifest, a, b).into();
    if let (Some(a), Some(b)) = (detections(manifest, a), detections(manifest, b)) {
        let agreement = detect::compare(&a, &b, CONFIDENT);
        json["differs"] = json!({
            "pixels": agreement.pixels,
            "score": agreement.score,
            "matched": agreement.matched,
            "alone": agreement.alone,
        });
    }
}

/// What [`differ`] found, in words.
pub fn differ_words(json: &Value) -> String {
    let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
    let differs = &json["differs"];
    if differs.is_null() {
        return format!("plaintext differs by at most {:.6}", number(&json["max_abs_error"]));
    }
    let mut text = format!(
        "plaintext differs by at most {:.3} px, {:.5} in score   ({} detections scored {CONFIDENT} or more)",
        number(&differs["pixels"]),
        number(&differs["score"]),
        differs["matched"],
    );
    if differs["alone"] != 0 {
        text += &format!("; {} have no partner", differs["alone"]);
    }
    text
}

/// The largest difference of any number; of a detector, of coordinates of the same detection in pixels.
pub fn max_abs_error(manifest: &Manifest, a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    if let (Some(a), Some(b)) = (detections(manifest, a), detections(manifest, b)) {
        return detect::compare(&a, &b, CONFIDENT).pixels;
    }
    a.iter().flatten().zip(b.iter().flatten()).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()))
}

/// What an inference cost. Bytes are those that the node sent, framing included. Where preprocessing overlapped
/// with the online phase, `offline` ends when the image could be sent, and `prepared_seconds` says when
/// preprocessing did.
pub fn cost(manifest: &Manifest, inference: &Inference, start: Start) -> Value {
    let [r0, r1] = &inference.reports;
    let prepared = r0.offline_seconds.max(r1.offline_seconds);
    json!({
        "overlapped": start == Start::AtOnce,
        "prepared_seconds": prepared,
        "offline": {
            "seconds": inference.offline_seconds,
            "rounds": 1,
            "bytes": {
                "server0": r0.offline_sent,
                "server1": r1.offline_sent,
                "helper": r0.helper_sent + r1.helper_sent,
            },
        },
        "online": {
            "seconds": inference.online_seconds,
            "rounds": rounds(manifest, &r0.ledger),
            "bytes": { "server0": r0.online_sent, "server1": r1.online_sent, "helper": 0 },
        },
        "layers": layers(manifest, &r0.ledger),
    })
}

/// Rounds of a run.
pub fn rounds(manifest: &Manifest, ledger: &Ledger) -> u64 {
    let of = |layer| ledger.entries().find(|(i, _)| *i == layer).map_or(0, |(_, e)| e.sent.rounds);
    manifest.program.rounds(of)
}

/// What each layer cost a server.
pub fn layers(manifest: &Manifest, ledger: &Ledger) -> Vec<Value> {
    let layer = |(index, entry): (u32, &Entry)| {
        let layer = manifest.program.layers.get(index as usize);
        json!({
            "name": layer.map(|l| &l.name),
            "op": layer.map(|l| l.op.label()),
            "shape": layer.map(|l| &l.shape),
            "rounds": entry.sent.rounds,
            "bytes": entry.sent.bytes + entry.sent.messages * HEADER_BYTES as u64,
            "seconds": entry.seconds,
        })
    };
    ledger.entries().map(layer).collect()
}

/// Name of the ring, as in arguments.
pub const fn ring(manifest: &Manifest) -> &'static str {
    match manifest.arithmetic {
        sharelens_models::Arithmetic::Rns(_) => "rns",
        sharelens_models::Arithmetic::Z64 => "z64",
    }
}

/// The result in one line or a few.
pub fn words(result: &Value) -> String {
    if result["boxes"].is_array() {
        return detection_words(result);
    }
    let Some(label) = result.get("label") else {
        let shapes = result["outputs"].as_array().into_iter().flatten();
        let lines =
            shapes.map(|o| format!("  output   {} {}", text::one_line(&o["name"].to_string()), o["shape"]));
        return lines.collect::<Vec<_>>().join("\n");
    };
    let index = label.as_u64().unwrap_or(0) as usize;
    let probability = result["probabilities"][index].as_f64().unwrap_or(f64::NAN);
    let class = result["class"].as_str().map_or_else(|| label.to_string(), text::one_line);
    format!("  label    {class}   probability {probability:.4}")
}

/// A row of a table per detection: label, score, corners.
pub fn rows(result: &Value) -> Vec<[String; 6]> {
    let number = |v: &Value, digits: usize| format!("{:.digits$}", v.as_f64().unwrap_or(f64::NAN));
    let row = |(i, corners): (usize, &Value)| {
        let class =
            result["classes"][i].as_str().map_or_else(|| result["labels"][i].to_string(), text::one_line);
        let [x1, y1, x2, y2] = [0, 1, 2, 3].map(|a| number(&corners[a], 1));
        [class, number(&result["scores"][i], 3), x1, y1, x2, y2]
    };
    result["boxes"].as_array().into_iter().flatten().enumerate().map(row).collect()
}

/// What `rows` shows.
pub const COLUMNS: [&str; 6] = ["label", "score", "x1", "y1", "x2", "y2"];

/// What to do if suppression did not settle.
pub fn warning(result: &Value) -> Option<&'static str> {
    (result["settled"] == false).then_some(
        "suppression of overlapping boxes did not settle in its number of steps, so boxes may be missing or \
         doubled: prepare the model again with a larger --nms-steps",
    )
}

fn detection_words(result: &Value) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(COLUMNS);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    table.add_rows(rows(result));
    let lines: Vec<String> = table.lines().map(|l| format!(" {}", l.trim_end())).collect();
    let mut text = lines.join("\n");
    if result["boxes"].as_array().is_some_and(Vec::is_empty) {
        text += "\n  nothing was found";
    }
    if let Some(warning) = warning(result) {
        text += &format!("\n  warning: {warning}");
    }
    text
}

/// From the request to its end, whatever ran beside it.
pub fn preprocessing_seconds(cost: &Value) -> f64 {
    let ready = &cost["offline"]["seconds"];
    let seconds = if cost["overlapped"] == true { &cost["prepared_seconds"] } else { ready };
    seconds.as_f64().unwrap_or(f64::NAN)
}

/// Cost in two or three lines and a table.
pub fn cost_words(cost: &Value, layers: bool) -> String {
    let mib = |v: &Value| v.as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20);
    let seconds = |v: &Value| v["seconds"].as_f64().unwrap_or(f64::NAN);
    let (offline, online) = (&cost["offline"], &cost["online"]);
    let overlapped = cost["overlapped"] == true;
    let mut text = format!(
        "  preprocessing {:8.3} s   {:8.2} MiB{}\n  online        {:8.3} s   {:8} rounds   {:8.2} MiB sent by each server",
        preprocessing_seconds(cost),
        mib(&offline["bytes"]["helper"]),
        if overlapped { "   beside the online phase" } else { "" },
        seconds(online),
        online["rounds"],
        mib(&online["bytes"]["server0"]),
    );
    if overlapped {
        text += &format!("\n  in all        {:8.3} s", seconds(offline) + seconds(online));
    }
    if layers {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_header(["layer", "op", "rounds", "MiB", "ms"]);
        for layer in cost["layers"].as_array().into_iter().flatten() {
            let ms = seconds(layer) * 1e3;
            let name = text::one_line(layer["name"].as_str().unwrap_or(""));
            let op = layer["op"].as_str().unwrap_or("").to_string();
            let bytes = format!("{:.3}", mib(&layer["bytes"]));
            table.add_row([name, op, layer["rounds"].to_string(), bytes, format!("{ms:.2}")]);
        }
        text = format!("{text}\n{table}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_even_for_large_logits() {
        let p = activate(Some(FinalActivation::Softmax), &[1000.0, 999.0]);
        assert!((p.iter().sum::<f64>() - 1.0).abs() < 1e-12 && p[0] > p[1]);
        assert_eq!(activate(Some(FinalActivation::Sigmoid), &[0.0]), [0.5]);
    }

    #[test]
    fn detections_are_a_table_and_unsettled_ones_warn() {
        let mut result = json!({
            "boxes": [[1.0, 2.0, 30.25, 40.0]], "labels": [2], "scores": [0.98765], "classes": ["WBC"], "settled": true
        });
        let text = words(&result);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines, [COLUMNS.to_vec(), vec!["WBC", "0.988", "1.0", "2.0", "30.2", "40.0"]]);
        result["settled"] = false.into();
        assert!(words(&result).contains("--nms-steps"));
    }

    #[test]
    fn names_of_a_model_cannot_forge_lines_or_steer_the_terminal() {
        let evil = "\u{1b}[2Jx\n  label    no_tumor";
        let detected = json!({
            "boxes": [[1, 2, 3, 4]], "labels": [1], "scores": [0.5], "classes": [evil], "settled": true
        });
        let classified = json!({ "label": 0, "class": evil, "probabilities": [1.0] });
        let other = json!({ "outputs": [{ "name": evil, "shape": [1] }] });
        let layers = json!({ "layers": [{ "name": evil, "op": "conv" }] });
        for (text, lines) in [
            (words(&detected), 2),
            (words(&classified), 1),
            (words(&other), 1),
            (cost_words(&layers, true), 4),
        ] {
            assert!(text.lines().count() == lines && !text.contains('\u{1b}'), "{text:?}");
        }
    }
}
