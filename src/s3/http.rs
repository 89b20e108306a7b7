//! The requests to the bucket: by the one way in which Larder connects to others, counted, and with what each answer
//! tells: the server's time, and why it refused.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use http::header::DATE;
use http::{HeaderMap, Method, Uri};
use http_body_util::{BodyExt, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use url::Url;

use super::error::{Network, Refused, S3Error};
use crate::clock::{self, Instant};
use crate::config::{ClientTls, WebAccess};
use crate::observe::Metrics;
use crate::web::{Why, dial, tls};

/// How long opening a connection may take.
const CONNECT: Duration = Duration::from_secs(3);
/// Connections that are kept open between requests.
const IDLE: usize = 64;
/// Most bytes of the document of a refusal.
const MAX_REFUSAL: usize = 64 << 10;

/// The HTTP client, and what its answers told.
pub(super) struct Http {
    client: reqwest::Client,
    /// The host and port of the bucket: others are asked for credentials.
    authority: String,
    /// The server's time, and when it was told.
    told: Mutex<Option<(SystemTime, Instant)>>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Http({})", self.authority)
    }
}

impl Http {
    /// Builds the client. Fails if the TLS settings or the proxies cannot be used.
    pub fn new(access: &WebAccess, base: &Url, metrics: Arc<Metrics>) -> Result<Self, S3Error> {
        let unusable = |error: &dyn fmt::Display| S3Error::unusable(error.to_string());
        let tls = ClientTls { roots: access.roots.clone(), ..ClientTls::default() };
        let tls = tls::client_config(&tls).map_err(|error| unusable(&error))?;
        let client = dial::client(tls, CONNECT)
            .http1_only()
            .pool_max_idle_per_host(IDLE)
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")));
        let client = dial::through(client, &access.proxies);
        let client = client.map_err(|_| unusable(&"the proxy of the environment is none"))?;
        let client = client.build().map_err(|error| unusable(&error))?;
        Ok(Self { client, authority: base.authority().to_owned(), told: Mutex::default(), metrics })
    }

    /// Counts content that was sent.
    pub fn sent(&self, bytes: u64) {
        self.metrics.s3_bytes_sent.inc_by(bytes);
    }

    /// Counts content that was received.
    pub fn received(&self, bytes: u64) {
        self.metrics.s3_bytes_received.inc_by(bytes);
    }

    /// Returns how long ago something was by the server's own time; `None` if the server does not tell its time.
    pub fn age(&self, at: SystemTime) -> Option<Duration> {
        let (told, since) = (*self.told.lock().unwrap_or_else(PoisonError::into_inner))?;
        Some((told + since.elapsed()).duration_since(at).unwrap_or_default())
    }

    /// Returns by how much this machine's clock differs from the server's.
    pub fn skew(&self) -> Option<Duration> {
        let (told, since) = (*self.told.lock().unwrap_or_else(PoisonError::into_inner))?;
        let (server, ours) = (told + since.elapsed(), clock::wall());
        Some(server.duration_since(ours).or_else(|_| ours.duration_since(server)).unwrap_or_default())
    }

    fn note_time(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        if let Some(date) = date.and_then(|date| httpdate::parse_http_date(date).ok()) {
            *self.told.lock().unwrap_or_else(PoisonError::into_inner) = Some((date, Instant::now()));
        }
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string());
        let url = url.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(reqwest::Body::wrap(body));
        let answer = self.client.execute(request).await.map_err(network)?;
        let (parts, body) = http::Response::from(answer).into_parts();
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body.map_err(network))))
    }

    /// Sends a request to the bucket. A refusal becomes an error with the code that the server gives.
    async fn ask(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.send(request).await?;
        self.note_time(answer.headers());
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = Limited::new(answer.into_body(), MAX_REFUSAL).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let refused = Refused { status: status.as_u16(), code: code(&String::from_utf8_lossy(&body)) };
        Err(HttpError::new(HttpErrorKind::Unknown, refused))
    }
}

