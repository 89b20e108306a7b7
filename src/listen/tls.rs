//! TLS towards clients.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::crypto::aws_lc_rs;
use rustls::server::{Acceptor, ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ConfigBuilder, RootCertStore, ServerConfig, ServerConnection, WantsVerifier};
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;
use webpki::EndEntityCert;

use crate::acme::Shown;
use crate::auth::CertificateNames;
use crate::config::{ClientRoots, ServerTls};

/// How long a client has for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Bytes that are encrypted ahead of the client: one record of TLS (RFC 8446, section 5.1).
const RECORDS: usize = 16 * 1024;

/// The protocol of an ACME server that asks for a proof (RFC 8737).
const ACME: &[u8] = b"acme-tls/1";

/// The TLS of a door; `None` inside: the door uses no TLS. It can change while the process runs; each connection keeps
/// the TLS of the moment when it was made.
#[derive(Clone)]
pub struct Tls {
    handshakes: Arc<ArcSwapOption<Handshakes>>,
    shown: Shown,
    /// Notified when open connections would be made differently now.
    renewed: Arc<watch::Sender<()>>,
}

/// The TLS configuration of a door.
pub struct Handshakes {
    clients: Arc<ServerConfig>,
    /// The roots by which clients' certificates are verified.
    roots: Option<ClientRoots>,
    /// For ACME servers, which have no client certificate.
    proofs: Arc<ServerConfig>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("server.tls: {0}")]
pub struct TlsError(String);

impl Tls {
    /// `shown`: the certificates and proofs that ACME gives.
    pub fn new(config: Option<&ServerTls>, shown: Shown) -> Result<Self, TlsError> {
        let tls = Self { handshakes: Arc::default(), shown, renewed: Arc::default() };
        tls.set(tls.prepare(config)?);
        Ok(tls)
    }

    /// Returns what [`Tls::set`] takes.
    pub fn prepare(&self, config: Option<&ServerTls>) -> Result<Option<Arc<Handshakes>>, TlsError> {
        let prepared = config.map(|config| Handshakes::new(config, &self.shown).map(Arc::new)).transpose();
        prepared.map_err(TlsError)
    }

    /// Puts handshakes in force for new connections. Open connections go on, unless other roots decide which clients
    /// may connect: then they end with their running requests.
    pub fn set(&self, handshakes: Option<Arc<Handshakes>>) {
        let lets_in = |handshakes: &Option<Arc<Handshakes>>| handshakes.as_ref().map(|now| now.roots.clone());
        let now = lets_in(&handshakes);
        let before = lets_in(&self.handshakes.swap(handshakes));
        if before != now {
            self.renewed.send_replace(());
        }
    }

    /// Returns a receiver that is notified when connections are to end. Call it before [`Tls::handshakes`], so that no
    /// change is missed.
    pub fn renewed(&self) -> watch::Receiver<()> {
        self.renewed.subscribe()
    }

    /// Returns the handshakes for new connections; `None`: no TLS.
    pub fn handshakes(&self) -> Option<Arc<Handshakes>> {
        self.handshakes.load_full()
    }
}

impl Handshakes {
    fn new(tls: &ServerTls, shown: &Shown) -> Result<Self, String> {
        let clients = Arc::new(server_config(tls, shown)?);
        let mut proofs = builder()?.with_no_client_auth().with_cert_resolver(Arc::new(Proof(shown.clone())));
        proofs.alpn_protocols = vec![ACME.to_vec()];
        Ok(Self { clients, roots: tls.clients.clone(), proofs: Arc::new(proofs) })
    }

    /// Does the handshake. `None`: the client was an ACME server, which has received its proof.
    pub async fn shake(&self, stream: TcpStream) -> std::io::Result<Option<TlsStream<TcpStream>>> {
        let shaken = async {
            let begun = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
            let is_acme = begun.client_hello().alpn().is_some_and(|mut offered| offered.any(|name| name == ACME));
            if is_acme {
                begun.into_stream(self.proofs.clone()).await?.shutdown().await?;
                return Ok(None);
            }
            begun.into_stream_with(self.clients.clone(), bound).await.map(Some)
        };
        let late = || std::io::Error::new(std::io::ErrorKind::TimedOut, "the TLS handshake took too long");
        tokio::time::timeout(HANDSHAKE, shaken).await.unwrap_or_else(|_| Err(late()))
    }
}

/// Bounds what a connection keeps of bytes that its client does not take.
pub fn bound(connection: &mut ServerConnection) {
    connection.set_buffer_limit(Some(RECORDS));
}

/// Returns the names of the client's certificate, if it showed one; the handshake has verified it.
pub fn names(stream: &TlsStream<TcpStream>) -> Option<Arc<CertificateNames>> {
    let (_, session) = stream.get_ref();
    let own = session.peer_certificates()?.first()?;
    Some(Arc::new(CertificateNames::read(own)))
}

fn builder() -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, String> {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    builder.with_safe_default_protocol_versions().map_err(|error| error.to_string())
}

fn server_config(tls: &ServerTls, shown: &Shown) -> Result<ServerConfig, String> {
    let builder = builder()?;
    let builder = match &tls.clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            for root in &clients.roots {
                roots.add(root.clone()).map_err(|error| format!("client_ca_bundle: {error}"))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), builder.crypto_provider().clone());
            let verifier = if clients.is_required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| format!("client_ca_bundle: {error}"))?)
        }
    };
    let acme = tls.acme.is_some().then(|| shown.clone());
    let mut config = builder.with_cert_resolver(Arc::new(ByName { certificates: tls.certificates.clone(), acme }));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Shows the certificate for the name that the client asks for, else the first one.
#[derive(Debug)]
struct ByName {
    certificates: Vec<Arc<CertifiedKey>>,
    acme: Option<Shown>,
}

/// Shows an ACME server the proof that this server controls a domain.
#[derive(Debug)]
struct Proof(Shown);

impl ResolvesServerCert for Proof {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.proof(&hello.server_name()?.to_ascii_lowercase())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let is_for = |certified: &&Arc<CertifiedKey>| {
            let certificate = certified.end_entity_cert().ok().and_then(|der| EndEntityCert::try_from(der).ok());
            let checked = certificate.zip(name.as_ref());
            checked.is_some_and(|(certificate, name)| certificate.verify_is_valid_for_subject_name(name).is_ok())
        };
        let certificates = &self.certificates;
        let found = certificates.iter().find(is_for).or(certificates.first()).cloned();
        found.or_else(|| self.acme.as_ref()?.certificate())
    }
}
