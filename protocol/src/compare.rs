//! The comparison gate: a public z against a dealt secret r, [z < r] as XOR shares.
//!
//! Functionality  from public z and dealt shares of r deliver XOR shares of [z < r]; reveals nothing.
//! Security       semi-honest, perfect given the dealt shares: each opened bit carries a fresh mask.
//! Cost           one round per level of the tree; bits as [`Tree::opened`] counts them, each plane of `n`
//!                bits padded to a byte. Dealt: 2 bytes per digit and element, and [`Tree::products`] planes.
//! Source         one-hot digits after the table look-ups of Dessouky et al., NDSS 2017; the merging tree
//!                with many-input ANDs after Patra et al., ABY2.0, USENIX Security 2021, section 3.
//!
//! r is split into digits of 4 bits. The helper deals XOR shares of the one-hot vector of each digit, so
//! [digits equal] is the entry at z's digit and [z's digit < r's] the XOR of the entries above it, both local.
//! Groups of digits are merged, most significant first:
//! lt = lt_3 ^ e_3 lt_2 ^ e_3 e_2 lt_1 ^ e_3 e_2 e_1 lt_0 and eq = e_3 e_2 e_1 e_0. Every input of an AND is
//! opened once under a mask; the helper deals the products of masks which the terms need.

use std::ops::Range;
use std::sync::Arc;

use crate::bits;
use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::party::Party;
use crate::prg::{Prg, Purpose};
use crate::ring::{Ring, par};
use crate::role::Server;
use crate::secret::{Secret, Within};
use crate::step::Step;

/// How digits are merged: groups by level, from the least significant digit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    digits: usize,
    levels: Vec<Vec<Group>>,
}

/// What the number of rounds is traded for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounds {
    /// One or two levels, fewest bytes: for links of short delay.
    #[default]
    Balanced,
    /// One level wherever at most eight digits are compared: for links of long delay.
    Fewest,
}

/// Neighbouring inputs that one level merges into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    /// First input.
    start: usize,
    /// Number of inputs.
    size: usize,
}

impl Group {
    /// The group with the least significant input needs no equality: nothing lies below it.
    const fn lowest(self) -> bool {
        self.start == 0
    }

    /// Opened planes: the equalities, then the less-thans of all inputs but the top one.
    const fn opened(self) -> usize {
        self.equalities() + self.size - 1
    }

    /// Equalities that take part, from the top input down.
    const fn equalities(self) -> usize {
        if self.lowest() { self.size - 1 } else { self.size }
    }

    /// The terms: bit masks over the opened planes (equalities from the top down at bits 0.., less-thans
    /// from the second input down behind them). The last one, if any, is the group's equality.
    fn terms(self) -> Vec<u32> {
        let e = self.equalities();
        let mut terms: Vec<u32> = (1..self.size).map(|j| ((1 << j) - 1) | 1 << (e + j - 1)).collect();
        if !self.lowest() {
            terms.push((1 << e) - 1);
        }
        terms
    }

