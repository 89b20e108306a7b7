//! How values are written on the pages.

use std::time::{Duration, SystemTime};

use maud::{Markup, PreEscaped, html};

use super::super::time::rfc3339;
use crate::clock;

/// Writes a number of bytes with three digits, in powers of ten, as `docker images` does.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count} B");
    }
    #[allow(clippy::cast_precision_loss)]
    let mut value = count as f64;
    let mut unit = "";
    for next in UNITS {
        value /= 1000.0;
        unit = next;
        // 999.5 would be written as 1000.
        if value < 999.5 {
            break;
        }
    }
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

/// Writes a count with spaces between thousands.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let first = digits.len() % 3;
    let (head, rest) = digits.split_at(first);
    let rest = rest.as_bytes().chunks(3).filter_map(|part| str::from_utf8(part).ok());
    // Narrow spaces that do not break the line.
    Some(head).filter(|head| !head.is_empty()).into_iter().chain(rest).collect::<Vec<_>>().join("\u{202f}")
}

/// Writes a share of 0 to 1 as a percentage. Only all is 100 %, and only nothing is 0 %.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    match percent {
        _ if percent <= 0.0 => "0 %".to_owned(),
        _ if percent >= 100.0 => "100 %".to_owned(),
        _ => format!("{:.1} %", percent.clamp(0.1, 99.9)),
    }
}

/// Returns what share `part` is of `whole`.
#[allow(clippy::cast_precision_loss)]
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Writes a length of time in milliseconds: `4.2 ms`, `1.3 s`, `2 min`.
pub fn millis(millis: f64) -> String {
    match millis {
        _ if millis < 10.0 => format!("{millis:.1} ms"),
        _ if millis < 999.5 => format!("{millis:.0} ms"),
        _ if millis < 99_950.0 => format!("{:.1} s", millis / 1000.0),
        _ => span(Duration::from_secs_f64(millis / 1000.0)),
    }
}

/// Writes a length of time by its largest unit.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..100 => format!("{seconds} s"),
        100..6_000 => format!("{} min", seconds / 60),
        6_000..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Shows how long ago a time was, with the time itself. The script keeps it true while the page is open.
pub fn ago(at: SystemTime) -> Markup {
    let text = match clock::wall().duration_since(at) {
        Ok(age) if age < Duration::from_secs(2) => "just now".to_owned(),
        Ok(age) => format!("{} ago", span(age)),
        // The clock was set back.
        Err(_) => rfc3339(at),
    };
    html! { time datetime=(rfc3339(at)) title=(rfc3339(at)) { (text) } }
}

/// The same for a time as the API writes it.
pub fn ago_of(at: &str) -> Markup {
    match humantime::parse_rfc3339(at) {
        Ok(at) => ago(at),
        Err(_) => html! { (at) },
    }
}

/// Shows a reference: a digest in it is shortened, and whole in its title.
pub fn reference(text: &str) -> Markup {
    match text.split_once('@') {
        Some((name, digest)) => html! { (broken(name)) span.digest title=(digest) { "@" (short(digest)) } },
        None => broken(text),
    }
}

/// Shows a name that may be broken behind its slashes.
fn broken(name: &str) -> Markup {
    let mut parts = name.split('/').peekable();
    html! { @while let Some(part) = parts.next() { (part) @if parts.peek().is_some() { "/" wbr; } } }
}

/// Shows a sentence: what stands between backticks is code.
pub fn prose(text: &str) -> Markup {
    let parts = text.split('`').enumerate();
    html! { @for (at, part) in parts { @if at % 2 == 1 { code { (part) } } @else { (part) } } }
}

/// Returns the beginning of a digest, as long as people compare by eye.
pub fn short(digest: &str) -> String {
    let shown = digest.split_once(':').map_or(12, |(algorithm, _)| algorithm.len() + 13);
    match digest.char_indices().nth(shown) {
        Some((end, _)) => format!("{}…", &digest[..end]),
        None => digest.to_owned(),
    }
}

