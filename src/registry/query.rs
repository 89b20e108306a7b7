//! The query of a request.

use super::pages;

/// The parts of a query that mean something here.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// `ns`
    pub namespace: Option<String>,
    pub n: Option<String>,
    pub last: Option<String>,
    /// All of it but `ns`, as it came: which page of a list is asked for.
    pub page: String,
}

impl Query {
    /// Reads a query. Of a parameter that is there twice the first counts.
    pub fn read(query: Option<&str>) -> Self {
        let query = query.unwrap_or_default();
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
