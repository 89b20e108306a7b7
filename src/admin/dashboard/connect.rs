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
use crate::services::{RegistryDoor, Services};

/// The address by which clients reach the registry door.
struct Address {
    /// As `https://mirror.example.com`.
    url: String,
    /// Without the scheme, as `mirror.example.com` or `10.0.0.7:5000`.
    host: String,
    is_tls: bool,
    /// What to know about this address.
    note: Option<&'static str>,
}

/// Registries of the examples: a client that has a block for each registry needs them by name.
const REGISTRIES: [&str; 4] = ["docker.io", "ghcr.io", "quay.io", "registry.k8s.io"];

/// How one kind of client is told of the cache.
struct Client {
    id: &'static str,
    name: &'static str,
    /// The argument of `larder setup`.
    setup: &'static str,
    /// What to write into which file, and what else to do.
    steps: fn(&Address) -> Vec<Step>,
}

/// A file with its content, or a command where there is no file.
struct Step {
    title: &'static str,
    text: String,
}

/// What clients read: docs/team-mirror.md, docs/kubernetes.md and docs/ci.md, which tests/pages.rs checks.
const CLIENTS: [Client; 6] = [
    Client { id: "docker", name: "Docker", setup: "docker", steps: docker },
    Client { id: "containerd", name: "containerd", setup: "containerd", steps: containerd },
    Client { id: "podman", name: "Podman, Buildah, skopeo, CRI-O", setup: "podman", steps: podman },
    Client { id: "buildkit", name: "BuildKit, buildx", setup: "buildkit", steps: buildkit },
    Client { id: "k3s", name: "k3s, RKE2", setup: "k3s", steps: rancher },
    Client { id: "kind", name: "kind", setup: "kind", steps: kind },
];

/// Shows how clients connect.
pub async fn show(visitor: Visitor, State(services): State<Arc<Services>>, headers: HeaderMap) -> Page {
    let asked = headers.get(HOST).and_then(|host| AskedHost::read(host.as_bytes())).map(|host| host.to_string());
    let rules = services.access.rules();
    let address = address(rules.public_url.as_deref(), services.registry_door(), asked.as_deref());
    let content = html! {
        div.heading { h1 { "Connect" } }
        p.sentence { "Clients reach this cache at " code.address { (address.url) } "." }
        @if let Some(note) = address.note { p.problem { (show::sign("warning")) (note) } }
        nav aria-label="Clients" { ul.choice { @for client in &CLIENTS { li { a href={ "#" (client.id) } { (client.name) } } } } }
        section.panel aria-labelledby="try" {
            h2 #try { "Without any set-up" }
            p { "Put the address before the name of the image. The pull shows up under " a href="/pulls" { "Pulls" } " with its reason." }
            (code(&format!("docker pull {}/docker.io/library/alpine:3.20", address.host)))
        }
        @for client in &CLIENTS { (guide(client, &address)) }
    };
    page(&visitor, Tab::Connect, "Connect", "", &content)
}

fn guide(client: &Client, address: &Address) -> Markup {
    html! {
        section.panel aria-labelledby=(client.id) {
            h2 id=(client.id) { (client.name) }
            p { "On the machine of the client, this shows what it would write; with " code { "--write" } " it does:" }
            (code(&format!("larder setup {} --url {}", client.setup, address.url)))
            details {
                summary { "Or by hand" }
                @for step in (client.steps)(address) { h3 { (step.title) } (code(&step.text)) }
            }
        }
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
        let scheme = if is_tls { "https" } else { "http" };
        Address { url: format!("{scheme}://{host}"), host, is_tls, note }
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

fn hosts(address: &Address) -> String {
    format!("[host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", address.url)
}

fn docker(address: &Address) -> Vec<Step> {
    let mut classic = format!("{{ \"registry-mirrors\": [\"{}\"]", address.url);
    if !address.is_tls {
        classic += &format!(", \"insecure-registries\": [\"{}\"]", address.host);
    }
    vec![
        Step {
            title: "From 28, with the containerd image store: /etc/docker/certs.d/_default/hosts.toml",
            text: hosts(address),
        },
        Step {
            title: "Up to 27, for Docker Hub alone: /etc/docker/daemon.json, then restart Docker",
            text: classic + " }\n",
        },
    ]
}

fn containerd(address: &Address) -> Vec<Step> {
    let table = |version: u8, plugin: &str| {
        format!("version = {version}\n\n[plugins.\"{plugin}\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n")
    };
    vec![
        Step { title: "/etc/containerd/certs.d/_default/hosts.toml", text: hosts(address) },
        Step {
            title: "2.x: /etc/containerd/config.toml, then restart containerd once",
            text: table(3, "io.containerd.cri.v1.images"),
        },
        Step { title: "1.6 and 1.7: the same file", text: table(2, "io.containerd.grpc.v1.cri") },
    ]
}

fn podman(address: &Address) -> Vec<Step> {
    let insecure = if address.is_tls { "" } else { "insecure = true\n" };
    let block = |registry: &&str| {
        format!(
            "[[registry]]\nprefix = \"{registry}\"\nlocation = \"{registry}\"\n[[registry.mirror]]\nlocation = \"{}/{registry}\"\n{insecure}",
            address.host
        )
    };
    let text = REGISTRIES.iter().map(block).collect::<Vec<_>>().join("\n");
    vec![Step { title: "/etc/containers/registries.conf.d/larder.conf, a block for each registry", text }]
}

fn buildkit(address: &Address) -> Vec<Step> {
    let block = |registry: &&str| format!("[registry.\"{registry}\"]\nmirrors = [\"{}\"]\n", address.host);
    let mut text: String = REGISTRIES.iter().map(block).collect();
    if !address.is_tls {
        text += &format!("[registry.\"{}\"]\nhttp = true\n", address.host);
    }
    let create = "docker buildx create --use --name cached --buildkitd-config buildkitd.toml\n";
    vec![Step { title: "buildkitd.toml", text }, Step { title: "For buildx", text: create.to_owned() }]
}

fn rancher(address: &Address) -> Vec<Step> {
    let text = format!("mirrors:\n  \"*\":\n    endpoint:\n      - \"{}\"\n", address.url);
    vec![Step {
        title: "/etc/rancher/k3s/registries.yaml or /etc/rancher/rke2/registries.yaml, then restart the service",
        text,
    }]
}

fn kind(address: &Address) -> Vec<Step> {
    let cluster = "kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n  - role: control-plane\n    extraMounts:\n      - hostPath: ./certs.d\n        containerPath: /etc/containerd/certs.d\n";
    vec![
        Step {
            title: "certs.d/_default/hosts.toml; the address has to be one that the node reaches, not 127.0.0.1",
            text: hosts(address),
        },
        Step { title: "The configuration of the cluster, for kind from 0.27", text: cluster.to_owned() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(public: Option<&str>, listen: &str, asked: &str) -> (String, bool) {
        let door = RegistryDoor { addresses: vec![listen.parse().expect("an address")], is_tls: false };
        let address = address(public, Some(&door), Some(asked));
        (address.url, address.note.is_some())
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
