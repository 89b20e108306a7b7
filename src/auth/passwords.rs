//! Users of an htpasswd file. Comparing a password is slow on purpose, so it is done off the async threads, once for
//! all requests of a pull: the result is remembered for a while.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;

use super::guesses::{Attempt, Guesses};
use super::turns::Turns;
use super::{ClientAddress, NotNow};
use crate::clock::Instant;
use crate::config::{Htpasswd, Secret};
use crate::fingerprint;

/// How long a right password is not compared again.
const RIGHT: Duration = Duration::from_secs(300);
/// How long a wrong password is not compared again.
const WRONG: Duration = Duration::from_secs(10);
/// Most right logins remembered: each by itself, and with each address that it came from.
const RIGHT_ONES: usize = 20_000;
/// Most wrong logins remembered. They have a cache of their own, so that they evict only each other.
const WRONG_ONES: usize = 1_000;
/// Most passwords compared at once.
const AT_ONCE: usize = 2;
/// Most logins that wait to be compared.
const WAITING: usize = 1_000;
/// How long a login may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest part of a password that bcrypt uses, in bytes.
const LONGEST: usize = 72;
/// The part of a hash after its cost. No password is known for it.
const NOBODY: &str = "2l/MHZxq.k0BTsORQzVQ9uLCLpVkZLNsCV2lnHYV2hKNFVTMmQLLi";

type Key = [u8; 32];

/// The users of one htpasswd file, and what is remembered of their logins.
pub struct Passwords {
    written: Htpasswd,
    users: Arc<Users>,
    right: Cache<Key, Instant>,
    wrong: Cache<Key, Instant>,
    turns: Arc<Turns>,
    guesses: Arc<Guesses>,
}

/// A result of a comparison that is not "wrong". It is the error of the cache `wrong`, where other requests wait for
/// the result and only wrong logins are remembered.
enum Otherwise {
    Right,
    NotNow(NotNow),
}

impl Passwords {
    /// Makes the users of an htpasswd file. `guesses` counts their wrong logins.
    pub fn new(written: Htpasswd, guesses: Arc<Guesses>) -> Self {
        Self {
            users: Arc::new(Users::new(&written)),
            written,
            right: Cache::new(RIGHT_ONES),
            wrong: Cache::new(WRONG_ONES),
            turns: Turns::new(AT_ONCE, WAITING),
            guesses,
        }
    }

    /// Returns whether these users are those of the same file content.
    pub fn are_of(&self, written: &Htpasswd) -> bool {
        self.written == *written
    }

    /// Returns whether the file has this user.
    pub fn has(&self, user: &str) -> bool {
        self.written.users.contains_key(user)
    }

    /// Returns whether a user still has the password that it had in `before`.
    pub fn has_password_of(&self, before: &Self, user: &str) -> bool {
        let hash = self.written.users.get(user);
        hash.is_some() && hash == before.written.users.get(user)
    }

    /// Returns whether `password` is that of `user`. `address`: the client that logs in.
    pub async fn are_right(&self, address: ClientAddress, user: &str, password: &str) -> Result<bool, NotNow> {
        let key = fingerprint::of(&[user.as_bytes(), password.as_bytes()]);
        let here = fingerprint::of(&[&key, address.counted().to_string().as_bytes()]);
        // A client that logged in from this address goes on, even while others at this address guess.
        if self.remembers(&here).is_some() {
            return self.guesses.may_be_known(address).map(|()| true);
        }
        // A client that may not guess is not told either that a login is known from another address.
        self.guesses.may_guess(address)?;
        if self.wrong.get(&key).is_some_and(|until| until <= Instant::now()) {
            self.wrong.remove(&key);
        }
        // Other requests with the same login wait for this result.
        let compared = self.wrong.get_or_insert_async(&key, self.compare(key, address, user, password)).await;
        match compared {
            Ok(_) => Ok(false),
            Err(Otherwise::NotNow(why)) => Err(why),
            Err(Otherwise::Right) => {
                let until = self.remembers(&key).unwrap_or_else(|| Instant::now() + RIGHT);
                self.right.insert(here, until);
                Ok(true)
            }
        }
    }

    /// Returns until when a right login is remembered.
    fn remembers(&self, key: &Key) -> Option<Instant> {
        self.right.get(key).filter(|until| Instant::now() < *until)
    }

