//! `config.yml` of Docker's registry (distribution) as a cache.

use url::Url;

use super::draft::{Draft, Line, Repository, line, login, prefix_of};
use super::foreign::Foreign;
use super::kind::ConvertError;
use super::values;
use crate::config::origin::Provenance;

const OTHER_LOGIN: &str = "clients log in with [auth.htpasswd] or a certificate; say who may pull in `allow`";
const ONLY_FILES: &str = "there is no such store: content is in files, and in a bucket if there is [storage.s3]";
const A_BUCKET: &str = "write [storage.s3] by hand; what is stored there cannot be used";

/// Other keys that its configuration may have, each with the warning about it; an empty one means no warning.
const NOTES: [(&str, &str); 30] = [
    ("version", ""),
    ("auth", OTHER_LOGIN),
    ("http.tls.letsencrypt.cachefile", "certificates are kept under `cache.dir`; another one is obtained"),
    ("http.tls.letsencrypt", ""),
    ("http.tls.minimumtls", "TLS 1.2 and 1.3 are spoken"),
    ("http.tls.ciphersuites", "the suites are those of TLS 1.2 and 1.3 that are safe"),
    ("http.tls.clientauth", ""),
    ("http.secret", ""),
    ("http.relativeurls", ""),
    ("http.http2", "HTTP/2 is always spoken, also without TLS"),
    ("http.net", "Larder listens on TCP addresses only"),
    ("http.headers", "headers cannot be added to answers"),
    ("http.prefix", "Larder answers at /v2/ only"),
    ("http.debug.prometheus", "the metrics are always at /metrics of the admin door"),
    ("storage.delete", ""),
    ("storage.cache", ""),
    ("storage.maintenance", ""),
    ("storage.redirect", ""),
    ("storage.tag", ""),
    ("storage.inmemory", ONLY_FILES),
    ("storage.s3", A_BUCKET),
    ("storage.gcs", ONLY_FILES),
    ("storage.azure", ONLY_FILES),
    ("storage.filesystem.maxthreads", ""),
    ("proxy.exec.lifetime", "Larder asks the helper anew when it needs to"),
    ("proxy.cachewritetimeout", ""),
    ("redis", "there is nothing to share between instances"),
    ("health", "health is at /healthz and /readyz of the admin door"),
    ("notifications", "Larder sends no notifications"),
    ("validation", ""),
];

/// Moves the values of `document` into `draft`.
pub fn convert(mut document: Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    let Some((remote, origin)) = document.text(&["proxy", "remoteurl"])? else {
        let message = "`proxy.remoteurl` is missing, so it is no cache and there is nothing to convert";
        return Err(ConvertError::at(&document.node.origin, message));
    };
    let url = Url::parse(&remote).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let Some(url) = url.filter(|url| url.username().is_empty() && url.password().is_none()) else {
        // The URL may contain a password.
        let message = "`proxy.remoteurl`: this is no URL as https://registry-1.docker.io";
        return Err(ConvertError::at(&origin, message));
    };
    let prefix = prefix_of(&url).unwrap_or_else(|| "upstream".to_owned());

    draft.listen(&mut document, &["http", "addr"])?;
    draft.only_its_own_repositories();
    draft.server(line("default_repository", prefix.clone()).why("names come without a registry before them"));
    if let Some(grace) = draft.time(&mut document, &["http", "draintimeout"])? {
        draft.server(line("shutdown_grace", grace));
    }
    draft.certificate(&mut document, [&["http", "tls", "certificate"], &["http", "tls", "key"]])?;
    acme(&mut document, draft)?;
    let bundles = document.texts(&["http", "tls", "clientcas"])?;
    if let [(bundle, origin), more @ ..] = bundles.as_slice() {
        draft.tls(line("client_ca_bundle", bundle.clone()));
        draft.tls(line("client_auth", "required"));
        if !more.is_empty() {
            draft.warn_at(origin, "`http.tls.clientcas`: put the authorities into one file; the first is taken");
        }
    }
    if let Some((path, _)) = document.text(&["auth", "htpasswd", "path"])? {
        draft.htpasswd(line("path", path).why("bcrypt, as `htpasswd -B` writes it"));
        if let Some((realm, _)) = document.text(&["auth", "htpasswd", "realm"])? {
            draft.htpasswd(line("realm", realm));
        }
    }
    draft.dir(&mut document, &["storage", "filesystem", "rootdirectory"])?;
    let mut lines = Vec::new();
    match draft.time(&mut document, &["proxy", "ttl"])? {
        Some(never) if never == "0s" => lines.push(line("ttl", "forever")),
        ttl => lines.extend(ttl.map(|ttl| line("ttl", ttl).why("since somebody asked for it last"))),
    }
    let mut upstream = vec![line("url", remote)];
    upstream.extend(credentials(&mut document, draft)?);
    draft.repositories.push(Repository { prefix, lines, upstreams: vec![upstream] });

    debug_door(&mut document, draft)?;
    logging(&mut document, draft)?;
    draft.warn_all(document.left_over(&NOTES));
    Ok(())
}

