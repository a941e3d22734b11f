//! Statistics of every view, and that each mask that is left out fails one of them.

use std::collections::BTreeSet;

use super::cases::{Case, Scene, all, home};
use super::{Look, SAMPLES, other, pair};
use crate::prg::insecure::Which;
use crate::prg::{Prg, Purpose, Seed};
use crate::ring::{Moduli, Range, Rns, Z64};
use crate::role::Server;

/// A tiny ring, in which all tables have many samples in every cell.
fn tiny() -> Rns {
    Rns::new(Moduli { p: vec![3, 7], q: vec![5, 11] }).unwrap()
}

/// A ring as models have it, with a tree of several levels.
fn usual() -> Rns {
    Rns::new(Moduli::usual(3, 2).unwrap()).unwrap()
}

/// Words at the edges and between, also such as no honest client sends.
fn secrets<R: Look>(ring: &R) -> [i64; 4] {
    let bound = ring.bound(Range::Reduced);
    [0, 1, -(bound / 3), bound]
}

/// What is lopsided in the view of `who`, for any secret, with the other one's generator as it is.
fn lopsided<R: Look>(ring: &R, who: Server, case: &Case<R>, prg: impl Fn() -> Prg) -> Option<String> {
    secrets(ring).into_iter().find_map(|secret| {
        let prgs = pair(who, prg());
        let view = (case.view)(&Scene { ring, who, prgs: &prgs, secret, n: SAMPLES, record: None });
        view.lopsided().map(|what| format!("{what} (secret {secret})"))
    })
}

#[test]
fn views_are_uniform_whatever_the_secret() {
    fn check<R: Look>(ring: &R) {
        for case in all::<R>() {
            for who in Server::BOTH {
                let found = lopsided(ring, who, &case, other);
                assert_eq!(found, None, "{who}'s view of {} in {ring:?}", case.name);
            }
        }
    }
    check(&tiny());
    check(&usual());
    check(&Z64::new());
}

/// Leaves out every stream of `case` alone, then every purpose; the names of what nothing noticed.
fn survivors<R: Look>(
    ring: &R,
    case: &Case<R>,
    only: fn(Purpose) -> bool,
    killed: &mut BTreeSet<Purpose>,
) -> Vec<String> {
    let mut alive = Vec::new();
    for who in Server::BOTH {
        let prgs = pair(who, other());
        (case.view)(&Scene { ring, who, prgs: &prgs, secret: 0, n: SAMPLES, record: None });
        let streams = prgs[who.peer().index()].insecure_streams();
        let streams: Vec<Which> = streams.into_iter().filter(|w| (case.covers)(w.0) && only(w.0)).collect();
        let mut tell =
            |what: String, purpose: Purpose, prg: &dyn Fn() -> Prg| match lopsided(ring, who, case, prg) {
                Some(why) => {
                    killed.insert(purpose);
                    println!(
                        "{:32} {:26} {what:34} killed: {why}",
                        case.name,
                        format!("{who}'s view without")
                    );
                }
                None => alive.push(format!("{}: {who}'s view without {what}", case.name)),
            };
        for &which in &streams {
            let (purpose, lane, chunk) = which;
            let what = format!("{purpose:?} lane {lane} chunk {chunk}");
            tell(what, purpose, &|| other().insecure_scripted(which, Vec::new()));
        }
        for purpose in streams.iter().map(|w| w.0).collect::<BTreeSet<_>>() {
            tell(format!("all of {purpose:?}"), purpose, &|| other().insecure_without(purpose));
        }
    }
    alive
}

/// The case that looks at what is opened after a shuffle.
const SHUFFLED: &str = "order of a shuffled list";

#[test]
fn mutants_are_killed() {
    let (mut killed, mut alive) = (BTreeSet::new(), Vec::new());
    for case in all::<Rns>() {
        alive.extend(survivors(&tiny(), &case, |_| true, &mut killed));
    }
    for case in all::<Z64>() {
        alive.extend(survivors(&Z64::new(), &case, |_| true, &mut killed));
    }
    // Trees of several levels, where single bits tell.
    let tree = |p| matches!(p, Purpose::TreeMask | Purpose::TreeProduct | Purpose::CompareDigits);
    for case in all::<Rns>() {
        alive.extend(survivors(&usual(), &case, tree, &mut killed));
    }
    // Of a shuffled list: what is opened.
    for who in Server::BOTH {
        let what = format!("{who}'s view without ShuffleOrder");
        if orders::deviates(who, true) {
            killed.insert(Purpose::ShuffleOrder);
            println!("{SHUFFLED:32} {what}: killed: the opened order and places");
        } else {
            alive.push(what);
        }
    }
    assert!(alive.is_empty(), "masks that no test guards: {alive:#?}");
    let cases = all::<Rns>();
    for &purpose in Purpose::ALL {
        let known = |name| cases.iter().any(|case| case.name == name) || name == SHUFFLED;
        assert!(home(purpose).is_none_or(known), "{purpose:?} belongs to no case");
        assert_eq!(killed.contains(&purpose), home(purpose).is_some(), "{purpose:?}");
    }
}

#[test]
fn orders_of_shuffled_lists_are_uniform() {
    for who in Server::BOTH {
        assert!(!orders::deviates(who, false), "given all that {who} knows");
    }
}

/// Orders and places that are opened of three shuffled rows.
mod orders {
    use futures::executor::block_on;
    use futures::future::try_join;

