//! Changes of YAML files that keep comments, order and everything else as it is.

use std::collections::BTreeMap;
use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::SetupError;

/// What a file says: for each path of keys the value there. A table that is empty has a value of its own.
type Content = BTreeMap<Vec<String>, String>;

/// A table of the file, and what belongs into it.
pub struct Section<'a> {
    pub name: &'a str,
    /// For each key the lines of its value, indented as below a key at the left margin.
    pub entries: Vec<(String, String)>,
}

impl Section<'_> {
    fn text(&self, indent: &str) -> String {
        let entry = |(key, lines): &(String, String)| {
            let lines: String = lines.lines().map(|line| format!("{indent}{line}\n")).collect();
            format!("{indent}\"{key}\":\n{lines}")
        };
        self.entries.iter().map(entry).collect()
    }

    fn whole(&self) -> String {
        format!("{}:\n{}", self.name, self.text("  "))
    }
}

/// Returns the text with the entries of these sections, and the same text if it has them already.
pub fn with_sections(path: &Path, text: &str, sections: &[Section<'_>]) -> Result<String, SetupError> {
    let add: String = sections.iter().map(Section::whole).collect();
    let by_hand =
        |reason: &str| SetupError::ByHand { path: path.to_owned(), reason: reason.to_owned(), add: add.clone() };
    let before = content(text).map_err(|reason| SetupError::Broken { path: path.to_owned(), reason })?;
    let Some(before) = before else {
        return Err(by_hand("it has anchors, tags, a key twice, or several documents"));
    };
    let ours = content(&add).ok().flatten().ok_or_else(|| by_hand("it cannot be extended"))?;
    let mut changed = text.to_owned();
    let mut expected = before.clone();
    for section in sections {
        let missing = section.entries.iter().filter(|(key, _)| {
            let of_key = |content: &Content| -> Vec<_> {
                let is_below = |keys: &[String]| keys.len() > 1 && keys[0] == section.name && keys[1] == *key;
                content.iter().filter(|(keys, _)| is_below(keys)).map(|(k, v)| (k.clone(), v.clone())).collect()
            };
            of_key(&before) != of_key(&ours)
        });
        let missing = Section { name: section.name, entries: missing.cloned().collect() };
        let taken = |(key, _): &&(String, String)| {
            before.keys().any(|keys| keys.len() > 1 && keys[0] == section.name && keys[1] == *key)
        };
        if let Some((key, _)) = missing.entries.iter().find(taken) {
            return Err(by_hand(&format!("`{}` has another entry for \"{key}\" already", section.name)));
        }
        if !missing.entries.is_empty() {
            changed = inserted(&changed, &missing);
            expected.remove(&vec![section.name.to_owned()]);
        }
    }
    expected.extend(ours);
    match content(&changed) {
        Ok(Some(says)) if says == expected => Ok(changed),
        _ => Err(by_hand("it is written in a way that a change might break")),
    }
}

/// Returns the keys of a section; none if the file cannot be read.
pub fn keys(text: &str, section: &str) -> Vec<String> {
    let content = content(text).ok().flatten().unwrap_or_default();
    let is_below = |keys: &&Vec<String>| keys.len() > 1 && keys[0] == section;
    let mut keys: Vec<_> = content.keys().filter(is_below).map(|keys| keys[1].clone()).collect();
    keys.dedup();
    keys
}

/// Returns the text with the entries right below the line of their section, or with the section at its end.
fn inserted(text: &str, section: &Section<'_>) -> String {
    let header = format!("{}:", section.name);
    let is_header = |line: &str| {
        line.strip_prefix(&header).is_some_and(|rest| rest.trim().is_empty() || rest.trim().starts_with('#'))
    };
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        at += line.len();
        if is_header(line) {
            let (before, after) = text.split_at(at);
            let child = after.lines().find(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'));
            let indent = child.map_or("", |line| &line[..line.len() - line.trim_start().len()]);
            let indent = if indent.is_empty() { "  " } else { indent };
            let end = if before.ends_with('\n') { "" } else { "\n" };
            return format!("{before}{end}{}{after}", section.text(indent));
        }
    }
    let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
    format!("{text}{end}{}", section.whole())
}

/// Reads a file. `None`: it has what a change could not keep. The error says what is wrong with it.
fn content(text: &str) -> Result<Option<Content>, String> {
    let mut content = Content::new();
    // The keys that lead to the next value, and for each table or list around it what its next part is.
    let mut open: Vec<Around> = Vec::new();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|error| error.to_string())?;
        let value = match event {
            Event::DocumentStart(_) => {
                documents += 1;
                continue;
            }
            Event::Alias(_) => return Ok(None),
            Event::MappingStart(anchor, ref tag) | Event::SequenceStart(anchor, ref tag) => {
                if anchor != 0 || tag.is_some() {
                    return Ok(None);
                }
                let is_table = matches!(event, Event::MappingStart(..));
                if content.insert(path(&open), if is_table { "{}" } else { "[]" }.to_owned()).is_some() {
                    return Ok(None);
                }
                open.push(if is_table { Around::Table(None) } else { Around::List(0) });
                continue;
            }
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
                step(&mut open);
                continue;
            }
            Event::Scalar(_, _, anchor, ref tag) if anchor != 0 || tag.is_some() => return Ok(None),
            Event::Scalar(value, style, ..) => (value.into_owned(), style == ScalarStyle::Plain),
            _ => continue,
        };
        if let Some(Around::Table(key @ None)) = open.last_mut() {
            *key = Some(value.0);
            continue;
        }
        // `null` is no text, "null" is.
        let text = format!("{}{}", if value.1 { "" } else { "text " }, value.0);
        if content.insert(path(&open), text).is_some() {
            return Ok(None);
        }
        step(&mut open);
    }
    // Whoever only wants to know that something is there sees it by its parts.
    let parents: Vec<_> =
        content.keys().filter_map(|keys| keys.split_last().map(|(_, above)| above.to_vec())).collect();
    parents.iter().for_each(|keys| drop(content.remove(keys)));
    content.retain(|keys, _| !keys.is_empty());
    Ok((documents <= 1).then_some(content))
}

