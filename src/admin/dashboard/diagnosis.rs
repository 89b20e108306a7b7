//! What is wrong now, each with what to do.

use std::sync::Arc;

use axum::extract::State;
use maud::{Markup, html};

use super::super::diagnosis::{Finding, of};
use super::layout::{Page, Tab, Visitor, page};
use super::show;
use crate::services::Services;

/// Shows what is wrong.
pub async fn show(visitor: Visitor, State(services): State<Arc<Services>>) -> Page {
    let findings = of(&services).await.findings;
    let content = html! {
        div.heading { h1 { "Diagnosis" } }
        section #findings data-live="5" {
            @if findings.is_empty() {
                div.panel {
                    (show::nothing("Nothing is wrong that Larder knows of.", &html! {
                        "It looks at the disk, the index, the log, the upstreams and the configuration. Are pulls past the cache? "
                        a href="/connect" { "See how clients connect" } "."
                    }))
                }
            } @else { ol.findings { @for finding in &findings { li.panel { (shown(finding)) } } } }
        }
    };
    page(&visitor, Tab::Diagnosis, "Diagnosis", "", &content)
}

fn shown(finding: &Finding) -> Markup {
    let word = if finding.severity == "error" { "Error" } else { "Warning" };
    let more = match finding.about.as_str() {
        "upstream" => Some(("/upstreams", "The upstreams")),
        "configuration" => Some(("/api/config", "The configuration in force")),
        "disk" | "cache" => Some(("/", "The disk")),
        _ => None,
    };
    html! {
        div.heading { (show::chip(&finding.severity, word)) h2 { (finding.about) } }
        p.why { (show::prose(&finding.text)) }
        @if let Some((path, name)) = more { p { a href=(path) { (name) } } }
    }
}
