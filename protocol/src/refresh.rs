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
    use crate::ring::Reduced;
    use crate::testing::{AT, numbers, rings, run, shares};

    #[test]
    fn numbers_stay_and_shares_change() {
        fn check<R: Ring>(ring: &R) {
            let x = numbers(1, 200, 1000);
            let before = shares::<R, Reduced>(ring, 2, &x);
            let out = run(ring, before.clone(), async |p, x| {
                let pair = agree(p).await?.prg(b"session");
                Ok(refresh(p, AT, &pair, x))
            });
            let out = out.unwrap();
            out.assert_priced(cost());
            for (after, before) in out.out.iter().zip(&before) {
                assert_ne!(after.words(), before.words());
            }
            assert_eq!(out.join(ring), x);
        }
        rings(check, check);
    }
}
