//! Where correlations come from.
//!
//! A server asks a [`Source`] for its part of each call. [`FromHelper`] is the one in use: a seed, and at server 1
//! the corrections of a [`Dealer`]. [`Ideal`] has both halves at hand, for tests and measurements.

use super::{AnyPart, Demand, Kind, SecureRing};
use crate::bilinear;
use crate::channel::Channel;
use crate::error::{Error, Result};
use crate::prg::Prg;
use crate::role::Server;
use crate::secret::Secret;
use crate::step::Step;

/// Makes a server's parts, call by call in the order of the plan.
#[expect(async_fn_in_trait, reason = "sessions run on threads of their own")]
pub trait Source<R: SecureRing> {
    /// This server's part of the call at `step`.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    async fn next(&mut self, step: Step, demand: &Demand) -> Result<AnyPart<R>>;
}

/// What the helper deals from.
#[derive(Clone, Copy)]
pub struct Dealer<'a, R: SecureRing> {
    /// The ring.
    pub ring: &'a R,
    /// The generators of the seeds of server 0 and server 1.
    pub prgs: [&'a Prg; 2],
    /// The lasting masks of the weights, by number.
    pub masks: &'a [bilinear::Mask<R>],
}

impl<'a, R: SecureRing> Dealer<'a, R> {
    /// A dealer for calls without weights.
    pub const fn new(ring: &'a R, prgs: [&'a Prg; 2]) -> Self {
        Self { ring, prgs, masks: &[] }
    }

    /// The lasting mask of a weight.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not loaded.
    pub fn mask(&self, weight: u32) -> Result<&'a bilinear::Mask<R>> {
        self.masks.get(weight as usize).ok_or_else(|| not_loaded(weight))
    }
}

/// What a server makes its parts from.
#[derive(Clone, Copy)]
pub struct Receiver<'a, R: SecureRing> {
    /// The ring.
    pub ring: &'a R,
    /// Which server.
    pub role: Server,
    /// The generator of the seed that it shares with the helper.
    pub prg: &'a Prg,
    /// Its weights, by number.
    pub weights: &'a [bilinear::Resident<R>],
}

impl<'a, R: SecureRing> Receiver<'a, R> {
    /// A receiver for calls without weights.
    pub const fn new(ring: &'a R, role: Server, prg: &'a Prg) -> Self {
        Self { ring, role, prg, weights: &[] }
    }

    /// A weight.
    ///
    /// # Errors
    /// [`Error::Config`] if it is not loaded.
    pub fn weight(&self, weight: u32) -> Result<&'a bilinear::Resident<R>> {
        self.weights.get(weight as usize).ok_or_else(|| not_loaded(weight))
    }

    /// This server's part of a call. `correction` is what the helper sent, empty at server 0.
    ///
    /// # Errors
    /// [`Error::Peer`] if the correction is malformed, [`Error::Config`] if a weight is not loaded.
    pub fn receive<K: Kind<R>>(
        &self,
        step: Step,
        kind: &K,
        correction: impl Into<Secret<u8>>,
    ) -> Result<K::Part> {
        let correction = correction.into();
        let due = if self.role.is_first() { 0 } else { kind.correction_len(self.ring) };
        if correction.len() != due {
            let found = format!("{} bytes", correction.len());
            return Err(Error::Peer { step, expected: format!("a correction of {due} bytes"), found });
        }
        kind.expand(self, step, correction)
    }
}

fn not_loaded(weight: u32) -> Error {
    Error::Config(format!("weight {weight} is not loaded"))
}

/// The helper as a server sees it: server 1 receives a correction for each call, server 0 nothing.
pub struct FromHelper<'a, R: SecureRing, C> {
    /// What this server has.
    pub server: Receiver<'a, R>,
    /// The link to the helper.
    pub channel: &'a mut C,
}

impl<R: SecureRing, C: Channel> Source<R> for FromHelper<'_, R, C> {
    async fn next(&mut self, step: Step, demand: &Demand) -> Result<AnyPart<R>> {
        let correction = match self.server.role {
            Server::Server0 => Vec::new(),
            Server::Server1 => self.channel.recv(step, demand.correction_len(self.server.ring)).await?,
        };
        demand.receive(&self.server, step, correction)
    }
}

/// Both halves in one place, as no party of a deployment has them: for tests and measurements.
pub struct Ideal<'a, R: SecureRing> {
    /// What the helper would deal from.
    pub dealer: Dealer<'a, R>,
    /// The weights of server 0 and server 1, by number.
    pub weights: [&'a [bilinear::Resident<R>]; 2],
}

impl<'a, R: SecureRing> Ideal<'a, R> {
    /// Correlations without weights.
    pub const fn new(ring: &'a R, prgs: [&'a Prg; 2]) -> Self {
        Self { dealer: Dealer::new(ring, prgs), weights: [&[], &[]] }
    }

    /// What a server would have.
    pub const fn server(&self, role: Server) -> Receiver<'a, R> {
        let i = role.index();
        Receiver { ring: self.dealer.ring, role, prg: self.dealer.prgs[i], weights: self.weights[i] }
    }

    /// Both servers' parts of a call, and the correction that server 1 would receive.
    ///
    /// # Errors
    /// [`Error::Config`] if a weight is not loaded.
    pub fn both<K: Kind<R>>(&self, step: Step, kind: &K) -> Result<([K::Part; 2], Vec<u8>)> {
        let sent = kind.deal(&self.dealer, step)?;
        let zero = self.server(Server::Server0).receive(step, kind, Vec::new())?;
        let one = self.server(Server::Server1).receive(step, kind, sent.clone())?;
        Ok(([zero, one], sent))
    }
}
