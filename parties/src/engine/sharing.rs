//! The ends that see numbers: the owner splits weights, the client splits an image and joins a result.

use sharelens_models::config::Preprocess;
use sharelens_models::{Arithmetic, Manifest};
use sharelens_ops::plain::Weights;
use sharelens_protocol::correlation::SecureRing;
use sharelens_protocol::prg::{Purpose, Seed};
use sharelens_protocol::ring::{Range, Rns, Z64};
use sharelens_protocol::{Server, Step, share};
use zeroize::Zeroizing;

use super::{IMAGE, WEIGHTS};
use crate::client::SharedImage;
use crate::codec;
use crate::error::{Error, Result};
use crate::outcome::Ranges;

/// A manifest as it travels.
///
/// # Errors
/// [`Error::Internal`] if it is too long.
pub fn encode_manifest(manifest: &Manifest) -> Result<Vec<u8>> {
    codec::encode_value(manifest).map_err(|codec::Bad(e)| Error::Internal(e))
}

/// Runs `$body` in the ring of a manifest.
macro_rules! with_ring {
    ($manifest:expr, |$ring:ident| $body:expr) => {
        match &$manifest.arithmetic {
            Arithmetic::Rns(moduli) => {
                let $ring = &Rns::new(moduli.clone())?;
                $body
            }
            Arithmetic::Z64 => {
                let $ring = &Z64::new();
                $body
            }
        }
    };
}

/// Splits weights, by the index of the manifest's linear maps: server 0 expands the seed, server 1 gets the
/// bytes.
///
/// # Errors
/// [`Error::Internal`] without entropy, or if the weights are another model's.
pub fn share_weights(manifest: &Manifest, weights: &[Weights]) -> Result<(Seed, Zeroizing<Vec<u8>>)> {
    with_ring!(manifest, |ring| split_weights(ring, manifest, weights))
}

fn split_weights<R: SecureRing>(
    ring: &R,
    manifest: &Manifest,
    weights: &[Weights],
) -> Result<(Seed, Zeroizing<Vec<u8>>)> {
    let seed = fresh_seed()?;
    let prg = seed.prg(WEIGHTS);
    let maps = manifest.program.linear_maps();
    let mut words = Zeroizing::new(Vec::new());
    if maps.len() != weights.len() {
        return Err(Error::Internal(format!("{} weights for {} layers", weights.len(), maps.len())));
    }
    for (map, w) in maps.iter().zip(weights) {
        if w.values.len() != map.conv.weight_len() || w.bias.len() != map.conv.c_out {
            return Err(Error::Internal(format!("weight {} has another shape", map.weight)));
        }
        for (purpose, values) in [(Purpose::Weight, &w.values), (Purpose::Bias, &w.bias)] {
            let part = share::split(ring, Range::Full, &prg, Step::layer(map.weight), purpose, values);
            words.extend_from_slice(&Zeroizing::new(share::to_bytes(&part)));
        }
    }
    Ok((seed, words))
}

/// Splits an input (real numbers in the program's order), fresh randomness each time.
///
/// # Errors
/// [`Error::Config`] if the input has another length than the model's, or if it cannot come from a picture: ranges were
/// proved for pictures alone.
pub fn share_image(manifest: &Manifest, input: &[f32]) -> Result<SharedImage> {
    let program = &manifest.program;
    if input.len() != program.input_len() {
        let reason = format!("has {} numbers, the model takes {}", input.len(), program.input_len());
        return Err(Error::Config { file: "the image".into(), reason });
    }
    if let Some(range) = manifest.config.preprocess.as_ref().map(Preprocess::range) {
        // Rounding to single precision moves black and white a little.
        let fits = |(v, (lo, hi)): (&f32, &(f64, f64))| {
            let slack = 1e-5 * (hi - lo).max(lo.abs()).max(hi.abs());
            (lo - slack..=hi + slack).contains(&f64::from(*v))
        };
        if let Some(at) = input.iter().zip(range.iter().cycle()).position(|pair| !fits(pair)) {
            // Which number, not what it is: errors end up in logs.
            let reason = format!("number {at} is one that no picture becomes by this model's preprocessing");
            return Err(Error::Config { file: "the image".into(), reason });
        }
    }
    let numbers = Zeroizing::new(program.encode(input));
    let seed = fresh_seed()?;
    let prg = seed.prg(IMAGE);
    with_ring!(manifest, |ring| {
        let words = share::split(ring, Range::Full, &prg, Step::layer(0), Purpose::Input, &numbers);
        let output_bytes = program.results_len() * bytes(ring, Range::Reduced);
        Ok(SharedImage { seed, words: Zeroizing::new(share::to_bytes(&words)), output_bytes })
    })
}

