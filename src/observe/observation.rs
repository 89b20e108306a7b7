//! Watches a response to its last byte, for the metrics and the access log.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, Version};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use tracing::Span;
use tracing::field::display;

use super::access_log::{self, Entry};
use super::counters::RepositoryCounters;
use super::metrics::{Kind, Metrics, Outcome};
use super::pulls::Pull;
use super::reason::Reason;
use super::trace;
use crate::auth::{Client, Identity};
use crate::body::Body;
use crate::clock::{self, Instant};
use crate::failure::Failure;

/// What is known of a request when its response has ended.
pub struct Observation {
    metrics: Arc<Metrics>,
    log_access: bool,
    is_counted: bool,
    began: Instant,
    at: SystemTime,
    client: Client,
    user: Option<String>,
    method: Method,
    path: String,
    version: Version,
    user_agent: String,
    repository: Option<(Arc<RepositoryCounters>, Kind)>,
    reference: Option<String>,
    reason: Option<Reason>,
    head: Duration,
    status: u16,
    sent: u64,
    /// `Content-Length`, which tells the end: a body is not polled again after so many bytes.
    length: Option<u64>,
    has_ended: bool,
    /// Of the trace.
    span: Span,
}

/// Longest user agent in the log, in characters: clients may send one as long as a head may be.
const USER_AGENT: usize = 200;

/// Longest path or reference in the list of pulls, in bytes.
const PATH: usize = 512;

