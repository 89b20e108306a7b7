//! A client that shows what came over the wire: a complete body or an aborted one, and when. One connection for each
//! request, unless `Connection` is used. It follows no redirects and adds no headers but `Host`.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

use super::DEADLINE;

/// Small, so that a client which reads slowly really holds the server back.
const SLOW_RECEIVE_BUFFER: u32 = 32 * 1024;

/// GET; panics if no answer comes.
pub async fn get(url: impl AsRef<str>) -> Answer {
    request("GET", url).send().await
}

/// HEAD; panics if no answer comes.
pub async fn head(url: impl AsRef<str>) -> Answer {
    request("HEAD", url).send().await
}

/// GET as a stream; panics if no answer comes.
pub async fn open(url: impl AsRef<str>) -> Streaming {
    request("GET", url).open().await
}

/// A request to be described further and then sent.
pub fn request(method: &str, url: impl AsRef<str>) -> Request {
    let url = url.as_ref();
    Request {
        method: method.parse().expect("a method"),
        url: url.parse().unwrap_or_else(|error| panic!("not a URL: {url}: {error}")),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        http2: false,
        proxy: None,
        from: None,
        bytes_per_second: None,
        deadline: DEADLINE,
    }
}

/// An answer as far as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// What arrived, also if the body broke off.
    pub body: Bytes,
    /// Why the body is not complete; `None` if it is.
    pub error: Option<String>,
}

impl Answer {
    /// Whether the body came to its proper end.
    pub fn complete(&self) -> bool {
        self.error.is_none()
    }

    /// A header as text, empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        text_of(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text()))
    }

    /// The `code` of the first error in an OCI error body.
    pub fn error_code(&self) -> String {
        self.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    url: Uri,
    headers: HeaderMap,
    body: Bytes,
    http2: bool,
    proxy: Option<SocketAddr>,
    from: Option<IpAddr>,
    bytes_per_second: Option<u64>,
    deadline: Duration,
}

impl Request {
    /// Adds a header; `host` replaces the one from the URL.
    pub fn header(mut self, name: &str, value: impl AsRef<str>) -> Self {
        let name = HeaderName::try_from(name).expect("a header name");
        self.headers.append(name, HeaderValue::try_from(value.as_ref()).expect("a header value"));
        self
    }

