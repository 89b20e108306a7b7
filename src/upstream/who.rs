//! As whom an upstream is asked.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use http::HeaderValue;

use crate::config::Login;
use crate::fingerprint;

/// As whom an upstream is asked.
#[derive(Clone, Debug)]
pub enum Who {
    /// As the configuration says.
    Larder,
    /// As a client that gave no credentials.
    Anonymous,
    /// With a client's name and password.
    Login(Arc<Login>),
    /// With a client's own `Authorization`, such as a token that it had from the upstream.
    Header(HeaderValue),
}

/// Stands for a [`Who`] in what is remembered: as long as any other, and nobody gets a password out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WhoId([u8; 32]);

impl WhoId {
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Hash for WhoId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // They are evenly spread as they are.
        state.write(&self.0[..8]);
    }
}

impl PartialEq for Who {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Who {
    /// Whether it is a client and not Larder itself.
    pub fn is_client(&self) -> bool {
        !matches!(self, Self::Larder)
    }

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
