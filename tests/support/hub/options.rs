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
