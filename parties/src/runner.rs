//! What a node needs from the engine.
//!
//! Nodes bring parties together, move bytes and enforce limits; a [`Runner`] knows models and computes. Its
//! futures run on threads of their own, never on the workers of the async runtime, so they may compute and
//! block. Randomness is expanded in a `context`: the session's id, or the epoch of a load.

use std::future::Future;

use std::sync::Arc;

use sharelens_protocol::correlation::Clock;
use sharelens_protocol::cost::Ledger;
use sharelens_protocol::prg::Seed;
use sharelens_protocol::{Channel, Error, Server};

/// Bytes of what travels and is kept, as a public manifest fixes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Server 1's share of an image; server 0's is a seed.
    pub image_share: usize,
    /// Server 1's share of the weights; server 0's is a seed.
    pub weight_share: usize,
    /// Each server's share of the result.
    pub output: usize,
}

/// A share that is a seed at server 0 and words at server 1. Does not print.
pub enum InputShare {
    /// Server 0's: the share is what the seed expands to.
    Seed(Seed),
    /// Server 1's.
    Words(Vec<u8>),
}

impl InputShare {
    /// Bytes of a seed.
    pub const SEED_BYTES: usize = 32;

    /// Bytes of `server`'s share, where server 1's has `words`.
    pub const fn len_for(server: Server, words: usize) -> usize {
        if server.is_first() { Self::SEED_BYTES } else { words }
    }

    /// The share of `server` from the bytes it received; `None` if a seed has another length.
    pub fn new(server: Server, bytes: Vec<u8>) -> Option<Self> {
        Some(match server {
            Server::Server0 => Self::Seed(Seed::from_bytes(bytes.try_into().ok()?)),
            Server::Server1 => Self::Words(bytes),
        })
    }
}

impl std::fmt::Debug for InputShare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InputShare(..)")
    }
}

impl Drop for InputShare {
    fn drop(&mut self) {
        if let Self::Words(words) = self {
            zeroize::Zeroize::zeroize(words);
        }
    }
}

/// One server in one session.
pub struct Run<'a, R: Runner> {
    /// Which server this is.
    pub server: Server,
    /// The model.
    pub model: &'a R::Model,
    /// Its loaded weights.
    pub weights: &'a R::Weights,
    /// This server's correlations of this session.
    pub store: &'a R::Store,
    /// The session's id.
    pub context: &'a [u8],
}

/// The engine, as nodes see it.
pub trait Runner: Send + Sync + 'static {
    /// A checked manifest, with the plan that follows from it.
    type Model: Send + Sync + 'static;
    /// What a server keeps of a loaded model: opened masked weights and its shares.
    type Weights: Send + Sync + 'static;
    /// What the helper keeps of a loaded model: the masks of its weights.
    type Masks: Send + Sync + 'static;
    /// Correlations of one session, between the thread that prepares and the one that spends.
    type Store: Send + Sync + 'static;

    /// Checks a manifest, which comes from a model owner and may be anything. `fits` hears of the sizes before the plan is
    /// made.
    ///
    /// # Errors
    /// [`crate::Error::Config`] saying what is wrong, or that of `fits`.
    fn model(
        &self,
        manifest: &[u8],
        fits: impl FnOnce(&Sizes) -> crate::Result<()>,
    ) -> crate::Result<Self::Model>;

    /// How long things are.
    fn sizes(&self, model: &Self::Model) -> Sizes;

    /// At a server: opens the masked weights with the other one. `seed` came from the helper.
    ///
    /// # Errors
    /// As the protocols.
    fn load<C: Channel>(
        &self,
        server: Server,
        model: &Self::Model,
        share: InputShare,
        seed: &Seed,
        context: &[u8],
        peer: &mut C,
    ) -> impl Future<Output = Result<Self::Weights, Error>>;

    /// At the helper: the masks of the weights, from the seeds that the servers were sent.
    ///
    /// # Errors
    /// As the protocols.
    fn masks(&self, model: &Self::Model, seeds: &[Seed; 2], context: &[u8]) -> Result<Self::Masks, Error>;

    /// An empty store that holds at most `cap` bytes.
    fn store(&self, model: &Self::Model, cap: usize) -> Self::Store;

    /// Where time is computed: the store's, from now on.
    fn set_clock(&self, store: &Self::Store, clock: Arc<dyn Clock>);

    /// At a server, on a thread of its own: fills the store. At server 1 corrections arrive on `helper`; at
    /// server 0 nothing does. On failure the store is told, too.
    ///
    /// # Errors
    /// As the protocols.
    fn preprocess<C: Channel>(
        &self,
        run: Run<'_, Self>,
        seed: &Seed,
        helper: &mut C,
    ) -> impl Future<Output = Result<(), Error>>
    where
        Self: Sized;

    /// Blocks until the store holds all, or as much as its cap allows.
    ///
    /// # Errors
    /// Those of [`Runner::preprocess`].
    fn ready(&self, store: &Self::Store) -> Result<(), Error>;

    /// At a server, on another thread: the online phase. Returns this server's share of the result
    /// ([`Sizes::output`] bytes) and what it cost.
    ///
    /// # Errors
    /// As the protocols.
    fn online<C: Channel>(
        &self,
        run: Run<'_, Self>,
        image: InputShare,
        peer: &mut C,
    ) -> impl Future<Output = Result<(Vec<u8>, Ledger), Error>>
    where
        Self: Sized;

    /// Ends the use of a store: whoever waits for it wakes up with an error, and what is left is wiped.
    fn end(&self, store: &Self::Store);

    /// At the helper: the corrections of one session, for server 1.
    ///
    /// # Errors
    /// As the protocols.
    fn deal<C: Channel>(
        &self,
        model: &Self::Model,
        masks: &Self::Masks,
        seeds: &[Seed; 2],
        context: &[u8],
        server1: &mut C,
    ) -> impl Future<Output = Result<(), Error>>;
}
