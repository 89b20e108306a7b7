//! `[telemetry]`, checked.

use url::Url;

use super::check::Check;
use super::error::ConfigError;
use super::proxy::Proxies;
use super::raw;
use super::shapes::why_no_url;
use super::web::WebAccess;

/// Where traces go, and how many of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// The URL to which spans are sent, with its path.
    pub endpoint: Url,
    /// The share of the traces that are kept, 0 to 1.
    pub sampling: f64,
    pub access: WebAccess,
}

/// What collectors expect after the base of their URL (OTLP specification, "OTLP/HTTP Request").
const PATH: &str = "v1/traces";

/// The port on which collectors take OTLP over gRPC, which Larder does not speak; HTTP has 4318.
const GRPC: u16 = 4317;

const EXAMPLE: &str = "write for example otlp_endpoint = \"http://collector:4318\"";

/// Checks `[telemetry]`. Returns `None` if it has no endpoint.
pub fn check(check: &Check<'_>, written: &raw::Telemetry, proxies: &Proxies) -> Result<Option<Telemetry>, ConfigError> {
    let invalid = |key: &str, message: String| check.invalid(&["telemetry", key], message);
    if !(0.0..=1.0).contains(&written.sampling) {
        let message = format!("`{}` is no share; write a number from 0.0 to 1.0 (all)", written.sampling);
        return Err(invalid("sampling", message));
    }
    if written.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let endpoint = endpoint(&written.otlp_endpoint).map_err(|message| invalid("otlp_endpoint", message))?;
    if endpoint.port() == Some(GRPC) {
        let message = "4317 is the port for OTLP over gRPC as a rule; traces are sent over HTTP, for which it is 4318";
        check.warn(&["telemetry", "otlp_endpoint"], message);
    }
    let access = WebAccess::new(check, &endpoint, None, proxies);
    let access = access.map_err(|message| invalid("otlp_endpoint", message))?;
    Ok(Some(Telemetry { endpoint, sampling: written.sampling, access }))
}

/// Reads the URL of a collector: its base, or the whole URL for traces.
fn endpoint(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text).map_err(|error| format!("this is no URL ({}); {EXAMPLE}", why_no_url(error)))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("a URL that begins with http:// or https:// is needed; {EXAMPLE}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("there is a user name or password in it, which is not sent; set the variable \
                    OTEL_EXPORTER_OTLP_HEADERS, for example to Authorization=Basic%20…"
            .to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("there is a `?` or `#` in it; {EXAMPLE}"));
    }
    let path = url.path().trim_end_matches('/');
    if !path.ends_with(PATH) {
        let path = format!("{path}/{PATH}");
        url.set_path(&path);
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_of_a_collector_or_the_whole_url_may_be_written() {
        let read = |text| endpoint(text).expect("a URL").to_string();
        assert_eq!(read("http://collector:4318"), "http://collector:4318/v1/traces");
        assert_eq!(read("http://collector:4318/"), "http://collector:4318/v1/traces");
        assert_eq!(read("https://otlp.example/otlp/"), "https://otlp.example/otlp/v1/traces");
        assert_eq!(read("https://otlp.example/otlp/v1/traces"), "https://otlp.example/otlp/v1/traces");
    }
}
