//! Passes an object that cannot be stored through a window in memory: one transfer for all clients that read it at
//! about the same time, as far as they keep up. A reader that does not keep up goes on by a transfer of its own, from
//! where it stands; where the origin cannot go on in the middle, the others wait longer for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::driver::lock;
use super::plan::NEAR;
use super::window::{Look, Passed, Seat, Window, Windows};
use super::{Fill, HELD_BACK, Origin, Phase, Readable, Reading, Registered, State, Wanted};
use crate::cache::direct::{Direct, PIECE};
use crate::failure::{Failure, FailureKind};
use crate::work::Hashing;

/// How long the fastest readers wait for one slower reader, in addition to one part in [`PART`] of the time that the
/// transfer has run: so a reader that stops now and then is not lost at once.
const HELD_UP: Duration = Duration::from_secs(1);
/// See [`HELD_UP`].
const PART: u32 = 8;
/// How long the fastest readers wait for all slower readers together, in addition to one part in [`PART_BY_ALL`] of
/// that time.
const BY_ALL: Duration = Duration::from_secs(2);
/// See [`BY_ALL`].
const PART_BY_ALL: u32 = 2;
/// How often to check whether anybody reads, and whether others need the connection.
const LOOK: Duration = Duration::from_millis(250);
/// Readers that take nothing for this long no longer hold the window. One that comes back goes on by a transfer of its
/// own.
const UNTAKEN: Duration = Duration::from_secs(150);
/// When the connection was given away: bytes that readers have to take before the next connection is opened.
const WORTH_OPENING: usize = 2 << 20;

/// Passes an object that cannot be stored to its readers, and tells them how that ends.
pub async fn pass(
    registered: &Registered,
    wanted: Wanted,
    origin: &Arc<dyn Origin>,
    windows: &Windows,
) -> Result<(), Failure> {
    let fill = registered.fill();
    let is_left = async {
        while fill.is_read() {
            tokio::time::sleep(LOOK).await;
        }
    };
    let passed = tokio::select! {
        passed = pass_through(registered, wanted, origin, windows) => passed,
        () = is_left => Err(unread()),
    };
    if let Err(failure) = &passed {
        fill.update(|state| state.phase = Phase::Failed(failure.clone()));
    }
    passed
}

fn unread() -> Failure {
    Failure::new(FailureKind::Unread, "nobody reads it any more")
}

async fn pass_through(
    registered: &Registered,
    wanted: Wanted,
    origin: &Arc<dyn Origin>,
    windows: &Windows,
) -> Result<(), Failure> {
    let fill = registered.fill();
    let (file, from) = {
        let state = fill.state.borrow();
        (state.file.clone(), state.present.run_end(0))
    };
    let hasher = match (wanted.digest(), file) {
        (None, _) => None,
        (Some(digest), Some(file)) if from > 0 => {
            let hashing = file.hash(Hashing::new(digest.algorithm()), from).await;
            Some(
                hashing
                    .map_err(|error| Failure::of(FailureKind::Storage, "what was written cannot be read back", error))?
                    .into_hasher(),
            )
        }
        (Some(digest), _) => Some(digest.algorithm().hasher()),
    };
    let mut direct = Direct::new(origin.clone(), wanted.key(), from, None, hasher).of_size(fill.known_size());
    let left = lock(&registered.left).take();
    match left {
        Some((at, transfer)) if at == from => direct.go_on_with(transfer),
        _ if from > 0 => direct = direct.promised(),
        _ => {}
    }
    direct.open().await?;
    let size = direct.total();
    let window = windows.open(from, size, wanted.is_vouched_for());
    let window = window.ok_or_else(|| Failure::new(FailureKind::NoRoom, "too much passes already"))?;
    let window = fill.window.get_or_init(|| Arc::new(window));
    fill.update(|state| {
        state.phase = Phase::Passing { is_verified: false };
        state.size = size;
        state.passed = Passed { from, start: from, end: from };
    });
    let mut patience = Patience::new(origin.can_resume());
    loop {
        patience.room(fill, window, &mut direct, &**origin).await?;
        if !fill.is_read() {
            return Err(unread());
        }
        let piece = direct.next().await?;
        if piece.bytes.is_empty() {
            break;
        }
        let (start, end) = window.push(piece);
        fill.update(|state| state.passed = Passed { from, start, end });
    }
    fill.update(|state| {
        state.phase = Phase::Passing { is_verified: true };
        state.size = state.size.or(Some(state.passed.end));
    });
    Ok(())
}

