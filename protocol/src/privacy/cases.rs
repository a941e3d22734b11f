//! Each protocol, and what one server sees of it.

use std::cell::RefCell;
use std::slice::from_ref;

use futures::executor::block_on;
use futures::future::try_join;

use Either::{Left, Right};

use super::{Look, View, Watch, altered, bit_columns, links, message, onehot_columns, own};
use crate::bilinear::{self, Linear, Mask};
use crate::bits;
use crate::compare::{Rounds, Tree};
use crate::correlation::{Dealer, Ideal, Kind};
use crate::cost::Ledger;
use crate::error::Result;
use crate::party::Party;
use crate::prg::{Prg, Purpose, Seed};
use crate::product::Shape;
use crate::ring::kernel::Conv;
use crate::ring::{Domain, Full, Range, Reduced};
use crate::role::Server;
use crate::secret::Secret;
use crate::share::Share;
use crate::sign::{self, Comparison, SignOutput, Slopes};
use crate::testing::AT;
use crate::{convert, mul, product, refresh, share, shuffle};

/// Whose view of what, and the secret that it must not depend on.
pub struct Scene<'a, R> {
    pub ring: &'a R,
    /// Whose view. Its share of the secret is zero.
    pub who: Server,
    /// The generators of the helper's seeds, in the order of servers.
    pub prgs: &'a [Prg; 2],
    /// What every element holds: any word.
    pub secret: i64,
    /// Elements.
    pub n: usize,
    /// Where to keep all that goes over a link and comes of it.
    pub record: Option<&'a RefCell<Record>>,
}

/// What one server received and sent, byte for byte, and its share of the result.
#[derive(Default)]
pub struct Record {
    pub transcript: Vec<u8>,
    /// What it sent, again.
    pub sent: Vec<u8>,
    pub result: Vec<u8>,
    /// Messages and corrections received so far.
    pub received: usize,
    /// Which of them is altered before the server sees it.
    pub alter: Option<usize>,
}

/// What comes of a protocol, for a record.
trait Outcome {
    fn bytes(&self) -> Vec<u8>;
}

impl<R: Look, D: Domain> Outcome for Share<R, D> {
    fn bytes(&self) -> Vec<u8> {
        bytemuck::cast_slice(self.words()).to_vec()
    }
}

impl<A: Outcome, B: Outcome> Outcome for (A, B) {
    fn bytes(&self) -> Vec<u8> {
        [self.0.bytes(), self.1.bytes()].concat()
    }
}

impl Outcome for Vec<u64> {
    fn bytes(&self) -> Vec<u8> {
        bytemuck::cast_slice(self).to_vec()
    }
}

/// A weight at a server shows in what is made of it.
impl<R: Look> Outcome for bilinear::Resident<R> {
    fn bytes(&self) -> Vec<u8> {
        vec![]
    }
}

/// One of several.
enum Either<A, B> {
    Left(A),
    Right(B),
}

impl<A: Outcome, B: Outcome> Outcome for Either<A, B> {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Left(a) => a.bytes(),
            Self::Right(b) => b.bytes(),
        }
    }
}

/// A protocol with its view.
pub struct Case<R> {
    pub name: &'static str,
    pub view: fn(&Scene<'_, R>) -> View,
    /// Whether a stream of this purpose protects what the case looks at. The rest is drawn beside it.
    pub covers: fn(Purpose) -> bool,
}

/// What the correction of a demand holds.
enum Part {
    Words(Range),
    Row(usize),
    Digits(usize),
    Bits(usize),
}

impl<R: Look> Scene<'_, R> {
    /// Both servers' shares of `n` times the secret.
    fn shares(&self, range: Range, n: usize) -> [Secret<R::Word>; 2] {
        let secret: Secret<R::Word> = self.ring.encode(range, &vec![self.secret; n]).into();
        let zero = Secret::zeroed(secret.len());
        if self.who.is_first() { [zero, secret] } else { [secret, zero] }
    }

    /// Both servers' parts, and the correction that server 1 received.
    fn dealt<K: Kind<R>>(&self, kind: K) -> ([K::Part; 2], Vec<u8>) {
        let [a, b] = self.prgs;
        self.dealt_by(&Ideal::new(self.ring, [a, b]), kind)
    }

