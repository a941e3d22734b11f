//! Everything that becomes known to both servers in a run, for any manifest and any words, and whether it may.
//!
//! A server learns what it receives from the other one. Together with what it sent itself, that is what the protocol
//! opens: masked numbers, masked bits, and orders and places of shuffled lists. Whoever writes a model chooses the
//! program, and whoever sends a picture chooses every word of it, so neither is believed here: the same program runs many
//! times, on two inputs, with fresh randomness, and
//!
//! - a masked number or bit must come out uniform: two runs agree in a word as often as two random words do;
//! - signs and places must look alike for both inputs;
//! - no run may end in an error, since both servers see it, unless it says that it has nothing to do with the input.
//!
//! A mask that is missing shows in the first of these: what should be random is then the same in every run.

use std::collections::BTreeMap;

use futures::executor::block_on;
use futures::future::try_join;
use sharelens_models::{Arithmetic, Manifest, run};
use sharelens_ops::planner::Length;
use sharelens_ops::{Planner, Secure};
use sharelens_protocol::bilinear::{self, Mask, Resident};
use sharelens_protocol::channel::Memory;
use sharelens_protocol::correlation::{Dealer, Demand, FromHelper, Kind, Plan, Receiver, SecureRing, Store};
use sharelens_protocol::cost::Ledger;
use sharelens_protocol::prg::{Prg, Purpose, Seed};
use sharelens_protocol::ring::{Full, Range, Rns, Z64};
use sharelens_protocol::secret::Secret;
use sharelens_protocol::{Channel, Error, Party, Result, Server, Share, Step, lanes};

/// Runs of each input of a small program.
pub const RUNS: usize = 24;
/// From how many standard deviations on a message is looked at again. A single bit gets there once in 300,000 times.
const DEVIATIONS: f64 = 7.5;

/// How closely to look.
#[derive(Clone, Copy, Debug)]
pub struct Care {
    /// Runs of each input. Pairs of runs that agree are counted, so that few runs say much, and large messages more.
    pub runs: usize,
    /// How often a message has to be suspicious, each time with fresh randomness, to count as a leak.
    pub again: u64,
    /// A purpose whose masks are left out, to see whether that is noticed.
    pub without: Option<Purpose>,
}

impl Default for Care {
    /// For small programs, of which millions are tried: one would be called a leak by chance once in 10^20 times.
    fn default() -> Self {
        Self { runs: RUNS, again: 4, without: None }
    }
}

/// A ring whose opened words can be looked at.
pub trait Visible: SecureRing {
    /// The opened words of one message as symbols: how many values each may take, and which it took.
    fn symbols(&self, range: Range, own: &[u8], other: Option<&[u8]>) -> Vec<(u16, u8)>;
}

impl Visible for Rns {
    fn symbols(&self, range: Range, own: &[u8], other: Option<&[u8]>) -> Vec<(u16, u8)> {
        use sharelens_protocol::ring::Ring;
        let n = (own.len() / self.planes(range)).max(1);
        let opened = |i: usize| {
            let m = u16::from(self.modulus(i / n));
            let sum = u16::from(own[i]) + other.map_or(0, |other| u16::from(other[i]));
            (m, (sum % m) as u8)
        };
        (0..own.len()).map(opened).collect()
    }
}

impl Visible for Z64 {
    fn symbols(&self, _: Range, own: &[u8], other: Option<&[u8]>) -> Vec<(u16, u8)> {
        let word = |b: &[u8], i: usize| u64::from_le_bytes(b[8 * i..8 * i + 8].try_into().expect("8 bytes"));
        let opened = |i: usize| word(own, i).wrapping_add(other.map_or(0, |other| word(other, i)));
        // The lowest and the highest byte.
        (0..own.len() / 8).flat_map(|i| [(256, opened(i) as u8), (256, (opened(i) >> 56) as u8)]).collect()
    }
}

/// What both servers send each other.
#[derive(Default)]
struct Sent(BTreeMap<Step, Vec<u8>>);

/// A channel that keeps what was sent.
struct Tap {
    inner: Memory,
    sent: Sent,
}

