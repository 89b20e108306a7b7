//! The path to a value of the configuration.

use std::fmt;

/// The path to a value, such as `repository."docker.io".upstream[0].url`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPath(Vec<Step>);

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into a table.
    Key(String),
    /// Into a list.
    At(usize),
}

impl KeyPath {
    /// Makes a path of its steps.
    pub fn of(steps: &[Step]) -> Self {
        Self(steps.to_vec())
    }

    /// Returns the path of a key in the table at this path.
    pub fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.to_owned()))
    }

    /// Returns the path of an entry in the list at this path.
    pub fn at(&self, position: usize) -> Self {
        self.with(Step::At(position))
    }

    fn with(&self, step: Step) -> Self {
        Self(self.0.iter().cloned().chain([step]).collect())
    }

    /// Returns the steps of the path.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Returns whether this path leads to the value at `other`, or to a table or list around that value.
    pub fn leads_to(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }

    /// Returns whether the path begins with these keys.
    pub fn begins_with(&self, keys: &[&str]) -> bool {
        self.0.len() >= keys.len() && self.0.iter().zip(keys).all(|(step, key)| step.is_key(key))
    }

    /// Returns whether the last step is this key.
    pub fn ends_with(&self, key: &str) -> bool {
        self.0.last().is_some_and(|step| step.is_key(key))
    }
}

impl Step {
    fn is_key(&self, key: &str) -> bool {
        matches!(self, Self::Key(own) if own == key)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            let dot = if at > 0 { "." } else { "" };
            match step {
                Step::At(position) => write!(f, "[{position}]")?,
                Step::Key(key) if key.contains('.') => write!(f, "{dot}\"{key}\"")?,
                Step::Key(key) => write!(f, "{dot}{key}")?,
            }
        }
        Ok(())
    }
}
