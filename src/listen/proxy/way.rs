//! One connection at the proxy door, and everything that serving it needs.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::auth::Client;
use crate::ca::Ca;
use crate::listen::connection::{Ends, Held, Peer};
use crate::observe::Metrics;
use crate::proxy::{Kept, Proxy};

/// One client's connection to the proxy door.
pub struct Way {
    pub proxy: Arc<Proxy>,
    pub metrics: Arc<Metrics>,
    pub ca: Arc<Ca>,
    pub peer: Peer,
    pub ends: Ends,
    pub held: Held,
}

impl Way {
    /// Returns the state that has to live as long as any part of the connection does.
    pub fn kept(&self) -> Kept {
        Kept { place: self.held.clone(), stop: self.ends.stop.clone() }
    }

    /// Returns the client's address.
    pub fn address(&self) -> SocketAddr {
        self.peer.address
    }

    /// Returns the client, before it is authenticated.
    pub fn client(&self) -> Client {
        Client::connected(self.address())
    }
}