/// Returns a link to a page, with the values of its query.
pub fn link(page: &str, query: &[(&str, &str)]) -> String {
    let set = query.iter().filter(|(_, value)| !value.is_empty());
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(set).finish();
    if query.is_empty() { page.to_owned() } else { format!("{page}?{query}") }
}

/// A word with a sign, so that it is not told by its colour alone.
pub fn chip(kind: &str, word: &str) -> Markup {
    html! { span class={ "chip " (kind) } { (sign(kind)) (word) } }
}

/// Returns the sign of a kind of state.
pub fn sign(kind: &str) -> Markup {
    let path = match kind {
        "hit" | "ready" | "good" => "M3 8.5l3.2 3.2L13 5",
        "miss" | "fetched" => "M8 2.5v8M4.5 7.5L8 11l3.5-3.5M3 13.5h10",
        "stale" | "checked" | "limited" | "waiting" => {
            "M8 4v4.3l2.8 1.7M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8"
        }
        "failed" | "error" | "failing" | "resting" => "M4 4l8 8M12 4l-8 8",
        "refused" => "M3.6 3.6l8.8 8.8M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8",
        "warning" => "M8 2L1.5 13.5h13zM8 6.5v3.2M8 11.4v.4",
        "pinned" => "M5.5 2h5M6.2 2v4.2L4 9h8L9.8 6.2V2M8 9v5",
        _ => "M4 8h8",
    };
    html! {
        svg.sign viewBox="0 0 16 16" aria-hidden="true" focusable="false" { path d=(PreEscaped(path)) {} }
    }
}

/// A bar that is full by a share of 0 to 1. `label`: what it shows. `is_short`: whether little is left.
pub fn bar(share: f64, label: &str, is_short: bool) -> Markup {
    let width = format!("{:.2}", share.clamp(0.0, 1.0) * 100.0);
    html! {
        svg.bar role="img" aria-label={ (label) ": " (percent(share)) } viewBox="0 0 100 1" preserveAspectRatio="none" {
            rect.track width="100" height="1" {}
            rect class=(if is_short { "stale" } else { "hit" }) width=(width) height="1" {}
        }
    }
}

/// What a page says where a list is empty, and what to do next.
pub fn nothing(title: &str, next: &Markup) -> Markup {
    html! { div.nothing { p.title { (title) } p { (next) } } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        let of = [0, 999, 1_000, 9_994, 9_996, 99_960, 999_499, 999_500, 1_234_567, 98_765_432_100, u64::MAX];
        let expected = [
            "0 B", "999 B", "1.00 kB", "9.99 kB", "10.0 kB", "100 kB", "999 kB", "1.00 MB", "1.23 MB", "98.8 GB",
            "18.4 EB",
        ];
        assert_eq!(of.map(bytes), expected);
    }

    #[test]
    fn counts_and_shares_are_written_for_people() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]);
        assert_eq!([0.0, 0.000_1, 0.5, 0.999_99, 1.0].map(percent), ["0 %", "0.1 %", "50.0 %", "99.9 %", "100 %"]);
        assert_eq!(
            [0.12, 42.0, 999.7, 2_345.0, 600_000.0].map(millis),
            ["0.1 ms", "42 ms", "1.0 s", "2.3 s", "10 min"]
        );
    }

    #[test]
    fn texts_of_others_are_text_and_digests_are_short() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let shown = reference(&format!("hub/<b>@{digest}")).into_string();
        assert!(shown.starts_with("hub/<wbr>&lt;b&gt;<span"), "{shown}");
        assert!(shown.contains(&format!("@sha256:{}…", "a".repeat(12))), "{shown}");
        assert_eq!(prose("try `a<b` now").into_string(), "try <code>a&lt;b</code> now");
        assert_eq!(short("x"), "x");
        assert_eq!(short("日本語日本語日本語日本語日本語"), "日本語日本語日本語日本語…");
        assert_eq!(link("/explain", &[("reference", "a&b=c"), ("q", "")]), "/explain?reference=a%26b%3Dc");
    }
}