    use super::super::{deviate, links};
    use super::{Prg, Purpose, Seed, Server, tiny};
    use crate::compare::Rounds;
    use crate::correlation::{Ideal, Kind};
    use crate::cost::Ledger;
    use crate::error::Result;
    use crate::order;
    use crate::party::Party;
    use crate::prg::Prg as Generator;
    use crate::ring::{Range, Reduced, Ring, Rns};
    use crate::share::Share;
    use crate::shuffle::{self, Demand};
    use crate::sign::{self, Comparison};
    use crate::step::Step;
    use crate::testing::AT;

    const ROWS: usize = 3;
    const RUNS: u32 = 1800;

    /// Whether what is opened of any list is not uniform over the six permutations, for one that knows all of `who`.
    pub fn deviates(who: Server, without: bool) -> bool {
        let lists: [[i64; ROWS]; 3] = [[1, 2, 3], [3, 1, 2], [-4, 5, 0]];
        lists.iter().any(|list| {
            let mut counts = [[0u32; 6]; 2];
            for run in 0..RUNS {
                let other = Seed::from_bytes([5; 32]).prg(&run.to_le_bytes());
                let other = if without { other.insecure_without(Purpose::ShuffleOrder) } else { other };
                let fixed = Seed::from_bytes([6; 32]).prg(b"own").insecure_constant();
                let prgs = if who.is_first() { [fixed, other] } else { [other, fixed] };
                for (counts, opened) in counts.iter_mut().zip(opened(&tiny(), &prgs, list)) {
                    counts[rank(&opened)] += 1;
                }
            }
            counts.iter().any(|c| deviate(c) > 7.0)
        })
    }

    /// Which of the six it is.
    fn rank(order: &[u32]) -> usize {
        let below = |i: usize| order[i + 1..].iter().filter(|o| **o < order[i]).count();
        2 * below(0) + below(1)
    }

    /// The order of a list, and where its rows belong, both opened after one shuffle each.
    fn opened(ring: &Rns, prgs: &[Prg; 2], list: &[i64; ROWS]) -> [Vec<u32>; 2] {
        let places: Vec<i64> =
            (0..ROWS).map(|i| list.iter().filter(|v| **v > list[i]).count() as i64).collect();
        [order_of(ring, prgs, list), places_of(ring, prgs, &places)]
    }

    fn both<T>(
        ring: &Rns,
        x: &[i64],
        f: impl AsyncFn(&mut Party<'_, Rns, super::super::Watch>, Share<Rns, Reduced>) -> Result<T>,
    ) -> T {
        let [mut a, mut b] = links();
        let mut ledgers = [Ledger::default(), Ledger::default()];
        let [l0, l1] = &mut ledgers;
        let words = ring.encode(Range::Reduced, x);
        let zero = Share::new(vec![0; words.len()]);
        let mut p0 = Party { ring, role: Server::Server0, channel: &mut a, ledger: l0 };
        let mut p1 = Party { ring, role: Server::Server1, channel: &mut b, ledger: l1 };
        let out = block_on(try_join(f(&mut p0, zero), f(&mut p1, Share::new(words))));
        out.expect("runs").0
    }

    /// One server's part of what an ideal dealer deals.
    fn part<K: Kind<Rns>>(ring: &Rns, role: Server, prgs: &[Generator; 2], at: Step, kind: &K) -> K::Part {
        let (both, _) = Ideal::new(ring, [&prgs[0], &prgs[1]]).both(at, kind).expect("no weight");
        let [zero, one] = both;
        if role.is_first() { zero } else { one }
    }

    async fn shuffled(
        p: &mut Party<'_, Rns, super::super::Watch>,
        prgs: &[Generator; 2],
        x: Share<Rns, Reduced>,
    ) -> Result<Share<Rns, Reduced>> {
        let demand = Demand { rows: ROWS, columns: 1, range: Range::Reduced };
        shuffle::shuffle(p, AT, x, part(p.ring, p.role, prgs, AT, &demand)).await
    }

    fn order_of(ring: &Rns, prgs: &[Prg; 2], list: &[i64]) -> Vec<u32> {
        both(ring, list, async |p, x| {
            let (ring, x) = (p.ring, shuffled(p, prgs, x).await?);
            let pairs = order::pairs(ROWS, ROWS)?;
            let [a, b]: [Vec<u32>; 2] =
                [pairs.iter().map(|p| p.0).collect(), pairs.iter().map(|p| p.1).collect()];
            let mut difference = crate::ring::gather(ring.planes(Range::Reduced), &[x.words()], &a);
            ring.sub(
                Range::Reduced,
                &mut difference,
                &crate::ring::gather(ring.planes(Range::Reduced), &[x.words()], &b),
            );
            let at = AT.call(2);
            let demand = Comparison { n: pairs.len(), rounds: Rounds::Balanced };
            let correlation = part(ring, p.role, prgs, at, &demand);
            let smaller = sign::open(p, at, &Share::new(difference), correlation).await?;
            order::descending(at, ROWS, ROWS, &smaller)
        })
    }

    fn places_of(ring: &Rns, prgs: &[Prg; 2], places: &[i64]) -> Vec<u32> {
        both(ring, places, async |p, x| {
            let x = shuffled(p, prgs, x).await?;
            let opened = p.open(AT.call(3), Range::Reduced, x.words().to_vec()).await?;
            shuffle::permutation(AT, &ring.decode(Range::Reduced, &opened))
        })
    }
}
