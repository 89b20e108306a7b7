//! Environment variables laid over the files: `LARDER_<TABLE>__<KEY>`.

use super::built_in::BUILT_IN;
use super::de;
use super::error::ConfigError;
use super::key_path::{KeyPath, Step};
use super::origin::Provenance;
use super::tree::{Node, Value};

/// The beginning of the names of Larder's own variables.
const PREFIX: &str = "LARDER_";
/// Most words of a name that is looked at as a misspelt one: the number of ways to read it doubles with each.
const WORDS: usize = 8;
/// Keys that hold a list of tables. A variable with a position begins such a list where there is none.
const LISTS: [&str; 2] = ["upstream", "tag"];

/// Lays the variables named `LARDER_<TABLE>__<KEY>` over the tree. Returns the variables that cannot be used. A name
/// without `__` is ignored: Kubernetes sets such variables for a service called `larder`.
pub fn lay_over(tree: &mut Node, variables: &[(String, String)]) -> Vec<ConfigError> {
    let path = |name: &str| -> Option<Vec<String>> {
        let rest = name.strip_prefix(PREFIX).filter(|rest| rest.contains("__"))?;
        Some(rest.to_ascii_lowercase().split("__").map(str::to_owned).collect())
    };
    let mut ours: Vec<_> = variables.iter().filter_map(|(name, text)| Some((path(name)?, name, text))).collect();
    // Tables before what is in them, and positions of lists by number.
    ours.sort_by_key(|(path, ..)| {
        path.iter().map(|part| (part.parse::<usize>().ok(), part.clone())).collect::<Vec<_>>()
    });
    let mut mistakes = Vec::new();
    for (path, name, text) in ours {
        let origin = Provenance::Environment { variable: name.as_str().into() };
        let result = refuse_marks(text).and_then(|()| {
            let leaf = Node { value: Value::Text(text.clone()), origin: origin.clone() };
            put(tree, &path, leaf, &[])
        });
        if let Err(message) = result {
            let key = path.iter().fold(KeyPath::default(), |key, part| key.key(part));
            mistakes.push(ConfigError::Invalid { origin, key, message });
        }
    }
    mistakes
}

/// Refuses a value with the quotes or the line end of the file that it was written in. The message quotes nothing of
/// the value, which may be a secret.
pub fn refuse_marks(text: &str) -> Result<(), String> {
    let is_quoted = |mark: char| text.len() > 1 && text.starts_with(mark) && text.ends_with(mark);
    if is_quoted('"') || is_quoted('\'') {
        return Err("the quotes around it belong to the value: `docker run --env-file` and others keep them; write it without quotes".to_owned());
    }
    if text.ends_with(['\r', '\n']) {
        return Err("it ends with the line end of the file it was written in; save that file with Unix line ends (LF, not CRLF)".to_owned());
    }
    Ok(())
}

/// Puts a value at a path. `above`: the path of `node`.
fn put(node: &mut Node, path: &[String], leaf: Node, above: &[String]) -> Result<(), String> {
    let Some((step, rest)) = path.split_first() else {
        *node = leaf;
        return Ok(());
    };
    if let Some(written) = node.text_as_toml() {
        *node = written;
    }
    let origin = leaf.origin.clone();
    let empty = || Node { value: Value::Table(Vec::new()), origin: origin.clone() };
    let begins_list = step.parse::<usize>().is_ok() && above.last().is_some_and(|key| LISTS.contains(&key.as_str()));
    if begins_list && matches!(&node.value, Value::Table(entries) if entries.is_empty()) {
        node.value = Value::Array(Vec::new());
    }
    if let (Value::Array(items), Ok(at)) = (&mut node.value, step.parse::<usize>()) {
        if at == items.len() {
            items.push(empty());
        }
        let count = items.len();
        let item = items
            .get_mut(at)
            .ok_or_else(|| format!("the list has {count} entries, counted from 0; the next one would be {count}"))?;
        return put(item, rest, leaf, &[above, std::slice::from_ref(step)].concat());
    }
    if !matches!(node.value, Value::Table(_)) {
        *node = empty();
    }
    let Value::Table(entries) = &mut node.value else {
        return Ok(());
    };
    let key = named(entries.iter().map(|(key, _)| key.as_str()), step, above)?;
    if !entries.iter().any(|(name, _)| *name == key) {
        entries.push((key.clone(), empty()));
    }
    let entry = entries.iter_mut().find(|(name, _)| *name == key);
    let above = [above, std::slice::from_ref(&key)].concat();
    entry.map_or(Ok(()), |(_, entry)| put(entry, rest, leaf, &above))
}

