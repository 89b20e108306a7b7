//! Why no certificate was obtained.

use std::time::Duration;

use instant_acme::Error;

use crate::web::WebError;

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
    match error {
        Error::Json(error) => format!("its answer is not what the protocol says ({error})"),
        other => other.to_string(),
    }
}
