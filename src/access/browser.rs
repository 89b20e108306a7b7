//! Logins in a browser to the dashboard: what is on its way to an issuer and back, and the sessions that follow.
//!
//! A login on its way takes no memory here: it is sealed into `state`, which the issuer sends back unread. It counts
//! only in the browser that began it, which has a cookie to show for it; so nobody can log in somebody else (login
//! CSRF).

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use url::Url;

use super::failed_logins::{FailedLogins, printable};
use super::rules::{Rules, by_name};
use super::sealer::Sealer;
use crate::auth::{
    Begun, Client, ClientAddress, CodeFlow, Failed, Identity, Known, Session, Sessions, csrf_token, error_code,
};
use crate::clock;
use crate::random::{self, NoRandomness};

/// How long a person may take to log in at the issuer.
const PATIENCE: Duration = Duration::from_secs(600);
/// Longest path that a browser is sent back to, in bytes: it travels within `state`.
const MAX_PATH: usize = 500;
/// Longest code that is passed on to an issuer, in bytes. Entra's are the longest that are usual: about 1,000.
const MAX_CODE: usize = 4096;

/// The cookie that tells which browser began a login.
const BROWSER: Cookie = Cookie { secure: "__Host-larder-login", plain: "larder-login" };
/// The cookie with the identifier of a session.
const SESSION: Cookie = Cookie { secure: "__Host-larder-session", plain: "larder-session" };

/// The names of a cookie. Where the door is asked by https, the name begins with `__Host-`: browsers take such a cookie
/// only from this very host, and over TLS (RFC 6265bis, section 4.1.3.2).
struct Cookie {
    secure: &'static str,
    plain: &'static str,
}

/// Logins on their way, and sessions.
pub struct Browsers {
    sealer: Sealer,
    sessions: Sessions,
    failed: Arc<FailedLogins>,
}

/// A session that a request shows, whose person is still taken.
pub struct Shown {
    /// The identifier of the session.
    id: String,
    pub session: Session,
    pub identity: Identity,
}

/// What `state` holds.
#[derive(Serialize, Deserialize)]
struct State {
    begun: Begun,
    /// The cookie of the browser that began the login.
    browser: String,
    /// The path of the page that the person wanted to see.
    wanted: String,
}

/// The answer to a browser that wants to log in.
pub struct Sent {
    /// The URL at the issuer.
    pub to: Url,
    pub cookie: HeaderValue,
}

/// The answer to a browser whose person logged in.
pub struct LoggedIn {
    pub identity: Identity,
    /// The path of the page that the person wanted to see.
    pub wanted: String,
    pub cookie: HeaderValue,
}

/// The parameters with which a browser comes back from an issuer (RFC 6749, section 4.1.2; RFC 9207).
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Answer {
    state: String,
    code: String,
    error: String,
    iss: Option<String>,
}

