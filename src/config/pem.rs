//! Certificates and keys in PEM files.

use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::check::Check;

/// Reads all certificates of a file. Fails if there is none.
pub fn certificates(check: &Check<'_>, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    check.depends_on(path);
    let unreadable = |error| format!("cannot read certificates from {}: {error}", path.display());
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
    let unreadable = |error| format!("cannot read a private key from {}: {error}", path.display());
    PrivateKeyDer::from_pem_file(path).map_err(unreadable)
}
