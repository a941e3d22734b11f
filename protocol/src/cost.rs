//! Rounds and bytes, planned and measured.

use std::collections::BTreeMap;
use std::ops::{Add, AddAssign};

use serde::{Deserialize, Serialize};

use crate::step::Step;

/// What something costs. Bytes are payload, without headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Sequential exchanges between the servers, one way or both at once.
    pub rounds: u64,
    /// Messages that each server sends to the other.
    pub messages: u64,
    /// Payload bytes that each server sends to the other.
    pub bytes: u64,
    /// Payload bytes that the helper sends to server 1, ahead of time.
    pub dealt: u64,
    /// Messages from the helper to server 1.
    pub deals: u64,
}

impl Cost {
    /// `rounds` exchanges of `bytes` in all, in each direction, one message a round.
    pub const fn online(rounds: u64, bytes: usize) -> Self {
        Self { rounds, messages: rounds, bytes: bytes as u64, dealt: 0, deals: 0 }
    }

    /// A message of `bytes` from server 1 to server 0, then one as long in return.
    pub const fn there_and_back(bytes: usize) -> Self {
        Self { rounds: 2, messages: 1, bytes: bytes as u64, dealt: 0, deals: 0 }
    }

    /// The same with one correction of `dealt` bytes from the helper.
    pub const fn with_dealt(self, dealt: usize) -> Self {
        Self { dealt: dealt as u64, deals: 1, ..self }
    }
}

impl Add for Cost {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        Self {
            rounds: self.rounds + o.rounds,
            messages: self.messages + o.messages,
            bytes: self.bytes + o.bytes,
            dealt: self.dealt + o.dealt,
            deals: self.deals + o.deals,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, o: Self) {
        *self = *self + o;
    }
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::default(), Add::add)
    }
}

/// What one server saw on its links, by layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    layers: BTreeMap<u32, Entry>,
}

/// One layer of a [`Ledger`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Rounds, messages and bytes that this server sent to its peer; what the helper dealt is in `dealt`.
    pub sent: Cost,
    /// Payload bytes received from the peer.
    pub received_bytes: u64,
    /// Wall-clock seconds of the online phase.
    pub seconds: f64,
}

impl Ledger {
    /// The entry of `layer`, created on first use.
    pub fn layer(&mut self, layer: u32) -> &mut Entry {
        self.layers.entry(layer).or_default()
    }

    /// The entry that `step` belongs to.
    pub fn at(&mut self, step: Step) -> &mut Entry {
        self.layer(step.layer_index())
    }

    /// Adds what `other` counted, layer by layer.
    pub fn merge(&mut self, other: Self) {
        for (layer, entry) in other.layers {
            let sum = self.layer(layer);
            sum.sent += entry.sent;
            sum.received_bytes += entry.received_bytes;
            sum.seconds += entry.seconds;
        }
    }

    /// All entries, by layer.
    pub fn entries(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.layers.iter().map(|(l, e)| (*l, e))
    }

    /// The sum over all layers, also of rounds, which those of layers that ran side by side are counted in.
    pub fn total(&self) -> Entry {
        self.layers.values().fold(Entry::default(), |mut t, e| {
            t.sent += e.sent;
            t.received_bytes += e.received_bytes;
            t.seconds += e.seconds;
            t
        })
    }
}
