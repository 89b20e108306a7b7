//! Pages of lists: which page a client asks for, the key under which it is kept, and where the next page is.
//!
//! Each registry names its next page in its own way, and only that registry knows its meaning. So the client's query
//! goes upstream as it came, except for `ns`, and the upstream's query comes back in `Link` unchanged.

use http::HeaderValue;
use quick_cache::sync::Cache;

use crate::oci::link;
use crate::routing::Target;
use crate::upstream::WhoId;

/// Largest page, in entries, that is kept. Registries give fewer entries at a time.
const MAX_N: u32 = 10_000;
/// Longest filter that is kept: a media type has at most 127 characters on both sides of its slash (RFC 6838).
const MAX_FILTER: usize = 255;
/// Longest query that is kept. Page tokens of registries have some hundred characters.
const MAX_QUERY: usize = 2 << 10;
/// Longest name of a parameter that is kept.
const MAX_NAME: usize = 64;
/// Most pages for which the upstream that named them is remembered.
const NAMED: usize = 1_024;

/// Which list of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    Tags,
    Referrers,
}

/// One page of a list, as a client asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The query that goes upstream.
    pub query: String,
    /// The key of the page, the same for all queries with the same meaning. `None` for a page that is not kept: there
    /// may be any number of queries, and only those are kept that a registry gives or that clients of registries make.
    pub kept_as: Option<String>,
    /// All values of `artifactType`.
    pub filters: Vec<String>,
    /// Whether only the registry that named the page understands the query.
    pub is_opaque: bool,
}

impl Page {
    /// Reads a query without the client's `ns`.
    pub fn read(kind: ListKind, query: &str) -> Self {
        let (mut n, mut last, mut filters, mut others) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut is_kept = query.len() <= MAX_QUERY;
        let mut is_opaque = false;
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = decode(part);
            match (name.as_str(), kind) {
                ("n", _) => match canonical_n(&value) {
                    Some(number) => n.push(number.to_string()),
                    None => is_kept = false,
                },
                ("last", ListKind::Tags) => {
                    is_kept &= is_tag_like(&value);
                    last.push(value);
                }
                ("artifactType", ListKind::Referrers) => {
                    is_kept &= is_media_type(&value);
                    filters.push(value);
                }
                (name, _) => {
                    is_kept &= is_plausible(name, part);
                    is_opaque = true;
                    others.push(part);
                }
            }
        }
        // If there are two values, some registries take the first and some the last.
        is_kept &= n.len() <= 1 && last.len() <= 1;
        let mut canonical = url::form_urlencoded::Serializer::new(String::new());
        canonical.extend_pairs(n.iter().map(|n| ("n", n)));
        canonical.extend_pairs(last.iter().map(|last| ("last", last)));
        canonical.extend_pairs(filters.iter().map(|filter| ("artifactType", filter)));
        let mut canonical = vec![canonical.finish()];
        canonical.retain(|known| !known.is_empty());
        canonical.extend(others.into_iter().map(str::to_owned));
        Self {
            query: query.to_owned(),
            kept_as: is_kept.then(|| canonical.join("&")),
            // In a form a plus sign means a space, and a media type contains no space.
            filters: filters.into_iter().filter(|filter| !filter.is_empty()).map(|f| f.replace(' ', "+")).collect(),
            is_opaque,
        }
    }

    /// Returns the query of the next page from the upstream's `Link`. Returns `None` if the link leads to this page
    /// again, or to the first page: a client would go in a circle.
    pub fn next(&self, header: &str) -> Option<String> {
        let query = link::query(link::next(header)?)?;
        let next = without_namespace(&query);
        (!next.is_empty() && meaning(&next) != meaning(&self.query)).then_some(next)
    }
}

/// Returns the `Link` to the next page for a client: the path that the client asked for, with the upstream's query and
/// the client's own `ns`.
pub fn link_to(path: &str, next: &str, namespace: Option<&str>) -> Option<HeaderValue> {
    let namespace = namespace.map(|namespace| {
        let pair = url::form_urlencoded::Serializer::new(String::new()).append_pair("ns", namespace).finish();
        format!("&{pair}")
    });
    HeaderValue::try_from(format!("<{path}?{next}{}>; rel=\"next\"", namespace.unwrap_or_default())).ok()
}

/// Returns a query unchanged except that `ns` is removed.
pub fn without_namespace(query: &str) -> String {
    let parts: Vec<_> = query.split('&').filter(|part| !part.is_empty() && decode(part).0 != "ns").collect();
    parts.join("&")
}

