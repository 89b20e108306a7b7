//! `[auth.oidc]`, checked: the issuers whose tokens are trusted, and the logins to the dashboard by them.

use std::time::Duration;

use url::Url;

use super::check::Check;
use super::credentials::read_password;
use super::error::ConfigError;
use super::proxy::Proxies;
use super::raw;
use super::secret::Secret;
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
    /// How people log in to the dashboard by this issuer, if they can.
    pub login: Option<BrowserLogin>,
}

/// How people log in to the dashboard by an issuer: OpenID Connect's authorization code flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrowserLogin {
    /// Larder's name at the issuer, which is also the audience of the ID tokens.
    pub client_id: String,
    /// `None`: Larder is a public client there.
    pub client_secret: Option<Secret>,
    /// The scopes that are asked for, with spaces between them; `openid` is one.
    pub scopes: String,
    /// How long a login lasts.
    pub session_max_age: Duration,
    /// The document that names the issuer's endpoints (OpenID Connect Discovery).
    pub document: Url,
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
        let issuer = check_one(check, &name, written, proxies).map_err(|(key, message)| match key.split_once('.') {
            Some((table, key)) => check.invalid(&["auth", "oidc", &name, table, key], message),
            None => invalid(key, message),
        })?;
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
    let document = format!("{}/.well-known/openid-configuration", written.issuer.trim_end_matches('/'));
    let document = Url::parse(&document).map_err(|error| ("issuer", error.to_string()))?;
    let keys = match written.jwks_uri.as_str() {
        "" => Keys::Discovered(document.clone()),
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
    let login = written.login.map(|login| {
        let access = WebAccess::new(check, &document, written.server_ca_bundle.as_deref(), proxies);
        let access = access.map_err(|message| ("server_ca_bundle", message))?;
        check_login(check, login, document, access)
    });
    Ok(Issuer {
        name: name.to_owned(),
        issuer: written.issuer,
        audience,
        keys,
        required,
        access,
        login: login.transpose()?,
    })
}

fn check_login(
    check: &Check<'_>,
    written: raw::OidcLogin,
    document: Url,
    access: WebAccess,
) -> Result<BrowserLogin, (&'static str, String)> {
    const SHORTEST: Duration = Duration::from_secs(60);
    if written.client_id.is_empty() {
        let message = "it is missing; write the name that Larder is registered with at the issuer, such as \"larder\"";
        return Err(("login.client_id", message.to_owned()));
    }
    let client_secret = match (written.client_secret.is_empty(), &written.client_secret_file) {
        (false, Some(_)) => {
            let message = "`client_secret` gives the secret already; remove one of them";
            return Err(("login.client_secret_file", message.to_owned()));
        }
        (true, Some(path)) => {
            Some(read_password(check, path).map_err(|message| ("login.client_secret_file", message))?)
        }
        (false, None) => Some(written.client_secret),
        (true, None) => None,
    };
    // RFC 6749, section 3.3.
    let is_scope =
        |scope: &String| !scope.is_empty() && scope.bytes().all(|b| b.is_ascii_graphic() && !b"\"\\".contains(&b));
    if let Some(scope) = written.scopes.iter().find(|scope| !is_scope(scope)) {
        return Err((
            "login.scopes",
            format!("`{scope}` is no scope; write each as a text of its own, without spaces"),
        ));
    }
    let mut scopes = written.scopes;
    if !scopes.iter().any(|scope| scope == "openid") {
        scopes.insert(0, "openid".to_owned());
    }
    if written.session_max_age.0 < SHORTEST {
        let message = "a login would end at once; write for example \"12h\"";
        return Err(("login.session_max_age", message.to_owned()));
    }
    Ok(BrowserLogin {
        client_id: written.client_id,
        client_secret,
        scopes: scopes.join(" "),
        session_max_age: written.session_max_age.0,
        document,
        access,
    })
}
