//! One image: its platforms, its layers and which of them are stored, and what refers to it.

use std::sync::Arc;

use axum::extract::{Query, State};
use maud::{Markup, html};
use serde::Deserialize;

use super::layout::{Page, Tab, Visitor, inline_error, page};
use super::{pulls, show};
use crate::ops::{self, Part, Picture, Platform, Referrer};
use crate::services::Services;

#[derive(Deserialize)]
pub struct Asked {
    #[serde(default)]
    reference: String,
}

/// Shows one image.
pub async fn show(visitor: Visitor, State(services): State<Arc<Services>>, Query(asked): Query<Asked>) -> Page {
    let reference = asked.reference.trim();
    let rules = services.access.rules();
    let content = match ops::located(&rules.routing, &services.own_names(), reference) {
        Err(error) => inline_error(&error.to_string()),
        Ok(located) => {
            let written = located.written();
            match ops::picture(&services.cache, &located).await {
                Err(error) => inline_error(&error.to_string()),
                Ok(None) => {
                    html! { div.panel #image data-changes { (show::nothing("Its manifest is not in the cache.", &html! {
                        a href=(show::link("/explain", &[("reference", &written)])) { "See what a pull would do" } "."
                    })) } }
                }
                Ok(Some(picture)) => html! { div.parts #image data-changes { (shown(&picture, &written, &visitor)) } },
            }
        }
    };
    let content = html! {
        p.crumbs { a href="/images" { "Images" } }
        div.heading { h1.name { (show::reference(reference)) } }
        (content)
    };
    page(&visitor, Tab::Images, "Image", reference, &content)
}

fn shown(picture: &Picture, reference: &str, visitor: &Visitor) -> Markup {
    html! {
        section.panel aria-labelledby="about" {
            div.heading { h2 #about { "About it" } (pulls::actions(reference, Some(picture.is_pinned), visitor)) }
            dl.facts {
                div { dt { "Digest" } dd.break { code { (picture.digest) } } }
                div { dt { "Type" } dd.break { (picture.media_type) } }
                div { dt { "Pinned" } dd { @if picture.is_pinned { "yes: it is never evicted" } @else { "no" } } }
            }
        }
        section aria-labelledby="parts" {
            h2 #parts { @if picture.platforms.len() == 1 { "What it consists of" } @else { "Platforms" } }
            @if picture.platforms.is_empty() { p.hint { "Its manifest names no parts that Larder knows." } }
            @for platform in &picture.platforms { (one(platform, picture.platforms.len() == 1)) }
        }
        section.panel aria-labelledby="referrers" {
            h2 #referrers { "What refers to it" }
            @match &picture.referrers {
                None => p.hint { "No client has asked for its referrers (signatures, SBOMs), so Larder does not know any." },
                Some(list) if list.is_empty() => p.hint { "Nothing, as its upstream last said." },
                Some(list) => (referrers(list)),
            }
        }
    }
}

fn one(platform: &Platform, is_open: bool) -> Markup {
    let name = match (&platform.name, platform.is_attestation) {
        (_, true) => "attestation",
        (Some(name), false) => name,
        (None, false) if is_open => "image",
        (None, false) => "manifest",
    };
    let (there, all) = platform.bytes();
    html! {
        details.panel.platform open[is_open] {
            summary {
                strong { (name) } " "
                @if platform.is_whole() { (show::chip("good", "all of it")) }
                @else if platform.manifest.is_stored { (show::chip("part", &format!("{} of {}", show::bytes(there), show::bytes(all)))) }
                @else { (show::chip("none", "not pulled")) }
                @if platform.manifest.is_stored { span.quiet { " " (show::bytes(all + platform.manifest.size)) } }
            }
            @if platform.parts.is_empty() && !platform.manifest.is_stored {
                p.hint { "Its manifest is not in the cache: no client has pulled this platform, or it was evicted." }
            }
            div.scroll role="region" aria-label={ "Parts of " (name) } tabindex="0" {
                table {
                    thead { tr { th scope="col" { "Part" } th scope="col" { "Digest" } th scope="col" { "State" } th.number scope="col" { "Size" } } }
                    tbody {
                        (row("manifest", &platform.manifest))
                        @for (number, part) in platform.parts.iter().enumerate() {
                            @if part.is_config { (row("configuration", part)) }
                            @else {
                                @let layer = number + usize::from(!platform.parts.first().is_some_and(|first| first.is_config));
                                (row(&format!("layer {layer}"), part))
                            }
                        }
                    }
                }
            }
        }
    }
}

fn row(name: &str, part: &Part) -> Markup {
    html! { tr {
        th scope="row" { (name) div.meta { (part.media_type) } }
        td { code title=(part.digest) { (show::short(&part.digest)) } }
        td { (stored(part.is_stored)) }
        td.number { (show::bytes(part.size)) }
    } }
}

fn stored(is_stored: bool) -> Markup {
    if is_stored { show::chip("good", "stored") } else { show::chip("none", "not stored") }
}

fn referrers(list: &[Referrer]) -> Markup {
    html! {
        div.scroll role="region" aria-label="Table of referrers" tabindex="0" { table {
            thead { tr { th scope="col" { "Type" } th scope="col" { "Digest" } th scope="col" { "State" } th.number scope="col" { "Manifest" } } }
            tbody { @for referrer in list { tr {
                th scope="row" { (referrer.artifact_type) }
                td { code title=(referrer.digest) { (show::short(&referrer.digest)) } }
                td { (stored(referrer.is_stored)) }
                td.number { (show::bytes(referrer.size)) }
            } } }
        } }
    }
}
