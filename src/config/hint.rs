//! What is likely meant by the likeliest mistakes.

use std::path::Path;

use super::tree::{Node, Value};

/// Returns what to say about text that is no TOML, if that can be said better than the TOML library says it. `at`: where
/// the library stopped, in bytes.
pub fn about_syntax(path: &Path, text: &str, at: usize, said: &str) -> Option<String> {
    if let Some(language) = other_language(path, text) {
        return Some(format!(
            "this is {language}, and Larder reads TOML; `larder config convert FILE` makes a larder.toml of another program's configuration"
        ));
    }
    let line = line_at(text, at);
    let before = text.get(..at).unwrap_or_default();
    let is_escape = before.ends_with('\\') || text.get(at..).is_some_and(|rest| rest.starts_with('\\'));
    if is_escape && line.contains('"') {
        return Some(
            "in \"double quotes\" a backslash begins an escape; write a regular expression in 'single quotes'"
                .to_owned(),
        );
    }
    // For a text without quotes, the library's message is about a wrong number.
    let value = line.split_once('=').map(|(_, value)| value.trim_start());
    let is_bare = value.is_some_and(|value| !value.is_empty() && !value.starts_with(['"', '\'', '[', '{']));
    (is_bare && said.contains("expected"))
        .then(|| "this is no value; a text needs quotes, as in key = \"value\"".to_owned())
}

/// Returns the line with the byte at `at`.
fn line_at(text: &str, at: usize) -> &str {
    let before = text.get(..at).unwrap_or_default();
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    text[start..].lines().next().unwrap_or_default()
}

/// Returns the language of a text that is not TOML, by its name or its first line.
fn other_language(path: &Path, text: &str) -> Option<&'static str> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let mut lines = text.lines().map(str::trim_end);
    let first = lines.find(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')).unwrap_or_default();
    let is_yaml = |line: &str| {
        let key = line.split_once(':').map(|(key, rest)| (key, rest.is_empty() || rest.starts_with(' ')));
        let is_word = |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || "_-\"'".contains(c));
        line.starts_with("---") || key.is_some_and(|(key, ends)| ends && !key.is_empty() && is_word(key))
    };
    match extension {
        "json" => Some("JSON"),
        "yaml" | "yml" => Some("YAML"),
        _ if first.starts_with('{') => Some("JSON"),
        _ if is_yaml(first) => Some("YAML"),
        _ => None,
    }
}

/// Returns the heading that is meant by a table like `[repository.docker.io]`: without quotes each dot begins a table
/// of its own. `table`: `repository` or `headers`; `name`: the first part; `key`: an unknown key in it.
pub fn unquoted(table: &str, name: &str, key: &str, node: &Node, known: &[&str]) -> Option<String> {
    if !matches!(node.value, Value::Table(_)) {
        return None;
    }
    let mut whole = format!("{name}.{key}");
    let mut node = node;
    // In [repository.registry.k8s.io] the parts go on while there is nothing but one further part.
    while let Value::Table(entries) = &node.value
        && let [(next, inner)] = &entries[..]
        && matches!(inner.value, Value::Table(_))
        && !known.contains(&next.as_str())
    {
        whole = format!("{whole}.{next}");
        node = inner;
    }
    Some(format!("a name with dots needs quotes: write [{table}.\"{whole}\"]"))
}
