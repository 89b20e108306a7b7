//! Sources that do as their scripts say, and count what they did.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::sleep;

use super::case::{Case, Holds, Ranges, Script};
use super::{MAX_STRIKES, MIB};
use crate::cache::fill::{Origin, Source, Transfer};
use crate::failure::{Failure, FailureKind};
use crate::oci::Digest;

/// Bytes that a transfer takes off the network at a time.
const BATCH: u64 = MIB;
/// Each flawed source is wrong in its own way, but at the same places: together they are not right.
const MASKS: [u8; 5] = [2, 4, 8, 16, 32];

/// The sources of a case, over all its runs.
pub struct World {
    pub case: Case,
    pub right: Bytes,
    pub held: Vec<Option<Bytes>>,
    pub state: Arc<Mutex<Told>>,
}

/// What the sources were told and did.
#[derive(Default)]
pub struct Told {
    pub scripts: Vec<Script>,
    /// Failures in a row of each source; `None`: rejected.
    pub strikes: Vec<Option<u8>>,
    pub delivered: u64,
    pub received: u64,
    /// Bytes that transfers that were cut off may have had under way.
    pub in_hand: u64,
}

impl World {
    pub fn new(case: &Case) -> Arc<Self> {
        let right = Bytes::from(content(case.size));
        let held = case.sources.iter().zip(MASKS).map(|(script, mask)| match script.holds {
            Holds::Nothing => None,
            Holds::Right | Holds::Misstated(_) => Some(right.clone()),
            Holds::Longer(more) => Some(content(case.size + more).into()),
            Holds::Shorter(less) => Some(right.slice(..case.size.saturating_sub(less) as usize)),
            Holds::Flawed => {
                let mut flawed = right.to_vec();
                let (first, each) = (case.size * case.flaws.0 / 1000, case.flaws.1);
                (first as usize..flawed.len()).step_by(each as usize).for_each(|at| flawed[at] ^= mask);
                Some(flawed.into())
            }
        });
        let held = held.collect();
        Arc::new(Self { held, case: case.clone(), right, state: Self::untold(case) })
    }

    /// Returns the same sources, as another client sees them.
    pub fn to_another(&self) -> Arc<Self> {
        let (case, right, held) = (self.case.clone(), self.right.clone(), self.held.clone());
        Arc::new(Self { state: Self::untold(&case), case, right, held })
    }

    fn untold(case: &Case) -> Arc<Mutex<Told>> {
        let strikes = vec![Some(0); case.sources.len()];
        Arc::new(Mutex::new(Told { scripts: case.sources.clone(), strikes, ..Told::default() }))
    }

    pub fn told(&self) -> MutexGuard<'_, Told> {
        self.state.lock().expect("no panic while held")
    }

    /// Returns whether these bytes, found at `at`, are what the sources hold there.
    pub fn allows(&self, at: u64, bytes: &[u8]) -> bool {
        let (at, end) = (at as usize, at as usize + bytes.len());
        if self.held.iter().flatten().any(|held| held.get(at..end) == Some(bytes)) {
            return true;
        }
        let is_held = |(offset, byte)| self.held.iter().flatten().any(|held| held.get(at + offset) == Some(byte));
        bytes.iter().enumerate().all(is_held)
    }

    /// Forgets what sources did, as a new process does; some sources are gone.
    pub fn restart(&self) {
        self.told().strikes = self.case.sources.iter().map(|script| script.stays.then_some(0)).collect();
    }

    /// Returns the answer of one source; `None` if it refuses.
    fn answer(&self, at: usize, from: u64, until: Option<u64>) -> Option<Transfer> {
        let mut told = self.told();
        let script = &mut told.scripts[at];
        let left = if from == 0 { &mut script.refusals.0 } else { &mut script.refusals.1 };
        if let Some(fewer) = left.checked_sub(1) {
            *left = fewer;
            return None;
        }
        let bytes = self.held[at].clone()?;
        let size = bytes.len() as u64;
        let stated = match script.holds {
            Holds::Misstated(by) => size.saturating_add_signed(by),
            _ => size,
        };
        if from > 0 && from >= size && script.ranges != Ranges::Ignored {
            // As `upstream` hands on a 416, which states the length of the object.
            let body = stream::empty().boxed();
            return Some(Transfer { source: Source(at), start: from, total: Some(stated), body });
        }
        let (start, end) = match script.ranges {
            Ranges::Exact => (from, until.unwrap_or(size)),
            Ranges::Before(by) => (from.saturating_sub(by), until.unwrap_or(size)),
            Ranges::Ignored => (0, size),
        };
        let end = end.min(size);
        let total = script.says_total.then_some(stated);
        let breaks_at = script.breaks.pop().map(|after| start + after).filter(|&at| at < end);
        let (piece, at_once, pause) = script.pace;
        let body = Body {
            told: self.state.clone(),
            bytes,
            at: start,
            end,
            breaks_at,
            // A source that does not state the length cannot end early without being noticed.
            breaks_quietly: script.breaks_quietly && script.says_total,
            has_broken: false,
            is_shared: self.case.is_shared(),
            pace: (piece, at_once, Duration::from_millis(pause)),
            came_at_once: at_once,
        };
        Some(Transfer { source: Source(at), start, total, body: body.stream() })
    }
}

