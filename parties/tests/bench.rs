//! `sharelens bench` as its users meet it. Counts are asserted, seconds are not.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn sharelens(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sharelens")).args(args).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let out = sharelens(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&ok(&[args, &["--json"]].concat())).unwrap()
}

/// The text on standard error.
fn fails(args: &[&str], code: i32) -> String {
    let out = sharelens(args);
    assert_eq!(out.status.code(), Some(code), "{args:?}");
    String::from_utf8(out.stderr).unwrap()
}

#[test]
fn a_model_costs_what_was_planned_wherever_its_parties_are() {
    let dir = tempfile::tempdir().unwrap();
    let slm = dir.path().join("kept.slm");
    let slm = slm.to_str().unwrap();
    let links = "loopback,lan,50ms:400mbit";
    let bench = ["bench", "brain_mri_cnn", "--runs", "2", "--wan", links, "--relay", "2ms:1000mbit"];
    let documents = json(&[&bench[..], &["--keep", slm]].concat());
    let plans = ["balanced", "fewest"].map(|rounds| (rounds, json(&["plan", slm, "--rounds", rounds])));
    let places = ["loopback", "1ms:1000mbit", "50ms:400mbit", "relay 2ms:1000mbit"];
    let documents = documents.as_array().unwrap();
    assert_eq!(documents.len(), places.len());
    for (document, place) in documents.iter().zip(places) {
        assert_eq!(document["link"], place);
        let (_, plan) = plans.iter().find(|(rounds, _)| document["rounds"] == *rounds).unwrap();
        match place {
            "loopback" => assert_eq!(document["rounds"], "balanced"),
            "50ms:400mbit" => assert_eq!(document["rounds"], "fewest"),
            _ => {}
        }
        assert_eq!((&document["model"], &document["mode"]), (&json!("brain_mri_cnn"), &json!("three")));
        assert_eq!(document["result"]["label"], document["plain"]["label"]);
        assert_eq!(document["result"]["label"], document["float"]["label"]);
        assert!(document["max_abs_error"].as_f64().unwrap() < 0.05);
        let (cost, total) = (&document["cost"], &plan["total"]);
        let (offline, online) = (&cost["offline"], &cost["online"]);
        assert_eq!(
            (&online["rounds"], &online["bytes"]["server0"], &offline["bytes"]["helper"]),
            (&total["rounds"], &total["bytes"], &total["dealt_bytes"]),
            "{place}"
        );
        assert_eq!(online["bytes"]["server0"], online["bytes"]["server1"]);
        let layers = cost["layers"].as_array().unwrap();
        let planned = plan["layers"].as_array().unwrap();
        let costly = |l: &&Value| l["rounds"] != 0;
        for (layer, planned) in layers.iter().filter(costly).zip(planned.iter().filter(costly)) {
            for key in ["name", "op", "shape", "rounds", "bytes"] {
                assert_eq!(layer[key], planned[key], "{place}");
            }
            assert!(layer["seconds"].is_number());
        }
        let runs = &document["runs"];
        assert_eq!(runs["count"], 2);
        assert!(runs["overlap_seconds"].as_f64().unwrap() >= 0.0);
        for phase in ["offline", "online", "total"] {
            let spread = &runs[phase];
            let [min, median, max] = ["min", "median", "max"].map(|key| spread[key].as_f64().unwrap());
            assert!(0.0 < min && min <= median && median <= max, "{spread}");
            assert_eq!(spread["all"].as_array().unwrap().len(), 2);
        }
        assert_eq!(cost["online"]["seconds"], runs["online"]["median"]);
        assert!(document["machine"]["threads"].as_u64().unwrap() > 0);
        if cfg!(target_os = "linux") {
            let memory = document["peak_memory"].as_object().unwrap();
            let parties = if place.starts_with(|c: char| c.is_ascii_digit()) { 1 } else { 3 };
            assert!(memory.len() == parties && memory.values().all(|m| m.as_u64() > Some(1 << 20)));
        }
    }
}

#[test]
fn phases_overlap_on_demand() {
    let bench = ["bench", "brain_mri_cnn", "--runs", "2", "--rounds", "balanced"];
    let links = ["--wan", "loopback,50ms:400mbit"];
    let apart = json(&[&bench[..], &links].concat());
    let overlapped = json(&[&bench[..], &links, &["--overlap"]].concat());
    for (apart, overlapped) in apart.as_array().unwrap().iter().zip(overlapped.as_array().unwrap()) {
        assert_eq!((&apart["overlap"], &overlapped["overlap"]), (&json!(false), &json!(true)));
        for key in ["model", "ring", "link"] {
            assert_eq!(apart[key], overlapped[key]);
        }
        assert_eq!(apart["result"]["label"], overlapped["result"]["label"]);
        assert!(overlapped["max_abs_error"].as_f64().unwrap() < 0.05);
        for phase in ["offline", "online"] {
            for key in ["rounds", "bytes"] {
                assert_eq!(apart["cost"][phase][key], overlapped["cost"][phase][key], "{}", apart["link"]);
            }
            assert!(overlapped["runs"][phase]["median"].as_f64() > Some(0.0));
        }
        assert!(overlapped["runs"]["total"]["median"].as_f64() > Some(0.0));
        // Dealing cannot be over before the client hears that it may send.
        assert!(
            overlapped["link"] == "loopback" || overlapped["runs"]["overlap_seconds"].as_f64() > Some(0.0)
        );
    }
    // They are not the same thing, and of one alone the total is compared.
    let dir = tempfile::tempdir().unwrap();
    let [apart, overlapped] = [("apart", apart), ("overlapped", overlapped)].map(|(name, document)| {
        let file = dir.path().join(name);
        std::fs::write(&file, document.to_string()).unwrap();
        file.to_str().unwrap().to_string()
    });
    assert!(fails(&["bench", "compare", &apart, &overlapped], 1).contains("nothing in common"));
    let same = json(&["bench", "compare", &overlapped, &overlapped]);
    let rows = same["rows"].as_array().unwrap();
    assert!(rows.len() == 2 && rows.iter().all(|row| row["phase"] == "total"), "{same}");
    assert!(rows[0]["case"].as_str().unwrap().contains("overlapped"));
}

