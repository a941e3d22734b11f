//! The engine that nodes run: the program of a manifest on shares, in the ring that the manifest names.

mod sharing;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::executor::block_on;
use sharelens_models::{Arithmetic, Manifest, Program, run};
use sharelens_ops::planner::Length;
use sharelens_ops::{Planner, Secure};
use sharelens_protocol::bilinear::{self, Linear, Mask, Resident};
use sharelens_protocol::correlation::{Clock, Dealer, FromHelper, Plan, Receiver, SecureRing, Store};
use sharelens_protocol::cost::{Cost, Ledger};
use sharelens_protocol::lanes;
use sharelens_protocol::prg::{Prg, Purpose, Seed};
use sharelens_protocol::refresh;
use sharelens_protocol::ring::{Full, Range, Rns, Z64};
use sharelens_protocol::secret::Secret;
use sharelens_protocol::{Channel, Error, Party, Result, Server, Share, Step, share};

use crate::codec;
use crate::runner::{InputShare, Run, Runner, Sizes};

pub use sharing::{Opened, encode_manifest, open_result, share_image, share_weights, view};

/// The engine of this version.
pub const fn runner() -> impl Runner {
    Engine
}

/// What each layer of a manifest will cost.
///
/// # Errors
/// [`crate::Error::Protocol`] if the program does not hold together.
pub fn plan(manifest: &Manifest) -> crate::Result<BTreeMap<u32, Cost>> {
    let manifest = manifest.clone();
    Ok(match &manifest.arithmetic {
        Arithmetic::Rns(moduli) => {
            let model = PlannedModel::new(Rns::new(moduli.clone())?, manifest)?;
            model.plan.costs(&model.ring)
        }
        Arithmetic::Z64 => {
            let model = PlannedModel::new(Z64::new(), manifest)?;
            model.plan.costs(&model.ring)
        }
    })
}

/// A manifest as it travels, checked: what it says holds together, nothing is opened but what may be, and its plan can
/// be made. Servers, helper and clients all do this before they do anything else with it. `fits` hears of the sizes once the
/// manifest is known to hold together, before it is planned.
fn check(
    bytes: &[u8],
    fits: impl FnOnce(&Sizes) -> crate::Result<()>,
) -> crate::Result<InRing<PlannedModel<Rns>, PlannedModel<Z64>>> {
    let bad = |reason: String| crate::Error::Config { file: "the model's manifest".into(), reason };
    let manifest: Manifest = codec::decode_value(bytes).map_err(|codec::Bad(e)| bad(e))?;
    manifest.validate().map_err(|e| bad(e.to_string()))?;
    let planned = |e: Error| bad(e.to_string());
    Ok(match &manifest.arithmetic {
        Arithmetic::Rns(moduli) => {
            let ring = Rns::new(moduli.clone()).map_err(planned)?;
            fits(&sizes(&ring, &manifest.program))?;
            InRing::Rns(PlannedModel::new(ring, manifest).map_err(planned)?)
        }
        Arithmetic::Z64 => {
            fits(&sizes(&Z64::new(), &manifest.program))?;
            InRing::Z64(PlannedModel::new(Z64::new(), manifest).map_err(planned)?)
        }
    })
}

/// A manifest from an owner or a node, after the same checks as at the nodes.
///
/// # Errors
/// [`crate::Error::Config`] saying what is wrong with it.
pub fn decode_manifest(bytes: &[u8]) -> crate::Result<Manifest> {
    Ok(match check(bytes, |_| Ok(()))? {
        InRing::Rns(model) => model.manifest,
        InRing::Z64(model) => model.manifest,
    })
}

/// Separates the streams of a share of an image, or of weights, from all others.
const IMAGE: &[u8] = b"image";
const WEIGHTS: &[u8] = b"weights";

/// [`Runner`] for classification networks and their kin.
#[derive(Clone, Copy, Debug)]
struct Engine;

/// One value per ring that a manifest can name.
enum InRing<A, B> {
    Rns(A),
    Z64(B),
}

/// A checked manifest with its plan.
struct PlannedModel<R> {
    ring: R,
    manifest: Manifest,
    plan: Plan,
    maps: Vec<Linear>,
}

fn sizes<R: SecureRing>(ring: &R, program: &Program) -> Sizes {
    let (full, reduced) = (ring.bytes(Range::Full), ring.bytes(Range::Reduced));
    let weights: usize = program.linear_maps().iter().map(|m| m.conv.weight_len() + m.conv.c_out).sum();
    Sizes {
        image_share: program.input_len() * full,
        weight_share: weights * full,
        output: program.results_len() * reduced,
    }
}

