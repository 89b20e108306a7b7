//! The proxy door's own certificate authority: clients that trust it accept a certificate of Larder for any host.
//!
//! The authority is made at the first start: `ca.crt` is for the clients, `ca.key` for nobody else. The user may put
//! both there instead; `ca.crt` then has the authority's own certificate first, and behind it those that lead to a
//! root.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::aws_lc_rs::digest;
use quick_cache::sync::Cache;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::clock;
use crate::files::{self, Readers};
use crate::random;
use crate::x509::Certificate;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long a new authority is valid.
const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long the certificate of a host is valid, at most.
const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long before now certificates become valid, since the clocks of clients may be behind.
const EARLIER: Duration = DAY;
/// Most hosts whose certificates are kept; those of others are made again.
const LEAVES: usize = 1000;

/// A certificate authority, which signs certificates for hosts.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate and those that lead to a root.
    chain: Vec<CertificateDer<'static>>,
    certificate: Certificate,
    pem: String,
    file: PathBuf,
    /// The key of all leaves. It is not the authority's own key, which signs only certificates.
    leaf_key: KeyPair,
    leaves: Cache<String, Leaf>,
}

#[derive(Clone)]
struct Leaf {
    certified: Arc<CertifiedKey>,
    made_at: SystemTime,
    renew_at: SystemTime,
}

/// Why there is no authority, or no certificate of it.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("proxy.ca_dir: {file}: {source}")]
    File { file: PathBuf, source: io::Error },
    #[error("proxy.ca_dir: {file} cannot be used: {reason}")]
    Unusable { file: PathBuf, reason: String },
    #[error("a certificate cannot be made: {0}")]
    Leaf(String),
}

impl Ca {
    /// Reads the authority in a directory, and makes one if there is none. Blocks.
    pub fn open(dir: &Path) -> Result<Self, CaError> {
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        let broken = |file: &Path| {
            let file = file.to_owned();
            move |source| CaError::File { file, source }
        };
        if !certificate.try_exists().map_err(broken(&certificate))? {
            fs::create_dir_all(dir).map_err(broken(dir))?;
            let (new_certificate, new_key) = make().map_err(|error| unusable(&certificate, &error))?;
            files::replace(&key, new_key.as_bytes(), Readers::Own).map_err(broken(&key))?;
            files::replace(&certificate, new_certificate.as_bytes(), Readers::All).map_err(broken(&certificate))?;
            tracing::info!(file = %certificate.display(), "made an authority for the proxy door; `larder ca` tells how clients come to trust it");
        }
        let pem = fs::read_to_string(&certificate).map_err(broken(&certificate))?;
        let key_pem = fs::read_to_string(&key).map_err(broken(&key))?;
        Self::read(pem, &key_pem, certificate, &key)
    }

