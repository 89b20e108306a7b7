//! Who a client is, and whether the client may pull.

mod address;
mod certificate;
mod claims;
mod client;
mod code_flow;
mod document;
mod guesses;
mod issuer;
mod logins;
mod passwords;
mod sessions;
mod turns;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

pub use address::ClientAddress;
pub use certificate::CertificateNames;
pub use claims::Claims;
pub use client::{Client, ShownAddress, counted_client, is_secure};
pub use code_flow::{Begun, CodeFlow, Failed, error_code};
pub use logins::{Credential, Known, Logins};
pub use sessions::{Session, Sessions, csrf_token};

use crate::config::Allow;

/// Why a login is not checked now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    #[error("too many logins at once; try again soon")]
    Busy,
    #[error("too many logins from this address at once; try again in a moment")]
    Crowded,
    #[error("too many wrong logins from this address; try again later")]
    Guessing(Duration),
    #[error("the keys of `{0}`, whose token this is, cannot be fetched; see the log of the cache")]
    Issuer(Arc<str>),
}

/// The facts known about a client.
#[derive(Clone, Debug)]
pub struct Identity {
    pub address: ClientAddress,
    /// The identity that the client logged in with, if it did.
    pub known: Option<Known>,
    /// The names of a certificate that one of the configured authorities signed.
    pub certificate: Option<Arc<CertificateNames>>,
}

impl Identity {
    /// Returns the client's name for the log, written as in `allow`.
    pub fn name(&self) -> Option<String> {
        match (&self.known, &self.certificate) {
            (Some(Known::User(name)), _) => Some(format!("user:{name}")),
            (Some(Known::Bearer(claims)), _) => Some(format!("oidc:{}:sub={}", claims.issuer, claims.subject())),
            (None, Some(names)) => names.first().map(|name| format!("cert:{name}")),
            (None, None) => None,
        }
    }

    /// Returns the name by which a person is shown, if the client logged in with a token.
    pub fn person(&self) -> Option<&str> {
        match &self.known {
            Some(Known::Bearer(claims)) => Some(claims.person()),
            _ => None,
        }
    }

    /// Returns whether `allow` lets this client pull. `has_logins`: whether clients can log in at all.
    pub fn may_pull(&self, allow: &[Allow], has_logins: bool) -> bool {
        let is_known = self.known.is_some() || self.certificate.is_some();
        let user = match &self.known {
            Some(Known::User(name)) => Some(&**name),
            _ => None,
        };
        let claims = match &self.known {
            Some(Known::Bearer(claims)) => Some(claims),
            _ => None,
        };
        allow.iter().any(|entry| match entry {
            Allow::Anyone => is_known || !has_logins,
            Allow::Anonymous => true,
            Allow::User(name) => user == Some(name),
            Allow::Token { issuer, rule } => claims.is_some_and(|claims| {
                *claims.issuer == **issuer && rule.as_ref().is_none_or(|rule| claims.fulfil(rule))
            }),
            Allow::Certificate(pattern) => self.certificate.as_ref().is_some_and(|names| names.is_named(pattern)),
            Allow::Organisation(name) => self.certificate.as_ref().is_some_and(|names| names.is_of(name)),
            Allow::Network(network) => self.address.is_in(network),
        })
    }
}

/// Returns the address that a client is counted by. A client with an IPv6 address has a whole /64, so it is counted by
/// that.
pub fn counted_as(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_entry_lets_in_whom_it_names() {
        let identity = |user: Option<&str>, common_name: Option<&str>, address: &str| Identity {
            address: address.parse::<IpAddr>().expect("an address").into(),
            known: user.map(|name| Known::User(name.into())),
            certificate: common_name.map(|name| Arc::new(CertificateNames::named(name))),
        };
        let (nobody, bob) = (identity(None, None, "192.0.2.1"), identity(Some("bob"), None, "192.0.2.1"));
        let (ci, inside) = (identity(None, Some("ci.example"), "192.0.2.1"), identity(None, None, "::ffff:10.1.2.3"));
        let may = |who: &Identity, entry: Allow, has_logins: bool| who.may_pull(&[entry], has_logins);
        assert!(may(&nobody, Allow::Anyone, false) && !may(&nobody, Allow::Anyone, true));
        assert!(may(&bob, Allow::Anyone, true) && may(&ci, Allow::Anyone, true));
        assert!(may(&nobody, Allow::Anonymous, true));
        assert!(may(&bob, Allow::User("bob".to_owned()), true) && !may(&bob, Allow::User("bo".to_owned()), true));
        assert!(may(&ci, Allow::Certificate("*.example".to_owned()), true));
        assert!(!may(&bob, Allow::Certificate("*".to_owned()), true), "no certificate");
        let network = || Allow::Network("10.0.0.0/8".parse().expect("a network"));
        assert!(may(&inside, network(), true) && !may(&bob, network(), true));
        let hidden = Identity { address: ClientAddress::Unknown, ..inside };
        assert!(!may(&hidden, network(), true) && may(&hidden, Allow::Anonymous, true));
        assert!(!may(&hidden, Allow::Network("0.0.0.0/0".parse().expect("a network")), true));
        assert!(!bob.may_pull(&[], true));
    }
}
