//! The upstreams: their health, why they failed, and what is left of their rate limits.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use maud::{Markup, html};

use super::super::upstreams::{Quota, UpstreamEntry, of};
use super::layout::{Page, Tab, Visitor, page};
use super::show;
use crate::services::Services;

/// Shows the upstreams, by repository.
pub async fn show(visitor: Visitor, State(services): State<Arc<Services>>) -> Page {
    let routing = services.access.rules().routing.clone();
    let groups = routing.repositories().iter().map(|repository| (repository.prefix().to_owned(), of(repository)));
    let mut groups: Vec<_> = groups.collect();
    // What is in trouble comes first, then what is in use.
    groups.sort_by_key(|(_, upstreams)| upstreams.iter().map(|upstream| rank(&upstream.state)).min());
    let content = html! {
        div.heading { h1 { "Upstreams" } }
        div #upstreams data-live="5" {
            @if groups.is_empty() { div.panel { (show::nothing("No repository is configured.", &html! { "Add a " code { "[repository.\"…\"]" } " to the configuration." })) } }
            div.grid { @for (prefix, upstreams) in &groups {
                section.panel { h2 { (prefix) } ol.upstreams { @for upstream in upstreams { li { (entry(upstream)) } } } }
            } }
        }
    };
    page(&visitor, Tab::Upstreams, "Upstreams", "", &content)
}

fn rank(state: &str) -> u8 {
    match state {
        "resting" | "failing" => 0,
        "limited" => 1,
        "ready" => 2,
        _ => 3,
    }
}

/// Shows one upstream.
pub fn entry(upstream: &UpstreamEntry) -> Markup {
    let means = match upstream.state.as_str() {
        "ready" => "it answered",
        "failing" => "it failed when it was last asked",
        "limited" => "no request that counts as a pull is sent",
        "resting" => "no request is sent for now",
        _ => "it was not asked yet",
    };
    html! {
        div.line { (show::chip(&upstream.state, &upstream.state)) strong { (upstream.upstream) } span.quiet { (means) } }
        @if let Some(reason) = &upstream.reason {
            p.why { (reason) @if let Some(after) = upstream.retry_after { "; asked again in " (show::span(Duration::from_secs_f64(after.max(0.0)))) } }
        }
        dl.facts {
            div { dt { "URL" } dd.break { (upstream.url) } }
            div { dt { "Account" } dd { (upstream.account) } }
            @if let Some(at) = &upstream.last_success { div { dt { "Last success" } dd { (show::ago_of(at)) } } }
            @if let Some(last) = &upstream.last_failure {
                div { dt { "Last failure" } dd { (show::ago_of(&last.at)) ": " (last.reason) } }
            }
            @if let Some(share) = upstream.failed_share { div { dt { "Failed of the last 100" } dd { (show::percent(share)) } } }
            @if let Some(mean) = upstream.mean_head_ms { div { dt { "Mean time to answer" } dd { (show::millis(mean)) } } }
        }
        @if let Some(quota) = &upstream.quota { (left_of(quota)) }
    }
}

fn left_of(quota: &Quota) -> Markup {
    html! {
        div.quota {
            (show::bar(show::share(quota.remaining, quota.limit), "Pulls left", quota.remaining < quota.limit / 10))
            p.meta {
                (show::count(quota.remaining)) " of " (show::count(quota.limit)) " pulls left"
                @if let Some(window) = quota.window { " in " (show::span(Duration::from_secs(window))) }
                @if let Some(source) = &quota.source { ", counted for " (source) }
                ", as it said " (show::span(Duration::from_secs(quota.age))) " ago"
            }
        }
    }
}
