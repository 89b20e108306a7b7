//! Reads YAML as trees of [`Node`]s, with bounds on what a small file may grow to.

use std::path::Path;
use std::sync::Arc;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::kind::ConvertError;
use crate::config::origin::Provenance;
use crate::config::tree::{Node, Value};

/// Most tables and lists within each other.
const MAX_DEPTH: usize = 64;
/// Most values of a file. Values that an alias repeats count again.
const MAX_VALUES: usize = 20_000;

/// Reads the documents of a file. A plain scalar becomes a [`Value::Text`]; null values are left out.
pub fn documents(path: &Path, text: &str) -> Result<Vec<Node>, ConvertError> {
    let mut reader =
        Reader { path: path.into(), open: Vec::new(), anchors: Vec::new(), documents: Vec::new(), values: 0 };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| reader.syntax(&error))?;
        reader.take(event, span)?;
    }
    Ok(reader.documents)
}

struct Reader {
    path: Arc<Path>,
    /// The tables and lists around the next value.
    open: Vec<Open>,
    /// The values that aliases may repeat, by the number of their anchor. `None`: a null value.
    anchors: Vec<(usize, Option<Node>)>,
    documents: Vec<Node>,
    values: usize,
}

struct Open {
    origin: Provenance,
    anchor: usize,
    items: Items,
}

enum Items {
    List(Vec<Node>),
    /// With the key whose value comes next.
    Table(Vec<(String, Node)>, Option<(String, Provenance)>),
}

impl Reader {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), ConvertError> {
        let origin = Provenance::File { path: self.path.clone(), line: span.start.line() };
        match event {
            Event::SequenceStart(anchor, _) => self.begin(origin, anchor, Items::List(Vec::new())),
            Event::MappingStart(anchor, _) => self.begin(origin, anchor, Items::Table(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { origin, anchor, items }) = self.open.pop() else {
                    return Ok(());
                };
                let value = match items {
                    Items::List(items) => Value::Array(items),
                    Items::Table(entries, _) => Value::Table(merged(entries)),
                };
                self.add(Some(Node { value, origin }), anchor)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_string = style != ScalarStyle::Plain || tag.is_some_and(|tag| is_text(&tag));
                if let Some(Open { items: Items::Table(_, key @ None), .. }) = self.open.last_mut() {
                    *key = Some((text.into_owned(), origin));
                    return Ok(());
                }
                let value = match text.as_ref() {
                    "" | "~" | "null" | "Null" | "NULL" if !is_string => None,
                    text if is_string => Some(Value::String(text.to_owned())),
                    text => Some(Value::Text(text.to_owned())),
                };
                self.add(value.map(|value| Node { value, origin }), anchor)
            }
            Event::Alias(anchor) => {
                let found = self.anchors.iter().rev().find(|(number, _)| *number == anchor);
                let Some((_, node)) = found else {
                    return Err(ConvertError::at(&origin, "an alias repeats what it is in; write the value out"));
                };
                let node = node.clone();
                self.values += node.as_ref().map_or(0, size);
                self.add(node, 0)
            }
            Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::Nothing => Ok(()),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
        }
    }

    fn begin(&mut self, origin: Provenance, anchor: usize, items: Items) -> Result<(), ConvertError> {
        if matches!(self.open.last(), Some(Open { items: Items::Table(_, None), .. })) {
            return Err(ConvertError::at(&origin, "a key is a list or a table here; write a text"));
        }
        if self.open.len() == MAX_DEPTH {
            return Err(ConvertError::at(&origin, "this is nested too deeply for a configuration"));
        }
        self.open.push(Open { origin, anchor, items });
        Ok(())
    }

    /// Adds a complete value; `None` is null.
    fn add(&mut self, node: Option<Node>, anchor: usize) -> Result<(), ConvertError> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(ConvertError(format!(
                "{}: this is too large for a configuration, perhaps by its aliases",
                self.path.display()
            )));
        }
        if anchor > 0 {
            self.anchors.push((anchor, node.clone()));
        }
        let Some(open) = self.open.last_mut() else {
            self.documents.extend(node);
            return Ok(());
        };
        match &mut open.items {
            Items::List(items) => items.extend(node),
            Items::Table(entries, key) => {
                let Some((key, origin)) = key.take() else {
                    let message = "a key repeats something here; write a text";
                    return Err(ConvertError::at(node.as_ref().map_or(&open.origin, |node| &node.origin), message));
                };
                if let Some(mut node) = node {
                    // As in TOML, a value counts as written where its key is.
                    node.origin = origin;
                    if entries.iter().any(|(name, _)| *name == key) {
                        return Err(ConvertError::at(&node.origin, format!("`{key}` stands here twice; remove one")));
                    }
                    entries.push((key, node));
                }
            }
        }
        Ok(())
    }

    fn syntax(&self, error: &ScanError) -> ConvertError {
        let origin = Provenance::File { path: self.path.clone(), line: error.marker().line() };
        ConvertError::at(&origin, format!("not valid YAML: {}", error.info()))
    }
}