/// What `server` sees of an image: the first plane of its share, a byte for each number of the input, in the
/// program's order. For pictures that show that there is nothing to see.
///
/// # Errors
/// [`Error::Protocol`] if the manifest's moduli are not usable.
pub fn view(manifest: &Manifest, shared: &SharedImage, server: Server) -> Result<Vec<u8>> {
    with_ring!(manifest, |ring| Ok(first_plane(ring, manifest.program.input_len(), shared, server)))
}

fn first_plane<R: SecureRing>(ring: &R, n: usize, shared: &SharedImage, server: Server) -> Vec<u8> {
    let word = size_of::<R::Word>();
    let words = match server {
        Server::Server0 => {
            let prg = shared.seed.prg(IMAGE);
            share::to_bytes(&ring.uniform(Range::Full, prg.at(Step::layer(0), Purpose::Input), n))
        }
        Server::Server1 => shared.words.to_vec(),
    };
    words.chunks_exact(word).take(n).map(|w| w[word - 1]).collect()
}

/// A result as the client opens it.
#[derive(Clone, Debug, PartialEq)]
pub struct Opened {
    /// Each output as real numbers in the network's order, before the final activation.
    pub outputs: Vec<Vec<f64>>,
    /// Which layers a picture drove out of the range in which their numbers can be trusted.
    pub ranges: Ranges,
}

/// Joins both servers' shares of the result.
///
/// # Errors
/// [`Error::Protocol`] if a share is malformed, [`Error::Malformed`] if it has another length.
pub fn open_result(manifest: &Manifest, shares: [&[u8]; 2]) -> Result<Opened> {
    with_ring!(manifest, |ring| join_outputs(ring, manifest, shares))
}

fn join_outputs<R: SecureRing>(ring: &R, manifest: &Manifest, mut shares: [&[u8]; 2]) -> Result<Opened> {
    let program = &manifest.program;
    let (mut outputs, mut ranges) = (Vec::new(), Ranges::default());
    for (index, register) in program.results().enumerate() {
        let len = program.shape(register).iter().product::<usize>() * ring.bytes(Range::Reduced);
        let mut words = Vec::new();
        for share in &mut shares {
            let (now, later) = share.split_at_checked(len).ok_or_else(|| Error::Malformed {
                peer: "a server".into(),
                expected: format!("{len} more bytes of a result"),
                found: share.len().to_string(),
            })?;
            *share = later;
            words.push(share::from_bytes(ring, Range::Reduced, Step::layer(0), now)?);
        }
        let [a, b] = <[_; 2]>::try_from(words).map_err(|_| Error::Internal("two shares".into()))?;
        let integers = share::join(ring, Range::Reduced, a, &b);
        let Some(info) = manifest.outputs.get(index) else {
            ranges.counted(&program.watched(), &integers);
            continue;
        };
        // What stages of a detector yield is bounded by how they compute it.
        if manifest.config.detection.is_none() && !info.proved {
            ranges.seen(&info.name, &integers, program.bounds.lift);
        }
        outputs.push(manifest.decode(index, &integers).map_err(|e| Error::Internal(e.to_string()))?);
    }
    Ok(Opened { outputs, ranges })
}

fn bytes<R: SecureRing>(ring: &R, range: Range) -> usize {
    ring.bytes(range)
}

fn fresh_seed() -> Result<Seed> {
    Seed::random().map_err(|e| Error::Internal(e.to_string()))
}
