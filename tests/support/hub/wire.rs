//! HTTP/1.1 by hand: a scripted server must be able to break a promise at an exact byte, and must know how many bytes
//! the kernel took. No HTTP library lets it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Shared;
use super::faults::{Gate, Supply};

const WRITE_SIZE: usize = 64 * 1024;
const LONGEST_HEAD: usize = 64 * 1024;

/// The part of the hub that a request was for. A token or storage request that comes to the registry's own port (see
/// `TokenPlace::Registry` and `Redirect::Relative`) still counts as `Token` or `Storage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    Registry,
    Token,
    Storage,
}

/// What a request asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Manifest,
    Blob,
    Tags,
    Referrers,
    Token,
    /// Whatever is on the host that redirects point to.
    Storage,
    /// `/v2/` and whatever else.
    Other,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub listener: Listener,
    pub kind: Kind,
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The repository; empty if the path has none.
    pub name: String,
    /// The tag or digest; empty if the path has none.
    pub reference: String,
    pub at: Instant,
}

impl Request {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The first value of a query parameter.
    pub fn query_value(&self, key: &str) -> Option<String> {
        self.query_values(key).into_iter().next()
    }

    pub fn query_values(&self, key: &str) -> Vec<String> {
        url::form_urlencoded::parse(self.query.as_bytes())
            .filter(|(name, _)| name == key)
            .map(|(_, value)| value.into_owned())
            .collect()
    }

    fn parse(listener: Listener, head: &str) -> Option<Self> {
        let mut lines = head.split("\r\n");
        let mut first = lines.next()?.split(' ');
        let (method, target) = (first.next()?.to_owned(), first.next()?);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = percent_decode_str(path).decode_utf8().ok()?.into_owned();
        let mut headers = HeaderMap::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            headers.append(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value.trim()).ok()?);
        }
        let (kind, name, reference) = classify(listener, &path);
        let listener = match kind {
            Kind::Token => Listener::Token,
            Kind::Storage => Listener::Storage,
            _ => listener,
        };
        let (name, reference) = (name.to_owned(), reference.to_owned());
        let (query, body, at) = (query.to_owned(), Bytes::new(), Instant::now());
        Some(Self { listener, kind, method, name, reference, path, query, headers, body, at })
    }
}

/// Where registries have their token services.
const TOKEN_PATHS: [&str; 8] =
    ["/token", "/token/", "/v2/token", "/v2/auth", "/service/token", "/jwt/auth", "/proxy_auth", OTHER_REALM];
/// A token service that gives anonymous clients none.
pub(super) const OTHER_REALM: &str = "/authn/token";

fn classify(listener: Listener, path: &str) -> (Kind, &str, &str) {
    if TOKEN_PATHS.contains(&path) {
        return (Kind::Token, "", "");
    }
    if let Some(digest) = path.strip_prefix("/storage/") {
        return (Kind::Storage, "", digest);
    }
    if let (Listener::Storage, Some(rest)) = (listener, path.strip_prefix("/v2/"))
        && let Some((name, reference)) = rest.rsplit_once("/manifests/")
    {
        return (Kind::Storage, name, reference);
    }
    let Some(rest) = path.strip_prefix("/v2/").filter(|_| listener == Listener::Registry) else {
        return (Kind::Other, "", "");
    };
    if let Some(name) = rest.strip_suffix("/tags/list") {
        return (Kind::Tags, name, "");
    }
    let kinds = [("/manifests/", Kind::Manifest), ("/blobs/", Kind::Blob), ("/referrers/", Kind::Referrers)];
    for (marker, kind) in kinds {
        if let Some((name, reference)) = rest.rsplit_once(marker) {
            return (kind, name, reference);
        }
    }
    (Kind::Other, "", "")
}

/// What to answer, and how.
#[derive(Clone, Debug)]
pub(super) struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
    /// Where `body` begins in the whole object, for gates.
    pub offset: u64,
    /// The digest that these bytes are counted for.
    pub counts_for: Option<String>,
    pub delivery: Delivery,
}

/// The ways in which a delivery differs from a good one.
#[derive(Clone, Debug, Default)]
pub(super) struct Delivery {
    pub never: bool,
    pub drop: bool,
    pub delay: Duration,
    pub holds: Vec<Gate>,
    pub gates: Vec<Gate>,
    pub supply: Option<Supply>,
    pub cut_after: Option<usize>,
    pub chunked: bool,
    pub bytes_per_second: Option<u64>,
    pub chunk: Option<usize>,
}

impl Response {
    pub fn new(status: u16) -> Self {
        let (headers, body) = (Vec::new(), Bytes::new());
        Self { status, headers, body, offset: 0, counts_for: None, delivery: Delivery::default() }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn body(mut self, media_type: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", media_type)
    }

    pub fn json(status: u16, document: &serde_json::Value) -> Self {
        Self::new(status).body("application/json", document.to_string())
    }

    /// An error as the distribution specification writes it.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        Self::json(status, &serde_json::json!({"errors": [{"code": code, "message": message, "detail": null}]}))
    }

    pub fn remove_header(&mut self, name: &str) {
        self.headers.retain(|(present, _)| present != name);
    }

