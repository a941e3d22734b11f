//! A fresh sharing of a result, before it leaves for the client.
//!
//! Functionality  from [x] deliver [x] anew, uniform given all that the helper knows.
//! Security       the servers share a seed that the helper never saw; server 0 adds what it expands to, server 1
//!                subtracts it. Without this the client's shares would still contain masks that the helper dealt,
//!                and a client together with the helper could undo them.
//! Cost           to agree on the seed, once per load: 1 round, 32 bytes each way. Per run: nothing.
//! Source         pseudorandom zero sharing, Cramer, Damgård, Ishai, TCC 2005.

use crate::channel::Channel;
use crate::cost::Cost;
use crate::error::{Error, Result};
use crate::party::Party;
use crate::prg::{Prg, Purpose, Seed};
use crate::ring::{Domain, Ring};
use crate::share::Share;
use crate::step::Step;

/// Where the seed is agreed on: no weight of a load has this number.
const AGREE: Step = Step::layer(u32::MAX);

/// Cost of [`agree`].
pub const fn cost() -> Cost {
    Cost::online(1, 32)
}

/// A seed that both servers know and nobody else: the sum of what each draws.
///
/// # Errors
/// As [`Channel`]; [`Error::Config`] without entropy.
pub async fn agree<R: Ring, C: Channel>(party: &mut Party<'_, R, C>) -> Result<Seed> {
    let own = Seed::random().map_err(|e| Error::Config(format!("the system gives no randomness: {e}")))?;
    let other = party.exchange(AGREE, own.as_bytes().to_vec()).await?;
    let mut sum = *own.as_bytes();
    sum.iter_mut().zip(other.iter()).for_each(|(a, b)| *a ^= b);
    Ok(Seed::from_bytes(sum))
}

/// This server's share of the same numbers, re-randomised. `step` must be used for nothing else under `pair`,
/// the generator of the agreed seed in this run.
pub fn refresh<R: Ring, C, D: Domain>(
    party: &Party<'_, R, C>,
    step: Step,
    pair: &Prg,
    mut x: Share<R, D>,
) -> Share<R, D> {
    let ring = party.ring;
    let zero = ring.uniform(D::RANGE, pair.at(step, Purpose::Rerandomise), x.len(ring));
    if party.role.is_first() {
        ring.add(D::RANGE, x.words_mut(), &zero);
    } else {
        ring.sub(D::RANGE, x.words_mut(), &zero);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privacy::{Look, lopsided};
    use crate::ring::{Reduced, Z64};
    use crate::testing::{AT, rings, run};

    #[test]
    fn numbers_stay_and_shares_are_uniform() {
        fn check<R: Look>(ring: &R) {
            // Shares that tell everything: server 0 holds the numbers, server 1 holds zeros.
            let x = vec![5; 1 << 14];
            let told = ring.encode(Reduced::RANGE, &x);
            let zeros = vec![bytemuck::Zeroable::zeroed(); told.len()];
            assert!(lopsided(ring, Reduced::RANGE, &told).is_some());
            let out = run(ring, [told, zeros].map(Share::<R, Reduced>::new), async |p, x| {
                let pair = agree(p).await?.prg(b"session");
                Ok(refresh(p, AT, &pair, x))
            });
            let out = out.unwrap();
            out.assert_priced(cost());
            for share in &out.out {
                assert_eq!(lopsided(ring, Reduced::RANGE, share.words()), None);
            }
            assert_eq!(out.join(ring), x);
        }
        rings(check, check);
    }

    #[test]
    fn both_decide_on_the_seed() {
        // What is agreed on is neither what one of them drew nor anything fixed.
        let ring = Z64::new();
        let mut bytes = Vec::new();
        for _ in 0..256 {
            let out = run(&ring, [(), ()], async |p, ()| agree(p).await).unwrap();
            let [a, b] = &out.out;
            assert_eq!(a.as_bytes(), b.as_bytes());
            let [from_1, from_0] = &out.views;
            let sum: Vec<u8> = from_0.iter().zip(from_1).map(|(a, b)| a ^ b).collect();
            assert_eq!(a.as_bytes()[..], sum);
            bytes.extend(from_0.iter().zip(from_1).map(|(&a, &b)| u64::from(a) << 60 | u64::from(b) & 15));
        }
        // Of both, a nibble each: uniform alone and together.
        assert_eq!(lopsided(&ring, Reduced::RANGE, &bytes), None);
    }
}
