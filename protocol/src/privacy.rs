//! Whether what a server sees depends on a secret, for every protocol; and whether these tests would notice.
//!
//! **What a server sees** is its own randomness and its own share, the corrections from the helper, and the messages
//! from the other server. Its own part is fixed here: its generator yields zeros and its share is zero. The claim for
//! each protocol is then that everything else is *jointly uniform*, each correction and message under a mask of its
//! own, whatever the secret is. So a vector of elements that all hold the same secret is a sample of what is seen, and
//!
//! - every symbol (a residue, a bit, a nibble of a word) must be uniform;
//! - every two must be jointly uniform, alone and together with the masked number that is opened first.
//!
//! A table of which a cell would hold fewer than four samples is left out: in a ring as models have it, pairs of two
//! residues; in the tiny ring, the masked number with two parts of a one-hot vector.
//!
//! A mask that is missing makes one of these tables lopsided: what it covered is a function of the secret and of other
//! symbols. Chi-squares are brought to normal deviates (Wilson and Hilferty); [`DEVIATES`] bounds false alarms over the
//! whole suite by 10^-6, and seeds are fixed.
//!
//! **Exhaustive**: what server 0 does not know is what the other server draws, which in a tiny ring are few bits. All of
//! it is gone through, and the histogram of the whole view must be the same for every secret, exactly.
//!
//! **Mutants**: each stream that a run draws is replaced by zeros, alone, at all who hold it; then each purpose as a
//! whole. In each case a test of the view that it protects must fail. A stream that could be left out would be a mask
//! that no test guards. `cargo test -p sharelens-protocol --release mutants -- --nocapture` prints the table.

mod cases;
mod exhaustive;
mod known_answers;
mod mutants;

use std::collections::BTreeMap;

use crate::bits;
use crate::channel::{Channel, Memory};
use crate::error::Result;
use crate::prg::{Prg, Seed};
use crate::ring::{Range, Ring, Rns, Z64};
use crate::role::Server;
use crate::share;
use crate::step::Step;
use crate::testing::AT;

/// Elements, each a sample; one chunk of a stream.
const SAMPLES: usize = 1 << 14;

/// Normal deviates from which on a table is lopsided: once in 10^12 by chance.
const DEVIATES: f64 = 7.0;

/// What one symbol was in each sample, of `of` possible values.
#[derive(Clone)]
pub struct Column {
    name: String,
    of: usize,
    values: Vec<u8>,
}

/// All that one server sees, as symbols. Where there is a pivot, the masked number that is opened first, pairs of the
/// others are also looked at together with it.
#[derive(Default)]
pub struct View {
    columns: Vec<Column>,
    /// Which column.
    pivot: Option<usize>,
}

/// A ring whose words can be taken apart into symbols.
pub trait Look: crate::correlation::SecureRing {
    /// The symbols of one plane of words.
    fn symbols(&self, name: &str, plane: usize, words: &[Self::Word]) -> Vec<Column>;

    /// The symbols of a vector.
    fn look(&self, name: &str, range: Range, words: &[Self::Word]) -> Vec<Column> {
        let n = words.len() / self.planes(range);
        let planes = words.chunks_exact(n.max(1)).enumerate();
        planes.flat_map(|(p, words)| self.symbols(&format!("{name}[{p}]"), p, words)).collect()
    }

    /// The view of a masked number, as one symbol where it has few values.
    fn masked(&self, name: &str, words: &[Self::Word]) -> View;
}

impl Look for Rns {
    fn symbols(&self, name: &str, plane: usize, words: &[u8]) -> Vec<Column> {
        vec![Column { name: name.into(), of: self.modulus(plane).into(), values: words.to_vec() }]
    }

    fn masked(&self, name: &str, words: &[u8]) -> View {
        if self.big_p() > 256 {
            return View { columns: self.look(name, Range::Reduced, words), pivot: None };
        }
        let values = self.compose(words).iter().map(|&z| z as u8).collect();
        View {
            columns: vec![Column { name: name.into(), of: self.big_p() as usize, values }],
            pivot: Some(0),
        }
    }
}