/// Counts how long the fastest readers were held up by slower readers.
struct Patience {
    since: Instant,
    held_up: Duration,
    /// Whether a reader that is left behind can go on by a transfer of its own.
    may_leave: bool,
}

impl Patience {
    fn new(may_leave: bool) -> Self {
        Self { since: Instant::now(), held_up: Duration::ZERO, may_leave }
    }

    /// Returns how long one reader may hold up others in all.
    fn with_one(&self) -> Duration {
        if !self.may_leave {
            return Duration::MAX;
        }
        HELD_UP + self.since.elapsed() / PART
    }

    /// Returns how much longer all readers together may hold up others.
    fn left(&self) -> Duration {
        let least = if self.may_leave { BY_ALL } else { UNTAKEN };
        (least + self.since.elapsed() / PART_BY_ALL).saturating_sub(self.held_up)
    }

    /// Waits until there is room for the next piece, or until the readers in the way have been waited for long enough.
    async fn room(
        &mut self,
        fill: &Fill,
        window: &Window,
        direct: &mut Direct,
        origin: &dyn Origin,
    ) -> Result<(), Failure> {
        let mut last_taken = Instant::now();
        loop {
            let taken = window.taken.notified();
            tokio::pin!(taken);
            taken.as_mut().enable();
            let needs = if direct.is_open() { PIECE } else { WORTH_OPENING };
            let (wait, is_held_up) = match window.look(needs, fill.readers(), self.with_one()) {
                Look::Room => return Ok(()),
                Look::Full => (LOOK, false),
                Look::HeldUp(wait) => (wait.min(self.left()), true),
            };
            if wait.is_zero() {
                return Ok(());
            }
            let began = Instant::now();
            let has_moved = tokio::time::timeout(wait, taken).await.is_ok();
            if is_held_up {
                self.held_up += began.elapsed();
                window.waited(needs, fill.readers(), began.elapsed());
            }
            if has_moved {
                last_taken = Instant::now();
            } else if last_taken.elapsed() > UNTAKEN && is_held_up {
                return Ok(());
            } else if last_taken.elapsed() > UNTAKEN {
                return Err(Failure::new(FailureKind::NoRoom, "no reader takes what passes"));
            } else if !is_held_up && origin.should_yield() {
                direct.pause();
            }
        }
    }
}

impl Fill {
    /// Returns whether the object passes and is not stored.
    pub fn passes(&self) -> bool {
        matches!(self.state.borrow().phase, Phase::Passing { .. })
    }

    /// Returns a seat at the window through which the object passes, for a reader whose next byte is `at`; `None` if
    /// there is no window.
    pub fn sit(&self, at: u64) -> Option<Seat> {
        self.window.get().map(|window| window.sit(at))
    }
}

impl State {
    /// Returns where a reader at `at` finds the bytes of an object that passes; `None`: the reader has to wait.
    pub(super) fn passing(&self, at: u64, reader: Reading, is_verified: bool) -> Option<Readable> {
        let Passed { start, end, .. } = self.passed;
        let run_end = self.present.run_end(at);
        if let Some(file) = self.file.clone().filter(|_| run_end > at) {
            // If bytes behind those of the file have passed, the object has more behind them that is not verified yet.
            let is_before_the_last = is_verified || end > run_end;
            let until = if is_before_the_last { run_end } else { self.unverified_until(at, reader) };
            return (until > at).then_some(Readable::File {
                file,
                until,
                attempt: self.attempt,
                mapping: self.mapping.clone(),
            });
        }
        if at < start || at > end + NEAR {
            return Some(Readable::Elsewhere);
        }
        // If the fill does not know the size, the size that the reader was told may be wrong.
        let told = reader.size.filter(|_| self.size.is_none() && !reader.may_read_unverified);
        let may_be_read = told.is_none_or(|told| at < told.saturating_sub(HELD_BACK));
        (is_verified || (at < end && may_be_read)).then_some(Readable::InWindow)
    }
}
