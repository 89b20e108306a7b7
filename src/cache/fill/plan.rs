//! Plans which bytes of an object to fetch next: in order by default; first what a reader far ahead waits for; several
//! ranges at once where more connections are allowed. Pure.

use crate::cache::ranges::RangeSet;

/// A reader that waits for a byte at most this far ahead of a transfer waits for that transfer. In bytes.
pub const NEAR: u64 = 1 << 20;
/// Bytes fetched for a reader far ahead that does not state its end, and for one of the chunks of [`View::in_chunks`].
const SIDE_CHUNK: u64 = 4 << 20;
/// Fewest bytes fetched on the side: clients of zstd:chunked layers ask for many parts with a few bytes between them.
const SIDE_LEAST: u64 = 64 << 10;
/// Most side ranges under way, beside the transfers in order.
pub const MAX_SIDE: usize = 2;
/// Smallest range for a parallel connection, in bytes.
const MIN_CHUNK: u64 = 4 << 20;
/// Largest range for a parallel connection or on the side, in bytes.
const MAX_CHUNK: u64 = 32 << 20;

/// The bytes that a running transfer is to bring: its next byte is `at`, and it ends before `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub at: u64,
    pub until: u64,
}

/// The bytes that a reader waits for: from `at`, up to `end` where the reader states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    pub at: u64,
    pub end: Option<u64>,
}

/// The state of a fill that the plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub size: u64,
    pub present: &'a RangeSet,
    pub claims: &'a [Claim],
    pub wants: &'a [Want],
    /// Most transfers in order at once.
    pub connections: usize,
    /// Whether ranges may be fetched for readers far ahead.
    pub may_side: bool,
    /// Whether such a range was fetched. The rest is then requested in chunks that need not be cut off: bytes that a
    /// cut connection has under way are lost.
    pub in_chunks: bool,
}

/// The next transfer to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    pub from: u64,
    pub until: u64,
    /// The claim, by its position, that ends at `from` from now on.
    pub shortens: Option<usize>,
    /// Whether the transfer is for a reader far ahead.
    pub is_side: bool,
}

/// Returns the transfer to begin now; `None`: nothing to begin until something changes.
pub fn next(view: View<'_>) -> Option<Next> {
    side_range(view).or_else(|| in_order(view))
}

fn side_range(view: View<'_>) -> Option<Next> {
    if !view.may_side || view.claims.len() >= view.connections + MAX_SIDE {
        return None;
    }
    view.wants.iter().find_map(|want| {
        let is_missing = want.at < view.size && view.present.run_end(want.at) == want.at;
        let holder = view.claims.iter().position(|claim| claim.at <= want.at && want.at < claim.until);
        let is_coming = holder
            .map(|holder| view.claims[holder])
            .is_some_and(|claim| want.at - claim.at <= NEAR || claim.until - claim.at <= SIDE_CHUNK);
        if !is_missing || is_coming || view.claims.is_empty() {
            return None;
        }
        let wished = want.end.map_or(want.at + SIDE_CHUNK, |end| end.clamp(want.at + SIDE_LEAST, want.at + MAX_CHUNK));
        let until = wished.min(gap_end(view, want.at));
        let shortens = holder;
        Some(Next { from: want.at, until: until.max(want.at + 1), shortens, is_side: true })
    })
}

fn in_order(view: View<'_>) -> Option<Next> {
    if view.claims.len() >= view.connections {
        return None;
    }
    let chunk = |rest: u64| (rest / (2 * view.connections as u64)).clamp(MIN_CHUNK, MAX_CHUNK);
    if let Some((from, end)) = first_gap(view) {
        let until = match view.connections {
            1 if view.in_chunks => end.min(from + SIDE_CHUNK),
            1 => end,
            _ => end.min(from + chunk(end - from)),
        };
        return Some(Next { from, until, shortens: None, is_side: false });
    }
    // All missing bytes are claimed: a free connection takes a part of the longest claim.
    let (longest, claim) = view.claims.iter().enumerate().max_by_key(|(_, claim)| claim.until - claim.at)?;
    let rest = claim.until - claim.at;
    if rest < 2 * MIN_CHUNK {
        return None;
    }
    let from = claim.at + chunk(rest);
    let until = claim.until.min(from + chunk(rest));
    Some(Next { from, until, shortens: Some(longest), is_side: false })
}