/// Why a browser's person is not logged in.
#[derive(Debug, thiserror::Error)]
pub enum NoLogin {
    #[error("there is no login of this name")]
    Unknown,
    #[error(
        "this login was begun in another browser, more than ten minutes ago, or before a restart of the cache; log in again"
    )]
    Strange,
    #[error("the issuer let nobody in ({0})")]
    Declined(String),
    #[error("neither admin.allow nor admin.read names {}", name(.0))]
    NotNamed(Box<Identity>),
    #[error(transparent)]
    Failed(#[from] Failed),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

fn name(identity: &Identity) -> String {
    printable(identity.person().unwrap_or("this login"))
}

impl Browsers {
    /// Makes a `Browsers` without sessions.
    pub fn new(failed: Arc<FailedLogins>) -> Result<Self, NoRandomness> {
        Ok(Self { sealer: Sealer::new()?, sessions: Sessions::default(), failed })
    }

    /// Begins a login by the issuer of this name. `origin`: scheme and host by which the browser asked. `wanted`: the
    /// page that the person wants to see then. `again`: whether the issuer has to ask a person whom it knows.
    pub async fn send(
        &self,
        rules: &Rules,
        (client, headers): (&Client, &HeaderMap),
        (name, origin, wanted): (&str, &str, &str),
        again: bool,
    ) -> Result<Sent, NoLogin> {
        let flow = flow(rules, name).ok_or(NoLogin::Unknown)?;
        // One cookie for all logins that this browser begins: several pages may be open.
        let browser = match BROWSER.of(client, headers).filter(|text| text.len() == 43) {
            Some(known) => known.to_owned(),
            None => random::text()?,
        };
        let begun = flow.begin(format!("{origin}{}", callback(name)))?;
        let state = State { begun, browser, wanted: local(wanted).to_owned() };
        let sealed = self.sealer.seal_value(&state, clock::wall() + PATIENCE).ok_or(NoRandomness)?;
        let to = flow.url(&state.begun, &sealed, again).await.map_err(NoLogin::from);
        let to = to.inspect_err(|why| self.tell(client.address, name, why))?;
        Ok(Sent { to, cookie: BROWSER.set(client, &state.browser, PATIENCE) })
    }

    /// Ends a login: `answer` is what the issuer of this name sent along with the browser. On success there is a new
    /// session, and a session of before is over.
    pub async fn come_back(
        &self,
        rules: &Rules,
        (client, headers): (&Client, &HeaderMap),
        name: &str,
        answer: &Answer,
    ) -> Result<LoggedIn, NoLogin> {
        let told = self.finish(rules, (client, headers), name, answer).await;
        match &told {
            Ok(LoggedIn { identity, .. }) => {
                let user = identity.name();
                let person = identity.person().map(printable);
                tracing::info!(client = %client.address, user, person, issuer = name, "logged in to the dashboard");
            }
            Err(why) => self.tell(client.address, name, why),
        }
        told
    }

    async fn finish(
        &self,
        rules: &Rules,
        (client, headers): (&Client, &HeaderMap),
        name: &str,
        answer: &Answer,
    ) -> Result<LoggedIn, NoLogin> {
        let flow = flow(rules, name).ok_or(NoLogin::Unknown)?;
        let state: State = self.sealer.open_value(&answer.state, clock::wall()).ok_or(NoLogin::Strange)?;
        let browser = BROWSER.of(client, headers).ok_or(NoLogin::Strange)?;
        if !is_same(browser, &state.browser) {
            return Err(NoLogin::Strange);
        }
        // The page that each issuer sends browsers to is its own, so that no issuer gets the code of another.
        if state.begun.login != name {
            return Err(Failed::MixedUp.into());
        }
        flow.is_answer(answer.iss.as_deref()).await?;
        if !answer.error.is_empty() {
            return Err(NoLogin::Declined(error_code(&answer.error).unwrap_or("for a reason of its own").to_owned()));
        }
        if answer.code.is_empty() || answer.code.len() > MAX_CODE {
            return Err(NoLogin::Strange);
        }
        let (claims, id_token) = flow.finish(client.address, &state.begun, &answer.code).await?;
        let identity =
            Identity { address: client.address, known: Some(Known::Bearer(claims.clone())), certificate: None };
        // Whoever may not even look gets no session: there is nothing to do with it.
        if !identity.may_pull(&by_name(&rules.readers), true) {
            return Err(NoLogin::NotNamed(Box::new(identity)));
        }
        if let Some(before) = SESSION.of(client, headers) {
            self.sessions.end(before);
        }
        let id = self.sessions.begin(claims, id_token)?;
        let cookie = SESSION.set(client, &id, flow.session_max_age());
        Ok(LoggedIn { identity, wanted: local(&state.wanted).to_owned(), cookie })
    }

    /// Returns the session that a request shows, if it is not over and its person would still be logged in.
    pub fn shown(&self, rules: &Rules, client: &Client, headers: &HeaderMap) -> Option<Shown> {
        let id = SESSION.of(client, headers)?;
        let session = self.session(rules, id)?;
        let known = Some(Known::Bearer(session.claims.clone()));
        let identity = Identity { address: client.address, known, certificate: None };
        Some(Shown { id: id.to_owned(), session, identity })
    }

    /// Returns whether a person who could look a moment ago still can.
    pub fn may_still_look(&self, rules: &Rules, shown: &Shown) -> bool {
        self.session(rules, &shown.id).is_some() && shown.identity.may_pull(&by_name(&rules.readers), true)
    }

    fn session(&self, rules: &Rules, id: &str) -> Option<Session> {
        let session = self.sessions.get(id)?;
        let flow = flow(rules, &session.claims.issuer)?;
        (session.is_younger(flow.session_max_age()) && flow.still_takes(&session.claims)).then_some(session)
    }

    /// Ends a session. Returns the URL at the issuer that ends the person's session there, if there is one.
    pub async fn end(&self, rules: &Rules, shown: &Shown, back: &str) -> Option<Url> {
        self.sessions.end(&shown.id);
        let user = shown.identity.name();
        tracing::info!(client = %shown.identity.address, user, "logged out of the dashboard");
        flow(rules, &shown.session.claims.issuer)?.end_session(shown.session.id_token.as_ref(), back).await
    }

    /// Notes in the log that a login failed. What only an administrator can mend is told here alone.
    fn tell(&self, client: ClientAddress, issuer: &str, why: &NoLogin) {
        match why {
            NoLogin::Failed(Failed::Issuer(detail)) => self.failed.tell_in_browser(client, issuer, None, detail),
            NoLogin::NotNamed(identity) => self.failed.tell_in_browser(client, issuer, identity.name().as_deref(), why),
            why => self.failed.tell_in_browser(client, issuer, None, why),
        }
    }
}

impl Shown {
    /// Returns the text by which a request proves that it comes from a page of this session.
    pub fn csrf_token(&self) -> String {
        csrf_token(&self.id)
    }

    /// Returns whether a text is [`Self::csrf_token`].
    pub fn has_csrf_token(&self, text: &str) -> bool {
        is_same(text, &self.csrf_token())
    }
}

impl Cookie {
    fn name(&self, client: &Client) -> &'static str {
        if client.is_secure { self.secure } else { self.plain }
    }

    /// Returns the value of this cookie in a request (RFC 6265bis, section 5.8.3).
    fn of<'a>(&self, client: &Client, headers: &'a HeaderMap) -> Option<&'a str> {
        let name = self.name(client);
        // HTTP/2 may split the list into several lines (RFC 9113, section 8.2.3).
        let lines = headers.get_all(COOKIE).iter().filter_map(|line| line.to_str().ok());
        let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
        pairs.find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// Returns the line that sets the cookie. The value is letters, digits, `-` and `_`. `Lax`: a browser that comes
    /// back from an issuer sends it along, a form or script of another site does not.
    fn set(&self, client: &Client, value: &str, max_age: Duration) -> HeaderValue {
        let secure = if client.is_secure { "; Secure" } else { "" };
        let name = self.name(client);
        let text = format!("{name}={value}; Path=/; Max-Age={}; HttpOnly; SameSite=Lax{secure}", max_age.as_secs());
        let mut line = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        line.set_sensitive(true);
        line
    }
}

