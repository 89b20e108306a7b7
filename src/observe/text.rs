//! How the fields of a line look in a log for people: `key=value`, with quotes where the value could be taken for more
//! than one.

use std::fmt::{self, Debug, Write};

use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

/// Returns the format of the fields of a line.
pub fn fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(write).delimited(" ")
}

fn write(to: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    let text = format!("{value:?}");
    match field.name() {
        "message" => to.write_str(&without_controls(&text)),
        name => write!(to, "{}={}", name.strip_prefix("r#").unwrap_or(name), quoted(&text)),
    }
}

/// Returns a value in quotes if it has spaces, quotes or control characters. What is a text has quotes already.
fn quoted(text: &str) -> String {
    let is_quoted = text.len() > 1 && text.starts_with('"') && text.ends_with('"');
    let needs_quotes = text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"');
    if needs_quotes && !is_quoted { format!("{text:?}") } else { text.to_owned() }
}

/// Returns a text without control characters, which could begin another line or steer a terminal.
fn without_controls(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        // Writing to a `String` cannot fail.
        let _ = if c.is_control() { write!(shown, "{}", c.escape_debug()) } else { shown.write_char(c) };
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_value_is_one_word_or_in_quotes() {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .without_time()
            .fmt_fields(fields())
            .finish();
        tracing::subscriber::with_default(log, || {
            let error = io::Error::other("it said \"no\"\nERROR a line of its own");
            tracing::info!(status = 200, %error, name = "a b", path = %"/v2/", empty = %"", "one\u{1b}[31m request");
        });
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        let (_, fields) = text.split_once(": ").expect("a line");
        assert_eq!(
            fields,
            "one\\u{1b}[31m request status=200 error=\"it said \\\"no\\\"\\nERROR a line of its own\" name=\"a b\" path=/v2/ empty=\"\"\n"
        );
    }
}