    /// Compares a login, and returns until when to remember that it is wrong.
    async fn compare(
        &self,
        key: Key,
        address: ClientAddress,
        user: &str,
        password: &str,
    ) -> Result<Instant, Otherwise> {
        if self.remembers(&key).is_some() {
            return Err(Otherwise::Right);
        }
        let attempt = self.guesses.reserve(address).map_err(Otherwise::NotNow)?;
        let comparing = self.compare_in_turn(attempt, user.to_owned(), password);
        let is_right = tokio::time::timeout(PATIENCE, comparing).await.ok().flatten();
        match is_right {
            None => Err(Otherwise::NotNow(NotNow::Busy)),
            Some(false) => Ok(Instant::now() + WRONG),
            Some(true) => {
                self.right.insert(key, Instant::now() + RIGHT);
                Err(Otherwise::Right)
            }
        }
    }

    /// Compares a login when its turn comes; `None`: too many logins wait.
    async fn compare_in_turn(&self, attempt: Attempt, user: String, password: &str) -> Option<bool> {
        let turn = self.turns.take(attempt.rank).await?;
        let users = self.users.clone();
        let password = password.as_bytes()[..password.len().min(LONGEST)].to_vec();
        let compared = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let is_right = users.compare(&user, &password);
            // Counted here, so that a wrong login counts even if its client did not wait for the result.
            if !is_right {
                attempt.was_wrong();
            }
            is_right
        });
        compared.await.ok()
    }
}

/// The hashes by user, and the work that each comparison has to take.
struct Users {
    /// Hashes and their costs, by user.
    hashes: HashMap<String, (Secret, u32)>,
    highest_cost: u32,
}

impl Users {
    fn new(written: &Htpasswd) -> Self {
        let mut hashes = HashMap::new();
        for (user, hash) in &written.users {
            match hash.reveal().parse::<bcrypt::HashParts>() {
                Ok(parts) => drop(hashes.insert(user.clone(), (hash.clone(), parts.get_cost()))),
                Err(error) => {
                    tracing::warn!(user, %error, "nobody can log in as this user: make its line in the htpasswd file again with `htpasswd -B`")
                }
            }
        }
        let highest_cost = hashes.values().map(|(_, cost)| *cost).max().unwrap_or(bcrypt::DEFAULT_COST);
        Self { hashes, highest_cost }
    }

    /// Compares a password, with the same work for every name. So the time does not show whether there is such a user,
    /// and at what cost its password is hashed. Blocks.
    fn compare(&self, user: &str, password: &[u8]) -> bool {
        let known = self.hashes.get(user);
        let is_right = known.is_some_and(|(hash, _)| bcrypt::verify(password, hash.reveal()).unwrap_or(false));
        for cost in costs_left(known.map(|(_, cost)| *cost), self.highest_cost) {
            let nobody = format!("$2y${cost:02}${NOBODY}");
            let _ = black_box(bcrypt::verify(black_box(password), &nobody));
        }
        is_right
    }
}

