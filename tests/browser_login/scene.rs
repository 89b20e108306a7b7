//! A cache whose admin door people log in to by an issuer, and a browser without a screen.

use std::collections::BTreeMap;

use jsonwebtoken::Algorithm;
use serde_json::json;

use crate::support::issuer::{Issuer, SigningKey};
use crate::support::provider::Provider;
use crate::support::{Answer, Hub, Image, Larder, Options, RepositoryConfig, eventually, get, request};

/// Odd on purpose: it has to be encoded before it is sent.
pub const SECRET: &str = "s3:cr+t/ä %";
/// `ops` may change something, `dev` may look.
pub const ADMIN: &str = "[admin]\nallow = [\"oidc:company:groups=ops\"]\nread = [\"oidc:company:groups=dev\"]\n";

pub struct Scene {
    pub issuer: Issuer,
    pub key: SigningKey,
    pub larder: Larder,
    pub _hub: Hub,
}

/// `[auth.oidc.company]` with its login.
pub fn company(issuer: &Issuer, more: &str) -> String {
    let login = format!("[auth.oidc.company.login]\nclient_id = \"dash\"\nclient_secret = {SECRET:?}\n{more}\n");
    issuer.config("company", "") + &login
}

impl Scene {
    /// With `hub/team/app:1` in the cache.
    pub async fn start() -> Self {
        Self::start_with(ADMIN, "").await
    }

    pub async fn start_with(config: &str, login: &str) -> Self {
        let key = SigningKey::new("one", Algorithm::ES256);
        let issuer = Issuer::start(&[&key]).await;
        issuer.provide(Provider::new(&key, "dash", Some(SECRET)));
        let hub = Hub::start(Options::default()).await;
        let image = Image::new(1);
        hub.push_image("team/app", "1", &image);
        // Clients pull without a login.
        let repository = RepositoryConfig::new("hub").set("allow = [\"anonymous\"]").upstream(&hub).to_string();
        let config = format!("{config}{}[logging]\nlevel = \"trace\"\n{repository}", company(&issuer, login));
        let larder = Larder::start(config).await;
        issuer
            .provider(|provider| provider.redirect_uris.push(format!("{}/login/company/callback", larder.admin_url())));
        assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
        Self { issuer, key, larder, _hub: hub }
    }

    pub fn page(&self, path: &str) -> String {
        format!("{}{path}", self.larder.admin_url())
    }

    /// This person is logged in at the issuer.
    pub fn person(&self, name: &str, groups: &[&str]) {
        let person = json!({"sub": format!("{name}-1"), "preferred_username": name, "groups": groups});
        self.issuer.provider(|provider| provider.person = person);
    }

    /// A browser whose person has logged in.
    pub async fn logged_in(&self, name: &str, groups: &[&str]) -> Browser {
        self.person(name, groups);
        let mut browser = Browser::default();
        let answer = browser.log_in(self).await;
        assert_eq!(answer.status, 303, "{}", answer.text());
        browser
    }

    /// Waits for a line of the log that has all of these, and returns it.
    pub async fn logged(&self, parts: &[&str]) -> String {
        let found = || {
            let log = self.larder.log();
            log.lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
        };
        eventually(&format!("{parts:?} is logged"), async || found().is_some()).await;
        found().expect("a line")
    }
}

/// A browser without a screen: it keeps cookies, and follows no redirect by itself.
#[derive(Clone, Debug, Default)]
pub struct Browser {
    pub cookies: BTreeMap<String, String>,
}

impl Browser {
    pub async fn get(&mut self, url: impl AsRef<str>) -> Answer {
        self.ask("GET", url, &[], "").await
    }

    pub async fn ask(&mut self, method: &str, url: impl AsRef<str>, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut asked = request(method, url).header("accept", "text/html,*/*;q=0.8").body(body.to_owned());
        if !self.cookies.is_empty() {
            let pairs: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            asked = asked.header("cookie", pairs.join("; "));
        }
        for (name, value) in headers {
            asked = asked.header(name, value);
        }
        let answer = asked.send().await;
        for line in answer.headers.get_all("set-cookie") {
            let line = line.to_str().expect("text");
            let (name, rest) = line.split_once('=').expect("a pair");
            let value = rest.split(';').next().expect("a value");
            match line.contains("Max-Age=0;") {
                true => drop(self.cookies.remove(name)),
                false => drop(self.cookies.insert(name.to_owned(), value.to_owned())),
            }
        }
        answer
    }

    /// Goes to the issuer and comes back, up to the address with the code.
    pub async fn way_back(&mut self, scene: &Scene) -> String {
        let sent = self.get(scene.page("/login/company?wanted=%2Fpulls%3Fq%3Da")).await;
        assert_eq!(sent.status, 303, "{}", sent.text());
        let told = get(sent.header("location")).await;
        assert_eq!(told.status, 303, "{}", told.text());
        told.header("location").to_owned()
    }

    pub async fn log_in(&mut self, scene: &Scene) -> Answer {
        let back = self.way_back(scene).await;
        self.get(back).await
    }

    /// The CSRF token of a page.
    pub async fn csrf_token(&mut self, scene: &Scene) -> String {
        let text = self.get(scene.page("/")).await.text();
        let rest = text.split("name=\"csrf-token\" content=\"").nth(1).unwrap_or_else(|| panic!("no token: {text}"));
        rest.split('"').next().expect("a value").to_owned()
    }

    pub fn session(&self) -> Option<&str> {
        self.cookies.get("larder-session").map(String::as_str)
    }
}

/// The parameters of a URL.
pub fn parameters(url: &str) -> BTreeMap<String, String> {
    url::Url::parse(url).expect("a URL").query_pairs().into_owned().collect()
}

/// The URL with another value of a parameter; `None`: without it.
pub fn with_parameter(url: &str, name: &str, value: Option<&str>) -> String {
    let mut all = parameters(url);
    all.remove(name);
    all.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    let mut url = url::Url::parse(url).expect("a URL");
    url.query_pairs_mut().clear().extend_pairs(all);
    url.into()
}

/// The image in the cache.
pub const IMAGE: &str = "/api/cache?reference=hub/team/app:1";
