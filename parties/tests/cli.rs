//! The `sharelens` command as its users meet it.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn sharelens(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sharelens")).args(args).output().unwrap()
}

fn ok(args: &[&str]) -> String {
    let out = sharelens(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The one sentence on standard error.
fn fails(args: &[&str]) -> String {
    let out = sharelens(args);
    assert!(!out.status.success(), "{args:?}");
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(text.starts_with("error: ") && text.trim_end().lines().count() == 1, "{text}");
    text
}

fn init(dir: &Path, role: &str, port: u16) -> String {
    let home = dir.join(role);
    let address = format!("127.0.0.1:{port}");
    ok(&[
        "node",
        "init",
        "--role",
        role,
        "--listen",
        &address,
        "--public",
        &address,
        "--dir",
        home.to_str().unwrap(),
    ])
}

#[test]
fn operators_set_up_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let roles = ROLES;
    let sockets = roles.map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    for (role, socket) in roles.iter().zip(&sockets) {
        assert!(init(dir.path(), role, socket.local_addr().unwrap().port()).contains("node.toml"));
    }
    let again = [
        "node",
        "init",
        "--role",
        "helper",
        "--listen",
        "127.0.0.1:1",
        "--public",
        "h:1",
        "--dir",
        &path("helper"),
    ];
    assert!(fails(&again).contains("not replaced"));

    let cards = roles.map(|r| path(&format!("{r}/{r}.card")));
    let cluster = path("cluster.toml");
    let created =
        ok(&["cluster", "create", "--cards", &cards[0], &cards[1], &cards[2], "-o", &cluster, "--json"]);
    let created: serde_json::Value = serde_json::from_str(&created).unwrap();
    let verified = ok(&["cluster", "verify", &cluster, "--config", &path("helper/node.toml")]);
    assert!(verified.contains(created["code"].as_str().unwrap()) && verified.contains("helper (this node)"));
    assert!(fails(&["cluster", "create", "--cards", &cards[0], &cards[0], &cards[2]]).contains("server 0"));

    // A node without cluster.toml says so; with it, three of them find each other and stop on SIGTERM.
    let config = path("server0/node.toml");
    assert!(fails(&["node", "run", "--config", &config]).contains("cluster.toml"));
    drop(sockets);
    let nodes = run_nodes(dir.path(), &cluster);
    assert!(stop_nodes(nodes).iter().all(|log| !log.contains("refused")));
}

const ROLES: [&str; 3] = ["server0", "server1", "helper"];

/// Three nodes that are ready.
fn run_nodes(dir: &Path, cluster: &str) -> [Child; 3] {
    let mut nodes = ROLES.map(|role| {
        let home = dir.join(role);
        std::fs::copy(cluster, home.join("cluster.toml")).unwrap();
        Command::new(env!("CARGO_BIN_EXE_sharelens"))
            .args(["--json", "--log", "info", "node", "run", "--config"])
            .arg(home.join("node.toml"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for node in &mut nodes {
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(node.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        assert!(line.contains("ready"), "{line:?}");
    }
    nodes
}

/// Stops them; what they logged.
fn stop_nodes(nodes: [Child; 3]) -> [String; 3] {
    for node in &nodes {
        assert!(Command::new("kill").arg(node.id().to_string()).status().unwrap().success());
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    nodes.map(|mut node| {
        let status = loop {
            if let Some(status) = node.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(20));
        };
        let log = std::io::read_to_string(node.stderr.take().unwrap()).unwrap();
        assert!(status.success() && log.contains("connected"), "{status} {log}");
        log
    })
}

#[test]
fn mistakes_are_one_sentence() {
    assert!(fails(&["node", "run", "--config", "/nowhere/node.toml"]).contains("/nowhere/node.toml"));
    for args in [&["demo", "--mode", "two"][..], &["demo", "classify", "--mode", "two"]] {
        assert!(!sharelens(args).status.success(), "{args:?}");
    }
    assert!(fails(&["cluster", "verify", "/nowhere/cluster.toml"]).contains("/nowhere/cluster.toml"));
    assert!(!sharelens(&["node", "init", "--role", "king"]).status.success());
}

fn demo(out: &Path, args: &[&str]) -> Value {
    let text = ok(&[&["demo", "--json", "--out", out.to_str().unwrap()], args].concat());
    let json: Value = serde_json::from_str(&text).unwrap();
    let written = std::fs::read_to_string(out.join("result.json")).unwrap();
    assert_eq!(json, serde_json::from_str::<Value>(&written).unwrap());
    json
}

/// What the ledger counts is what went over the wire, to the byte. `shared` rounds are those of layers beside others.
fn costs_add_up(cost: &Value, shared: u64) {
    let layers = cost["layers"].as_array().unwrap();
    let sum = |key: &str| layers.iter().map(|l| l[key].as_u64().unwrap()).sum::<u64>();
    let online = &cost["online"];
    assert_eq!(Some(sum("bytes")), online["bytes"]["server0"].as_u64());
    assert_eq!(online["bytes"]["server0"], online["bytes"]["server1"]);
    // The look at ranges runs beside the last layers.
    let looks = layers.iter().filter(|l| l["op"] == "range check").map(|l| l["rounds"].as_u64().unwrap());
    assert_eq!(Some(sum("rounds") - shared - looks.sum::<u64>()), online["rounds"].as_u64());
}

#[test]
fn the_demo_classifies() {
    let overlap = ["--overlap"];
    for (ring, largest, more) in [("rns", 0.1, &[][..]), ("z64", 0.1, &overlap)] {
        let out = tempfile::tempdir().unwrap();
        let json = demo(out.path(), &[&["classify", "--ring", ring, "--wan", "50ms,400"], more].concat());
        assert_eq!(json["cost"]["overlapped"], !more.is_empty());
        assert!(json["cost"]["prepared_seconds"].as_f64() > Some(0.0));
        assert_eq!((json["ring"].as_str(), json["mode"].as_str()), (Some(ring), Some("three")));
        assert_eq!(json["result"]["class"], json["float"]["class"]);
        assert_eq!(json["result"]["label"], json["plain"]["label"]);
        assert!(json["max_abs_error"].as_f64().unwrap() < largest, "{}", json["max_abs_error"]);
        let online = &json["cost"]["online"];
        costs_add_up(&json["cost"], 0);
        // And what was planned is what happened.
        assert_eq!(
            (&json["wan"]["rounds"], &json["wan"]["bytes"]),
            (&online["rounds"], &online["bytes"]["server0"])
        );
        assert_eq!(json["wan"]["dealt_bytes"], json["cost"]["offline"]["bytes"]["helper"]);
    }
}

#[test]
fn the_demo_leaves_no_process_behind() {
    let out = tempfile::tempdir().unwrap();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_sharelens"))
        .args(["demo", "classify", "--out", out.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(demo.stdout.take().unwrap()), &mut line)
        .unwrap();
    let address = line.split_whitespace().find(|w| w.starts_with("127.0.0.1:")).unwrap().to_string();
    assert!(std::net::UdpSocket::bind(&address).is_err(), "server 0 listens");
    // The hardest end: no signal handler runs, the nodes notice by themselves.
    demo.kill().unwrap();
    demo.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::net::UdpSocket::bind(&address).is_err() {
        assert!(Instant::now() < deadline, "server 0 is still there");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/data");

/// The small detector, prepared with the pictures that come along.
fn detector(dir: &Path, args: &[&str]) -> String {
    let file = dir.join("tiny.slm").to_str().unwrap().to_string();
    let (model, pictures) = (format!("{DATA}/bccd_frcnn_tiny"), format!("{DATA}/bccd"));
    ok(&[&["model", "prepare", &model, "--calibrate", &pictures, "-o", &file], args].concat());
    file
}

fn pictures() -> [String; 2] {
    ["00007", "00065"].map(|n| format!("{DATA}/bccd/BloodImage_{n}.jpg"))
}

/// Boxes, label and score of each detection.
fn found(result: &Value) -> Vec<(Vec<f64>, u64, f64)> {
    let boxes = result["boxes"].as_array().unwrap();
    let [labels, scores, classes] = ["labels", "scores", "classes"].map(|k| result[k].as_array().unwrap());
    assert!([labels, scores, classes].iter().all(|list| list.len() == boxes.len()));
    assert!(classes.iter().all(|c| ["RBC", "WBC", "Platelets"].contains(&c.as_str().unwrap())));
    let one = |i: usize| {
        let corners: Vec<f64> = boxes[i].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
        assert!(corners.len() == 4 && corners[0] < corners[2] && corners[1] < corners[3], "{corners:?}");
        (corners, labels[i].as_u64().unwrap(), scores[i].as_f64().unwrap())
    };
    (0..boxes.len()).map(one).collect()
}

/// As many boxes, and those scored a half or more within a pixel and 0.02 of each other.
fn same_boxes(a: &Value, b: &Value) {
    let (a, b) = (found(a), found(b));
    assert_eq!(a.len(), b.len());
    assert!(a.len() > 10 && a.iter().filter(|d| d.2 >= 0.5).count() > 5, "{a:?}");
    for (corners, label, score) in a.iter().filter(|d| d.2 >= 0.52) {
        let near = |d: &&(Vec<f64>, u64, f64)| {
            d.1 == *label
                && (d.2 - score).abs() < 0.02
                && d.0.iter().zip(corners).all(|(x, y)| (x - y).abs() < 1.0)
        };
        assert_eq!(b.iter().filter(near).count(), 1, "{corners:?} {label} {score}");
    }
}

#[test]
fn the_demo_detects() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let json = demo(&out, &["--model", &detector(dir.path(), &[])]);
    same_boxes(&json["result"], &json["plain"]);
    same_boxes(&json["result"], &json["float"]);
    assert_eq!(json["result"]["settled"], true);
    assert_eq!(json["differs"]["alone"], 0);
    assert_eq!(json["differs"]["pixels"], json["max_abs_error"]);
    assert!(json["max_abs_error"].as_f64().unwrap() < 0.1, "{}", json["differs"]);
    // One of the heads, and the boxes of all classes beside the scores; one head of the proposals.
    costs_add_up(&json["cost"], 19);
    for (name, size) in [("boxes.png", (640, 480)), ("server0-view.png", (160, 120))] {
        assert_eq!(image::image_dimensions(out.join(name)).unwrap(), size);
    }
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("boxes.png") && page.contains("server0-view.png"));
    // A row for each detection and layer, and two heads.
    let layers = json["cost"]["layers"].as_array().unwrap().len();
    assert_eq!(page.matches("<tr>").count(), found(&json["result"]).len() + layers + 2);
}

#[test]
fn a_detector_is_prepared_shared_run_and_judged() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let model = detector(dir.path(), &[]);
    let (pictures, annotations) = (pictures(), format!("{DATA}/bccd"));
    let judged = ["--annotations", &annotations, "--json", &pictures[0], &pictures[1]];
    let json = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let plain = json(&ok(&[&["plain", &model], &judged[..]].concat()));
    let precise = |v: &Value| {
        let [classes @ .., mean] = ["RBC", "WBC", "Platelets", "mAP"].map(|k| v[k].as_f64().unwrap());
        assert!((classes.iter().sum::<f64>() / 3.0 - mean).abs() < 1e-9 && mean > 0.8, "{v}");
        mean
    };
    assert!((precise(&plain["ap50"]) - precise(&plain["float_ap50"])).abs() < 0.005);

    let sockets = ROLES.map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    for (role, socket) in ROLES.iter().zip(&sockets) {
        init(dir.path(), role, socket.local_addr().unwrap().port());
    }
    drop(sockets);
    let cards = ROLES.map(|r| path(&format!("{r}/{r}.card")));
    let (cluster, key) = (path("cluster.toml"), path("keys"));
    ok(&["cluster", "create", "--cards", &cards[0], &cards[1], &cards[2], "-o", &cluster]);
    let nodes = run_nodes(dir.path(), &cluster);
    let with = ["--cluster", &cluster, "--dir", &key];
    // Nobody is served until the operators have enrolled the key, which running nodes notice by themselves.
    let share = [&["model", "share", &model, "--name", "cells"], &with[..]].concat();
    assert!(fails(&share).contains("node allow"));
    let init = ["client", "init", "--name", "clinic", "--dir", &key, "--card-dir", &path("")];
    assert!(ok(&init).contains("node allow"));
    let configs = ROLES.map(|r| path(&format!("{r}/node.toml")));
    let enrol = |right: &str| {
        for config in &configs {
            ok(&["node", "allow", &path("clinic.card"), "--as", right, "--config", config]);
        }
    };
    enrol("client");
    assert!(fails(&share).contains("share a model"), "clients may not");
    enrol("owner");
    ok(&share);
    assert!(ok(&["node", "clients", "--config", &configs[0]]).contains("client, owner"));
    let (out, coco) = (path("out"), path("coco.json"));
    let files = ["--out", &out, "--coco", &coco];
    let secure = json(&ok(&[&["infer", "--model", "cells"], &with[..], &files, &judged].concat()));
    let prepared_first = ["infer", "--model", "cells", "--prepare-first", "--json", &pictures[0]];
    let first = json(&ok(&[&prepared_first, &with[..]].concat()));
    stop_nodes(nodes);

    same_boxes(&first["result"], &secure["images"][0]["result"]);
    assert_eq!(first["cost"]["overlapped"], false);
    assert_eq!(secure["images"][0]["cost"]["overlapped"], true);
    for phase in ["offline", "online"] {
        for key in ["rounds", "bytes"] {
            assert_eq!(first["cost"][phase][key], secure["images"][0]["cost"][phase][key]);
        }
    }
    assert!((precise(&secure["ap50"]) - precise(&plain["ap50"])).abs() < 0.005);
    assert!(secure.get("float_ap50").is_none());
    let written = json(&std::fs::read_to_string(&coco).unwrap());
    let mut entries = written.as_array().unwrap().iter();
    for (i, name) in ["BloodImage_00007", "BloodImage_00065"].iter().enumerate() {
        let result = &secure["images"][i]["result"];
        same_boxes(result, &plain["images"][i]["result"]);
        for (corners, label, score) in found(result) {
            let entry = entries.next().unwrap();
            assert_eq!(entry["file_name"], format!("{name}.jpg"));
            let number = |k: &str| entry[k].as_f64().unwrap();
            assert_eq!((number("image_id"), number("category_id")), (i as f64 + 1.0, label as f64));
            assert_eq!(number("score"), score);
            // Four pixels of the photograph are one of the network's input.
            let [x1, y1, x2, y2] = [0, 1, 2, 3].map(|a| 4.0 * corners[a]);
            for (value, want) in entry["bbox"].as_array().unwrap().iter().zip([x1, y1, x2 - x1, y2 - y1]) {
                assert!((value.as_f64().unwrap() - want).abs() < 1e-9, "{entry} {corners:?}");
            }
        }
        let document = json(&std::fs::read_to_string(format!("{out}/{name}.json")).unwrap());
        assert_eq!(document, secure["images"][i]);
        assert_eq!(image::image_dimensions(format!("{out}/{name}-boxes.png")).unwrap(), (640, 480));
    }
    assert!(entries.next().is_none());
}

#[test]
fn detectors_explain_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let model = detector(dir.path(), &[]);
    let [picture, _] = pictures();
    let text = ok(&["model", "check", &model, "--images", &format!("{DATA}/bccd")]);
    assert!(text.contains("without a partner") && text.contains("logits and deltas"), "{text}");
    assert!(ok(&["model", "inspect", &format!("{DATA}/bccd_frcnn_tiny")]).contains("32 proposals"));
    assert!(fails(&["plan", &model, "--ring", "z64"]).contains("--ring rns"));
    let missing =
        fails(&["plain", &model, &picture, "--annotations", &format!("{DATA}/brain_mri"), "--quiet"]);
    assert!(missing.contains("BloodImage_00007.xml"), "{missing}");

    // One step is too few, and as many as boxes are enough.
    let hasty = detector(dir.path(), &["--nms-steps", "1"]);
    let text = ok(&["plain", &hasty, &picture]);
    assert!(text.contains("larger --nms-steps"), "{text}");
    let json: Value = serde_json::from_str(&ok(&["plain", &hasty, &picture, "--json"])).unwrap();
    assert_eq!(json["result"]["settled"], false);
    let patient = detector(dir.path(), &["--nms-steps", "65535"]);
    let json: Value = serde_json::from_str(&ok(&["plain", &patient, &picture, "--json"])).unwrap();
    assert_eq!(json["result"]["settled"], true);

    let classifier = dir.path().join("mri.slm").to_str().unwrap().to_string();
    let (onnx, scans) = (format!("{DATA}/brain_mri_cnn/model.onnx"), format!("{DATA}/brain_mri"));
    let prepare = ["model", "prepare", &onnx, "--calibrate", &scans, "-o", &classifier];
    assert!(fails(&[&prepare[..], &["--nms-steps", "3"]].concat()).contains("for detectors"));
    ok(&prepare);
    let coco = dir.path().join("coco.json").to_str().unwrap().to_string();
    let scan = format!("{scans}/pituitary-p_230.jpg");
    assert!(fails(&["plain", &classifier, &scan, "--coco", &coco]).contains("for detectors"));
}

#[test]
fn one_bad_picture_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let model = path("cnn.slm");
    let scans = format!("{DATA}/brain_mri");
    let onnx = format!("{DATA}/brain_mri_cnn/model.onnx");
    ok(&["model", "prepare", &onnx, "--calibrate", &scans, "-o", &model, "--quiet"]);
    let good = format!("{scans}/no_tumor-image_39.jpg");
    let (cut, text, last) = (path("cut.jpg"), path("text.png"), path("last.jpg"));
    std::fs::write(&cut, &std::fs::read(&good).unwrap()[..300]).unwrap();
    std::fs::write(&text, "no picture").unwrap();
    std::fs::copy(&good, &last).unwrap();

    let results = path("results");
    let out = sharelens(&["plain", &model, &good, &cut, &text, &last, "--out", &results, "--json"]);
    assert_eq!(out.status.code(), Some(1));
    let error = String::from_utf8(out.stderr).unwrap();
    let lines: Vec<&str> = error.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 3, "{error}");
    assert!(lines[0].contains("cut.jpg") && lines[1].contains("text.png"), "{error}");
    assert!(lines[2].contains("2 of 4 images have no result"), "{error}");
    let json: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert!(json[1]["error"].is_string() && json[2]["error"].is_string(), "{json}");
    assert_eq!(json[0]["result"], json[3]["result"]);
    assert!(dir.path().join("results/last.json").exists() && !dir.path().join("results/cut.json").exists());

    // Alone it is an error like any other.
    assert!(fails(&["plain", &model, &cut, "--quiet"]).contains("cut.jpg"));
    std::fs::create_dir(dir.path().join("other")).unwrap();
    let same = path("other/last.jpg");
    std::fs::copy(&good, &same).unwrap();
    let e = fails(&["plain", &model, &last, &same, "--out", &results]);
    assert!(e.contains("results of the same name"), "{e}");
    // Where results cannot be written is said before anything is computed.
    assert!(fails(&["plain", &model, &last, "--out", &last]).contains("last.jpg"));
    assert!(fails(&["plain", &model, &last, "--coco", &path("nowhere/boxes.json")]).contains("nowhere"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_or_a_reader_that_has_gone_is_an_error_and_no_panic() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let run = |to: Stdio| {
        let inspect = ["model", "inspect", &format!("{DATA}/brain_mri_cnn/model.onnx")].map(String::from);
        let out = Command::new(env!("CARGO_BIN_EXE_sharelens"))
            .args(inspect)
            .stdout(to)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, error) = run(full.into());
    assert!(code == Some(1) && error.starts_with("error: standard output"), "{code:?} {error}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (code, error) = run(writer.into());
    assert!(code == Some(1) && error.starts_with("error: standard output"), "{code:?} {error}");
}
