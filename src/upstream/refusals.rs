//! What an upstream's refusal stands for, and the reason that it gives.

use std::time::Duration;

use bytes::BytesMut;
use http::HeaderValue;
use reqwest::Response;

use super::transport::Transport;
use super::{errors, reason};
use crate::failure::Failure;

/// Most that is read of a refusal: which limit it is of, and why.
const MAX_REFUSAL: usize = 4096;
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

impl Transport {
    /// An answer that gives what was asked for; another one is a failure with the reason that it states.
    pub async fn successful(&self, response: Response) -> Result<Response, Failure> {
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(response).await)
    }

    /// The failure that an answer stands for.
    pub async fn refused(&self, response: Response) -> Failure {
        let (status, headers) = (response.status(), response.headers().clone());
        let reason = self.reason(response).await;
        errors::status(&self.label, status, &headers, reason.as_deref())
    }

    /// The reason in an error's body. One that repeats what was sent to log in is left out.
    pub async fn reason(&self, mut response: Response) -> Option<String> {
        let headers = response.headers().clone();
        let mut body = BytesMut::new();
        let read = async {
            while let Ok(Some(chunk)) = response.chunk().await {
                body.extend_from_slice(&chunk[..chunk.len().min(MAX_REFUSAL - body.len())]);
                if body.len() >= MAX_REFUSAL {
                    return;
                }
            }
        };
        // What came in time may be enough.
        let _ = tokio::time::timeout(REFUSAL_PATIENCE, read).await;
        reason::of(&headers, &body).filter(|reason| !self.sent.is_in(reason))
    }

    /// Warnings without those that repeat what was sent to log in.
    pub fn without_secrets(&self, mut warnings: Vec<HeaderValue>) -> Vec<HeaderValue> {
        warnings.retain(|warning| !self.sent.is_in(&String::from_utf8_lossy(warning.as_bytes())));
        warnings
    }
}