    /// The products of two masks or more that the terms need, each once, in ascending order.
    fn products(self) -> Vec<u32> {
        let mut all: Vec<u32> = self
            .terms()
            .into_iter()
            .flat_map(|t| (1..=t).filter(move |s| s & t == *s))
            .filter(|s| s.count_ones() > 1)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

impl Tree {
    /// For numbers of `bits` bits.
    pub fn new(bits: u32, rounds: Rounds) -> Self {
        let digits = bits.div_ceil(4) as usize;
        let widest = if rounds == Rounds::Fewest && digits <= 8 { 8 } else { 4 };
        let mut levels = Vec::new();
        let mut inputs = digits;
        while inputs > 1 {
            let groups = inputs.div_ceil(widest);
            // As even as possible, the smaller ones at the top, where equalities are needed.
            let (size, larger) = (inputs / groups, inputs % groups);
            let mut start = 0;
            levels.push(
                (0..groups)
                    .map(|g| {
                        let group = Group { start, size: size + usize::from(g < larger) };
                        start += group.size;
                        group
                    })
                    .collect(),
            );
            inputs = groups;
        }
        Self { digits, levels }
    }

    /// Digits of 4 bits.
    pub const fn digits(&self) -> usize {
        self.digits
    }

    /// Rounds.
    pub fn rounds(&self) -> usize {
        self.levels.len()
    }

    fn groups(&self) -> impl Iterator<Item = Group> {
        self.levels.iter().flatten().copied()
    }

    /// Bits opened per element, over all levels.
    pub fn opened(&self) -> usize {
        self.groups().map(Group::opened).sum()
    }

    /// Products of masks dealt per element.
    pub fn products(&self) -> usize {
        self.groups().map(|g| g.products().len()).sum()
    }

    /// Bytes that each server sends for `n` comparisons.
    pub fn bytes(&self, n: usize) -> usize {
        self.opened() * bits::bytes(n)
    }

    /// Bytes of the helper's correction for `n` comparisons.
    pub fn correction_len(&self, n: usize) -> usize {
        2 * self.digits * n + self.products() * bits::bytes(n)
    }
}

/// One server's random masks of the opened bits, a plane for each.
pub fn draw_masks(tree: &Tree, n: usize, prg: &Prg, step: Step) -> Secret<u64> {
    let mut masks = Secret::zeroed(tree.opened() * bits::words(n));
    fill_planes(&mut masks, n, prg, step, Purpose::TreeMask);
    masks
}

fn fill_planes(planes: &mut [u64], n: usize, prg: &Prg, step: Step, purpose: Purpose) {
    let w = bits::words(n).max(1);
    par::each(w, planes.chunks_exact_mut(w).enumerate(), |(plane, out)| {
        // More planes than the plane field counts spill into the chunk field.
        prg.stream(step, purpose, plane % 256, plane / 256).fill(bytemuck::cast_slice_mut(out));
    });
}

fn draw_digits(digits: usize, n: usize, prg: &Prg, step: Step) -> Secret<u16> {
    let mut out = Secret::zeroed(digits * n);
    par::each(n, out.chunks_exact_mut(n.max(1)).enumerate(), |(plane, out)| {
        prg.stream(step, Purpose::CompareDigits, plane, 0).fill(bytemuck::cast_slice_mut(out));
    });
    out
}

/// One server's shares for `n` comparisons.
pub struct Dealt {
    tree: Tree,
    /// One-hot vectors, digit by digit.
    digits: Within<u16>,
    /// Shares of the masks of the opened bits, plane by plane.
    masks: Secret<u64>,
    /// Shares of their products, plane by plane.
    products: Secret<u64>,
}

impl Dealt {
    /// Rounds of the tree.
    pub fn rounds(&self) -> usize {
        self.tree.rounds()
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.digits) + size_of_val(&*self.masks) + size_of_val(&*self.products)
    }
}

/// The helper's part: appends the correction for server 1 to `out`. `r` are the numbers, `masks` the sums of
/// both servers' masks, `prg` the generator shared with server 0.
pub fn deal<R: Ring>(
    ring: &R,
    tree: &Tree,
    r: &[R::Compared],
    masks: &[u64],
    prg: &Prg,
    step: Step,
    out: &mut Vec<u8>,
) {
    let (n, w) = (r.len(), bits::words(r.len()));
    if n == 0 {
        return;
    }
    let mut digits = draw_digits(tree.digits, n, prg, step);
    par::each(n, digits.chunks_exact_mut(n.max(1)).enumerate(), |(d, plane)| {
        for (share, &r) in plane.iter_mut().zip(r) {
            *share ^= 1 << ring.digit(r, 4 * d as u32);
        }
    });
    out.extend_from_slice(bytemuck::cast_slice(&digits));

    let mut products = Secret::zeroed(tree.products() * w);
    fill_planes(&mut products, n, prg, step, Purpose::TreeProduct);
    let mut planes = products.chunks_exact_mut(w.max(1));
    let mut first = 0;
    for group in tree.groups() {
        for set in group.products() {
            let plane = planes.next().expect("a plane for each product");
            let mut product = Secret::new(vec![!0u64; w]);
            for v in members(set) {
                let mask = &masks[(first + v) * w..(first + v + 1) * w];
                product.iter_mut().zip(mask).for_each(|(p, m)| *p &= m);
            }
            plane.iter_mut().zip(product.iter()).for_each(|(p, m)| *p ^= m);
        }
        first += group.opened();
    }
    out.extend(bits::pack(&products, n));
}

/// One server's shares around its `masks`; `sent` are the [`Tree::correction_len`] bytes of the helper's
/// `correction` that are for this, none at server 0.
pub(crate) fn prepare(
    tree: &Tree,
    n: usize,
    role: Server,
    prg: &Prg,
    step: Step,
    masks: Secret<u64>,
    (correction, sent): (&Arc<Secret<u8>>, Range<usize>),
) -> Dealt {
    let (digits, products) = match role {
        Server::Server0 => {
            let mut products = Secret::zeroed(tree.products() * bits::words(n));
            fill_planes(&mut products, n, prg, step, Purpose::TreeProduct);
            (Within::Own(draw_digits(tree.digits, n, prg, step)), products)
        }
        Server::Server1 => {
            let middle = sent.start + 2 * tree.digits * n;
            let products = bits::unpack(&correction[middle..sent.end], n);
            let products = products.expect("the length was checked on receipt");
            (Within::new(correction, sent.start..middle), products.into())
        }
    };
    Dealt { tree: tree.clone(), digits, masks, products }
}

fn members(set: u32) -> impl Iterator<Item = usize> {
    (0..32).filter(move |v| set >> v & 1 == 1)
}

/// Shares of [z < r]. Messages are numbered from `step` on, one a level.
///
/// # Errors
/// As [`Channel`].
pub async fn less_than<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    z: &[R::Compared],
    dealt: Dealt,
) -> Result<Secret<u64>> {
    let (n, w) = (z.len(), bits::words(z.len()));
    let Dealt { tree, digits, masks, products } = dealt;
    let (mut eq, mut lt) = leaves(party.ring, &tree, z, &digits);
    let (mut masks, mut products) = (&masks[..], &products[..]);
    for (level, groups) in tree.levels.iter().enumerate() {
        let inputs = opened_planes(groups, &eq, &lt, w);
        let used = inputs.len();
        let (mask, rest) = masks.split_at(used);
        masks = rest;
        let mut delta = inputs;
        delta.iter_mut().zip(mask).for_each(|(x, m)| *x ^= m);
        let at = step.message(step.to_bits() as u16 + level as u16);
        let received = party.exchange(at, bits::pack(&delta, n)).await?;
        let other = bits::unpack(&received, n).filter(|o| o.len() == used).ok_or_else(|| Error::Peer {
            step: at,
            expected: "planes of bits".into(),
            found: "another length".into(),
        })?;
        let other = Secret::new(other);
        delta.iter_mut().zip(other.iter()).for_each(|(a, b)| *a ^= b);
        let (mut next_eq, mut next_lt) = (Vec::new(), Vec::new());
        let mut first = 0;
        for &group in groups {
            let planes = group.products().len();
            let (own, rest) = products.split_at(planes * w);
            products = rest;
            let range = first * w..(first + group.opened()) * w;
            let terms = evaluate(group, party.role, &delta[range.clone()], &mask[range], own, w);
            let top = (group.start + group.size - 1) * w;
            let mut out_lt = lt[top..top + w].to_vec();
            for term in &terms[..group.size - 1] {
                out_lt.iter_mut().zip(term.iter()).for_each(|(a, b)| *a ^= b);
            }
            next_lt.extend(out_lt);
            match terms.get(group.size - 1) {
                Some(eq) => next_eq.extend_from_slice(eq),
                None => next_eq.resize(next_eq.len() + w, 0),
            }
            first += group.opened();
        }
        (eq, lt) = (next_eq.into(), next_lt.into());
    }
    Ok(lt)
}

