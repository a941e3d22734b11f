//! The `sharelens` command as its users meet it.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

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
    let roles = ["server0", "server1", "helper"];
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
    for role in roles {
        std::fs::copy(&cluster, path(&format!("{role}/cluster.toml"))).unwrap();
    }
    let mut nodes = roles.map(|role| {
        Command::new(env!("CARGO_BIN_EXE_sharelens"))
            .args(["--json", "--log", "info", "node", "run", "--config", &path(&format!("{role}/node.toml"))])
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
    for node in &nodes {
        assert!(Command::new("kill").arg(node.id().to_string()).status().unwrap().success());
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    for mut node in nodes {
        let status = loop {
            if let Some(status) = node.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(20));
        };
        let log = std::io::read_to_string(node.stderr.take().unwrap()).unwrap();
        assert!(status.success() && log.contains("connected") && !log.contains("refused"), "{status} {log}");
    }
}

#[test]
fn mistakes_are_one_sentence() {
    assert!(fails(&["node", "run", "--config", "/nowhere/node.toml"]).contains("/nowhere/node.toml"));
    assert!(fails(&["demo", "detect"]).contains("not in this version"));
    assert!(fails(&["demo", "classify", "--mode", "two"]).contains("--mode three"));
    assert!(fails(&["cluster", "verify", "/nowhere/cluster.toml"]).contains("/nowhere/cluster.toml"));
    assert!(!sharelens(&["node", "init", "--role", "king"]).status.success());
}

fn demo(args: &[&str]) -> serde_json::Value {
    let out = tempfile::tempdir().unwrap();
    let text = ok(&[&["demo", "classify", "--json", "--out", out.path().to_str().unwrap()], args].concat());
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let written = std::fs::read_to_string(out.path().join("result.json")).unwrap();
    assert_eq!(json, serde_json::from_str::<serde_json::Value>(&written).unwrap());
    json
}

#[test]
fn the_demo_classifies() {
    for (ring, largest) in [("rns", 0.1), ("z64", 0.1)] {
        let json = demo(&["--ring", ring, "--wan", "50ms,400"]);
        assert_eq!((json["ring"].as_str(), json["mode"].as_str()), (Some(ring), Some("three")));
        assert_eq!(json["result"]["class"], json["float"]["class"]);
        assert_eq!(json["result"]["label"], json["plain"]["label"]);
        assert!(json["max_abs_error"].as_f64().unwrap() < largest, "{}", json["max_abs_error"]);
        let online = &json["cost"]["online"];
        let layers = json["cost"]["layers"].as_array().unwrap();
        let sum = |key: &str| layers.iter().map(|l| l[key].as_u64().unwrap()).sum::<u64>();
        // What the ledger counts is what went over the wire, to the byte.
        assert_eq!(Some(sum("bytes")), online["bytes"]["server0"].as_u64());
        assert_eq!(online["bytes"]["server0"], online["bytes"]["server1"]);
        assert_eq!(Some(sum("rounds")), online["rounds"].as_u64());
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
