//! What one protocol call asks for, and how both sides make it.

use std::any::Any;

use super::{Dealer, Demand, Receiver, SecureRing};
use crate::cost::Cost;
use crate::error::Result;
use crate::secret::Secret;
use crate::step::Step;

/// A kind of correlation: each protocol that spends any has one.
///
/// A value is public, since it follows from shapes. The helper makes the correction that server 1 lacks. Each server
/// makes its part from its own seed and, at server 1, from that correction.
pub trait Kind<R: SecureRing>: Copy + Into<Demand> {
    /// What a server holds until the call spends it.
    type Part: Part;

    /// Bytes of the helper's correction for server 1.
    fn correction_len(&self, ring: &R) -> usize;

    /// Online and dealt cost.
    fn cost(&self, ring: &R) -> Cost;

    /// The helper's part: the correction for server 1.
    ///
    /// # Errors
    /// [`crate::Error::Config`] if it needs a weight that is not loaded.
    fn deal(&self, dealer: &Dealer<'_, R>, step: Step) -> Result<Vec<u8>>;

    /// A server's part. `correction` has [`Self::correction_len`] bytes, none at server 0.
    ///
    /// # Errors
    /// [`crate::Error::Peer`] if the correction is malformed, [`crate::Error::Config`] if it needs a weight that is not
    /// loaded.
    fn expand(&self, server: &Receiver<'_, R>, step: Step, correction: Secret<u8>) -> Result<Self::Part>;
}

/// One server's part of a correlation. It cannot be cloned or read, and the call that it is for takes it.
pub trait Part: Any + Send {
    /// Bytes held.
    fn bytes(&self) -> usize;
}
