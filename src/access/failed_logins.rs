//! Failed logins in the log: one line each, and of a flood only the number.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::auth::ClientAddress;
use crate::clock::Instant;

/// Most lines in [`MINUTE`].
const MOST: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);
/// Most characters of a name.
const LONGEST: usize = 64;
/// Most characters of a reason.
const LONGEST_REASON: usize = 500;

/// The failed logins of the last minute.
#[derive(Default)]
pub struct FailedLogins(Mutex<Tally>);

#[derive(Default)]
struct Tally {
    /// When the first login of this minute failed.
    since: Option<Instant>,
    told: u32,
    untold: u64,
}

impl FailedLogins {
    /// Writes a line. `name`: the user name as the client wrote it; `None` for a token.
    pub fn tell(self: &Arc<Self>, client: ClientAddress, name: Option<&str>) {
        if !self.has_room() {
            return;
        }
        // A password may stand where the name belongs, but nobody can tell; so a name is cut, and nothing else is told.
        let name = name.map_or_else(|| "(a token)".to_owned(), printable);
        tracing::info!(%client, name, "a login failed");
    }

    /// Writes a line about a login in a browser by an issuer. `person`: who the issuer says it is, if it did.
    pub fn tell_in_browser(
        self: &Arc<Self>,
        client: ClientAddress,
        issuer: &str,
        person: Option<&str>,
        why: &dyn fmt::Display,
    ) {
        if self.has_room() {
            let name = person.map_or_else(|| "(a login in a browser)".to_owned(), printable);
            tracing::info!(%client, name, issuer, why = printable_to(&why.to_string(), LONGEST_REASON), "a login failed");
        }
    }

    /// Counts a failed login, and returns whether it gets a line of its own.
    fn has_room(self: &Arc<Self>) -> bool {
        let mut tally = self.lock();
        let since = *tally.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= MINUTE {
            sum_up(&mut tally);
            tally.since = Some(Instant::now());
        }
        if tally.told < MOST {
            tally.told += 1;
            return true;
        }
        tally.untold += 1;
        if tally.untold == 1 {
            let me = self.clone();
            let left = MINUTE.saturating_sub(since.elapsed());
            tokio::spawn(async move {
                tokio::time::sleep(left).await;
                sum_up(&mut me.lock());
            });
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the minute.
fn sum_up(tally: &mut Tally) {
    if tally.untold > 0 {
        tracing::warn!(count = tally.untold, "further logins failed within a minute");
    }
    *tally = Tally::default();
}

/// Returns a name as one piece without control characters, cut where it is long.
pub fn printable(name: &str) -> String {
    printable_to(name, LONGEST)
}

fn printable_to(name: &str, longest: usize) -> String {
    let mut shown: String = name.chars().take(longest).flat_map(char::escape_debug).collect();
    if name.chars().nth(longest).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_gets_few_lines_and_a_sum() {
        let failed = Arc::new(FailedLogins::default());
        assert_eq!((0..1000).filter(|_| failed.has_room()).count(), MOST as usize);
        assert_eq!(failed.lock().untold, 970);
        tokio::time::sleep(MINUTE + Duration::from_millis(1)).await;
        assert_eq!(failed.lock().untold, 0, "it was summed up though nobody came any more");
        assert!(failed.has_room(), "the next minute begins anew");
    }

    #[test]
    fn a_name_makes_no_line_of_its_own() {
        assert_eq!(printable("bob\n\u{1b}[31mroot"), "bob\\n\\u{1b}[31mroot");
        let long = printable(&"x".repeat(100_000));
        assert!(long.chars().count() == LONGEST + 1 && long.ends_with('…'), "{long}");
    }
}
