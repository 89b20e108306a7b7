//! `config.yaml` of discobot's proxy.

use super::ConvertError;
use super::draft::{Draft, line};
use super::foreign::Foreign;
use crate::config::tree::{Node, Value};
use crate::config::units::Amount;

const NO_PROXY_DOOR: &str = "there is no proxy door yet: point clients at the registry door as a mirror";

pub fn convert(mut document: Foreign, draft: &mut Draft) -> Result<(), ConvertError> {
    draft.remark("Larder is a mirror and no proxy: it serves the registries that are built in, or those of the");
    draft.remark("[repository.\"HOST\"] tables, if there are any. See its README for how clients find it.");
    draft.dir(&mut document, &["cache", "dir"])?;
    if let Some((bytes, _)) = document.number(&["cache", "max_size"])? {
        draft.cache(line("max_size", Amount::Bytes(bytes).to_string()));
    }
    if let Some((false, origin)) = document.flag(&["cache", "enabled"])? {
        draft.warn_at(&origin, "`cache.enabled`: Larder always caches");
    }
    headers(&mut document, draft)?;
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
        ("proxy.port", NO_PROXY_DOOR),
        ("proxy.read_timeout", ""),
        ("proxy.write_timeout", ""),
        ("tls.cert_dir", NO_PROXY_DOOR),
        ("allowlist", "not needed: Larder speaks to the registries of its repositories only"),
        ("cache.patterns", "what belongs to a registry is always cached, and nothing else yet"),
        ("cache.content_aware", ""),
        ("logging.include_body", ""),
    ]));
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
        let set = rule.take(&["set"]).map(|node| entries(&rule, node)).transpose()?.unwrap_or_default();
        if !set.is_empty() {
            draft.headers(&host, set.into_iter().map(|(name, value)| line(&name, value)).collect());
        }
        draft.warn_all(rule.left_over(&[("append", "headers are set, never appended to")]));
    }
    draft.warn_all(headers.left_over(&[]));
    Ok(())
}

fn entries(rule: &Foreign, node: Node) -> Result<Vec<(String, String)>, ConvertError> {
    let Value::Table(entries) = node.value else {
        return Err(rule.wrong(&node.origin, &["set"], "a table of headers is needed here"));
    };
    let entry = |(name, node): (String, Node)| match node.value {
        Value::String(text) | Value::Text(text) => Ok((name, text)),
        _ => Err(rule.wrong(&node.origin, &["set", &name], "a text is needed here")),
    };
    entries.into_iter().map(entry).collect()
}