impl Channel for Tap {
    async fn send(&mut self, step: Step, bytes: Vec<u8>) -> Result<()> {
        self.sent.0.insert(step, bytes.clone());
        self.inner.send(step, bytes).await
    }

    async fn next(&mut self, due: Step) -> Result<(Step, usize)> {
        self.inner.next(due).await
    }

    async fn recv(&mut self, step: Step, len: usize) -> Result<Vec<u8>> {
        self.inner.recv(step, len).await
    }
}

/// What one message opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    /// Masked words.
    Words(Range),
    /// Masked bits, in planes of so many.
    Bits(usize),
    /// Signs of differences of so many pairs of shuffled keys.
    Signs(usize),
    /// Places of shuffled rows.
    Places,
}

fn what<R: SecureRing>(ring: &R, plan: &Plan, step: Step) -> What {
    let message = step.to_bits() & 0xffff;
    match plan.demands().get(&step.call_start()) {
        Some(Demand::Convert(_)) => What::Words(Range::Reduced),
        Some(Demand::Sign(signs)) if message > 0 => What::Bits(signs.n),
        Some(Demand::Compare(signs)) if message + 1 == signs.cost(ring).rounds => What::Signs(signs.n),
        Some(Demand::Compare(signs)) if message > 0 => What::Bits(signs.n),
        Some(Demand::Sign(_) | Demand::Compare(_)) => What::Words(Range::Reduced),
        Some(Demand::Shuffle(list)) => What::Words(list.range),
        Some(_) => What::Words(Range::Full),
        None if plan.opens(step.call_start()) => What::Places,
        // Products after the call that asked for their operand.
        None => What::Words(Range::Full),
    }
}

/// Weights, program and plan of a manifest.
struct Subject<'a, R: SecureRing> {
    ring: &'a R,
    manifest: &'a Manifest,
    plan: Plan,
    masks: Vec<Mask<R>>,
    weights: [Vec<Resident<R>>; 2],
    care: Care,
}

fn prg(run: u64, who: u8) -> Prg {
    Seed::from_bytes([who; 32]).prg(&run.to_le_bytes())
}

impl<'a, R: Visible> Subject<'a, R> {
    /// Plans the program, and loads weights that anybody may have chosen.
    fn new(ring: &'a R, manifest: &'a Manifest) -> Result<Self> {
        let program = &manifest.program;
        let mut planner = Planner::<R>::new(manifest.rounds);
        block_on(run(program, &mut planner, Length::new(program.input_len()), |_| {}))?;
        let plan = planner.finish();
        plan.check(ring)?;
        let maps = program.linear_maps();
        let loads = [prg(0, 1), prg(0, 2)];
        let masks = maps.iter().map(|map| Mask::new(ring, map, [&loads[0], &loads[1]])).collect();
        let (mut a, mut b) = Memory::pair("server 0", "server 1");
        let load = async |role: Server, channel: &mut Memory| {
            let mut loaded = Vec::new();
            for map in &maps {
                let mut ledger = Ledger::default();
                let mut party = Party { ring, role, channel, ledger: &mut ledger };
                let of = |purpose, n| {
                    ring.uniform(
                        Range::Full,
                        prg(1, 3 + role.index() as u8).at(Step::layer(map.weight), purpose),
                        n,
                    )
                };
                let (w, bias) =
                    (of(Purpose::Weight, map.conv.weight_len()), of(Purpose::Bias, map.conv.c_out));
                loaded.push(bilinear::load(&mut party, map, &loads[role.index()], w, bias).await?);
            }
            Ok::<_, Error>(loaded)
        };
        let (w0, w1) = block_on(try_join(load(Server::Server0, &mut a), load(Server::Server1, &mut b)))?;
        Ok(Self { ring, manifest, plan, masks, weights: [w0, w1], care: Care::default() })
    }