/// Returns the first bytes that are neither there nor claimed.
fn first_gap(view: View<'_>) -> Option<(u64, u64)> {
    let mut at = 0;
    while at < view.size {
        let after_present = view.present.run_end(at);
        let after_claims = view.claims.iter().filter(|claim| claim.at <= at && at < claim.until);
        let next = after_claims.map(|claim| claim.until).max().unwrap_or(at).max(after_present);
        if next == at {
            return Some((at, gap_end(view, at)));
        }
        at = next;
    }
    None
}

/// Returns where the missing bytes from `at` on end: at bytes that are there, at another claim, or at the end of the
/// object.
fn gap_end(view: View<'_>, at: u64) -> u64 {
    let claimed = view.claims.iter().map(|claim| claim.at).filter(|&start| start > at).min();
    let present = view.present.next_start(at);
    view.size.min(claimed.unwrap_or(u64::MAX)).min(present.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn view<'a>(present: &'a RangeSet, claims: &'a [Claim], wants: &'a [Want], connections: usize) -> View<'a> {
        View { size: 256 * MIB, present, claims, wants, connections, may_side: true, in_chunks: false }
    }

    #[test]
    fn one_connection_goes_in_order_to_the_end() {
        let present = RangeSet::default();
        let first = next(view(&present, &[], &[], 1)).expect("a transfer");
        assert_eq!((first.from, first.until), (0, 256 * MIB));
        let claim = Claim { at: 5, until: 256 * MIB };
        assert_eq!(next(view(&present, &[claim], &[], 1)), None);
    }

    #[test]
    fn a_reader_far_ahead_gets_its_range_on_the_side() {
        let present = RangeSet::default();
        let claims = [Claim { at: MIB, until: 256 * MIB }];
        let want = Want { at: 200 * MIB, end: Some(200 * MIB + 65_536) };
        let side = next(view(&present, &claims, &[want], 1)).expect("a transfer");
        let expected = Next { from: want.at, until: want.at + 65_536, shortens: Some(0), is_side: true };
        assert_eq!(side, expected);
        let near = Want { at: MIB + 10, end: None };
        assert_eq!(next(view(&present, &claims, &[near], 1)), None);
    }

    #[test]
    fn free_connections_share_what_is_left() {
        let present = RangeSet::default();
        let claims = [Claim { at: 0, until: 256 * MIB }];
        let second = next(view(&present, &claims, &[], 4)).expect("a transfer");
        assert_eq!(second, Next { from: 32 * MIB, until: 64 * MIB, shortens: Some(0), is_side: false });
    }

    proptest! {
        /// Carrying out the plan fetches every byte, and none twice.
        #[test]
        fn every_byte_is_fetched_once(
            size in 1u64..200,
            connections in 1usize..5,
            wants in prop::collection::vec(0u64..200, 0..4),
            in_chunks in any::<bool>(),
            there in prop::collection::vec((0u64..200, 1u64..30), 0..4),
            order in prop::collection::vec(any::<u8>(), 400),
        ) {
            // In units of half a MiB, so that chunks and nearness matter.
            let unit = MIB / 2;
            let size = size * unit;
            let mut present = RangeSet::default();
            for (start, length) in there {
                let start = (start * unit).min(size);
                present.insert(start, (start + length * unit).min(size));
            }
            let wants: Vec<_> = wants.iter().map(|at| Want { at: at * unit, end: None }).collect();
            let mut claims: Vec<Claim> = Vec::new();
            let mut order = order.into_iter().cycle();
            for _ in 0..100_000 {
                let view = View { size, present: &present, claims: &claims, wants: &wants, connections, may_side: true, in_chunks };
                if let Some(next) = next(view) {
                    if let Some(shortened) = next.shortens {
                        prop_assert!(claims[shortened].at <= next.from && next.from < claims[shortened].until);
                        claims[shortened].until = next.from;
                    }
                    prop_assert!(next.from < next.until && next.until <= size);
                    prop_assert!(present.next_start(next.from).is_none_or(|start| start >= next.until));
                    prop_assert!(claims.iter().all(|claim| claim.until <= next.from || next.until <= claim.at));
                    claims.push(Claim { at: next.from, until: next.until });
                    claims.retain(|claim| claim.at < claim.until);
                    continue;
                }
                if claims.is_empty() {
                    break;
                }
                let at = usize::from(order.next().unwrap_or(0)) % claims.len();
                let claim = &mut claims[at];
                let step = unit.min(claim.until - claim.at);
                prop_assert!(present.run_end(claim.at) == claim.at, "fetched twice");
                present.insert(claim.at, claim.at + step);
                claim.at += step;
                claims.retain(|claim| claim.at < claim.until);
            }
            prop_assert!(present.covers(0, size));
        }
    }
}
