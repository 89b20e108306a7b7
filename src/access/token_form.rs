//! Logging in by a form: `POST /token` as in OAuth 2 (RFC 6749, sections 4.3 and 6). containerd, Docker, BuildKit and
//! ORAS send it when they have a name and password or an identity token.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use http::request::Parts;
use http_body_util::{BodyExt, Limited};

use crate::sent::Sent;

/// Longest form that is read, in bytes.
const MAX_FORM: usize = 32 * 1024;
/// How long Larder waits for the form.
const PATIENCE: Duration = Duration::from_secs(10);
/// The user name that stands for an identity token where only names and passwords are known, as in Docker's credential
/// helpers.
const IDENTITY_TOKEN: &str = "<token>";

/// Why a form brings no token (RFC 6749, section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongForm {
    #[error("the form of a token request could not be read, or has more than 32 KiB")]
    Unreadable,
    #[error("the form of a token request has no usable {0}")]
    Missing(&'static str),
    #[error("this token service knows the grant types password and refresh_token")]
    Grant,
}

impl WrongForm {
    /// Returns the error code of RFC 6749.
    pub fn code(self) -> &'static str {
        match self {
            Self::Unreadable | Self::Missing(_) => "invalid_request",
            Self::Grant => "unsupported_grant_type",
        }
    }
}

/// What a form asks for, except for the credentials.
#[derive(Clone)]
pub struct Form {
    pub scope: Option<String>,
}

/// Reads the form, and puts its credentials into `Authorization`, where a GET has them.
pub async fn read(request: &mut Parts, body: Sent) -> Result<Form, WrongForm> {
    let whole = Limited::new(body, MAX_FORM).collect();
    let read = tokio::time::timeout(PATIENCE, whole).await.map_err(|_| WrongForm::Unreadable)?;
    let (login, form) = parse(&read.map_err(|_| WrongForm::Unreadable)?.to_bytes())?;
    request.headers.insert(AUTHORIZATION, login);
    Ok(form)
}

fn parse(bytes: &[u8]) -> Result<(HeaderValue, Form), WrongForm> {
    let value = |wanted: &'static str| {
        let mut pairs = url::form_urlencoded::parse(bytes);
        let found = pairs.find(|(key, value)| key == wanted && !value.is_empty());
        found.map(|(_, value)| value.into_owned()).ok_or(WrongForm::Missing(wanted))
    };
    let (name, password) = match value("grant_type")?.as_str() {
        "password" => (value("username")?, value("password")?),
        "refresh_token" => (IDENTITY_TOKEN.to_owned(), value("refresh_token")?),
        _ => return Err(WrongForm::Grant),
    };
    // A user name contains no colon (RFC 7617, section 2).
    if name.contains(':') {
        return Err(WrongForm::Missing("username"));
    }
    let login = format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")));
    let mut login = HeaderValue::try_from(login).map_err(|_| WrongForm::Unreadable)?;
    login.set_sensitive(true);
    Ok((login, Form { scope: value("scope").ok() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_stands_for_a_login() {
        for (form, expected) in [
            ("grant_type=password&username=me&password=a%26b%3A", Ok("me:a&b:")),
            ("username=&username=me&grant_type=password&password=x&password=y", Ok("me:x")),
            ("grant_type=refresh_token&refresh_token=abc", Ok("<token>:abc")),
            ("grant_type=password&username=me", Err(WrongForm::Missing("password"))),
            ("grant_type=password&username=a%3Ab&password=x", Err(WrongForm::Missing("username"))),
            ("grant_type=authorization_code&code=x", Err(WrongForm::Grant)),
            ("\u{1}\u{ff}", Err(WrongForm::Missing("grant_type"))),
            ("", Err(WrongForm::Missing("grant_type"))),
        ] {
            let expected = expected.map(|pair| format!("Basic {}", BASE64_STANDARD.encode(pair)));
            let read = parse(form.as_bytes()).map(|(login, _)| login.to_str().expect("text").to_owned());
            assert_eq!(read, expected, "{form}");
        }
    }
}