    /// One run on these words, with fresh randomness; what both servers sent.
    fn run(&self, words: &[R::Word], run: u64) -> Result<[Sent; 2]> {
        let (ring, program) = (self.ring, &self.manifest.program);
        let seeds = [10, 11].map(|who| match self.care.without {
            Some(purpose) => prg(run, who).insecure_without(purpose),
            None => prg(run, who),
        });
        let stores = [Store::new(usize::MAX), Store::new(usize::MAX)];
        let (mut helper, mut from_helper) = Memory::pair("helper", "server 1");
        block_on(async {
            let dealer = Dealer { ring, prgs: [&seeds[0], &seeds[1]], masks: &self.masks };
            self.plan.deal(&dealer, &mut helper).await?;
            let (mut nobody, _) = Memory::pair("nobody", "nobody");
            let channels = [&mut nobody, &mut from_helper];
            for (role, channel) in Server::BOTH.into_iter().zip(channels) {
                let i = role.index();
                let server = Receiver { ring, role, prg: &seeds[i], weights: &self.weights[i] };
                self.plan.fill(FromHelper { server, channel }, &stores[i]).await?;
            }
            Ok::<_, Error>(())
        })?;
        let x0 =
            ring.uniform(Range::Full, prg(run, 12).at(Step::layer(0), Purpose::Input), program.input_len());
        let mut x1 = Secret::copied(words);
        ring.sub(Range::Full, &mut x1, &x0);
        let (a, b) = Memory::pair("server 0", "server 1");
        let mut taps = [a, b].map(|inner| Tap { inner, sent: Sent::default() });
        let online = async |role: Server, channel: &mut Tap, x: Secret<R::Word>| {
            let (weights, store) = (&self.weights[role.index()], &stores[role.index()]);
            lanes::drive(channel, async |lane| {
                let mut e = Secure::new(ring, role, lane, weights, store, self.manifest.rounds);
                sharelens_models::run(program, &mut e, Share::<R, Full>::new(x), |_| {}).await.map(drop)
            })
            .await
        };
        let [t0, t1] = &mut taps;
        block_on(try_join(online(Server::Server0, t0, x0), online(Server::Server1, t1, x1)))?;
        Ok(taps.map(|t| t.sent))
    }
}

/// What was opened in one run: what kind it is, and its symbols.
type Opened = BTreeMap<Step, (What, Vec<(u16, u8)>)>;

fn opened<R: Visible>(subject: &Subject<'_, R>, sent: &[Sent; 2]) -> Opened {
    let mut out = Opened::new();
    let [a, b] = sent;
    for (from, to) in [(a, b), (b, a)] {
        for (&step, own) in &from.0 {
            let (what, other) = (what(subject.ring, &subject.plan, step), to.0.get(&step).map(Vec::as_slice));
            let symbols = match what {
                What::Words(range) => subject.ring.symbols(range, own, other),
                What::Places => subject.ring.symbols(Range::Reduced, own, other),
                What::Bits(n) | What::Signs(n) => {
                    let byte = |i: usize| own[i] ^ other.map_or(0, |other| other[i]);
                    let plane = n.div_ceil(8).max(1);
                    let bit = |p: usize, i: usize| (2, byte(p * plane + i / 8) >> (i % 8) & 1);
                    (0..own.len() / plane).flat_map(|p| (0..n).map(move |i| bit(p, i))).collect()
                }
            };
            out.insert(step, (what, symbols));
        }
    }
    out
}

/// What [`check`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Validation or planning refuses the manifest.
    Refused(String),
    /// It runs, and opens nothing that depends on the input. How many messages were looked at.
    Sealed(usize),
}

/// Runs a manifest on two inputs of hostile words, drawn from `seed`, and looks at all that is opened.
///
/// # Panics
/// If something is opened that depends on the input.
pub fn check(manifest: &Manifest, seed: u64) -> Verdict {
    check_with(manifest, seed, Care::default())
}

