//! Attacks on nodes of one's own, on this machine, for a bounded time: what a stranger or a greedy client can do who has
//! nothing but the cluster file. `tests/siege.sh` starts nodes, runs each attack, and says what it left behind.
//!
//!     cargo run --release -p sharelens --example siege -- ATTACK --cluster cluster.toml --key client.key --seconds 60
//!
//! | attack | who | what |
//! |---|---|---|
//! | strangers | made-up keys | connects again and again and keeps what it gets |
//! | half-open | anybody | handshakes whose first packet is real and that never go on |
//! | lonely | an enrolled client | requests at server 1 alone, kept |
//! | lonely-0 | an enrolled client | requests at server 0 alone, kept |
//! | ids | an enrolled client | requests for an unknown model, each with a fresh id |
//! | uploads | an enrolled owner | announces models and sends next to nothing |

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sharelens::config::{LinkConfig, PROTOCOL_VERSION};
use sharelens::control::{Go, Hello, ModelId, Purpose, SessionId, Start, Upload};
use sharelens::transport::{Connection, ControlStream, Endpoint};
use sharelens::{Cluster, Identity, Result, Role};
use tokio::net::UdpSocket;

const WAIT: Duration = Duration::from_secs(5);
/// Most connections or streams that are kept.
const KEPT: usize = 300;

async fn connect(cluster: &Cluster, role: Role, identity: &Arc<Identity>) -> Result<(Endpoint, Connection)> {
    let endpoint = Endpoint::dialing(identity.clone(), &LinkConfig::default())?;
    let card = cluster.card(role);
    let connection = endpoint.connect("the node", &card.public, card.pin, WAIT).await?;
    Ok((endpoint, connection))
}

async fn ask(cluster: &Cluster, connection: &Connection, purpose: Purpose) -> Result<ControlStream> {
    let mut stream = connection.open(WAIT).await?;
    let session = SessionId::random()?;
    stream.send(&Hello { version: PROTOCOL_VERSION, cluster: cluster.hash(), session, purpose }).await?;
    Ok(stream)
}

fn model(name: &str) -> Purpose {
    Purpose::Infer { model: name.into(), version: None, start: Start::Prepared, wait_s: 60 }
}

/// Handshakes whose first packet is real and whose answer gets lost: every one from an address of its own.
async fn half_open(cluster: &Cluster, identity: &Arc<Identity>, until: Instant) -> Result<u64> {
    let card = cluster.card(Role::Server0);
    let (mut tried, mut kept) = (0, VecDeque::new());
    while Instant::now() < until {
        let front = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let back = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        back.connect(&card.public).await.expect("the node's address");
        let address = front.local_addr().expect("bound").to_string();
        let (endpoint, pin) = (Endpoint::dialing(identity.clone(), &LinkConfig::default())?, card.pin);
        let half = tokio::spawn(async move {
            let forward = async {
                let mut packet = [0; 2048];
                while let Ok(n) = front.recv(&mut packet).await {
                    let _ = back.send(&packet[..n]).await;
                }
            };
            tokio::select! {
                () = forward => {}
                _ = endpoint.connect("the node", &address, pin, Duration::from_secs(30)) => {}
            }
        });
        kept.push_back(half);
        if kept.len() > KEPT {
            kept.pop_front().expect("many").abort();
        }
        tried += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    kept.iter().for_each(tokio::task::JoinHandle::abort);
    Ok(tried)
}

async fn attack(name: &str, cluster: &Cluster, identity: &Arc<Identity>, until: Instant) -> Result<[u64; 2]> {
    let (mut tried, mut got) = (0, 0);
    let (mut connections, mut streams) = (Vec::new(), Vec::new());
    while Instant::now() < until {
        tried += 1;
        match name {
            "strangers" => {
                let stranger = Arc::new(Identity::generate()?);
                if let Ok(kept) = connect(cluster, Role::Server0, &stranger).await {
                    got += u64::from(kept.1.open(Duration::from_millis(5)).await.is_ok());
                    connections.push(kept);
                }
            }
            "lonely" | "lonely-0" => {
                let role = if name == "lonely" { Role::Server1 } else { Role::Server0 };
                if let Ok(kept) = connect(cluster, role, identity).await {
                    if let Ok(stream) = ask(cluster, &kept.1, model("net")).await {
                        got += 1;
                        streams.push(stream);
                    }
                    connections.push(kept);
                }
            }
            "ids" => {
                if connections.is_empty() {
                    connections.push(connect(cluster, Role::Server0, identity).await?);
                }
                let mut stream = ask(cluster, &connections[0].1, model("no-such-model")).await?;
                got += u64::from(stream.recv::<Go>().await.is_ok());
            }
            _ => {
                if let Ok(kept) = connect(cluster, Role::Server0, identity).await {
                    let model = ModelId { name: format!("slow-{tried}"), version: 1 };
                    let upload = Upload { model, manifest_bytes: 1 << 20, share_bytes: 32 };
                    if let Ok(mut stream) = ask(cluster, &kept.1, Purpose::Share(upload)).await {
                        if stream.recv::<Go>().await.is_ok() {
                            got += 1;
                            let _ = stream.send_bulk(vec![0; 1000].into()).await;
                        }
                        streams.push(stream);
                    }
                    connections.push(kept);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        if connections.len() > KEPT {
            connections.remove(0);
        }
        if streams.len() > KEPT {
            streams.remove(0);
        }
    }
    Ok([tried, got])
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let value = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let name = args.get(1).cloned().unwrap_or_default();
    let known = ["strangers", "half-open", "lonely", "lonely-0", "ids", "uploads"];
    assert!(known.contains(&name.as_str()), "the attack is one of {known:?}");
    let seconds: u64 = value("--seconds").and_then(|s| s.parse().ok()).unwrap_or(60);
    let cluster = Cluster::load(&PathBuf::from(value("--cluster").unwrap_or_else(|| "cluster.toml".into())))?;
    for role in Role::ALL {
        let public = &cluster.card(role).public;
        assert!(public.starts_with("127.") || public.starts_with("localhost"), "only nodes on this machine");
    }
    let identity = Arc::new(match value("--key") {
        Some(file) => Identity::load(&PathBuf::from(file))?,
        None => Identity::generate()?,
    });
    let until = Instant::now() + Duration::from_secs(seconds);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if name == "half-open" {
        let tried = runtime.block_on(half_open(&cluster, &identity, until))?;
        println!("{tried} handshakes left half open in {seconds} s");
        return Ok(());
    }
    let [tried, got] = runtime.block_on(attack(&name, &cluster, &identity, until))?;
    println!("{tried} tries in {seconds} s, {got} got further than they should or wait");
    Ok(())
}
