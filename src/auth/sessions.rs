//! The sessions of people who logged in to the dashboard.
//!
//! They are in the memory of this process, and the browser has an identifier only. So a log-out ends a session for
//! good, and no claim, however many groups it lists, has to fit into a cookie. The price: a restart ends all sessions,
//! and each instance has its own. Logging in again is one click where the issuer still knows the person.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;

use super::Claims;
use crate::clock::Instant;
use crate::config::Secret;
use crate::fingerprint;
use crate::random::{self, NoRandomness};

/// Most sessions at once; one more ends the oldest.
const MOST: usize = 500;
/// Most sessions of one person: so nobody ends those of all others.
const OF_ONE: usize = 10;

/// All sessions, by a digest of their identifiers.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<[u8; 32], Session>>);

/// The session of a person.
#[derive(Clone, Debug)]
pub struct Session {
    /// What the ID token said of the person.
    pub claims: Arc<Claims>,
    /// The ID token, unless it is long: an issuer that is asked to log somebody out wants to see it.
    pub id_token: Option<Secret>,
    since: Instant,
}

impl Session {
    /// Returns whether the session is younger than this.
    pub fn is_younger(&self, age: Duration) -> bool {
        self.since.elapsed() < age
    }

    fn is_of(&self, claims: &Claims) -> bool {
        self.claims.issuer == claims.issuer && self.claims.subject() == claims.subject()
    }
}

impl Sessions {
    /// Begins a session. Returns its identifier, which is as hard to guess as a key.
    pub fn begin(&self, claims: Arc<Claims>, id_token: Option<Secret>) -> Result<String, NoRandomness> {
        let id = random::text()?;
        let mut sessions = self.lock();
        let of_one = sessions.values().filter(|session| session.is_of(&claims)).count();
        let oldest = sessions.iter().filter(|(_, session)| of_one < OF_ONE || session.is_of(&claims));
        let oldest = oldest.min_by_key(|(_, session)| session.since).map(|(key, _)| *key);
        if let Some(oldest) = oldest.filter(|_| of_one >= OF_ONE || sessions.len() >= MOST) {
            sessions.remove(&oldest);
        }
        sessions.insert(key(&id), Session { claims, id_token, since: Instant::now() });
        Ok(id)
    }

    /// Returns the session with this identifier.
    pub fn get(&self, id: &str) -> Option<Session> {
        self.lock().get(&key(id)).cloned()
    }

    /// Ends a session, and returns what it was.
    pub fn end(&self, id: &str) -> Option<Session> {
        self.lock().remove(&key(id))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what stands for an identifier: how long a look-up takes tells nothing about other identifiers.
fn key(id: &str) -> [u8; 32] {
    fingerprint::of(&[b"session", id.as_bytes()])
}

/// Returns the text by which a request proves that it comes from a page of the session: no other page can read it.
pub fn csrf_token(id: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(fingerprint::of(&[b"page of session", id.as_bytes()]))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn claims(subject: &str) -> Arc<Claims> {
        let Value::Object(values) = json!({ "sub": subject }) else { unreachable!("an object") };
        Arc::new(Claims { issuer: "company".into(), values })
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_are_few_and_nobody_ends_those_of_others() {
        let sessions = Sessions::default();
        let begin = async |subject: &str| {
            tokio::time::advance(Duration::from_secs(1)).await;
            sessions.begin(claims(subject), None).expect("random numbers")
        };
        let first = begin("alice").await;
        let mut eves = Vec::new();
        for _ in 0..2 * MOST {
            eves.push(begin("eve").await);
        }
        assert!(sessions.get(&first).is_some(), "eve has 10 and no more");
        assert_eq!(eves.iter().filter(|id| sessions.get(id).is_some()).count(), OF_ONE);
        assert!(sessions.get(&eves[eves.len() - 1]).is_some(), "the newest is there");
        for number in 0..MOST {
            begin(&format!("person {number}")).await;
        }
        assert_eq!(sessions.lock().len(), MOST);
        assert!(sessions.get(&first).is_none(), "the oldest made room");
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_has_an_age_and_an_end() {
        let sessions = Sessions::default();
        let id = sessions.begin(claims("alice"), None).expect("random numbers");
        let other = sessions.begin(claims("alice"), None).expect("random numbers");
        assert!(id != other && csrf_token(&id) != csrf_token(&other) && csrf_token(&id) != id);
        tokio::time::advance(Duration::from_secs(60)).await;
        let session = sessions.get(&id).expect("a session");
        assert!(session.is_younger(Duration::from_secs(61)) && !session.is_younger(Duration::from_secs(60)));
        assert!(sessions.end(&id).is_some() && sessions.get(&id).is_none() && sessions.end(&id).is_none());
        assert!(sessions.get(&other).is_some() && sessions.get("").is_none());
    }
}
