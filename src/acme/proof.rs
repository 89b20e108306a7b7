//! Proves to an ACME server that a domain is ours.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use instant_acme::{ChallengeHandle, ChallengeType, Identifier};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::process::Command;

use super::error::AcmeError;
use crate::config::{AcmeChallenge, Hook};
use crate::program::{self, Reads};

/// How long a hook may take. In this time the record has to reach all of the domain's name servers.
const HOOK_PATIENCE: Duration = Duration::from_secs(300);
/// How long a hook may take to remove the record.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(60);

/// The proofs that are shown to ACME servers at the moment.
#[derive(Debug, Default)]
pub struct Proofs {
    /// Certificates for tls-alpn-01, by domain.
    certificates: Mutex<HashMap<String, Arc<CertifiedKey>>>,
    /// Key authorizations for http-01, by token.
    documents: Mutex<HashMap<String, String>>,
}

/// A proof that is shown, to be withdrawn later.
#[derive(Debug)]
pub enum Given {
    Certificate(String),
    Document(String),
    Record { domain: String, record: String, value: String },
}

impl Proofs {
    /// Returns the certificate that proves a domain (tls-alpn-01, RFC 8737).
    pub fn certificate(&self, domain: &str) -> Option<Arc<CertifiedKey>> {
        lock(&self.certificates).get(domain).cloned()
    }

    /// Returns the content of `/.well-known/acme-challenge/TOKEN` (RFC 8555, section 8.3).
    pub fn document(&self, token: &str) -> Option<String> {
        lock(&self.documents).get(token).cloned()
    }

    /// Shows the proof that a challenge asks for, and adds it to `given`.
    pub async fn give(
        &self,
        by: &AcmeChallenge,
        challenge: &ChallengeHandle<'_>,
        given: &mut Vec<Given>,
    ) -> Result<(), AcmeError> {
        let Identifier::Dns(domain) = challenge.identifier().identifier else {
            return Err(AcmeError::Protocol("the server asks about something that is no domain".to_owned()));
        };
        let domain = domain.to_ascii_lowercase();
        let key = challenge.key_authorization();
        match by {
            AcmeChallenge::TlsAlpn01 => {
                let certificate = certificate(&domain, key.digest().as_ref())?;
                lock(&self.certificates).insert(domain.clone(), Arc::new(certificate));
                given.push(Given::Certificate(domain));
            }
            AcmeChallenge::Http01 { .. } => {
                lock(&self.documents).insert(challenge.token.clone(), key.as_str().to_owned());
                given.push(Given::Document(challenge.token.clone()));
            }
            AcmeChallenge::Dns01 { hook } => {
                let record = format!("_acme-challenge.{domain}");
                let value = key.dns_value();
                // Noted before the hook runs: the record may be there even if the hook fails.
                given.push(Given::Record { domain: domain.clone(), record: record.clone(), value: value.clone() });
                run(hook, HOOK_PATIENCE, ["present", &domain, &record, &value]).await?;
            }
        }
        Ok(())
    }

    /// Withdraws the proofs that were shown.
    pub async fn take_back(&self, by: &AcmeChallenge, given: Vec<Given>) {
        for given in given {
            match (given, by) {
                (Given::Certificate(domain), _) => drop(lock(&self.certificates).remove(&domain)),
                (Given::Document(token), _) => drop(lock(&self.documents).remove(&token)),
                (Given::Record { domain, record, value }, AcmeChallenge::Dns01 { hook }) => {
                    if let Err(error) = run(hook, CLEANUP_PATIENCE, ["cleanup", &domain, &record, &value]).await {
                        tracing::warn!(%error, record, "the record of a challenge may still be there");
                    }
                }
                (Given::Record { .. }, _) => {}
            }
        }
    }
}

/// Returns the type of a challenge and its name in the protocol.
pub fn kind(challenge: &AcmeChallenge) -> (ChallengeType, &'static str) {
    match challenge {
        AcmeChallenge::TlsAlpn01 => (ChallengeType::TlsAlpn01, "tls-alpn-01"),
        AcmeChallenge::Http01 { .. } => (ChallengeType::Http01, "http-01"),
        AcmeChallenge::Dns01 { .. } => (ChallengeType::Dns01, "dns-01"),
    }
}

/// Makes a certificate that holds the digest of a key authorization (RFC 8737, section 3).
fn certificate(domain: &str, digest: &[u8]) -> Result<CertifiedKey, AcmeError> {
    let unusable = |error: &dyn std::fmt::Display| AcmeError::Certificate(error.to_string());
    let mut params = CertificateParams::new(vec![domain.to_owned()]).map_err(|error| unusable(&error))?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(|error| unusable(&error))?;
    let certificate = params.self_signed(&key).map_err(|error| unusable(&error))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = aws_lc_rs::default_provider().key_provider.load_private_key(key).map_err(|error| unusable(&error))?;
    // Key and certificate are not compared with each other: the extension is critical, and only ACME servers know it.
    Ok(CertifiedKey::new(vec![certificate.der().clone()], key))
}

async fn run(hook: &Hook, patience: Duration, arguments: [&str; 4]) -> Result<(), AcmeError> {
    let mut command = Command::new(&hook.program);
    command.args(&hook.arguments).args(arguments);
    let (name, [what, ..]) = (hook.program.display(), arguments);
    let ran = program::run(command, &[], Reads::Errors, patience).await;
    let ran = ran.map_err(|error| AcmeError::Hook(format!("{name} {what}: {error}")))?;
    match ran.is_success {
        true => Ok(()),
        false => Err(AcmeError::Hook(format!("{name} {what} failed: {}", ran.text()))),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