/// Makes clients of the library that send by [`Http`].
#[derive(Clone, Debug)]
pub(super) struct Connector(pub Arc<Http>);

impl Connector {
    /// Returns a client.
    pub fn client(&self) -> HttpClient {
        HttpClient::new(Service(self.0.clone()))
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.client())
    }
}

#[derive(Debug)]
struct Service(Arc<Http>);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Services that give credentials are asked for documents, and the library reads their refusals itself.
        if request.uri().authority().is_none_or(|authority| authority.as_str() != self.0.authority) {
            return self.0.send(request).await;
        }
        let operation = operation(request.method(), request.uri());
        // If the caller gives up waiting, nothing else counts the request.
        let mut counting = Counting { metrics: &self.0.metrics, operation, result: "timeout".to_owned() };
        let answer = self.0.ask(request).await;
        counting.result = match &answer {
            Ok(answer) => answer.status().as_str().to_owned(),
            Err(error) => match find_refusal(error) {
                Some(refused) => refused.status.to_string(),
                None => "unavailable".to_owned(),
            },
        };
        answer
    }
}

fn find_refusal(error: &HttpError) -> Option<&Refused> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

/// Counts one request when this is dropped.
struct Counting<'a> {
    metrics: &'a Metrics,
    operation: &'static str,
    result: String,
}

impl Drop for Counting<'_> {
    fn drop(&mut self) {
        self.metrics.asked_s3(self.operation, std::mem::take(&mut self.result));
    }
}

/// Returns the word for what a request does.
fn operation(method: &Method, uri: &Uri) -> &'static str {
    let query = uri.query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    match (method.as_str(), has("uploadId"), has("uploads")) {
        ("GET", _, true) => "list_uploads",
        ("GET", ..) if has("list-type") => "list",
        ("GET", ..) => "get",
        ("HEAD", ..) => "head",
        ("PUT", true, _) => "put_part",
        ("PUT", ..) => "put",
        ("POST", true, _) => "complete",
        ("POST", _, true) => "begin",
        ("DELETE", true, _) => "abort",
        ("DELETE", ..) => "delete",
        _ => "other",
    }
}

/// Returns the code in the document of a refusal; empty if there is none.
fn code(document: &str) -> String {
    let code = document.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let code = code.map(|(code, _)| code).unwrap_or_default();
    // A word is all that it can be.
    code.chars().take_while(char::is_ascii_alphanumeric).take(64).collect()
}

fn network(error: reqwest::Error) -> HttpError {
    let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
    let why = match std::error::Error::source(&error) {
        _ if error.is_timeout() => Why::Late,
        Some(cause) => Why::of(cause),
        None => Why::Other("the request failed".to_owned()),
    };
    HttpError::new(kind, Network(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_has_its_word() {
        for (method, uri, word) in [
            (Method::GET, "http://s3/b/k", "get"),
            (Method::GET, "http://s3/b?list-type=2&prefix=a", "list"),
            (Method::GET, "http://s3/b?uploads=&prefix=a", "list_uploads"),
            (Method::PUT, "http://s3/b/k", "put"),
            (Method::PUT, "http://s3/b/k?partNumber=1&uploadId=x", "put_part"),
            (Method::POST, "http://s3/b/k?uploads", "begin"),
            (Method::POST, "http://s3/b/k?uploadId=x", "complete"),
            (Method::DELETE, "http://s3/b/k?uploadId=x", "abort"),
            (Method::DELETE, "http://s3/b/k", "delete"),
        ] {
            assert_eq!(operation(&method, &Uri::from_static(uri)), word);
        }
    }

    #[test]
    fn the_code_of_a_refusal_is_a_word() {
        assert_eq!(code("<?xml?><Error><Code>NoSuchKey</Code><Message>x</Message></Error>"), "NoSuchKey");
        assert_eq!(code("<Error><Code>a b\nc</Code>"), "a");
        assert_eq!(code("<html>"), "");
    }
}
