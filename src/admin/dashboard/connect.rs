//! How clients connect to this very server: what `larder setup` writes, with the server's own address.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::HOST;
use maud::{Markup, html};

use super::layout::{Page, Tab, Visitor, page};
use super::show;
use crate::access::AskedHost;
use crate::services::{ForClients, RegistryDoor, Services};
use crate::setup::{Cache, Client, Lines, Version, lines};

/// The address by which clients reach the registry door.
struct Address {
    cache: Cache,
    /// What to know about this address.
    note: Option<&'static str>,
}

/// A client, and the versions of it that read other files than the newest.
struct Kind {
    client: Client,
    name: &'static str,
    /// What the files are for, and a version of that kind.
    versions: &'static [(&'static str, Option<Version>)],
}

const ANY: &[(&str, Option<Version>)] = &[("", None)];

/// Which version reads what is known in [`crate::setup`]; these are examples of each kind.
const KINDS: [Kind; 7] = [
    Kind {
        client: Client::Docker,
        name: "Docker",
        versions: &[("28 and later", Some(Version(29, 1, 0))), ("up to 27", Some(Version(27, 0, 0)))],
    },
    Kind {
        client: Client::Containerd,
        name: "containerd",
        versions: &[
            ("2.2 and later", Some(Version(2, 2, 0))),
            ("2.0 and 2.1", Some(Version(2, 1, 0))),
            ("1.7", Some(Version(1, 7, 24))),
        ],
    },
    Kind { client: Client::Podman, name: "Podman, Buildah, skopeo, CRI-O", versions: ANY },
    Kind { client: Client::Buildkit, name: "BuildKit, buildx", versions: ANY },
    Kind { client: Client::K3s, name: "k3s", versions: ANY },
    Kind { client: Client::Rke2, name: "RKE2", versions: ANY },
    Kind { client: Client::Kind, name: "kind", versions: ANY },
];

/// Shows how clients connect.
pub async fn show(visitor: Visitor, State(services): State<Arc<Services>>, headers: HeaderMap) -> Page {
    let asked = headers.get(HOST).and_then(|host| AskedHost::read(host.as_bytes())).map(|host| host.to_string());
    let rules = services.access.rules();
    let address = address(rules.public_url.as_deref(), services.registry_door(), asked.as_deref());
    let configuration = services.configuration();
    let address =
        Address { cache: Cache { authority: configuration.for_clients.authority.clone(), ..address.cache }, ..address };
    let content = html! {
        div.heading { h1 { "Connect" } }
        p.sentence { "Clients reach this cache at " code.address { (address.cache.url()) } "." }
        @if let Some(note) = address.note { p.problem { (show::sign("warning")) (note) } }
        nav aria-label="Clients" {
            ul.choice { @for kind in &KINDS { li { a href={ "#" (kind.client.name()) } { (kind.name) } } } }
        }
        section.panel aria-labelledby="try" {
            h2 #try { "Without any set-up" }
            p { "Put the address before the name of the image. The pull shows up under " a href="/pulls" { "Pulls" } " with its reason." }
            (code(&format!("docker pull {}/docker.io/library/alpine:3.20", address.cache.host)))
        }
        @for kind in &KINDS { (guide(kind, &address, &configuration.for_clients)) }
    };
    page(&visitor, Tab::Connect, "Connect", "", &content)
}

fn guide(kind: &Kind, address: &Address, for_clients: &ForClients) -> Markup {
    let (id, url) = (kind.client.name(), address.cache.url());
    html! {
        section.panel aria-labelledby=(id) {
            h2 id=(id) { (kind.name) }
            p { "On the machine of the client, this shows what it would write, by the version that it finds there; with " code { "--write" } " it does:" }
            (code(&format!("larder setup {id} --url {url}")))
            @for (versions, version) in kind.versions {
                details {
                    summary { "By hand" @if !versions.is_empty() { ", " (kind.name) " " (versions) } }
                    (by_hand(kind.client, *version, address, for_clients))
                }
            }
        }
    }
}