/// Returns the key of a table that a part of a variable's name means: `docker_io` means `docker.io`, since a
/// variable's name can hold neither dots nor dashes. A key that the table does not have is returned as it is.
fn named<'a>(keys: impl Iterator<Item = &'a str>, part: &str, above: &[String]) -> Result<String, String> {
    let is_repository = above == ["repository"];
    let built_in = BUILT_IN.iter().map(|(prefix, ..)| *prefix).filter(|_| is_repository);
    let mut meant: Vec<&str> = keys.chain(built_in).filter(|key| as_part(key) == part).collect();
    meant.sort_unstable();
    meant.dedup();
    match meant[..] {
        [] => Ok(part.to_owned()),
        [key] => Ok(key.to_owned()),
        [one, other, ..] => Err(format!(
            "`{part}` may mean \"{one}\" or \"{other}\"; set this in the file, where the two can be told apart"
        )),
    }
}

/// Returns a key as a variable's name can hold it.
fn as_part(key: &str) -> String {
    let character = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    key.chars().map(character).collect()
}

/// Returns a warning for each variable that is ignored and would be a key with `__` instead of some `_`.
pub fn misspelt(variables: &[(String, String)]) -> Vec<String> {
    let warn = |(name, _): &(String, String)| {
        let rest = name.strip_prefix(PREFIX).filter(|rest| !rest.contains("__"))?;
        let meant = meant(&rest.to_ascii_lowercase())?.to_ascii_uppercase();
        Some(format!(
            "environment variable {name}: it is ignored, since two underscores separate a table from its key; did you mean {PREFIX}{meant}?"
        ))
    };
    variables.iter().filter_map(warn).collect()
}

/// Returns the name with `__` in the fewest places that make it a key.
fn meant(name: &str) -> Option<String> {
    let words: Vec<&str> = name.split('_').collect();
    if words.len() < 2 || words.len() > WORDS {
        return None;
    }
    let mut ways: Vec<u32> = (1..1 << (words.len() - 1)).collect();
    ways.sort_by_key(|way| way.count_ones());
    let spelt = |way: u32| {
        words.iter().enumerate().skip(1).fold(words[0].to_owned(), |name, (at, word)| {
            let gap = if way >> (at - 1) & 1 == 1 { "__" } else { "_" };
            name + gap + word
        })
    };
    ways.into_iter().map(spelt).find(|name| is_key(name))
}

/// Returns whether a name with `__` leads to a key that has a value of its own.
fn is_key(name: &str) -> bool {
    let probe = |key: &str, node| Node { value: Value::Table(vec![(key.to_owned(), node)]), ..Node::empty() };
    // No key has a table with an empty key as its value; so the error is at the key itself, unless there are further
    // keys below it.
    let leaf = probe("", Node { value: Value::Text(String::new()), ..Node::empty() });
    let tree = name.rsplit("__").fold(leaf, |node, key| probe(key, node));
    let path: Vec<_> = name.split("__").map(|key| Step::Key(key.to_owned())).collect();
    match de::from_tree::<super::raw::File>(&tree, &[]) {
        Err(ConfigError::Invalid { key, .. }) => key.steps() == path,
        _ => false,
    }
}

/// Returns the value of a variable for a secret of the file that is written as `{ env = "NAME" }`.
pub fn secret<'a>(variables: &'a [(String, String)], name: &str) -> Result<&'a str, String> {
    let value = variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let value = value.filter(|value| !value.is_empty());
    let value = value.ok_or_else(|| format!("the environment variable `{name}` is not set, or is empty"))?;
    refuse_marks(value).map_err(|message| format!("the environment variable `{name}`: {message}"))?;
    Ok(value)
}