/// Runs `$body` with the parts in their common ring. Parts of different rings cannot meet: all of them stem from
/// the same manifest, whose hash the nodes compared.
macro_rules! in_ring {
    ($first:expr $(, $part:expr)* => |$x:pat_param $(, $y:pat_param)*| $body:expr) => {
        match ($first, $($part),*) {
            (InRing::Rns($x), $(InRing::Rns($y)),*) => $body,
            (InRing::Z64($x), $(InRing::Z64($y)),*) => $body,
            #[allow(unreachable_patterns, reason = "with one part there is nothing to mix up")]
            _ => Err(Error::Config("parts of different rings".into())),
        }
    };
}

impl<R: SecureRing> PlannedModel<R> {
    fn new(ring: R, manifest: Manifest) -> Result<Self> {
        let program = &manifest.program;
        let mut planner = Planner::<R>::new(manifest.rounds);
        block_on(run(program, &mut planner, Length::new(program.input_len()), |_| {}))?;
        let (maps, plan) = (program.linear_maps(), planner.finish());
        plan.check(&ring)?;
        Ok(Self { ring, plan, maps, manifest })
    }

    async fn load<C: Channel>(
        &self,
        role: Server,
        share: &InputShare,
        mask: &Prg,
        channel: &mut C,
    ) -> Result<Loaded<R>> {
        let mut ledger = Ledger::default();
        let mut party = Party { ring: &self.ring, role, channel, ledger: &mut ledger };
        let mut residents = Vec::with_capacity(self.maps.len());
        // One after the other, so that no more than one is in memory besides the share.
        let mut reader = Reader::new(&self.ring, share, WEIGHTS);
        for map in &self.maps {
            let at = Step::layer(map.weight);
            let weight = reader.read(at, Purpose::Weight, map.conv.weight_len())?;
            let bias = reader.read(at, Purpose::Bias, map.conv.c_out)?;
            residents.push(bilinear::load(&mut party, map, mask, weight, bias).await?);
        }
        Ok(Loaded { residents, pair: refresh::agree(&mut party).await? })
    }

    async fn online<C: Channel>(
        &self,
        role: Server,
        weights: &Loaded<R>,
        store: &Store<R>,
        image: &InputShare,
        context: &[u8],
        channel: &mut C,
    ) -> Result<(Vec<u8>, Ledger)> {
        let program = &self.manifest.program;
        let input = Reader::new(&self.ring, image, IMAGE).read(
            Step::layer(0),
            Purpose::Input,
            program.input_len(),
        )?;
        let mut times = Vec::new();
        let (residents, rounds) = (&weights.residents, self.manifest.rounds);
        let (mut engine, outputs) = lanes::drive(channel, async |lane| {
            let mut engine = Secure::new(&self.ring, role, lane, residents, store, rounds);
            let on_layer = |p: sharelens_models::program::Progress<'_>| times.push((p.index, p.elapsed));
            let outputs = run(program, &mut engine, Share::<R, Full>::new(input), on_layer).await?;
            Ok((engine, outputs))
        })
        .await?;
        if !store.is_spent() {
            let reason = "left over after the run".into();
            return Err(Error::Correlation { step: Step::layer(program.layers.len() as u32), reason });
        }
        let pair = weights.pair.prg(context);
        let mut bytes = Vec::new();
        for (call, output) in (0..).zip(outputs) {
            // No layer has this index.
            let at = Step::layer(u32::MAX).call(call);
            let output = refresh::refresh(&engine.party(), at, &pair, output);
            bytes.extend_from_slice(bytemuck::cast_slice(output.words()));
        }
        let mut ledger = engine.into_ledger();
        for (index, elapsed) in times {
            ledger.layer(index as u32).seconds += elapsed.as_secs_f64();
        }
        store.enter_dealt(&mut ledger);
        Ok((bytes, ledger))
    }
}

/// A model at a server, for as long as it is loaded.
struct Loaded<R: SecureRing> {
    residents: Vec<Resident<R>>,
    /// Known to both servers and not to the helper.
    pair: Seed,
}

/// Reads vectors one after the other out of a share.
struct Reader<'a, R> {
    ring: &'a R,
    source: Source<'a>,
}

enum Source<'a> {
    Seed(Prg),
    Words(&'a [u8]),
}

impl<'a, R: SecureRing> Reader<'a, R> {
    fn new(ring: &'a R, share: &'a InputShare, context: &[u8]) -> Self {
        let source = match share {
            InputShare::Seed(seed) => Source::Seed(seed.prg(context)),
            InputShare::Words(words) => Source::Words(words),
        };
        Self { ring, source }
    }

