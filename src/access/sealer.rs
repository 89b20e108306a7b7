//! Tokens of this cache, for clients whose own credentials an upstream checks.
//!
//! Clients are sent to Larder's own token service (Docker Registry v2 token authentication), so that they need no
//! access to the upstream's. The token is what the client sent, sealed with a key that only this process has. With each
//! pull, the upstream decides whether those credentials are valid.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{Login, Secret};
use crate::random::{self, NoRandomness};
use crate::upstream::Who;

/// How long a token is valid; then clients get another one.
pub const TOKEN_LIFE: Duration = Duration::from_secs(300);
/// Tells Larder's tokens from those of upstreams.
pub const PREFIX: &str = "larder.";

/// Seals values, such as credentials, into texts. Each purpose has a sealer of its own.
pub struct Sealer(RandomizedNonceKey);

/// What is sealed.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    /// When it expires, in seconds since 1970.
    expires: u64,
    value: T,
}

impl Sealer {
    /// Creates a sealer with a new random key.
    pub fn new() -> Result<Self, NoRandomness> {
        let mut key = [0; 32];
        random::fill(&mut key)?;
        RandomizedNonceKey::new(&AES_256_GCM, &key).map(Self).map_err(|_| NoRandomness)
    }

    /// Returns a token for a login, or for no login; `None` if the library fails.
    pub fn seal(&self, login: Option<&Login>, now: SystemTime) -> Option<String> {
        let login = login.map(|login| (login.username.clone(), login.password.reveal().to_owned()));
        let sealed = self.seal_value(&login, now + TOKEN_LIFE)?;
        Some(format!("{PREFIX}{sealed}"))
    }

    /// Returns the credentials in a token; `None` if the token is not one of Larder's, or has expired.
    pub fn open(&self, token: &str, now: SystemTime) -> Option<Who> {
        let content: Option<(String, String)> = self.open_value(token.strip_prefix(PREFIX)?, now)?;
        Some(content.map_or(Who::Anonymous, |(name, password)| login(name, password)))
    }

    /// Returns a text that holds a value until `expires`, and that nobody else can read or make; `None` if the library
    /// fails.
    pub fn seal_value(&self, value: &impl Serialize, expires: SystemTime) -> Option<String> {
        let mut bytes = serde_json::to_vec(&Sealed { expires: seconds(expires), value }).ok()?;
        let nonce = self.0.seal_in_place_append_tag(Aad::empty(), &mut bytes).ok()?;
        Some(BASE64_URL_SAFE_NO_PAD.encode([nonce.as_ref().as_slice(), &bytes].concat()))
    }

    /// Returns the value in a text; `None` if this sealer did not make the text, or the text has expired.
    pub fn open_value<T: DeserializeOwned>(&self, text: &str, now: SystemTime) -> Option<T> {
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let bytes = self.0.open_in_place(nonce, Aad::empty(), &mut sealed).ok()?;
        let content: Sealed<T> = serde_json::from_slice(bytes).ok()?;
        (content.expires >= seconds(now)).then_some(content.value)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Returns the credentials of a client that logs in at an upstream by name and password.
pub fn login(name: String, password: String) -> Who {
    Who::Login(Arc::new(Login::new(name, Secret::new(password))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_token_holds_what_it_was_made_of_and_not_for_ever() {
        let sealer = Sealer::new().expect("a key");
        let now = clock::wall();
        let login = Login::new("me", Secret::new("pass:word"));
        let token = sealer.seal(Some(&login), now).expect("sealed");
        assert_eq!(sealer.open(&token, now), Some(Who::Login(Arc::new(login.clone()))));
        assert_eq!(sealer.open(&token, now + 2 * TOKEN_LIFE), None);
        let anonymous = sealer.seal(None, now).expect("sealed");
        assert_eq!(sealer.open(&anonymous, now), Some(Who::Anonymous));
        assert_ne!(sealer.seal(Some(&login), now), sealer.seal(Some(&login), now));
    }

    #[test]
    fn a_token_of_another_key_or_a_changed_one_is_worth_nothing() {
        let (sealer, other) = (Sealer::new().expect("a key"), Sealer::new().expect("a key"));
        let now = clock::wall();
        let token = sealer.seal(None, now).expect("sealed");
        assert_eq!(other.open(&token, now), None);
        let changed = format!("{}{}", &token[..token.len() - 1], if token.ends_with('A') { "Q" } else { "A" });
        assert_eq!(sealer.open(&changed, now), None);
        for nonsense in ["", "larder.", "larder.AAAA", "larder.!!", "hub-token"] {
            assert_eq!(sealer.open(nonsense, now), None, "{nonsense}");
        }
    }
}
