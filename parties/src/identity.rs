//! Who a process is: one signing key, known to others by the hash of its public half.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use rand::TryRng;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// SHA-256 of a SubjectPublicKeyInfo: what a peer is known by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin of a DER encoded SubjectPublicKeyInfo.
    pub fn of_spki(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    /// The pin of an X.509 certificate's key.
    ///
    /// # Errors
    /// [`rustls::Error`] if the certificate cannot be parsed.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, rustls::Error> {
        let parsed = rustls::server::ParsedCertificate::try_from(certificate)?;
        Ok(Self::of_spki(parsed.subject_public_key_info().as_ref()))
    }

    /// From the bytes of [`Pin::as_bytes`].
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// From 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        from_hex(text)?.try_into().ok().map(Self)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Pin {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.to_string())
    }
}

impl<'de> Deserialize<'de> for Pin {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::from_hex(&text).ok_or_else(|| serde::de::Error::custom("a pin is 64 hexadecimal digits"))
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

/// A signing key (Ed25519) with a certificate made from it. `Debug` shows the pin only.
pub struct Identity {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    pin: Pin,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.pin)
    }
}

impl Identity {
    /// A fresh key.
    ///
    /// # Errors
    /// [`Error::Internal`] if the cryptographic provider fails.
    pub fn generate() -> Result<Self> {
        Self::from_key(KeyPair::generate_for(&rcgen::PKCS_ED25519).map_err(internal)?)
    }

    /// Reads the key (PKCS#8, PEM; Ed25519 or P-256).
    ///
    /// # Errors
    /// [`Error::Config`] if there is none, others can read it, or it is no key.
    pub fn load(file: &Path) -> Result<Self> {
        let pem = Zeroizing::new(fs::read_to_string(file).map_err(|e| Error::config(file, e))?);
        check_private(file)?;
        let key = KeyPair::from_pem(&pem)
            .map_err(|_| Error::config(file, "not a private key in PEM (PKCS#8, Ed25519 or P-256)"))?;
        Self::from_key(key)
    }

    /// Writes the key for its owner alone; an existing file is never replaced.
    ///
    /// # Errors
    /// [`Error::Config`] if the file exists or cannot be written.
    pub fn save(&self, file: &Path) -> Result<()> {
        write_private(file, Zeroizing::new(self.key.serialize_pem()).as_bytes())
    }

    /// Reads the key, or makes and writes one if there is no such file.
    ///
    /// # Errors
    /// As [`Identity::load`] and [`Identity::save`].
    pub fn load_or_create(file: &Path) -> Result<Self> {
        if file.exists() {
            return Self::load(file);
        }
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir).map_err(|e| Error::config(dir, e))?;
        }
        let identity = Self::generate()?;
        identity.save(file)?;
        Ok(identity)
    }

    /// What others know this key by.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    fn from_key(key: KeyPair) -> Result<Self> {
        let mut params = CertificateParams::new(vec![crate::tls::SERVER_NAME.into()]).map_err(internal)?;
        // The pin is the identity; a date would only make a working cluster stop one day. Peers ignore it.
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(9999, 12, 31);
        let certificate = params.self_signed(&key).map_err(internal)?.der().clone();
        let pin = Pin::of_certificate(&certificate).map_err(internal)?;
        Ok(Self { key, certificate, pin })
    }
}

fn internal(e: impl fmt::Display) -> Error {
    Error::Internal(e.to_string())
}

/// Writes a new file that only its owner can read.
pub(crate) fn write_private(file: &Path, bytes: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.open(file).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Error::config(file, "exists already and is not replaced"),
        _ => Error::config(file, e),
    })?;
    out.write_all(bytes).and_then(|()| out.sync_all()).map_err(|e| Error::config(file, e))
}

/// Refuses a secret file that other users can read.
pub(crate) fn check_private(file: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(file).map_err(|e| Error::config(file, e))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(Error::config(file, "is readable by other users: run `chmod 600` on it"));
        }
    }
    Ok(())
}

/// `N` bytes of the operating system's entropy.
///
/// # Errors
/// [`Error::Internal`] if the operating system has none.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).map_err(internal)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_disk_and_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        let made = Identity::load_or_create(&file).unwrap();
        assert_eq!(Identity::load(&file).unwrap().pin(), made.pin());
        assert!(Identity::generate().unwrap().save(&file).unwrap_err().to_string().contains("not replaced"));
        assert_eq!(format!("{made:?}"), format!("Identity({})", made.pin()));
        fs::write(dir.path().join("bad"), "no key").unwrap();
        assert!(matches!(Identity::load(&dir.path().join("bad")), Err(Error::Config { .. })));
    }

    #[cfg(unix)]
    #[test]
    fn keys_that_others_can_read_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key.pem");
        Identity::load_or_create(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Identity::load(&file).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn pins_are_hexadecimal() {
        let pin = Pin::of_spki(b"key");
        assert_eq!(Pin::from_hex(&pin.to_string()), Some(pin));
        for bad in ["", "00", "zz", &"é".repeat(32)] {
            assert_eq!(Pin::from_hex(bad), None);
        }
    }
}