impl Origin for World {
    fn open(&self, from: u64, until: Option<u64>, _: bool) -> BoxFuture<'_, Result<Transfer, Failure>> {
        async move {
            let is_worth = |strikes: &Option<u8>| strikes.is_some_and(|strikes| strikes < MAX_STRIKES);
            let strikes = self.told().strikes.clone();
            for at in (0..strikes.len()).filter(|&at| is_worth(&strikes[at])) {
                sleep(Duration::from_millis(3 + at as u64)).await;
                if let Some(transfer) = self.answer(at, from, until) {
                    return Ok(transfer);
                }
            }
            Err(Failure::new(FailureKind::Unavailable, "no source is left"))
        }
        .boxed()
    }

    fn parallel(&self) -> usize {
        self.case.parallel
    }

    fn broke(&self, source: Source, progressed: bool, _: &Failure) {
        if let Some(strikes) = &mut self.told().strikes[source.0] {
            *strikes = if progressed { 0 } else { *strikes + 1 };
        }
    }

    fn reject(&self, source: Source) {
        self.told().strikes[source.0] = None;
    }

    fn stored<'a>(&'a self, _: &'a Digest, _: u64) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    fn received(&self, bytes: u64) {
        self.told().received += bytes;
    }
}

/// The body of one answer.
struct Body {
    told: Arc<Mutex<Told>>,
    bytes: Bytes,
    at: u64,
    end: u64,
    breaks_at: Option<u64>,
    breaks_quietly: bool,
    has_broken: bool,
    /// Whether other transfers may take a part of its range.
    is_shared: bool,
    pace: (u64, u32, Duration),
    came_at_once: u32,
}

impl Body {
    fn stream(self) -> BoxStream<'static, Result<Bytes, Failure>> {
        let next = |mut body: Self| async move {
            if body.breaks_at == Some(body.at) {
                let failure = Failure::new(FailureKind::Unavailable, "broken");
                let is_told = std::mem::replace(&mut body.has_broken, true) || body.breaks_quietly;
                return (!is_told).then_some((Err(failure), body));
            }
            let (piece, at_once, pause) = body.pace;
            if body.at == body.end {
                sleep(pause).await;
                return None;
            }
            if body.came_at_once == at_once {
                sleep(pause).await;
                body.came_at_once = 0;
            }
            body.came_at_once += 1;
            let end = body.breaks_at.unwrap_or(body.end).min(body.at + piece);
            let bytes = body.bytes.slice(body.at as usize..end as usize);
            body.told.lock().expect("no panic while held").delivered += bytes.len() as u64;
            body.at = end;
            Some((Ok(bytes), body))
        };
        stream::unfold(self, next).boxed()
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let was_cut = self.at < self.end && !self.has_broken;
        if was_cut || self.is_shared {
            // One batch is being cut; the next was taken off the network meanwhile.
            let at_once = self.pace.0 * u64::from(self.pace.1);
            let mut told = self.told.lock().expect("no panic while held");
            told.in_hand += 2 * at_once.min(BATCH + self.pace.0);
        }
    }
}

/// Returns bytes of which none is zero, so that a hole in a file is noticed. A longer content begins like a shorter
/// one.
fn content(size: u64) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state | 0x0101_0101_0101_0101).to_le_bytes()
    });
    let mut bytes: Vec<u8> = words.take(size.div_ceil(8) as usize).flatten().collect();
    bytes.truncate(size as usize);
    bytes
}