/// Shares of [digit = r's digit] and [digit < r's digit], plane by plane.
fn leaves<R: Ring>(ring: &R, tree: &Tree, z: &[R::Compared], digits: &[u16]) -> (Secret<u64>, Secret<u64>) {
    let (n, w) = (z.len(), bits::words(z.len()));
    let (mut eq, mut lt) = (Secret::zeroed(tree.digits * w), Secret::zeroed(tree.digits * w));
    let planes = eq.chunks_exact_mut(w.max(1)).zip(lt.chunks_exact_mut(w.max(1))).enumerate();
    par::each(n, planes, |(d, (eq, lt))| {
        ring.lookup(z, 4 * d as u32, &digits[d * n..(d + 1) * n], eq, lt);
    });
    (eq, lt)
}

/// The bits a level opens: for each group its equalities from the top down, then its less-thans from the
/// second input down.
fn opened_planes(groups: &[Group], eq: &[u64], lt: &[u64], w: usize) -> Secret<u64> {
    let mut out = Vec::new();
    for g in groups {
        let top = g.start + g.size - 1;
        for j in 0..g.equalities() {
            out.extend_from_slice(&eq[(top - j) * w..(top - j + 1) * w]);
        }
        for j in 1..g.size {
            out.extend_from_slice(&lt[(top - j) * w..(top - j + 1) * w]);
        }
    }
    out.into()
}