    /// Adds a header whose value need not be text.
    pub fn header_bytes(mut self, name: &str, value: &[u8]) -> Self {
        let name = HeaderName::try_from(name).expect("a header name");
        self.headers.append(name, HeaderValue::from_bytes(value).expect("a header value"));
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// HTTP/2 with prior knowledge.
    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    /// Sends the request to a forward proxy, in absolute form.
    pub fn through_proxy(mut self, proxy: SocketAddr) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// From another address of this machine, such as 127.0.0.2.
    pub fn from(mut self, address: IpAddr) -> Self {
        self.from = Some(address);
        self
    }

    /// Reads the body no faster than this, with a small receive buffer.
    pub fn bytes_per_second(mut self, rate: u64) -> Self {
        self.bytes_per_second = Some(rate);
        self
    }

    /// For each wait: connecting, the head, every piece of the body.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The whole answer; panics if none comes. A body that breaks off does not panic: see `Answer::complete`.
    pub async fn send(self) -> Answer {
        let what = self.to_string();
        self.try_send().await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// The whole answer, or why there is none.
    pub async fn try_send(self) -> Result<Answer, String> {
        Ok(self.try_open().await?.read_to_end().await)
    }

    /// The head of the answer, and the body as a stream; panics if no answer comes.
    pub async fn open(self) -> Streaming {
        let what = self.to_string();
        self.try_open().await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// The head of the answer, and the body as a stream, or why there is none.
    pub async fn try_open(self) -> Result<Streaming, String> {
        let connection = Connection::connect(&self).await?;
        self.try_open_on(&connection).await
    }

    /// As `open`, on a connection that is already there (`http2` of the request plays no part).
    pub async fn open_on(self, connection: &Connection) -> Streaming {
        let what = self.to_string();
        self.try_open_on(connection).await.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    /// As `send`, on a connection that is already there.
    pub async fn send_on(self, connection: &Connection) -> Answer {
        self.open_on(connection).await.read_to_end().await
    }

    async fn try_open_on(self, connection: &Connection) -> Result<Streaming, String> {
        let (deadline, bytes_per_second) = (self.deadline, self.bytes_per_second);
        let requested_at = Instant::now();
        let answer = within(deadline, "the answer", connection.dispatch(self)).await?.map_err(explain)?;
        let (head, body) = answer.into_parts();
        Ok(Streaming {
            status: head.status.as_u16(),
            headers: head.headers,
            requested_at,
            answered_at: Instant::now(),
            first_byte_at: None,
            body,
            kept: BytesMut::new(),
            received: 0,
            error: None,
            bytes_per_second,
            deadline,
            _connection: connection.clone(),
        })
    }

    fn into_http(self, http2: bool) -> http::Request<Full<Bytes>> {
        let mut request = http::Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        // Only HTTP/1.1 to an origin wants the path alone.
        let origin_form = !http2 && self.proxy.is_none();
        let path = self.url.path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = if origin_form { path.parse().expect("a path of a URI") } else { self.url.clone() };
        *request.headers_mut() = self.headers;
        if !http2 && !request.headers().contains_key("host") {
            let host = self.url.authority().map_or("", Authority::as_str);
            request.headers_mut().insert("host", host.parse().expect("an authority is a header value"));
        }
        request
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}", self.method, self.url)
    }
}

/// A connection for several requests: keep-alive with HTTP/1.1, many at a time with HTTP/2.
#[derive(Clone, Debug)]
pub struct Connection(Sender);

#[derive(Clone, Debug)]
enum Sender {
    Http1(std::sync::Arc<tokio::sync::Mutex<http1::SendRequest<Full<Bytes>>>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Connection {
    /// HTTP/1.1; panics if it cannot connect.
    pub async fn http1(url: impl AsRef<str>) -> Self {
        Self::connect(&request("GET", url)).await.expect("a connection")
    }

    /// HTTP/2 with prior knowledge; panics if it cannot connect.
    pub async fn http2(url: impl AsRef<str>) -> Self {
        Self::connect(&request("GET", url).http2()).await.expect("a connection")
    }

    async fn connect(request: &Request) -> Result<Self, String> {
        let address = match (request.proxy, request.url.authority()) {
            (Some(proxy), _) => proxy,
            (None, Some(authority)) => {
                let port = authority.port_u16().unwrap_or(80);
                let host = authority.host().trim_matches(['[', ']']);
                let mut found = lookup_host((host, port)).await.map_err(explain)?;
                found.next().ok_or("the host has no address")?
            }
            (None, None) => return Err("the URL has no host".to_owned()),
        };
        let stream = tcp(address, request.from, request.bytes_per_second.is_some(), request.deadline).await?;
        // The connection's own task ends when the last sender and body are dropped; its errors show in the bodies.
        if request.http2 {
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            let (sender, connection) = within(request.deadline, "HTTP/2", handshake).await?.map_err(explain)?;
            tokio::spawn(connection);
            return Ok(Self(Sender::Http2(sender)));
        }
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(explain)?;
        tokio::spawn(connection);
        Ok(Self(Sender::Http1(std::sync::Arc::new(tokio::sync::Mutex::new(sender)))))
    }

    async fn dispatch(&self, request: Request) -> hyper::Result<http::Response<Incoming>> {
        match &self.0 {
            Sender::Http1(sender) => {
                let mut sender = sender.lock().await;
                sender.ready().await?;
                sender.send_request(request.into_http(false)).await
            }
            Sender::Http2(sender) => {
                let mut sender = sender.clone();
                sender.ready().await?;
                sender.send_request(request.into_http(true)).await
            }
        }
    }
}

/// An answer whose body is read piece by piece. Dropping it is a client that leaves.
#[derive(Debug)]
pub struct Streaming {
    pub status: u16,
    pub headers: HeaderMap,
    pub requested_at: Instant,
    pub answered_at: Instant,
    /// When the first byte of the body was read.
    pub first_byte_at: Option<Instant>,
    body: Incoming,
    /// Read from the connection, but not yet given out.
    kept: BytesMut,
    received: u64,
    error: Option<String>,
    bytes_per_second: Option<u64>,
    deadline: Duration,
    _connection: Connection,
}

impl Streaming {
    /// A header as text, empty if it is absent.
    pub fn header(&self, name: &str) -> &str {
        text_of(&self.headers, name)
    }

    /// The next piece, `None` at the proper end, an error if the body broke off or the deadline passed.
    pub async fn next_chunk(&mut self) -> Option<Result<Bytes, String>> {
        if !self.kept.is_empty() {
            return Some(Ok(self.kept.split().freeze()));
        }
        self.receive().await
    }

    /// Exactly the next `count` bytes; panics if the body ends or breaks off before.
    pub async fn read_exact(&mut self, count: usize) -> Bytes {
        while self.kept.len() < count {
            match self.receive().await {
                Some(Ok(bytes)) => self.kept.extend_from_slice(&bytes),
                end => panic!("the body ended after {} bytes: {end:?}", self.received),
            }
        }
        self.kept.split_to(count).freeze()
    }

    /// Whatever is left, with its end. What was read before is not in the body again.
    pub async fn read_to_end(mut self) -> Answer {
        let mut body = BytesMut::new();
        while let Some(Ok(bytes)) = self.next_chunk().await {
            body.extend_from_slice(&bytes);
        }
        Answer { status: self.status, headers: self.headers, body: body.freeze(), error: self.error }
    }

    /// Reads to the end and compares on the way, so that nothing large is kept; panics where the bytes differ. Tells
    /// how many came, and whether that was the proper end.
    pub async fn compare(mut self, mut expected: Bytes) -> (u64, bool) {
        let whole = expected.len();
        while let Some(Ok(chunk)) = self.next_chunk().await {
            let at = whole - expected.len();
            assert!(chunk == expected.split_to(chunk.len().min(expected.len())), "the bytes differ from {at} on");
        }
        ((whole - expected.len()) as u64, self.error.is_none())
    }

    async fn receive(&mut self) -> Option<Result<Bytes, String>> {
        if let Some(error) = &self.error {
            return Some(Err(error.clone()));
        }
        if let Some(rate) = self.bytes_per_second {
            let due = self.answered_at + Duration::from_secs_f64(self.received as f64 / rate as f64);
            tokio::time::sleep_until(due.into()).await;
        }
        loop {
            let failure = match within(self.deadline, "the body", self.body.frame()).await {
                Ok(None) => return None,
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => {
                        self.first_byte_at.get_or_insert_with(Instant::now);
                        self.received += bytes.len() as u64;
                        return Some(Ok(bytes));
                    }
                    Err(_trailers) => continue,
                },
                Ok(Some(Err(error))) => explain(error),
                Err(too_late) => too_late,
            };
            self.error = Some(failure.clone());
            return Some(Err(failure));
        }
    }
}

/// Writes raw bytes to a socket, and reads until the other side closes or `deadline` has passed.
pub async fn raw(address: SocketAddr, bytes: &[u8], deadline: Duration) -> Vec<u8> {
    let mut stream = tcp(address, None, false, DEADLINE).await.expect("a connection");
    // The other side may refuse before it has read everything; what it says is what counts.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = timeout(deadline, stream.read_to_end(&mut answer)).await;
    answer
}

async fn tcp(address: SocketAddr, from: Option<IpAddr>, slow: bool, deadline: Duration) -> Result<TcpStream, String> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(explain)?;
    if let Some(from) = from {
        socket.bind((from, 0).into()).map_err(explain)?;
    }
    if slow {
        socket.set_recv_buffer_size(SLOW_RECEIVE_BUFFER).map_err(explain)?;
    }
    let stream = within(deadline, "a connection", socket.connect(address)).await?.map_err(explain)?;
    stream.set_nodelay(true).map_err(explain)?;
    Ok(stream)
}

async fn within<T>(deadline: Duration, what: &str, future: impl Future<Output = T>) -> Result<T, String> {
    timeout(deadline, future).await.map_err(|_| format!("{what} did not come within {deadline:?}"))
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// An error with its causes, which say what really happened.
fn explain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
