//! A registry over TLS that wants tokens of a service on another host, and redirects blobs to a storage on a third.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, ETAG, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use http::{HeaderName, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::relay::{self, Line};
use crate::{Result, random};

const REGISTRY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const TOKENS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const STORAGE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const TOKEN: &str = "a-token-of-this-benchmark";

/// An image, by the digests of its parts.
#[derive(Clone, Debug)]
pub struct Image {
    pub index: String,
    pub manifest: String,
    pub config: String,
    pub layers: Vec<String>,
}

/// The registry with its hosts, at the far end of a line.
pub struct Upstream {
    pub registry: SocketAddr,
    /// The certificate of the authority of all three hosts, as a file.
    pub authority: PathBuf,
    pub counts: Arc<Counts>,
}

/// What was asked of it.
#[derive(Debug, Default)]
pub struct Counts {
    asked: Mutex<HashMap<&'static str, u64>>,
    connections: Arc<AtomicU64>,
}

impl Counts {
    fn count(&self, what: &'static str) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    /// Begins again from nothing.
    pub fn reset(&self) {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.connections.store(0, Ordering::Relaxed);
    }

    /// Returns the number of all requests.
    pub fn requests(&self) -> u64 {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Returns the requests by kind, and the connections, for people.
    pub fn summary(&self) -> String {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kinds: Vec<_> = asked.iter().map(|(what, count)| format!("{what} {count}")).collect();
        kinds.sort();
        format!("{}; connections {}", kinds.join(", "), self.connections.load(Ordering::Relaxed))
    }
}

/// What the hosts hold, and where they are.
struct Held {
    objects: HashMap<String, (Bytes, &'static str)>,
    tags: HashMap<String, String>,
    counts: Arc<Counts>,
    /// The hosts as clients reach them; set once they listen.
    addresses: Mutex<Option<(SocketAddr, SocketAddr)>>,
}

/// The content of a registry that does not serve yet.
#[derive(Default)]
pub struct Content {
    objects: HashMap<String, (Bytes, &'static str)>,
    tags: HashMap<String, String>,
}

impl Content {
    /// Adds an image of `layers` layers of `size` random bytes, under a tag.
    pub fn add_image(&mut self, tag: &str, layers: usize, size: usize) -> Result<Image> {
        let config = self.add(random(2_000)?, "application/octet-stream");
        let layers: Vec<_> =
            (0..layers).map(|_| Ok(self.add(random(size)?, "application/octet-stream"))).collect::<Result<_>>()?;
        let describe = |digest: &str, media_type: &str| {
            let size = self.objects.get(digest).map_or(0, |(bytes, _)| bytes.len());
            serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size })
        };
        let layer_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": describe(&config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers.iter().map(|layer| describe(layer, layer_type)).collect::<Vec<_>>(),
        });
        let manifest = Bytes::from(manifest.to_string());
        let size = manifest.len();
        let manifest = self.add(manifest, MANIFEST);
        let index = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [{
                "mediaType": MANIFEST, "digest": manifest, "size": size,
                "platform": { "os": "linux", "architecture": "amd64" },
            }],
        });
        let index = self.add(Bytes::from(index.to_string()), INDEX);
        self.tags.insert(tag.to_owned(), index.clone());
        Ok(Image { index, manifest, config, layers })
    }

    fn add(&mut self, bytes: Bytes, media_type: &'static str) -> String {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("sha256:{hex}");
        self.objects.insert(digest.clone(), (bytes, media_type));
        digest
    }

    /// Serves it at the far end of a line. The authority's certificate is written into `directory`.
    pub async fn serve(&self, line: Line, directory: &Path) -> Result<Upstream> {
        let (acceptor, authority) = certificates(directory)?;
        let counts = Arc::new(Counts::default());
        let held = Arc::new(Held {
            objects: self.objects.clone(),
            tags: self.tags.clone(),
            counts: counts.clone(),
            addresses: Mutex::default(),
        });
        let shared = line.is_shared.then(relay::Queue::new);
        let mut reached = Vec::new();
        for (host, answer) in [(REGISTRY, Host::Registry), (TOKENS, Host::Tokens), (STORAGE, Host::Storage)] {
            let listener = TcpListener::bind((host, 0)).await?;
            let behind = listener.local_addr()?;
            tokio::spawn(accept(listener, acceptor.clone(), held.clone(), answer));
            let line = (line, shared.clone());
            reached.push(relay::start(line, host, behind, counts.connections.clone()).await?);
        }
        let [registry, tokens, storage] = reached[..] else { return Err("three hosts".into()) };
        *held.addresses.lock().unwrap_or_else(PoisonError::into_inner) = Some((tokens, storage));
        Ok(Upstream { registry, authority, counts })
    }
}

