//! The files on disk: for each ACME server the account, and for each first domain a certificate with its key in one
//! file, so that they always belong together.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fs, io};

use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use url::Url;

use crate::files::{self, Readers};
use crate::x509::Certificate;

/// The files of one ACME server. All methods block.
#[derive(Clone, Debug)]
pub struct Files(PathBuf);

/// A certificate, and the time for which it is valid.
#[derive(Clone, Debug)]
pub struct Kept {
    pub certified: Arc<CertifiedKey>,
    certificate: Certificate,
}

impl Files {
    /// Makes the files below `dir` for the ACME server with this directory URL. Writes nothing yet.
    pub fn new(dir: &Path, directory: &Url) -> Self {
        let mut name = directory.host_str().unwrap_or_default().to_owned();
        if let Some(port) = directory.port() {
            name += &format!("-{port}");
        }
        name += directory.path().trim_end_matches('/');
        Self(dir.join(name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-")))
    }

    /// Reads the account; `None` if there is none yet.
    pub fn account(&self) -> io::Result<Option<Vec<u8>>> {
        read(&self.account_file())
    }

    /// Writes the account.
    pub fn keep_account(&self, json: &[u8]) -> io::Result<()> {
        self.keep(&self.account_file(), json)
    }

    /// Deletes the account, which is no longer valid.
    pub fn forget_account(&self) -> io::Result<()> {
        fs::remove_file(self.account_file())
    }

    /// Checks whether files can be written now.
    pub fn can_keep(&self) -> io::Result<()> {
        let probe = self.0.join("probe");
        self.keep(&probe, b"to see whether it can be written")?;
        fs::remove_file(&probe)
    }

    /// Reads the certificate of a domain; `None` if there is none yet.
    pub fn certificate(&self, domain: &str) -> io::Result<Option<Kept>> {
        let file = self.certificate_file(domain);
        let unusable = |why| io::Error::other(format!("{}: {why}", file.display()));
        let pem = read(&file)?;
        pem.map(|pem| Kept::read(&pem).map_err(unusable)).transpose()
    }

    /// Writes the certificate of a domain. `pem`: the key and the chain.
    pub fn keep_certificate(&self, domain: &str, pem: &[u8]) -> io::Result<()> {
        self.keep(&self.certificate_file(domain), pem)
    }

    fn keep(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let written = files::make_folder(&self.0).and_then(|()| files::replace(file, bytes, Readers::Own));
        written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
    }

    /// Returns the path of the account's file.
    pub fn account_file(&self) -> PathBuf {
        self.0.join("account.json")
    }

    fn certificate_file(&self, domain: &str) -> PathBuf {
        self.0.join(format!("{}.pem", domain.replace('*', "_")))
    }
}

fn read(file: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", file.display()))),
    }
}

impl Kept {
    /// Reads a key and a certificate chain in PEM form. The error says what is wrong with them.
    pub fn read(pem: &[u8]) -> Result<Self, String> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("no private key: {error}"))?;
        let chain = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| format!("no certificate: {error}"))?;
        let leaf = chain.first().ok_or("no certificate")?;
        let certificate = Certificate::read(leaf)?;
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        let certified = Arc::new(certified.map_err(|error| error.to_string())?);
        Ok(Self { certified, certificate })
    }

    /// Returns whether the certificate is for all of these domains.
    pub fn is_for(&self, domains: &[String]) -> bool {
        domains.iter().all(|domain| self.certificate.domains.contains(domain))
    }

    /// Returns when the certificate is to be renewed: when a third of its lifetime is left.
    pub fn due(&self) -> SystemTime {
        let Certificate { from, until, .. } = self.certificate;
        from + until.duration_since(from).unwrap_or_default() / 3 * 2
    }

    /// Returns when the certificate expires.
    pub fn until(&self) -> SystemTime {
        self.certificate.until
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn pem(domains: &[&str]) -> String {
        let key = KeyPair::generate().expect("a key");
        let names = domains.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let mut params = CertificateParams::new(names).expect("names");
        params.not_before = date_time_ymd(2030, 1, 1);
        params.not_after = date_time_ymd(2030, 4, 1);
        key.serialize_pem() + &params.self_signed(&key).expect("signed").pem()
    }

    #[test]
    fn a_certificate_is_renewed_with_a_third_of_its_life_left() {
        let kept = Kept::read(pem(&["a.example", "*.b.example"]).as_bytes()).expect("a certificate");
        assert_eq!(httpdate::fmt_http_date(kept.until()), "Mon, 01 Apr 2030 00:00:00 GMT");
        assert_eq!(httpdate::fmt_http_date(kept.due()), "Sat, 02 Mar 2030 00:00:00 GMT");
        let is_for = |names: &[&str]| kept.is_for(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert!(is_for(&["a.example"]) && is_for(&["*.b.example", "a.example"]));
        assert!(!is_for(&["a.example", "c.example"]) && !is_for(&["x.b.example"]));
    }

    #[test]
    fn what_is_kept_is_found_again_and_damage_is_told() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let files = |url: &str| Files::new(dir.path(), &Url::parse(url).expect("a URL"));
        let (one, other) = (files("https://acme.example/a/directory"), files("https://acme.example/b/directory"));
        assert!(one.certificate("*.a.example").expect("read").is_none() && one.account().expect("read").is_none());
        one.keep_certificate("*.a.example", pem(&["*.a.example"]).as_bytes()).expect("kept");
        one.keep_account(b"{}").expect("kept");
        assert!(one.certificate("*.a.example").expect("read").is_some());
        assert_eq!(one.account().expect("read").as_deref(), Some(&b"{}"[..]));
        assert!(other.account().expect("read").is_none(), "each server has its own");
        let file = dir.path().join("acme.example-a-directory/_.a.example.pem");
        let whole = pem(&["x"]);
        for text in ["", "garbage", &whole[..200], &whole[..whole.len() / 2]] {
            fs::write(&file, text).expect("written");
            let error = one.certificate("*.a.example").expect_err("damaged").to_string();
            assert!(error.contains("_.a.example.pem: no "), "{error}");
        }
        // The key of one certificate together with another certificate.
        let (a, b) = (pem(&["a.example"]), pem(&["a.example"]));
        let mixed = a[..a.find("-----BEGIN CERT").expect("a chain")].to_owned()
            + &b[b.find("-----BEGIN CERT").expect("a chain")..];
        fs::write(&file, mixed).expect("written");
        assert!(one.certificate("*.a.example").is_err());
    }
}
