//! What an upstream's refusal stands for, and the reason that it gives.

use std::time::Duration;

use bytes::BytesMut;
use reqwest::Response;

use super::transport::Transport;
use super::{errors, reason};
use crate::failure::Failure;

/// Most that is read of a refusal: which limit it is of, and why.
const MAX_REFUSAL: usize = 4096;
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);
/// A configured value that is shorter is in any text.
const MIN_SECRET: usize = 4;

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
        reason::of(&headers, &body).filter(|reason| !self.repeats_secrets(reason))
    }

    fn repeats_secrets(&self, text: &str) -> bool {
        let configured = self.host_headers.iter().flat_map(|rule| rule.set.iter().chain(&rule.append));
        let mut configured = self.headers.iter().chain(configured).filter_map(|(_, value)| value.to_str().ok());
        let lower = text.to_ascii_lowercase();
        let names_login = ["authorization", "bearer ", "basic "].iter().any(|word| lower.contains(word));
        names_login || configured.any(|value| value.len() >= MIN_SECRET && text.contains(value))
    }
}
