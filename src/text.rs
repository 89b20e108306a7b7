//! Makes texts of others fit for messages and logs.

/// Most characters of a text that [`one_line`] returns.
const MOST: usize = 500;

/// Returns the text with a space for each control character.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Returns the text as one line without control characters; of a long text only the end, where the reason mostly is.
pub fn one_line(text: &str) -> String {
    let text = text.trim();
    let skipped = text.chars().count().saturating_sub(MOST);
    let mark = if skipped > 0 { "…" } else { "" };
    mark.to_owned() + &printable(&text.chars().skip(skipped).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_it_looks_like_a_line_of_its_own() {
        assert_eq!(one_line(" a\nb\x1b[31m\r\n"), "a b [31m");
        let long = one_line(&("x".repeat(100_000) + " the reason"));
        assert!(long.len() < 600 && long.starts_with('…') && long.ends_with("the reason"));
    }
}
