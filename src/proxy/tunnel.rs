//! Connections through the proxy door: which client has them, where they lead, and whether they would be allowed now. A
//! tunnel lasts, and rules change.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::refused::Refused;
use super::rules::ProxyRules;
use crate::access::{Caller, Rules};
use crate::auth::{Client, Identity, Logins};
use crate::upstream::Server;

/// How a request came to the door.
#[derive(Clone)]
pub enum Came {
    /// Directly, in absolute form.
    Open,
    /// Through a tunnel.
    Through { is_secure: bool, tunnel: Box<Tunnel> },
}

/// State of a connection that has to live as long as any part of the connection does.
#[derive(Clone)]
pub struct Kept {
    /// The connection's place among all others.
    pub place: Arc<dyn Send + Sync>,
    /// Notified when all connections are to end.
    pub stop: watch::Receiver<Option<Duration>>,
}

/// What to do with a tunnel.
pub enum Lead {
    /// Find out which protocol it carries, and answer its requests if that is HTTP.
    Open(Tunnel),
    /// Carry all bytes.
    Carry(Tunnel, TcpStream),
}

/// The identity by which a client was let in, with what is needed to check it again. The credentials themselves are not
/// kept.
#[derive(Clone)]
pub struct Admission {
    pub client: Client,
    pub identity: Identity,
    /// The logins that accepted the client's credentials.
    logins: Option<Arc<Logins>>,
}

/// A connection through the door: its client, and where it leads.
#[derive(Clone)]
pub struct Tunnel {
    pub admission: Admission,
    pub server: Server,
    /// The address of the server, if known.
    pub address: Option<IpAddr>,
}

impl Admission {
    /// Creates the admission of a client that was just let in.
    pub fn new(rules: &Rules, client: Client, identity: Identity) -> Self {
        Self { client, identity, logins: rules.logins.clone() }
    }

    /// Checks a client again by the rules in force now. A login counts as long as it would be accepted: the user has
    /// the same password, or the configuration of the token's issuer is the same and the token has not expired.
    pub fn judge(&self, now: &ProxyRules) -> Result<Self, Refused> {
        let caller = Caller::new(&now.for_all, self.client.clone()).map_err(|_| Refused::NotYou)?;
        let known = self.identity.known.clone().filter(|known| match (&now.for_all.logins, &self.logins) {
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
