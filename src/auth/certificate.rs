//! The names in a client's certificate.

use crate::x509::Certificate;

/// The names of a certificate whose chain was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// Common name and alternative names: DNS names, mail addresses, URIs.
    names: Vec<String>,
    organisations: Vec<String>,
}

impl CertificateNames {
    /// Reads a certificate in DER form. A certificate that cannot be read has no names.
    pub fn read(der: &[u8]) -> Self {
        let Ok(certificate) = Certificate::read(der) else {
            return Self::default();
        };
        let Certificate { common_names, domains, others, organisations, .. } = certificate;
        Self { names: [common_names, domains, others].concat(), organisations }
    }

    /// Makes the names of a certificate that has this name alone.
    #[cfg(test)]
    pub fn named(name: &str) -> Self {
        Self { names: vec![name.to_owned()], organisations: Vec::new() }
    }

    /// Returns the common name, or the first alternative name where there is none.
    pub fn first(&self) -> Option<&str> {
        self.names.first().map(String::as_str)
    }

    /// Returns whether one of the names matches `pattern`, which may begin with `*`.
    pub fn is_named(&self, pattern: &str) -> bool {
        match pattern.strip_prefix('*') {
            Some(end) => self.names.iter().any(|name| name.ends_with(end)),
            None => self.names.iter().any(|name| name == pattern),
        }
    }

    /// Returns whether the certificate names this organisation.
    pub fn is_of(&self, organisation: &str) -> bool {
        self.organisations.iter().any(|name| name == organisation)
    }
}
