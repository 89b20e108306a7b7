//! What can happen, and how often: sources, readers, kills.

use proptest::prelude::*;

use super::{MAX_STRIKES, MIB};
use crate::cache::fill::HELD_BACK;

#[derive(Clone, Debug)]
pub struct Case {
    /// Size of the right content.
    pub size: u64,
    pub parallel: usize,
    pub sources: Vec<Script>,
    pub readers: Vec<Visit>,
    /// Where flawed sources are wrong: the first place in thousandths of the size, and the distance to each further
    /// place in bytes.
    pub flaws: (u64, u64),
    /// When the process is killed, in milliseconds.
    pub killed_after: Option<u64>,
}

/// What one source does.
#[derive(Clone, Debug)]
pub struct Script {
    pub holds: Holds,
    pub ranges: Ranges,
    pub says_total: bool,
    /// Bytes in one piece, pieces that come at once, milliseconds between them.
    pub pace: (u64, u32, u64),
    /// After how many bytes the next answers break.
    pub breaks: Vec<u64>,
    /// Whether a break looks like the end.
    pub breaks_quietly: bool,
    /// How many openings are refused first: openings of the whole, and of a later part.
    pub refusals: (usize, usize),
    /// Whether the source is still there after a kill.
    pub stays: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Right,
    /// Right, apart from some bytes.
    Flawed,
    /// Longer by this many bytes.
    Longer(u64),
    Shorter(u64),
    /// All is right except the size that the source states, which is wrong by this much.
    Misstated(i64),
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranges {
    Exact,
    /// Answers begin this many bytes too early.
    Before(u64),
    Ignored,
}

/// What one reader does; times in milliseconds.
#[derive(Clone, Debug)]
pub struct Visit {
    pub comes_at: u64,
    /// Where the part begins (in thousandths of the size) and its length in bytes; `None`: the whole.
    pub part: Option<(u64, u64)>,
    pub may_read_unverified: bool,
    pub leaves_after: Option<u64>,
    pub pause: u64,
}

pub fn sizes(is_honest: bool) -> impl Strategy<Value = u64> {
    // Small objects show what goes wrong; ranges on the side and several connections need large objects.
    let (small, large) = if is_honest { (1, 4) } else { (6, 1) };
    prop_oneof![
        1 => 0u64..3,
        small => HELD_BACK - 2..HELD_BACK + 3,
        2 * small => 1u64..300_000,
        small => 300_000..9 * MIB,
        large => 16 * MIB..20 * MIB,
    ]
}

/// Sources with which everything can go wrong. Honest sources only break and refuse, which costs no byte twice.
pub fn scripts(is_honest: bool) -> impl Strategy<Value = Script> {
    let wrong = u32::from(!is_honest);
    let holds = prop_oneof![
        5 => Just(Holds::Right),
        2 * wrong => Just(Holds::Flawed),
        wrong => (1u64..100_000).prop_map(Holds::Longer),
        wrong => prop_oneof![3 => 1u64..100_000, 1 => Just(u64::MAX)].prop_map(Holds::Shorter),
        wrong => prop_oneof![-100_000i64..0, 1i64..100_000].prop_map(Holds::Misstated),
        1 => Just(Holds::Nothing),
    ];
    let ranges = prop_oneof![
        4 => Just(Ranges::Exact),
        wrong => (1u64..50_000).prop_map(Ranges::Before),
        wrong => Just(Ranges::Ignored),
    ];
    let says_total = prop::bool::weighted(if is_honest { 1.0 } else { 0.8 });
    let pace = (prop_oneof![8_000u64..80_000, 20_000u64..700_000], 1u32..4, 1u64..60);
    let breaks = prop::collection::vec(prop_oneof![1u64..100_000, 1..8 * MIB], 0..12);
    (holds, ranges, says_total, pace, breaks, any::<bool>(), (0usize..3, 0usize..3), any::<bool>()).prop_map(
        |(holds, ranges, says_total, pace, breaks, breaks_quietly, refusals, stays)| Script {
            holds,
            ranges,
            says_total,
            pace,
            breaks,
            breaks_quietly,
            refusals,
            stays,
        },
    )
}

pub fn visits() -> impl Strategy<Value = Visit> {
    let part = prop_oneof![1 => Just(None), 1 => (0u64..1000, prop_oneof![1u64..100_000, 1..32 * MIB]).prop_map(Some)];
    let leaves_after = prop_oneof![3 => Just(None), 1 => (1..4 * MIB).prop_map(Some)];
    (prop_oneof![0u64..20, 0u64..300, 0u64..2000], part, any::<bool>(), leaves_after, 0u64..10).prop_map(
        |(comes_at, part, may_read_unverified, leaves_after, pause)| Visit {
            comes_at,
            part,
            may_read_unverified,
            leaves_after,
            pause,
        },
    )
}

pub fn cases(is_honest: bool) -> impl Strategy<Value = Case> {
    let (sources, readers) = (prop::collection::vec(scripts(is_honest), 1..=4), prop::collection::vec(visits(), 0..5));
    let flaws = (0u64..1000, prop_oneof![Just(4096u64), Just(u64::MAX)]);
    let killed_after = prop_oneof![4 => Just(None), 1 => (0u64..100).prop_map(Some), 1 => (0u64..1500).prop_map(Some)];
    (sizes(is_honest), 1usize..=4, sources, readers, flaws, killed_after).prop_map(
        |(size, parallel, sources, readers, flaws, killed_after)| {
            let case = Case { size, parallel, sources, readers, flaws, killed_after };
            case.within_reason()
        },
    )
}

impl Case {
    /// Limits a case to what Larder promises to survive.
    fn within_reason(mut self) -> Self {
        let has_wrong = self.has_wrong();
        for script in &mut self.sources {
            if self.size == 0 && matches!(script.holds, Holds::Flawed | Holds::Shorter(_)) {
                script.holds = Holds::Longer(1);
            }
            if let Holds::Misstated(by) = script.holds {
                // No size smaller than zero can be stated.
                let is_too_short = by < 0 && by.unsigned_abs() > self.size;
                script.holds = if is_too_short { Holds::Misstated(1) } else { script.holds };
                script.says_total = true;
            }
            // A source with the right content is there when it is needed. Where no source is wrong, it may refuse to go
            // on.
            if script.holds == Holds::Right {
                // A source corrects no wrong size if it does not state the size, and does not tell a client that asks
                // for more that there is no more.
                script.says_total |= has_wrong && (script.ranges == Ranges::Ignored || self.size == 0);
                script.stays = true;
                script.refusals.0 = 0;
                script.refusals.1 *= usize::from(!has_wrong);
            }
            if script.ranges != Ranges::Exact {
                // Such an answer may break before it brought anything; three breaks in a row are too many.
                script.breaks.truncate(usize::from(MAX_STRIKES) - 1);
            }
        }
        self
    }

