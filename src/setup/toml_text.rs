//! Changes of TOML files that keep comments, order and everything else as it is.

use std::path::Path;

use toml::{Table, Value};
use toml_edit::{DocumentMut, Item, TableLike};

use super::SetupError;

/// A value, and the keys that lead to it.
pub type Setting<'a> = (Vec<&'a str>, Value);

/// Reads a file's content.
pub fn read(path: &Path, text: &str) -> Result<Table, SetupError> {
    text.parse().map_err(|error: toml::de::Error| SetupError::Broken {
        path: path.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })
}

/// Returns the value to which the keys lead.
pub fn get<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a Value> {
    let (last, tables) = keys.split_last()?;
    let inner = tables.iter().try_fold(table, |table, key| table.get(*key)?.as_table())?;
    inner.get(*last)
}

/// Returns the text with these values, and the same text if it has them already. `add`: what a person would add.
pub fn set(path: &Path, text: &str, settings: &[Setting<'_>], add: &str) -> Result<String, SetupError> {
    let before = read(path, text)?;
    let missing: Vec<_> = settings.iter().filter(|(keys, value)| get(&before, keys) != Some(value)).collect();
    if missing.is_empty() {
        return Ok(text.to_owned());
    }
    let by_hand =
        |reason: &str| SetupError::ByHand { path: path.to_owned(), reason: reason.to_owned(), add: add.to_owned() };
    let mut document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| SetupError::Broken {
        path: path.to_owned(),
        reason: error.to_string().trim_end().to_owned(),
    })?;
    let mut expected = before.clone();
    for (keys, value) in missing {
        let is_set = put(&mut document, keys, value) && put_plain(&mut expected, keys, value);
        if !is_set {
            return Err(by_hand("a table that the new key belongs to is written in another way than [table]"));
        }
    }
    let text = document.to_string();
    checked(path, &expected, text).ok_or_else(|| by_hand("it is written in a way that a change might break"))
}

/// Returns the text with a block in front of the first table whose header begins with `header`, or at its end.
/// `expected`: what the result has to say.
pub fn insert(path: &Path, text: &str, header: &str, block: &str, expected: &Table) -> Result<String, SetupError> {
    let mut at = 0;
    let mut lines = text.split_inclusive('\n');
    let is_there = lines.any(|line| {
        let is_it = line.trim_start().starts_with(header);
        at += if is_it { 0 } else { line.len() };
        is_it
    });
    let (before, after) = text.split_at(at);
    let end = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    let gap = if is_there { "\n" } else { "" };
    let lead = if is_there || before.is_empty() { "" } else { "\n" };
    let text = format!("{before}{end}{lead}{block}{gap}{after}");
    checked(path, expected, text).ok_or_else(|| SetupError::ByHand {
        path: path.to_owned(),
        reason: "it is written in a way that a change might break".to_owned(),
        add: block.to_owned(),
    })
}

fn checked(path: &Path, expected: &Table, text: String) -> Option<String> {
    (read(path, &text).ok()? == *expected).then_some(text)
}

/// Sets a value of a document. Returns false where a table on the way is no table with a header of its own.
fn put(document: &mut DocumentMut, keys: &[&str], value: &Value) -> bool {
    let Some((last, tables)) = keys.split_last() else { return false };
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for key in tables {
        let item = table.entry(key).or_insert_with(|| {
            let mut table = toml_edit::Table::new();
            // A header is written only where there is a value.
            table.set_implicit(true);
            Item::Table(table)
        });
        let Item::Table(inner) = item else { return false };
        table = inner;
    }
    let Some(value) = edited(value) else { return false };
    match table.get_mut(last) {
        // The comment behind the old value stays.
        Some(Item::Value(old)) => {
            let decor = old.decor().clone();
            *old = value;
            *old.decor_mut() = decor;
        }
        Some(_) => return false,
        None => {
            table.insert(last, Item::Value(value));
        }
    }
    true
}

fn edited(value: &Value) -> Option<toml_edit::Value> {
    match value {
        Value::String(text) => Some(text.as_str().into()),
        Value::Integer(number) => Some((*number).into()),
        Value::Boolean(is_true) => Some((*is_true).into()),
        Value::Array(values) => {
            let values = values.iter().map(edited).collect::<Option<Vec<_>>>()?;
            Some(toml_edit::Value::Array(values.into_iter().collect()))
        }
        Value::Float(_) | Value::Datetime(_) | Value::Table(_) => None,
    }
}

fn put_plain(table: &mut Table, keys: &[&str], value: &Value) -> bool {
    let Some((last, tables)) = keys.split_last() else { return false };
    let mut table = table;
    for key in tables {
        match table.entry(*key).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => table = inner,
            _ => return false,
        }
    }
    table.insert((*last).to_owned(), value.clone());
    true
}

/// Returns a list of texts.
pub fn list<'a>(texts: impl IntoIterator<Item = &'a str>) -> Value {
    Value::Array(texts.into_iter().map(|text| Value::String(text.to_owned())).collect())
}

/// Returns a text as a TOML string.
pub fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_path(text: &str) -> Result<String, SetupError> {
        let setting = (vec!["plugins", "a.b", "registry", "config_path"], Value::String("/x".to_owned()));
        set(Path::new("config.toml"), text, &[setting], "ADD")
    }

    #[test]
    fn a_value_is_set_and_all_else_stays_as_it_is() {
        for (text, expected) in [
            (
                "# mine\nversion = 2 # two\n",
                "# mine\nversion = 2 # two\n\n[plugins.\"a.b\".registry]\nconfig_path = \"/x\"\n",
            ),
            (
                "[plugins.'a.b'.registry]  # here\n  config_path = \"\"  # none\n  x = 1\n\n[z]\ny = 0x10\n",
                "[plugins.'a.b'.registry]  # here\n  config_path = \"/x\"  # none\n  x = 1\n\n[z]\ny = 0x10\n",
            ),
        ] {
            assert_eq!(put_path(text).expect("set"), expected);
            assert_eq!(put_path(expected).expect("set"), expected, "again");
        }
    }

    #[test]
    fn what_cannot_be_changed_safely_is_left_to_a_person() {
        for text in ["plugins = { \"a.b\" = { x = 1 } }\n", "plugins = 1\n"] {
            assert!(matches!(put_path(text), Err(SetupError::ByHand { .. })), "{text}");
        }
        assert!(matches!(put_path("version = \n"), Err(SetupError::Broken { .. })));
    }
}