    /// Takes over another answer, but keeps what was already settled about the delivery.
    pub fn replace(&mut self, other: Self) {
        *self = Self { delivery: std::mem::take(&mut self.delivery), ..other };
    }
}

/// Serves one connection until either side ends it.
pub(super) async fn serve(mut stream: TcpStream, listener: Listener, shared: Arc<Shared>) {
    let _open = shared.count_connection();
    // Without it the kernel holds small pieces back, and a gate would be reached before its bytes arrive.
    let _ = stream.set_nodelay(true);
    let mut buffer = BytesMut::new();
    while let Some(request) = read_request(&mut stream, &mut buffer, listener).await {
        let close = request.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let is_head = request.method == "HEAD";
        let response = shared.answer(request);
        if write_response(&mut stream, response, is_head, &shared).await.is_err() || close {
            return;
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut BytesMut, listener: Listener) -> Option<Request> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if buffer.len() > LONGEST_HEAD || stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = buffer.split_to(end);
    buffer.advance(4);
    let mut request = Request::parse(listener, std::str::from_utf8(&head).ok()?)?;
    let length = request.header("content-length").map_or(Some(0), |value| value.parse::<usize>().ok())?;
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    request.body = buffer.split_to(length).freeze();
    Some(request)
}

/// An error means that the connection must not be used again.
async fn write_response(stream: &mut TcpStream, response: Response, is_head: bool, shared: &Shared) -> io::Result<()> {
    let delivery = &response.delivery;
    if delivery.never {
        return unless_gone(stream, std::future::pending()).await;
    }
    if delivery.drop {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    if !delivery.delay.is_zero() {
        unless_gone(stream, tokio::time::sleep(delivery.delay)).await?;
    }
    for gate in &delivery.holds {
        unless_gone(stream, gate.pass(0)).await?;
    }
    stream.write_all(head_of(&response).as_bytes()).await?;
    if !is_head && !matches!(response.status, 204 | 304) {
        write_body(stream, &response, shared).await?;
    }
    stream.flush().await
}

fn head_of(response: &Response) -> String {
    let reason = StatusCode::from_u16(response.status).ok().and_then(|status| status.canonical_reason());
    let mut head = format!("HTTP/1.1 {} {}\r\n", response.status, reason.unwrap_or("Unknown"));
    for (name, value) in &response.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("date: {}\r\n", httpdate::fmt_http_date(std::time::SystemTime::now())));
    if response.delivery.chunked {
        head.push_str("transfer-encoding: chunked\r\n");
    } else if !matches!(response.status, 204 | 304) {
        head.push_str(&format!("content-length: {}\r\n", response.body.len()));
    }
    head.push_str("\r\n");
    head
}

async fn write_body(stream: &mut TcpStream, response: &Response, shared: &Shared) -> io::Result<()> {
    let delivery = &response.delivery;
    let started = Instant::now();
    let end = delivery.cut_after.map_or(response.body.len(), |after| after.min(response.body.len()));
    let mut sent = 0;
    while sent < end {
        let position = response.offset + sent as u64;
        let mut piece = (end - sent).min(delivery.chunk.unwrap_or(WRITE_SIZE).max(1));
        for gate in &delivery.gates {
            let allowed = unless_gone(stream, gate.pass(position)).await?;
            piece = piece.min(usize::try_from(allowed - position).unwrap_or(usize::MAX));
        }
        if let Some(supply) = &delivery.supply {
            piece = unless_gone(stream, supply.take(piece)).await?;
        }
        let bytes = &response.body[sent..sent + piece];
        // Counted first, so that a client which has the bytes never finds them missing in the count.
        shared.count_bytes(response.counts_for.as_deref(), piece as i64);
        let written = if delivery.chunked { write_chunk(stream, bytes).await } else { stream.write(bytes).await };
        let taken = *written.as_ref().unwrap_or(&0);
        shared.count_bytes(response.counts_for.as_deref(), taken as i64 - piece as i64);
        if let Some(supply) = &delivery.supply {
            supply.settle(piece, taken);
        }
        written?;
        sent += taken;
        for gate in &delivery.gates {
            gate.sent_until(response.offset + sent as u64);
        }
        if let Some(rate) = delivery.bytes_per_second {
            let due = started + Duration::from_secs_f64(sent as f64 / rate as f64);
            unless_gone(stream, tokio::time::sleep_until(due.into())).await?;
        }
    }
    if delivery.cut_after.is_some() {
        return Err(io::ErrorKind::ConnectionAborted.into());
    }
    if delivery.chunked {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

async fn write_chunk(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
    stream.write_all(bytes).await?;
    stream.write_all(b"\r\n").await?;
    Ok(bytes.len())
}

/// Waits for the future, but not longer than the client does.
async fn unless_gone<T>(stream: &TcpStream, future: impl Future<Output = T>) -> io::Result<T> {
    let gone = async {
        match stream.peek(&mut [0]).await {
            // The next request is already here: the client is there too, and peeking again would spin.
            Ok(1..) => std::future::pending().await,
            _ => io::Error::from(io::ErrorKind::ConnectionReset),
        }
    };
    tokio::select! {
        value = future => Ok(value),
        error = gone => Err(error),
    }
}