/// A table with the key whose value comes next, or a list with the number of its next value.
enum Around {
    Table(Option<String>),
    List(usize),
}

fn path(open: &[Around]) -> Vec<String> {
    let part = |around: &Around| match around {
        Around::Table(key) => key.clone().unwrap_or_default(),
        Around::List(at) => format!("[{at}]"),
    };
    open.iter().map(part).collect()
}

/// Notes that a value is complete.
fn step(open: &mut [Around]) {
    match open.last_mut() {
        Some(Around::Table(key)) => *key = None,
        Some(Around::List(at)) => *at += 1,
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str) -> Result<String, SetupError> {
        let mirrors = vec![("*".to_owned(), "  endpoint:\n    - \"http://c:5\"\n".to_owned())];
        let configs = vec![("c:5".to_owned(), "  tls:\n    ca_file: \"/ca\"\n".to_owned())];
        let sections = [Section { name: "mirrors", entries: mirrors }, Section { name: "configs", entries: configs }];
        with_sections(Path::new("registries.yaml"), text, &sections)
    }

    const OURS: &str = "mirrors:\n  \"*\":\n    endpoint:\n      - \"http://c:5\"\nconfigs:\n  \"c:5\":\n    tls:\n      ca_file: \"/ca\"\n";

    #[test]
    fn entries_come_in_and_all_else_stays_as_it_is() {
        for (text, expected) in [
            (String::new(), OURS.to_owned()),
            ("# mine\n".to_owned(), format!("# mine\n{OURS}")),
            (
                "mirrors:   # all\n    # hub\n    docker.io:\n        endpoint: [ \"https://x\" ]\n".to_owned(),
                "mirrors:   # all\n    \"*\":\n      endpoint:\n        - \"http://c:5\"\n    # hub\n    docker.io:\n        endpoint: [ \"https://x\" ]\nconfigs:\n  \"c:5\":\n    tls:\n      ca_file: \"/ca\"\n".to_owned(),
            ),
            (
                "configs:\n  x:\n    auth: {username: a}\nmirrors:".to_owned(),
                "configs:\n  \"c:5\":\n    tls:\n      ca_file: \"/ca\"\n  x:\n    auth: {username: a}\nmirrors:\n  \"*\":\n    endpoint:\n      - \"http://c:5\"\n".to_owned(),
            ),
        ] {
            assert_eq!(changed(&text).expect(&text), expected);
            assert_eq!(changed(&expected).expect(&expected), expected, "again");
        }
    }

    #[test]
    fn what_cannot_be_changed_safely_is_left_to_a_person() {
        for text in [
            "mirrors: {docker.io: {endpoint: [\"https://x\"]}}\n",
            "mirrors:\n  \"*\":\n    endpoint:\n      - \"https://other\"\n",
            "mirrors: &all\n  docker.io:\n    endpoint: []\n",
            "mirrors:\n  docker.io:\n---\nmirrors:\n",
            "mirrors:\n  docker.io:\n    endpoint: []\n...\n",
        ] {
            let error = changed(text).expect_err(text);
            assert!(matches!(&error, SetupError::ByHand { add, .. } if add == OURS), "{text}: {error}");
        }
        assert!(matches!(changed("mirrors: [\n"), Err(SetupError::Broken { .. })));
    }
}
