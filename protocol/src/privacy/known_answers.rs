//! Known answers: what each protocol sends, dealt and online, from fixed seeds; in Z_2^64 of each word the lowest and the
//! highest four bits only. Two releases, or two machines, that talk to
//! each other must send these bytes; whoever writes a protocol anew can compare.

use sha2::{Digest, Sha256};

use super::Look;
use super::cases::{Case, Scene, all};
use crate::prg::Seed;
use crate::ring::{Moduli, Rns, Z64};
use crate::role::Server;

/// Start of the SHA-256 of what both servers see of 40 times the number 5, in residues and in Z_2^64.
const ANSWERS: [(&str, &str, &str); 16] = [
    ("share of an input", "3f8061127ea8", "0d2af702c31f"),
    ("share of a weight", "b77fd9e9b7f6", "5b5d4e2549b4"),
    ("share of a bias", "16c8bcc156a8", "af24b89e409b"),
    ("load of a weight", "35e256c9e977", "00070b49e26e"),
    ("linear layer", "d26e01ed2000", "f04dd79f03e7"),
    ("multiplication", "6b9f556f36d6", "ccb910edc53f"),
    ("matrix product", "772ace20204a", "daae77ebab97"),
    ("lift or rescale", "a3b49aa85db3", "ce4d87aa3671"),
    ("sign", "38af908b1714", "c545a463586d"),
    ("relu", "62845ff63fcf", "62a4881d5438"),
    ("slopes", "1db00115206c", "62a4881d5438"),
    ("relu and sign", "3c772ee53b55", "62a4881d5438"),
    ("opened signs", "b98c3643c5b6", "62c12b8e4981"),
    ("opened signs, fewest rounds", "725a52fc1d10", "62c12b8e4981"),
    ("shuffle", "08ee841c14a0", "feb106f72599"),
    ("fresh sharing of a result", "cd8742472653", "577cb023b270"),
];

fn answer<R: Look>(ring: &R, case: &Case<R>, seed: u8) -> String {
    let mut hash = Sha256::new();
    for who in Server::BOTH {
        let prgs = [seed, seed + 1].map(|s| Seed::from_bytes([s; 32]).prg(b"known answers"));
        let view = (case.view)(&Scene { ring, who, prgs: &prgs, secret: 5, n: 40 });
        for column in &view.columns {
            hash.update(column.name.as_bytes());
            hash.update(&column.values);
        }
    }
    hash.finalize()[..6].iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn what_is_sent_is_known() {
    let rns = Rns::new(Moduli::usual(3, 2).unwrap()).unwrap();
    let z64 = Z64::new();
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
    let rns = Rns::new(Moduli::usual(3, 2).unwrap()).unwrap();
    for case in all::<Rns>() {
        assert_ne!(answer(&rns, &case, 1), answer(&rns, &case, 3), "{}", case.name);
    }
}