    fn dealt_by<K: Kind<R>>(&self, ideal: &Ideal<'_, R>, kind: K) -> ([K::Part; 2], Vec<u8>) {
        let ([zero, mut one], mut sent) = ideal.both(AT, &kind).expect("loaded");
        if let Some(record) = self.record.filter(|_| !self.who.is_first()) {
            let mut record = record.borrow_mut();
            if record.alter == Some(record.received) {
                sent = altered(sent);
                one = ideal.server(Server::Server1).receive(AT, &kind, sent.clone()).expect("residues");
            }
            record.received += 1;
            record.transcript.extend(&sent);
        }
        ([zero, one], sent)
    }

    /// Runs both servers, each with its own input.
    fn run<I, T: Outcome>(
        &self,
        inputs: [I; 2],
        f: impl AsyncFn(&mut Party<'_, R, Watch>, I) -> Result<T>,
    ) -> (Watch, [T; 2]) {
        let [mut l0, mut l1] = links();
        let mut ledgers = [Ledger::default(), Ledger::default()];
        let [in0, in1] = inputs;
        let own = if self.who.is_first() { &mut l0 } else { &mut l1 };
        own.alter = self.record.and_then(|r| {
            let record = r.borrow();
            record.alter.and_then(|alter| alter.checked_sub(record.received))
        });
        let out: [T; 2] = {
            let [e0, e1] = &mut ledgers;
            let ring = self.ring;
            let mut p0 = Party { ring, role: Server::Server0, channel: &mut l0, ledger: e0 };
            let mut p1 = Party { ring, role: Server::Server1, channel: &mut l1, ledger: e1 };
            block_on(try_join(f(&mut p0, in0), f(&mut p1, in1))).expect("runs").into()
        };
        let watch = if self.who.is_first() { l0 } else { l1 };
        if let Some(record) = self.record {
            let mut record = record.borrow_mut();
            record.received += watch.received.len();
            for (step, bytes) in watch.sent.iter().chain(&watch.received) {
                record.transcript.extend(step.to_bits().to_le_bytes());
                record.transcript.extend(bytes);
            }
            watch.sent.values().for_each(|bytes| record.sent.extend(bytes));
            record.result.extend(out[self.who.index()].bytes());
        }
        (watch, out)
    }

    /// The symbols of a correction, which server 1 alone receives.
    fn correction(&self, view: &mut View, sent: &[u8], n: usize, parts: Vec<Part>) {
        if self.who.is_first() {
            return;
        }
        let word = size_of::<R::Word>();
        let mut rest = sent;
        let mut take = |len: usize| {
            let (now, later) = rest.split_at(len);
            rest = later;
            now
        };
        for (i, part) in parts.into_iter().enumerate() {
            let name = format!("correction {i}");
            view.columns.extend(match part {
                Part::Words(range) => {
                    let words: Secret<R::Word> = Secret::read(take(n * self.ring.bytes(range)));
                    self.ring.look(&name, range, &words)
                }
                Part::Row(plane) => {
                    let words: Secret<R::Word> = Secret::read(take(n * word));
                    self.ring.symbols(&name, plane, &words)
                }
                Part::Digits(digits) => onehot_columns(digits, n, take(2 * digits * n)),
                Part::Bits(planes) => bit_columns(&name, n, take(planes * bits::bytes(n))),
            });
        }
        assert!(rest.is_empty(), "all of the correction is looked at");
    }
}

/// What server 1 receives of a split secret: the other view is a seed.
fn split<R: Look>(s: &Scene<'_, R>, purpose: Purpose) -> View {
    let client = &s.prgs[usize::from(!s.who.is_first()) ^ 1];
    let words = share::split(s.ring, Range::Full, client, AT, purpose, &vec![s.secret; s.n]);
    if let Some(record) = s.record {
        record.borrow_mut().transcript.extend_from_slice(bytemuck::cast_slice(&words));
    }
    View { columns: s.ring.look("share", Range::Full, &words), pivot: None }
}

fn load<R: Look>(s: &Scene<'_, R>) -> View {
    // One row with as many columns as there are samples: F has one element for each.
    let map = Linear { conv: Conv::dense(1, s.n, 1), weight: 3 };
    let [w0, w1] = s.shares(Range::Full, s.n);
    let bias = || Secret::zeroed(s.ring.planes(Range::Full));
    let (watch, _) = s.run([(w0, &s.prgs[0]), (w1, &s.prgs[1])], async |p, (w, prg)| {
        bilinear::load(p, &map, prg, w, bias()).await
    });
    let f = watch.words(s.ring, Range::Full, crate::step::Step::layer(3));
    View { columns: s.ring.look("F", Range::Full, &f), pivot: None }
}

fn linear<R: Look>(s: &Scene<'_, R>) -> View {
    // As many rows of one number as there are samples; the weight's mask is any, and lasts.
    let map = Linear { conv: Conv::dense(s.n, 1, 1), weight: 0 };
    let loads = [1, 2].map(|i| Seed::from_bytes([i; 32]).prg(b"load"));
    let mask = Mask::new(s.ring, &map, [&loads[0], &loads[1]]);
    let [w0, w1] = [7, -3].map(|w| s.ring.encode(Range::Full, &[w]));
    let bias = || Secret::zeroed(s.ring.planes(Range::Full));
    let (_, resident) = s.run([(w0, &loads[0]), (w1, &loads[1])], async |p, (w, prg)| {
        bilinear::load(p, &map, prg, w.into(), bias()).await
    });
    let ([a, b], [r0, r1]) = (s.prgs, &resident);
    let dealer = Dealer { ring: s.ring, prgs: [a, b], masks: &[mask] };
    let ideal = Ideal { dealer, weights: [from_ref(r0), from_ref(r1)] };
    let ([c0, c1], sent) = s.dealt_by(&ideal, map);
    let [x0, x1] = s.shares(Range::Full, s.n);
    let (watch, _) = s.run([(x0, c0, r0), (x1, c1, r1)], async |p, (x, c, r)| {
        bilinear::apply(p, AT, &map, r, &Share::new(x), c).await
    });
    let e = watch.words(s.ring, Range::Full, AT);
    let mut view = View { columns: s.ring.look("E", Range::Full, &e), pivot: None };
    s.correction(&mut view, &sent, s.n, vec![Part::Words(Range::Full)]);
    view
}

fn multiply<R: Look>(s: &Scene<'_, R>) -> View {
    let ([t0, t1], sent) = s.dealt(mul::Demand { n: s.n });
    let ([x0, x1], [y0, y1]) = (s.shares(Range::Full, s.n), s.shares(Range::Full, s.n));
    let (watch, _) = s.run([(x0, y0, t0), (x1, y1, t1)], async |p, (x, y, t)| {
        mul::mul(p, AT, &Share::new(x), &Share::<R, Full>::new(y), t).await
    });
    // Both in one message, plane by plane: d, then e.
    let opened = watch.words(s.ring, Range::Full, AT);
    let mut view = View::default();
    for (plane, both) in opened.chunks_exact(2 * s.n).enumerate() {
        view.columns.extend(s.ring.symbols(&format!("d[{plane}]"), plane, &both[..s.n]));
        view.columns.extend(s.ring.symbols(&format!("e[{plane}]"), plane, &both[s.n..]));
    }
    s.correction(&mut view, &sent, s.n, vec![Part::Words(Range::Full)]);
    view
}

fn products<R: Look>(s: &Scene<'_, R>) -> View {
    // Groups of 1x1 products, two with the same right operand.
    let shape = Shape { groups: s.n, m: 1, k: 1, n: 1, uses: 2 };
    let ([t0, t1], sent) = s.dealt(shape);
    let ([x0, x1], [y0, y1]) = (s.shares(Range::Full, s.n), s.shares(Range::Full, s.n));
    let (watch, _) = s.run([(x0, y0, t0), (x1, y1, t1)], async |p, (x, y, t)| {
        let (x, mut operand) = (Share::<R, Full>::new(x), t.operand(Share::new(y)));
        product::product(p, AT, &mut operand, &x).await?;
        product::product(p, message(1), &mut operand, &x).await
    });
    let mut view = View::default();
    for (plane, both) in watch.words(s.ring, Range::Full, AT).chunks_exact(2 * s.n).enumerate() {
        view.columns.extend(s.ring.symbols(&format!("E[{plane}]"), plane, &both[..s.n]));
        view.columns.extend(s.ring.symbols(&format!("F[{plane}]"), plane, &both[s.n..]));
    }
    view.columns.extend(s.ring.look("second E", Range::Full, &watch.words(s.ring, Range::Full, message(1))));
    if !s.who.is_first() {
        let words: Secret<R::Word> = Secret::read(&sent);
        for (plane, both) in words.chunks_exact(2 * s.n).enumerate() {
            view.columns.extend(s.ring.symbols(&format!("C[{plane}]"), plane, &both[..s.n]));
            view.columns.extend(s.ring.symbols(&format!("second C[{plane}]"), plane, &both[s.n..]));
        }
    }
    view
}

fn converted<R: Look>(s: &Scene<'_, R>) -> View {
    let ([m0, m1], sent) = s.dealt(convert::Demand { n: s.n });
    let lifts = R::INTERACTIVE == convert::Interactive::Lift;
    let [x0, x1] = s.shares(if lifts { Range::Reduced } else { Range::Full }, s.n);
    let (watch, _) = s.run([(x0, m0), (x1, m1)], async |p, (x, m)| {
        if lifts {
            return convert::lift(p, AT, &Share::new(x), Some(m)).await.map(Left);
        }
        convert::rescale(p, AT, &Share::new(x), Some(m)).await.map(Right)
    });
    let z = watch.words(s.ring, Range::Reduced, AT);
    let mut view = s.ring.masked("z", &z);
    let rows = s.ring.dealt_planes().flat_map(|p| [Part::Row(p), Part::Row(p)]).collect();
    s.correction(&mut view, &sent, s.n, rows);
    view
}

/// Columns of a comparison: z, the tree, and the last message unless it is what is meant to be seen.
fn compared<R: Look>(s: &Scene<'_, R>, watch: &Watch, rounds: Rounds, last: bool) -> View {
    let tree = Tree::new(s.ring.compare_bits(), rounds);
    let z = watch.words(s.ring, Range::Reduced, AT);
    let mut view = s.ring.masked("z", &z);
    for level in 0..tree.rounds() + usize::from(last) {
        let bits = watch.bits(message(1 + level as u16));
        view.columns.extend(bit_columns(&format!("level {level}"), s.n, &bits));
    }
    view
}

fn signs<R: Look>(s: &Scene<'_, R>, output: SignOutput, rounds: Rounds) -> View {
    let ([c0, c1], sent) = s.dealt(sign::Demand { n: s.n, output, rounds });
    let [x0, x1] = s.shares(Range::Reduced, s.n);
    let (watch, _) = s.run([(x0, c0), (x1, c1)], async |p, (x, c)| {
        let x = Share::<R, Reduced>::new(x);
        match output {
            SignOutput::Bit => sign::is_negative(p, AT, &x, c).await.map(Left),
            SignOutput::Reduced => sign::relu::<R, _, Reduced>(p, AT, &x, c).await.map(|y| Right(Left(y))),
            SignOutput::Full if rounds == Rounds::Balanced => {
                sign::slopes(p, AT, &x, c, Slopes { positive: 3, negative: -2 }).await.map(Left)
            }
            SignOutput::Full => sign::relu_and_sign(p, AT, &x, c).await.map(|both| Right(Right(both))),
        }
    });
    let mut view = compared(s, &watch, rounds, true);
    let tree = Tree::new(s.ring.compare_bits(), rounds);
    let rows = s.ring.rows(output).into_iter().map(|row| Part::Row(row.plane()));
    let rest = [Part::Digits(tree.digits()), Part::Bits(tree.products()), Part::Bits(1)];
    s.correction(&mut view, &sent, s.n, rows.chain(rest).collect());
    view
}

fn opened_signs<R: Look>(s: &Scene<'_, R>, rounds: Rounds) -> View {
    let ([c0, c1], sent) = s.dealt(Comparison { n: s.n, rounds });
    let [x0, x1] = s.shares(Range::Reduced, s.n);
    let (watch, out) = s.run([(x0, c0), (x1, c1)], async |p, (x, c)| {
        sign::open(p, AT, &Share::<R, Reduced>::new(x), c).await
    });
    // The signs are meant to be seen; they are all that the last message tells.
    let negative = s.ring.decode(Range::Reduced, &s.ring.encode(Range::Reduced, &[s.secret]))[0] < 0;
    let honest = s.record.is_none_or(|record| record.borrow().alter.is_none());
    assert!(
        !honest || out.iter().all(|bits| (0..s.n).all(|i| (bits[i / 64] >> (i % 64) & 1 == 1) == negative))
    );
    let mut view = compared(s, &watch, rounds, false);
    let tree = Tree::new(s.ring.compare_bits(), rounds);
    s.correction(
        &mut view,
        &sent,
        s.n,
        vec![Part::Digits(tree.digits()), Part::Bits(tree.products()), Part::Bits(1)],
    );
    view
}

fn shuffled<R: Look>(s: &Scene<'_, R>) -> View {
    let demand = shuffle::Demand { rows: s.n, columns: 1, range: Range::Reduced };
    let ([c0, c1], sent) = s.dealt(demand);
    let [x0, x1] = s.shares(Range::Reduced, s.n);
    let (watch, _) = s.run([(x0, c0), (x1, c1)], async |p, (x, c)| {
        shuffle::shuffle(p, AT, Share::<R, Reduced>::new(x), c).await
    });
    let step = if s.who.is_first() { AT } else { message(1) };
    let masked = watch.words(s.ring, Range::Reduced, step);
    let mut view = s.ring.masked("masked", &masked);
    if !s.who.is_first() {
        // The second half comes in the order of this server's own permutation, which it undoes.
        let words: Secret<R::Word> = Secret::read(&sent);
        let (b, delta) = words.split_at(words.len() / 2);
        view.columns.extend(s.ring.look("b", Range::Reduced, b));
        let order = shuffle::own_order(s.n, &own(), AT);
        let mut undone = delta.to_vec();
        for (from, to) in delta.chunks_exact(s.n).zip(undone.chunks_exact_mut(s.n)) {
            order.iter().zip(from).for_each(|(&row, &word)| to[row as usize] = word);
        }
        view.columns.extend(s.ring.look("a'", Range::Reduced, &undone));
    }
    view
}

/// A server's share of a result as the client receives it, given all that the helper knows.
fn refreshed<R: Look>(s: &Scene<'_, R>) -> View {
    // The pair's seed plays the part of the other one; all that was dealt is constant.
    let pair = &s.prgs[usize::from(s.who.is_first())];
    let [x0, x1] = s.shares(Range::Reduced, s.n);
    let (_, out) =
        s.run([x0, x1], async |p, x| Ok(refresh::refresh(p, AT, pair, Share::<R, Reduced>::new(x))));
    View { columns: s.ring.look("share", Range::Reduced, out[s.who.index()].words()), pivot: None }
}

const ALL: fn(Purpose) -> bool = |_| true;

/// All of them. Purposes are named without a wildcard, so that a new one does not compile until it has its case.
pub fn all<R: Look>() -> Vec<Case<R>> {
    vec![
        Case { name: "share of an input", view: |s| split(s, Purpose::Input), covers: ALL },
        Case { name: "share of a weight", view: |s| split(s, Purpose::Weight), covers: ALL },
        Case { name: "share of a bias", view: |s| split(s, Purpose::Bias), covers: ALL },
        Case { name: "load of a weight", view: load, covers: ALL },
        Case { name: "linear layer", view: linear, covers: ALL },
        Case { name: "multiplication", view: multiply, covers: ALL },
        Case { name: "matrix product", view: products, covers: ALL },
        Case { name: "lift or rescale", view: converted, covers: ALL },
        Case { name: "sign", view: |s| signs(s, SignOutput::Bit, Rounds::Balanced), covers: ALL },
        Case { name: "relu", view: |s| signs(s, SignOutput::Reduced, Rounds::Fewest), covers: ALL },
        Case { name: "slopes", view: |s| signs(s, SignOutput::Full, Rounds::Balanced), covers: ALL },
        Case { name: "relu and sign", view: |s| signs(s, SignOutput::Full, Rounds::Fewest), covers: ALL },
        Case { name: "opened signs", view: |s| opened_signs(s, Rounds::Balanced), covers: ALL },
        Case { name: "opened signs, fewest rounds", view: |s| opened_signs(s, Rounds::Fewest), covers: ALL },
        // The permutations show in what is opened after a shuffle: see `orders`.
        Case { name: "shuffle", view: shuffled, covers: |p| p != Purpose::ShuffleOrder },
        Case { name: "fresh sharing of a result", view: refreshed, covers: ALL },
    ]
}

/// Which case a purpose belongs to, for the table.
pub const fn home(purpose: Purpose) -> Option<&'static str> {
    Some(match purpose {
        Purpose::Input => "share of an input",
        Purpose::Weight => "share of a weight",
        Purpose::Bias => "share of a bias",
        Purpose::WeightMask => "load of a weight",
        Purpose::LinearMask | Purpose::LinearProduct => "linear layer",
        Purpose::CompareMask
        | Purpose::CompareDigits
        | Purpose::TreeMask
        | Purpose::TreeProduct
        | Purpose::FlipBit => "opened signs",
        Purpose::SignMask | Purpose::SignDerived => "slopes",
        Purpose::ConvertMask | Purpose::ConvertDerived => "lift or rescale",
        Purpose::MulLeft | Purpose::MulRight | Purpose::MulProduct => "multiplication",
        Purpose::Rerandomise => "fresh sharing of a result",
        Purpose::ShuffleOrder => "order of a shuffled list",
        Purpose::ShuffleMask | Purpose::ShuffleFirst | Purpose::ShuffleSecond => "shuffle",
        Purpose::ProductLeft | Purpose::ProductRight | Purpose::ProductDealt => "matrix product",
        Purpose::Test => return None,
    })
}
