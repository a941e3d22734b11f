//! A linear layer with a secret, lasting weight: [X] to [X * W + b].
//!
//! Functionality  from [X] and the resident [W], [b] deliver [X * W + b]; reveals nothing.
//! Security       semi-honest, perfect given ideal masks: E = X - A and F = W - B are uniform.
//! Cost           once per load: open F, 1 round, `bytes(Full)` per weight each way. Per run: the helper sends
//!                `bytes(Full)` per output to server 1; online 1 round, `bytes(Full)` per input each way.
//! Source         Beaver, CRYPTO 1991, for a bilinear map, with the mask of the fixed operand kept
//!                (as in SecureML, IEEE S&P 2017, section 4). With one product for each server instead of two
//!                where 2 has an inverse, as derived below.
//!
//! U_i = E/2 + A_i are shares of X, and V_i = F/2 + B_i of W. Their differences U_0 - U_1 = A_0 - A_1 and
//! V_0 - V_1 = B_0 - B_1 are the helper's own, and
//! X * W = 2 U_0 * V_0 + 2 U_1 * V_1 - (U_0 - U_1) * (V_0 - V_1).
//! So the helper deals C = -(A_0 - A_1) * (B_0 - B_1), and share_i = 2U_i * V_i + C_i + b_i with
//! 2U_i = E + 2A_i, in which x_i + A_i needs no opening. In Z_2^64, where nothing can be halved, C = A * B and
//! share_i = E * (B_i + i F) + A_i * F + C_i + b_i.
//!
//! Keeping B is safe because A is fresh in each run: (E, F) of all runs together are uniform.

use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::correlation::{Dealer, Kind, Part, Receiver, SecureRing};
use crate::cost::Cost;
use crate::error::{Error, Result};
use crate::party::Party;
use crate::prg::{Prg, Purpose};
use crate::ring::kernel::Conv;
use crate::ring::{self, Full, Range, Ring};
use crate::role::Server;
use crate::secret::Secret;
use crate::share::{self, Share};
use crate::step::Step;

/// A fixed linear map with secret weights: a convolution (or dense layer) and a bias per output channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Linear {
    /// Shape of the map.
    pub conv: Conv,
    /// Which of the model's weight tensors it applies; each is used by one map only.
    pub weight: u32,
}

impl Linear {
    /// One server's share of A.
    fn draw<R: Ring>(&self, ring: &R, prg: &Prg, step: Step) -> Secret<R::Word> {
        ring.uniform(Range::Full, prg.at(step, Purpose::LinearMask), self.conv.in_len())
    }

    /// Server 0's share of C.
    fn dealt<R: Ring>(&self, ring: &R, prg: &Prg, step: Step) -> Secret<R::Word> {
        ring.uniform(Range::Full, prg.at(step, Purpose::LinearProduct), self.conv.out_len())
    }

    /// Cost of opening F, once per load.
    pub fn load_cost<R: Ring>(&self, ring: &R) -> Cost {
        Cost::online(1, self.conv.weight_len() * ring.bytes(Range::Full))
    }

    const fn load_step(&self) -> Step {
        Step::layer(self.weight)
    }
}

impl<R: SecureRing> Kind<R> for Linear {
    type Part = Masked<R>;

    fn correction_len(&self, ring: &R) -> usize {
        self.conv.out_len() * ring.bytes(Range::Full)
    }

    fn cost(&self, ring: &R) -> Cost {
        Cost::online(1, self.conv.in_len() * ring.bytes(Range::Full)).with_dealt(self.correction_len(ring))
    }

    fn deal(&self, dealer: &Dealer<'_, R>, step: Step) -> Result<Vec<u8>> {
        let (&Dealer { ring, prgs, .. }, mask) = (dealer, dealer.mask(self.weight)?);
        let [mut a, a1] = prgs.map(|prg| self.draw(ring, prg, step));
        match ring.one_half() {
            Some(_) => ring.sub(Range::Full, &mut a, &a1),
            None => ring.add(Range::Full, &mut a, &a1),
        }
        let mut c = Secret::zeroed(self.conv.out_len() * ring.planes(Range::Full));
        ring.apply(&self.conv, &a, &mask.0, &mut c);
        ring.sub(Range::Full, &mut c, &self.dealt(ring, prgs[0], step));
        Ok(share::into_bytes(c))
    }