#[test]
fn a_network_is_built_and_measured() {
    let document = json(&["bench", "lenet5", "--runs", "1", "--in-process", "--threads", "1"]);
    assert_eq!((&document["model"], &document["input_shape"]), (&json!("lenet5:28"), &json!([1, 28, 28, 1])));
    assert_eq!((&document["link"], &document["machine"]["threads"]), (&json!("1ms:1000mbit"), &json!(1)));
    let yardstick = &document["yardstick"];
    match cfg!(feature = "yardstick") {
        true => assert!(yardstick["online_ratio"].as_f64().unwrap() > 0.0),
        false => assert!(yardstick["unavailable"].as_str().unwrap().contains("--features yardstick")),
    }
}

#[test]
fn operations_are_measured_alone() {
    let ops = "relu,clip,lift,matmul:8x9x10,conv:4x5x6,maxpool:4x5x6";
    let how = ["--sizes", "100,2^10", "--runs", "1", "--rounds", "balanced"];
    let measure = |place: &str| json(&[&["bench", "ops", ops, "--wan", place], &how[..]].concat());
    let (real, simulated) = (measure("loopback"), measure("10ms:100mbit"));
    let names: Vec<&Value> = real.as_array().unwrap().iter().map(|d| &d["model"]).collect();
    assert_eq!(
        names,
        [
            "relu:100",
            "relu:1024",
            "clip:100",
            "clip:1024",
            "lift:100",
            "lift:1024",
            "matmul:8x9x10",
            "conv:4x5x6",
            "maxpool:4x5x6"
        ]
    );
    for (real, simulated) in real.as_array().unwrap().iter().zip(simulated.as_array().unwrap()) {
        assert_eq!(real["cost"]["layers"].as_array().unwrap().len(), 1);
        for phase in ["offline", "online"] {
            for key in ["rounds", "bytes"] {
                assert_eq!(real["cost"][phase][key], simulated["cost"][phase][key], "{}", real["model"]);
            }
        }
        // A unit of the scale of 256.
        assert!(real["max_abs_error"].as_f64().unwrap() <= 1.0 / 256.0, "{}", real["model"]);
    }
}

#[test]
fn getting_slower_fails() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let old = json(&["bench", "ops", "relu:10,lift:10", "--runs", "1", "--in-process", "--ring", "z64"]);
    let write = |name: &str, document: &Value| {
        std::fs::write(Path::new(&file(name)), document.to_string()).unwrap();
        file(name)
    };
    let slower = |factor: f64| {
        let mut new = old[0].clone();
        let median = new["runs"]["online"]["median"].as_f64().unwrap();
        new["runs"]["online"]["median"] = (median * factor).into();
        new
    };
    let before = write("old.json", &old);
    let (same, worse) = (write("same.json", &slower(1.05)), write("worse.json", &slower(1.5)));
    let text = ok(&["bench", "compare", &before, &same, "--fail-over", "10%"]);
    assert!(text.contains("relu:10") && text.contains("1.050"), "{text}");
    assert!(text.contains(&format!("only in {before}: lift:10")), "{text}");
    let text = fails(&["bench", "compare", &before, &worse], 1);
    assert!(
        text.contains("slower by more than 10 %: relu:10 (z64, 1ms:1000mbit) online, 1.50 times"),
        "{text}"
    );
    ok(&["bench", "compare", &before, &worse, "--fail-over", "60"]);
    let document = sharelens(&["bench", "compare", &before, &worse, "--json"]);
    let document: Value = serde_json::from_slice(&document.stdout).unwrap();
    assert_eq!(document["worse"].as_array().unwrap().len(), 1);
    let other = write("other.json", &json!({ "model": "x" }));
    assert!(fails(&["bench", "compare", &before, &other], 1).contains("other.json"));
    assert!(fails(&["bench", "compare", &before, &file("none.json")], 1).contains("none.json"));
}

#[test]
fn mistakes_are_named() {
    assert!(fails(&["bench", "resnet19"], 1).contains("resnet18"));
    assert!(fails(&["bench", "resnet18:7"], 1).contains("not 7"));
    assert!(fails(&["bench", "brain_mri_cnn", "--side", "64"], 1).contains("--side"));
    assert!(fails(&["bench", "brain_mri_cnn", "--mode", "two"], 2).contains("invalid value"));
    assert!(fails(&["bench", "brain_mri_cnn", "--in-process", "--wan", "loopback"], 1).contains("--wan lan"));
    assert!(fails(&["bench", "/nowhere/model.slm"], 1).contains("/nowhere/model.slm"));
    assert!(fails(&["bench", "brain_mri_cnn", "--wan", "50ms"], 2).contains("50ms:400mbit"));
    assert!(fails(&["bench", "brain_mri_cnn", "--runs", "0"], 2).contains("--runs"));
    assert!(fails(&["bench", "ops", "top_k"], 2).contains("not in this version"));
    assert!(fails(&["bench", "ops", "relu", "--sizes", "0"], 2).contains("2^27"));
    assert!(fails(&["bench", "compare", "a", "b", "--fail-over", "x"], 2).contains("10%"));
    assert!(fails(&["bench"], 2).contains("MODEL"));
}
