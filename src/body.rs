//! Bodies of responses.

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};

use crate::failure::Failure;

/// A response's body. An error in it aborts the response, so that the client cannot take the bytes that it received for
/// the whole.
pub type Body = UnsyncBoxBody<Bytes, Failure>;

/// Returns a body without bytes.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Returns a body that is in memory.
pub fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

/// Returns a body that is sent as its bytes arrive.
pub fn streamed(stream: impl Stream<Item = Result<Bytes, Failure>> + Send + 'static) -> Body {
    StreamBody::new(stream.map(|item| item.map(Frame::data))).boxed_unsync()
}
