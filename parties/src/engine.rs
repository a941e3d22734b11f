//! The engine that nodes run. Not there yet: nodes form a cluster, and refuse models with a clear error.

use sharelens_protocol::cost::Ledger;
use sharelens_protocol::prg::Seed;
use sharelens_protocol::{Channel, Error, Result, Server};

use crate::runner::{InputShare, Run, Runner, Sizes};

/// The engine of this version.
pub fn runner() -> impl Runner {
    Missing
}

struct Missing;

/// No value: nothing past [`Runner::model`] is ever called.
enum Never {}

impl Runner for Missing {
    type Model = Never;
    type Weights = Never;
    type Masks = Never;
    type Store = Never;

    fn model(&self, _: &[u8]) -> Result<Never> {
        Err(Error::Config("running models is not in this version".into()))
    }

    fn sizes(&self, model: &Never) -> Sizes {
        match *model {}
    }

    async fn load<C: Channel>(
        &self,
        _: Server,
        model: &Never,
        _: InputShare,
        _: &Seed,
        _: &[u8],
        _: &mut C,
    ) -> Result<Never> {
        match *model {}
    }

    fn masks(&self, model: &Never, _: &[Seed; 2], _: &[u8]) -> Result<Never> {
        match *model {}
    }

    fn store(&self, model: &Never, _: usize) -> Never {
        match *model {}
    }

    async fn prepare<C: Channel>(&self, run: Run<'_, Self>, _: &Seed, _: &mut C) -> Result<()> {
        match *run.model {}
    }

    fn ready(&self, store: &Never) -> Result<()> {
        match *store {}
    }

    async fn online<C: Channel>(
        &self,
        run: Run<'_, Self>,
        _: InputShare,
        _: &mut C,
    ) -> Result<(Vec<u8>, Ledger)> {
        match *run.model {}
    }

    fn end(&self, store: &Never) {
        match *store {}
    }

    async fn deal<C: Channel>(
        &self,
        model: &Never,
        _: &Never,
        _: &[Seed; 2],
        _: &[u8],
        _: &mut C,
    ) -> Result<()> {
        match *model {}
    }
}