    /// Returns the case after all its sources are gone and one with the right content has come.
    pub fn mended(&self) -> Self {
        let mut mended = self.clone();
        mended.sources.iter_mut().for_each(|script| script.stays = false);
        mended.sources.push(Script {
            holds: Holds::Right,
            ranges: Ranges::Exact,
            says_total: true,
            pace: (100_000, 1, 10),
            breaks: Vec::new(),
            breaks_quietly: false,
            refusals: (0, 0),
            stays: true,
        });
        mended
    }

    /// Returns the case with no source that breaks so often that it is not asked any more.
    pub fn breaking_seldom(mut self) -> Self {
        self.sources.iter_mut().for_each(|script| script.breaks.truncate(usize::from(MAX_STRIKES) - 1));
        self
    }

    pub fn has_wrong(&self) -> bool {
        self.sources.iter().any(|script| !matches!(script.holds, Holds::Right | Holds::Nothing))
    }

    pub fn has_right(&self) -> bool {
        self.sources.iter().any(|script| script.holds == Holds::Right)
    }

    /// Returns whether the bytes that the sources hold may add up to the right content: not where a wrong source is
    /// alone, and not where all are wrong at the same places.
    pub fn may_be_whole(&self) -> bool {
        let mut held = self.sources.iter().map(|script| script.holds).filter(|holds| *holds != Holds::Nothing);
        self.has_right() || (held.clone().count() > 1 && !held.all(|holds| holds == Holds::Flawed))
    }

    /// Returns whether one transfer may take over a part of another's range.
    pub fn is_shared(&self) -> bool {
        self.parallel > 1 || self.readers.iter().any(|reader| reader.part.is_some())
    }

    /// Returns whether each byte has to come only once.
    pub fn is_thrifty(&self) -> bool {
        !self.has_wrong() && self.sources.iter().all(|script| script.ranges == Ranges::Exact && script.says_total)
    }
}
