//! The certificate and the proofs that the registry door shows.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::sign::CertifiedKey;

use super::proof::Proofs;

/// The certificate and the proofs that the registry door shows. They change while the door runs; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    certificate: ArcSwapOption<CertifiedKey>,
    proofs: Proofs,
}

impl Shown {
    /// Returns the certificate, once there is one.
    pub fn certificate(&self) -> Option<Arc<CertifiedKey>> {
        self.0.certificate.load_full()
    }

    /// Returns the certificate that proves `domain` to an ACME server (tls-alpn-01), while a challenge needs it.
    pub fn proof(&self, domain: &str) -> Option<Arc<CertifiedKey>> {
        self.0.proofs.certificate(domain)
    }

    /// Shows another certificate, or none.
    pub fn set(&self, certificate: Option<Arc<CertifiedKey>>) {
        self.0.certificate.store(certificate);
    }

    /// Returns the proofs.
    pub fn proofs(&self) -> &Proofs {
        &self.0.proofs
    }
}
