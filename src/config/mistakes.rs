//! Finds all mistakes of a configuration, not only the first: a wrong value is left out, and the rest is read again.

use super::error::{ConfigError, ConfigErrors};
use super::key_path::KeyPath;
use super::tree::Node;

/// Most mistakes that are reported at once.
const MOST: usize = 50;

/// The mistakes that were found so far.
#[derive(Debug, Default)]
pub struct Mistakes {
    found: Vec<ConfigError>,
    /// The values that were left out, and those whose check failed only because of these.
    left_out: Vec<KeyPath>,
}

/// How a mistake was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundBy {
    /// By reading the value itself.
    Reading,
    /// By comparing values, of which some may be missing because they were left out.
    Comparing,
}

impl Mistakes {
    /// Adds a mistake and takes its value out of the tree. Returns whether the rest is worth another try.
    pub fn add(&mut self, error: ConfigError, by: FoundBy, tree: &mut Node) -> bool {
        let Some(key) = error.key().cloned() else {
            self.found.push(error);
            return false;
        };
        if by == FoundBy::Reading || !(self.follows(&key) || self.repeats(&error, tree)) {
            self.found.push(error);
        }
        self.left_out.push(key.clone());
        self.left_out.len() < MOST && tree.leave_out(&key)
    }

    /// Returns whether the same was said before of another value, and this one is a default.
    fn repeats(&self, error: &ConfigError, tree: &Node) -> bool {
        let message = |error: &ConfigError| match error {
            ConfigError::Invalid { message, .. } => Some(message.clone()),
            _ => None,
        };
        let is_default = error.key().is_some_and(|key| !tree.has(key));
        is_default && self.found.iter().any(|other| message(other) == message(error))
    }

    /// Returns whether a comparison at `key` may fail only because another value was left out.
    fn follows(&self, key: &KeyPath) -> bool {
        self.left_out.iter().any(|other| {
            let is_around = key.leads_to(other) || other.leads_to(key);
            let is_of = |table: &[&str]| key.begins_with(table) && other.begins_with(table);
            is_around
                || is_near_in_list(key, other)
                || is_of(&["admin"])
                || is_of(&["server", "tls"])
                || (key.ends_with("listen") && other.ends_with("listen"))
                || (key.ends_with("allow") && other.begins_with(&["auth"]))
                || (other.begins_with(&["proxy"]) && (key.ends_with("patterns") || key.begins_with(&["allowlist"])))
        })
    }

    /// Returns the value if there was no mistake.
    pub fn unless_any<T>(self, value: T) -> Result<T, ConfigErrors> {
        if self.found.is_empty() { Ok(value) } else { Err(self.into_errors()) }
    }

    /// Returns the mistakes; there has to be at least one.
    pub fn into_errors(self) -> ConfigErrors {
        ConfigErrors::of(self.found)
    }
}

/// Returns whether two keys are in one `[[warm]]`, in one table of a repository's list (an upstream, or a rule for
/// tags), or in one list of which `other` is a whole table: without it the tables behind it have other positions.
fn is_near_in_list(key: &KeyPath, other: &KeyPath) -> bool {
    let first = |key: &KeyPath, count: usize| key.steps().get(..count).map(<[_]>::to_vec);
    let is_same = |count: usize| first(key, count).is_some() && first(key, count) == first(other, count);
    let is_of_schedule = key.begins_with(&["warm"]) && is_same(2);
    let is_of_list = is_same(4) || (is_same(3) && other.steps().len() == 4);
    is_of_schedule || (key.begins_with(&["repository"]) && is_of_list)
}
