//! Results and costs, as JSON and for people.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sharelens::client::Inference;
use sharelens_models::Manifest;
use sharelens_models::config::Task;
use sharelens_models::graph::FinalActivation;
use sharelens_protocol::channel::HEADER_BYTES;

/// Outputs as the task has them: a label with its class, or vectors with names.
pub fn result(manifest: &Manifest, outputs: &[Vec<f64>]) -> Result<Value> {
    let first = outputs.first().context("the model has no output")?;
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

/// The largest difference of any number.
pub fn max_abs_error(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    a.iter().flatten().zip(b.iter().flatten()).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()))
}

/// What an inference cost. Bytes are those that the node sent, framing included.
pub fn cost(manifest: &Manifest, inference: &Inference) -> Value {
    let [r0, r1] = &inference.reports;
    let layers: Vec<Value> = r0
        .ledger
        .entries()
        .map(|(index, entry)| {
            let layer = manifest.program.layers.get(index as usize);
            json!({
                "name": layer.map(|l| &l.name),
                "op": layer.map(|l| l.op.label()),
                "shape": layer.map(|l| &l.shape),
                "rounds": entry.sent.rounds,
                "bytes": entry.sent.bytes + entry.sent.messages * HEADER_BYTES as u64,
                "seconds": entry.seconds,
            })
        })
        .collect();
    json!({
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
            "rounds": r0.ledger.total().sent.rounds,
            "bytes": { "server0": r0.online_sent, "server1": r1.online_sent, "helper": 0 },
        },
        "layers": layers,
    })
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
    let Some(label) = result.get("label") else {
        let shapes = result["outputs"].as_array().into_iter().flatten();
        let lines = shapes.map(|o| format!("  output   {} {}", o["name"], o["shape"]));
        return lines.collect::<Vec<_>>().join("\n");
    };
    let index = label.as_u64().unwrap_or(0) as usize;
    let probability = result["probabilities"][index].as_f64().unwrap_or(f64::NAN);
    let class = result["class"].as_str().map_or_else(|| label.to_string(), String::from);
    format!("  label    {class}   probability {probability:.4}")
}

/// Cost in two lines and a table.
pub fn cost_words(cost: &Value, layers: bool) -> String {
    let mib = |v: &Value| v.as_f64().unwrap_or(f64::NAN) / f64::from(1 << 20);
    let seconds = |v: &Value| v["seconds"].as_f64().unwrap_or(f64::NAN);
    let (offline, online) = (&cost["offline"], &cost["online"]);
    let mut text = format!(
        "  preprocessing {:8.3} s   {:8.2} MiB\n  online        {:8.3} s   {:8} rounds   {:8.2} MiB sent by each server",
        seconds(offline),
        mib(&offline["bytes"]["helper"]),
        seconds(online),
        online["rounds"],
        mib(&online["bytes"]["server0"]),
    );
    if layers {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_header(["layer", "op", "rounds", "MiB", "ms"]);
        for layer in cost["layers"].as_array().into_iter().flatten() {
            let ms = seconds(layer) * 1e3;
            let name = layer["name"].as_str().unwrap_or("").to_string();
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
        assert_eq!(max_abs_error(&[vec![1.0, 2.0]], &[vec![1.5, 2.0]]), 0.5);
    }
}
