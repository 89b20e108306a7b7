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
        let said = self.said(response).await;
        let failure = errors::status(&self.label, status, &headers, said.as_deref());
        failure.told(self.tellable(said).as_deref())
    }

    /// The reason in an error's body, for clients and logs.
    pub async fn reason(&self, response: Response) -> Option<String> {
        let said = self.said(response).await;
        self.tellable(said)
    }

    /// A reason, unless it repeats what was sent to log in.
    pub fn tellable(&self, said: Option<String>) -> Option<String> {
        said.filter(|said| !self.logins_sent.are_in(said))
    }

    /// What an error's body says. It may repeat what was sent to log in.
    pub async fn said(&self, mut response: Response) -> Option<String> {
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
        reason::of(&headers, &body)
    }

    /// Warnings without those that repeat what was sent to log in.
    pub fn without_secrets(&self, mut warnings: Vec<HeaderValue>) -> Vec<HeaderValue> {
        warnings.retain(|warning| !self.logins_sent.are_in(&String::from_utf8_lossy(warning.as_bytes())));
        warnings
    }
}
