//! `Link` headers (RFC 8288): where a list goes on.
//!
//! Registries write them in many ways: Quay and Amazon ECR with the whole URL, distribution and Harbor with a path
//! (`registry/handlers/tags.go` of distribution: `createLinkEntry`), others with the query alone. Only the registry
//! itself understands the query: `n` and `last` (OCI Distribution Specification, "Listing Tags"), `next_page`
//! (`paginate` in `endpoints/v2/__init__.py` of Quay), `nextToken` (oras-project/artifacts-spec#93).

use std::borrow::Cow;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// Most bytes of a header that are read; a registry's link is some hundred bytes long.
const MAX_LENGTH: usize = 16 * 1024;

/// Characters that no query may contain: they would end the link, the header or the request line.
const NOT_IN_QUERIES: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// One link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link<'a> {
    /// The URL, as it was written: absolute, relative to the page, or a query alone.
    pub target: &'a str,
    /// The relations of the target to the page (`rel`), in lower case; `None` if the link has no `rel`.
    pub relations: Option<Vec<String>>,
    /// Whether the link belongs to another page than the one that it came with (`anchor`).
    pub is_of_another: bool,
}

/// Reads all links of a header's value; several header lines are joined by commas. Text that cannot be read is left
/// out, up to the next comma.
pub fn parse(header: &str) -> Vec<Link<'_>> {
    let mut links = Vec::new();
    let mut rest = beginning(header);
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return links;
        }
        let target = rest.strip_prefix('<').and_then(|rest| rest.split_once('>'));
        let Some((target, parameters)) = target else {
            rest = rest.find(',').map_or("", |comma| &rest[comma..]);
            continue;
        };
        let mut link = Link { target: target.trim(), relations: None, is_of_another: false };
        rest = read_parameters(parameters, &mut link);
        links.push(link);
    }
}

/// Returns the target of the link to the next page. If no link has a `rel`, the first one is taken, as clients do
/// (`getNextPageURL` of go-containerregistry never looks at `rel`).
pub fn next(header: &str) -> Option<&str> {
    let links: Vec<_> = parse(header).into_iter().filter(|link| !link.is_of_another).collect();
    let says_next = |link: &&Link<'_>| {
        link.relations.as_ref().is_some_and(|relations| relations.iter().any(|relation| relation == "next"))
    };
    let said = links.iter().find(says_next);
    let found = said.or_else(|| links.first().filter(|_| links.iter().all(|link| link.relations.is_none())));
    found.map(|link| link.target)
}

/// Returns the query of a link's target as it was written, with only those characters encoded that no query may
/// contain.
pub fn query(target: &str) -> Option<Cow<'_, str>> {
    let (_, query) = target.split('#').next()?.split_once('?')?;
    Some(utf8_percent_encode(query, NOT_IN_QUERIES).into())
}

/// Returns the part of a header that is read, which ends at a whole character: these have at most four bytes.
fn beginning(header: &str) -> &str {
    (0..4).find_map(|less| header.get(..MAX_LENGTH - less)).unwrap_or(header)
}

/// Reads the parameters of one link. Returns the rest of the text.
fn read_parameters<'a>(mut rest: &'a str, link: &mut Link<'_>) -> &'a str {
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        let Some(parameter) = rest.strip_prefix(';') else {
            // The end, a comma, or invalid text.
            return rest.find(',').map_or("", |comma| &rest[comma..]);
        };
        let parameter = parameter.trim_start_matches([' ', '\t']);
        let end = parameter.find(['=', ';', ',', ' ', '\t']).unwrap_or(parameter.len());
        let name = &parameter[..end];
        rest = parameter[end..].trim_start_matches([' ', '\t']);
        let mut value = String::new();
        if let Some(after) = rest.strip_prefix('=') {
            (value, rest) = read_value(after.trim_start_matches([' ', '\t']));
        }
        // Only the first `rel` counts (RFC 8288, section 3.3).
        if name.eq_ignore_ascii_case("rel") && link.relations.is_none() {
            link.relations = Some(value.split_ascii_whitespace().map(str::to_ascii_lowercase).collect());
        }
        link.is_of_another |= name.eq_ignore_ascii_case("anchor");
    }
}

