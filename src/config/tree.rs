//! The configuration as written: TOML files and environment variables merged into one tree, in which every value has
//! its origin.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
use super::hint;
use super::key_path::{KeyPath, Step};
use super::origin::Provenance;

/// A value and its origin.
#[derive(Clone, Debug)]
pub struct Node {
    pub value: Value,
    pub origin: Provenance,
}

/// A value as it is written.
#[derive(Clone, Debug)]
pub enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    /// The text of an environment variable; the key decides of which type its value is.
    Text(String),
    Array(Vec<Node>),
    Table(Vec<(String, Node)>),
    /// A value that was found wrong and is left out, so that further mistakes are found.
    LeftOut,
}

impl Node {
    /// Returns an empty tree, which means all defaults.
    pub fn empty() -> Self {
        Self { value: Value::Table(Vec::new()), origin: Provenance::Default }
    }

    /// Reads one TOML file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Reads TOML text; `path` is the file that errors and origins name.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let reader = FileReader { path: path.into(), text };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let message =
                hint::about_syntax(path, text, at, error.message()).unwrap_or_else(|| error.message().to_owned());
            ConfigError::Syntax { origin: reader.origin(at), message }
        })?;
        let at = table.span().start;
        reader.table(table.into_inner(), at)
    }

    /// Lays `other` over this tree: tables merge, everything else is replaced.
    pub fn merge(&mut self, other: Self) {
        match (&mut self.value, other.value) {
            (Value::Table(entries), Value::Table(added)) => {
                for (key, node) in added {
                    match entries.iter_mut().find(|(name, _)| *name == key) {
                        Some((_, existing)) => existing.merge(node),
                        None => entries.push((key, node)),
                    }
                }
            }
            (value, added) => {
                *value = added;
                self.origin = other.origin;
            }
        }
    }

    /// Returns the value that the text of a [`Value::Text`] means as TOML: a number, a boolean, a list or a table.
    /// `None` if the text is not TOML.
    pub fn text_as_toml(&self) -> Option<Self> {
        let Value::Text(text) = &self.value else {
            return None;
        };
        let tree = Self::parse(Path::new(""), &format!("value = {text}")).ok()?;
        let Value::Table(entries) = tree.value else {
            return None;
        };
        // A text with further keys after the value is not one value.
        let mut entries = entries.into_iter();
        let (Some((_, mut node)), None) = (entries.next(), entries.next()) else {
            return None;
        };
        node.set_origin(&self.origin);
        Some(node)
    }

    fn set_origin(&mut self, origin: &Provenance) {
        self.origin = origin.clone();
        match &mut self.value {
            Value::Array(items) => items.iter_mut().for_each(|item| item.set_origin(origin)),
            Value::Table(entries) => entries.iter_mut().for_each(|(_, item)| item.set_origin(origin)),
            _ => {}
        }
    }

    /// Returns the entry of this table or list that a step leads to.
    fn entry(&self, step: &Step) -> Option<&Self> {
        match (&self.value, step) {
            (Value::Table(entries), Step::Key(key)) => {
                entries.iter().find(|(name, _)| name == key).map(|(_, node)| node)
            }
            (Value::Array(items), Step::At(at)) => items.get(*at),
            _ => None,
        }
    }

    /// Does the same as [`Self::entry`].
    fn entry_mut(&mut self, step: &Step) -> Option<&mut Self> {
        match (&mut self.value, step) {
            (Value::Table(entries), Step::Key(key)) => {
                entries.iter_mut().find(|(name, _)| name == key).map(|(_, node)| node)
            }
            (Value::Array(items), Step::At(at)) => items.get_mut(*at),
            _ => None,
        }
    }

    /// Returns whether there is a value at a path, also one that is left out.
    pub fn has(&self, path: &KeyPath) -> bool {
        path.steps().iter().try_fold(self, Self::entry).is_some()
    }

    /// Leaves out the value at a path; if there is none, the table around it, unless that is a table of the top level. A
    /// table of a list goes with the whole list, since the positions of the others would change. Returns whether
    /// something was left out that was not before.
    pub fn leave_out(&mut self, path: &KeyPath) -> bool {
        let all = path.steps();
        let is_there = |count: &usize| all[..*count].iter().try_fold(&*self, Self::entry).is_some();
        let mut depth = (1..=all.len()).rev().find(is_there).unwrap_or(0);
        while depth < all.len() && matches!(all[..depth].last(), Some(Step::At(_))) {
            depth -= 1;
        }
        if depth < all.len() && depth < 2 {
            return false;
        }
        let Some(node) = all[..depth].iter().try_fold(self, Self::entry_mut) else {
            return false;
        };
        let is_new = !matches!(node.value, Value::LeftOut);
        node.value = Value::LeftOut;
        is_new
    }

    /// Returns this node with the paths that its texts are, as the process has to open them. `is_path`: which of the
    /// texts, by position, are paths.
    pub fn with_paths(&self, is_path: impl Fn(usize, &str) -> bool) -> Self {
        let text = |node: &Self, at: usize| match &node.value {
            Value::String(text) if is_path(at, text) => Value::String(beside(&node.origin, text)),
            other => other.clone(),
        };
        let value = match &self.value {
            Value::Array(items) => {
                let item = |(at, item): (usize, &Self)| Self { value: text(item, at), origin: item.origin.clone() };
                Value::Array(items.iter().enumerate().map(item).collect())
            }
            _ => text(self, 0),
        };
        Self { value, origin: self.origin.clone() }
    }

    /// Returns where the value under `path` was written, or the nearest table around it.
    pub fn origin(&self, path: &[&str]) -> Provenance {
        match path.split_first().and_then(|(key, rest)| Some((child(self, key)?, rest))) {
            Some((child, rest)) => child.origin(rest),
            None => self.origin.clone(),
        }
    }
}

