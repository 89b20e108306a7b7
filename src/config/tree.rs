//! The configuration as written: TOML files and environment variables merged into one tree, in which every value has
//! its origin.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::error::ConfigError;
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
            // For a text without quotes, the library's message is about a wrong number.
            let message = match error.message() {
                message if message.contains("expected") && reader.is_bare(at) => {
                    "this is no value; a text needs quotes, as in key = \"value\""
                }
                message => message,
            };
            ConfigError::Syntax { origin: reader.origin(at), message: message.to_owned() }
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

    /// Lays the variables named `LARDER_<TABLE>__<KEY>` over this tree. A name without `__` is ignored: Kubernetes sets
    /// such variables for a service called `larder`.
    pub fn merge_environment(&mut self, variables: impl Iterator<Item = (String, String)>) {
        let mut ours: Vec<_> =
            variables.filter(|(name, _)| name.starts_with("LARDER_") && name.contains("__")).collect();
        ours.sort();
        for (variable, text) in ours {
            let origin = Provenance::Environment { variable: variable.as_str().into() };
            let path = variable["LARDER_".len()..].to_ascii_lowercase();
            let leaf = Self { value: Value::Text(text), origin: origin.clone() };
            let tree = path.rsplit("__").fold(leaf, |node, key| Self {
                value: Value::Table(vec![(key.to_owned(), node)]),
                origin: origin.clone(),
            });
            self.merge(tree);
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

    /// Returns whether the line at `offset` gives a key a value without quotes, such as a number or a word.
    fn is_bare(&self, offset: usize) -> bool {
        let before = self.text.get(..offset).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = self.text[start..].lines().next().unwrap_or_default();
        let value = line.split_once('=').map(|(_, value)| value.trim_start());
        value.is_some_and(|value| !value.is_empty() && !value.starts_with(['"', '\'', '[', '{']))
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

/// Returns the files to read: the given files, or `larder.toml` if none is given and it exists.
pub fn files(given: &[PathBuf]) -> Vec<PathBuf> {
    let mut files = to_watch(given);
    files.retain(|file| !given.is_empty() || file.exists());
    files
}

/// Returns the files that are read, or would be read if they existed.
pub fn to_watch(given: &[PathBuf]) -> Vec<PathBuf> {
    if given.is_empty() { vec![PathBuf::from("larder.toml")] } else { given.to_vec() }
}
