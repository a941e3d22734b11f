//! How peers learn at once that a process was started anew.
//!
//! A peer of a node that was killed goes on sending to it. The process that is there now does not know the connection, and
//! answers with a stateless reset (RFC 9000, section 10.3): 16 bytes that only the holder of the key can compute from the
//! connection's id, and that the peer was told over the old connection. So both must outlive the process: the key follows
//! from the node's, and ids are random, so that none looks invalid to a later process.

use hkdf::Hkdf;
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::{Error, Result};
use crate::identity::Identity;

const ID_BYTES: usize = 8;

/// Ids of connections.
pub struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// What tokens of resets are computed with: HKDF-Expand, whose first block is one HMAC-SHA256.
pub struct ResetKey(Zeroizing<[u8; 32]>);

impl ResetKey {
    /// The same for every process with this identity.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn of(identity: &Identity) -> Result<Self> {
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(None, identity.private_key().secret_der())
            .expand(b"sharelens stateless reset", &mut *key)
            .map_err(|e| Error::Internal(e.to_string()))?;
        Ok(Self(key))
    }

    fn token(&self, data: &[u8]) -> [u8; 32] {
        let mut out = [0; 32];
        let expanded = Hkdf::<Sha256>::from_prk(&*self.0).map(|key| key.expand(data, &mut out));
        assert!(matches!(expanded, Ok(Ok(()))), "32 bytes of key and of output are allowed");
        out
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&self.token(data)[..signature_out.len()]);
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        let token = self.token(data);
        let differs = token.iter().zip(signature).fold(0, |d, (a, b)| d | (a ^ b));
        if differs == 0 && signature.len() == token.len() { Ok(()) } else { Err(CryptoError) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_follows_from_the_identity_alone() {
        let (one, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let [a, b, c] = [&one, &one, &other].map(|identity| ResetKey::of(identity).unwrap());
        let mut signature = [0; 32];
        a.sign(b"id", &mut signature);
        assert!(b.verify(b"id", &signature).is_ok(), "the next process computes the same");
        assert!(c.verify(b"id", &signature).is_err() && a.verify(b"di", &signature).is_err());
        assert!(a.verify(b"id", &signature[..31]).is_err());
    }
}
