//! A client that pulls as containerd does: HEAD of the tag, then GET by digest of the index, the manifest and the
//! configuration, then three layers at once. Connections are kept, at most two idle ones for each host, as Go's HTTP
//! client does. Each object is hashed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::header::{ACCEPT, AUTHORIZATION, HOST, LOCATION, RANGE, WWW_AUTHENTICATE};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::Result;
use crate::upstream::Image;

/// Most idle connections kept for one host.
const IDLE: usize = 2;
/// Layers fetched at once.
const LAYERS: usize = 3;
/// How late a timer may be.
const LATE: Duration = Duration::from_millis(10);

type Sender = SendRequest<Empty<Bytes>>;

/// A client of one registry, with its connections and its token.
pub struct Client {
    /// Scheme and authority.
    registry: String,
    /// What the registry's names begin with.
    prefix: &'static str,
    tls: TlsConnector,
    /// The bytes per second that it takes at most, and when it takes the next; `None`: as many as come.
    link: Option<(f64, Mutex<Instant>)>,
    idle: Mutex<HashMap<String, Vec<Sender>>>,
    token: Mutex<Option<String>>,
}

impl Client {
    /// Makes a client of the upstream itself.
    pub fn direct(registry: SocketAddr, authority: &Path) -> Result<Self> {
        Self::new(format!("https://{registry}"), "", authority)
    }

    /// Makes a client of Larder.
    pub fn of_larder(door: &str, authority: &Path) -> Result<Self> {
        Self::new(format!("http://{door}"), "hub/", authority)
    }

    fn new(registry: String, prefix: &'static str, authority: &Path) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority)?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = TlsConnector::from(Arc::new(tls));
        Ok(Self { registry, prefix, tls, link: None, idle: Mutex::default(), token: Mutex::default() })
    }

    /// Takes at most so many bytes per second.
    pub fn at_rate(mut self, rate: Option<f64>) -> Self {
        self.link = rate.map(|rate| (rate, Mutex::new(Instant::now())));
        self
    }

    /// Pulls an image by its tag.
    pub async fn pull(&self, tag: &str, image: &Image) -> Result<()> {
        self.get(Method::HEAD, "manifests", tag).await?;
        self.get(Method::GET, "manifests", &image.index).await?;
        self.get(Method::GET, "manifests", &image.manifest).await?;
        self.get(Method::GET, "blobs", &image.config).await?;
        let layers = image.layers.iter().map(|layer| self.get(Method::GET, "blobs", layer));
        stream::iter(layers).buffer_unordered(LAYERS).try_collect::<Vec<()>>().await?;
        Ok(())
    }

    /// Fetches one object of the name, with a token where one is wanted, and follows where it leads.
    async fn get(&self, method: Method, kind: &str, reference: &str) -> Result<()> {
        let mut url = format!("{}/v2/{}library/app/{kind}/{reference}", self.registry, self.prefix);
        for _ in 0..5 {
            let is_own = url.starts_with(&self.registry);
            let (sender, authority, response) = self.send(&method, &url, is_own).await?;
            let (parts, body) = response.into_parts();
            let found = self.hash(body).await?;
            self.keep(sender, authority).await;
            let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
            match parts.status {
                StatusCode::UNAUTHORIZED if is_own => {
                    Box::pin(self.fetch_token(header(WWW_AUTHENTICATE).ok_or("no challenge")?)).await?;
                }
                StatusCode::TEMPORARY_REDIRECT => url = header(LOCATION).ok_or("no Location")?.to_owned(),
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                    let is_right = method == Method::HEAD || found == reference;
                    return if is_right { Ok(()) } else { Err(format!("{found} came for {reference}").into()) };
                }
                status => return Err(format!("{status} for {url}").into()),
            }
        }
        Err("asked too often".into())
    }

    async fn fetch_token(&self, challenge: &str) -> Result<()> {
        let realm = challenge.split('"').nth(1).ok_or("no realm")?;
        let (sender, authority, response) = self.send(&Method::GET, &format!("{realm}?service=bench"), false).await?;
        let body = response.into_body().collect().await?.to_bytes();
        self.keep(sender, authority).await;
        let body: serde_json::Value = serde_json::from_slice(&body)?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = body["token"].as_str().map(str::to_owned);
        Ok(())
    }

    async fn send(&self, method: &Method, url: &str, is_own: bool) -> Result<(Sender, String, Response<Incoming>)> {
        let uri: Uri = url.parse()?;
        let authority = uri.authority().ok_or("no host")?.to_string();
        let kept = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.entry(authority.clone()).or_default().pop()
        };
        let mut sender = match kept.filter(Sender::is_ready) {
            Some(sender) => sender,
            None => self.connect(&uri, &authority).await?,
        };
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|_| is_own);
        let mut request = Request::builder()
            .method(method)
            .uri(uri.path_and_query().ok_or("no path")?.as_str())
            .header(HOST, &authority)
            .header(ACCEPT, "*/*");
        if method == Method::GET && is_own && url.contains("/blobs/") {
            request = request.header(RANGE, "bytes=0-");
        }
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = sender.send_request(request.body(Empty::new())?).await?;
        Ok((sender, authority, response))
    }

    async fn connect(&self, uri: &Uri, authority: &str) -> Result<Sender> {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        if uri.scheme_str() == Some("https") {
            let name = ServerName::try_from(uri.host().ok_or("no host")?.to_owned())?;
            let stream = self.tls.connect(name, stream).await?;
            let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            return Ok(sender);
        }
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn keep(&self, mut sender: Sender, authority: String) {
        if sender.ready().await.is_err() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = idle.entry(authority).or_default();
        if idle.len() < IDLE {
            idle.push(sender);
        }
    }

    async fn hash(&self, mut body: Incoming) -> Result<String> {
        let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                hash.update(&data);
                self.take(data.len()).await;
            }
        }
        let hex: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("sha256:{hex}"))
    }

    /// Waits as long as so many bytes take on the client's own link.
    async fn take(&self, bytes: usize) {
        let Some((rate, free_at)) = &self.link else { return };
        let until = {
            let mut free_at = free_at.lock().unwrap_or_else(PoisonError::into_inner);
            // What it did not take while nothing came, it does not take later; but a timer is not that exact.
            let earliest = Instant::now().checked_sub(LATE).unwrap_or_else(Instant::now);
            *free_at = (*free_at).max(earliest) + Duration::from_secs_f64(bytes as f64 / rate);
            *free_at
        };
        tokio::time::sleep_until(until).await;
    }
}
