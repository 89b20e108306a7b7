//! Users of an htpasswd file. A password is compared off the async threads, which takes its time on
//! purpose, once for all requests of a pull: what came of it is remembered for a while.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use super::guesses::Guesses;
use super::{ClientAddress, NotNow};
use crate::config::Htpasswd;
use crate::fingerprint;

/// How long a password that was right is not compared again.
const RIGHT: Duration = Duration::from_secs(300);
/// And one that was wrong.
const WRONG: Duration = Duration::from_secs(10);
const ENTRIES: usize = 10_000;
/// Passwords compared at once.
const AT_ONCE: usize = 2;
/// How long a login waits for its turn.
const PATIENCE: Duration = Duration::from_secs(20);
/// bcrypt looks at no more of a password.
const LONGEST: usize = 72;
/// Compared with where there is no such user, so that the time taken does not tell.
const NOBODY: &str = "$2y$05$2l/MHZxq.k0BTsORQzVQ9uLCLpVkZLNsCV2lnHYV2hKNFVTMmQLLi";

/// The users and what is remembered of their logins.
pub struct Passwords {
    users: Arc<Htpasswd>,
    compared: Cache<[u8; 32], (Instant, bool)>,
    turns: Arc<Semaphore>,
    guesses: Arc<Guesses>,
}

impl Passwords {
    pub fn new(users: Htpasswd, guesses: Arc<Guesses>) -> Self {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        Self { users: Arc::new(users), compared: Cache::new(ENTRIES), turns, guesses }
    }

    /// Whether these are of the same file.
    pub fn are_of(&self, users: &Htpasswd) -> bool {
        *self.users == *users
    }

    pub fn has(&self, user: &str) -> bool {
        self.users.users.contains_key(user)
    }

    /// Whether `password` is that of `user`; `address` is who says so.
    pub async fn are_right(&self, address: ClientAddress, user: &str, password: &str) -> Result<bool, NotNow> {
        let key = fingerprint::of(&[user.as_bytes(), password.as_bytes()]);
        if let Some((until, is_right)) = self.compared.get(&key) {
            if Instant::now() < until {
                return Ok(is_right);
            }
            self.compared.remove(&key);
        }
        self.guesses.may_guess(address)?;
        // Whoever asks the same meanwhile waits for the one answer.
        let compare = async {
            let is_right = self.compare(user, password).await?;
            if !is_right {
                self.guesses.guessed(address);
            }
            let life = if is_right { RIGHT } else { WRONG };
            Ok((Instant::now() + life, is_right))
        };
        let compared = self.compared.get_or_insert_async(&key, compare).await;
        compared.map(|(_, is_right)| is_right)
    }

    async fn compare(&self, user: &str, password: &str) -> Result<bool, NotNow> {
        let turn = tokio::time::timeout(PATIENCE, self.turns.clone().acquire_owned()).await;
        let turn = turn.map_err(|_| NotNow::Busy)?.map_err(|_| NotNow::Busy)?;
        let hash = self.users.users.get(user).cloned();
        let password = password.as_bytes()[..password.len().min(LONGEST)].to_vec();
        let compared = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let is_right = bcrypt::verify(password, hash.as_ref().map_or(NOBODY, |hash| hash.reveal()));
            is_right.unwrap_or(false) && hash.is_some()
        });
        Ok(compared.await.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::IpAddr;

    use super::super::guesses::{GUESSES, MINUTE};
    use super::*;
    use crate::config::Secret;

    const HERE: ClientAddress = ClientAddress::Known(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn passwords() -> Passwords {
        let hash = bcrypt::hash("right", 4).expect("hashed");
        let users = HashMap::from([("bob".to_owned(), Secret::new(hash))]);
        Passwords::new(Htpasswd { realm: "larder".to_owned(), users }, Arc::default())
    }

    #[tokio::test]
    async fn only_the_right_password_of_the_right_user_is_right() {
        let passwords = passwords();
        for round in ["compared", "remembered"] {
            assert_eq!(passwords.are_right(HERE, "bob", "right").await, Ok(true), "{round}");
            for (user, password) in [("bob", "wrong"), ("bob", ""), ("", "right"), ("eve", "right"), ("bobr", "ight")] {
                assert_eq!(passwords.are_right(HERE, user, password).await, Ok(false), "{round}: {user} {password}");
            }
            let long = "x".repeat(10_000);
            assert_eq!(passwords.are_right(HERE, "bob", &long).await, Ok(false));
        }
    }

    #[test]
    fn the_hash_of_nobody_takes_as_long_as_any() {
        assert!(bcrypt::verify("anything", NOBODY).is_ok(), "it can be compared with");
    }

    #[tokio::test]
    async fn who_guesses_has_to_wait_and_nobody_else() {
        let passwords = passwords();
        let at = |text: &str| ClientAddress::from(text.parse::<IpAddr>().expect("an address"));
        for number in 0..GUESSES {
            assert_eq!(passwords.are_right(at("2001:db8::1"), "bob", &format!("{number}")).await, Ok(false));
        }
        let told = passwords.are_right(at("2001:db8::2"), "bob", "right").await;
        assert!(matches!(told, Err(NotNow::Guessing(left)) if left <= MINUTE), "{told:?}");
        assert_eq!(passwords.are_right(at("2001:db8:0:1::1"), "bob", "right").await, Ok(true));
        // Which is known now, wherever it comes from.
        assert_eq!(passwords.are_right(at("2001:db8::2"), "bob", "right").await, Ok(true));
    }
}
