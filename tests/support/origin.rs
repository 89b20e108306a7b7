//! A web server that is no registry: pages of the test's choice, and a memory of what was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;

use super::tls::Certificate;

/// Serves pages; what it has no page for is answered with what was asked.
pub struct Origin {
    address: SocketAddr,
    is_tls: bool,
    state: Arc<State>,
    serving: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct State {
    pages: Mutex<HashMap<String, Page>>,
    seen: Mutex<Vec<Seen>>,
    told: Notify,
}

/// A request that arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    /// With the query.
    pub path: String,
    pub version: http::Version,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What is at one path.
#[derive(Clone, Default)]
pub struct Page {
    status: Option<StatusCode>,
    headers: Vec<(String, String)>,
    body: Bytes,
    /// The rest of the body waits for this.
    gate: Option<watch::Receiver<bool>>,
    /// The body has no more than so many bytes, and breaks off then.
    breaks_after: Option<usize>,
    /// The request's headers and body stand behind the body.
    reflects: bool,
}

impl Page {
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    pub fn status(mut self, status: u16) -> Self {
        self.status = Some(StatusCode::from_u16(status).expect("a status"));
        self
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// The request's headers and body stand behind the body.
    pub fn reflects(mut self) -> Self {
        self.reflects = true;
        self
    }

    /// The rest of the body comes when the sender says so.
    pub fn gated(mut self) -> (Self, watch::Sender<bool>) {
        let (open, gate) = watch::channel(false);
        self.gate = Some(gate);
        (self, open)
    }

    /// The body breaks off behind so many bytes when the sender says so.
    pub fn breaks_after(mut self, bytes: usize) -> (Self, watch::Sender<bool>) {
        self.breaks_after = Some(bytes);
        self.gated()
    }
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Origin {
    pub async fn http() -> Self {
        Self::start(None).await
    }

    pub async fn https(certificate: &Certificate) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let chain = CertificateDer::pem_file_iter(&certificate.certificate).expect("a file");
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&certificate.key).expect("a key");
        let config = builder.expect("versions").with_no_client_auth().with_single_cert(chain, key);
        let mut config = config.expect("a certificate");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Self::start(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let (state, is_tls) = (Arc::<State>::default(), tls.is_some());
        let shared = state.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, tls) = (shared.clone(), tls.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(state.clone(), request));
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = match tls {
                        None => builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await,
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await
                        }
                    };
                });
            }
        });
        Self { address, is_tls, state, serving }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.is_tls { "https" } else { "http" }, self.address)
    }

    /// Puts a page at a path (with its query, if any).
    pub fn put(&self, path: &str, page: Page) {
        self.state.pages.lock().expect("not poisoned").insert(path.to_owned(), page);
    }

    fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.state.seen.lock().expect("not poisoned")
    }

    /// The requests so far, which are then forgotten.
    pub fn take_requests(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen())
    }

    /// Waits for so many requests.
    pub async fn wait_for(&self, count: usize) {
        loop {
            let told = self.state.told.notified();
            if self.seen().len() >= count {
                return;
            }
            told.await;
        }
    }

    /// Ends at once, with all connections that come.
    pub fn stop(&self) {
        self.serving.abort();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

async fn answer(state: Arc<State>, mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let upgraded = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let seen = Seen {
        method: parts.method.to_string(),
        path: path.clone(),
        version: parts.version,
        headers: parts.headers.clone(),
        body: body.clone(),
    };
    state.seen.lock().expect("not poisoned").push(seen);
    state.told.notify_waiters();
    if parts.headers.contains_key("upgrade") {
        tokio::spawn(echo(upgraded));
        let response = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "loud");
        return Ok(response.body(full("")).expect("a response"));
    }
    let page = state.pages.lock().expect("not poisoned").get(&path).cloned();
    let Some(page) = page else {
        let text = format!("{} {path} {}", parts.method, String::from_utf8_lossy(&body));
        return Ok(Response::new(full(text)));
    };
    let header = |name: &str| page.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let asked = parts.headers.get("if-none-match").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let is_unmodified = asked.is_some() && asked == header("etag");
    let mut response = Response::builder().status(match is_unmodified {
        true => StatusCode::NOT_MODIFIED,
        false => page.status.unwrap_or(StatusCode::OK),
    });
    for (name, value) in &page.headers {
        response = response.header(name, value);
    }
    let mut page = page;
    if page.reflects {
        let reflected = format!("{:?} {}", parts.headers, String::from_utf8_lossy(&body));
        page.body = [&page.body[..], reflected.as_bytes()].concat().into();
    }
    let body = match (is_unmodified, page.gate) {
        (true, _) => full(""),
        (false, None) => full(page.body),
        (false, Some(mut gate)) => {
            response = response.header("content-length", page.body.len());
            let at = page.breaks_after.unwrap_or(1);
            let (first, rest) = (page.body.slice(..at), page.body.slice(at..));
            let rest = futures_util::stream::once(async move {
                let _ = gate.wait_for(|is_open| *is_open).await;
                // The library sends what it has while the body is not ready; an error at once would cut that, too.
                tokio::task::yield_now().await;
                match page.breaks_after {
                    None => Ok(Frame::data(rest)),
                    Some(_) => Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
                }
            });
            let parts = futures_util::stream::once(std::future::ready(Ok(Frame::data(first)))).chain(rest);
            StreamBody::new(parts).boxed_unsync()
        }
    };
    Ok(response.body(body).expect("a response"))
}

/// What is said to it comes back in capitals.
async fn echo(upgraded: hyper::upgrade::OnUpgrade) {
    let Ok(upgraded) = upgraded.await else { return };
    let mut stream = TokioIo::new(upgraded);
    let mut bytes = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut bytes).await {
        bytes[..count].make_ascii_uppercase();
        if stream.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
