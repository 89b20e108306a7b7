//! The names in a client's certificate.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

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
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            return Self::default();
        };
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
        let subject = certificate.subject();
        let mut names: Vec<_> = subject.iter_common_name().filter_map(text).collect();
        if let Ok(Some(alternatives)) = certificate.subject_alternative_name() {
            names.extend(alternatives.value.general_names.iter().filter_map(|name| match name {
                GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => {
                    Some((*name).to_owned())
                }
                _ => None,
            }));
        }
        Self { names, organisations: subject.iter_organization().filter_map(text).collect() }
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