impl Look for Z64 {
    fn symbols(&self, name: &str, _: usize, words: &[u64]) -> Vec<Column> {
        let nibble = |what: &str, shift: u32| Column {
            name: format!("{name} {what}"),
            of: 16,
            values: words.iter().map(|w| (w >> shift & 15) as u8).collect(),
        };
        vec![nibble("low", 0), nibble("high", 60)]
    }

    fn masked(&self, name: &str, words: &[u64]) -> View {
        View { columns: self.look(name, Range::Reduced, words), pivot: Some(1) }
    }
}

fn bit_columns(name: &str, n: usize, message: &[u8]) -> Vec<Column> {
    let planes = message.chunks_exact(bits::bytes(n)).enumerate();
    let plane = |(p, bytes): (usize, &[u8])| Column {
        name: format!("{name}[{p}]"),
        of: 2,
        values: (0..n).map(|i| bytes[i / 8] >> (i % 8) & 1).collect(),
    };
    planes.map(plane).collect()
}

/// Four bits of a one-hot vector to a column: a table of single bits would be many times as long.
fn onehot_columns(digits: usize, n: usize, bytes: &[u8]) -> Vec<Column> {
    let nibble = |d: usize, b: usize| Column {
        name: format!("one-hot {d}.{b}"),
        of: 16,
        values: (0..n).map(|i| bytes[2 * (d * n + i) + b / 2] >> (4 * (b % 2)) & 15).collect(),
    };
    (0..digits).flat_map(|d| (0..4).map(move |b| nibble(d, b))).collect()
}

/// A link that keeps both directions.
struct Watch {
    inner: Memory,
    sent: BTreeMap<Step, Vec<u8>>,
    received: BTreeMap<Step, Vec<u8>>,
    /// Which of the messages received is not what was sent.
    alter: Option<usize>,
}

/// Another message that could have been sent: every byte stays what it may be, a residue or bits.
fn altered(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.iter_mut().for_each(|b| *b = if *b == 0 { 1 } else { *b / 2 });
    bytes
}

impl Watch {
    /// Words that a message opens: what was sent and what was received, added.
    fn words<R: Ring>(&self, ring: &R, range: Range, step: Step) -> Vec<R::Word> {
        let read = |bytes: &[u8]| share::from_bytes(ring, range, step, bytes).expect("residues");
        let mut opened = read(&self.received[&step]);
        if let Some(own) = self.sent.get(&step) {
            ring.add(range, &mut opened, &read(own));
        }
        opened.to_vec()
    }

    /// Bits that a message opens.
    fn bits(&self, step: Step) -> Vec<u8> {
        self.received[&step].iter().zip(&self.sent[&step]).map(|(a, b)| a ^ b).collect()
    }
}

impl Channel for Watch {
    async fn send(&mut self, step: Step, bytes: Vec<u8>) -> Result<()> {
        self.sent.insert(step, bytes.clone());
        self.inner.send(step, bytes).await
    }

    async fn next(&mut self, due: Step) -> Result<(Step, usize)> {
        self.inner.next(due).await
    }

    async fn recv(&mut self, step: Step, len: usize) -> Result<Vec<u8>> {
        let mut bytes = self.inner.recv(step, len).await?;
        if self.alter == Some(self.received.len()) {
            bytes = altered(bytes);
        }
        self.received.insert(step, bytes.clone());
        Ok(bytes)
    }
}

/// The generator of the one whose view is not looked at.
fn other() -> Prg {
    Seed::from_bytes([77; 32]).prg(b"the other one")
}

/// The generator of the one whose view is looked at: known to it, so it may as well be constant.
fn own() -> Prg {
    Seed::from_bytes([78; 32]).prg(b"own").insecure_constant()
}

/// Both generators, in the order of servers, for the view of `who`.
fn pair(who: Server, other: Prg) -> [Prg; 2] {
    if who.is_first() { [own(), other] } else { [other, own()] }
}

/// How lopsided a table of counts is, as a normal deviate.
fn deviate(counts: &[u32]) -> f64 {
    let due = counts.iter().sum::<u32>() as f64 / counts.len() as f64;
    let chi: f64 = counts.iter().map(|&c| (f64::from(c) - due).powi(2) / due).sum();
    let v = 2.0 / (9.0 * (counts.len() - 1) as f64);
    ((chi / (counts.len() - 1) as f64).cbrt() - (1.0 - v)) / v.sqrt()
}

