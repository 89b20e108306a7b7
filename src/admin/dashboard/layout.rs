//! What all pages have: navigation, the box that explains, the dialog that asks before something is removed.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Html;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::super::diagnosis;
use super::super::door::Person;
use super::assets::{SCRIPT, STYLE};
use super::show::{prose, sign};
use crate::access::Manager;
use crate::access::browser::Shown;
use crate::auth::Client;
use crate::services::Services;

/// A page of the dashboard.
pub type Page = Html<String>;

/// Who looks at a page, and what is to be told on each.
pub struct Visitor {
    /// Whether the client may change something: others get no buttons.
    pub may_change: bool,
    /// How many things are wrong now.
    pub findings: usize,
    /// Whether this Larder is one of several that behave as one cache.
    has_replicas: bool,
    account: Account,
}

/// How the visitor stands with logins in a browser.
enum Account {
    /// The visitor needs none, or came in by other credentials.
    None,
    /// The visitor may look by its address, and could log in.
    Stranger,
    LoggedIn(Arc<Shown>),
}

impl FromRequestParts<Arc<Services>> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, services: &Arc<Services>) -> Result<Self, Infallible> {
        let may_change = match parts.extensions.get::<Client>() {
            Some(client) => {
                let manager = services.access.manager(client, &parts.headers, true).await;
                matches!(manager, Manager::Known(_) | Manager::Session(_) | Manager::ByAddress)
            }
            None => false,
        };
        let account = match parts.extensions.get::<Person>() {
            Some(Person { session: Some(shown), .. }) => Account::LoggedIn(shown.clone()),
            Some(Person { identity: None, .. }) if !services.access.rules().browser_logins().is_empty() => {
                Account::Stranger
            }
            _ => Account::None,
        };
        let has_replicas = services.cluster.is_some();
        Ok(Self { may_change, findings: diagnosis::of(services).await.findings.len(), has_replicas, account })
    }
}

/// The pages in the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tab {
    Overview,
    Pulls,
    Images,
    Warm,
    Upstreams,
    Replicas,
    Diagnosis,
    Connect,
    /// A page that is not in the navigation.
    Other,
}

const TABS: [(Tab, &str, &str); 8] = [
    (Tab::Overview, "/", "Overview"),
    (Tab::Pulls, "/pulls", "Pulls"),
    (Tab::Images, "/images", "Images"),
    (Tab::Warm, "/warm", "Warm"),
    (Tab::Upstreams, "/upstreams", "Upstreams"),
    (Tab::Replicas, "/replicas", "Replicas"),
    (Tab::Diagnosis, "/diagnosis", "Diagnosis"),
    (Tab::Connect, "/connect", "Connect"),
];

/// The sign of Larder: a jar. As a URL, so that browsers ask for no other file.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E%3Crect width='32' height='32' rx='8' fill='%230f766e'/%3E%3Cpath d='M11 7h10v3H11zM10 12h12a2 2 0 0 1 2 2v9a3 3 0 0 1-3 3H11a3 3 0 0 1-3-3v-9a2 2 0 0 1 2-2z' fill='%23fff'/%3E%3Cpath d='M8 17.500h16v4H8z' fill='%235eead4'/%3E%3C/svg%3E";

/// Returns a page. `asked`: what the box that explains shows.
pub fn page(visitor: &Visitor, tab: Tab, title: &str, asked: &str, content: &Markup) -> Page {
    let header = html! {
        header.top {
            div.bar {
                a.brand href="/" { (mark()) span { "Larder" } }
                (search(asked))
                (account(visitor))
            }
            nav aria-label="Pages" { ul {
                @for (of, path, name) in TABS.into_iter().filter(|(of, ..)| visitor.has_replicas || *of != Tab::Replicas) {
                    li { a href=(path) aria-current=[(of == tab).then_some("page")] {
                        (name)
                        @if of == Tab::Diagnosis && visitor.findings > 0 {
                            " " span.badge { (visitor.findings) span.unseen { " findings" } }
                        }
                    } }
                }
            } }
        }
    };
    let body = html! {
        (header)
        main #content tabindex="-1" {
            output #messages role="status" aria-live="polite" {}
            (content)
        }
        (footer(visitor))
        @if visitor.may_change { (dialog()) }
    };
    let csrf_token = match &visitor.account {
        Account::LoggedIn(shown) => Some(shown.csrf_token()),
        _ => None,
    };
    document(title, csrf_token.as_deref(), &body)
}

