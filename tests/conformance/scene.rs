//! A registry and a Larder in front of it, the ways to ask them, and what is seen of an answer.

use crate::support::{Answer, Browser, Hub, Options, Proxied, request};

pub const NAME: &str = "team/app";
/// Headers that the specification (and RFC 9110, for ranges) gives a meaning.
const HEADERS: [&str; 5] =
    ["content-type", "content-length", "docker-content-digest", "content-range", "oci-filters-applied"];
/// The table of "Error Codes".
const CODES: [&str; 14] = [
    "BLOB_UNKNOWN",
    "BLOB_UPLOAD_INVALID",
    "BLOB_UPLOAD_UNKNOWN",
    "DIGEST_INVALID",
    "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "SIZE_INVALID",
    "UNAUTHORIZED",
    "DENIED",
    "UNSUPPORTED",
    "TOOMANYREQUESTS",
];
/// Codes that Docker's registry has beside that table, and Larder too (see docs/errors.md).
const CODES_OF_DOCKER: [&str; 2] = ["TAG_INVALID", "RANGE_INVALID"];

/// Whom a client asks, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The registry itself.
    Alone,
    /// Larder's registry door: `/v2/hub/NAME/…`
    Prefix,
    /// Larder's registry door: `/v2/NAME/…?ns=hub`
    Namespace,
    /// The registry by its own address, with Larder for a proxy.
    Proxy,
}

pub const WAYS: [Way; 4] = [Way::Alone, Way::Prefix, Way::Namespace, Way::Proxy];

/// A registry and a Larder in front of it, asked in one way.
pub struct Scene {
    pub way: Way,
    pub proxied: Proxied,
    browser: Browser,
}

impl Scene {
    pub async fn start(way: Way, options: Options) -> Self {
        // What is pushed between two questions is to show at once.
        let keys = "namespace = [\"hub\"]\nnegative_max_age = \"0s\"";
        let proxied = Proxied::start_with(options, "", [keys, ""], "").await;
        let browser = proxied.browser();
        Self { way, proxied, browser }
    }

    pub fn hub(&self) -> &Hub {
        &self.proxied.hub
    }

    /// The path and query by which the client asks for a page of the registry, such as `team/app/tags/list?n=2`.
    pub fn path(&self, page: &str) -> String {
        match self.way {
            Way::Alone | Way::Proxy => format!("/v2/{page}"),
            Way::Prefix => format!("/v2/hub/{page}"),
            Way::Namespace => format!("/v2/{page}{}ns=hub", if page.contains('?') { '&' } else { '?' }),
        }
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let origin = match self.way {
            Way::Alone => self.hub().url(),
            Way::Prefix | Way::Namespace => self.proxied.larder.url(),
            Way::Proxy => {
                return self.browser.send(method, format!("{}{path}", self.proxied.front.url()), headers, "").await;
            }
        };
        let request = request(method, format!("{origin}{path}"));
        headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send().await
    }

    pub async fn ask(&self, method: &str, page: &str) -> Answer {
        self.send(method, &self.path(page), &[]).await
    }

    pub async fn get(&self, page: &str) -> Answer {
        self.ask("GET", page).await
    }

    pub async fn head(&self, page: &str) -> Answer {
        self.ask("HEAD", page).await
    }

    /// Follows `Link` to the end, as RFC 5988 says, and gives the answers.
    pub async fn pages(&self, page: &str) -> Vec<Answer> {
        let mut answers = vec![self.get(page).await];
        while let Some(target) = next(answers.last().expect("one at least")) {
            answers.push(self.send("GET", &target, &[]).await);
            assert!(answers.len() < 20, "{:?}: a circle", self.way);
        }
        answers
    }
}

/// The path and query of the next page, where the answer tells one.
pub fn next(answer: &Answer) -> Option<String> {
    let (target, parameters) = answer.header("link").strip_prefix('<')?.split_once('>').expect("a link");
    assert_eq!(parameters, "; rel=\"next\"");
    Some(target.to_owned())
}

/// What a client sees of an answer that gives it something.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: bytes::Bytes,
    has_next: bool,
}

pub fn seen(answer: &Answer) -> Seen {
    assert!(answer.complete(), "{:?}", answer.error);
    let headers = HEADERS.iter().map(|name| (*name, answer.header(name).to_owned())).collect();
    Seen { status: answer.status, headers, body: answer.body.clone(), has_next: next(answer).is_some() }
}

/// "Error Codes": the status is one of these, and a body in JSON has the format and a code of the table.
pub fn expect_error(answer: &Answer, statuses: &[u16]) {
    assert!(statuses.contains(&answer.status), "{} {}", answer.status, answer.text());
    if answer.body.is_empty() {
        return;
    }
    let errors = answer.json()["errors"].clone();
    let errors = errors.as_array().unwrap_or_else(|| panic!("no errors: {}", answer.text()));
    assert!(!errors.is_empty() && answer.header("content-type").starts_with("application/json"));
    for error in errors {
        let code = error["code"].as_str().expect("a code");
        assert!(CODES.contains(&code) || CODES_OF_DOCKER.contains(&code), "{code}");
        assert!(error["message"].is_string() || error["message"].is_null(), "{error}");
    }
}

/// Asks in each way, cold and warm. What is seen has to be what the registry alone shows, which is asked first.
pub async fn by_each_way<T: PartialEq + std::fmt::Debug>(
    options: Options,
    fill: impl Fn(&Hub),
    ask: impl AsyncFn(&Scene) -> T,
) {
    let mut alone = None;
    for way in WAYS {
        let scene = Scene::start(way, options.clone()).await;
        fill(scene.hub());
        for state in ["cold", "warm"] {
            let seen = ask(&scene).await;
            match &alone {
                None => alone = Some(seen),
                Some(alone) => assert_eq!(&seen, alone, "{way:?}, {state}"),
            }
        }
    }
}
