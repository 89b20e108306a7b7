//! TLS in front of a hub, with certificates made for the test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::hub::Hub;

/// A certificate authority, with its files in a directory.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
    name: String,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        std::fs::write(directory.join(format!("{name}.pem")), issuer.pem()).expect("written");
        Self { issuer, directory: directory.to_owned(), name: name.to_owned() }
    }

    /// The file with its certificate.
    pub fn file(&self) -> PathBuf {
        self.directory.join(format!("{}.pem", self.name))
    }

    /// Signs a certificate for a host, an address or a client.
    pub fn issue(&self, name: &str) -> Certificate {
        self.issue_with(name, |_| {})
    }

    /// One that has ended.
    pub fn issue_expired(&self, name: &str) -> Certificate {
        self.issue_with(name, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1))
    }

    /// One that is not good before long.
    pub fn issue_early(&self, name: &str) -> Certificate {
        self.issue_with(name, |params| params.not_before = rcgen::date_time_ymd(2090, 1, 1))
    }

    /// Signs a certificate of other content.
    pub fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        let file = |kind: &str| self.directory.join(format!("{}-{name}.{kind}", self.name));
        let files = Certificate { certificate: file("crt"), key: file("key") };
        std::fs::write(&files.certificate, signed.pem()).expect("written");
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }
}

impl Certificate {
    /// One that nobody signed but itself.
    pub fn self_signed(directory: &Path, name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        let signed = params.self_signed(&key).expect("signed");
        let file = |kind: &str| directory.join(format!("self-{name}.{kind}"));
        let files = Self { certificate: file("crt"), key: file("key") };
        std::fs::write(&files.certificate, signed.pem()).expect("written");
        std::fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }
}

/// Writes what a client believes, and what it shows, as Docker's `certs.d` has it; podman and skopeo have it so, too.
pub fn trust(directory: &Path, authority: Option<&Authority>, own: Option<&Certificate>) {
    let _ = std::fs::remove_dir_all(directory);
    std::fs::create_dir_all(directory).expect("made");
    let copy = |from: &Path, name: &str| {
        std::fs::copy(from, directory.join(name)).expect("copied");
    };
    if let Some(authority) = authority {
        copy(&authority.file(), "ca.crt");
    }
    if let Some(own) = own {
        copy(&own.certificate, "client.cert");
        copy(&own.key, "client.key");
    }
}

/// A client that believes the authorities in a file and may show a certificate.
pub fn https(roots: &Path, own: Option<&Certificate>) -> reqwest::ClientBuilder {
    https_over(&[], roots, own)
}

/// As [`https`], over these protocols (ALPN).
pub fn https_over(protocols: &[&[u8]], roots: &Path, own: Option<&Certificate>) -> reqwest::ClientBuilder {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots).expect("a file") {
        store.add(root.expect("a certificate")).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let builder = builder.with_root_certificates(store);
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let chain = CertificateDer::pem_file_iter(&own.certificate).expect("a file");
            let chain = chain.map(|certificate| certificate.expect("a certificate")).collect();
            let key = PrivateKeyDer::from_pem_file(&own.key).expect("a key");
            builder.with_client_auth_cert(chain, key).expect("a certificate")
        }
    };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    reqwest::Client::builder().no_proxy().tls_backend_preconfigured(config)
}

/// Opens TLS and passes on to a hub.
pub struct TlsFront {
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl TlsFront {
    /// With `clients`, only clients with a certificate of that authority are let in.
    pub async fn start(hub: &Hub, server: &Certificate, clients: Option<&Authority>) -> Self {
        Self::before(hub.address(), server, clients).await
    }

    /// As [`Self::start`], for any server.
    pub async fn before(behind: SocketAddr, server: &Certificate, clients: Option<&Authority>) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let builder = builder.expect("versions");
        let builder = match clients {
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.issuer.der().clone()).expect("a root");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.expect("a verifier"))
            }
            None => builder.with_no_client_auth(),
        };
        let chain = CertificateDer::pem_file_iter(&server.certificate).expect("a file");
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&server.key).expect("a key");
        let acceptor = TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).expect("a certificate")));

        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    if let (Ok(mut client), Ok(mut hub)) =
                        (acceptor.accept(stream).await, TcpStream::connect(behind).await)
                    {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut hub).await;
                    }
                });
            }
        });
        Self { address, serving }
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
