//! Who guesses has to wait: wrong logins are counted by address.

use std::time::{Duration, Instant};

use quick_cache::sync::Cache;

use super::{ClientAddress, NotNow};

/// Wrong logins that one address may try in one minute.
pub const GUESSES: u32 = 20;
pub const MINUTE: Duration = Duration::from_secs(60);
const ADDRESSES: usize = 10_000;

/// Wrong logins by address, since when.
pub struct Guesses(Cache<ClientAddress, (Instant, u32)>);

impl Default for Guesses {
    fn default() -> Self {
        Self(Cache::new(ADDRESSES))
    }
}

impl Guesses {
    /// Whether an address may try again.
    pub fn may_guess(&self, address: ClientAddress) -> Result<(), NotNow> {
        match self.0.get(&address.counted()) {
            Some((since, count)) if count >= GUESSES => match MINUTE.checked_sub(since.elapsed()) {
                Some(left) if !left.is_zero() => Err(NotNow::Guessing(left)),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// It was wrong.
    pub fn guessed(&self, address: ClientAddress) {
        let address = address.counted();
        let before = self.0.get(&address).filter(|(since, _)| since.elapsed() < MINUTE);
        let (since, count) = before.unwrap_or((Instant::now(), 0));
        self.0.insert(address, (since, count + 1));
    }
}