/// The same, as closely as told.
///
/// # Panics
/// As [`check`].
pub fn check_with(manifest: &Manifest, seed: u64, care: Care) -> Verdict {
    if let Err(e) = manifest.validate() {
        return Verdict::Refused(e.to_string());
    }
    let refused = |e: Error| Verdict::Refused(e.to_string());
    match &manifest.arithmetic {
        Arithmetic::Rns(moduli) => match Rns::new(moduli.clone()) {
            Ok(ring) => checked(&ring, manifest, seed, care).unwrap_or_else(refused),
            Err(e) => refused(e),
        },
        Arithmetic::Z64 => checked(&Z64::new(), manifest, seed, care).unwrap_or_else(refused),
    }
}

/// The same on two given inputs, integers at the scale of the program's input.
///
/// # Panics
/// As [`check`], and if the manifest is refused.
pub fn check_inputs(manifest: &Manifest, inputs: [&[i64]; 2], seed: u64, care: Care) -> Verdict {
    fn on<R: Visible>(
        ring: &R,
        manifest: &Manifest,
        inputs: [&[i64]; 2],
        seed: u64,
        care: Care,
    ) -> Result<Verdict> {
        let subject = Subject { care, ..Subject::new(ring, manifest)? };
        looked_at(&subject, &inputs.map(|x| ring.encode(Range::Full, x).into()), seed)
    }
    manifest.validate().expect("sound");
    match &manifest.arithmetic {
        Arithmetic::Rns(moduli) => {
            on(&Rns::new(moduli.clone()).expect("usable"), manifest, inputs, seed, care)
        }
        Arithmetic::Z64 => on(&Z64::new(), manifest, inputs, seed, care),
    }
    .expect("planned")
}

fn checked<R: Visible>(ring: &R, manifest: &Manifest, seed: u64, care: Care) -> Result<Verdict> {
    let subject = Subject { care, ..Subject::new(ring, manifest)? };
    let n = manifest.program.input_len();
    // Any words at all, and numbers that are small or all the same: what an attacker would send.
    let any = ring.uniform(Range::Full, prg(seed, 20).at(Step::layer(0), Purpose::Input), n);
    let mild: Vec<i64> = (0..n as i64).map(|i| (i * 31 + seed as i64 % 97) % 256).collect();
    let same = vec![seed as i64 % 3; n];
    let inputs: [Secret<R::Word>; 2] = match seed % 3 {
        0 => [any, ring.encode(Range::Full, &mild).into()],
        1 => [ring.encode(Range::Full, &same).into(), ring.encode(Range::Full, &mild).into()],
        _ => [any, ring.encode(Range::Full, &same).into()],
    };
    looked_at(&subject, &inputs, seed)
}

/// Runs on both inputs, as often as it takes to tell chance from a leak.
fn looked_at<R: Visible>(
    subject: &Subject<'_, R>,
    inputs: &[Secret<R::Word>; 2],
    seed: u64,
) -> Result<Verdict> {
    let (care, manifest) = (subject.care, subject.manifest);
    let mut suspects: Option<BTreeMap<Step, String>> = None;
    for again in 0..care.again {
        let runs = opened_twice(subject, inputs, 1000 * seed + 1_000_003 * again)?;
        let [a, b] = &runs;
        let Some(first) = a.first().filter(|_| a.len() > care.runs / 2 && b.len() > care.runs / 2) else {
            return Ok(Verdict::Refused("its levels lose rows too often to be looked at".into()));
        };
        let mut found = BTreeMap::new();
        for (step, (what, _)) in first {
            let of =
                |runs: &[Opened]| -> Vec<Vec<(u16, u8)>> { runs.iter().map(|r| r[step].1.clone()).collect() };
            let (a, b) = (of(a), of(b));
            let verdict = match what {
                What::Words(_) | What::Bits(_) => uniform(&a).and_then(|()| uniform(&b)),
                What::Signs(_) | What::Places => alike(&a, &b),
            };
            let label = manifest.program.layers.get(step.layer_index() as usize).map_or("", |l| l.op.label());
            if let Err(why) = verdict {
                found.insert(*step, format!("{what:?} at {step} ({label}): {why}"));
            }
        }
        let before = suspects.take();
        found.retain(|step, _| before.as_ref().is_none_or(|before| before.contains_key(step)));
        if found.is_empty() {
            return Ok(Verdict::Sealed(first.len()));
        }
        suspects = Some(found);
    }
    panic!("what is opened depends on the input: {:?}", suspects.unwrap_or_default())
}

