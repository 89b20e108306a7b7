//! The replicas that behave as one cache: who is alive, what each has, and what is on its way into it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use maud::{Markup, html};
use serde::Deserialize;

use super::super::fills::FillEntry;
use super::super::replicas::{ReplicaEntry, Replicas, Report, list};
use super::layout::{Page, Tab, Visitor, inline_error, page};
use super::show;
use crate::oci::Digest;
use crate::services::Services;

#[derive(Deserialize)]
pub struct Asked {
    #[serde(default)]
    digest: String,
}

/// Shows the replicas; with a digest, also which of them have that object.
pub async fn show(visitor: Visitor, State(services): State<Arc<Services>>, Query(asked): Query<Asked>) -> Page {
    let digest = asked.digest.trim();
    let parsed = (!digest.is_empty()).then(|| digest.parse::<Digest>());
    let is_wrong = matches!(parsed, Some(Err(_)));
    let Replicas { replicas } = list(&services, parsed.and_then(Result::ok)).await;
    let content = html! {
        div.heading { h1 { "Replicas" } @if !replicas.is_empty() { span.amount { (replicas.len()) } } }
        @if replicas.is_empty() {
            div.panel { (show::nothing("This Larder is alone.", &html! {
                "Several that share an index in PostgreSQL behave as one cache: add a " code { "[cluster]" } " to the configuration."
            })) }
        } @else {
            (form(digest))
            @if is_wrong { (inline_error("That is no digest: `sha256:` and 64 hexadecimal digits.")) }
            div #replicas data-live="2" {
                div.grid { @for replica in &replicas { section.panel { (one(replica)) } } }
            }
        }
    };
    page(&visitor, Tab::Replicas, "Replicas", "", &content)
}

fn form(digest: &str) -> Markup {
    html! {
        section.panel aria-labelledby="who-has" {
            h2 #who-has { "Who has an object" }
            form.filters method="get" action="/replicas" {
                label.wide { span { "Digest" }
                    input name="digest" value=(digest) placeholder="sha256:…" autocomplete="off" spellcheck="false" autocapitalize="off"; }
                button type="submit" { "Look" }
            }
        }
    }
}

fn one(replica: &ReplicaEntry) -> Markup {
    let (kind, word) = match replica.state.as_str() {
        "this" => ("ready", "this one"),
        "ready" => ("ready", "alive"),
        "unreachable" => ("failed", "unreachable"),
        _ => ("failed", "does not answer"),
    };
    html! {
        div.line { (show::chip(kind, word)) h2 { (replica.address) } }
        @if let Some(problem) = &replica.problem { p.why { (problem) } }
        dl.facts {
            div { dt { "Process" } dd { code { (replica.id) } } }
            @if let Some(left) = replica.alive_for {
                div { dt { "Counts as alive for" } dd { (show::span(Duration::try_from_secs_f64(left).unwrap_or_default())) " more" } }
            }
            @if let Some(report) = &replica.report { (facts(report)) }
        }
        @if let Some(report) = &replica.report { (fills(report)) }
    }
}

fn facts(report: &Report) -> Markup {
    let asked = report.hits + report.stale + report.misses;
    html! {
        @if let Some(holds) = report.holds {
            div { dt { "The object" } dd { @if holds { (show::chip("good", "stored")) } @else { (show::chip("none", "not stored")) } } }
        }
        div { dt { "Runs since" } dd { (show::ago_of(&report.since)) ", version " (report.version) } }
        div { dt { "Holds" } dd {
            (show::count(report.objects)) " objects, " (show::bytes(report.bytes))
            @if let Some(limit) = report.limit { " of " (show::bytes(limit)) }
        } }
        div { dt { "Free on its disk" } dd { (show::bytes(report.free)) } }
        div { dt { "From the cache" } dd {
            (show::percent(show::share(report.hits + report.stale, asked))) " of " (show::count(asked)) " answers"
        } }
        div { dt { "Served" } dd { (show::bytes(report.bytes_served)) } }
        div { dt { "Fetched" } dd {
            (show::bytes(report.bytes_fetched)) " from upstreams, " (show::bytes(report.bytes_from_replicas)) " from other replicas"
        } }
    }
}

fn fills(report: &Report) -> Markup {
    let all = report.fills.len() + report.more_fills;
    html! {
        div.heading { h3 { "On its way in" } span.amount { (all) } }
        @if all == 0 { p.hint { "Nothing." } }
        ul.fills { @for fill in &report.fills { li { (transfer(fill)) } } }
        @if report.more_fills > 0 { p.hint { "and " (report.more_fills) " more" } }
    }
}

fn transfer(fill: &FillEntry) -> Markup {
    html! {
        div.line { code title=(fill.digest) { (show::short(&fill.digest)) } span.quiet { (fill.repository) } }
        @if let Some(size) = fill.size {
            progress max=(size.max(1)) value=(fill.bytes) aria-label={ "Progress of " (show::short(&fill.digest)) } {}
        }
        p.meta {
            (show::bytes(fill.bytes)) @if let Some(size) = fill.size { " of " (show::bytes(size)) }
            @if let Some(upstream) = &fill.upstream { " · from " (upstream) }
            " · " (fill.clients) @if fill.clients == 1 { " client" } @else { " clients" }
        }
    }
}