    fn read(&mut self, at: Step, purpose: Purpose, n: usize) -> Result<Secret<R::Word>> {
        match &mut self.source {
            Source::Seed(prg) => Ok(self.ring.uniform(Range::Full, prg.at(at, purpose), n)),
            Source::Words(rest) => {
                let len = n * self.ring.bytes(Range::Full);
                let (now, later) = rest.split_at_checked(len).ok_or_else(|| Error::Peer {
                    step: at,
                    expected: format!("{len} more bytes of a share"),
                    found: format!("{}", rest.len()),
                })?;
                *rest = later;
                share::from_bytes(self.ring, Range::Full, at, now)
            }
        }
    }
}

impl Runner for Engine {
    type Model = InRing<PlannedModel<Rns>, PlannedModel<Z64>>;
    type Weights = InRing<Loaded<Rns>, Loaded<Z64>>;
    type Masks = InRing<Vec<Mask<Rns>>, Vec<Mask<Z64>>>;
    type Store = InRing<Store<Rns>, Store<Z64>>;

    fn model(
        &self,
        manifest: &[u8],
        fits: impl FnOnce(&Sizes) -> crate::Result<()>,
    ) -> crate::Result<Self::Model> {
        check(manifest, fits)
    }

    fn sizes(&self, model: &Self::Model) -> Sizes {
        match model {
            InRing::Rns(m) => sizes(&m.ring, &m.manifest.program),
            InRing::Z64(m) => sizes(&m.ring, &m.manifest.program),
        }
    }

    async fn load<C: Channel>(
        &self,
        server: Server,
        model: &Self::Model,
        share: InputShare,
        seed: &Seed,
        context: &[u8],
        peer: &mut C,
    ) -> Result<Self::Weights> {
        let mask = seed.prg(context);
        Ok(match model {
            InRing::Rns(m) => InRing::Rns(m.load(server, &share, &mask, peer).await?),
            InRing::Z64(m) => InRing::Z64(m.load(server, &share, &mask, peer).await?),
        })
    }

    fn masks(&self, model: &Self::Model, seeds: &[Seed; 2], context: &[u8]) -> Result<Self::Masks> {
        let [a, b] = [0, 1].map(|i: usize| seeds[i].prg(context));
        Ok(match model {
            InRing::Rns(m) => {
                InRing::Rns(m.maps.iter().map(|map| Mask::new(&m.ring, map, [&a, &b])).collect())
            }
            InRing::Z64(m) => {
                InRing::Z64(m.maps.iter().map(|map| Mask::new(&m.ring, map, [&a, &b])).collect())
            }
        })
    }

    fn store(&self, model: &Self::Model, cap: usize) -> Self::Store {
        match model {
            InRing::Rns(_) => InRing::Rns(Store::new(cap)),
            InRing::Z64(_) => InRing::Z64(Store::new(cap)),
        }
    }

    fn set_clock(&self, store: &Self::Store, clock: Arc<dyn Clock>) {
        match store {
            InRing::Rns(s) => s.set_clock(clock),
            InRing::Z64(s) => s.set_clock(clock),
        }
    }

    async fn preprocess<C: Channel>(&self, run: Run<'_, Self>, seed: &Seed, helper: &mut C) -> Result<()> {
        let prg = seed.prg(run.context);
        in_ring!(run.model, run.weights, run.store => |m, weights, store| {
            let server =
                Receiver { ring: &m.ring, role: run.server, prg: &prg, weights: &weights.residents };
            m.plan.fill(FromHelper { server, channel: helper }, store).await
        })
    }

    fn ready(&self, store: &Self::Store) -> Result<()> {
        in_ring!(store => |s| s.ready())
    }

    async fn online<C: Channel>(
        &self,
        run: Run<'_, Self>,
        image: InputShare,
        peer: &mut C,
    ) -> Result<(Vec<u8>, Ledger)> {
        in_ring!(run.model, run.weights, run.store => |m, weights, store| {
            m.online(run.server, weights, store, &image, run.context, peer).await
        })
    }

    fn end(&self, store: &Self::Store) {
        match store {
            InRing::Rns(s) => s.close(),
            InRing::Z64(s) => s.close(),
        }
    }

    async fn deal<C: Channel>(
        &self,
        model: &Self::Model,
        masks: &Self::Masks,
        seeds: &[Seed; 2],
        context: &[u8],
        server1: &mut C,
    ) -> Result<()> {
        let [a, b] = [0, 1].map(|i: usize| seeds[i].prg(context));
        in_ring!(model, masks => |m, masks| {
            m.plan.deal(&Dealer { ring: &m.ring, prgs: [&a, &b], masks }, server1).await
        })
    }
}
