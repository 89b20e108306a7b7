//! One request's client, under the rules that the request came in by.

use std::sync::Arc;

use http::HeaderValue;
use http::request::Parts;

use super::authorization::bearer;
use super::host::AskedHost;
use super::refusal::Refusal;
use super::rules::Rules;
use crate::auth::{Client, Identity, Logins};
use crate::upstream::Who;

/// A client that may connect. Whether it may read something is asked later, of each repository.
pub struct Caller {
    pub rules: Arc<Rules>,
    client: Client,
    /// The name by which it asked, if that is none of ours.
    foreign_name: Option<AskedHost>,
}

impl Caller {
    /// The client of a request of the registry door. Fails where its address may not connect, or where it cannot be told
    /// which host it asks.
    pub fn of(rules: &Arc<Rules>, request: &Parts) -> Result<Self, Refusal> {
        let host = AskedHost::of(request.version, &request.uri, &request.headers)?;
        let client = request.extensions.get::<Client>().ok_or(Refusal::Forbidden)?.clone();
        let foreign_name = host.filter(|host| rules.is_foreign_name(host, &client));
        Ok(Self { foreign_name, ..Self::new(rules, client)? })
    }

    /// The same where no host is asked.
    pub fn new(rules: &Arc<Rules>, client: Client) -> Result<Self, Refusal> {
        match rules.lets_in(&client) {
            true => Ok(Self { rules: rules.clone(), client, foreign_name: None }),
            false => Err(Refusal::Forbidden),
        }
    }

    /// Whether this server is meant. A page of anywhere can have its own name lead to this machine, and its browser would
    /// be served as a client of this machine. To be asked once it is known that the client may read: a client that has to
    /// log in first is told that.
    pub fn means_us(&self) -> Result<(), Refusal> {
        match &self.foreign_name {
            Some(name) => Err(Refusal::StrangeName(name.to_string())),
            None => Ok(()),
        }
    }

    /// Whether clients can log in here, other than at an upstream.
    pub fn has_logins(&self) -> bool {
        self.rules.logins.is_some()
    }

    /// Whether a credential says that it is a token of an issuer of ours.
    pub fn is_own_token(&self, who: &Who) -> bool {
        let token = match who {
            Who::Login(login) => Some(login.password.reveal()),
            Who::Header(value) => bearer(value),
            Who::Anonymous | Who::Larder => None,
        };
        let logins = self.rules.logins.as_ref();
        token.zip(logins).is_some_and(|(token, logins)| logins.knows_issuer_of(token))
    }

    /// The client as it is without a login.
    pub fn stranger(&self) -> Identity {
        let certificate = self.client.certificate.clone();
        Identity { address: self.client.address, known: None, certificate }
    }

    /// Whether some clients are served without a login and others not, so that clients have to find out which they are:
    /// by way of tokens, which every client asks for, with a login or without.
    fn is_mixed(&self) -> bool {
        let stranger = self.stranger();
        let has_logins = self.has_logins();
        let mut repositories = self.rules.routing.repositories().iter().map(|repository| &repository.config);
        repositories.any(|config| config.client_consent.is_some() || stranger.may_pull(&config.allow, has_logins))
    }

    /// The challenge for a client that is to log in with a name and password; `None` where tokens are better.
    pub fn basic(&self) -> Option<HeaderValue> {
        basic(self.rules.logins.as_deref().filter(|_| !self.is_mixed())?)
    }
}

/// A challenge to log in with a name and password.
pub fn basic(logins: &Logins) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("Basic realm=\"{}\"", logins.realm())).ok()
}
