//! One line of the log, at the level debug, and one span of a trace for each request to an upstream: why a pull is slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use reqwest::Response;
use tracing::Span;
use url::Url;

use crate::clock::Instant;
use crate::failure::Failure;
use crate::observe::trace;

/// The line and the span of one request, written when its response is dropped.
struct Line {
    begun: Begun,
    status: u16,
    /// From the request to the head of the response.
    head: Duration,
    /// Bytes of the body that have arrived.
    bytes: AtomicU64,
}

/// The part of a [`Line`] that is known before the response.
pub struct Begun {
    upstream: Arc<str>,
    method: Method,
    place: String,
    since: Instant,
    span: Span,
}

/// What is told of the URL of a request, beside its host. The query is told nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// The path, too: it is a registry's.
    All,
    /// The path in the log alone, which stays in the house: of a server that a client names, it may be a secret, as that
    /// of a hook is.
    PathInLog,
    /// Nothing: a redirect named the URL. Some storages give a path to whoever may read, and it is all that a reader
    /// needs.
    Host,
}

/// Most bytes of a URL in a trace; URLs are ASCII, but for the sign that stands for a path.
const MOST: usize = 512;

impl Begun {
    /// Begins the line and the span of a request; `None` where neither is wanted.
    pub fn new(upstream: &Arc<str>, method: &Method, url: &Url, shown: Shown) -> Option<Self> {
        if !tracing::enabled!(tracing::Level::DEBUG) && Span::current().is_none() {
            return None;
        }
        let (host, port) = (url.host_str().unwrap_or_default(), url.port());
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let path = |is_shown| if is_shown { url.path() } else { "/…" };
        let place = format!("{host}{port}{}", path(shown != Shown::Host));
        let traced = format!("{}://{host}{port}{}", url.scheme(), path(shown == Shown::All));
        // A client of the proxy door may name any path.
        let traced = traced.get(..MOST).unwrap_or(&traced);
        let span = trace::of_upstream(upstream, method, host, traced);
        Some(Self { upstream: upstream.clone(), method: method.clone(), place, since: Instant::now(), span })
    }

    /// Ends the line of a request that has no response.
    pub fn failed(self, failure: &Failure) {
        let ms = milliseconds(self.since.elapsed());
        trace::failed(&self.span, failure);
        let Self { upstream, method, place, .. } = self;
        tracing::debug!(%upstream, %method, place, ms, kind = failure.kind.as_str(), %failure, "upstream request");
    }

    /// Ends the line when the response is dropped.
    pub fn answered(self, response: &mut Response) {
        let (status, head) = (response.status().as_u16(), self.since.elapsed());
        let line = Line { begun: self, status, head, bytes: AtomicU64::new(0) };
        response.extensions_mut().insert(Arc::new(line));
    }
}

/// Counts bytes of a response's body.
pub fn count(response: &Response, bytes: usize) {
    if let Some(line) = response.extensions().get::<Arc<Line>>() {
        line.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Begun { upstream, method, place, since, span } = &self.begun;
        let (ms, bytes) = (milliseconds(self.head), self.bytes.load(Ordering::Relaxed));
        span.record("http.response.status_code", self.status);
        span.record("http.response.body.size", bytes);
        span.record("larder.head_ms", ms);
        if self.status >= 400 {
            span.record("otel.status_code", "error");
        }
        tracing::debug!(
            %upstream,
            %method,
            place,
            status = self.status,
            ms,
            total_ms = milliseconds(since.elapsed()),
            bytes,
            "upstream request"
        );
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