/// What is opened in several runs of each input.
fn opened_twice<R: Visible>(
    subject: &Subject<'_, R>,
    inputs: &[Secret<R::Word>; 2],
    first: u64,
) -> Result<[Vec<Opened>; 2]> {
    let mut runs: [Vec<Opened>; 2] = [Vec::new(), Vec::new()];
    for (which, words) in inputs.iter().enumerate() {
        for run in 0..subject.care.runs as u64 {
            match subject.run(words, first + 2 * run + which as u64 + 5) {
                Ok(sent) => runs[which].push(opened(subject, &sent)),
                // Depends on shuffles alone.
                Err(Error::Ended(why)) if why.contains("met in one group") => {}
                Err(e) => panic!("a run on input {which} ends in what both servers see: {e}"),
            }
        }
    }
    Ok(runs)
}

/// Whether two runs agree in a symbol as often as random ones.
fn uniform(runs: &[Vec<(u16, u8)>]) -> std::result::Result<(), String> {
    let pairs = (runs.len() * (runs.len() - 1) / 2) as f64;
    let (mut agree, mut due, mut variance) = (0.0, 0.0, 0.0);
    for i in 0..runs[0].len() {
        let m = runs[0][i].0;
        let mut counts = [0u32; 256];
        runs.iter().for_each(|r| counts[usize::from(r[i].1)] += 1);
        agree += counts.iter().map(|&c| f64::from(c) * (f64::from(c) - 1.0) / 2.0).sum::<f64>();
        due += pairs / f64::from(m);
        variance += pairs / f64::from(m) * (1.0 - 1.0 / f64::from(m));
    }
    let excess = (agree - due) / (variance + 1.0).sqrt();
    if excess < DEVIATIONS {
        return Ok(());
    }
    Err(format!("runs agree {agree} times, random ones {due:.0}: {excess:.1} deviations too often"))
}

/// Whether each symbol takes its values about as often in runs of one input as in those of the other.
fn alike(a: &[Vec<(u16, u8)>], b: &[Vec<(u16, u8)>]) -> std::result::Result<(), String> {
    let mut sums = [0.0; 2];
    for i in 0..a[0].len() {
        let mut counts = [[0.0f64; 256]; 2];
        a.iter().for_each(|r| counts[0][usize::from(r[i].1)] += 1.0);
        b.iter().for_each(|r| counts[1][usize::from(r[i].1)] += 1.0);
        let (n, m) = (a.len() as f64, b.len() as f64);
        for (x, y) in counts[0].into_iter().zip(counts[1]).filter(|(x, y)| x + y > 0.0) {
            // Two-sample chi-square of this value.
            let by = (m / n).sqrt();
            sums[0] += (x * by - y / by).powi(2) / (x + y);
            sums[1] += 1.0;
        }
    }
    let [chi, cells] = sums;
    // Symbols of one permutation hang together, so that far more than the deviation of independent ones is allowed.
    if chi < 3.0 * cells + 60.0 {
        return Ok(());
    }
    Err(format!("the two inputs differ, chi-square {chi:.0} over {cells} cells"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_vary_is_noticed() {
        assert!(uniform(&vec![vec![(251, 7); 3]; RUNS]).is_err());
        assert!(uniform(&vec![vec![(2, 0)]; RUNS]).is_err(), "a single bit, the same in all runs");
        let varied: Vec<Vec<(u16, u8)>> = (0..RUNS).map(|r| vec![(251, (r * 97 % 251) as u8); 3]).collect();
        assert_eq!(uniform(&varied), Ok(()));
    }

    #[test]
    fn other_inputs_are_noticed() {
        let all = |v: u8| vec![vec![(251, v); 40]; RUNS];
        assert!(alike(&all(1), &all(2)).is_err());
        assert_eq!(alike(&all(1), &all(1)), Ok(()));
    }
}
