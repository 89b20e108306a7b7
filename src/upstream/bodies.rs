//! Reads the bodies of responses: documents as a whole, blobs piece by piece. Each wait has a deadline.

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream, StreamExt};
use reqwest::Response;

use super::errors;
use super::line;
use super::transport::Transport;
use crate::failure::{Failure, FailureKind};

/// Largest document, in bytes, that needs no place. A larger document waits for one of the places for large documents.
const SMALL_DOCUMENT: usize = 256 << 10;

impl Transport {
    /// Reads a whole body of at most `limit` bytes.
    pub async fn read(&self, mut response: Response, limit: usize) -> Result<Bytes, Failure> {
        let (mut bytes, mut place) = (BytesMut::new(), None);
        // One deadline for the whole body: a body that drips is as bad as one that hangs.
        let deadline = tokio::time::Instant::now() + self.patience;
        loop {
            let chunk = tokio::time::timeout_at(deadline, response.chunk()).await;
            let chunk = chunk.map_err(|_| errors::timeout(&self.label, "the rest of an answer", self.patience))?;
            let chunk = chunk.map_err(|error| errors::network(&self.label, error))?;
            line::count(&response, chunk.as_ref().map_or(0, Bytes::len));
            match chunk {
                Some(chunk) if bytes.len() + chunk.len() > limit => {
                    return Err(self.wrong(format!("sent a document of more than {limit} bytes")));
                }
                Some(chunk) => bytes.extend_from_slice(&chunk),
                None => return Ok(bytes.freeze()),
            }
            if place.is_none() && bytes.len() > SMALL_DOCUMENT {
                let taken = tokio::time::timeout_at(deadline, self.documents.clone().acquire_owned()).await;
                let message = "too many large documents are on their way; try again soon";
                let taken = taken.ok().and_then(Result::ok);
                place = Some(taken.ok_or_else(|| Failure::new(FailureKind::Busy, message))?);
            }
        }
    }

    /// Returns a body piece by piece; `guard` is held until the body ends.
    pub fn stream(&self, response: Response, guard: impl Send + 'static) -> BoxStream<'static, Result<Bytes, Failure>> {
        let (label, timeout) = (self.label.clone(), self.read_timeout);
        stream::try_unfold((response, guard), move |(mut response, guard)| {
            let label = label.clone();
            async move {
                match tokio::time::timeout(timeout, response.chunk()).await {
                    Ok(Ok(Some(chunk))) => {
                        line::count(&response, chunk.len());
                        Ok(Some((chunk, (response, guard))))
                    }
                    Ok(Ok(None)) => Ok(None),
                    Ok(Err(error)) => Err(errors::network(&label, error)),
                    Err(_) => Err(errors::timeout(&label, "the rest of a blob", timeout)),
                }
            }
        })
        .boxed()
    }
}
