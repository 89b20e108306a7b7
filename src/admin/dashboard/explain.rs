//! What would happen to a pull, and why.

use std::sync::Arc;

use axum::extract::{Query, State};
use maud::{Markup, html};
use serde::Deserialize;

use super::super::explain::{CachedCopy, Explanation, explained};
use super::layout::{Page, Tab, Visitor, inline_error, page};
use super::{pulls, show, upstreams};
use crate::services::Services;

#[derive(Deserialize)]
pub struct Asked {
    #[serde(default)]
    reference: String,
}

/// Shows what would happen. Asks no upstream.
pub async fn show(visitor: Visitor, State(services): State<Arc<Services>>, Query(asked): Query<Asked>) -> Page {
    let reference = asked.reference.trim();
    let content = if reference.is_empty() {
        html! {
            div.heading { h1 { "Explain" } }
            div.panel { (show::nothing("Which image?", &html! {
                "Write it into the box above as in a pull, such as " code { "alpine:3.20" } " or " code { "ghcr.io/owner/app:1" } "."
            })) }
        }
    } else {
        html! {
            div.heading { h1.name { (show::reference(reference)) } }
            @match explained(&services, reference).await {
                Ok(explanation) => div.parts #explained data-changes { (answer(&explanation, &visitor)) },
                Err(problem) => (inline_error(problem.message())),
            }
        }
    };
    page(&visitor, Tab::Other, "Explain", reference, &content)
}

fn answer(explanation: &Explanation, visitor: &Visitor) -> Markup {
    let (kind, words) = match explanation.next.as_str() {
        "served" => ("hit", "served from the cache"),
        "checked" => ("checked", "checked, then served"),
        "fetched" => ("miss", "fetched"),
        _ => ("refused", "not asked again yet"),
    };
    html! {
        section.panel aria-labelledby="answer" {
            div.heading { h2 #answer { "If it were pulled now" } (pulls::actions(&explanation.reference, None, visitor)) }
            p.line { (show::chip(kind, words)) @if let Some(reason) = &explanation.reason { " " span.code { (reason) } } }
            p.sentence { (show::prose(&explanation.text)) "." }
            dl.facts {
                div { dt { "Image" } dd.break { (explanation.reference) } }
                div { dt { "Repository" } dd { (explanation.repository) } }
                div { dt { "Name upstream" } dd.break { (explanation.name) } }
                @if let Some(next) = &explanation.asked_next { div { dt { "Asked next" } dd { (next) } } }
            }
        }
        section.panel aria-labelledby="copy" {
            h2 #copy { "The cached copy" }
            @match &explanation.cached {
                Some(copy) => (cached(copy, &explanation.reference)),
                None => p.hint { "Nothing of it is in the cache." },
            }
        }
        section.panel aria-labelledby="order" {
            h2 #order { "Upstreams, in the order in which they are asked" }
            ol.upstreams { @for upstream in &explanation.upstreams { li { (upstreams::entry(upstream)) } } }
        }
        section.panel aria-labelledby="recent" {
            div.heading { h2 #recent { "Its last pulls" } a href=(show::link("/pulls", &[("q", &explanation.reference)])) { "All of them" } }
            @if explanation.pulls.is_empty() { p.hint { "It is not among the last pulls." } }
            @else { (pulls::log(&explanation.pulls, visitor, "recent-pulls")) }
        }
    }
}

fn cached(copy: &CachedCopy, reference: &str) -> Markup {
    html! {
        dl.facts {
            div { dt { "Digest" } dd.break { code { (copy.digest) } } }
            div { dt { "Type" } dd.break { (copy.media_type) } }
            div { dt { "Manifest" } dd { (show::bytes(copy.size)) } }
            div { dt { "Stored" } dd { (show::ago_of(&copy.stored_at)) } }
            @if let Some(at) = &copy.checked_at { div { dt { "Tag last confirmed" } dd { (show::ago_of(at)) } } }
        }
        p { a href=(show::link("/image", &[("reference", reference)])) { "How much of the image is there" } }
    }
}