/// Returns the line that takes the cookie of a session away.
pub fn forget(client: &Client) -> HeaderValue {
    SESSION.set(client, "", Duration::ZERO)
}

/// Returns whether a request shows a session, of whatever age.
pub fn shows_session(client: &Client, headers: &HeaderMap) -> bool {
    SESSION.of(client, headers).is_some()
}

fn flow<'a>(rules: &'a Rules, name: &str) -> Option<&'a Arc<CodeFlow>> {
    rules.logins.as_ref()?.flow(name)
}

/// Returns the path of the page that the issuer of this name sends browsers back to.
pub fn callback(name: &str) -> String {
    format!("{}/callback", begin(name))
}

/// Returns the path of the page that begins a login by the issuer of this name.
pub fn begin(name: &str) -> String {
    // As a part of a path, not of a query: a space is no plus.
    let mut url = Url::parse("http://door/login").ok();
    if let Some(mut parts) = url.as_mut().and_then(|url| url.path_segments_mut().ok()) {
        parts.push(name);
    }
    url.map_or_else(String::new, |url| url.path().to_owned())
}

/// Returns a path and query of this door, or `/` if the text is anything else: nobody is sent to another server, nor
/// round in circles.
pub fn local(text: &str) -> &str {
    let is_path = text.starts_with('/') && !text.starts_with("//") && text.len() <= MAX_PATH;
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let path = text.split(['?', '#']).next().unwrap_or_default();
    let is_login = path == "/login" || path == "/logout" || path.starts_with("/login/");
    if is_path && is_plain && !is_login { text } else { "/" }
}

/// Compares texts in a time that does not depend on where they differ.
fn is_same(a: &str, b: &str) -> bool {
    verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_server_after_a_login() {
        for path in ["/", "/pulls?q=a%20b&status=hit", "/image?reference=hub/team/app:1", "/loginless"] {
            assert_eq!(local(path), path);
        }
        let long = format!("/{}", "x".repeat(MAX_PATH));
        for text in [
            "",
            "pulls",
            "//evil.example",
            "///evil.example",
            "/\\evil.example",
            "\\/evil.example",
            "/\t/evil.example",
            "https://evil.example/",
            "javascript:alert(1)",
            "/a\r\nSet-Cookie: x=y",
            "/ä",
            "/login",
            "/login/company",
            "/login/company?wanted=/",
            "/logout",
            &long,
        ] {
            assert_eq!(local(text), "/", "{text}");
        }
    }

    #[test]
    fn a_cookie_is_found_by_its_whole_name_and_is_kept_from_scripts_and_other_sites() {
        let mut client = Client::connected(([192, 0, 2, 1], 1).into());
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("xlarder-session=a; larder-session=b=c;larder-session2=d"));
        headers.append(COOKIE, HeaderValue::from_static("__Host-larder-session=e"));
        assert_eq!(SESSION.of(&client, &headers), Some("b=c"));
        assert_eq!(BROWSER.of(&client, &headers), None);
        let line = SESSION.set(&client, "x", Duration::from_secs(60));
        assert_eq!(line, "larder-session=x; Path=/; Max-Age=60; HttpOnly; SameSite=Lax");
        client.is_secure = true;
        assert_eq!(SESSION.of(&client, &headers), Some("e"));
        let line = SESSION.set(&client, "x", Duration::from_secs(60));
        assert_eq!(line, "__Host-larder-session=x; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure");
        assert!(line.is_sensitive());
    }

    #[test]
    fn each_login_has_a_path_whatever_its_name_is() {
        for (name, path) in [("company", "/login/company/callback"), ("a/b?c", "/login/a%2Fb%3Fc/callback")] {
            assert_eq!(callback(name), path);
        }
    }
}