/// Reads a token or a quoted string. Returns it and the rest of the text.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',']).unwrap_or(text.len());
        return (text[..end].trim_end().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_however_it_is_written() {
        for (header, target) in [
            ("</v2/a/tags/list?last=b&n=2>; rel=\"next\"", Some("/v2/a/tags/list?last=b&n=2")),
            (
                "<https://r.example/v2/a/tags/list?next_page=x%3D>; rel=next",
                Some("https://r.example/v2/a/tags/list?next_page=x%3D"),
            ),
            ("<?last=b>;rel=\"next\"", Some("?last=b")),
            ("<  ?last=b >;rel=next", Some("?last=b")),
            ("<?a>; REL=\"Next\"", Some("?a")),
            ("<?a>; Rel = next ", Some("?a")),
            ("<?a> \t;\trel\t=\t\"next\"", Some("?a")),
            ("<?a>; rel=\"last next\"", Some("?a")),
            ("<?a>; rel=\"next  last\"; rel=\"prev\"", Some("?a")),
            ("<?a>; rel=prev; rel=next", None),
            ("<?a>; title=\"a, <b>; rel=next\"; rel=\"next\"", Some("?a")),
            ("<?a>; title=\"rel=next\"; rel=\"prev\"", None),
            ("<?a>; title=\"say \\\"next\\\"\"; rel=next", Some("?a")),
            ("<?a=1,2;3>; rel=next", Some("?a=1,2;3")),
            ("<?p>; rel=\"prev\", <?n>; rel=\"next\"", Some("?n")),
            ("<?p>; rel=prev,<?n>;rel=next,<?l>;rel=last", Some("?n")),
            (", , <?n>; rel=next, ,", Some("?n")),
            ("<?a>; rel=\"prev\" nonsense, <?n>; rel=\"next\"", Some("?n")),
            ("nonsense, <?n>; rel=\"next\"", Some("?n")),
            ("<?n>; crossorigin; rel=next", Some("?n")),
            ("<?n>;; rel=next", Some("?n")),
            ("<?n>; rel=\"nextish\"", None),
            ("<?n>; rel=\"x-next\"", None),
            ("<?n>; rel=\"\"", None),
            ("<?n>", Some("?n")),
            ("<?n>; title=x", Some("?n")),
            ("<?o>, <?n>; rel=next", Some("?n")),
            ("<?o>, <?p>; rel=prev", None),
            ("<?n>; rel=next; anchor=\"#other\"", None),
            ("?n; rel=next", None),
            ("<?n; rel=next", None),
            ("<?a>; rel=\"next", Some("?a")),
            ("", None),
            (",;<>\"", None),
        ] {
            assert_eq!(next(header), target, "{header}");
        }
    }

    #[test]
    fn the_query_stays_as_it_was_written() {
        for (target, expected) in [
            ("/v2/a/tags/list?last=b&n=2", Some("last=b&n=2")),
            ("https://r.example/?n=2&&n=2&x", Some("n=2&&n=2&x")),
            ("?next_page=gAAAAA%3D%3d+/=~", Some("next_page=gAAAAA%3D%3d+/=~")),
            ("?a=b?c#d?e", Some("a=b?c")),
            ("?a=b c\"<ä>", Some("a=b%20c%22%3C%C3%A4%3E")),
            ("/v2/a?", Some("")),
            ("/v2/a#?b", None),
            ("/v2/a", None),
        ] {
            assert_eq!(query(target).as_deref(), expected, "{target}");
        }
    }

    #[test]
    fn hostile_links_do_no_harm() {
        for part in ["<", "<>;", ";rel=\"\\", "<a>;rel=", "ä,<", "<?a>; =;", ",<"] {
            let _ = next(&part.repeat(100_000));
        }
        for more in 0..4 {
            assert!(beginning(&format!("{}{}", "a".repeat(more), "𝄞".repeat(10_000))).len() <= MAX_LENGTH);
        }
    }
}
