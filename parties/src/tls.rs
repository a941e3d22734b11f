//! TLS 1.3 with both sides authenticated by pinned keys.
//!
//! There is no certificate authority: a certificate is the envelope of a key, and the key's hash is compared
//! with the one in cluster.toml. Names and dates in certificates are therefore not looked at. The signature
//! that proves possession of the key is checked as always.

use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, ServerConfig,
    SignatureScheme, version::TLS13,
};

use crate::error::{Error, Result};
use crate::identity::{Identity, Pin};

/// Application protocol; the number changes with every incompatible change.
pub const ALPN: &[u8] = b"sharelens/1";

/// The name that all certificates carry; nobody looks at it.
pub const SERVER_NAME: &str = "sharelens";

/// The key exchange is X25519 with ML-KEM-768 and nothing else: who records the links of today must not be
/// able to rebuild images once X25519 falls, and no peer of ours lacks it.
pub fn provider() -> Arc<CryptoProvider> {
    let kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
}

/// Accepts every key whose possession is proved; who may do what is decided from the pin afterwards.
pub(crate) fn server_config(identity: &Identity) -> Result<ServerConfig> {
    let provider = provider();
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])
        .and_then(|b| {
            b.with_client_cert_verifier(Arc::new(AnyKey { provider }))
                .with_single_cert(vec![identity.certificate()], identity.private_key())
        })
        .map_err(internal)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // No resumption and no early data: every connection proves both keys anew, and nothing can be replayed.
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Accepts the one key `expected`. After a failed handshake `found` holds the key that was presented.
pub(crate) fn client_config(
    identity: &Identity,
    peer: &str,
    expected: Pin,
    found: Arc<Mutex<Option<Pin>>>,
) -> Result<ClientConfig> {
    let provider = provider();
    let verifier = PinnedKey { provider: provider.clone(), peer: peer.into(), expected, found };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .and_then(|b| {
            b.dangerous()
                .with_custom_certificate_verifier(Arc::new(verifier))
                .with_client_auth_cert(vec![identity.certificate()], identity.private_key())
        })
        .map_err(internal)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn internal(e: rustls::Error) -> Error {
    Error::Internal(format!("TLS set-up: {e}"))
}

fn schemes() -> Vec<SignatureScheme> {
    vec![SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256]
}

fn no_tls12<T>() -> Result<T, rustls::Error> {
    Err(rustls::Error::General("only TLS 1.3 is spoken here".into()))
}

/// One certificate, without a chain.
fn single_key(certificate: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<Pin, rustls::Error> {
    if !rest.is_empty() {
        return Err(CertificateError::ApplicationVerificationFailure.into());
    }
    Pin::of_certificate(certificate)
}

#[derive(Debug)]
struct PinnedKey {
    provider: Arc<CryptoProvider>,
    peer: String,
    expected: Pin,
    found: Arc<Mutex<Option<Pin>>>,
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let found = single_key(end_entity, intermediates)?;
        if found == self.expected {
            return Ok(ServerCertVerified::assertion());
        }
        *self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(found);
        let error = Error::Pin { peer: self.peer.clone(), expected: self.expected, found };
        Err(CertificateError::Other(OtherError(Arc::new(error))).into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

#[derive(Debug)]
struct AnyKey {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        single_key(end_entity, intermediates).map(|_| ClientCertVerified::assertion())
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}