    fn read(pem: String, key_pem: &str, file: PathBuf, key_file: &Path) -> Result<Self, CaError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let chain = chain.map_err(|error| unusable(&file, &error))?;
        let own = chain.first().ok_or_else(|| unusable(&file, &"there is no certificate in it"))?;
        let certificate = Certificate::read(own).map_err(|error| unusable(&file, &error))?;
        if !certificate.is_authority {
            return Err(unusable(&file, &"its certificate is not one of an authority (CA:TRUE)"));
        }
        if certificate.until <= clock::wall() {
            let reason = "its certificate has ended; take both files away, and a new authority is made";
            return Err(unusable(&file, &reason));
        }
        let key = KeyPair::from_pem(key_pem).map_err(|error| unusable(key_file, &error))?;
        if key.subject_public_key_info() != certificate.public_key {
            return Err(unusable(key_file, &format!("it is not the key of {}", file.display())));
        }
        let issuer = Issuer::from_ca_cert_der(own, key).map_err(|error| unusable(&file, &error))?;
        let leaf_key = KeyPair::generate().map_err(|error| CaError::Leaf(error.to_string()))?;
        Ok(Self { issuer, certificate, pem, file, leaf_key, leaves: Cache::new(LEAVES), chain })
    }

    /// Returns the authority's own certificate, for clients, in PEM form.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Returns the SHA-256 of the authority's certificate, written as other programs show it.
    pub fn sha256(&self) -> String {
        let digest = digest::digest(&digest::SHA256, &self.chain[0]);
        let bytes: Vec<_> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        bytes.join(":")
    }

    /// Returns the file of the authority's certificate.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the authority's own certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Returns a certificate for a host name or address, with its key and the certificates that lead to the root.
    pub fn leaf(&self, host: &str) -> Result<Arc<CertifiedKey>, CaError> {
        self.leaf_at(host, clock::wall())
    }

    fn leaf_at(&self, host: &str, now: SystemTime) -> Result<Arc<CertifiedKey>, CaError> {
        // One that was made while the clock was ahead is not valid yet.
        if let Some(leaf) = self.leaves.get(host).filter(|leaf| leaf.made_at <= now && now < leaf.renew_at) {
            return Ok(leaf.certified);
        }
        let until = (now + LEAF_LIFE).min(self.certificate.until);
        let certified = Arc::new(self.sign(host, now, until).map_err(CaError::Leaf)?);
        let renew_at = until.checked_sub(2 * DAY).unwrap_or(now);
        self.leaves.insert(host.to_owned(), Leaf { certified: certified.clone(), made_at: now, renew_at });
        Ok(certified)
    }

    fn sign(&self, host: &str, now: SystemTime, until: SystemTime) -> Result<CertifiedKey, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        // IPv6 addresses in URLs are in brackets.
        let name = host.trim_matches(['[', ']']);
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(|error| text(&error))?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        // A common name has at most 64 characters (RFC 5280, appendix A); no client looks at it.
        params.distinguished_name.push(DnType::CommonName, name.chars().take(64).collect::<String>());
        params.not_before = (now - EARLIER).into();
        params.not_after = until.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial()?);
        let signed = params.signed_by(&self.leaf_key, &self.issuer).map_err(|error| text(&error))?;
        let chain = std::iter::once(signed.der().clone()).chain(self.chain.iter().cloned()).collect();
        let key = PrivateKeyDer::try_from(self.leaf_key.serialize_der())?;
        let key = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| text(&error))?;
        Ok(CertifiedKey::new(chain, key))
    }
}

/// Makes a new authority. Returns its certificate and key in PEM form.
fn make() -> Result<(String, String), String> {
    make_at(clock::wall())
}

fn make_at(now: SystemTime) -> Result<(String, String), String> {
    let text = |error: rcgen::Error| error.to_string();
    let key = KeyPair::generate().map_err(text)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(text)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    let serial = random_serial()?;
    // People see this name in lists of authorities, which may have those of several caches.
    let mark: String = serial.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("Larder proxy {mark}"));
    params.distinguished_name.push(DnType::OrganizationName, "Larder");
    // The clock may be wrong when Larder first starts.
    params.not_before = (now - EARLIER).min(clock::surely_past()).into();
    params.not_after = (now.max(clock::surely_past()) + LIFE).into();
    params.serial_number = Some(serial);
    let certificate = params.self_signed(&key).map_err(text)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Returns a random serial number: no two certificates of one issuer may have the same (RFC 5280, section 4.1.2.2).
fn random_serial() -> Result<SerialNumber, String> {
    let mut bytes = [0; 16];
    random::fill(&mut bytes).map_err(|error| error.to_string())?;
    // A serial number is positive.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from(bytes.to_vec()))
}

