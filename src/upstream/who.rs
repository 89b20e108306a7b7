//! With whose credentials an upstream is asked.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::HeaderValue;

use crate::config::Login;
use crate::fingerprint;

/// With whose credentials an upstream is asked.
#[derive(Clone, Debug)]
pub enum Who {
    /// Larder's own, as the configuration says.
    Larder,
    /// None, for a client that gave no credentials.
    Anonymous,
    /// A client's user name and password.
    Login(Arc<Login>),
    /// A client's own `Authorization`, such as a token that the client got from the upstream.
    Header(HeaderValue),
}

/// The key that stands for a [`Who`] in caches. All keys have the same length, and nobody can get a password out of
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WhoId([u8; 32]);

impl WhoId {
    /// Returns the bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Hash for WhoId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The bytes are evenly distributed already.
        state.write(&self.0[..8]);
    }
}

impl PartialEq for Who {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Who {
    /// Returns whether an upstream is asked for a client, with the client's credentials or with none, and not with
    /// Larder's own.
    pub fn is_client(&self) -> bool {
        !matches!(self, Self::Larder)
    }

    /// Returns the key that stands for these credentials.
    pub fn id(&self) -> WhoId {
        match self {
            Self::Larder => WhoId([0; 32]),
            Self::Anonymous => WhoId([1; 32]),
            Self::Login(login) => {
                let kind: &[u8] = if login.is_identity_token { b"identity" } else { b"login" };
                WhoId(fingerprint::of(&[kind, login.username.as_bytes(), login.password.reveal().as_bytes()]))
            }
            Self::Header(value) => WhoId(fingerprint::of(&[b"header", value.as_bytes()])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn each_has_an_id_of_its_own() {
        let login = |name: &str, password: &str| Who::Login(Arc::new(Login::new(name, Secret::new(password))));
        let header = |text: &'static str| Who::Header(HeaderValue::from_static(text));
        let all = [
            Who::Larder,
            Who::Anonymous,
            login("a", "bc"),
            login("ab", "c"),
            login("a", "b"),
            header("Bearer a"),
            header("Bearer b"),
        ];
        for (at, one) in all.iter().enumerate() {
            for (other_at, other) in all.iter().enumerate() {
                assert_eq!(one.id() == other.id(), at == other_at, "{one:?} {other:?}");
            }
        }
    }
}
