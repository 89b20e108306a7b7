//! Writes TOML for people to read: headings, keys in order, comments.

use toml::Value;
use toml_writer::{TomlKeyBuilder, TomlWrite};

use crate::text::printable;

/// Column at which the comments after values begin.
const COMMENTS: usize = 42;

/// A TOML document that is being written.
#[derive(Debug, Default)]
pub struct Document {
    text: String,
}

impl Document {
    /// Adds a comment on lines of its own.
    pub fn comment(&mut self, comment: &str) {
        for line in comment.lines() {
            self.text += format!("# {}", printable(line)).trim_end();
            self.text.push('\n');
        }
    }

    /// Adds an empty line, unless the document is empty or ends with an empty line.
    pub fn empty_line(&mut self) {
        if !self.text.is_empty() && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
    }

    /// Adds the heading `[a."b"]`.
    pub fn table(&mut self, path: &[&str]) {
        self.empty_line();
        self.text += &format!("[{}]\n", dotted(path));
    }

    /// Adds the heading `[[a."b".c]]`.
    pub fn table_of_list(&mut self, path: &[&str]) {
        self.empty_line();
        self.text += &format!("[[{}]]\n", dotted(path));
    }

    /// Adds the line `key = value  # comment`.
    pub fn value(&mut self, key: &str, value: &Value, comment: Option<&str>) {
        let line = format!("{} = {value}", quoted(key));
        self.text += &match comment {
            Some(comment) => {
                // A width is no alternative: the formatter takes no width beyond 16 bits.
                let blanks = " ".repeat(COMMENTS.saturating_sub(line.len()).max(2));
                format!("{line}{blanks}# {}\n", printable(comment))
            }
            None => format!("{line}\n"),
        };
    }

    /// Returns the text of the document.
    pub fn into_text(self) -> String {
        self.text
    }
}

/// Returns the dotted path of a table. Keys that users choose are in quotes, as people usually write them.
fn dotted(path: &[&str]) -> String {
    let is_chosen = |at: usize| at == 1 && matches!(path.first(), Some(&("repository" | "headers")));
    let keys = path.iter().enumerate().map(|(at, key)| if is_chosen(at) { always_quoted(key) } else { quoted(key) });
    keys.collect::<Vec<_>>().join(".")
}

fn quoted(key: &str) -> String {
    written(TomlKeyBuilder::new(key).as_default())
}

fn always_quoted(key: &str) -> String {
    written(TomlKeyBuilder::new(key).as_basic())
}

fn written(key: impl toml_writer::WriteTomlKey) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = text.key(key);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_the_text_is_it_is_read_back_as_it_was() {
        for text in
            ["", "a", "a b", "\"", "\\", "'\"", "#", "[hidden]", "ä\u{7f}\u{1}", "a\nb", "a\r\n'''\"\"\"\n", "]"]
        {
            let mut document = Document::default();
            document.comment(text);
            document.table(&["repository", text]);
            document.value(text, &Value::String(text.to_owned()), Some(text));
            document.table_of_list(&["repository", text, "upstream"]);
            document.value("list", &Value::Array(vec![text.into(), 1.into(), true.into()]), None);
            let written = document.into_text();
            let read: toml::Table = written.parse().unwrap_or_else(|error| panic!("{error}\n{written}"));
            let repository = &read["repository"][text];
            assert_eq!(repository[text].as_str(), Some(text), "{written}");
            assert_eq!(repository["upstream"][0]["list"][0].as_str(), Some(text), "{written}");
        }
    }
}