    /// Everything of a run that does not need the input.
    fn expand(&self, server: &Receiver<'_, R>, step: Step, correction: Secret<u8>) -> Result<Masked<R>> {
        let (&Receiver { ring, role, prg, .. }, resident) = (server, server.weight(self.weight)?);
        let a = self.draw(ring, prg, step);
        let mut rest = match role {
            Server::Server0 => self.dealt(ring, prg, step),
            Server::Server1 => share::from_message(ring, Range::Full, step, correction)?,
        };
        if let Some(opened) = &resident.opened {
            ring.apply(&self.conv, &a, opened, &mut rest);
        }
        add_repeated(ring, &mut rest, &resident.bias);
        Ok(Masked { a, rest })
    }
}

/// A weight at a server: ready for many runs, each with fresh masks.
pub struct Resident<R: Ring> {
    /// F = W - B, known to both servers, where nothing can be halved.
    opened: Option<R::Packed>,
    /// F/2 + B_i or else B_i + i F: this server's share of W under the lasting mask.
    own: R::Packed,
    /// This server's share of the bias, `[c_out]`.
    bias: Secret<R::Word>,
}

/// Opens F = W - B and packs what runs need. `mask` is the generator of this load's seed from the helper.
///
/// # Errors
/// As [`Party::open`].
pub async fn load<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    map: &Linear,
    mask: &Prg,
    weight: Secret<R::Word>,
    bias: Secret<R::Word>,
) -> Result<Resident<R>> {
    let (ring, n) = (party.ring, map.conv.weight_len());
    if weight.len() != n * ring.planes(Range::Full) || bias.len() != map.conv.c_out * ring.planes(Range::Full)
    {
        return Err(Error::Config(format!("weight {} does not have the shape of its layer", map.weight)));
    }
    let own = ring.uniform(Range::Full, mask.at(map.load_step(), Purpose::WeightMask), n);
    load_under(party, map, own, weight, bias).await
}

/// Loads under this server's share of the mask.
async fn load_under<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    map: &Linear,
    mut own: Secret<R::Word>,
    weight: Secret<R::Word>,
    bias: Secret<R::Word>,
) -> Result<Resident<R>> {
    let ring = party.ring;
    let mut masked = weight;
    ring.sub(Range::Full, &mut masked, &own);
    let mut f = party.open(map.load_step(), Range::Full, masked).await?;
    let mut opened = None;
    if let Some(half) = ring.one_half() {
        ring.scale(Range::Full, &mut f, half);
        ring.add(Range::Full, &mut own, &f);
    } else {
        opened = Some(ring.pack(&map.conv, &f));
        if !party.role.is_first() {
            ring.add(Range::Full, &mut own, &f);
        }
    }
    Ok(Resident { opened, own: ring.pack(&map.conv, &own), bias })
}

/// What the helper keeps of the lasting mask of a weight: B_1 - B_0, or B where nothing can be halved.
pub struct Mask<R: Ring>(R::Packed);

impl<R: Ring> Mask<R> {
    /// From the generators of this load's seeds of both servers.
    pub fn new(ring: &R, map: &Linear, masks: [&Prg; 2]) -> Self {
        let n = map.conv.weight_len();
        let [b0, mut b] =
            masks.map(|prg| ring.uniform(Range::Full, prg.at(map.load_step(), Purpose::WeightMask), n));
        match ring.one_half() {
            Some(_) => ring.sub(Range::Full, &mut b, &b0),
            None => ring.add(Range::Full, &mut b, &b0),
        }
        Self(ring.pack(&map.conv, &b))
    }
}

/// One server's correlation for one run.
pub struct Masked<R: Ring> {
    /// A_i.
    a: Secret<R::Word>,
    /// C_i + b_i, and A_i * F where nothing can be halved.
    rest: Secret<R::Word>,
}

