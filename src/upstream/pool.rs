//! HTTP clients that keep away from this process's own doors. A name is judged where it is resolved, and the HTTP
//! library does not say there for which port. So each port that one of our doors has gets a client of its own.

use std::sync::{Mutex, PoisonError};

use url::Url;

use super::ours::Ours;

/// Makes a client for servers at one port, or for all ports that are not ours.
type Make = Box<dyn Fn(Option<u16>) -> Result<reqwest::Client, String> + Send + Sync>;

/// Clients that are alike.
pub struct Pool {
    make: Make,
    ours: Ours,
    usual: reqwest::Client,
    /// As many as our doors have ports.
    beside_us: Mutex<Vec<(u16, reqwest::Client)>>,
}

impl Pool {
    pub fn new(
        ours: Ours,
        make: impl Fn(Option<u16>) -> Result<reqwest::Client, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        Ok(Self { usual: make(None)?, make: Box::new(make), ours, beside_us: Mutex::default() })
    }

    /// The client for a URL.
    pub fn client(&self, url: &Url) -> Result<reqwest::Client, String> {
        let port = url.port_or_known_default().filter(|port| self.ours.have_port(*port));
        let Some(port) = port else {
            return Ok(self.usual.clone());
        };
        let mut made = self.beside_us.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = made.iter().find(|(of, _)| *of == port) {
            return Ok(client.clone());
        }
        let client = (self.make)(Some(port))?;
        made.push((port, client.clone()));
        Ok(client)
    }
}
