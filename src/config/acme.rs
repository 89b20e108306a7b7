//! `[server.tls.acme]`, checked.

use std::net::SocketAddr;
use std::path::PathBuf;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use url::{Host, Url};

use super::check::Check;
use super::credentials;
use super::error::ConfigError;
use super::proxy::Proxies;
use super::raw::{self, AcmeChallengeType};
use super::secret::Secret;
use super::web::{WebAccess, trusted_url};

/// Certificates from an ACME server (RFC 8555).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// The domains that the certificate is for, in lower case; never empty. Only with `dns-01` may a domain begin with
    /// `*.`.
    pub domains: Vec<String>,
    /// The mail address to which the ACME server writes.
    pub email: Option<String>,
    pub challenge: AcmeChallenge,
    pub directory: Url,
    pub external: Option<ExternalAccount>,
    pub access: WebAccess,
}

/// An account that the authority knows already, to which Larder's ACME account is bound (RFC 8555, section 7.3.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalAccount {
    pub key_id: String,
    /// The key in base64, as authorities give it out.
    pub hmac_key: Secret,
}

impl ExternalAccount {
    /// Returns the decoded key; `None` if the text is no key.
    pub fn key(&self) -> Option<Vec<u8>> {
        let text = self.hmac_key.reveal().trim_end_matches('=');
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(text).or_else(|_| BASE64_STANDARD_NO_PAD.decode(text));
        decoded.ok().filter(|key| !key.is_empty())
    }
}

/// How Larder proves that it controls the domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// By a certificate that the registry door shows (RFC 8737).
    TlsAlpn01,
    /// By a document that Larder serves at these addresses (RFC 8555, section 8.3).
    Http01 { listen: Vec<SocketAddr> },
    /// By a DNS record that this command sets (RFC 8555, section 8.4).
    Dns01 { hook: Hook },
}

/// A program and its first arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

/// Default address for the documents of `http-01`.
const HTTP: &str = "0.0.0.0:80";

/// Checks `[server.tls.acme]` and reads the files that it names.
pub fn check(check: &Check<'_>, written: raw::Acme, proxies: &Proxies) -> Result<Acme, ConfigError> {
    let invalid = |key: &str, message: String| check.invalid(&["server", "tls", "acme", key], message);
    let challenge = challenge(&written).map_err(|(key, message)| invalid(key, message))?;
    let wildcards = matches!(challenge, AcmeChallenge::Dns01 { .. });
    if written.domains.0.is_empty() {
        let message = "it is missing; write for example domains = [\"mirror.example.com\"]".to_owned();
        return Err(invalid("domains", message));
    }
    let mut domains = Vec::new();
    for text in &written.domains.0 {
        let domain = domain(text, wildcards).map_err(|message| invalid("domains", message))?;
        if domains.contains(&domain) {
            return Err(invalid("domains", format!("`{text}` is there twice; remove one of them")));
        }
        domains.push(domain);
    }
    let email = written.email.trim();
    if !email.is_empty() && (!email.contains('@') || email.contains(|c: char| c.is_whitespace() || c.is_control())) {
        return Err(invalid("email", format!("`{email}` is no mail address")));
    }
    let directory = trusted_url(&written.directory, "\"https://acme-v02.api.letsencrypt.org/directory\"");
    let directory = directory.map_err(|message| invalid("directory", message))?;
    let access = WebAccess::new(check, &directory, written.ca_bundle.as_deref(), proxies);
    let access = access.map_err(|message| invalid("ca_bundle", message))?;
    let external = external(check, &written).map_err(|(key, message)| invalid(key, message))?;
    let email = (!email.is_empty()).then(|| email.to_owned());
    Ok(Acme { domains, email, challenge, directory, external, access })
}

fn challenge(written: &raw::Acme) -> Result<AcmeChallenge, (&'static str, String)> {
    let kind = written.challenge;
    if written.http_listen.is_some() && kind != AcmeChallengeType::Http01 {
        return Err(("http_listen", "it goes with challenge = \"http-01\"; take it out".to_owned()));
    }
    if !written.dns_hook.is_empty() && kind != AcmeChallengeType::Dns01 {
        return Err(("dns_hook", "it goes with challenge = \"dns-01\"; take it out".to_owned()));
    }
    match kind {
        AcmeChallengeType::TlsAlpn01 => Ok(AcmeChallenge::TlsAlpn01),
        AcmeChallengeType::Http01 => {
            let everywhere = || HTTP.parse().into_iter().collect();
            let listen = written.http_listen.as_ref().map_or_else(everywhere, |addresses| addresses.0.clone());
            Ok(AcmeChallenge::Http01 { listen })
        }
        AcmeChallengeType::Dns01 => {
            let Some((program, arguments)) = written.dns_hook.split_first() else {
                let message =
                    "it is missing; write the program that sets the record, for example [\"/usr/local/bin/dns-hook\"]";
                return Err(("dns_hook", message.to_owned()));
            };
            let program = credentials::program(program).map_err(|message| ("dns_hook", message))?;
            Ok(AcmeChallenge::Dns01 { hook: Hook { program, arguments: arguments.to_vec() } })
        }
    }
}

fn external(check: &Check<'_>, written: &raw::Acme) -> Result<Option<ExternalAccount>, (&'static str, String)> {
    let (key_id, file) = (written.eab_key_id.clone(), written.eab_hmac_key_file.as_deref());
    match (key_id.is_empty(), file) {
        (true, None) => Ok(None),
        (true, Some(_)) => Err(("eab_key_id", "it is missing; `eab_hmac_key_file` is the key to it".to_owned())),
        (false, None) => Err(("eab_hmac_key_file", "it is missing; the authority gave out both together".to_owned())),
        (false, Some(file)) => {
            let wrong = |message| ("eab_hmac_key_file", message);
            let hmac_key = credentials::read_password(check, file).map_err(wrong)?;
            let external = ExternalAccount { key_id, hmac_key };
            let is_key = external.key().is_some();
            let message = || format!("{} does not hold a key in base64", file.display());
            is_key.then_some(Some(external)).ok_or_else(|| wrong(message()))
        }
    }
}

fn domain(text: &str, may_be_wildcard: bool) -> Result<String, String> {
    let name = text.strip_prefix("*.");
    if name.is_some() && !may_be_wildcard {
        return Err(format!("`{text}` can only be had with challenge = \"dns-01\""));
    }
    let host = Host::parse(name.unwrap_or(text)).ok();
    let is_label = |label: &str| {
        let is_fine = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (1..=63).contains(&label.len()) && is_fine && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_name =
        |host: &Host| matches!(host, Host::Domain(name) if name.len() <= 253 && name.split('.').all(is_label));
    let Some(Host::Domain(host)) = host.filter(is_name) else {
        return Err(format!("`{text}` is no domain; write for example \"mirror.example.com\""));
    };
    Ok(if name.is_some() { format!("*.{host}") } else { host })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_in_both_kinds_of_base64() {
        let key = |text: &str| ExternalAccount { key_id: "x".to_owned(), hmac_key: Secret::new(text) }.key();
        assert_eq!(key("-_-_"), Some(vec![0xfb, 0xff, 0xbf]));
        assert_eq!(key("+/+/"), Some(vec![0xfb, 0xff, 0xbf]));
        assert_eq!(key("AQ=="), Some(vec![1]));
        assert_eq!((key(""), key("no key")), (None, None));
    }
}