/// The files of a client, and what else to do.
fn by_hand(client: Client, version: Option<Version>, address: &Address, for_clients: &ForClients) -> Markup {
    let ForClients { registries, is_hub_default, .. } = for_clients.clone();
    if registries.is_empty() {
        return html! { p { "No repository of the configuration has a " code { "namespace" } ", by which clients name a registry." } };
    }
    let plan = match lines(client, version, Lines { cache: address.cache.clone(), registries, is_hub_default }) {
        Ok(plan) => plan,
        Err(error) => return html! { p.problem { (show::sign("warning")) (error) } },
    };
    html! {
        @for file in &plan.files { h3 { code { (file.path.display()) } } (code(&file.text)) }
        @for warning in &plan.warnings { p.problem { (show::sign("warning")) (warning) } }
        @if !plan.next.is_empty() { h3 { "Then" } ul { @for step in &plan.next { li { (step) } } } }
    }
}

/// Text to copy.
fn code(text: &str) -> Markup {
    html! {
        div.code-box {
            pre tabindex="0" { code { (text) } }
            button.copy.needs-js type="button" data-copy="" { "Copy" }
        }
    }
}

/// Returns the address for clients: the public URL, or where the door listens. `asked`: the host by which the visitor
/// reached the admin door, which may lead to the registry door, too, if that is open on all addresses.
fn address(public: Option<&str>, door: Option<&RegistryDoor>, asked: Option<&str>) -> Address {
    let is_tls = door.is_some_and(|door| door.is_tls);
    let with = |host: String, is_tls: bool, note| {
        let name = without_port(&host).trim_matches(['[', ']']);
        let is_loopback = name == "localhost" || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        Address { cache: Cache { is_tls, host, is_loopback, authority: None }, note }
    };
    if let Some((scheme, host)) = public.and_then(|url| url.split_once("://")) {
        return with(host.trim_end_matches('/').to_owned(), scheme == "https", None);
    }
    let Some(door) = door.and_then(|door| door.addresses.first()) else {
        return with("127.0.0.1:5000".to_owned(), is_tls, Some("The registry door is not open yet."));
    };
    let local = "Only this machine reaches it. For other machines set server.listen, and server.public_url to the address that they use.";
    let unnamed = "This is the name by which you came here. If clients use another one, set server.public_url.";
    match door.ip() {
        ip if ip.is_loopback() => with(door.to_string(), is_tls, Some(local)),
        ip if !ip.is_unspecified() => with(door.to_string(), is_tls, None),
        _ => {
            let name = asked.map_or("127.0.0.1", without_port);
            let is_here =
                name == "localhost" || name.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
            let note = if is_here {
                "Other machines reach it by the name of this machine: set server.public_url to it."
            } else {
                unnamed
            };
            with(format!("{name}:{}", door.port()), is_tls, Some(note))
        }
    }
}

/// Returns a host without its port; an IPv6 address keeps its brackets.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(public: Option<&str>, listen: &str, asked: &str) -> (String, bool) {
        let door = RegistryDoor { addresses: vec![listen.parse().expect("an address")], is_tls: false };
        let address = address(public, Some(&door), Some(asked));
        (address.cache.url(), address.note.is_some())
    }

    #[test]
    fn the_address_is_the_one_that_clients_reach() {
        let public = Some("https://mirror.example.com");
        assert_eq!(told(public, "127.0.0.1:5000", "localhost:17081"), ("https://mirror.example.com".to_owned(), false));
        assert_eq!(told(None, "127.0.0.1:5000", "127.0.0.1:17081"), ("http://127.0.0.1:5000".to_owned(), true));
        assert_eq!(told(None, "10.0.0.7:5000", "127.0.0.1:17081"), ("http://10.0.0.7:5000".to_owned(), false));
        assert_eq!(told(None, "0.0.0.0:5000", "cache.lan:17081"), ("http://cache.lan:5000".to_owned(), true));
        assert_eq!(told(None, "[::]:5000", "[2001:db8::1]:17081"), ("http://[2001:db8::1]:5000".to_owned(), true));
        assert_eq!(told(None, "[::]:5000", "[2001:db8::1]"), ("http://[2001:db8::1]:5000".to_owned(), true));
    }
}
