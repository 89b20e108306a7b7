//! Which failure an upstream's refusal becomes, and the reason that the refusal states.

use std::time::Duration;

use bytes::BytesMut;
use http::HeaderValue;
use reqwest::Response;

use super::transport::Transport;
use super::{errors, reason};
use crate::failure::{Failure, FailureKind};

/// Most bytes read of a refusal's body, which says which limit was reached, and why.
const MAX_REFUSAL: usize = 4096;
/// How long to wait for the body of a refusal.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);

impl Transport {
    /// Returns a response that gives what was asked for. Any other response is a failure, with the reason that it
    /// states.
    pub async fn successful(&self, response: Response) -> Result<Response, Failure> {
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(response).await)
    }

    /// Returns the failure that a response stands for.
    pub async fn refused(&self, response: Response) -> Failure {
        let (status, headers) = (response.status(), response.headers().clone());
        let as_larder = response.extensions().get::<errors::AskedAsLarder>().copied();
        let said = self.said(response).await;
        let failure = errors::status(&self.label, status, &headers, said.as_deref());
        let failure = match as_larder {
            Some(as_larder) if failure.kind == FailureKind::Denied => failure.adding(as_larder.hint()),
            _ => failure,
        };
        failure.told(self.tellable(said).as_deref())
    }

    /// Returns the reason in an error's body, for clients and logs.
    pub async fn reason(&self, response: Response) -> Option<String> {
        let said = self.said(response).await;
        self.tellable(said)
    }

    /// Returns a reason, unless it repeats a secret that was sent to log in.
    pub fn tellable(&self, said: Option<String>) -> Option<String> {
        said.filter(|said| !self.logins_sent.are_in(said))
    }

    /// Returns the text in an error's body. It may repeat a secret that was sent to log in.
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
        // The part that came in time may be enough.
        let _ = tokio::time::timeout(REFUSAL_PATIENCE, read).await;
        reason::of(&headers, &body)
    }

    /// Removes the warnings that repeat a secret that was sent to log in.
    pub fn without_secrets(&self, mut warnings: Vec<HeaderValue>) -> Vec<HeaderValue> {
        warnings.retain(|warning| !self.logins_sent.are_in(&String::from_utf8_lossy(warning.as_bytes())));
        warnings
    }
}
