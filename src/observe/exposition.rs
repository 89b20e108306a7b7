//! The text of the metrics, in the form that the client asks for: OpenMetrics, or Prometheus' older text format.
//!
//! OpenMetrics 1.0: https://prometheus.io/docs/specs/om/open_metrics_spec/
//! Text format 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/

use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// A form of the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0
    OpenMetrics,
    /// Prometheus' text format 0.0.4, which everything that reads metrics knows.
    Text,
}

/// What a client accepts of one form: how much it wants it, in thousandths; `None`: not named.
type Weight = Option<u16>;

impl Format {
    /// Returns the form that a client prefers by its `Accept` headers. OpenMetrics only if the client names it.
    pub fn preferred<'a>(accepted: impl Iterator<Item = &'a str>) -> Self {
        let (mut open_metrics, mut text, mut others): (Weight, Weight, Weight) = (None, None, None);
        for range in accepted.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut version, mut weight) = (None, 1000);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "version" => version = Some(value.trim().trim_matches('"')),
                    "q" => weight = thousandths(value.trim()),
                    _ => {}
                }
            }
            let (place, is_ours) = match media_type.as_str() {
                "application/openmetrics-text" => (&mut open_metrics, version.is_none_or(|version| version == "1.0.0")),
                "text/plain" => (&mut text, version.is_none_or(|version| version == "0.0.4")),
                "text/*" | "*/*" => (&mut others, true),
                _ => continue,
            };
            if is_ours {
                *place = Some(place.map_or(weight, |before| before.max(weight)));
            }
        }
        let text = text.or(others).unwrap_or(0);
        if open_metrics.is_some_and(|wanted| wanted > 0 && wanted >= text) { Self::OpenMetrics } else { Self::Text }
    }

    /// Returns the value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Writes all metrics.
    pub fn write(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut open_metrics = String::new();
        encode(&mut open_metrics, registry)?;
        Ok(match self {
            Self::OpenMetrics => open_metrics,
            Self::Text => as_text(&open_metrics),
        })
    }
}

/// Reads a weight (RFC 9110, section 12.4.2) in thousandths. What is none weighs nothing.
fn thousandths(text: &str) -> u16 {
    let weight = text.parse::<f64>().ok().filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or(0.0);
    // Between 0 and 1000.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let thousandths = (weight * 1000.0).round() as u16;
    thousandths
}

/// Translates OpenMetrics into the text format 0.0.4, where a counter has its suffix `_total` in its description, too,
/// there are no units, no infos and no mark at the end.
fn as_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    // The description comes before the type, which decides the name.
    let mut help = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), told) => help = Some(told.unwrap_or_default()),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    _ => ("", kind),
                };
                if let Some(told) = help.take() {
                    text.push_str(&format!("# HELP {name}{suffix} {told}\n"));
                }
                text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
            }
            (Some("#"), ..) => {}
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::Unit;

    use super::*;

    #[test]
    fn each_scraper_gets_the_form_that_it_asks_for() {
        for (accept, expected) in [
            // Prometheus 2.42, as seen on the wire.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            // Prometheus 2.49 and later, by `acceptHeader` in its scrape/scrape.go.
            (
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            // Prometheus 3, by the same function.
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            // Prometheus with `scrape_protocols: [PrometheusText0.0.4, OpenMetricsText1.0.0]`.
            (
                "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,*/*;q=0.4",
                Format::Text,
            ),
            // Prometheus with native histograms, which asks for Protocol Buffers first.
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"; Q=1.0", Format::OpenMetrics),
            ("application/openmetrics-text; version=0.0.1", Format::Text),
            ("application/openmetrics-text;q=0", Format::Text),
            ("application/openmetrics-text;q=0.1, text/plain;q=0.9", Format::Text),
            // curl, a browser, and nothing at all.
            ("*/*", Format::Text),
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Format::Text),
            ("", Format::Text),
            (";;=,q=", Format::Text),
        ] {
            assert_eq!(Format::preferred(std::iter::once(accept)), expected, "{accept}");
        }
        assert_eq!(Format::preferred(std::iter::empty()), Format::Text);
        assert_eq!(Format::preferred(["*/*;q=0.1", "application/openmetrics-text"].into_iter()), Format::OpenMetrics);
    }

    #[test]
    fn the_older_form_says_the_same() {
        let mut registry = Registry::default();
        let counter: Counter = Counter::default();
        counter.inc_by(3);
        registry.register_with_unit("sent", "What was sent", Unit::Bytes, counter);
        registry.register("build", "The program", Info::new([("version", "1")]));
        let text = Format::Text.write(&registry).expect("written");
        let expected = "# HELP sent_bytes_total What was sent.\n# TYPE sent_bytes_total counter\nsent_bytes_total 3\n\
                        # HELP build_info The program.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n";
        assert_eq!(text, expected);
        assert!(Format::OpenMetrics.write(&registry).expect("written").ends_with("# EOF\n"));
    }
}
