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
    /// Reads a certificate in DER form; nothing of what cannot be read.
    pub fn read(der: &[u8]) -> Self {
        let Ok(certificate) = Certificate::read(der) else {
            return Self::default();
        };
        let Certificate { common_names, domains, others, organisations, .. } = certificate;
        Self { names: [common_names, domains, others].concat(), organisations }
    }

    #[cfg(test)]
    pub fn named(name: &str) -> Self {
        Self { names: vec![name.to_owned()], organisations: Vec::new() }
    }

    /// Its common name, or what it has instead.
    pub fn first(&self) -> Option<&str> {
        self.names.first().map(String::as_str)
    }

    /// Whether one of the names is `pattern`, which may begin with `*`.
    pub fn is_named(&self, pattern: &str) -> bool {
        match pattern.strip_prefix('*') {
            Some(end) => self.names.iter().any(|name| name.ends_with(end)),
            None => self.names.iter().any(|name| name == pattern),
        }
    }

    pub fn is_of(&self, organisation: &str) -> bool {
        self.organisations.iter().any(|name| name == organisation)
    }
}
