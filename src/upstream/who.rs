//! As whom an upstream is asked.

use std::sync::Arc;

use http::HeaderValue;

use crate::config::Login;

/// As whom an upstream is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Who {
    /// As the configuration says.
    #[default]
    Larder,
    /// As a client that gave no credentials.
    Anonymous,
    /// With a client's name and password.
    Login(Arc<Login>),
    /// With a client's own `Authorization`, such as a token that it had from the upstream.
    Header(HeaderValue),
}

impl Who {
    /// Whether it is a client and not Larder itself.
    pub fn is_client(&self) -> bool {
        !matches!(self, Self::Larder)
    }
}
