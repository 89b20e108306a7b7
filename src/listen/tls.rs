//! TLS towards clients.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::EndEntityCert;

use crate::auth::CertificateNames;
use crate::config::ServerTls;

/// A client has this long for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How a door does TLS; `None` inside: it does not. Changed while running, each connection is of what it was
/// when it was made.
#[derive(Clone, Default)]
pub struct Tls(Arc<ArcSwapOption<ServerConfig>>);

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("server.tls: {0}")]
pub struct TlsError(String);

impl Tls {
    pub fn new(config: Option<&ServerTls>) -> Result<Self, TlsError> {
        let tls = Self::default();
        tls.set(Self::prepare(config)?);
        Ok(tls)
    }

    /// What [`Tls::set`] takes.
    pub fn prepare(config: Option<&ServerTls>) -> Result<Option<Arc<ServerConfig>>, TlsError> {
        config.map(|config| server_config(config).map(Arc::new)).transpose().map_err(TlsError)
    }

    /// For new connections from now on.
    pub fn set(&self, config: Option<Arc<ServerConfig>>) {
        self.0.store(config);
    }

    /// What new connections do, if they do TLS.
    pub fn acceptor(&self) -> Option<TlsAcceptor> {
        self.0.load_full().map(TlsAcceptor::from)
    }
}

/// Shakes hands with a client.
pub async fn accept(acceptor: TlsAcceptor, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
    let shaken = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
    shaken.unwrap_or_else(|_| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the TLS handshake took too long")))
}

/// The names of the client's certificate, if it showed one; it was verified in the handshake.
pub fn names(stream: &TlsStream<TcpStream>) -> Option<Arc<CertificateNames>> {
    let (_, session) = stream.get_ref();
    let own = session.peer_certificates()?.first()?;
    Some(Arc::new(CertificateNames::read(own)))
}

fn server_config(tls: &ServerTls) -> Result<ServerConfig, String> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &tls.clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            for root in &clients.roots {
                roots.add(root.clone()).map_err(|error| format!("client_ca_bundle: {error}"))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = if clients.is_required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| format!("client_ca_bundle: {error}"))?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(tls.certificates.clone())));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Shows the certificate that is for the name which the client asks for, else the first.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let is_for = |certified: &&Arc<CertifiedKey>| {
            let certificate = certified.end_entity_cert().ok().and_then(|der| EndEntityCert::try_from(der).ok());
            let checked = certificate.zip(name.as_ref());
            checked.is_some_and(|(certificate, name)| certificate.verify_is_valid_for_subject_name(name).is_ok())
        };
        self.0.iter().find(is_for).or(self.0.first()).cloned()
    }
}
