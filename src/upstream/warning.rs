//! The warnings of an upstream for people who pull (OCI distribution specification, "Warnings").

use http::header::WARNING;
use http::{HeaderMap, HeaderValue};

/// Most bytes of a response's warnings that are passed on: as many as the specification lets clients look at.
const MOST: usize = 4096;
/// Most lines of warnings that are passed on: clients accept about a hundred headers in all.
const LINES: usize = 8;

/// Returns the warnings of a response that are for people who pull (code 299): all others come from caches on the way.
pub fn of(headers: &HeaderMap) -> Vec<HeaderValue> {
    let mut left = MOST;
    let warnings = headers.get_all(WARNING).iter().filter(|value| value.as_bytes().starts_with(b"299 "));
    let fits = |value: &&HeaderValue| {
        let rest = left.checked_sub(value.len());
        left = rest.unwrap_or(left);
        rest.is_some()
    };
    warnings.filter(fits).take(LINES).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_much_is_passed_on_and_nothing_of_other_kinds() {
        let long = format!("299 - \"{}\"", "x".repeat(4080));
        let values = ["110 - \"old\"", "299 - \"one\"", &long, "299 - \"two\"", "2990"];
        let headers = values.iter().map(|value| (WARNING, HeaderValue::try_from(*value).expect("a value")));
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| assert!(map.append(name, value) || map.len() == 1));
        assert_eq!(of(&map), ["299 - \"one\"", "299 - \"two\""]);
        let many: HeaderMap = HeaderMap::from_iter([(WARNING, HeaderValue::from_static("299 - \"x\""))]);
        let many = (0..50).fold(many, |mut many, _| {
            many.append(WARNING, HeaderValue::from_static("299 - \"x\""));
            many
        });
        assert_eq!(of(&many).len(), LINES);
    }
}
