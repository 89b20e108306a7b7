//! Whether a client of the proxy door that was let in would be let in now. A tunnel lasts, and rules change.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Proxying, Refused};
use crate::auth::{Identity, Logins};
use crate::pull::admission::Door;
use crate::pull::{Client, Live, Pull};
use crate::upstream::Place;

/// As whom a client was let in, with what it takes to ask that again: what it showed is not kept.
#[derive(Clone)]
pub struct Standing {
    client: Client,
    pub(super) identity: Identity,
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
    pub(super) fn new(live: &Live, client: Client, identity: Identity) -> Self {
        Self { client, identity, logins: live.logins.clone() }
    }

    /// As whom the client is let in by the rules of now. A login counts as long as it would: the user has the same
    /// password, or the token's issuer is configured the same and the token has not ended.
    pub(super) fn judge(&self, live: &Arc<Live>, proxying: &Proxying) -> Result<Self, Refused> {
        let door = Door::for_client(live, self.client.clone()).map_err(|_| Refused::NotYou)?;
        let known = self.identity.known.clone().filter(|known| match (&live.logins, &self.logins) {
            (Some(now), Some(before)) => now.still_know(before, known),
            _ => false,
        });
        let identity = Identity { known, ..door.stranger() };
        match identity.may_pull(&proxying.door.allow, door.has_logins()) {
            true => Ok(Self { identity, ..self.clone() }),
            false => Err(Refused::NotYou),
        }
    }
}

impl Pull {
    /// Waits until a tunnel would not come about any more, by the rules that are in force then.
    pub async fn until_turned_away(&self, tunnel: &Tunnel) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if let Err(why) = self.judge(tunnel) {
                let (client, place) = (tunnel.standing.client.address, &tunnel.place);
                tracing::info!(%client, %place, %why, "a tunnel ends, since the configuration does not allow it any more");
                return;
            }
            // Its sender is as old as the process.
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn judge(&self, tunnel: &Tunnel) -> Result<(), Refused> {
        let (live, proxying) = self.proxying()?;
        tunnel.standing.judge(&live, &proxying)?;
        Ok(proxying.permit_tunnel(&tunnel.place, tunnel.address)?)
    }
}
