//! The log of pulls: the last 10,000, each with its reason.

use std::sync::Arc;

use axum::extract::{Query, State};
use maud::{Markup, html};
use serde::Deserialize;

use super::super::pulls::PullEntry;
use super::layout::{Page, Tab, Visitor, page};
use super::show;
use crate::observe::pulls::{Filter, KEPT};
use crate::services::Services;

/// Pulls on a page.
const PAGE: usize = 100;
/// The outcomes that people may choose: the word of the API, and its words in the page.
const OUTCOMES: [(&str, &str); 6] = [
    ("", "all"),
    ("hit", "from the cache"),
    ("miss", "fetched"),
    ("stale", "old copies"),
    ("failed", "failed"),
    ("refused", "refused"),
];

#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Asked {
    status: String,
    repository: String,
    q: String,
    before: Option<u64>,
    /// Only pulls with a larger number: what is new since the page was made.
    after: Option<u64>,
}

/// Shows some of the last pulls.
pub async fn show(visitor: Visitor, State(services): State<Arc<Services>>, Query(asked): Query<Asked>) -> Page {
    let some = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let filter = Filter {
        status: some(&asked.status),
        repository: some(&asked.repository),
        q: some(&asked.q),
        before: asked.before,
    };
    let pulls = services.metrics.pulls.list(&filter, PAGE + 1);
    let next = (pulls.len() > PAGE).then(|| pulls[PAGE - 1].id);
    let is_new = |id: u64| asked.after.is_none_or(|after| id > after);
    let pulls = pulls.iter().take(PAGE).filter(|pull| is_new(pull.id)).map(|pull| PullEntry::from(&**pull));
    let pulls: Vec<_> = pulls.collect();
    let rules = services.access.rules();
    let is_filtered = filter.status.is_some() || filter.repository.is_some() || filter.q.is_some();
    let content = html! {
        div.heading {
            h1 { "Pulls" }
            @if asked.before.is_none() {
                button.needs-js #pause type="button" aria-pressed="false" { "Pause" }
            }
        }
        (filters(&asked, rules.routing.prefixes()))
        p #news.unseen aria-live="polite" {}
        section.panel #log-panel aria-label="The last pulls" {
            @if pulls.is_empty() && is_filtered {
                (show::nothing("No pull fits.", &html! { a href="/pulls" { "Show all pulls" } " of the last " (KEPT) "." }))
            } @else if pulls.is_empty() { (none_yet()) }
            (log(&pulls, &visitor, if asked.before.is_none() { "log" } else { "older" }))
        }
        nav.pager aria-label="Older and newer pulls" {
            @if asked.before.is_some() { a href=(asked.page(None)) { "Newest" } }
            @if let Some(next) = next { a href=(asked.page(Some(next))) { "Older" } }
        }
    };
    page(&visitor, Tab::Pulls, "Pulls", "", &content)
}

impl Asked {
    /// Returns the link to a page with the same filter.
    fn page(&self, before: Option<u64>) -> String {
        let before = before.map(|before| before.to_string()).unwrap_or_default();
        let (status, repository) = (self.status.as_str(), self.repository.as_str());
        show::link("/pulls", &[("status", status), ("repository", repository), ("q", &self.q), ("before", &before)])
    }
}

fn filters<'a>(asked: &Asked, prefixes: impl Iterator<Item = &'a str>) -> Markup {
    html! {
        form.filters action="/pulls" method="get" {
            label { span { "Answer" } select name="status" {
                @for (word, name) in OUTCOMES { option value=(word) selected[word == asked.status] { (name) } }
                // A status code, from a link.
                @if !OUTCOMES.iter().any(|(word, _)| *word == asked.status) { option value=(asked.status) selected { (asked.status) } }
            } }
            label { span { "Repository" } select name="repository" {
                option value="" { "all" }
                @for prefix in prefixes { option value=(prefix) selected[prefix == asked.repository] { (prefix) } }
            } }
            label.wide { span { "Text" } input type="search" name="q" value=(asked.q) placeholder="image, client, user, reason" autocomplete="off" spellcheck="false"; }
            button type="submit" { "Filter" }
        }
    }
}

