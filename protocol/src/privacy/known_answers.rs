//! Known answers: what each protocol sends and what comes of it, byte for byte, from fixed seeds. Two releases, or two
//! machines, that talk to each other must send these bytes; whoever writes a protocol anew can compare.
//!
//! The *wrong* ones beside them: every message and correction that a server receives is altered in turn, and its share
//! of the result, or what it sends after that, must be another. A message that nothing hangs on, or a result from
//! somewhere else, would show.

use std::cell::RefCell;

use sha2::{Digest, Sha256};

use super::Look;
use super::cases::{Case, Record, Scene, all};
use crate::prg::Seed;
use crate::ring::{Moduli, Rns, Z64};
use crate::role::Server;

/// Start of the SHA-256 of what both servers send, receive and hold at the end, for 40 times the number 5, in residues
/// and in Z_2^64: server 0's messages with their steps, those it received, its share of the result; then server 1's,
/// the helper's correction first.
const ANSWERS: [(&str, &str, &str); 16] = [
    ("share of an input", "3100d358bfee", "8789e1c6de35"),
    ("share of a weight", "e89bffb47f4c", "035badd7acf0"),
    ("share of a bias", "b2ed6c891c20", "c62e92e971eb"),
    ("load of a weight", "99347174bbb8", "2fc03ecff980"),
    ("linear layer", "78f86b635b32", "4030c127d8d0"),
    ("multiplication", "c2f68f028bb1", "3f786cbc3e85"),
    ("matrix product", "157aeb2b2d25", "bc0c2720add2"),
    ("lift or rescale", "7b74c2f60014", "47e996ce176f"),
    ("sign", "24dd62ea761c", "111b028bce21"),
    ("relu", "d31aedf86d6a", "e952f541f56e"),
    ("slopes", "1b4ef2736e78", "38c4a2c03869"),
    ("relu and sign", "73bbcceec47f", "a9ef9a9a1dfe"),
    ("opened signs", "403cd28dbf02", "715704d1eee4"),
    ("opened signs, fewest rounds", "7a27d7aa37a9", "715704d1eee4"),
    ("shuffle", "f684482befb9", "3db38928ee95"),
    ("fresh sharing of a result", "fcab36a5ecc1", "d5234c64b457"),
];

/// Cases without a result of their own: what they send is the sharing, or shows in the linear layer.
const WITHOUT_RESULT: [&str; 4] =
    ["share of an input", "share of a weight", "share of a bias", "load of a weight"];

/// One server's record, with message `alter` altered.
fn record<R: Look>(ring: &R, case: &Case<R>, who: Server, seed: u8, alter: Option<usize>) -> Record {
    let prgs = [seed, seed + 1].map(|s| Seed::from_bytes([s; 32]).prg(b"known answers"));
    let record = RefCell::new(Record { alter, ..Record::default() });
    (case.view)(&Scene { ring, who, prgs: &prgs, secret: 5, n: 40, record: Some(&record) });
    record.into_inner()
}

fn answer<R: Look>(ring: &R, case: &Case<R>, seed: u8) -> String {
    let mut hash = Sha256::new();
    for who in Server::BOTH {
        let record = record(ring, case, who, seed, None);
        hash.update(&record.transcript);
        hash.update(&record.result);
    }
    hash.finalize()[..6].iter().map(|b| format!("{b:02x}")).collect()
}

fn rns() -> Rns {
    Rns::new(Moduli::usual(3, 2).unwrap()).unwrap()
}

#[test]
fn what_is_sent_is_known() {
    let (rns, z64) = (rns(), Z64::new());
    let found: Vec<(&str, String, String)> = all::<Rns>()
        .iter()
        .zip(all::<Z64>())
        .map(|(a, b)| (a.name, answer(&rns, a, 1), answer(&z64, &b, 1)))
        .collect();
    let wanted: Vec<(&str, String, String)> =
        ANSWERS.iter().map(|&(name, a, b)| (name, a.into(), b.into())).collect();
    assert_eq!(found, wanted, "{found:#?}");
}

#[test]
fn other_seeds_give_other_answers() {
    // Not a table of constants: every answer hangs on the seeds.
    for case in all::<Rns>() {
        assert_ne!(answer(&rns(), &case, 1), answer(&rns(), &case, 3), "{}", case.name);
    }
}

#[test]
fn other_messages_give_other_results() {
    fn check<R: Look>(ring: &R) -> usize {
        let mut tried = 0;
        for case in all::<R>().iter().filter(|case| !WITHOUT_RESULT.contains(&case.name)) {
            for who in Server::BOTH {
                let right = record(ring, case, who, 1, None);
                assert!(!right.result.is_empty(), "{} has a result", case.name);
                for alter in 0..right.received {
                    let wrong = record(ring, case, who, 1, Some(alter));
                    let [wrong, right] = [&wrong, &right].map(|r| (&r.result, &r.sent));
                    assert_ne!(wrong, right, "{}, {who:?}, message {alter}", case.name);
                    tried += 1;
                }
            }
        }
        tried
    }
    // How many there are, in residues and in Z_2^64.
    assert_eq!([check(&rns()), check(&Z64::new())], [67, 73]);
}
