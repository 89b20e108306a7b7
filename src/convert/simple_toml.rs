//! The TOML of simple-registry (Rust), now angos. Keys that Larder has in the same form are taken over unchanged.

use toml::Value;

use super::draft::{Draft, Line, Repository, line, login, patterns};
use super::foreign::Foreign;
use super::kind::ConvertError;
use crate::config::raw;
use crate::config::tree::{self, Node};

const NO_LOGIN: &str = "clients log in with [auth.htpasswd] or a certificate; say who may pull in `allow`";
const NO_TLS: &str = "write it as Larder's [server.tls]: certificate, private_key, client_ca_bundle, client_auth";
const NO_WEBHOOKS: &str = "Larder sends no notifications";
/// The port of the registry if its file names none.
const DEFAULT_PORT: u64 = 8000;

/// Moves the values of `documents` into `draft`. Several files are merged as Larder merges its own.
pub fn convert(documents: Vec<Foreign>, draft: &mut Draft) -> Result<(), ConvertError> {
    let mut tree = Node::empty();
    for document in documents {
        tree.merge(document.node);
    }
    let mut document = Foreign::new(tree);
    draft.remark("Larder takes no pushes.");
    draft.only_its_own_repositories();
    draft.server(line("default_repository", "").why("names that begin with no repository have no upstream"));
    server(&mut document, draft)?;
    let immutable = document.flag(&["global", "immutable_tags"])?.is_some_and(|(flag, _)| flag);
    let exclusions = patterns(document.texts(&["global", "immutable_tags_exclusions"])?)?;
    draft.dir(&mut document, &["blob_store", "fs", "root_dir"])?;
    if let Some(mut repositories) = document.table(&["repository"]) {
        for prefix in repositories.keys() {
            let Some(mut table) = repositories.table(&[&prefix]) else {
                continue;
            };
            let upstreams = table.tables(&["upstream"]);
            if upstreams.is_empty() {
                let message = format!("`repository.{prefix}`: it has no upstream, and Larder takes no pushes");
                draft.warn_at(&table.node.origin, message);
                continue;
            }
            let upstreams = upstreams.into_iter().map(|table| upstream(table, draft)).collect::<Result<Vec<_>, _>>()?;
            let lines = repository(table, immutable, &exclusions, draft)?;
            draft.repositories.push(Repository { prefix, lines, upstreams });
        }
        draft.warn_all(repositories.left_over(&[]));
    }
    if draft.repositories.is_empty() {
        let message = "no repository in it has an upstream, so there is nothing to convert";
        return Err(ConvertError(message.to_owned()));
    }
    draft.warn_all(document.left_over(&[
        ("server.tls", NO_TLS),
        ("auth", NO_LOGIN),
        ("global.access_policy", NO_LOGIN),
        ("global.authorization_webhook", NO_LOGIN),
        ("global.retention_policy", "`cache.max_size`, `ttl` and `pin` say what is kept"),
        ("global.update_pull_time", ""),
        ("global.event_webhooks", NO_WEBHOOKS),
        ("event_webhook", NO_WEBHOOKS),
        ("blob_store", "write [storage.s3] by hand for a bucket; what is stored there cannot be used"),
        ("metadata_store", ""),
        ("cache.redis", "there is nothing to share between instances"),
        ("observability", "there is no tracing yet"),
        ("ui", "there is no page for browsers; see `larder ls`"),
    ]));
    Ok(())
}

fn server(document: &mut Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    let address = document.text(&["server", "bind_address"])?;
    let port = document.number(&["server", "port"])?;
    if address.is_some() || port.is_some() {
        let host = address.as_ref().map_or("0.0.0.0", |(text, _)| text);
        let port = port.as_ref().map_or(DEFAULT_PORT, |(port, _)| *port);
        let parsed = host.parse::<std::net::IpAddr>().ok().zip(u16::try_from(port).ok());
        match parsed {
            Some(parsed) => draft.server(line("listen", std::net::SocketAddr::from(parsed).to_string())),
            None => draft.warn(format!("`server`: {host}, port {port} is no address; set `server.listen`")),
        }
    }
    if let Some((seconds, _)) = document.number(&["global", "shutdown_drain_secs"])? {
        draft.server(line("shutdown_grace", format!("{seconds}s")));
    }
    Ok(())
}

