//! Registries that clients ask for and that no repository is for: each is logged once.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Most registries that are logged: clients choose the names, and a log must not grow by them without end.
const MOST: usize = 100;
/// Longest name that is logged, in characters: the longest host with a port.
const LONGEST: usize = 259;

/// The registries that were logged.
#[derive(Debug, Default)]
pub struct Unknown(Mutex<HashSet<String>>);

impl Unknown {
    /// Logs a registry that no repository is for, if it was not logged before.
    pub fn tell(&self, registry: &str) {
        let registry: String = registry.chars().take(LONGEST).collect();
        if self.note(&registry) {
            tracing::warn!(
                registry,
                "a client asked for a registry that no repository is for; to cache it, add [repository.\"{registry}\"]"
            );
        }
    }

    /// Returns whether the registry is new and there is room to note it.
    fn note(&self, registry: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < MOST && told.insert(registry.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_registry_is_told_once_and_only_so_many() {
        let unknown = Unknown::default();
        let told: Vec<_> = ["a.example", "a.example", "b.example"].map(|name| unknown.note(name)).into();
        assert_eq!(told, [true, false, true]);
        let further = (0..1_000).filter(|number| unknown.note(&format!("{number}.example"))).count();
        assert_eq!(further, MOST - 2);
    }
}
