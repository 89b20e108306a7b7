//! Makes texts of others fit for messages and logs.

/// Most characters of a text that [`one_line`] returns.
const MOST: usize = 1000;
/// Most characters of a text that [`last_words`] returns.
const MOST_OF_END: usize = 500;

/// Returns the text with a space for each control character.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Returns the text as one line without control characters; of a long text only the beginning, which says what is
/// wrong.
pub fn one_line(text: &str) -> String {
    let text = text.trim();
    let mut line = printable(&text.chars().take(MOST).collect::<String>());
    if text.chars().nth(MOST).is_some() {
        line.push('…');
    }
    line
}

/// Returns the text as one line without control characters; of a long text only the end, where programs say why they
/// gave up.
pub fn last_words(text: &str) -> String {
    let text = text.trim();
    let skipped = text.chars().count().saturating_sub(MOST_OF_END);
    let mark = if skipped > 0 { "…" } else { "" };
    mark.to_owned() + &printable(&text.chars().skip(skipped).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_it_looks_like_a_line_of_its_own() {
        assert_eq!(one_line(" a\nb\x1b[31m\r\n"), "a b [31m");
        let long = one_line(&("the reason: ".to_owned() + &"x".repeat(100_000)));
        assert!(long.len() < 1100 && long.starts_with("the reason: x") && long.ends_with("x…"));
        let long = last_words(&("x".repeat(100_000) + "\nthe reason"));
        assert!(long.len() < 600 && long.starts_with("…x") && long.ends_with("x the reason"));
    }
}
