//! Certificates and keys in PEM files.

use std::path::Path;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::check::Check;

/// Reads all certificates of a file. Fails if there is none.
pub fn certificates(check: &Check<'_>, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    check.depends_on(path);
    let unreadable = |error| format!("cannot read certificates from {}: {}", path.display(), why(&error));
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(unreadable)?.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(format!("{} has no certificate in PEM form", path.display()));
    }
    Ok(certificates)
}

/// Reads the first private key of a file.
pub fn private_key(check: &Check<'_>, path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    check.depends_on(path);
    let unreadable = |error| format!("cannot read a private key from {}: {}", path.display(), why(&error));
    PrivateKeyDer::from_pem_file(path).map_err(unreadable)
}

/// Says why a file cannot be read. The library's words for the commonest reason are for programmers.
fn why(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "there is none in PEM form".to_owned(),
        other => other.to_string(),
    }
}