/// Returns the costs of further comparisons, which together with the one done make the work of the highest cost. Each
/// cost is twice the work of the cost below.
fn costs_left(done: Option<u32>, highest: u32) -> std::ops::Range<u32> {
    match done {
        // 2^c + 2^c + 2^(c + 1) + … + 2^(h - 1) = 2^h.
        Some(cost) => cost..highest,
        None => highest..highest + 1,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::super::guesses::{GUESSES, MINUTE};
    use super::*;

    const HERE: ClientAddress = ClientAddress::Known(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn passwords() -> Passwords {
        let hash = bcrypt::hash("right", 4).expect("hashed");
        let users = HashMap::from([("bob".to_owned(), Secret::new(hash))]);
        Passwords::new(Htpasswd { realm: "larder".to_owned(), users }, Arc::default())
    }

    fn at(text: &str) -> ClientAddress {
        text.parse::<IpAddr>().expect("an address").into()
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
    fn every_name_takes_the_work_of_the_highest_cost() {
        for highest in 4..=16_u32 {
            for known in (4..=highest).map(Some).chain([None]) {
                let done = known.map_or(0, |cost| 1_u64 << cost);
                let left: u64 = costs_left(known, highest).map(|cost| 1_u64 << cost).sum();
                assert_eq!(done + left, 1 << highest, "{known:?} of {highest}");
            }
        }
        for cost in 4..=16_u32 {
            let nobody = format!("$2y${cost:02}${NOBODY}");
            assert_eq!(nobody.parse::<bcrypt::HashParts>().expect("a hash").get_cost(), cost);
        }
        let hash = |cost| Secret::new(bcrypt::hash("right", cost).expect("hashed"));
        let broken = Secret::new(format!("$2y$04${}", "!".repeat(53)));
        let users = [("low", hash(4)), ("high", hash(6)), ("broken", broken)];
        let users = users.into_iter().map(|(user, hash)| (user.to_owned(), hash)).collect();
        let users = Users::new(&Htpasswd { realm: "larder".to_owned(), users });
        assert_eq!((users.highest_cost, users.hashes.len()), (6, 2));
        assert!(users.compare("low", b"right") && users.compare("high", b"right"));
        assert!(
            !users.compare("low", b"wrong") && !users.compare("broken", b"right") && !users.compare("eve", b"right")
        );
    }

    #[tokio::test]
    async fn who_guesses_has_to_wait_and_nobody_else() {
        let passwords = passwords();
        for number in 0..GUESSES {
            assert_eq!(passwords.are_right(at("2001:db8::1"), "bob", &format!("{number}")).await, Ok(false));
        }
        let told = passwords.are_right(at("2001:db8::2"), "bob", "right").await;
        assert!(matches!(told, Err(NotNow::Guessing(left)) if left <= MINUTE), "{told:?}");
        assert_eq!(passwords.are_right(at("2001:db8:0:1::1"), "bob", "right").await, Ok(true));
        // A login from another address tells nothing to a client that guesses.
        let told = passwords.are_right(at("2001:db8::2"), "bob", "right").await;
        assert!(matches!(told, Err(NotNow::Guessing(_))), "{told:?}");
    }

    #[tokio::test]
    async fn who_logged_in_goes_on_while_others_at_its_address_guess() {
        let passwords = passwords();
        assert_eq!(passwords.are_right(HERE, "bob", "right").await, Ok(true));
        for number in 0..2 * GUESSES {
            let _ = passwords.are_right(HERE, "bob", &format!("{number}")).await;
        }
        assert!(passwords.are_right(HERE, "bob", "wrong").await.is_err());
        assert_eq!(passwords.are_right(HERE, "bob", "right").await, Ok(true));
    }

    #[tokio::test]
    async fn of_many_wrong_ones_at_once_no_more_are_compared() {
        let passwords = passwords();
        let tried: Vec<_> = (0..300).map(|number| format!("wrong-{number}")).collect();
        let told = join_all(tried.iter().map(|tried| passwords.are_right(HERE, "bob", tried))).await;
        assert_eq!(told.iter().filter(|told| **told == Ok(false)).count(), GUESSES as usize);
        // When many requests bring the same password at once, there is one comparison, which counts once.
        let told = join_all((0..100).map(|_| passwords.are_right(at("192.0.2.1"), "bob", "right"))).await;
        assert!(told.iter().all(|told| *told == Ok(true)), "{told:?}");
        let told = join_all((0..100).map(|_| passwords.are_right(at("192.0.2.2"), "bob", "wrong"))).await;
        assert!(told.iter().all(|told| *told == Ok(false)), "{told:?}");
        assert_eq!(passwords.are_right(at("192.0.2.2"), "bob", "another").await, Ok(false));
    }

    #[tokio::test]
    async fn who_does_not_wait_for_the_answer_guessed_all_the_same() {
        let passwords = passwords();
        for number in 0_u64.. {
            assert!(number < 1_000_000, "it is not counted");
            let tried = format!("wrong-{number}");
            let mut asked = Box::pin(passwords.are_right(HERE, "bob", &tried));
            match (&mut asked).now_or_never() {
                // The login waits for its turn, or is being compared.
                None => drop(asked),
                Some(Err(NotNow::Guessing(_))) => break,
                Some(_) => {}
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn wrong_ones_put_no_right_one_out() {
        let passwords = passwords();
        assert_eq!(passwords.are_right(HERE, "bob", "right").await, Ok(true));
        for number in 0..3 * WRONG_ONES {
            let key = fingerprint::of(&[format!("{number}").as_bytes()]);
            passwords.wrong.insert(key, Instant::now() + WRONG);
        }
        assert!(passwords.wrong.len() <= WRONG_ONES + WRONG_ONES / 2);
        let key = fingerprint::of(&[b"bob", b"right"]);
        assert!(passwords.remembers(&key).is_some());
    }
}