/// What to do before anything was pulled.
pub fn none_yet() -> Markup {
    show::nothing(
        "Nothing was pulled since the start.",
        &html! {
            a href="/connect" { "Connect a client" } ", and pull an image: it shows up here with the reason for each answer."
        },
    )
}

/// Shows pulls as a list. `id`: the name of the list in the page.
pub fn log(pulls: &[PullEntry], visitor: &Visitor, id: &str) -> Markup {
    html! { ol.log id=(id) { @for pull in pulls { (row(pull, visitor)) } } }
}

fn row(pull: &PullEntry, visitor: &Visitor) -> Markup {
    // Blobs are no images: nobody explains or pins one.
    let image = pull.reference.as_deref().filter(|_| pull.kind == "manifest");
    html! {
        li.pull id={ "pull-" (pull.id) } data-id=(pull.id) {
            (show::chip(&pull.cache, &pull.cache))
            div.what.part[image.is_none()] {
                p.name { (name(pull, image)) }
                p.why { (show::prose(&pull.why)) @if !pull.complete && pull.status < 400 { " The client left before the end." } }
                @if let Some(slow) = &pull.slow { p.slow { (show::sign("waiting")) "Slow: " (slow) } }
                p.meta {
                    (show::ago_of(&pull.at)) " · " (without_port(&pull.client))
                    @if let Some(user) = &pull.user { " · " (user) }
                    " · " (pull.method) " " (pull.kind) " · " (pull.status) " · " span.code { (pull.reason) }
                    @if !pull.user_agent.is_empty() { " · " (pull.user_agent) }
                }
            }
            p.figures { (show::bytes(pull.bytes)) br; span.quiet { (show::millis(pull.took_ms)) } }
            @if let Some(image) = image { (actions(image, None, visitor)) }
        }
    }
}

fn name(pull: &PullEntry, image: Option<&str>) -> Markup {
    html! {
        @match (image, &pull.reference) {
            (Some(image), _) => a href=(show::link("/explain", &[("reference", image)])) { (show::reference(image)) },
            (None, Some(reference)) => (show::reference(reference)),
            (None, None) => span.path { (pull.path) },
        }
    }
}

/// Returns the address without the port, which tells people nothing.
fn without_port(client: &str) -> &str {
    match client.rsplit_once(':') {
        Some((address, port)) if !port.contains(']') && (!address.contains(':') || address.ends_with(']')) => address,
        _ => client,
    }
}

/// The buttons of an image. `pinned`: whether it is pinned, if that is known.
pub fn actions(image: &str, pinned: Option<bool>, visitor: &Visitor) -> Markup {
    let button = |action: &str, word: &str| {
        html! { button type="button" data-action=(action) data-reference=(image) { (word) } }
    };
    html! {
        @if visitor.may_change {
            details.acts.needs-js {
                summary aria-label={ "Actions for " (image) } { span aria-hidden="true" { "⋯" } }
                div.buttons {
                    a.button href=(show::link("/explain", &[("reference", image)])) { "Explain" }
                    (button("refresh", "Refresh"))
                    @if pinned != Some(true) { (button("pin", "Pin")) }
                    @if pinned != Some(false) { (button("unpin", "Unpin")) }
                    (button("purge", "Purge"))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::without_port;

    #[test]
    fn a_client_is_shown_by_its_address() {
        let shown = ["192.0.2.1:4711", "[2001:db8::1]:80", "2001:db8::1", "192.0.2.1", "local"].map(without_port);
        assert_eq!(shown, ["192.0.2.1", "[2001:db8::1]", "2001:db8::1", "192.0.2.1", "local"]);
    }
}
