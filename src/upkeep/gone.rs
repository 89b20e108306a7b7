//! Which objects were evicted, and why: lines of the log, each for many objects.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use crate::clock::Instant;

/// How long an eviction waits for its line, so that others are told with it.
const WAIT: Duration = Duration::from_secs(5);
/// Most names in a line.
const MOST: usize = 20;

/// Why objects are evicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Why {
    /// The objects would take more than `max_size`.
    #[default]
    MaxSize,
    /// Less than `min_free` would be free.
    MinFree,
    /// Nobody asked for them within `ttl`.
    Ttl,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::MaxSize => "max_size",
            Self::MinFree => "min_free",
            Self::Ttl => "ttl",
        }
    }
}

/// Evictions that are not told yet.
#[derive(Debug, Default)]
pub struct Gone {
    why: Why,
    since: Option<Instant>,
    objects: usize,
    bytes: u64,
    names: BTreeSet<String>,
    has_further_names: bool,
    /// Whether the line does without further names.
    is_nameless: bool,
}

impl Gone {
    /// Adds objects, with the names that are known of them.
    pub fn add(&mut self, why: Why, objects: usize, bytes: u64, names: Vec<String>) {
        if self.why != why {
            self.tell();
            self.why = why;
        }
        self.since.get_or_insert_with(Instant::now);
        (self.objects, self.bytes) = (self.objects + objects, self.bytes.saturating_add(bytes));
        for name in names {
            match self.names.len() < MOST {
                true => drop(self.names.insert(name)),
                false => self.has_further_names |= !self.names.contains(&name),
            }
        }
    }

    /// Returns whether the line for `why` has room for more names.
    pub fn wants_names(&self, why: Why) -> bool {
        self.why != why || (self.names.len() < MOST && !self.is_nameless)
    }

    /// Notes that names cannot be read: evictions do not wait for them again before the next line.
    pub fn give_up_names(&mut self) {
        self.is_nameless = true;
    }

    /// Returns whether the line has waited long enough.
    pub fn is_due(&self) -> bool {
        self.since.is_some_and(|since| since.elapsed() >= WAIT)
    }

    /// Writes the line, if there is something to tell.
    pub fn tell(&mut self) {
        let Self { why, objects, bytes, .. } = *self;
        if objects > 0 {
            tracing::info!(why = why.as_str(), objects, bytes, names = self.listed(), "evicted");
        }
        *self = Self::default();
    }

    fn listed(&self) -> String {
        let mut listed = String::new();
        for name in &self.names {
            let separator = if listed.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(listed, "{separator}{name}");
        }
        if self.has_further_names {
            listed.push_str(", …");
        }
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_few_names_however_many_objects_go() {
        let mut gone = Gone::default();
        for at in 0..100 {
            gone.add(Why::Ttl, 16, 1000, vec![format!("hub/app:{at:03}"), "hub/app:000".to_owned()]);
        }
        assert_eq!((gone.objects, gone.bytes, gone.names.len()), (1600, 100_000, MOST));
        assert!(gone.listed().starts_with("hub/app:000, hub/app:001, ") && gone.listed().ends_with("hub/app:019, …"));
        assert!(!gone.wants_names(Why::Ttl) && gone.wants_names(Why::MinFree) && !gone.is_due());
        gone.add(Why::MinFree, 1, 1, Vec::new());
        assert_eq!((gone.why, gone.objects, gone.listed().as_str()), (Why::MinFree, 1, ""));
        gone.give_up_names();
        assert!(!gone.wants_names(Why::MinFree));
        gone.tell();
        assert!(gone.objects == 0 && gone.wants_names(Why::MinFree));
    }
}