fn decode(part: &str) -> (String, String) {
    let pair = url::form_urlencoded::parse(part.as_bytes()).next();
    pair.map(|(name, value)| (name.into_owned(), value.into_owned())).unwrap_or_default()
}

/// Returns the parameters of a query, decoded and sorted: clients may encode a query differently.
fn meaning(query: &str) -> Vec<(String, String)> {
    let mut pairs: Vec<_> = query.split('&').filter(|part| !part.is_empty()).map(decode).collect();
    pairs.sort();
    pairs
}

fn canonical_n(n: &str) -> Option<u32> {
    let is_number = n.bytes().all(|byte| byte.is_ascii_digit());
    n.parse().ok().filter(|n| is_number && *n <= MAX_N)
}

/// Returns whether the value has the length and the characters of a tag.
fn is_tag_like(last: &str) -> bool {
    let is_of_tags = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    last.len() <= 128 && last.bytes().all(is_of_tags)
}

/// Returns whether the value consists of characters of media types (RFC 6838, section 4.2).
fn is_media_type(filter: &str) -> bool {
    let is_of_types = |byte: u8| byte.is_ascii_alphanumeric() || b"/!#$&-^_.+".contains(&byte);
    filter.len() <= MAX_FILTER && filter.bytes().all(is_of_types)
}

/// Returns whether the parameter may be one of a registry's own: a short name, and characters that a query may contain
/// (RFC 3986, section 3.4).
fn is_plausible(name: &str, part: &str) -> bool {
    let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let is_of_queries = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$'()*+,;=:@/?%".contains(&byte);
    let lower = name.to_ascii_lowercase();
    // Parameters that may be credentials are not written to disk. `nextToken` is a page token of registries.
    let is_secret = lower != "nexttoken"
        && ["token", "auth", "key", "secret", "sig", "pass"].iter().any(|word| lower.contains(word));
    !is_secret
        && (1..=MAX_NAME).contains(&name.len())
        && name.bytes().all(is_of_names)
        && part.bytes().all(is_of_queries)
}

/// Remembers which upstream of a repository named which page: another upstream would not understand the page, or give a
/// page of a different list.
pub struct NamedBy(Cache<Key, usize>);

type Key = (String, String, WhoId);

impl Default for NamedBy {
    fn default() -> Self {
        Self(Cache::new(NAMED))
    }
}

impl NamedBy {
    /// Returns the upstream that named a page of `list`.
    pub fn recall(&self, target: &Target, list: &str, query: &str) -> Option<usize> {
        self.0.get(&key(target, list, query)?).filter(|&at| at < target.repository.upstreams.len())
    }

    /// Notes that an upstream named a page.
    pub fn remember(&self, target: &Target, list: &str, query: &str, at: usize) {
        if let Some(key) = key(target, list, query) {
            self.0.insert(key, at);
        }
    }

    /// Forgets all. Called after a change of the configuration: the upstreams may be different ones.
    pub fn clear(&self) {
        self.0.clear();
    }
}

