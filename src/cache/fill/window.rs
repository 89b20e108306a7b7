//! A window: the most recent bytes of an object that cannot be stored, in memory, for all clients that read it at about
//! the same time.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::cache::direct::{PIECE, Piece};

/// Most bytes in one window, so how far a reader may be behind: some hundredths of a second at the speed of a fast
/// network.
const WINDOW: usize = 4 << 20;
/// Most bytes in all windows: sixteen windows, or more of small objects. An object that gets no window is transferred
/// for each reader separately.
const ALL: usize = 64 << 20;
/// A piece counts as at least this many bytes: its bookkeeping takes memory, too.
const LEAST: usize = 4 << 10;

/// The memory for all windows; clones share it.
#[derive(Clone, Debug)]
pub struct Windows(Arc<Semaphore>);

impl Default for Windows {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ALL / LEAST)))
    }
}

impl Windows {
    /// Opens a window on an object of `size` bytes, beginning at `from`; `None` if no memory is left. Sources that only
    /// clients name do not get the second half of the memory.
    pub fn open(&self, from: u64, size: Option<u64>, is_vouched_for: bool) -> Option<Window> {
        let whole = size.and_then(|size| usize::try_from(size.saturating_sub(from)).ok());
        // Includes the room that the transfer waits for before it knows that the end is reached.
        let most = whole.map_or(WINDOW, |whole| whole.saturating_add(PIECE + LEAST).min(WINDOW));
        let places = most.div_ceil(LEAST);
        let spared = if is_vouched_for { 0 } else { ALL / LEAST / 2 };
        if self.0.available_permits() < places + spared {
            return None;
        }
        let room = self.0.clone().try_acquire_many_owned(u32::try_from(places).ok()?).ok()?;
        let inside = Inside { ring: Ring::new(from, most), seats: HashMap::new(), next: 0, to_come: Duration::ZERO };
        Some(Window { inside: Mutex::new(inside), taken: Notify::new(), _room: room })
    }
}

/// The bytes that have passed, and those of them that are still in the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Where the window began.
    pub from: u64,
    /// The first byte that is in the window.
    pub start: u64,
    /// The end of the bytes that have passed.
    pub end: u64,
}

impl Passed {
    /// Returns whether none of the bytes that passed has left the window.
    pub fn is_all_there(self) -> bool {
        self.start == self.from
    }
}

/// A window and its readers.
pub struct Window {
    inside: Mutex<Inside>,
    /// Notified when a reader got on, came or left.
    pub taken: Notify,
    _room: OwnedSemaphorePermit,
}

struct Inside {
    ring: Ring,
    seats: HashMap<u64, Reader>,
    /// The number of the next seat.
    next: u64,
    /// How long others waited for readers that have no seat yet.
    to_come: Duration,
}

/// A reader that has a seat.
#[derive(Clone, Copy)]
struct Reader {
    /// Its next byte.
    at: u64,
    /// How long others waited for this reader.
    held_up: Duration,
}

/// Whether there is room for the next bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// There is room, or others have waited long enough for the readers in the way.
    Room,
    /// Some reader has to take bytes first; no reader waits for that.
    Full,
    /// The same, but another reader has taken all bytes that are there. It waits at most this long.
    HeldUp(Duration),
}

impl Window {
    /// Gives a seat to a reader whose next byte is `at`.
    pub fn sit(self: &Arc<Self>, at: u64) -> Seat {
        let mut inside = self.inside();
        let number = inside.next;
        inside.next += 1;
        inside.seats.insert(number, Reader { at, held_up: Duration::ZERO });
        Seat { window: self.clone(), number }
    }

    /// Returns whether `needs` more bytes may come without any of `readers` losing bytes that it does not have yet.
    /// Readers for which others have waited for `patience` may lose bytes.
    pub fn look(&self, needs: usize, readers: usize, patience: Duration) -> Look {
        let inside = self.inside();
        let (start, end) = inside.ring.span();
        let keeps = inside.ring.start_with(needs);
        if keeps == start {
            return Look::Room;
        }
        // A reader that has no seat yet begins where the window does.
        let to_come = (inside.seats.len() < readers).then_some(inside.to_come);
        let behind = inside.seats.values().filter(|reader| reader.at < keeps).map(|reader| reader.held_up);
        let Some(least) = behind.chain(to_come).min() else {
            return Look::Room;
        };
        match (inside.seats.values().any(|reader| reader.at >= end), patience.saturating_sub(least)) {
            (false, _) => Look::Full,
            (true, Duration::ZERO) => Look::Room,
            (true, left) => Look::HeldUp(left),
        }
    }

