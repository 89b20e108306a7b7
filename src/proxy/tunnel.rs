//! Connections through the proxy door: whose they are, where they lead, and whether they would be opened now. A tunnel
//! lasts, and rules change.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::refused::Refused;
use super::rules::ProxyRules;
use crate::access::{Caller, Rules};
use crate::auth::{Client, Identity, Logins};
use crate::upstream::Place;

/// How a request came to the door.
#[derive(Clone)]
pub enum Came {
    /// In absolute form, by itself.
    Open,
    /// Through a tunnel.
    Through { is_secure: bool, tunnel: Box<Tunnel> },
}

/// What goes on as long as anything of a connection does.
#[derive(Clone)]
pub struct Kept {
    /// The connection's place among all others.
    pub place: Arc<dyn Send + Sync>,
    /// Says when all connections are to end.
    pub stop: watch::Receiver<Option<Duration>>,
}

/// What to do with a tunnel.
pub enum Lead {
    /// Find out what it is, and answer it if it is HTTP.
    Open(Tunnel),
    /// Carry what comes.
    Carry(Tunnel, TcpStream),
}

/// As whom a client was let in, with what it takes to ask that again: what it showed is not kept.
#[derive(Clone)]
pub struct Standing {
    pub client: Client,
    pub identity: Identity,
    /// Those who found its login right.
    logins: Option<Arc<Logins>>,
}

/// A connection through the door: whose it is, and where it leads.
#[derive(Clone)]
pub struct Tunnel {
    pub standing: Standing,
    pub place: Place,
    /// The address of the server, where it is known.
    pub address: Option<IpAddr>,
}

impl Standing {
    pub fn new(rules: &Rules, client: Client, identity: Identity) -> Self {
        Self { client, identity, logins: rules.logins.clone() }
    }

    /// As whom the client is let in by the rules of now. A login counts as long as it would: the user has the same
    /// password, or the token's issuer is configured the same and the token has not ended.
    pub fn judge(&self, now: &ProxyRules) -> Result<Self, Refused> {
        let caller = Caller::new(&now.rules, self.client.clone()).map_err(|_| Refused::NotYou)?;
        let known = self.identity.known.clone().filter(|known| match (&now.rules.logins, &self.logins) {
            (Some(logins), Some(before)) => logins.still_know(before, known),
            _ => false,
        });
        let identity = Identity { known, ..caller.stranger() };
        match identity.may_pull(&now.door.allow, caller.has_logins()) {
            true => Ok(Self { identity, ..self.clone() }),
            false => Err(Refused::NotYou),
        }
    }
}
