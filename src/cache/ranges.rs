//! A set of byte ranges: which parts of an object are there. Pure.

/// Ranges in order, at least one byte apart; ends exclusive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(Vec<(u64, u64)>);

impl RangeSet {
    /// Adds `[start, end)`, and joins it with the ranges that it touches.
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let from = self.0.partition_point(|range| range.1 < start);
        let to = self.0.partition_point(|range| range.0 <= end);
        let merged = match self.0.get(from..to) {
            Some([first, .., last]) => (start.min(first.0), end.max(last.1)),
            Some([only]) => (start.min(only.0), end.max(only.1)),
            _ => (start, end),
        };
        self.0.splice(from..to, [merged]);
    }

    /// Returns the end of the unbroken run that holds byte `at`; `at` itself if that byte is missing.
    pub fn run_end(&self, at: u64) -> u64 {
        let next = self.0.partition_point(|range| range.1 <= at);
        match self.0.get(next) {
            Some(&(start, end)) if start <= at => end,
            _ => at,
        }
    }

    /// Returns the first byte at or behind `at` that is there.
    pub fn next_start(&self, at: u64) -> Option<u64> {
        let next = self.0.partition_point(|range| range.1 <= at);
        self.0.get(next).map(|range| range.0.max(at))
    }

    /// Returns whether all of `[start, end)` is there.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        start >= end || self.run_end(start) >= end
    }

    /// Returns how many bytes are there.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|range| range.1 - range.0).sum()
    }

    /// Takes the last byte out.
    pub fn remove_last(&mut self) {
        if let Some(last) = self.0.last_mut() {
            last.1 -= 1;
        }
        self.0.retain(|range| range.0 < range.1);
    }

    /// Returns whether no byte is there.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Compares the set with a plain array of flags.
        #[test]
        fn it_behaves_as_a_set_of_bytes(inserts in prop::collection::vec((0u64..64, 0u64..64), 0..24), probe in 0u64..70) {
            let mut set = RangeSet::default();
            let mut model = [false; 80];
            for (start, length) in inserts {
                let end = (start + length).min(64);
                set.insert(start, end);
                (start..end).for_each(|at| model[at as usize] = true);
            }
            let run_end = (probe..80).find(|&at| !model[at as usize]).unwrap_or(80);
            prop_assert_eq!(set.run_end(probe), run_end);
            let next = (probe..80).find(|&at| model[at as usize]);
            prop_assert_eq!(set.next_start(probe), next);
            prop_assert_eq!(set.len(), model.iter().filter(|there| **there).count() as u64);
            let ranges: Vec<_> = set.iter().collect();
            prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", ranges);
        }
    }
}