/// Converts its Let's Encrypt support. Without `hosts`, the registry gets a certificate for any name that a client asks
/// it by.
fn acme(document: &mut Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    let of = |key| ["http", "tls", "letsencrypt", key];
    let hosts: Vec<_> = document.texts(&of("hosts"))?.into_iter().map(|(host, _)| host).collect();
    let email = document.text(&of("email"))?;
    let directory = document.text(&of("directoryurl"))?;
    if !hosts.is_empty() {
        draft.acme(line("domains", hosts).why("port 443 has to lead here"));
        draft.acme(line("email", email.map(|(email, _)| email).unwrap_or_default()));
        if let Some((directory, _)) = directory {
            draft.acme(line("directory", directory));
        }
    } else if let Some((_, origin)) = email.or(directory) {
        draft.warn_at(&origin, "`http.tls.letsencrypt`: write the `domains` of [server.tls.acme]; there is no TLS");
    }
    Ok(())
}

fn credentials(document: &mut Foreign, draft: &mut Draft) -> Result<Vec<Line>, ConvertError> {
    let Some((command, origin)) = document.text(&["proxy", "exec", "command"])? else {
        let keys = ["username", "password"].map(|key| ["proxy", key]);
        return login(draft, document, [&keys[0], &keys[1], &[]]);
    };
    for key in ["username", "password"] {
        if let Some((_, origin)) = document.text(&["proxy", key])? {
            draft.warn_at(&origin, format!("`proxy.{key}`: `proxy.exec` goes before it"));
        }
    }
    let name = match command.strip_prefix("docker-credential-") {
        Some(name) => name,
        None if command.contains('/') => command.as_str(),
        None => {
            let message = format!("`proxy.exec.command`: write `{command}` with its path as `credential_helper`");
            draft.warn_at(&origin, message);
            return Ok(Vec::new());
        }
    };
    Ok(vec![line("credential_helper", name)])
}

fn debug_door(document: &mut Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    if let Some((text, origin)) = document.text(&["http", "debug", "addr"])? {
        let address = values::address(&text).and_then(|text| text.parse::<std::net::SocketAddr>().ok());
        match address {
            Some(address) if address.ip().is_loopback() => draft.admin(line("listen", address.to_string())),
            _ => draft.warn_at(&origin, "`http.debug.addr`: the admin door listens on loopback addresses only"),
        }
    }
    Ok(())
}

fn logging(document: &mut Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    let level = |(text, origin): (String, Provenance), draft: &mut Draft, key: &str| match text.as_str() {
        "error" | "warn" | "info" | "debug" | "trace" => draft.logging(line("level", text)),
        "fatal" | "panic" => draft.logging(line("level", "error")),
        _ => draft.warn_at(&origin, format!("`{key}`: `{text}` is no level")),
    };
    if let Some(old) = document.text(&["loglevel"])? {
        level(old, draft, "loglevel");
    }
    if let Some(found) = document.text(&["log", "level"])? {
        level(found, draft, "log.level");
    }
    if let Some((formatter, _)) = document.text(&["log", "formatter"])? {
        draft.logging(line("format", if formatter == "text" { "text" } else { "json" }));
    }
    if let Some((is_disabled, _)) = document.flag(&["log", "accesslog", "disabled"])? {
        draft.logging(line("access", !is_disabled));
    }
    Ok(())
}