fn repository(
    mut table: Foreign,
    immutable: bool,
    exclusions: &Value,
    draft: &mut Draft,
) -> Result<Vec<Line>, ConvertError> {
    let own = table.flag(&["immutable_tags"])?.map(|(flag, _)| flag);
    let has_exclusions = table.has(&["immutable_tags_exclusions"]);
    let own_exclusions = patterns(table.texts(&["immutable_tags_exclusions"])?)?;
    let is_immutable = own.unwrap_or(immutable);
    let mut lines = Vec::new();
    if own.is_some() || is_immutable {
        lines.push(line("immutable_tags", is_immutable));
    }
    let exclusions = if has_exclusions { &own_exclusions } else { exclusions };
    if is_immutable && exclusions.as_array().is_some_and(|list| !list.is_empty()) {
        lines.push(line("immutable_tags_exclusions", exclusions.clone()));
    } else if has_exclusions && !is_immutable {
        let message = "`immutable_tags_exclusions` has no effect without `immutable_tags = true`";
        draft.warn_at(&table.node.origin, message);
    }
    let known = known_keys(&raw::Repository::default(), &["namespace", "ttl"]);
    lines.extend(native(&mut table, &known));
    draft.warn_all(table.left_over(&[
        ("access_policy", NO_LOGIN),
        ("authorization_webhook", NO_LOGIN),
        ("retention_policy", "`cache.max_size`, `ttl` and `pin` say what is kept"),
        ("event_webhooks", NO_WEBHOOKS),
    ]));
    Ok(lines)
}

fn upstream(mut table: Foreign, draft: &mut Draft) -> Result<Vec<Line>, ConvertError> {
    let mut lines = Vec::new();
    if let Some((url, _)) = table.text(&["url"])? {
        lines.push(line("url", url));
    }
    for (theirs, ours) in [("connect_timeout_secs", "connect_timeout"), ("read_timeout_secs", "timeout")] {
        match table.number(&[theirs])? {
            Some((0, origin)) => {
                draft.warn_at(&origin, format!("`{theirs}`: Larder always has a timeout; the default applies"));
            }
            Some((seconds, _)) => lines.push(line(ours, format!("{seconds}s"))),
            None => {}
        }
    }
    lines.extend(login(draft, &mut table, [&["username"], &["password"], &["password_file"]])?);
    lines.extend(native(&mut table, &known_keys(&raw::Upstream::default(), &[])));
    draft.warn_all(table.left_over(&[]));
    Ok(lines)
}

/// Takes out the keys that Larder has too, unchanged.
fn native(table: &mut Foreign, known: &[String]) -> Vec<Line> {
    let mut keys = table.keys();
    keys.retain(|key| known.contains(key));
    keys.iter().filter_map(|key| Some(line(key, plain(table.take(&[key])?)))).collect()
}

fn known_keys(defaults: &impl serde::Serialize, further: &[&str]) -> Vec<String> {
    let table = toml::Table::try_from(defaults).unwrap_or_default();
    table.keys().cloned().chain(further.iter().map(|&key| key.to_owned())).collect()
}

fn plain(node: Node) -> Value {
    match node.value {
        tree::Value::String(text) | tree::Value::Text(text) => Value::String(text),
        tree::Value::Integer(number) => Value::Integer(number),
        tree::Value::Float(number) => Value::Float(number),
        tree::Value::Boolean(value) => Value::Boolean(value),
        tree::Value::Array(items) => Value::Array(items.into_iter().map(plain).collect()),
        tree::Value::Table(entries) => {
            Value::Table(entries.into_iter().map(|(key, node)| (key, plain(node))).collect())
        }
        // Only Larder's own configuration is read again without what is wrong.
        tree::Value::LeftOut => Value::Table(toml::Table::new()),
    }
}