fn is_text(tag: &Tag) -> bool {
    tag.is_yaml_core_schema() && tag.suffix == "str"
}

fn size(node: &Node) -> usize {
    match &node.value {
        Value::Array(items) => 1 + items.iter().map(size).sum::<usize>(),
        Value::Table(entries) => 1 + entries.iter().map(|(_, node)| size(node)).sum::<usize>(),
        _ => 1,
    }
}

/// Adds the entries of the table under `<<`, by which YAML tables share entries.
fn merged(mut entries: Vec<(String, Node)>) -> Vec<(String, Node)> {
    let is_shared = |node: &Node| match &node.value {
        Value::Table(_) => true,
        Value::Array(items) => items.iter().all(|item| matches!(item.value, Value::Table(_))),
        _ => false,
    };
    let Some(at) = entries.iter().position(|(key, node)| key == "<<" && is_shared(node)) else {
        return entries;
    };
    let tables = match entries.remove(at).1.value {
        Value::Array(items) => items,
        value => vec![Node { value, origin: Provenance::Default }],
    };
    for table in tables {
        let Value::Table(shared) = table.value else { continue };
        for (key, node) in shared {
            if !entries.iter().any(|(name, _)| *name == key) {
                entries.push((key, node));
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Vec<Node>, String> {
        documents(Path::new("x.yaml"), text).map_err(|error| error.to_string())
    }

    fn at<'a>(node: &'a Node, key: &str) -> &'a Node {
        match &node.value {
            Value::Table(entries) => &entries.iter().find(|(name, _)| name == key).expect(key).1,
            other => panic!("no table: {other:?}"),
        }
    }

    #[test]
    fn values_know_their_lines_and_whether_they_were_quoted() {
        let text = "a: 1\nb:\n  - \"2\"\n  - c\n---\nd: ~\ne: !!str 3\nf: null\n";
        let documents = read(text).expect("YAML");
        assert_eq!(documents.len(), 2);
        assert!(matches!(&at(&documents[0], "a").value, Value::Text(text) if text == "1"));
        assert_eq!(at(&documents[0], "b").origin.to_string(), "x.yaml:2");
        let Value::Array(items) = &at(&documents[0], "b").value else { panic!("a list") };
        assert!(matches!(&items[0].value, Value::String(text) if text == "2"));
        assert_eq!(items[1].origin.to_string(), "x.yaml:4");
        let Value::Table(entries) = &documents[1].value else { panic!("a table") };
        assert_eq!(entries.len(), 1, "null is nothing");
        assert!(matches!(&at(&documents[1], "e").value, Value::String(text) if text == "3"));
    }

    #[test]
    fn aliases_and_merged_tables_are_followed() {
        let listed = read("a: &x {k: 1}\nb: &y {k: 2, l: 4}\nc:\n  <<: [*x, *y]\n").expect("YAML");
        assert!(matches!(at(at(&listed[0], "c"), "l").value, Value::Integer(4) | Value::Text(_)), "{listed:?}");
        let documents = read("a: &x {k: 1, l: 2}\nb: *x\nc:\n  <<: *x\n  k: 3\n").expect("YAML");
        assert!(matches!(&at(at(&documents[0], "b"), "k").value, Value::Text(text) if text == "1"));
        assert!(matches!(&at(at(&documents[0], "c"), "k").value, Value::Text(text) if text == "3"));
        assert!(matches!(&at(at(&documents[0], "c"), "l").value, Value::Text(text) if text == "2"));
    }

    #[test]
    fn what_would_grow_without_end_is_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{},", level - 1).repeat(10);
            bomb += &format!("a{level}: &a{level} [{before}]\n");
        }
        assert!(read(&bomb).expect_err("too large").contains("too large"));
        assert!(read(&"[".repeat(1_000)).is_err());
        assert!(read(&"- ".repeat(1_000)).expect_err("too deep").contains("nested too deeply"));
        assert!(read("a: &x [*x]").is_err());
    }

    #[test]
    fn mistakes_name_their_line() {
        assert_eq!(read("a: 1\na: 2").expect_err("twice"), "x.yaml:2: `a` stands here twice; remove one");
        assert!(read("a: 1\n  b: 2").expect_err("not YAML").starts_with("x.yaml:2: not valid YAML: "));
        assert_eq!(read("[a]: 1").expect_err("a key"), "x.yaml:1: a key is a list or a table here; write a text");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-:&*!|>%@`?,\\[\\]{}#\"'\\\\ \n\ta-c0-9~<=\r\u{feff}é]{0,60}") {
            let _ = read(&text);
        }
    }
}
