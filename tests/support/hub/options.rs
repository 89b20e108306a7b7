//! The choices a test has when it starts a hub.

use super::token::{Auth, TokenService};

/// How a hub behaves. The default is the simplest registry: no authentication, no redirects, no limits.
#[derive(Clone, Debug)]
pub struct Options {
    pub auth: Auth,
    /// (user, password)
    pub users: Vec<(String, String)>,
    /// (identity token, user): what a login gives instead of the password.
    pub identity_tokens: Vec<(String, String)>,
    /// (repository, user who may read it); repositories not named here are for all.
    pub private: Vec<(String, String)>,
    /// Where blobs are.
    pub redirect: Redirect,
    pub rate_limit: Option<RateLimit>,
    /// Whether the referrers API exists.
    pub referrers: bool,
    /// Entries of a list without `n`.
    pub page_size: usize,
    /// How pages of lists follow each other.
    pub paging: Paging,
    /// Whether filters of referrers do anything.
    pub filters_referrers: bool,
    /// Whether a list of tags tells more of each than its name.
    pub details_of_tags: bool,
    /// The status of redirects: 307 mostly, 302 at some.
    pub redirect_status: u16,
    /// Where manifests are.
    pub manifests_at: ManifestsAt,
    /// What comes of a HEAD for a blob at the registry.
    pub blob_head: HeadHabit,
    /// What comes of a HEAD at the host that redirects point to.
    pub storage_head: HeadHabit,
    /// What comes of a HEAD for a manifest.
    pub manifest_head: HeadHabit,
    /// What all manifests are called instead of what they are.
    pub manifest_type: Option<&'static str>,
    /// Whether manifests and blobs come with their length, else chunked.
    pub sends_lengths: bool,
    /// Whether `Docker-Content-Digest` and `ETag` are sent.
    pub names_digests: bool,
    /// Whether the digest that is sent is sha256, whatever was asked for.
    pub names_sha256_alone: bool,
    /// Whether documents are compressed for who does not ask for `identity`.
    pub compresses: bool,
    /// Headers on each answer of the registry.
    pub headers: Vec<(&'static str, &'static str)>,
}

impl Options {
    /// As Docker Hub: tokens, blobs on another host, a rate limit of 100 pulls, no referrers API.
    pub fn docker_hub() -> Self {
        Self {
            auth: Auth::Token(TokenService::default()),
            redirect: Redirect::Absolute,
            rate_limit: Some(RateLimit::default()),
            referrers: false,
            ..Self::default()
        }
    }

    /// With the usual token service.
    pub fn with_tokens() -> Self {
        Self { auth: Auth::Token(TokenService::default()), ..Self::default() }
    }

    /// With Basic authentication for this user.
    pub fn with_basic(user: &str, password: &str) -> Self {
        Self { auth: Auth::Basic, ..Self::default() }.user(user, password)
    }

    /// With blobs on another host.
    pub fn with_redirects() -> Self {
        Self { redirect: Redirect::Absolute, ..Self::default() }
    }

    /// Adds a user.
    pub fn user(mut self, user: &str, password: &str) -> Self {
        self.users.push((user.to_owned(), password.to_owned()));
        self
    }

    /// Keeps a repository for a user.
    pub fn private(mut self, name: &str, user: &str) -> Self {
        self.private.push((name.to_owned(), user.to_owned()));
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            auth: Auth::None,
            users: Vec::new(),
            identity_tokens: Vec::new(),
            private: Vec::new(),
            redirect: Redirect::None,
            rate_limit: None,
            referrers: true,
            page_size: 1000,
            paging: Paging::default(),
            filters_referrers: true,
            details_of_tags: false,
            redirect_status: 307,
            manifests_at: ManifestsAt::Registry,
            blob_head: HeadHabit::Right,
            storage_head: HeadHabit::Right,
            manifest_head: HeadHabit::Right,
            manifest_type: None,
            sends_lengths: true,
            names_digests: true,
            names_sha256_alone: false,
            compresses: false,
            headers: Vec::new(),
        }
    }
}

/// Where blobs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redirect {
    /// At the registry.
    None,
    /// At another host, behind a 307 with a presigned URL. That host answers 400 if `Authorization` arrives.
    Absolute,
    /// At the registry, behind a 307 whose `Location` is only a path.
    Relative,
}

/// Docker Hub's limit on manifest requests, with its headers.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// How many pulls are allowed.
    pub pulls: u64,
    /// Seconds, as the headers say them; the count never resets by itself.
    pub window: u64,
    pub refusal: Refusal,
    /// Seconds in `Retry-After`; `None` leaves it out.
    pub retry_after: Option<u64>,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { pulls: 100, window: 21600, refusal: Refusal::Json, retry_after: None }
    }
}

/// What comes after the last allowed pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 429 with JSON, for GET; HEAD neither counts nor is refused.
    Json,
    /// 429 with plain text; HEAD counts and is refused too.
    Abuse,
}

/// What comes of a HEAD for something that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadHabit {
    /// As GET would answer.
    Right,
    /// This status instead.
    Status(u16),
    /// 401 with a challenge, whatever token comes.
    Challenge,
    /// 200 with a length of 0 and this media type, without a digest.
    Hollow(&'static str),
    /// 404 until it was asked for by GET.
    AfterGet,
}

/// Where manifests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestsAt {
    /// At the registry.
    Registry,
    /// At another registry, behind a redirect.
    OtherRegistry,
    /// At the storage, behind a redirect with a presigned URL.
    Storage,
}

/// How pages of lists follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// The parameter that says how many entries are wanted.
    pub size: &'static str,
    /// The parameter that says which page is.
    pub next: &'static str,
    pub token: PageToken,
    pub link: LinkForm,
}

impl Default for Paging {
    /// As the specification has it.
    fn default() -> Self {
        Self { size: "n", next: "last", token: PageToken::LastEntry, link: LinkForm::Path }
    }
}

/// What names a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageToken {
    /// The last entry of the page before.
    LastEntry,
    /// What only this registry understands; others answer 400.
    Opaque,
    /// The number of the page, from 1 on.
    Number,
}

/// How the address of the next page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkForm {
    /// Path and query.
    Path,
    /// The whole address.
    Absolute,
    /// The query alone, behind other links and other parameters, in two lines.
    Odd,
}
