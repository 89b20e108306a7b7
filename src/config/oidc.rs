//! `[auth.oidc]`, checked: the issuers whose tokens are trusted.

use url::Url;

use super::check::Check;
use super::error::ConfigError;
use super::proxy::Proxies;
use super::raw;
use super::web::{WebAccess, trusted_url};

/// An issuer of tokens (OpenID Connect).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// The issuer's name in the configuration.
    pub name: String,
    /// The claim `iss` of its tokens.
    pub issuer: String,
    /// A token has to be for at least one of these audiences; never empty.
    pub audience: Vec<String>,
    /// Where the issuer's keys are.
    pub keys: Keys,
    /// Claims that its tokens have to make.
    pub required: Vec<ClaimRule>,
    pub access: WebAccess,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// In the document that names their address (OpenID Connect Discovery).
    Discovered(Url),
    /// At this address.
    At(Url),
}

/// A claim and the values that are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimRule {
    /// The name of the claim, or names with dots between them for a claim within other claims.
    pub claim: String,
    /// The claim has to have one of these values; each may end with `*`.
    pub values: Vec<String>,
}

/// Checks `[auth.oidc]`. No two tables may have the same issuer.
pub fn check_all(
    check: &Check<'_>,
    written: raw::InOrder<raw::Oidc>,
    proxies: &Proxies,
) -> Result<Vec<Issuer>, ConfigError> {
    let mut issuers: Vec<Issuer> = Vec::new();
    for (name, written) in written.0 {
        let invalid = |key: &str, message: String| match key {
            "" => check.invalid(&["auth", "oidc", &name], message),
            key => check.invalid(&["auth", "oidc", &name, key], message),
        };
        if name.is_empty() || name.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control()) {
            return Err(invalid("", "a name without colons and spaces is needed: allow = [\"oidc:NAME\"]".to_owned()));
        }
        let issuer = check_one(check, &name, written, proxies).map_err(|(key, message)| invalid(key, message))?;
        if let Some(other) = issuers.iter().find(|other| other.issuer == issuer.issuer) {
            let message = format!("`{}` has the same; one table for each issuer", other.name);
            return Err(invalid("issuer", message));
        }
        issuers.push(issuer);
    }
    Ok(issuers)
}

fn check_one(
    check: &Check<'_>,
    name: &str,
    written: raw::Oidc,
    proxies: &Proxies,
) -> Result<Issuer, (&'static str, String)> {
    const EXAMPLE: &str = "\"https://token.actions.githubusercontent.com\"";
    if written.issuer.is_empty() {
        return Err(("issuer", format!("it is missing; write for example {EXAMPLE}")));
    }
    let url = trusted_url(&written.issuer, EXAMPLE).map_err(|message| ("issuer", message))?;
    let audience = written.audience.0;
    if audience.is_empty() || audience.iter().any(String::is_empty) {
        let message = "it is missing: tokens for others would be taken, too; write for example \"larder\", and have tokens made for it";
        return Err(("audience", message.to_owned()));
    }
    let keys = match written.jwks_uri.as_str() {
        "" => {
            let document = format!("{}/.well-known/openid-configuration", written.issuer.trim_end_matches('/'));
            Keys::Discovered(Url::parse(&document).map_err(|error| ("issuer", error.to_string()))?)
        }
        text => {
            Keys::At(trusted_url(text, "\"https://issuer.example/jwks\"").map_err(|message| ("jwks_uri", message))?)
        }
    };
    let mut required = Vec::new();
    for (claim, values) in written.required_claims.0 {
        if claim.is_empty() || values.0.is_empty() {
            let message = "write a claim and its value, or a list of which one is enough";
            return Err(("required_claims", message.to_owned()));
        }
        required.push(ClaimRule { claim, values: values.0 });
    }
    let asked = match &keys {
        Keys::At(url) => url,
        Keys::Discovered(_) => &url,
    };
    let access = WebAccess::new(check, asked, written.server_ca_bundle.as_deref(), proxies);
    let access = access.map_err(|message| ("server_ca_bundle", message))?;
    Ok(Issuer { name: name.to_owned(), issuer: written.issuer, audience, keys, required, access })
}
