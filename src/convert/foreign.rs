//! A foreign configuration during a conversion: values are taken out, and what is left at the end was not taken over.

use super::kind::ConvertError;
use crate::config::origin::Provenance;
use crate::config::tree::{Node, Value};

/// A table from which values are taken out.
#[derive(Clone, Debug)]
pub struct Foreign {
    pub node: Node,
    /// The text before the keys in messages.
    name: String,
}

impl Foreign {
    /// Returns a document with all its values.
    pub fn new(node: Node) -> Self {
        Self { node, name: String::new() }
    }

    /// Takes out the table under `path`, so that its values can be taken out separately.
    pub fn table(&mut self, path: &[&str]) -> Option<Self> {
        let is_table = matches!(find(&self.node, path)?.value, Value::Table(_));
        let name = format!("{}{}.", self.name, dotted(path));
        is_table.then(|| take(&mut self.node, path)).flatten().map(|node| Self { node, name })
    }

    /// Takes out the tables of the list under `path`.
    pub fn tables(&mut self, path: &[&str]) -> Vec<Self> {
        let is_tables = |node: &Node| match &node.value {
            Value::Array(items) => items.iter().all(|item| matches!(item.value, Value::Table(_))),
            _ => false,
        };
        if !find(&self.node, path).is_some_and(is_tables) {
            return Vec::new();
        }
        let name = format!("{}{}", self.name, dotted(path));
        match take(&mut self.node, path).map(|node| node.value) {
            Some(Value::Array(items)) => {
                let table = |(at, node)| Self { node, name: format!("{name}[{at}].") };
                items.into_iter().enumerate().map(table).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Returns the keys of this table.
    pub fn keys(&self) -> Vec<String> {
        match &self.node.value {
            Value::Table(entries) => entries.iter().map(|(key, _)| key.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// Returns whether there is a value under `path`.
    pub fn has(&self, path: &[&str]) -> bool {
        find(&self.node, path).is_some()
    }

    /// Takes out the value under `path`.
    pub fn take(&mut self, path: &[&str]) -> Option<Node> {
        take(&mut self.node, path)
    }

    /// Takes out a text, which may be written as a number. `None` for an empty one.
    pub fn text(&mut self, path: &[&str]) -> Result<Option<(String, Provenance)>, ConvertError> {
        let Some(node) = self.take(path) else {
            return Ok(None);
        };
        let text = match node.value {
            Value::String(text) | Value::Text(text) => text,
            Value::Integer(number) => number.to_string(),
            _ => return Err(self.wrong(&node.origin, path, "a text is needed here")),
        };
        Ok((!text.is_empty()).then_some((text, node.origin)))
    }

    /// Takes out a list of texts.
    pub fn texts(&mut self, path: &[&str]) -> Result<Vec<(String, Provenance)>, ConvertError> {
        let Some(node) = self.take(path) else {
            return Ok(Vec::new());
        };
        let Value::Array(items) = node.value else {
            return Err(self.wrong(&node.origin, path, "a list of texts is needed here"));
        };
        let text = |item: Node| match item.value {
            Value::String(text) | Value::Text(text) => Ok((text, item.origin)),
            _ => Err(self.wrong(&item.origin, path, "a list of texts is needed here")),
        };
        items.into_iter().map(text).collect()
    }

    /// Takes out a whole number, which may be written as a text.
    pub fn number(&mut self, path: &[&str]) -> Result<Option<(u64, Provenance)>, ConvertError> {
        let Some(node) = self.take(path) else {
            return Ok(None);
        };
        let number = match &node.value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::Text(text) | Value::String(text) => text.replace('_', "").parse().ok(),
            _ => None,
        };
        match number {
            Some(number) => Ok(Some((number, node.origin))),
            None => Err(self.wrong(&node.origin, path, "a whole number is needed here")),
        }
    }

    /// Takes out a truth value, as YAML may write it.
    pub fn flag(&mut self, path: &[&str]) -> Result<Option<(bool, Provenance)>, ConvertError> {
        let Some(node) = self.take(path) else {
            return Ok(None);
        };
        let flag = match &node.value {
            Value::Boolean(flag) => Some(*flag),
            Value::Text(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Some(true),
                "false" | "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        };
        match flag {
            Some(flag) => Ok(Some((flag, node.origin))),
            None => Err(self.wrong(&node.origin, path, "true or false is needed here")),
        }
    }

    /// Returns the name of a key in messages.
    pub fn called(&self, path: &[&str]) -> String {
        format!("{}{}", self.name, dotted(path))
    }

    /// Returns the error that the value under `path` is wrong.
    pub fn wrong(&self, origin: &Provenance, path: &[&str], message: &str) -> ConvertError {
        ConvertError::at(origin, format!("`{}`: {message}", self.called(path)))
    }

    /// Returns warnings about all values that are left. `notes` has the warning for a key and for all keys below it; an
    /// empty one means no warning.
    pub fn left_over(mut self, notes: &[(&str, &str)]) -> Vec<String> {
        let mut warnings = Vec::new();
        for (key, note) in notes {
            let path: Vec<_> = key.split('.').collect();
            if let Some(node) = self.take(&path)
                && !note.is_empty()
                && !is_empty(&node)
            {
                warnings.push((line(&node.origin), format!("{}: `{}`: {note}", node.origin, self.called(&path))));
            }
        }
        let mut leaves = Vec::new();
        collect(&self.node, &self.name, &mut leaves);
        warnings.extend(
            leaves
                .into_iter()
                .map(|(key, origin)| (line(&origin), format!("{origin}: `{key}`: Larder has nothing like it"))),
        );
        warnings.sort_by_key(|(line, _)| *line);
        warnings.into_iter().map(|(_, warning)| warning).collect()
    }
}

fn line(origin: &Provenance) -> usize {
    match origin {
        Provenance::File { line, .. } => *line,
        _ => 0,
    }
}

/// Returns whether a node has no values, or has none left.
fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::Array(items) => items.is_empty(),
        Value::Table(entries) => entries.iter().all(|(_, node)| is_empty(node)),
        _ => false,
    }
}

fn collect(node: &Node, name: &str, leaves: &mut Vec<(String, Provenance)>) {
    if let Value::Table(entries) = &node.value {
        for (key, node) in entries {
            match &node.value {
                Value::Table(_) => collect(node, &format!("{name}{}.", dotted(&[key])), leaves),
                _ => leaves.push((format!("{name}{}", dotted(&[key])), node.origin.clone())),
            }
        }
    }
}

fn dotted(path: &[&str]) -> String {
    let quoted = |key: &&str| if key.contains('.') { format!("\"{key}\"") } else { (*key).to_owned() };
    path.iter().map(quoted).collect::<Vec<_>>().join(".")
}

fn find<'a>(node: &'a Node, path: &[&str]) -> Option<&'a Node> {
    let Some((key, rest)) = path.split_first() else {
        return Some(node);
    };
    match &node.value {
        Value::Table(entries) => find(&entries.iter().find(|(name, _)| name == key)?.1, rest),
        _ => None,
    }
}

fn take(node: &mut Node, path: &[&str]) -> Option<Node> {
    let (key, rest) = path.split_first()?;
    let Value::Table(entries) = &mut node.value else {
        return None;
    };
    let at = entries.iter().position(|(name, _)| name == key)?;
    match rest {
        [] => Some(entries.remove(at).1),
        rest => take(&mut entries[at].1, rest),
    }
}
