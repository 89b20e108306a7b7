//! `Authorization` (RFC 9110, section 11.6.2): the credentials that a client sends.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};

use super::refusal::Challenge;
use super::sealer::{self, Sealer};
use crate::clock;
use crate::upstream::Who;

/// Longest `Authorization` that is read, in bytes.
pub const MAX_AUTHORIZATION: usize = 16 * 1024;

/// Returns the credentials of a request. Fails if they cannot be read, or are an expired token of Larder.
pub fn credentials(headers: &HeaderMap, sealer: &Sealer) -> Result<Who, Challenge> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Ok(Who::Anonymous);
    };
    if value.len() > MAX_AUTHORIZATION {
        tracing::info!(bytes = value.len(), most = MAX_AUTHORIZATION, "an Authorization is too long to be looked at");
        return Err(Challenge::Invalid);
    }
    let (scheme, rest) = value.to_str().ok().and_then(|text| text.split_once(' ')).ok_or(Challenge::Invalid)?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = BASE64_STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
        return match pair {
            Some(("", "")) => Ok(Who::Anonymous),
            Some((name, password)) => Ok(sealer::login(name.to_owned(), password.to_owned())),
            None => Err(Challenge::Invalid),
        };
    }
    if scheme.eq_ignore_ascii_case("bearer") && rest.starts_with(sealer::PREFIX) {
        return sealer.open(rest, clock::wall()).ok_or(Challenge::Invalid);
    }
    // For instance a token from the upstream's own token service.
    let mut value = value.clone();
    value.set_sensitive(true);
    Ok(Who::Header(value))
}

/// Returns the token of `Bearer TOKEN`.
pub fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
