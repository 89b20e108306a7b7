//! `[server.tls]`, checked.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use super::acme::{self, Acme};
use super::check::Check;
use super::error::ConfigError;
use super::pem;
use super::proxy::Proxies;
use super::raw::{self, ClientAuth};

/// TLS of the registry door.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// Certificate chains with their keys. A client gets the one that fits the name that it asks for, or the first if
    /// none fits. Empty only with `acme`.
    pub certificates: Vec<Arc<CertifiedKey>>,
    /// The ACME server that the certificates come from instead.
    pub acme: Option<Acme>,
    /// The authorities whose client certificates are trusted.
    pub clients: Option<ClientRoots>,
}

/// The authorities of client certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRoots {
    pub roots: Vec<CertificateDer<'static>>,
    /// Whether a client without a certificate is turned away.
    pub is_required: bool,
}

/// Checks `[server.tls]` and reads the files that it names.
pub fn check(check: &Check<'_>, written: raw::ServerTls, proxies: &Proxies) -> Result<ServerTls, ConfigError> {
    let invalid = |key: &str, message: String| check.invalid(&["server", "tls", key], message);
    let (chains, keys) = (written.certificate.0, written.private_key.0);
    let acme = written.acme.map(|acme| acme::check(check, acme, proxies)).transpose()?;
    if acme.is_some() {
        if let Some(key) =
            [("certificate", &chains), ("private_key", &keys)].into_iter().find(|(_, list)| !list.is_empty())
        {
            return Err(invalid(key.0, "[server.tls.acme] gets the certificate; take one of the two out".to_owned()));
        }
    } else if chains.is_empty() {
        let message = "it is missing; write for example certificate = \"fullchain.pem\", and take [server.tls] out for plain HTTP";
        return Err(invalid("certificate", message.to_owned()));
    }
    if keys.is_empty() && acme.is_none() {
        return Err(invalid("private_key", "it is missing; write for example private_key = \"key.pem\"".to_owned()));
    }
    if chains.len() != keys.len() {
        let message = format!("there are {} for {} certificates; each needs its own", keys.len(), chains.len());
        return Err(invalid("private_key", message));
    }
    let certificates =
        chains.iter().zip(&keys).map(|(chain, key)| certified(check, Path::new(chain), Path::new(key), &invalid));
    let certificates = certificates.collect::<Result<_, _>>()?;
    let clients = match (written.client_ca_bundle, written.client_auth) {
        (None, None) => None,
        (None, Some(_)) => {
            let message =
                "a `client_ca_bundle` is needed with it: the authorities whose client certificates are believed";
            return Err(invalid("client_auth", message.to_owned()));
        }
        (Some(bundle), auth) => {
            let roots = pem::certificates(check, &bundle).map_err(|message| invalid("client_ca_bundle", message))?;
            Some(ClientRoots { roots, is_required: auth == Some(ClientAuth::Required) })
        }
    };
    Ok(ServerTls { certificates, acme, clients })
}

/// Reads a certificate chain with its key. `invalid` makes the error of a key, `certificate` or `private_key`.
pub(super) fn certified(
    check: &Check<'_>,
    chain: &Path,
    key: &Path,
    invalid: &impl Fn(&str, String) -> ConfigError,
) -> Result<Arc<CertifiedKey>, ConfigError> {
    let certificates = pem::certificates(check, chain).map_err(|message| invalid("certificate", message))?;
    let private = pem::private_key(check, key).map_err(|message| invalid("private_key", message))?;
    let certified = CertifiedKey::from_der(certificates, private, &aws_lc_rs::default_provider());
    certified.map(Arc::new).map_err(|error| {
        let message = match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("{} is not the key of {}", key.display(), chain.display())
            }
            other => format!("{} cannot be used with {}: {other}", key.display(), chain.display()),
        };
        invalid("private_key", message)
    })
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        let chains = |tls: &Self| tls.certificates.iter().map(|own| own.cert.clone()).collect::<Vec<_>>();
        self.clients == other.clients && self.acme == other.acme && chains(self) == chains(other)
    }
}