/// Returns a page that tells an error.
pub fn failure(status: StatusCode, message: &str) -> Page {
    let title = status.canonical_reason().unwrap_or("Error");
    let content = html! {
        p.why { (prose(message)) }
        p { a href="/" { "To the overview" } }
    };
    notice(title, &content)
}

/// Returns a page without navigation, for people who need not be let in.
pub fn notice(title: &str, content: &Markup) -> Page {
    let body = html! {
        header.top { div.bar { a.brand href="/" { (mark()) span { "Larder" } } } }
        main #content tabindex="-1" {
            section.panel.failure {
                h1 { (title) }
                (content)
            }
        }
    };
    document(title, None, &body)
}

/// Who is logged in, and the way out; or the way in.
fn account(visitor: &Visitor) -> Markup {
    html! {
        @match &visitor.account {
            Account::None => {}
            Account::Stranger => p.account { a.button href="/login" { "Log in" } },
            Account::LoggedIn(shown) => form.account action="/logout" method="post" {
                p title=[shown.identity.name()] {
                    span.unseen { "Logged in as " }
                    span.name { (shown.identity.person().unwrap_or_default()) }
                    @if !visitor.may_change { span.rights { "may only look" } }
                }
                input type="hidden" name="csrf_token" value=(shown.csrf_token());
                button type="submit" { "Log out" }
            },
        }
    }
}

/// An error inside a page.
pub fn inline_error(message: &str) -> Markup {
    html! { p.problem role="alert" { (sign("error")) span { (prose(message)) } } }
}

/// `csrf_token`: what the script shows with requests that change something.
fn document(title: &str, csrf_token: Option<&str>, body: &Markup) -> Page {
    let document = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                @if let Some(token) = csrf_token { meta name="csrf-token" content=(token); }
                title { (title) " · Larder" }
                link rel="icon" href=(PreEscaped(ICON));
                link rel="stylesheet" href=(STYLE.path());
                script src=(SCRIPT.path()) defer {}
            }
            body {
                a.skip href="#content" { "Skip to the content" }
                (body)
            }
        }
    };
    Html(document.into_string())
}

/// The box that says what would happen to a pull.
fn search(asked: &str) -> Markup {
    html! {
        form.explain action="/explain" method="get" role="search" {
            label for="asked" { "What would happen with" }
            input #asked type="search" name="reference" value=(asked) placeholder="alpine:3.20" autocomplete="off"
                spellcheck="false" autocapitalize="off";
            button type="submit" { "Explain" }
        }
    }
}

fn footer(visitor: &Visitor) -> Markup {
    html! {
        footer {
            p {
                "Larder " (env!("CARGO_PKG_VERSION"))
                @if !visitor.may_change { " · you may look, and change nothing" }
                " · " a href="/api/openapi.json" { "API" } " · " a href="/metrics" { "metrics" }
            }
            p #live hidden { span.dot aria-hidden="true" {} span #live-text { "live" } }
        }
    }
}

/// Asks before something is removed; the script fills it in.
fn dialog() -> Markup {
    html! {
        dialog #confirm aria-labelledby="confirm-title" {
            form method="dialog" {
                h2 #confirm-title { "Are you sure?" }
                p #confirm-text {}
                div.choices {
                    button value="no" autofocus { "Cancel" }
                    button.danger value="yes" #confirm-yes { "Purge" }
                }
            }
        }
    }
}

fn mark() -> Markup {
    html! {
        svg.mark viewBox="0 0 32 32" aria-hidden="true" focusable="false" {
            rect.box width="32" height="32" rx="8" {}
            path.jar d="M11 7h10v3H11zM10 12h12a2 2 0 0 1 2 2v9a3 3 0 0 1-3 3H11a3 3 0 0 1-3-3v-9a2 2 0 0 1 2-2z" {}
            path.fill d="M8 17.500h16v4H8z" {}
        }
    }
}
