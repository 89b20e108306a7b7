//! `config.yaml` of discobot's proxy.

use super::draft::{self, Draft, line};
use super::foreign::Foreign;
use super::kind::ConvertError;
use crate::config::origin::Provenance;
use crate::config::tree::{Node, Value};
use crate::config::units::Amount;

/// The port of discobot's proxy if its file names none.
const PORT: u64 = 17080;
/// The directory of discobot's authority if its file names none.
const CERT_DIR: &str = "./certs";

/// Moves the values of `document` into `draft`.
pub fn convert(mut document: Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    draft.remark("Clients go on as they were: the proxy door is where they look for it, with the authority that they");
    draft.remark("trust. The cache is also a mirror, at the registry door; see its README for how clients find that.");
    draft.dir(&mut document, &["cache", "dir"])?;
    if let Some((bytes, _)) = document.number(&["cache", "max_size"])? {
        draft.cache(line("max_size", Amount::Bytes(bytes).to_string()));
    }
    if let Some((false, origin)) = document.flag(&["cache", "enabled"])? {
        draft.warn_at(&origin, "`cache.enabled`: Larder always caches");
    }
    let patterns = document.texts(&["cache", "patterns"])?;
    if !patterns.is_empty() {
        draft.cache(line("patterns", draft::patterns(patterns)?));
    }
    headers(&mut document, draft)?;
    proxy(&mut document, draft)?;
    allowlist(&mut document, draft)?;
    if let Some((port, origin)) = document.number(&["proxy", "api_port"])? {
        match u16::try_from(port) {
            Ok(port) => {
                let line = line("listen", format!("127.0.0.1:{port}"));
                draft.admin(line.why("other machines cannot reach it"));
            }
            Err(_) => return Err(document.wrong(&origin, &["proxy", "api_port"], "this is no port")),
        }
    }
    if let Some((level, origin)) = document.text(&["logging", "level"])? {
        match level.as_str() {
            "error" | "warn" | "info" | "debug" => draft.logging(line("level", level)),
            _ => draft.warn_at(&origin, format!("`logging.level`: `{level}` is no level")),
        }
    }
    if let Some((format, _)) = document.text(&["logging", "format"])? {
        draft.logging(line("format", if format == "json" { "json" } else { "text" }));
    }
    if let Some((file, _)) = document.text(&["logging", "file"])? {
        draft.logging(line("file", file));
    }
    draft.warn_all(document.left_over(&[
        ("proxy.read_timeout", ""),
        ("proxy.write_timeout", ""),
        ("cache.content_aware", ""),
        ("logging.include_body", ""),
    ]));
    Ok(())
}

fn proxy(document: &mut Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    let (port, origin) = document.number(&["proxy", "port"])?.unwrap_or((PORT, Provenance::Default));
    let port = u16::try_from(port).map_err(|_| document.wrong(&origin, &["proxy", "port"], "this is no port"))?;
    let all = "whoever reaches this machine may use it, as before; see `allow` and auth.allow_cidrs";
    draft.proxy(line("listen", format!("0.0.0.0:{port}")).why(all));
    let dir = document.text(&["tls", "cert_dir"])?.map_or_else(|| CERT_DIR.to_owned(), |(dir, _)| dir);
    draft.proxy(line("ca_dir", dir).why("with the authority that clients trust already"));
    let every = "TLS to every host is opened, as before; [] opens that of the registries only";
    draft.proxy(line("intercept", vec!["*"]).why(every));
    Ok(())
}

/// Converts the allowlist. It has no effect if it is off, which is its default.
fn allowlist(document: &mut Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    let is_enabled = document.flag(&["allowlist", "enabled"])?.is_some_and(|(is_enabled, _)| is_enabled);
    let hosts = [document.texts(&["allowlist", "domains"])?, document.texts(&["allowlist", "ips"])?].concat();
    if !is_enabled {
        return Ok(());
    }
    let mut domains = Vec::new();
    for (host, origin) in hosts {
        match host.ends_with(".*") {
            true => draft
                .warn_at(&origin, format!("`allowlist`: `{host}`: write each host; a pattern may only begin with *.")),
            false => domains.push(host),
        }
    }
    draft.allowlist(line("enabled", true));
    draft.allowlist(line("domains", domains));
    Ok(())
}

fn headers(document: &mut Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    let Some(mut headers) = document.table(&["headers"]) else {
        return Ok(());
    };
    for host in headers.keys() {
        let Some(mut rule) = headers.table(&[&host]) else {
            continue;
        };
        let origin = rule.node.origin.clone();
        if host.ends_with(".*") {
            draft.warn_at(&origin, format!("`headers.\"{host}\"`: write each host; a pattern may only begin with *."));
            continue;
        }
        if let Some(conditions) = rule.take(&["conditions"])
            && !matches!(&conditions.value, Value::Array(list) if list.is_empty())
        {
            let message = format!("`headers.\"{host}\"`: headers cannot depend on conditions, so none are set");
            draft.warn_at(&conditions.origin, message);
            continue;
        }
        for kind in ["set", "append"] {
            let values = rule.take(&[kind]).map(|node| entries(&rule, kind, node)).transpose()?.unwrap_or_default();
            if !values.is_empty() {
                draft.headers(&host, kind, values.into_iter().map(|(name, value)| line(&name, value)).collect());
            }
        }
        draft.warn_all(rule.left_over(&[]));
    }
    draft.warn_all(headers.left_over(&[]));
    Ok(())
}

fn entries(rule: &Foreign, kind: &str, node: Node) -> Result<Vec<(String, String)>, ConvertError> {
    let Value::Table(entries) = node.value else {
        return Err(rule.wrong(&node.origin, &[kind], "a table of headers is needed here"));
    };
    let entry = |(name, node): (String, Node)| match node.value {
        Value::String(text) | Value::Text(text) => Ok((name, text)),
        _ => Err(rule.wrong(&node.origin, &[kind, &name], "a text is needed here")),
    };
    entries.into_iter().map(entry).collect()
}