fn certificates(directory: &Path) -> Result<(TlsAcceptor, PathBuf)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "bench");
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let authority = directory.join("authority.pem");
    std::fs::write(&authority, issuer.pem())?;
    let params = CertificateParams::new([REGISTRY, TOKENS, STORAGE].map(|host| host.to_string()))?;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::try_from(key.serialize_der())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    Ok((TlsAcceptor::from(Arc::new(tls)), authority))
}

#[derive(Clone, Copy)]
enum Host {
    Registry,
    Tokens,
    Storage,
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, held: Arc<Held>, host: Host) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, held) = (acceptor.clone(), held.clone());
        tokio::spawn(async move {
            // Small answers are not to wait for the acknowledgement of earlier ones.
            let _ = stream.set_nodelay(true);
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(|request| {
                let response = match host {
                    Host::Registry => held.registry(&request),
                    Host::Tokens => held.token(),
                    Host::Storage => held.storage(&request),
                };
                async move { Ok::<_, Infallible>(response) }
            });
            // Whoever leaves in the middle of an answer leaves.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Answer = Response<Full<Bytes>>;

fn answer(status: StatusCode, body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}

fn with(mut response: Answer, headers: &[(HeaderName, &str)]) -> Answer {
    for (name, value) in headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

impl Held {
    fn addresses(&self) -> (SocketAddr, SocketAddr) {
        let unset = SocketAddr::from(([0, 0, 0, 0], 0));
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or((unset, unset))
    }

    fn registry(&self, request: &Request<Incoming>) -> Answer {
        let (tokens, storage) = self.addresses();
        let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        if authorization != Some(&format!("Bearer {TOKEN}")) {
            self.counts.count("refused without a token");
            let challenge =
                format!(r#"Bearer realm="https://{tokens}/token",service="bench",scope="repository:library/app:pull""#);
            return with(answer(StatusCode::UNAUTHORIZED, Bytes::new()), &[(WWW_AUTHENTICATE, &challenge)]);
        }
        let path = request.uri().path();
        let page = path.strip_prefix("/v2/library/app/").and_then(|page| page.split_once('/'));
        match page {
            Some(("manifests", reference)) => {
                let digest = self.tags.get(reference).map_or(reference, String::as_str);
                let is_head = request.method() == Method::HEAD;
                self.counts.count(if is_head { "HEAD manifest" } else { "GET manifest" });
                let Some((bytes, media_type)) = self.objects.get(digest) else {
                    return answer(StatusCode::NOT_FOUND, Bytes::new());
                };
                with(answer(StatusCode::OK, bytes.clone()), &[(CONTENT_TYPE, media_type), (DIGEST, digest)])
            }
            Some(("blobs", digest)) => {
                self.counts.count("blob redirect");
                let url = format!("https://{storage}/{digest}?signature=of-{digest}");
                with(answer(StatusCode::TEMPORARY_REDIRECT, Bytes::new()), &[(LOCATION, &url)])
            }
            _ => {
                self.counts.count("other");
                answer(StatusCode::OK, Bytes::new())
            }
        }
    }

    fn token(&self) -> Answer {
        self.counts.count("token");
        let body = format!(r#"{{"token":"{TOKEN}","expires_in":300}}"#);
        with(answer(StatusCode::OK, body.into()), &[(CONTENT_TYPE, "application/json")])
    }

    fn storage(&self, request: &Request<Incoming>) -> Answer {
        let digest = request.uri().path().trim_start_matches('/');
        let is_signed = request.uri().query() == Some(&format!("signature=of-{digest}"));
        let Some((bytes, media_type)) = self.objects.get(digest).filter(|_| is_signed) else {
            self.counts.count("refused by the storage");
            return answer(StatusCode::FORBIDDEN, Bytes::new());
        };
        let told = [(CONTENT_TYPE, *media_type), (ACCEPT_RANGES, "bytes"), (ETAG, "\"1\"")];
        let range = request.headers().get(RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
        let Some((from, last)) = range.and_then(|range| range.split_once('-')) else {
            self.counts.count("blob");
            return with(answer(StatusCode::OK, bytes.clone()), &told);
        };
        self.counts.count("range of a blob");
        let size = bytes.len();
        let from: usize = from.parse().unwrap_or(0);
        let end = last.parse().map_or(size, |last: usize| (last + 1).min(size));
        if from >= end {
            return answer(StatusCode::RANGE_NOT_SATISFIABLE, Bytes::new());
        }
        let range = format!("bytes {from}-{}/{size}", end - 1);
        let response = with(answer(StatusCode::PARTIAL_CONTENT, bytes.slice(from..end)), &told);
        with(response, &[(CONTENT_RANGE, &range)])
    }
}