/// Returns the key of a page. `None`: with one upstream there is nothing to remember, and a query this long is no page
/// token.
fn key(target: &Target, list: &str, query: &str) -> Option<Key> {
    if target.repository.upstreams.len() < 2 || query.len() > MAX_QUERY {
        return None;
    }
    let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(meaning(query)).finish();
    Some((target.repository.config.asked_as(), format!("{}/{list}?{query}", target.name), target.who.id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(kind: ListKind, query: &str) -> Option<String> {
        Page::read(kind, query).kept_as
    }

    #[test]
    fn pages_are_kept_by_what_they_mean_and_no_nonsense_is() {
        let long = "a".repeat(129);
        for (query, expected) in [
            ("", Some("")),
            ("n=5", Some("n=5")),
            ("n=0005&last=v1.0_x-y", Some("n=5&last=v1.0_x-y")),
            ("last=v1.0_x-y&n=5", Some("n=5&last=v1.0_x-y")),
            ("n=10000&last=", Some("n=10000&last=")),
            ("n=10001", None),
            ("n=%2B5", None),
            ("n=", None),
            ("n=-1", None),
            ("n=99999999999999999999", None),
            ("n=1&n=2", None),
            ("last=a&last=b", None),
            ("last=a+b", None),
            (&format!("last={long}"), None),
            // From Quay, ECR and other registries.
            ("next_page=gAAAAABm%3D%3D&n=50", Some("n=50&next_page=gAAAAABm%3D%3D")),
            ("nextToken=a/b+c=&maxResults=1000", Some("nextToken=a/b+c=&maxResults=1000")),
            ("page=2&page_size=100", Some("page=2&page_size=100")),
            ("_nextPage=x", Some("_nextPage=x")),
            // Parameters that may be credentials are not written to disk.
            ("access_token=geheim", None),
            ("n=5&X-Amz-Signature=geheim", None),
            ("apiKey=geheim", None),
            ("page=2&page=3", Some("page=2&page=3")),
            ("%00=1", None),
            ("a b=1", None),
            ("=1", None),
            ("page=\"", None),
            (&format!("next_page={}", "a".repeat(2_000)), Some(&*format!("next_page={}", "a".repeat(2_000)))),
            (&format!("next_page={}", "a".repeat(2_048)), None),
            (&format!("{}=1", "a".repeat(65)), None),
        ] {
            assert_eq!(kept(ListKind::Tags, query).as_deref(), expected, "{query}");
            assert_eq!(Page::read(ListKind::Tags, query).query, query);
        }
        for (query, expected) in [
            ("artifactType=a/b&artifactType=c%2Fd", Some("artifactType=a%2Fb&artifactType=c%2Fd")),
            ("n=1&artifactType=a/b%2Bjson", Some("n=1&artifactType=a%2Fb%2Bjson")),
            ("last=sha256:00&nextToken=x", Some("last=sha256:00&nextToken=x")),
            ("artifactType=a+b", None),
            ("artifactType=a;b", None),
            (&format!("artifactType={}", "a".repeat(256)), None),
        ] {
            assert_eq!(kept(ListKind::Referrers, query).as_deref(), expected, "{query}");
        }
    }

    #[test]
    fn all_filters_are_read() {
        let page = Page::read(ListKind::Referrers, "artifactType=a/b%2Bc&n=3&artifactType=d+e&artifactType=");
        assert_eq!((page.filters, page.is_opaque), (vec!["a/b+c".to_owned(), "d+e".to_owned()], false));
        assert!(
            Page::read(ListKind::Referrers, "last=x").is_opaque && !Page::read(ListKind::Tags, "last=x&n=1").is_opaque
        );
        assert!(Page::read(ListKind::Tags, "next_page=x").is_opaque);
    }

    #[test]
    fn the_link_to_the_next_page_leads_back_here_and_never_in_a_circle() {
        let page = Page::read(ListKind::Tags, "n=2");
        for header in [
            "</v2/library/a/tags/list?last=b&n=2>; rel=\"next\"",
            "<https://registry.example/v2/library/a/tags/list?last=b&n=2>; rel=next",
            "<?last=b&ns=other.example&n=2>;rel=\"next\"",
        ] {
            let next = page.next(header).expect(header);
            let link = link_to("/v2/docker.io/a/tags/list", &next, Some("docker.io"));
            assert_eq!(link.expect("a link"), "</v2/docker.io/a/tags/list?last=b&n=2&ns=docker.io>; rel=\"next\"");
        }
        let token = "next_page=gA%3D%3d+/=&n=2&n=2";
        let next = page.next(&format!("<https://r.example/x?{token}>; rel=next")).expect("a page");
        assert_eq!(link_to("/p", &next, None).expect("a link"), &format!("</p?{token}>; rel=\"next\""));
        for header in
            ["<x>; rel=\"prev\"", "nonsense", "</v2/a/tags/list>; rel=next", "<?>; rel=next", "<?ns=a>; rel=next"]
        {
            assert_eq!(page.next(header), None, "{header}");
        }
        let page = Page::read(ListKind::Tags, "next_page=a%2Fb&n=2");
        for header in ["<?next_page=a%2Fb&n=2>; rel=next", "<?n=2&next_page=a/b>; rel=next"] {
            assert_eq!(page.next(header), None, "{header} is this page again");
        }
        assert_eq!(page.next("<?n=2&next_page=a>; rel=next").as_deref(), Some("n=2&next_page=a"));
    }

    #[test]
    fn only_the_namespace_is_taken_out_of_a_query() {
        for (query, rest) in [
            ("ns=docker.io", ""),
            ("n=1&ns=docker.io&last=a%20b+c", "n=1&last=a%20b+c"),
            ("%6Es=x&ns&nsx=1&x=ns", "nsx=1&x=ns"),
            ("&a&&b=&", "a&b="),
        ] {
            assert_eq!(without_namespace(query), rest, "{query}");
        }
    }
}
