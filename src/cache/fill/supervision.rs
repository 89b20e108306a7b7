//! Whether a fill may go on: somebody reads it, its source keeps a least speed, and no other transfer needs its place.

use std::time::Duration;

use tokio::time::Instant;

use super::{Fill, Origin};
use crate::failure::{Failure, FailureKind};
use crate::places::Places;

/// A fill that nobody reads may end after this time: a client that comes back sooner still finds its fill.
const UNREAD: Duration = Duration::from_secs(2);
/// A source that only a client names has to send [`LEAST`] bytes in this time.
const SPAN: Duration = Duration::from_secs(30);
/// 4 KiB a second: slower than any modem.
const LEAST: u64 = 4096 * 30;

/// Checks one fill again and again.
pub struct Supervision<'a> {
    places: &'a Places,
    /// Whether the configuration names the source.
    is_vouched_for: bool,
    unread_since: Option<Instant>,
    /// When the present span began, and how many bytes were there then.
    span: (Instant, u64),
}

impl<'a> Supervision<'a> {
    /// Begins to supervise a fill.
    pub fn new(places: &'a Places, is_vouched_for: bool) -> Self {
        Self { places, is_vouched_for, unread_since: None, span: (Instant::now(), 0) }
    }

    /// Fails when the fill has to end.
    pub fn look(&mut self, fill: &Fill, origin: &dyn Origin) -> Result<(), Failure> {
        let now = Instant::now();
        let unread_since = if fill.is_read() { None } else { Some(self.unread_since.unwrap_or(now)) };
        self.unread_since = unread_since;
        let grace = if fill.is_behind() { Duration::ZERO } else { UNREAD };
        let is_unread = unread_since.is_some_and(|since| now - since >= grace);
        let is_unwanted = !self.is_vouched_for || fill.is_given_up();
        // The bytes that a named upstream has sent are kept and resumed later: such a fill ends only when others need
        // its place.
        if is_unread && (is_unwanted || self.places.should_yield() || origin.should_yield()) {
            return Err(Failure::new(FailureKind::Unread, "nobody reads it any more"));
        }
        let (since, before) = self.span;
        if !self.is_vouched_for && now - since >= SPAN {
            let there = fill.present().len();
            if there.saturating_sub(before) < LEAST {
                return Err(Failure::new(FailureKind::Timeout, "the server sends less than 4 KiB a second"));
            }
            self.span = (now, there);
        }
        Ok(())
    }
}
