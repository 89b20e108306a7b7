//! How Larder reaches servers that are no upstreams: issuers of tokens and of certificates.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use url::Url;

use super::check::Check;
use super::pem;
use super::proxy::{Proxies, is_loopback};
use super::shapes::why_no_url;

/// How Larder reaches one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebAccess {
    /// The only root certificates that are trusted; `None`: those of the system.
    pub roots: Option<Vec<CertificateDer<'static>>>,
    pub proxies: Proxies,
}

impl WebAccess {
    /// Returns the access to the server of `url`, through a proxy of the environment unless the server is on this
    /// machine. Fails if the bundle cannot be read.
    pub(super) fn new(check: &Check<'_>, url: &Url, bundle: Option<&Path>, proxies: &Proxies) -> Result<Self, String> {
        let roots = bundle.map(|bundle| pem::certificates(check, bundle)).transpose()?;
        let proxies = if is_loopback(url) { Proxies::default() } else { proxies.clone() };
        Ok(Self { roots, proxies })
    }
}

/// Reads the URL of a server whose statements are trusted, which therefore has to be asked over TLS or on this machine.
pub fn trusted_url(text: &str, example: &str) -> Result<Url, String> {
    let url = Url::parse(text)
        .map_err(|error| format!("this is no URL ({}); write for example {example}", why_no_url(error)))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("there is a user name or password in it, which is not sent; take it out".to_owned());
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        _ => Err(format!("`{text}` does not begin with https://, so that anybody on the way could answer for it")),
    }
}
