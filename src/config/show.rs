//! The configuration in effect: every key with its value and where it came from.

use std::fmt;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use toml::Value;

use super::built_in::BUILT_IN_DEFAULT;
use super::document::Document;
use super::error::{ConfigError, ConfigErrors};
use super::key_path::KeyPath;
use super::origin::Provenance;
use super::secret::HIDDEN;
use super::tree::{self, Node};
use super::{Sources, de, raw, repository};

/// All keys with their values, in the order of the documentation; secrets are hidden.
///
/// Serialized, a value is `{"value": …, "origin": "…"}` under its keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective(Vec<(String, Shown)>);

#[derive(Clone, Debug, PartialEq)]
enum Shown {
    Value(Value, From),
    Table(Vec<(String, Shown)>),
    Tables(Vec<Vec<(String, Shown)>>),
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum From {
    Written(Provenance),
    Default,
    /// Another key gives the default.
    Key(&'static str),
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Written(Provenance::Default) | Self::Default => f.write_str("default"),
            Self::Written(origin) => origin.fmt(f),
            Self::Key(key) => write!(f, "default: as {key}"),
        }
    }
}

impl Sources {
    /// Returns the configuration in effect. Fails if the configuration has a mistake, as [`Sources::load`] does.
    pub fn effective(&self) -> Result<Effective, ConfigErrors> {
        self.load().config?;
        let (tree, _) = self.read()?;
        Ok(Effective::of_tree(&tree, &self.environment)?)
    }
}

impl Effective {
    /// Returns the configuration in effect for what is written in `tree`.
    pub(super) fn of_tree(tree: &Node, environment: &[(String, String)]) -> Result<Self, ConfigError> {
        let mut file: raw::File = de::from_tree(tree, environment)?;
        repository::fill_in(&mut file.repository, file.server.builtin_repositories);
        let has_default = file.repository.0.iter().any(|(prefix, _)| prefix == BUILT_IN_DEFAULT);
        let default = if has_default { BUILT_IN_DEFAULT } else { "" };
        file.server.default_repository.get_or_insert_with(|| default.to_owned());
        for (_, repository) in &mut file.repository.0 {
            repository.ttl.get_or_insert(file.cache.ttl);
        }
        let unwritable = |error: toml::ser::Error| ConfigError::Invalid {
            origin: Provenance::Default,
            key: KeyPath::default(),
            message: error.to_string(),
        };
        let values = toml::Table::try_from(&file).map_err(unwritable)?;
        Ok(Self(entries(values, Some(tree), &[])))
    }

    /// Returns the text of a `larder.toml`, with the origin of each value in a comment.
    pub fn to_toml(&self) -> String {
        let mut document = Document::default();
        document.comment("The configuration in effect: each value, and where it comes from.");
        if self.hides() {
            document.comment(&format!("Put the secrets in for `{HIDDEN}` to use this as a configuration."));
        }
        for (name, shown) in &self.0 {
            match shown {
                Shown::Value(value, from) => document.value(name, value, Some(&from.to_string())),
                Shown::Table(table) => write_table(&mut document, &[name], table, Heading::Always),
                Shown::Tables(tables) => write_tables(&mut document, &[name], tables),
            }
        }
        document.into_text()
    }

    fn hides(&self) -> bool {
        fn any(entries: &[(String, Shown)]) -> bool {
            entries.iter().any(|(_, shown)| match shown {
                Shown::Value(value, _) => value.as_str() == Some(HIDDEN),
                Shown::Table(table) => any(table),
                Shown::Tables(tables) => tables.iter().any(|table| any(table)),
            })
        }
        any(&self.0)
    }
}

fn entries(values: toml::Table, node: Option<&Node>, path: &[&str]) -> Vec<(String, Shown)> {
    let shown = values.into_iter().map(|(key, value)| {
        let path = [path, &[key.as_str()]].concat();
        let node = node.and_then(|node| tree::child(node, &key));
        let shown = shown(value, node.as_deref(), &path);
        (key, shown)
    });
    shown.collect()
}

fn shown(value: Value, node: Option<&Node>, path: &[&str]) -> Shown {
    match value {
        Value::Table(table) if !table.is_empty() || path.len() == 1 => Shown::Table(entries(table, node, path)),
        Value::Array(items) if items.first().is_some_and(Value::is_table) => {
            let table = |(at, item): (usize, Value)| {
                let node = node.and_then(|node| tree::child(node, &at.to_string()));
                match item {
                    Value::Table(table) => entries(table, node.as_deref(), path),
                    _ => Vec::new(),
                }
            };
            Shown::Tables(items.into_iter().enumerate().map(table).collect())
        }
        value => {
            let from = match (node, path) {
                (Some(node), _) => From::Written(node.origin.clone()),
                (None, ["repository", _, "ttl"]) => From::Key("cache.ttl"),
                (None, _) => From::Default,
            };
            Shown::Value(value, from)
        }
    }
}

/// Whether a table without any entries gets a heading.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Heading {
    Always,
    /// Only a table with values has one; TOML implies the others.
    ForValues,
}

fn write_table(document: &mut Document, path: &[&str], table: &[(String, Shown)], heading: Heading) {
    let has_values = table.iter().any(|(_, shown)| matches!(shown, Shown::Value(..)));
    let has_tables = !table.is_empty() && !has_values;
    if has_values || (heading == Heading::Always && !has_tables) {
        document.table(path);
    }
    write_entries(document, path, table);
}

fn write_tables(document: &mut Document, path: &[&str], tables: &[Vec<(String, Shown)>]) {
    for table in tables {
        document.table_of_list(path);
        write_entries(document, path, table);
    }
}

/// Writes the entries of a table in the order that TOML demands: first the values, then the tables.
fn write_entries(document: &mut Document, path: &[&str], table: &[(String, Shown)]) {
    for (key, shown) in table {
        if let Shown::Value(value, from) = shown {
            document.value(key, value, Some(&from.to_string()));
        }
    }
    for (key, shown) in table {
        let path = [path, &[key.as_str()]].concat();
        match shown {
            Shown::Value(..) => {}
            Shown::Table(table) => write_table(document, &path, table, Heading::ForValues),
            Shown::Tables(tables) => write_tables(document, &path, tables),
        }
    }
}

impl Serialize for Effective {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serialize_entries(&self.0, serializer)
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value, from) => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("value", value)?;
                map.serialize_entry("origin", &from.to_string())?;
                map.end()
            }
            Self::Table(table) => serialize_entries(table, serializer),
            Self::Tables(tables) => serializer.collect_seq(tables.iter().map(|table| Effective(table.clone()))),
        }
    }
}

fn serialize_entries<S: Serializer>(entries: &[(String, Shown)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(entries.iter().map(|(key, shown)| (key, shown)))
}
