//! The content of a certificate (RFC 5280).

use std::time::{Duration, SystemTime};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// The parts of a certificate that Larder uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub common_names: Vec<String>,
    pub organisations: Vec<String>,
    /// Alternative names, DNS names in lower case.
    pub domains: Vec<String>,
    /// Alternative names that are mail addresses or URIs.
    pub others: Vec<String>,
    /// Whether the certificate may sign others.
    pub is_authority: bool,
    /// The certificate's key (SubjectPublicKeyInfo), in DER form.
    pub public_key: Vec<u8>,
    pub from: SystemTime,
    pub until: SystemTime,
}

impl Certificate {
    /// Reads a certificate in DER form. The error says what is wrong with it.
    pub fn read(der: &[u8]) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
        let alternatives = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
        let (mut domains, mut others) = (Vec::new(), Vec::new());
        for name in alternatives.iter().flat_map(|alternatives| &alternatives.value.general_names) {
            match name {
                GeneralName::DNSName(name) => domains.push(name.to_ascii_lowercase()),
                GeneralName::RFC822Name(name) | GeneralName::URI(name) => others.push((*name).to_owned()),
                _ => {}
            }
        }
        let (subject, validity) = (certificate.subject(), certificate.validity());
        Ok(Self {
            common_names: subject.iter_common_name().filter_map(text).collect(),
            organisations: subject.iter_organization().filter_map(text).collect(),
            domains,
            others,
            is_authority: certificate.is_ca(),
            public_key: certificate.public_key().raw.to_vec(),
            from: time(validity.not_before),
            until: time(validity.not_after),
        })
    }

    /// Returns the common name, or the first alternative name if there is none.
    pub fn name(&self) -> &str {
        let mut names = self.common_names.iter().chain(&self.domains).chain(&self.others);
        names.next().map_or("", String::as_str)
    }
}

fn time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}