/// Adds words of a plane each in `period` to each run of as many elements.
fn add_repeated<R: Ring>(ring: &R, x: &mut [R::Word], period: &[R::Word]) {
    /// Elements at once: many for the kernel, few for the cache.
    const RUN: usize = 1 << 12;
    let planes = ring.planes(Range::Full);
    let (n, len) = (x.len() / planes, period.len() / planes);
    let run = n.min(len * RUN.div_ceil(len));
    let period = Secret::new(ring::repeat(planes, period, run));
    for (plane, x) in x.chunks_exact_mut(n).enumerate() {
        let period = &period[plane * run..(plane + 1) * run];
        x.chunks_mut(run).for_each(|x| ring.add_plane(plane, x, &period[..x.len()]));
    }
}

impl<R: SecureRing> Part for Masked<R> {
    fn bytes(&self) -> usize {
        size_of_val(&*self.a) + size_of_val(&*self.rest)
    }
}

/// The online part.
///
/// # Errors
/// As [`Party::open`].
pub async fn apply<R: Ring, C: Channel>(
    party: &mut Party<'_, R, C>,
    step: Step,
    map: &Linear,
    resident: &Resident<R>,
    x: &Share<R, Full>,
    correlation: Masked<R>,
) -> Result<Share<R, Full>> {
    let ring = party.ring;
    let Masked { mut a, rest: mut out } = correlation;
    let mut masked = Secret::copied(x.words());
    ring.sub(Range::Full, &mut masked, &a);
    if resident.opened.is_some() {
        let e = party.open(step, Range::Full, masked).await?;
        ring.apply(&map.conv, &e, &resident.own, &mut out);
    } else {
        // E + 2A_i = (x_i + A_i) + (x_j - A_j).
        ring.add(Range::Full, &mut a, x.words());
        let other = party.swap(step, Range::Full, masked).await?;
        ring.add(Range::Full, &mut a, &other);
        ring.apply(&map.conv, &a, &resident.own, &mut out);
    }
    Ok(Share::new(out))
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::correlation::Ideal;
    use crate::testing::{AT, numbers, prgs, rings, run, shares, shift};

    const MAP: Linear = Linear {
        conv: Conv {
            n: 1,
            h: 5,
            w: 6,
            c_in: 4,
            c_out: 6,
            kernel: [3, 2],
            stride: [2, 1],
            pad: [1, 0, 1, 1],
            dilation: [1, 2],
            groups: 2,
        },
        weight: 7,
    };

    fn naive(c: &Conv, x: &[i64], w: &[i64], bias: &[i64]) -> Vec<i64> {
        let mut out = Vec::new();
        let (ci, co) = (c.c_in / c.groups, c.c_out / c.groups);
        for (oy, ox) in (0..c.out_h()).flat_map(|y| (0..c.out_w()).map(move |x| (y, x))) {
            for o in 0..c.c_out {
                let mut sum = bias[o];
                for (ky, kx) in (0..c.kernel[0]).flat_map(|y| (0..c.kernel[1]).map(move |x| (y, x))) {
                    let y = (oy * c.stride[0] + ky * c.dilation[0]).wrapping_sub(c.pad[0]);
                    let xx = (ox * c.stride[1] + kx * c.dilation[1]).wrapping_sub(c.pad[1]);
                    if y < c.h && xx < c.w {
                        for i in 0..ci {
                            sum += x[(y * c.w + xx) * c.c_in + o / co * ci + i]
                                * w[((o * c.kernel[0] + ky) * c.kernel[1] + kx) * ci + i];
                        }
                    }
                }
                out.push(sum);
            }
        }
        out
    }

    /// Loads a weight at both servers, prepares and runs; gives the result and what it should be.
    fn go<R: SecureRing>(ring: &R, bound: i64, map: &Linear) -> [Vec<i64>; 2] {
        let w = numbers(1, map.conv.weight_len(), bound);
        let x = numbers(2, map.conv.in_len(), bound);
        let bias = numbers(3, map.conv.c_out, bound);
        let want = naive(&map.conv, &x, &w, &bias);
        let masks = prgs(20);
        let mask = Mask::new(ring, map, [&masks[0], &masks[1]]);
        let [w0, w1] = shares::<R, Full>(ring, 4, &w);
        let [b0, b1] = shares::<R, Full>(ring, 5, &bias);
        let inputs = [(w0, b0, &masks[0]), (w1, b1, &masks[1])];
        let loaded =
            run(ring, inputs, async |p, (w, b, m)| load(p, map, m, w.into_words(), b.into_words()).await);
        let loaded = loaded.unwrap();
        loaded.assert_priced(map.load_cost(ring));

        let seeds = prgs(30);
        let map = &Linear { weight: 0, ..*map };
        let [l0, l1] = &loaded.out;
        let dealer = Dealer { ring, prgs: [&seeds[0], &seeds[1]], masks: &[mask] };
        let ideal = Ideal { dealer, weights: [from_ref(l0), from_ref(l1)] };
        let ([k0, k1], correction) = ideal.both(AT, map).unwrap();
        assert_eq!(correction.len() as u64, map.cost(ring).dealt);
        let [x0, x1] = shares::<R, Full>(ring, 6, &x);
        let out =
            run(ring, [(x0, k0, l0), (x1, k1, l1)], async |p, (x, k, l)| apply(p, AT, map, l, &x, k).await);
        let out = out.unwrap();
        out.assert_priced(map.cost(ring));
        [out.join(ring), want]
    }

    #[test]
    fn correct_and_priced() {
        fn check<R: SecureRing>(ring: &R) {
            // The largest numbers whose products still fit.
            let bound = f64::sqrt(ring.bound(Range::Full) as f64 / 40.0) as i64;
            for map in [MAP, Linear { conv: Conv::dense(3, 17, 5), weight: 0 }] {
                let [out, want] = go(ring, bound, &map);
                assert_eq!(out, want);
            }
        }
        rings(check, check);
    }

    #[test]
    fn simulatable() {
        fn check<R: SecureRing>(ring: &R) {
            let (nx, nw) = (MAP.conv.in_len(), MAP.conv.weight_len());
            let masks = prgs(20);
            let view = |shifted: bool| {
                // What server 0 sees of the weights: moving W and B alike leaves F as it is.
                let [w0, w1] = shares::<R, Full>(ring, 4, &numbers(1, nw, 99));
                let mut w1 = w1.into_words();
                let [b0, mut b1] = [0, 1].map(|i: usize| {
                    ring.uniform(Range::Full, masks[i].at(MAP.load_step(), Purpose::WeightMask), nw)
                });
                if shifted {
                    let by = numbers(9, nw, 99);
                    shift(ring, Range::Full, &mut w1, &by);
                    shift(ring, Range::Full, &mut b1, &by);
                }
                let bias = || Secret::zeroed(MAP.conv.c_out * ring.planes(Range::Full));
                let inputs = [(b0, w0.into_words(), bias()), (b1, w1, bias())];
                let loaded =
                    run(ring, inputs, async |p, (own, w, b)| load_under(p, &MAP, own, w, b).await).unwrap();
                let [l0, l1] = loaded.out;
                let seeds = prgs(30);
                let [x0, x1] = shares::<R, Full>(ring, 6, &numbers(2, nx, 99));
                let mut x1 = x1.into_words();
                let map = Linear { weight: 0, ..MAP };
                let server = |role: Server, loaded| Receiver {
                    ring,
                    role,
                    prg: &seeds[role.index()],
                    weights: from_ref(loaded),
                };
                let k0 = server(Server::Server0, &l0).receive(AT, &map, vec![]).unwrap();
                let zeros = vec![0; map.correction_len(ring)];
                let mut k1 = server(Server::Server1, &l1).receive(AT, &map, zeros).unwrap();
                if shifted {
                    shift(ring, Range::Full, &mut x1, &numbers(8, nx, 99));
                    shift(ring, Range::Full, &mut k1.a, &numbers(8, nx, 99));
                }
                let inputs = [(x0, k0, &l0), (Share::new(x1), k1, &l1)];
                let out = run(ring, inputs, async |p, (x, k, l)| apply(p, AT, &map, l, &x, k).await).unwrap();
                (loaded.views[0].clone(), out.views[0].clone())
            };
            assert_eq!(view(false), view(true));
        }
        rings(check, check);
    }

    #[test]
    fn weights_of_another_shape_are_refused() {
        let ring = crate::ring::Z64::new();
        let m = prgs(1);
        let out = run(&ring, [&m[0], &m[1]], async |p, m| {
            load(p, &MAP, m, Secret::zeroed(3), Secret::zeroed(6)).await
        });
        assert!(matches!(out, Err(Error::Config(_))));
    }
}