    /// Notes that others waited for the readers that are in the way of `needs` more bytes.
    pub fn waited(&self, needs: usize, readers: usize, waited: Duration) {
        let mut inside = self.inside();
        let keeps = inside.ring.start_with(needs);
        if inside.seats.len() < readers {
            inside.to_come += waited;
        }
        let behind = inside.seats.values_mut().filter(|reader| reader.at < keeps);
        behind.for_each(|reader| reader.held_up += waited);
    }

    /// Adds the next piece; drops the first pieces where there is no room. Returns the range of bytes in the window.
    pub fn push(&self, piece: Piece) -> (u64, u64) {
        let mut inside = self.inside();
        inside.ring.push(piece);
        inside.ring.span()
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({:?})", self.inside().ring.span())
    }
}

/// A reader's seat at a window, until it is dropped.
#[derive(Debug)]
pub struct Seat {
    window: Arc<Window>,
    number: u64,
}

impl Seat {
    /// Notes that the reader's next byte is `at`.
    pub fn is_at(&self, at: u64) {
        if let Some(reader) = self.window.inside().seats.get_mut(&self.number) {
            reader.at = at;
        }
        self.window.taken.notify_waiters();
    }

    /// Returns the bytes from `at` on, as far as they are one piece; no bytes at the end. `None`: they are not in the
    /// window any more.
    pub fn take(&self, at: u64) -> Option<Piece> {
        self.window.inside().ring.piece(at)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.window.inside().seats.remove(&self.number);
        self.window.taken.notify_waiters();
    }
}

/// Pieces of an object, without gaps.
struct Ring {
    pieces: VecDeque<(u64, Piece)>,
    end: u64,
    /// The memory that the pieces count as, in bytes.
    cost: usize,
    /// Most memory that they may count as.
    most: usize,
}

impl Ring {
    fn new(from: u64, most: usize) -> Self {
        Self { pieces: VecDeque::new(), end: from, cost: 0, most }
    }

    fn span(&self) -> (u64, u64) {
        (self.pieces.front().map_or(self.end, |(start, _)| *start), self.end)
    }

    fn push(&mut self, piece: Piece) {
        let cost = cost(&piece);
        while self.cost + cost > self.most
            && let Some((_, first)) = self.pieces.pop_front()
        {
            self.cost -= self::cost(&first);
        }
        let start = self.end;
        self.end += piece.bytes.len() as u64;
        self.cost += cost;
        self.pieces.push_back((start, piece));
    }

    /// Returns where the ring begins once there is room for `needs` more bytes.
    fn start_with(&self, needs: usize) -> u64 {
        let mut left = (self.cost + needs).saturating_sub(self.most);
        for (start, piece) in &self.pieces {
            if left == 0 {
                return *start;
            }
            left = left.saturating_sub(cost(piece));
        }
        self.end
    }

    fn piece(&self, at: u64) -> Option<Piece> {
        let (start, end) = self.span();
        if at < start || at > end {
            return None;
        }
        let behind = self.pieces.partition_point(|(start, _)| *start <= at);
        match self.pieces.get(behind.wrapping_sub(1)) {
            Some((start, piece)) if at < self.end => {
                let mut piece = piece.clone();
                // Fits: it is at most the piece's length.
                let _before = piece.bytes.split_to((at - start) as usize);
                Some(piece)
            }
            _ => Some(Piece::default()),
        }
    }
}

