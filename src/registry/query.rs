//! The query of a request.

use super::pages;

/// The query parameters that Larder reads.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// `ns`: the registry that the client means.
    pub namespace: Option<String>,
    pub n: Option<String>,
    pub last: Option<String>,
    /// The whole query without `ns`, as the client sent it: it selects the page of a list.
    pub page: String,
}

impl Query {
    /// Reads a query. If a parameter occurs twice, the first one counts.
    pub fn read(query: Option<&str>) -> Self {
        let Some(query) = query else {
            return Self::default();
        };
        let mut read = Self { page: pages::without_namespace(query), ..Self::default() };
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let place = match &*key {
                "ns" => &mut read.namespace,
                "n" => &mut read.n,
                "last" => &mut read.last,
                _ => continue,
            };
            place.get_or_insert_with(|| value.into_owned());
        }
        read
    }
}
