//! What the registry door shows of certificates and proofs.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::sign::CertifiedKey;

use super::proof::Proofs;

/// What the registry door shows; changes while it runs.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    certificate: ArcSwapOption<CertifiedKey>,
    proofs: Proofs,
}

impl Shown {
    /// The certificate, once there is one.
    pub fn certificate(&self) -> Option<Arc<CertifiedKey>> {
        self.0.certificate.load_full()
    }

    /// What an ACME server wants to see that asks for `domain` (tls-alpn-01), if it was told to.
    pub fn proof(&self, domain: &str) -> Option<Arc<CertifiedKey>> {
        self.0.proofs.certificate(domain)
    }

    /// Shows another certificate, or none.
    pub fn set(&self, certificate: Option<Arc<CertifiedKey>>) {
        self.0.certificate.store(certificate);
    }

    pub fn proofs(&self) -> &Proofs {
        &self.0.proofs
    }
}