fn cost(piece: &Piece) -> usize {
    piece.bytes.len().max(LEAST)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn piece(start: u64, length: usize) -> Piece {
        let bytes: Vec<u8> = (start..start + length as u64).map(|at| (at % 251) as u8).collect();
        Piece { bytes: bytes.into(), hasher: None }
    }

    fn at(window: &Window, at: u64) -> Option<Bytes> {
        window.inside().ring.piece(at).map(|piece| piece.bytes)
    }

    #[test]
    fn the_most_recent_bytes_are_there_and_no_others() {
        let windows = Windows::default();
        let window = windows.open(7, None, true).expect("room");
        let mut end = 7;
        for length in (1..3000).map(|at| at * 7919 % PIECE + 1) {
            let (start, now) = window.push(piece(end, length));
            assert_eq!(now, end + length as u64);
            end = now;
            assert!(end - start <= WINDOW as u64 && (start == 7 || end - start > WINDOW as u64 / 2));
            for offset in [start, start + 1, u64::midpoint(start, end), end - 1] {
                let bytes = at(&window, offset).expect("there");
                assert!(!bytes.is_empty() && bytes == piece(offset, bytes.len()).bytes);
            }
            assert_eq!(at(&window, end), Some(Bytes::new()));
            assert_eq!((at(&window, start - 1), at(&window, end + 1)), (None, None));
        }
    }

    #[test]
    fn pieces_of_a_byte_take_no_more_memory_than_large_ones() {
        let window = Windows::default().open(0, None, true).expect("room");
        for start in 0..5000 {
            window.push(piece(start, 1));
        }
        assert_eq!(window.inside().ring.pieces.len(), WINDOW / LEAST);
    }

    #[test]
    fn all_windows_together_are_bounded_and_half_is_for_sources_of_the_configuration() {
        let windows = Windows::default();
        let large = |is_vouched_for| windows.open(0, Some(1 << 40), is_vouched_for);
        let of_strangers: Vec<_> = std::iter::from_fn(|| large(false)).collect();
        assert_eq!(of_strangers.len(), ALL / WINDOW / 2);
        let mut of_ours: Vec<_> = std::iter::from_fn(|| large(true)).collect();
        assert_eq!(of_ours.len(), ALL / WINDOW / 2);
        of_ours.pop();
        assert!(large(false).is_none());
        // Small objects take little memory.
        let small: Vec<_> = std::iter::from_fn(|| windows.open(0, Some(1000), true)).collect();
        assert_eq!(small.len(), WINDOW / (PIECE + 2 * LEAST));
        drop((of_strangers, of_ours, small));
        assert_eq!(windows.0.available_permits(), ALL / LEAST);
    }

    #[test]
    fn it_waits_for_readers_who_are_behind_and_for_those_who_are_to_come() {
        let window = Arc::new(Windows::default().open(0, None, true).expect("room"));
        let (slow, fast) = (window.sit(0), window.sit(0));
        let mut end = 0;
        let patience = Duration::from_secs(2);
        let look = |needs, readers| window.look(needs, readers, patience);
        while look(PIECE, 2) == Look::Room {
            end = window.push(piece(end, PIECE)).1;
        }
        assert_eq!(end, WINDOW as u64);
        assert_eq!(look(PIECE, 2), Look::Full);
        fast.is_at(end);
        assert_eq!(look(PIECE, 2), Look::HeldUp(patience));
        slow.is_at(PIECE as u64);
        assert_eq!(look(PIECE, 2), Look::Room);
        assert_eq!(look(PIECE + 1, 2), Look::HeldUp(patience));
        assert_eq!(look(PIECE, 3), Look::HeldUp(patience), "one has not sat down yet");
        slow.is_at(0);
        window.waited(PIECE, 2, patience / 2);
        assert_eq!(look(PIECE, 2), Look::HeldUp(patience / 2));
        window.waited(PIECE, 2, patience / 2);
        assert_eq!(look(PIECE, 2), Look::Room, "it was waited for long enough");
        let other = window.sit(0);
        assert_eq!(look(PIECE, 3), Look::HeldUp(patience), "not the other");
        drop((slow, other));
        assert_eq!(look(PIECE, 1), Look::Room, "who left is not waited for");
        window.push(piece(end, PIECE));
        assert!(fast.take(0).is_none() && fast.take(end).is_some());
    }

    #[test]
    fn an_object_that_is_smaller_is_there_to_its_end() {
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 3] {
            let window = Arc::new(Windows::default().open(0, Some(size as u64), true).expect("room"));
            let seat = window.sit(0);
            let mut end = 0;
            while end < size as u64 {
                assert_eq!(window.look(PIECE, 2, Duration::ZERO), Look::Room);
                end = window.push(piece(end, PIECE.min(size - end as usize))).1;
            }
            // The transfer looks for room once more before the end is known.
            assert_eq!(window.look(PIECE, 2, Duration::ZERO), Look::Room);
            assert_eq!(seat.take(0).map(|piece| piece.bytes.len()), Some(size.min(PIECE)));
        }
    }
}
