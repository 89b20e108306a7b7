//! Texts of others, for people and logs.

/// Most characters of such a text.
const MOST: usize = 500;

/// The text as one line without control characters; of a long one the end, where the reason mostly is.
pub fn one_line(text: &str) -> String {
    let text = text.trim();
    let skipped = text.chars().count().saturating_sub(MOST);
    let mark = if skipped > 0 { "…" } else { "" };
    let shown = text.chars().skip(skipped).map(|c| if c.is_control() { ' ' } else { c });
    mark.chars().chain(shown).collect()
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