impl View {
    /// The first lopsided table, if there is one.
    fn lopsided(&self) -> Option<String> {
        let pairs = |pivot: Option<usize>| {
            let others = || self.columns.iter().enumerate().filter(move |(i, _)| Some(*i) != pivot);
            others().find_map(|(i, a)| {
                let start = match pivot {
                    Some(z) => Joint::of(&self.columns[z]).with(a),
                    None => Joint::of(a),
                };
                others().take_while(|(j, _)| *j < i).find_map(|(_, b)| start.tell(Some(b)))
            })
        };
        let one = self.columns.iter().find_map(|a| Joint::of(a).tell(None));
        one.or_else(|| pairs(None)).or_else(|| self.pivot.and_then(|z| pairs(Some(z))))
    }
}

/// What is not uniform in a vector of words, if anything is.
pub fn lopsided<R: Look>(ring: &R, range: Range, words: &[R::Word]) -> Option<String> {
    View { columns: ring.look("word", range, words), pivot: None }.lopsided()
}

/// Several symbols as one.
struct Joint {
    name: String,
    of: usize,
    values: Vec<u32>,
}

impl Joint {
    fn of(column: &Column) -> Self {
        let values = column.values.iter().map(|&v| v.into()).collect();
        Self { name: column.name.clone(), of: column.of, values }
    }

    fn with(self, column: &Column) -> Self {
        let joined =
            self.values.iter().zip(&column.values).map(|(a, &b)| a * column.of as u32 + u32::from(b));
        Self {
            name: format!("{}, {}", self.name, column.name),
            of: self.of * column.of,
            values: joined.collect(),
        }
    }

    /// What is wrong with the table of this, and of one symbol more.
    fn tell(&self, more: Option<&Column>) -> Option<String> {
        let cells = self.of * more.map_or(1, |c| c.of);
        if cells * 4 > self.values.len() {
            // Where a cell would hold few samples, the deviate is no longer normal.
            return None;
        }
        let mut counts = vec![0u32; cells];
        match more {
            None => self.values.iter().for_each(|&v| counts[v as usize] += 1),
            Some(c) => {
                let both = self.values.iter().zip(&c.values);
                both.for_each(|(&a, &b)| counts[a as usize * c.of + usize::from(b)] += 1);
            }
        }
        let deviate = deviate(&counts);
        let more = more.map_or(String::new(), |c| format!(", {}", c.name));
        (deviate > DEVIATES).then(|| format!("{}{more} deviates by {deviate:.0}", self.name))
    }
}

#[test]
fn tables_are_told_apart() {
    let column = |name: &str, values: Vec<u8>| Column { name: name.into(), of: 4, values };
    let mut state = 1u64;
    let mut noise = || -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 60) as u8 & 3
        };
        (0..SAMPLES).map(|_| next()).collect()
    };
    let (a, b, z) = (noise(), noise(), noise());
    let view = |mut columns: Vec<Column>| {
        columns.push(column("z", z.clone()));
        View { pivot: Some(columns.len() - 1), columns }
    };
    assert_eq!(view(vec![column("a", a.clone()), column("b", b.clone())]).lopsided(), None);
    // One, two and three symbols that give something away.
    let fixed = view(vec![column("a", a.clone()), column("fixed", vec![2; SAMPLES])]);
    assert!(fixed.lopsided().expect("noticed").starts_with("fixed"));
    assert!(view(vec![column("a", a.clone()), column("same", a.clone())]).lopsided().is_some());
    let hidden: Vec<u8> = (0..SAMPLES).map(|i| (a[i] + b[i] + z[i]) & 3).collect();
    assert!(view(vec![column("a", a), column("b", b), column("sum", hidden.clone())]).lopsided().is_none());
    let pair: Vec<u8> = hidden.iter().zip(&z).map(|(h, z)| (h + 4 - z) & 3).collect();
    assert!(view(vec![column("hidden", hidden), column("pair", pair)]).lopsided().is_some());
}

/// Two servers and what links them.
fn links() -> [Watch; 2] {
    let (a, b) = Memory::pair("server 0", "server 1");
    [a, b].map(|inner| Watch { inner, sent: BTreeMap::new(), received: BTreeMap::new(), alter: None })
}

/// The step of message `index` of the call that all cases run.
fn message(index: u16) -> Step {
    AT.message(index)
}