/// Shares of the group's terms. A product of opened-and-masked bits is multilinear in the masks:
/// prod (delta_v ^ m_v) = XOR over subsets S of prod_{v not in S} delta_v * prod_{v in S} m_v.
fn evaluate(
    group: Group,
    role: Server,
    delta: &[u64],
    mask: &[u64],
    products: &[u64],
    w: usize,
) -> Vec<Secret<u64>> {
    let sets = group.products();
    group
        .terms()
        .into_iter()
        .map(|term| {
            let vars: Vec<usize> = members(term).collect();
            // Where the share of each subset's product lies.
            let place = |s: usize| -> Option<(&[u64], usize)> {
                let set = vars
                    .iter()
                    .enumerate()
                    .filter(|(i, _)| s >> i & 1 == 1)
                    .fold(0, |set, (_, v)| set | 1 << v);
                match s.count_ones() {
                    0 => None,
                    1 => Some((mask, vars[s.trailing_zeros() as usize] * w)),
                    _ => Some((products, sets.binary_search(&set).expect("a needed product") * w)),
                }
            };
            let places: Vec<_> = (0..1 << vars.len()).map(place).collect();
            let mut out = Secret::zeroed(w);
            let mut table = vec![0u64; places.len()];
            for (i, out) in out.iter_mut().enumerate() {
                for (t, place) in table.iter_mut().zip(&places) {
                    *t = place.map_or(if role.is_first() { !0 } else { 0 }, |(from, at)| from[at + i]);
                }
                // Fold one variable at a time: T[S] = T[S + v] ^ delta_v T[S].
                for (v, var) in vars.iter().enumerate().rev() {
                    let d = delta[var * w + i];
                    let half = 1 << v;
                    for s in 0..half {
                        table[s] = table[s + half] ^ d & table[s];
                    }
                }
                *out = table[0];
            }
            out
        })
        .collect()
}

#[cfg(test)]
impl Dealt {
    /// The same with other shares of the masks.
    pub fn with_masks(self, masks: Secret<u64>) -> Self {
        Self { masks, ..self }
    }
}

/// All bits that are opened, unmasked, and [z < r], computed in the clear.
#[cfg(test)]
pub fn wires<R: Ring>(ring: &R, tree: &Tree, z: &[R::Compared], r: &[R::Compared]) -> (Vec<u64>, Vec<u64>) {
    let (n, w) = (z.len(), bits::words(z.len()));
    let (mut eq, mut lt) = (vec![0; tree.digits * w], vec![0; tree.digits * w]);
    for (d, i) in (0..tree.digits).flat_map(|d| (0..n).map(move |i| (d, i))) {
        let (a, b) = (ring.digit(z[i], 4 * d as u32), ring.digit(r[i], 4 * d as u32));
        eq[d * w + i / 64] |= u64::from(a == b) << (i % 64);
        lt[d * w + i / 64] |= u64::from(a < b) << (i % 64);
    }
    let mut all = Vec::new();
    for groups in &tree.levels {
        all.extend_from_slice(&opened_planes(groups, &eq, &lt, w));
        let (mut next_eq, mut next_lt) = (Vec::new(), Vec::new());
        for g in groups {
            for i in 0..w {
                let inputs = (g.start..g.start + g.size).map(|j| (eq[j * w + i], lt[j * w + i]));
                let (e, l) = inputs.fold((!0, 0), |(e, l), (eq, lt)| (e & eq, lt | eq & l));
                next_eq.push(e);
                next_lt.push(l);
            }
        }
        // Plane by plane already, since groups are visited in order.
        (eq, lt) = (next_eq, next_lt);
    }
    (all, lt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_as_documented() {
        // digits, rounds, opened bits, products
        for (bits, rounds, want) in [
            (16, Rounds::Balanced, (4, 1, 6, 15)),
            (24, Rounds::Balanced, (6, 2, 11, 14)),
            (24, Rounds::Fewest, (6, 1, 10, 83)),
            (32, Rounds::Balanced, (8, 2, 15, 38)),
            (63, Rounds::Balanced, (16, 2, 33, 96)),
        ] {
            let t = Tree::new(bits, rounds);
            assert_eq!((t.digits(), t.rounds(), t.opened(), t.products()), want, "{bits} bits, {rounds:?}");
        }
    }
}
