//! What is likely meant by the likeliest mistakes.

use std::path::Path;

use super::error::nearest;
use super::key_path::{KeyPath, Step};
use super::raw;
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
    if let Some(slip) = slip_in_line(line, said) {
        return Some(slip.to_owned());
    }
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
    if !is_bare || !said.contains("expected") {
        return None;
    }
    let is_truth = |word: &str| TRUTH.iter().any(|truth| word.eq_ignore_ascii_case(truth));
    Some(match value.and_then(|value| value.split_whitespace().next()).is_some_and(is_truth) {
        true => "this is no value; write true or false, in lower case and without quotes".to_owned(),
        false => "this is no value; a text needs quotes, as in key = \"value\"".to_owned(),
    })
}

/// What other languages write for true and false (YAML 1.1, Python).
const TRUTH: [&str; 6] = ["true", "false", "yes", "no", "on", "off"];

/// Returns what is wrong with a line of which the library says `said`, if it is one of the likeliest slips.
fn slip_in_line(line: &str, said: &str) -> Option<&'static str> {
    let trimmed = line.trim_start();
    let is_heading = trimmed.starts_with('[');
    if said.starts_with("invalid basic string") || said.starts_with("invalid literal string") {
        let is_open = said.ends_with("expected `\"`") || said.ends_with("expected `'`");
        return is_open.then_some("a text has no closing quote on its line");
    }
    if line.contains(['“', '”', '„', '‘', '’']) {
        return Some("these are typographic quotes; write straight ones, as in key = \"value\"");
    }
    if said.starts_with("key with no value") {
        return Some(match trimmed {
            _ if trimmed.starts_with("//") || trimmed.starts_with([';', '%']) => "a comment begins with #",
            _ if trimmed.contains(':') && !trimmed.contains('=') => {
                "there is no `=`; write key = value, with `=` and not `:`"
            }
            _ => "there is no `=`; a line is key = value, or a heading such as [server]",
        });
    }
    if said.starts_with("unexpected key or value") {
        let value = line.split_once('=').map(|(_, value)| value);
        return match value {
            _ if is_heading => Some("a heading such as [server] stands alone on its line"),
            Some(value) if value.contains(',') => Some("more than one value is a list: key = [\"one\", \"two\"]"),
            _ => None,
        };
    }
    None
}

/// Returns what to write instead of a value of a wrong type, if the key shows it. `wanted`: what is needed there.
pub fn about_shape(path: &KeyPath, node: &Node, wanted: &str) -> Option<String> {
    match (wanted, &node.value, path.steps()) {
        // Variables of the environment have no headings.
        (_, Value::Text(_), _) => None,
        (_, value, [Step::Key(table)] | [Step::Key(table), Step::Key(_)])
            if table == "repository" && !matches!(value, Value::Table(_)) =>
        {
            Some("each repository has a heading of its own, such as [repository.\"docker.io\"]".to_owned())
        }
        ("a list", value, [.., Step::Key(key)]) if matches!(key.as_str(), "upstream" | "tag" | "warm") => {
            Some(match value {
                Value::Table(_) => format!("write [[{path}]], with two brackets"),
                _ => format!("write [[{path}]], and its keys on the lines below"),
            })
        }
        ("a list", Value::String(_), [.., Step::Key(key)]) => Some(format!("write {key} = [\"…\"]")),
        ("a table", Value::Array(_), _) => None,
        ("a table", _, [.., Step::Key(_)]) => Some(format!("write [{path}], and its keys on the lines below")),
        _ => None,
    }
}

/// Returns what is likely meant by an unknown key. `known`: the keys of the table at `path`.
pub fn unknown(path: &KeyPath, key: &str, known: &[&str]) -> String {
    let usual = || MEANT.iter().find(|(other, own)| *other == key && known.contains(own)).map(|(_, own)| *own);
    if let Some(name) = nearest(key, known.iter().copied()).or_else(usual) {
        return format!("did you mean `{}`?", path.key(name));
    }
    match &elsewhere(path, key)[..] {
        [] => format!("there are `{}`", known.join("`, `")),
        tables => format!("it belongs below {}", tables.join(" or ")),
    }
}

/// What other programs call a key, and Larder's name of it.
const MEANT: [(&str, &str); 11] = [
    ("addr", "listen"),
    ("address", "listen"),
    ("bind", "listen"),
    ("host", "listen"),
    ("port", "listen"),
    ("directory", "dir"),
    ("path", "dir"),
    ("rootdirectory", "dir"),
    ("size", "max_size"),
    ("http", "server"),
    ("remoteurl", "url"),
];

/// Returns the headings of other tables that have this key.
fn elsewhere(path: &KeyPath, key: &str) -> Vec<String> {
    let has = |table: &serde_json::Value| table.as_object().is_some_and(|keys| keys.contains_key(key));
    let keys = |table: Result<serde_json::Value, serde_json::Error>| table.unwrap_or_default();
    let file = raw::File { proxy: Some(raw::Proxy::default()), ..raw::File::default() };
    let repository = match path.steps() {
        [Step::Key(table), Step::Key(_), ..] if table == "repository" => KeyPath::of(&path.steps()[..2]).to_string(),
        _ => "repository.\"NAME\"".to_owned(),
    };
    let mut found = Vec::new();
    if has(&keys(serde_json::to_value(raw::Upstream::default()))) {
        found.push(format!("[[{repository}.upstream]]"));
    }
    if has(&keys(serde_json::to_value(raw::Repository::default()))) {
        found.push(format!("[{repository}]"));
    }
    // Within a repository the keys of repositories are meant.
    if found.is_empty() || !path.begins_with(&["repository"]) {
        let tables = keys(serde_json::to_value(file));
        let tables = tables.as_object().into_iter().flatten();
        found.extend(tables.filter(|(_, table)| has(table)).map(|(name, _)| format!("[{name}]")));
    }
    found
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
