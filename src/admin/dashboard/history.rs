//! The figures of the last day, for charts: in memory, of bounded number.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use super::super::stats;
use crate::clock;
use crate::services::Services;

/// How often a sample is taken.
const EVERY: Duration = Duration::from_secs(10);
/// Samples that are kept: those of a day.
const KEPT: usize = 24 * 60 * 6;

/// What was counted since the start of the process until a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// By the clock that never jumps.
    pub at: SystemTime,
    pub counts: Counts,
}

/// Figures that only grow while the configuration stays; and one that also falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub hits: u64,
    pub misses: u64,
    pub stale: u64,
    pub failed: u64,
    /// Bytes to clients.
    pub served: u64,
    /// Bytes from upstreams.
    pub fetched: u64,
    /// Bytes of the stored objects at the end of the time.
    pub used: u64,
}

impl Counts {
    /// Returns how much was added since an earlier moment.
    pub fn since(self, before: Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(before.hits),
            misses: self.misses.saturating_sub(before.misses),
            stale: self.stale.saturating_sub(before.stale),
            failed: self.failed.saturating_sub(before.failed),
            served: self.served.saturating_sub(before.served),
            fetched: self.fetched.saturating_sub(before.fetched),
            used: self.used,
        }
    }

    /// Returns the sum of this and what was added later.
    fn and(self, more: Self) -> Self {
        Self {
            hits: self.hits + more.hits,
            misses: self.misses + more.misses,
            stale: self.stale + more.stale,
            failed: self.failed + more.failed,
            served: self.served + more.served,
            fetched: self.fetched + more.fetched,
            used: more.used,
        }
    }

    /// Returns how many requests were answered.
    pub fn answers(self) -> u64 {
        self.hits + self.misses + self.stale + self.failed
    }
}

/// The samples of the last day.
#[derive(Debug, Default)]
pub struct History(Mutex<VecDeque<Sample>>);

impl History {
    /// Keeps a sample; the oldest goes.
    pub fn add(&self, sample: Sample) {
        let mut samples = self.samples();
        if samples.len() >= KEPT {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// Returns what was counted in each of `slots` equal parts of the time `span` before `now`, the oldest first. `None`
    /// for a part of which nothing is known. What was counted between two samples belongs to the part of the later one.
    pub fn slots(&self, span: Duration, slots: u32, now: Sample) -> Vec<Option<Counts>> {
        let begin = now.at.checked_sub(span).unwrap_or(SystemTime::UNIX_EPOCH);
        let slot = span / slots;
        let mut found = vec![None::<Counts>; slots as usize];
        let samples = self.samples();
        // One sample from before the span is needed to know what was added within it.
        let first = samples.partition_point(|sample| sample.at < begin).saturating_sub(1);
        let within: Vec<_> = samples.range(first..).copied().chain([now]).collect();
        drop(samples);
        for pair in within.windows(2) {
            let Ok(since) = pair[1].at.duration_since(begin) else { continue };
            // A sample at the very end of a part belongs to it.
            let passed = since.as_millis().saturating_sub(1);
            let at = (passed / slot.as_millis().max(1)).min(u128::from(slots) - 1);
            let added = pair[1].counts.since(pair[0].counts);
            #[allow(clippy::cast_possible_truncation)]
            let place = &mut found[at as usize];
            *place = Some(place.unwrap_or_default().and(added));
        }
        found
    }

    /// Returns what was counted since the last sample but one, and in what time: what happens now.
    pub fn lately(&self, now: Sample) -> (Counts, Duration) {
        let samples = self.samples();
        let before = samples.iter().rev().nth(1).or(samples.back()).copied().unwrap_or(now);
        (now.counts.since(before.counts), now.at.duration_since(before.at).unwrap_or_default())
    }

    fn samples(&self) -> MutexGuard<'_, VecDeque<Sample>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the figures of this moment.
pub fn now(services: &Services) -> Sample {
    let stats = stats::of(services);
    let counts = Counts {
        hits: stats.hits,
        misses: stats.misses,
        stale: stats.stale,
        failed: stats.repositories.values().map(|repository| repository.failed).sum(),
        served: stats.traffic.bytes_served,
        fetched: stats.traffic.bytes_fetched,
        used: u64::try_from(stats.current_size).unwrap_or(0),
    };
    Sample { at: clock::steady(), counts }
}

/// Takes a sample now and then, for as long as the services are there.
pub async fn keep(history: Arc<History>, services: Weak<Services>) {
    let mut ticks = tokio::time::interval(EVERY);
    // After a time in which the machine slept, one sample is enough.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let Some(services) = services.upgrade() else { return };
        history.add(now(&services));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(seconds: u64, hits: u64) -> Sample {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        Sample { at, counts: Counts { hits, ..Counts::default() } }
    }

    fn hits(history: &History, span: u64, slots: u32, now: Sample) -> Vec<Option<u64>> {
        let found = history.slots(Duration::from_secs(span), slots, now);
        found.into_iter().map(|counts| counts.map(|counts| counts.hits)).collect()
    }

    #[test]
    fn each_part_has_what_was_added_in_it_and_unknown_parts_stay_empty() {
        let history = History::default();
        for (seconds, count) in [(0, 5), (10, 7), (20, 7), (30, 10)] {
            history.add(sample(seconds, count));
        }
        assert_eq!(hits(&history, 60, 6, sample(35, 11)), [None, None, None, Some(2), Some(0), Some(4)]);
        let now = Sample { counts: Counts { used: 3, ..sample(35, 11).counts }, ..sample(35, 11) };
        let slots = history.slots(Duration::from_secs(60), 6, now);
        assert_eq!(slots[5].map(|counts| counts.used), Some(3), "what is there at the end");
        // What was counted before the span is not in it.
        assert_eq!(hits(&history, 20, 2, sample(35, 11)), [Some(0), Some(4)]);
        // A counter that was set back adds nothing.
        assert_eq!(hits(&history, 20, 2, sample(35, 3)), [Some(0), Some(3)]);
    }

    #[test]
    fn the_first_moment_has_no_past() {
        let history = History::default();
        assert_eq!(hits(&history, 60, 3, sample(5, 5)), [None, None, None]);
        assert_eq!(history.lately(sample(5, 5)), (Counts::default(), Duration::ZERO));
        history.add(sample(0, 1));
        assert_eq!(history.lately(sample(5, 5)).0.hits, 4);
    }

    #[test]
    fn figures_of_a_day_are_kept_and_no_more() {
        let history = History::default();
        for number in 0..KEPT as u64 + 100 {
            history.add(sample(number * 10, number));
        }
        assert_eq!(history.samples().len(), KEPT);
        let day = hits(&history, 86_400, 24, sample((KEPT as u64 + 100) * 10, KEPT as u64 + 100));
        assert_eq!(day.iter().map(|hour| hour.unwrap_or_default()).collect::<Vec<_>>(), [360; 24]);
    }

    #[tokio::test(start_paused = true)]
    async fn samples_are_taken_until_the_services_are_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let services = Arc::new(Services::in_directory(dir.path()));
        let history = Arc::new(History::default());
        let task = tokio::spawn(keep(history.clone(), Arc::downgrade(&services)));
        tokio::time::sleep(Duration::from_secs(35)).await;
        assert_eq!(history.samples().len(), 4);
        drop(services);
        task.await.expect("it ends");
    }
}
