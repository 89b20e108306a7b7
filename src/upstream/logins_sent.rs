//! The secrets that log in at an upstream. Larder looks for them in texts of the upstream, so that a text that repeats
//! part of a secret reaches no client and no log.
//!
//! Debugging pages and careless services echo what they were sent: `invalid token: eyJ…`,
//! `bad credentials user:password`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use percent_encoding::percent_decode_str;

use crate::config::Login;

/// Number of recently sent secrets that are remembered.
const LATELY: usize = 256;
/// The shortest secret that is looked for, in bytes: a shorter one is in any text.
const LEAST: usize = 4;
/// Of a secret longer than this (in bytes), the beginning and the end are looked for: a text may repeat only a part of
/// it.
const LONG: usize = 40;
/// Length of that beginning and of that end, in bytes.
const PART: usize = 16;

/// The secrets that log in at one upstream.
#[derive(Default)]
pub struct LoginsSent {
    /// The secrets of the configuration.
    fixed: Vec<String>,
    lately: Mutex<VecDeque<String>>,
}

impl LoginsSent {
    /// Takes the secrets from the configuration: a user name and password, and the values of headers.
    pub fn new<'a>(login: Option<&Login>, headers: impl Iterator<Item = &'a HeaderValue>) -> Self {
        let mut fixed: Vec<_> = headers.filter_map(|value| value.to_str().ok()).flat_map(of_header).collect();
        if let Some(login) = login {
            fixed.extend(of_pair(&format!("{}:{}", login.username, login.password.reveal())));
        }
        fixed.retain(|secret| secret.len() >= LEAST);
        Self { fixed, lately: Mutex::default() }
    }

    /// Remembers the secrets in an `Authorization` that is sent.
    pub fn note(&self, authorization: &HeaderValue) {
        authorization.to_str().into_iter().flat_map(of_header).for_each(|secret| self.note_secret(secret));
    }

    /// Remembers the secrets in the form of a request for a token.
    pub fn note_form(&self, form: &str) {
        let pairs = url::form_urlencoded::parse(form.as_bytes());
        let secrets = pairs.filter(|(key, _)| matches!(&**key, "password" | "refresh_token"));
        secrets.for_each(|(_, value)| self.note_secret(value.into_owned()));
    }

    fn note_secret(&self, secret: String) {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        if secret.len() < LEAST || lately.contains(&secret) {
            return;
        }
        if lately.len() >= LATELY {
            lately.pop_front();
        }
        lately.push_back(secret);
    }

    /// Returns whether a text repeats one of the secrets, or shows any login at all.
    pub fn are_in(&self, text: &str) -> bool {
        if shows_a_login(text) {
            return true;
        }
        let decoded = percent_decode_str(text).decode_utf8_lossy();
        let plain = decoded.replace('\\', "");
        let repeats = |secret: &String| {
            let has = |part: &str| [text, &*decoded, &*plain].iter().any(|text| text.contains(part));
            match (secret.get(..PART), secret.get(secret.len().saturating_sub(PART)..)) {
                (Some(begin), Some(end)) if secret.len() > LONG => has(begin) || has(end),
                _ => has(secret),
            }
        };
        let lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        self.fixed.iter().chain(lately.iter()).any(repeats)
    }
}

/// Words that are no login although they follow the name of a scheme: `bearer token required`.
const NO_LOGIN: [&str; 8] =
    ["token", "tokens", "auth", "authentication", "authorization", "credentials", "realm", "challenge"];

/// Returns whether a text shows anybody's login: a header `Authorization`, or credentials after the name of a scheme.
fn shows_a_login(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let words: Vec<_> = lower.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';')).collect();
    words.windows(2).any(|pair| {
        let is_header = pair[0] == "authorization:" || pair[0] == "authorization=";
        let next = pair[1].trim_end_matches(['.', '!', '?', ':', ')']);
        let is_login = matches!(pair[0], "bearer" | "basic") && !next.is_empty() && !NO_LOGIN.contains(&next);
        is_header || is_login
    })
}

/// Returns the secrets in a header's value: the whole value, the part after a scheme, a user name and password in that
/// part, and the values of cookies and parameters.
fn of_header(value: &str) -> Vec<String> {
    let mut secrets = vec![value.to_owned()];
    let parts = value.split([' ', ';', ',']).map(|part| part.split_once('=').map_or(part, |(_, value)| value));
    let parts = parts.filter(|part| part.len() >= 6 && !part.eq_ignore_ascii_case("bearer"));
    secrets.extend(parts.map(str::to_owned));
    if let Some((scheme, rest)) = value.split_once(' ') {
        secrets.push(rest.trim().to_owned());
        let pair = BASE64_STANDARD.decode(rest.trim()).ok().and_then(|pair| String::from_utf8(pair).ok());
        if let Some(pair) = pair.filter(|_| scheme.eq_ignore_ascii_case("basic")) {
            secrets.extend(of_pair(&pair));
        }
    }
    secrets
}

fn of_pair(pair: &str) -> Vec<String> {
    let password = pair.split_once(':').map(|(_, password)| password.to_owned());
    let mut secrets = vec![pair.to_owned(), BASE64_STANDARD.encode(pair)];
    secrets.extend(password);
    secrets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn a_text_that_repeats_a_secret_in_whatever_form_is_found() {
        let headers =
            [HeaderValue::from_static("session=c00kie-value; theme=dark"), HeaderValue::from_static("key-123")];
        let sent = LoginsSent::new(Some(&Login::new("svc-user", Secret::new("Tr0ub4dor/3xyz"))), headers.iter());
        let token = format!("eyJhbGciOi{}", "x".repeat(300));
        sent.note(&HeaderValue::try_from(format!("Bearer {token}")).expect("a value"));
        sent.note(&HeaderValue::from_static("Basic Ym9iOmh1bnRlcjI="));
        sent.note_form("grant_type=password&username=me&password=s%26cret");
        for echo in [
            "bad credentials svc-user:Tr0ub4dor/3xyz",
            "wrong password Tr0ub4dor/3xyz for svc-user",
            "wrong password Tr0ub4dor%2F3xyz",
            r"wrong password Tr0ub4dor\/3xyz",
            "got c3ZjLXVzZXI6VHIwdWI0ZG9yLzN4eXo=",
            "no session c00kie-value",
            "unknown key-123",
            &format!("invalid token: {token}"),
            "invalid token: eyJhbGciOixxxxxx...",
            "who is bob:hunter2",
            "hunter2 is wrong",
            "Ym9iOmh1bnRlcjI=",
            "password s&cret",
            "you sent Authorization: …",
            "got Bearer abc",
            "got Basic ab",
        ] {
            assert!(sent.are_in(echo), "{echo}");
        }
        for harmless in [
            "you need a licence",
            "svc-user may not pull this",
            "denied: requested access to the resource is denied",
            // Amazon ECR, Azure ACR
            "Your authorization token has expired. Reauthenticate and try again.",
            "authentication required, visit https://aka.ms/acr/authorization for more information.",
            "a bearer token is required",
            "basic auth failed",
            "the session has expired",
            "",
        ] {
            assert!(!sent.are_in(harmless), "{harmless}");
        }
    }

    #[test]
    fn few_are_remembered_however_many_are_sent() {
        let sent = LoginsSent::default();
        for number in 0..1000 {
            sent.note(&HeaderValue::try_from(format!("Bearer token-{number:05}")).expect("a value"));
        }
        assert!(sent.lately.lock().expect("not poisoned").len() <= LATELY);
        assert!(sent.are_in("token-00999") && !sent.are_in("token-00001"));
    }
}