/// Returns the node under a key of a table or at a position of a list, also within the text of an environment variable.
pub fn child<'a>(node: &'a Node, key: &str) -> Option<Cow<'a, Node>> {
    match &node.value {
        Value::Table(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| Cow::Borrowed(node)),
        Value::Array(items) => items.get(key.parse::<usize>().ok()?).map(Cow::Borrowed),
        Value::Text(_) => child(&node.text_as_toml()?, key).map(|child| Cow::Owned(child.into_owned())),
        _ => None,
    }
}

/// Returns a path as the process has to open it: a relative one is relative to the file that it is written in.
fn beside(origin: &Provenance, path: &str) -> String {
    match origin {
        Provenance::File { path: file, .. } if !path.is_empty() => {
            file.parent().unwrap_or(Path::new("")).join(path).to_string_lossy().into_owned()
        }
        _ => path.to_owned(),
    }
}

struct FileReader<'a> {
    path: Arc<Path>,
    text: &'a str,
}

impl FileReader<'_> {
    fn origin(&self, offset: usize) -> Provenance {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = 1 + before.iter().filter(|&&byte| byte == b'\n').count();
        Provenance::File { path: self.path.clone(), line }
    }

    /// Reads a table that starts at `at`, where it is first written: the library's own span of a table may cover only a
    /// part of it.
    fn table(&self, table: DeTable<'_>, at: usize) -> Result<Node, ConfigError> {
        let mut entries = Vec::with_capacity(table.len());
        for (key, value) in table {
            let at = key.span().start;
            let node = self.value(value.into_inner(), at)?;
            entries.push((key.into_inner().into_owned(), node));
        }
        Ok(Node { value: Value::Table(entries), origin: self.origin(at) })
    }

    fn value(&self, value: DeValue<'_>, at: usize) -> Result<Node, ConfigError> {
        let origin = self.origin(at);
        let invalid = |message: &str| ConfigError::Syntax { origin: origin.clone(), message: message.to_owned() };
        let value = match value {
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Integer(number) => {
                let parsed = i64::from_str_radix(number.as_str(), number.radix());
                Value::Integer(parsed.map_err(|_| invalid("the number is too large"))?)
            }
            DeValue::Float(number) => {
                Value::Float(number.as_str().parse().map_err(|_| invalid("this is not a number"))?)
            }
            DeValue::Boolean(value) => Value::Boolean(value),
            DeValue::Datetime(_) => return Err(invalid("no key takes a date")),
            DeValue::Array(items) => Value::Array(
                items
                    .into_iter()
                    .map(|item| {
                        let at = item.span().start;
                        self.value(item.into_inner(), at)
                    })
                    .collect::<Result<_, _>>()?,
            ),
            DeValue::Table(table) => return self.table(table, at),
        };
        Ok(Node { value, origin })
    }
}

/// Where the configuration is if none is given, in order.
const USUAL: [&str; 2] = ["larder.toml", "/etc/larder/larder.toml"];

/// Returns the files to read: the given files, or the first that exists of `larder.toml` and
/// `/etc/larder/larder.toml` if none is given.
pub fn files(given: &[PathBuf]) -> Vec<PathBuf> {
    if given.is_empty() { first_of(&to_watch(given)).into_iter().collect() } else { given.to_vec() }
}

/// Returns the first of these files that exists.
fn first_of(usual: &[PathBuf]) -> Option<PathBuf> {
    usual.iter().find(|file| file.exists()).cloned()
}

/// Returns the files that are read, or would be read if they existed.
pub fn to_watch(given: &[PathBuf]) -> Vec<PathBuf> {
    if given.is_empty() { USUAL.map(PathBuf::from).into() } else { given.to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_usual_files_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let usual = ["here.toml", "etc.toml"].map(|name| folder.path().join(name));
        assert_eq!(first_of(&usual), None);
        for file in usual.iter().rev() {
            std::fs::write(file, "").expect("written");
            assert_eq!(first_of(&usual).as_ref(), Some(file));
        }
        assert_eq!(to_watch(&[]), ["larder.toml", "/etc/larder/larder.toml"].map(PathBuf::from));
        assert_eq!(files(&usual), usual, "files that are given must exist");
    }
}
