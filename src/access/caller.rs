//! The client of one request, under the rules by which the request came in.

use std::sync::Arc;

use http::HeaderValue;
use http::request::Parts;

use super::authorization::bearer;
use super::host::AskedHost;
use super::refusal::Refusal;
use super::rules::Rules;
use crate::auth::{Client, Identity, Logins};
use crate::upstream::Who;

/// A client that may connect. Whether it may read a repository is checked later, for each repository.
pub struct Caller {
    pub rules: Arc<Rules>,
    client: Client,
    /// The name of the host that the client asked, if Larder has no such name.
    foreign_name: Option<AskedHost>,
}

impl Caller {
    /// Returns the client of a request of the registry door. Fails if its address may not connect, or if the request
    /// does not tell clearly which host it asks.
    pub fn of(rules: &Arc<Rules>, request: &Parts) -> Result<Self, Refusal> {
        let host = AskedHost::of(request.version, &request.uri, &request.headers)?;
        let client = request.extensions.get::<Client>().ok_or(Refusal::Forbidden)?.clone();
        let foreign_name = host.filter(|host| rules.is_foreign_name(host, &client));
        Ok(Self { foreign_name, ..Self::new(rules, client)? })
    }

    /// Returns the client of a request that names no host. Fails if its address may not connect.
    pub fn new(rules: &Arc<Rules>, client: Client) -> Result<Self, Refusal> {
        match rules.lets_in(&client) {
            true => Ok(Self { rules: rules.clone(), client, foreign_name: None }),
            false => Err(Refusal::Forbidden),
        }
    }

    /// Fails if the request may be meant for another server. A web page from anywhere can have its own name resolve to
    /// this machine; the browser that shows the page would then be served as a client of this machine. Call this once
    /// it is known that the client may read: a client that has to log in first is told that.
    pub fn means_us(&self) -> Result<(), Refusal> {
        match &self.foreign_name {
            Some(name) => Err(Refusal::StrangeName(name.to_string())),
            None => Ok(()),
        }
    }

    /// Returns whether clients can log in at Larder itself, not only at an upstream.
    pub fn has_logins(&self) -> bool {
        self.rules.logins.is_some()
    }

    /// Returns whether a credential claims to be a token of one of the configured issuers.
    pub fn is_own_token(&self, who: &Who) -> bool {
        let token = match who {
            Who::Login(login) => Some(login.password.reveal()),
            Who::Header(value) => bearer(value),
            Who::Anonymous | Who::Larder => None,
        };
        let logins = self.rules.logins.as_ref();
        token.zip(logins).is_some_and(|(token, logins)| logins.knows_issuer_of(token))
    }

    /// Returns the client as it is without a login.
    pub fn stranger(&self) -> Identity {
        let certificate = self.client.certificate.clone();
        Identity { address: self.client.address, known: None, certificate }
    }

    /// Returns whether some clients are served without a login and others are not. Clients then have to find out which
    /// they are, by way of tokens: every client asks for those, with a login or without.
    fn is_mixed(&self) -> bool {
        let stranger = self.stranger();
        let has_logins = self.has_logins();
        let mut repositories = self.rules.routing.repositories().iter().map(|repository| &repository.config);
        repositories.any(|config| config.client_consent.is_some() || stranger.may_pull(&config.allow, has_logins))
    }

    /// Returns the challenge for a login by name and password; `None` if tokens are better.
    pub fn basic(&self) -> Option<HeaderValue> {
        basic(self.rules.logins.as_deref().filter(|_| !self.is_mixed())?)
    }
}

/// Returns a challenge to log in by name and password.
pub fn basic(logins: &Logins) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("Basic realm=\"{}\"", logins.realm())).ok()
}