/// Returns as much of a text as the list of pulls and a trace have of it.
fn beginning(text: &str) -> &str {
    if text.len() <= PATH {
        return text;
    }
    // `str::floor_char_boundary` is of Rust 1.91.
    let end = (0..=PATH).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

/// Cuts a text that is too long for the list of pulls.
fn cut(mut text: String) -> String {
    text.truncate(beginning(&text).len());
    text.shrink_to_fit();
    text
}

/// Returns the beginning of a text that is too long for the log.
fn shortened(text: &str) -> String {
    // Each character has at least one byte.
    if text.len() <= USER_AGENT {
        return text.to_owned();
    }
    match text.char_indices().nth(USER_AGENT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Observation {
    /// Begins when the head of a request has arrived. `log_access`: whether the request gets a line of the access log.
    pub fn begin(request: &Parts, client: Client, metrics: Arc<Metrics>, log_access: bool) -> Self {
        let user_agent = request.headers.get(http::header::USER_AGENT).and_then(|value| value.to_str().ok());
        Self {
            metrics,
            log_access,
            is_counted: true,
            began: Instant::now(),
            at: clock::wall(),
            client,
            user: None,
            method: request.method.clone(),
            // Without the query: its content is the client's own and not for logs.
            path: request.uri.path().to_owned(),
            version: request.version,
            user_agent: shortened(user_agent.unwrap_or_default()),
            repository: None,
            reference: None,
            reason: None,
            head: Duration::ZERO,
            status: 0,
            sent: 0,
            length: None,
            has_ended: false,
            span: Span::none(),
        }
    }

    /// Begins the trace of the request. What is done for the request is to be done within the returned span.
    pub fn traced(&mut self, request: &Parts) -> Span {
        self.span = trace::of_request(request);
        self.span.clone()
    }

    /// Leaves the response out of the metrics: the request is about Larder itself.
    pub fn of_no_content(mut self) -> Self {
        self.is_counted = false;
        self
    }

    /// Sets the repository and the kind of the requested content, and its reference as people write it.
    pub fn found(&mut self, repository: Arc<RepositoryCounters>, kind: Kind, reference: String) {
        self.repository = Some((repository, kind));
        self.reference = Some(reference);
    }

    /// Sets where a request of the proxy door goes: the URL without its query.
    pub fn goes_to(&mut self, url: String) {
        self.path = url;
    }

    /// Notes that the request is answered with an error. `what`: what the request asked for.
    pub fn failed(&mut self, what: &'static str, failure: &Failure) {
        self.reason = self.repository.is_some().then(|| Reason::Failed(failure.clone()));
        tracing::info!(path = self.path, what, kind = failure.kind.as_str(), %failure, "not served");
    }

    /// Notes that the request is refused, and logs it: the client may not ask, or asks for nothing that there is.
    pub fn refused(&mut self, why: &dyn fmt::Display) {
        self.reason = Some(Reason::refused(why));
        tracing::info!(client = %self.client, path = self.path, %why, "refused");
    }

    /// Sets the identity of the client, if a login decided whether it may read.
    pub fn admitted(&mut self, identity: &Identity) {
        self.user = identity.name();
    }

    /// Sets why the request is answered as it is.
    pub fn answered(&mut self, reason: Reason) {
        self.reason = Some(reason);
    }

    fn outcome(&self) -> Option<Outcome> {
        self.reason.as_ref().and_then(Reason::outcome)
    }

    /// Returns the response with a body that this observation watches to its end.
    pub fn watch(mut self, response: Response<Body>) -> Response<Body> {
        self.status = response.status().as_u16();
        let length = response.headers().get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        self.length = length.and_then(|length| length.parse().ok());
        self.has_ended = response.body().is_end_stream();
        if self.is_counted {
            self.metrics.responded(self.status);
        }
        self.head = self.began.elapsed();
        if let (Some((repository, kind)), Some(outcome)) = (&self.repository, self.outcome()) {
            self.metrics.answered(repository, *kind, outcome, self.head);
        }
        response.map(|body| Observed { body, observation: self }.boxed_unsync())
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let is_complete = self.has_ended || self.length == Some(self.sent);
        // An error is no content.
        if let (Some((repository, _)), 200..300) = (&self.repository, self.status) {
            let is_from_cache = matches!(self.outcome(), Some(Outcome::Hit | Outcome::Stale));
            self.metrics.served(repository, self.sent, is_from_cache && is_complete);
        }
        let trace = self.end_trace(is_complete);
        if self.log_access {
            access_log::write(&Entry {
                client: &self.client,
                user: self.user.as_deref(),
                method: self.method.as_str(),
                path: &self.path,
                version: self.version,
                user_agent: &self.user_agent,
                status: self.status,
                bytes: self.sent,
                is_complete,
                took: self.began.elapsed(),
                repository: self.repository.as_ref().map(|(repository, _)| &*repository.label),
                cache: self.outcome().map(Outcome::as_str),
                reason: self.reason.as_ref().map(Reason::code),
                trace: trace.as_deref(),
            });
        }
        if let Some(reason) = self.reason.take() {
            let pull = self.pull(reason, is_complete, trace);
            self.metrics.pulls.add(pull);
        }
    }
}

impl Observation {
    /// Ends the trace of the request. Returns its number, if the trace is kept.
    fn end_trace(&self, is_complete: bool) -> Option<String> {
        if self.span.is_disabled() {
            return None;
        }
        let span = &self.span;
        let Some(number) = trace::id(span) else {
            trace::end(span, "");
            return None;
        };
        let kind = self.repository.as_ref().map(|(_, kind)| kind.as_str());
        let name = [trace::known(&self.method), kind.unwrap_or_default()].join(" ");
        // By the conventions, what a client did wrong is no error of the server.
        if self.status >= 500 || !is_complete {
            span.record("otel.status_code", "error");
        }
        span.record("http.response.status_code", self.status);
        span.record("http.response.body.size", self.sent);
        span.record("url.path", self.traced_path());
        span.record("client.address", display(&self.client));
        span.record("user_agent.original", &self.user_agent);
        span.record("larder.head_ms", u64::try_from(self.head.as_millis()).unwrap_or(u64::MAX));
        span.record("larder.complete", is_complete);
        self.user.iter().for_each(|user| _ = span.record("enduser.id", user));
        self.reference.iter().for_each(|reference| _ = span.record("larder.reference", beginning(reference)));
        self.repository.iter().for_each(|(repository, _)| _ = span.record("larder.repository", &*repository.label));
        self.outcome().iter().for_each(|outcome| _ = span.record("larder.cache", outcome.as_str()));
        if let Some(reason) = &self.reason {
            span.record("larder.reason", reason.code());
            span.record("larder.why", reason.text());
        }
        trace::end(span, name.trim_end());
        Some(number)
    }

    /// Returns the path that the trace tells. Of what is no registry's content only the host: the path of a storage, or
    /// of a hook, may be a secret, and traces leave the house.
    fn traced_path(&self) -> &str {
        match (&self.repository, self.path.split_once("://")) {
            (None, Some((scheme, rest))) => {
                let host = rest.find('/').unwrap_or(rest.len());
                &self.path[..scheme.len() + "://".len() + host]
            }
            _ => beginning(&self.path),
        }
    }

    /// Makes the entry of the list of pulls. Leaves this observation without its texts.
    fn pull(&mut self, reason: Reason, is_complete: bool, trace: Option<String>) -> Pull {
        let (repository, kind) = self.repository.take().unzip();
        Pull {
            id: 0,
            at: self.at,
            client: self.client.shown(),
            user: self.user.take(),
            user_agent: std::mem::take(&mut self.user_agent),
            method: std::mem::take(&mut self.method),
            path: cut(std::mem::take(&mut self.path)),
            repository,
            kind,
            reference: self.reference.take().map(cut),
            status: self.status,
            reason,
            bytes: self.sent,
            is_complete,
            head: self.head,
            took: self.began.elapsed(),
            trace,
        }
    }
}

/// A body that tells its observation which bytes have passed.
struct Observed {
    body: Body,
    observation: Observation,
}

impl hyper::body::Body for Observed {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.observation.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.observation.has_ended = self.body.is_end_stream();
            }
            Poll::Ready(Some(Err(failure))) => tracing::warn!(
                path = self.observation.path,
                kind = failure.kind.as_str(),
                %failure,
                "a response was aborted"
            ),
            Poll::Ready(None) => self.observation.has_ended = true,
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_user_agents_are_cut() {
        assert_eq!(shortened("docker/29.1"), "docker/29.1");
        let cut = shortened(&"ä".repeat(5_000));
        assert_eq!(cut, "ä".repeat(USER_AGENT) + "…");
    }
}
