//! Sends the spans of traces to a collector, by OTLP over HTTP (`[telemetry]`).
//!
//! A thread of the library collects spans in a queue of at most 2,048 and sends them in batches; what does not fit is
//! dropped. No request waits for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use opentelemetry::trace::{Link, SpanContext, SpanKind, TraceContextExt, TraceId, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::EnvResourceDetector;
use opentelemetry_sdk::trace::{Sampler, SamplingResult, SdkTracerProvider, ShouldSample};
use tokio::runtime::Handle;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::{Layer, Registry};

use crate::config::Telemetry;
use crate::observe::trace::TARGET;
use crate::web::{WebClient, WebError};

/// How long the sending of one batch may take, with its retries. The default of the OTLP specification.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a stop waits for the last spans.
const LAST: Duration = Duration::from_secs(1);

/// Why no traces can be sent.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("telemetry.otlp_endpoint: {0}")]
    Client(#[from] WebError),
    #[error("telemetry: {0}")]
    Exporter(#[from] ExporterBuildError),
}

/// The way of spans out of the process.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Begins to collect and to send spans. `runtime`: where requests to the collector run.
    pub fn begin(telemetry: &Telemetry, runtime: &Handle) -> Result<Self, TelemetryError> {
        let collector = Collector {
            endpoint: telemetry.endpoint.to_string(),
            client: WebClient::new(&telemetry.access)?,
            runtime: runtime.clone(),
            fails: AtomicBool::new(false),
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_endpoint(telemetry.endpoint.as_str())
            .with_timeout(PATIENCE)
            .build()?;
        // What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before it.
        let resource = Resource::builder_empty()
            .with_service_name("larder")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_detector(Box::new(EnvResourceDetector::new()));
        let resource = match std::env::var("OTEL_SERVICE_NAME") {
            Ok(name) if !name.is_empty() => resource.with_service_name(name),
            _ => resource,
        };
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .with_sampler(Share(Sampler::TraceIdRatioBased(telemetry.sampling)))
            .build();
        Ok(Self(provider))
    }

    /// Returns what listens to spans.
    pub fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        let layer = tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("larder"))
            .with_context_activation(false)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false);
        Box::new(layer.with_filter(Targets::new().with_target(TARGET, tracing::Level::INFO)))
    }

    /// Sends the spans that are left, and ends. Waits for at most [`LAST`]; blocks.
    pub fn end(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST) {
            tracing::debug!(%error, "the last spans could not be sent");
        }
    }
}

/// Which traces are kept: a share of all. Of a client's trace too, so that no client decides how many are sent; a trace
/// that the client itself does not keep is not kept here either.
#[derive(Clone, Debug)]
struct Share(Sampler);

impl ShouldSample for Share {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let span = parent.map(|parent| parent.span().span_context().clone()).filter(SpanContext::is_valid);
        let decided = span.filter(|span| !span.is_remote() || !span.is_sampled());
        let sampler = match decided {
            Some(span) if span.is_sampled() => &Sampler::AlwaysOn,
            Some(_) => &Sampler::AlwaysOff,
            None => &self.0,
        };
        sampler.should_sample(None, trace, name, kind, attributes, links)
    }
}

/// The collector, as the library asks it.
#[derive(Debug)]
struct Collector {
    endpoint: String,
    client: WebClient,
    runtime: Handle,
    /// Whether the last request failed: each change has one line of the log.
    fails: AtomicBool,
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        // The thread of the library has no runtime.
        let asking = async move { tokio::time::timeout(PATIENCE, client.send(request)).await };
        let answer = match self.runtime.spawn(asking).await {
            Ok(Ok(answer)) => answer.map_err(HttpError::from),
            Ok(Err(_)) => Err(format!("no answer within {} s", PATIENCE.as_secs()).into()),
            Err(broken) => Err(broken.into()),
        };
        match &answer {
            Ok(answer) if answer.status().is_success() => self.works(),
            Ok(answer) => self.fails(&refusal(answer.status())),
            Err(error) => self.fails(&error),
        }
        answer
    }
}

impl Collector {
    fn works(&self) {
        if self.fails.swap(false, Ordering::Relaxed) {
            tracing::info!(collector = self.endpoint, "traces are sent again");
        }
    }

    fn fails(&self, error: &dyn std::fmt::Display) {
        if !self.fails.swap(true, Ordering::Relaxed) {
            let collector = &self.endpoint;
            tracing::warn!(collector, %error, "traces cannot be sent; see telemetry.otlp_endpoint");
        }
    }
}

/// Says what an answer of the collector means.
fn refusal(status: StatusCode) -> String {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            format!("it answered {status}; credentials are set by the variable OTEL_EXPORTER_OTLP_HEADERS")
        }
        StatusCode::NOT_FOUND => format!("it answered {status}; it may expect another path in the URL"),
        status => format!("it answered {status}"),
    }
}
