//! Bodies of answers.

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};

use crate::failure::Failure;

/// A response's body. An error in it aborts the response, so that the client cannot take what it got
/// for the whole.
pub type Body = UnsyncBoxBody<Bytes, Failure>;

pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

pub fn streamed(stream: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static) -> Body {
    StreamBody::new(stream.map(|item| item.map(Frame::data))).boxed_unsync()
}