fn unusable(file: &Path, reason: &dyn std::fmt::Display) -> CaError {
    CaError::Unusable { file: file.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::{RootCertStore, pki_types};
    use tempfile::TempDir;

    use super::*;

    fn open(dir: &TempDir) -> Result<Ca, CaError> {
        Ca::open(dir.path())
    }

    fn is_good_for(ca: &Ca, chain: &[CertificateDer<'static>], host: &str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(ca.chain[0].clone()).expect("a root");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().expect("one");
        let name = pki_types::ServerName::try_from(host.to_owned()).expect("a name");
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], pki_types::UnixTime::now()).is_ok()
    }

    #[test]
    fn an_authority_is_made_once_and_its_key_is_for_nobody_else() {
        let dir = TempDir::new().expect("a directory");
        let first = open(&dir).expect("made");
        assert_eq!(open(&dir).expect("read").pem(), first.pem());
        let mode = |file: &str| fs::metadata(dir.path().join(file)).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode("ca.key"), mode("ca.crt")), (0o600, 0o644));
        assert!(first.certificate().name().starts_with("Larder proxy "));
    }

    #[test]
    fn a_certificate_is_good_for_its_host_and_is_kept() {
        let dir = TempDir::new().expect("a directory");
        let ca = open(&dir).expect("made");
        let long = format!("{}.example.com", "a".repeat(63));
        for (host, name) in [("ghcr.io", "ghcr.io"), ("[::1]", "::1"), ("127.0.0.1", "127.0.0.1"), (&long, &long)] {
            let leaf = ca.leaf(host).expect("made");
            assert!(is_good_for(&ca, &leaf.cert, name) && !is_good_for(&ca, &leaf.cert, "other.example"), "{host}");
        }
        let (one, again) = (ca.leaf("ghcr.io").expect("made"), ca.leaf("ghcr.io").expect("made"));
        assert!(Arc::ptr_eq(&one, &again));
    }

    #[test]
    fn what_is_made_while_the_clock_is_wrong_is_good_once_it_is_right() {
        let dir = TempDir::new().expect("a directory");
        let now = clock::wall();
        for wrong in [now + 400 * DAY, SystemTime::UNIX_EPOCH + DAY] {
            let (certificate, key) = make_at(wrong).expect("made");
            fs::write(dir.path().join("ca.crt"), certificate).expect("written");
            fs::write(dir.path().join("ca.key"), key).expect("written");
            let ca = open(&dir).expect("read");
            assert!(ca.certificate().from <= now && ca.certificate().until > now);
            let early = ca.leaf_at("ghcr.io", wrong).expect("made");
            let leaf = ca.leaf_at("ghcr.io", now).expect("made");
            assert!(!is_good_for(&ca, &early.cert, "ghcr.io") && is_good_for(&ca, &leaf.cert, "ghcr.io"));
        }
    }

    #[test]
    fn the_key_of_the_authority_is_not_that_of_the_certificates() {
        let dir = TempDir::new().expect("a directory");
        let ca = open(&dir).expect("made");
        let leaf = Certificate::read(&ca.leaf("ghcr.io").expect("made").cert[0]).expect("readable");
        assert_ne!(leaf.public_key, ca.certificate().public_key);
        assert!(!leaf.is_authority);
    }

    #[test]
    fn what_is_no_authority_is_refused() {
        let dir = TempDir::new().expect("a directory");
        open(&dir).expect("made");
        let (certificate, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
        let other = TempDir::new().expect("a directory");
        open(&other).expect("made");
        fs::copy(other.path().join("ca.key"), &key).expect("copied");
        let error = open(&dir).err().expect("refused").to_string();
        assert!(error.contains("ca.key cannot be used: it is not the key of"), "{error}");

        let leaf_key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec!["x.example".to_owned()]).expect("a name").self_signed(&leaf_key);
        fs::write(&certificate, leaf.expect("made").pem()).expect("written");
        fs::write(&key, leaf_key.serialize_pem()).expect("written");
        let error = open(&dir).err().expect("refused").to_string();
        assert!(error.contains("not one of an authority"), "{error}");

        fs::remove_file(&key).expect("removed");
        assert!(matches!(open(&dir), Err(CaError::File { .. })), "a certificate without its key is not replaced");
    }
}
