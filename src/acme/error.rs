//! Why no certificate was obtained.

use std::time::Duration;

use instant_acme::Error;

use crate::web::{WebError, Why};

/// Why no certificate was obtained.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    #[error("the ACME server {directory}: {}", explained(error))]
    Server { directory: String, error: Error },
    #[error("the ACME server {0}")]
    Web(#[from] WebError),
    #[error("{0}")]
    Protocol(String),
    #[error("server.tls.acme.dns_hook: {0}")]
    Hook(String),
    #[error("the certificate cannot be used: {0}")]
    Certificate(String),
    #[error("cannot keep it: {0}")]
    Disk(#[from] std::io::Error),
    #[error("the order was not done within {} s", .0.as_secs())]
    Late(Duration),
    /// By another configuration, or by the end of the process.
    #[error("it was interrupted")]
    Interrupted,
}

impl AcmeError {
    /// Returns whether the try did not reach the server, so that the server knows nothing of it.
    pub fn is_unreached(&self) -> bool {
        let Self::Server { error: Error::Other(cause), .. } = self else {
            return false;
        };
        matches!(cause.downcast_ref(), Some(WebError::Network(_)))
    }
}

fn explained(error: &Error) -> String {
    if let Error::Other(cause) = error
        && let Some(WebError::Network(why)) = cause.downcast_ref()
    {
        return match why {
            Why::UnknownIssuer => {
                format!("{why}; put the authority's certificate into server.tls.acme.ca_bundle")
            }
            Why::NoTls => format!("{why}; write http:// in server.tls.acme.directory"),
            _ => why.to_string(),
        };
    }
    match error {
        Error::Json(error) => format!("its answer is not what the protocol says ({error})"),
        other => other.to_string(),
    }
}
