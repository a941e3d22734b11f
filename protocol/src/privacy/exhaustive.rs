//! All that a server does not know, gone through in tiny rings: its view has exactly the same histogram for every secret.

use std::collections::HashMap;

use super::cases::{Case, Scene, all};
use super::{SAMPLES, View, other, pair};
use crate::prg::insecure::Which;
use crate::prg::{Prg, Purpose};
use crate::ring::{CHUNK, Moduli, Range, Ring, Rns};
use crate::role::Server;

/// Most combinations of what a server does not know.
const MOST: usize = 1 << 21;

/// How many values an element of a stream takes.
fn values(ring: &Rns, (purpose, lane, _): Which) -> usize {
    let lane = usize::from(lane);
    match purpose {
        Purpose::TreeMask | Purpose::TreeProduct | Purpose::SignMask | Purpose::FlipBit => 2,
        Purpose::CompareDigits => 1 << 16,
        Purpose::SignDerived => ring.modulus(lane % 16).into(),
        Purpose::ConvertDerived => ring.modulus(lane / 2).into(),
        _ => ring.modulus(lane).into(),
    }
}

/// The other one's generator, whose streams take every combination of values, one for each element; and how many there
/// are. Nothing if there are too many.
fn scripted(ring: &Rns, streams: &[Which]) -> Option<(Prg, usize)> {
    let counts: Vec<usize> = streams.iter().map(|&w| values(ring, w)).collect();
    let n = counts.iter().try_fold(1usize, |n, c| n.checked_mul(*c)).filter(|n| *n <= MOST)?;
    let mut prg = other();
    let mut every = 1;
    for (&which, &count) in streams.iter().zip(&counts) {
        let value = |i: usize| (i / every % count) as u8;
        let (purpose, lane, _) = which;
        if count == 2 && !matches!(ring.modulus(0), 2) && is_bit(purpose) {
            let byte = |b: usize| (0..8).fold(0, |byte, i| byte | value(8 * b + i) << i);
            prg = prg.insecure_scripted(which, (0..n.div_ceil(8)).map(byte).collect());
        } else {
            for chunk in 0..n.div_ceil(CHUNK) {
                let elements = chunk * CHUNK..n.min((chunk + 1) * CHUNK);
                prg = prg.insecure_scripted((purpose, lane, chunk as u16), elements.map(value).collect());
            }
        }
        every *= count;
    }
    Some((prg, n))
}

const fn is_bit(purpose: Purpose) -> bool {
    matches!(purpose, Purpose::TreeMask | Purpose::TreeProduct | Purpose::SignMask | Purpose::FlipBit)
}

fn histogram(view: &View) -> HashMap<Vec<u8>, u32> {
    let mut out = HashMap::new();
    let n = view.columns[0].values.len();
    for i in 0..n {
        let all: Vec<u8> = view.columns.iter().map(|c| c.values[i]).collect();
        *out.entry(all).or_default() += 1;
    }
    out
}

/// Looks at one case from one side; whether there were few enough combinations.
fn check(ring: &Rns, who: Server, case: &Case<Rns>) -> bool {
    let scene = |prgs, secret, n| (case.view)(&Scene { ring, who, prgs, secret, n, record: None });
    // Which streams are drawn, from a run that does not matter.
    let prgs = pair(who, other());
    scene(&prgs, 0, SAMPLES);
    let streams: Vec<Which> = prgs[who.peer().index()].insecure_streams().into_iter().collect();
    let few = !streams.iter().any(|w| w.0 == Purpose::CompareDigits) && case.name != "matrix product";
    let Some((prg, n)) = few.then(|| scripted(ring, &streams)).flatten() else { return false };
    let prgs = pair(who, prg);
    let bound = ring.bound(Range::Reduced);
    // Every word where that is quick, else the edges and some between.
    let step = if n > 10_000 { bound / 2 } else { 1 };
    let mut first: [Option<HashMap<Vec<u8>, u32>>; 2] = [None, None];
    for secret in (-bound..=bound).step_by(step as usize) {
        let found = histogram(&scene(&prgs, secret, n));
        assert_eq!(found.values().map(|&c| c as usize).sum::<usize>(), n);
        // Opened signs are meant to be seen: only secrets of one sign must look alike.
        let group = usize::from(case.name.starts_with("opened") && secret < 0);
        match &first[group] {
            None => first[group] = Some(found),
            Some(first) => {
                assert!(*first == found, "{who} sees another histogram of {} for {secret}", case.name)
            }
        }
    }
    true
}

#[test]
fn views_have_the_same_histogram_for_every_secret() {
    let ring = Rns::new(Moduli { p: vec![3, 7], q: vec![5] }).unwrap();
    let mut looked_at = Vec::new();
    for case in all::<Rns>().iter().filter(|c| c.name != "shuffle") {
        for who in Server::BOTH {
            if check(&ring, who, case) {
                looked_at.push(format!("{who}: {}", case.name));
            }
        }
    }
    println!("exhaustive: {looked_at:#?}");
    for name in [
        "multiplication",
        "linear layer",
        "load of a weight",
        "lift or rescale",
        "sign",
        "slopes",
        "opened signs",
    ] {
        assert!(looked_at.contains(&format!("server 0: {name}")), "{name} has too many combinations");
    }
    for name in ["share of an input", "linear layer", "lift or rescale", "fresh sharing of a result"] {
        assert!(looked_at.contains(&format!("server 1: {name}")), "{name} has too many combinations");
    }
}
