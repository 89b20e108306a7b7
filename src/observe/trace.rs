//! The spans of traces: one trace for each pull, with a span for each request to an upstream and for each transfer that it
//! waited for.
//!
//! Spans are made through `tracing`. Without `[telemetry]` nothing listens to them, and they cost next to nothing. The log
//! does not see them. Attributes are named by the semantic conventions of OpenTelemetry for HTTP, and `larder.…` where
//! these have no name.

use http::request::Parts;
use http::{HeaderMap, Method};
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceState};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing::field::{Empty, display};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::failure::Failure;

/// The target of all spans of traces, which nothing else has.
pub const TARGET: &str = "larder::trace";

/// A span to which spans of other traces refer.
#[derive(Clone, Debug)]
pub struct SpanRef(SpanContext);

/// Begins the trace of a request. If the request has `traceparent` (W3C Trace Context), its trace is continued: some
/// clients send it (containerd, BuildKit).
pub fn of_request(request: &Parts) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        parent: None,
        "request",
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = known(&request.method),
        http.response.status_code = Empty,
        http.response.body.size = Empty,
        url.path = Empty,
        client.address = Empty,
        user_agent.original = Empty,
        enduser.id = Empty,
        larder.repository = Empty,
        larder.reference = Empty,
        larder.cache = Empty,
        larder.reason = Empty,
        larder.why = Empty,
        larder.head_ms = Empty,
        larder.complete = Empty,
    );
    if !span.is_disabled() {
        // Fails only where nothing listens.
        let _ = span.set_parent(sent_along(&request.headers));
    }
    span
}

/// Returns a method of HTTP, or the word of the conventions for all others: a client may send any.
pub fn known(method: &Method) -> &str {
    let known = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    if known.contains(method) { method.as_str() } else { "_OTHER" }
}

/// Begins the span of a request to an upstream. It belongs to the trace of what it is sent for; what Larder asks by itself
/// has no trace. `place`: host and path, without the query.
pub fn of_upstream(upstream: &str, method: &Method, host: &str, place: &str) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    tracing::info_span!(
        target: TARGET,
        "upstream",
        otel.kind = "client",
        otel.name = known(method),
        otel.status_code = Empty,
        http.request.method = known(method),
        http.response.status_code = Empty,
        http.response.body.size = Empty,
        server.address = host,
        url.full = place,
        error.type = Empty,
        error.message = Empty,
        larder.upstream = upstream,
        larder.head_ms = Empty,
    )
}

/// Begins the span of a transfer, which may go on after the request that began it. `what`: the digest.
pub fn of_transfer(what: &dyn std::fmt::Display) -> Span {
    within(|| tracing::info_span!(target: TARGET, "transfer", larder.object = %what))
}

/// Begins the span of bringing in an image before clients ask for it.
pub fn of_image(name: &'static str, image: &dyn std::fmt::Display, parent: &Span) -> Span {
    tracing::info_span!(target: TARGET, parent: parent, "image", otel.name = name, larder.reference = %image)
}

/// Begins the span of a part of the current trace.
pub fn step(name: &'static str) -> Span {
    within(|| tracing::info_span!(target: TARGET, "step", otel.name = name))
}

/// Makes a span, if there is a trace that it can belong to.
fn within(span: impl FnOnce() -> Span) -> Span {
    if Span::current().is_none() { Span::none() } else { span() }
}

/// Notes that the current request waits for work that another request began.
pub fn joins(work: Option<&SpanRef>) {
    if let Some(SpanRef(work)) = work {
        Span::current().add_link(work.clone());
    }
}

/// Returns a reference to a span; `None` if its trace is not kept.
pub fn reference(span: &Span) -> Option<SpanRef> {
    context(span).map(SpanRef)
}

/// Returns the number of the trace that a span belongs to, in hexadecimal digits; `None` if the trace is not kept.
pub fn id(span: &Span) -> Option<String> {
    context(span).map(|context| context.trace_id().to_string())
}

/// Names a span and ends it now: with the last byte of an answer. (The library ends it when it was last entered, which is
/// at the head of the answer. It takes no other name for a span that has begun, either.)
pub fn end(span: &Span, name: &str) {
    if !span.is_disabled() {
        let context = span.context();
        context.span().update_name(name.to_owned());
        context.span().end();
    }
}

/// Notes that a request got no response.
pub fn failed(span: &Span, failure: &Failure) {
    span.record("otel.status_code", "error");
    span.record("error.type", failure.kind.as_str());
    span.record("error.message", display(failure));
}

fn context(span: &Span) -> Option<SpanContext> {
    if span.is_disabled() {
        return None;
    }
    Some(span.context().span().span_context().clone()).filter(SpanContext::is_sampled)
}

/// Reads the span of the client, without the `tracestate` of others, which each span would carry.
fn sent_along(headers: &HeaderMap) -> Context {
    let sent = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
    let client = sent.span().span_context().clone();
    let client =
        SpanContext::new(client.trace_id(), client.span_id(), client.trace_flags(), true, TraceState::default());
    if client.is_valid() { Context::new().with_remote_span_context(client) } else { Context::new() }
}
