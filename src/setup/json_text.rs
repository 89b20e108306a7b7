//! Changes of JSON files that keep everything else as it is.

use std::collections::HashMap;
use std::path::Path;

use serde_json::value::RawValue;

use super::SetupError;

/// Returns the text of an object in which each of these lists of texts has this value, in front; and the same text if
/// they have it already.
pub fn with_values(path: &Path, text: &str, wanted: &[(&str, String)]) -> Result<String, SetupError> {
    let text = if text.trim().is_empty() { "{}\n" } else { text };
    let broken = |reason: String| SetupError::Broken { path: path.to_owned(), reason };
    let members: HashMap<String, &RawValue> = serde_json::from_str(text).map_err(|error| broken(error.to_string()))?;
    // Where what is inserted.
    let mut edits: Vec<(usize, String)> = Vec::new();
    let mut missing = Vec::new();
    for (key, value) in wanted {
        let Some(list) = members.get(*key).filter(|list| list.get() != "null") else {
            missing.push(format!("\"{key}\": [{}]", quoted(value)));
            continue;
        };
        let values: Vec<String> =
            serde_json::from_str(list.get()).map_err(|_| broken(format!("`{key}` is no list of texts")))?;
        if values.iter().any(|known| known.trim_end_matches('/') == value) {
            continue;
        }
        let at = list.get().as_ptr() as usize - text.as_ptr() as usize + 1;
        let gap = gap(text, at);
        edits.push(match (values.is_empty(), gap.contains('\n')) {
            (true, _) => (at, quoted(value)),
            (false, true) => (at, format!("{gap}{},", quoted(value))),
            (false, false) => (at + gap.len(), format!("{}, ", quoted(value))),
        });
    }
    if let Some(is_null) = wanted.iter().find(|(key, _)| members.get(*key).is_some_and(|list| list.get() == "null")) {
        return Err(broken(format!("`{}` is null", is_null.0)));
    }
    let start = text.find('{').map_or(0, |at| at + 1);
    let first = members_in_front(text, start, &missing, members.is_empty());
    edits.extend(first.map(|text| (start, text)));
    edits.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let mut changed = text.to_owned();
    for (at, inserted) in edits {
        changed.insert_str(at, &inserted);
    }
    // What is written is read once more before it is used.
    serde_json::from_str::<HashMap<String, &RawValue>>(&changed).map_err(|error| broken(error.to_string()))?;
    Ok(changed)
}

fn members_in_front(text: &str, start: usize, missing: &[String], is_empty: bool) -> Option<String> {
    if missing.is_empty() {
        return None;
    }
    let gap = gap(text, start);
    let line = match gap.rfind('\n') {
        Some(at) if !is_empty => &gap[at..],
        Some(_) => "\n  ",
        None if is_empty => "\n  ",
        None => " ",
    };
    let joined = missing.iter().map(|member| format!("{line}{member}")).collect::<Vec<_>>().join(",");
    let end = match (is_empty, gap.contains('\n')) {
        (false, _) => ",",
        (true, false) => "\n",
        (true, true) => "",
    };
    Some(joined + end)
}

/// Returns the white space at a place.
fn gap(text: &str, at: usize) -> &str {
    let rest = &text[at..];
    &rest[..rest.len() - rest.trim_start().len()]
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str) -> Result<String, SetupError> {
        let wanted = [("registry-mirrors", "http://c:5".to_owned()), ("insecure-registries", "c:5".to_owned())];
        with_values(Path::new("daemon.json"), text, &wanted)
    }

    #[test]
    fn values_come_in_front_and_all_else_stays_as_it_is() {
        for (text, expected) in [
            ("", "{\n  \"registry-mirrors\": [\"http://c:5\"],\n  \"insecure-registries\": [\"c:5\"]\n}\n"),
            ("{\n}\n", "{\n  \"registry-mirrors\": [\"http://c:5\"],\n  \"insecure-registries\": [\"c:5\"]\n}\n"),
            (
                "{ \"z\": 1.50, \"a\": {} }",
                "{ \"registry-mirrors\": [\"http://c:5\"], \"insecure-registries\": [\"c:5\"], \"z\": 1.50, \"a\": {} }",
            ),
            (
                "{\n\t\"z\": 1,\n\t\"insecure-registries\": [ \"x\" ],\n\t\"registry-mirrors\": [\n\t\t\"https://y\"\n\t]\n}\n",
                "{\n\t\"z\": 1,\n\t\"insecure-registries\": [ \"c:5\", \"x\" ],\n\t\"registry-mirrors\": [\n\t\t\"http://c:5\",\n\t\t\"https://y\"\n\t]\n}\n",
            ),
            (
                "{\"registry-mirrors\": [], \"insecure-registries\":[\"c:5\"]}",
                "{\"registry-mirrors\": [\"http://c:5\"], \"insecure-registries\":[\"c:5\"]}",
            ),
        ] {
            assert_eq!(changed(text).expect(text), expected);
            assert_eq!(changed(expected).expect(expected), expected, "again");
        }
        let known = "{\"registry-mirrors\": [\"http://c:5/\"], \"insecure-registries\": [\"c:5\"]}";
        assert_eq!(changed(known).expect("fine"), known, "a slash at the end makes no difference");
    }

    #[test]
    fn what_is_no_configuration_of_docker_is_told() {
        for (text, reason) in [
            ("{ \"a\": 1, }", "trailing comma"),
            ("[]", "expected a map"),
            ("{ \"registry-mirrors\": \"http://c:5\" }", "`registry-mirrors` is no list"),
            ("{ \"registry-mirrors\": null }", "`registry-mirrors` is null"),
            ("// a comment\n{}", "expected value"),
        ] {
            let error = changed(text).expect_err(text).to_string();
            assert!(error.contains(reason) && error.contains("daemon.json"), "{error}");
        }
    }
}
