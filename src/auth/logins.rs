//! All ways to log in at Larder: passwords of users, and tokens of issuers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;
use serde::Deserialize;
use serde_json::Value;

use super::code_flow::CodeFlow;
use super::guesses::Guesses;
use super::issuer::{Issuer, Refused};
use super::passwords::Passwords;
use super::{Claims, ClientAddress, NotNow};
use crate::clock::{self, Instant};
use crate::config::Auth;
use crate::fingerprint;
use crate::text::one_line;
use crate::web::WebError;

/// How long a token that was accepted is not verified again.
const TAKEN: Duration = Duration::from_secs(300);
/// Most accepted tokens remembered.
const TOKENS: usize = 10_000;
/// The realm where no htpasswd file has one.
const REALM: &str = "larder";

/// The credentials that a client sends.
#[derive(Clone, Copy)]
pub enum Credential<'a> {
    /// A user name and a password. If the password is a token, any name will do.
    Password {
        user: &'a str,
        password: &'a str,
    },
    Token(&'a str),
}

/// The identity of a client that logged in.
#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    User(Arc<str>),
    Bearer(Arc<Claims>),
}

/// Users, issuers, and what is remembered of both.
pub struct Logins {
    passwords: Option<Arc<Passwords>>,
    issuers: Vec<Arc<Issuer>>,
    /// The issuers by which people log in to the dashboard.
    flows: Vec<Arc<CodeFlow>>,
    taken: Cache<[u8; 32], (Instant, Arc<Claims>)>,
    guesses: Arc<Guesses>,
    realm: String,
}

impl Logins {
    /// Makes the logins of a configuration; `None` if nobody can log in. Users and issuers of `before` whose
    /// configuration is the same are kept, with all that is remembered of them.
    pub fn new(auth: &Auth, before: Option<&Self>) -> Result<Option<Arc<Self>>, WebError> {
        if !auth.has_logins() {
            return Ok(None);
        }
        let guesses = before.map_or_else(Arc::default, |before| before.guesses.clone());
        let passwords = auth.htpasswd.as_ref().map(|users| {
            let known = before.and_then(|before| before.passwords.clone()).filter(|known| known.are_of(users));
            known.unwrap_or_else(|| Arc::new(Passwords::new(users.clone(), guesses.clone())))
        });
        let issuers = auth.issuers.iter().map(|config| {
            let mut known = before.iter().flat_map(|before| &before.issuers);
            known
                .find(|known| known.is_of(config))
                .map_or_else(|| Issuer::new(config.clone()), |known| Ok(known.clone()))
        });
        let issuers = issuers.collect::<Result<Vec<_>, _>>()?;
        let flows = issuers.iter().filter_map(|issuer| {
            let login = issuer.login()?;
            let mut known = before.iter().flat_map(|before| &before.flows);
            Some(match known.find(|known| known.is_of(issuer)) {
                Some(known) => Ok(known.clone()),
                None => CodeFlow::new(issuer.clone(), login.clone(), guesses.clone()).map(Arc::new),
            })
        });
        let flows = flows.collect::<Result<_, _>>()?;
        let realm = auth.htpasswd.as_ref().map_or_else(|| REALM.to_owned(), |users| users.realm.clone());
        Ok(Some(Arc::new(Self { passwords, issuers, flows, taken: Cache::new(TOKENS), guesses, realm })))
    }

    /// Returns the realm, which a login prompt shows to people.
    pub fn realm(&self) -> &str {
        &self.realm
    }

    /// Returns whether there are users with passwords.
    pub fn has_passwords(&self) -> bool {
        self.passwords.is_some()
    }

    /// Returns the issuers by which people log in to the dashboard, in the order of the configuration.
    pub fn flows(&self) -> &[Arc<CodeFlow>] {
        &self.flows
    }

    /// Returns the issuer of this name, if people log in to the dashboard by it.
    pub fn flow(&self, name: &str) -> Option<&Arc<CodeFlow>> {
        self.flows.iter().find(|flow| flow.name() == name)
    }

    /// Returns whether a text claims to be a token of one of the issuers.
    pub fn knows_issuer_of(&self, token: &str) -> bool {
        matches!(self.issuer_of(token), Says::Known(_))
    }

    /// Returns whether there is a user of this name.
    pub fn has_user(&self, user: &str) -> bool {
        self.passwords.as_ref().is_some_and(|passwords| passwords.has(user))
    }

    /// Returns the identity that a client's credentials prove; `None` if they are wrong.
    pub async fn known(&self, address: ClientAddress, shown: Credential<'_>) -> Result<Option<Known>, NotNow> {
        let (Credential::Token(token) | Credential::Password { password: token, .. }) = shown;
        let says = self.issuer_of(token);
        if let Says::Known(issuer) = says {
            return Ok(self.bearer(address, token, issuer).await?.map(Known::Bearer));
        }
        let known = match (shown, &self.passwords) {
            (Credential::Password { user, password }, Some(passwords)) => {
                let is_right = passwords.are_right(address, user, password).await?;
                is_right.then(|| Known::User(user.into()))
            }
            // A token of another issuer is no guess.
            _ if matches!(says, Says::Unknown(_)) => None,
            _ => {
                self.guesses.reserve(address)?.was_wrong();
                None
            }
        };
        if let (None, Says::Unknown(issuer)) = (&known, &says) {
            let issuer = one_line(issuer);
            tracing::info!(client = %address, issuer, "a token is not taken: its issuer is none of those in [auth.oidc]");
        }
        Ok(known)
    }

    /// Returns whether a client that logged in as `known` with the logins `before` can still log in the same way.
    pub fn still_know(&self, before: &Self, known: &Known) -> bool {
        match known {
            Known::User(user) => {
                let passwords = self.passwords.as_ref().zip(before.passwords.as_ref());
                passwords.is_some_and(|(now, before)| now.has_password_of(before, user))
            }
            Known::Bearer(claims) => {
                // An issuer whose configuration is the same stays the same object.
                let is_known = |issuer: &Arc<Issuer>| self.issuers.iter().any(|known| Arc::ptr_eq(known, issuer));
                let issuer = before.issuers.iter().find(|issuer| issuer.name() == &*claims.issuer);
                issuer.is_some_and(is_known) && left(claims) > Duration::ZERO
            }
        }
    }

    async fn bearer(
        &self,
        address: ClientAddress,
        token: &str,
        issuer: &Arc<Issuer>,
    ) -> Result<Option<Arc<Claims>>, NotNow> {
        let key = fingerprint::of(&[b"token", token.as_bytes()]);
        if let Some((until, claims)) = self.taken.get(&key) {
            if Instant::now() < until {
                return Ok(Some(claims));
            }
            self.taken.remove(&key);
        }
        self.guesses.may_guess(address)?;
        let ready = issuer.ready(token).await;
        // The place is taken only now: tokens that wait for keys are no guesses.
        let place = self.guesses.reserve(address)?;
        let told = match ready {
            Ok(ready) => issuer.claims(&ready).await,
            Err(why) => Err(why),
        };
        match told {
            Ok(claims) => {
                let claims = Arc::new(claims);
                self.taken.insert(key, (Instant::now() + TAKEN.min(left(&claims)), claims.clone()));
                Ok(Some(claims))
            }
            Err(Refused::NotNow(why)) => Err(why),
            Err(why) => {
                tracing::info!(client = %address, %why, "a token is not taken");
                // A client with an expired token does not guess.
                if matches!(why, Refused::Forged(_)) {
                    place.was_wrong();
                }
                Ok(None)
            }
        }
    }

    /// Returns the issuer that a text claims to be a token of, unverified.
    fn issuer_of(&self, token: &str) -> Says<'_> {
        #[derive(Deserialize)]
        struct Unverified {
            iss: String,
        }
        if self.issuers.is_empty() || token.bytes().filter(|&byte| byte == b'.').count() != 2 {
            return Says::Nothing;
        }
        let Ok(unverified) = jsonwebtoken::dangerous::insecure_decode_claims::<Unverified>(token) else {
            return Says::Nothing;
        };
        let known = self.issuers.iter().find(|issuer| issuer.is(&unverified.iss));
        known.map_or(Says::Unknown(unverified.iss), Says::Known)
    }
}

/// The issuer that a text claims to be a token of, true or not.
enum Says<'a> {
    Nothing,
    Unknown(String),
    Known(&'a Arc<Issuer>),
}

/// Returns how long a token is still valid.
fn left(claims: &Claims) -> Duration {
    let expires = claims.values.get("exp").and_then(Value::as_f64).unwrap_or_default();
    let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Duration::try_from_secs_f64(expires - now.as_secs_f64()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn logins(dir: &std::path::Path, users: &str, audience: &str, before: Option<&Logins>) -> Arc<Logins> {
        let (file, htpasswd) = (dir.join("larder.toml"), dir.join("htpasswd"));
        std::fs::write(&htpasswd, users).expect("written");
        let text = format!(
            "[auth.htpasswd]\npath = \"{}\"\n[auth.oidc.ci]\nissuer = \"https://ci.example\"\naudience = \"{audience}\"",
            htpasswd.display()
        );
        std::fs::write(&file, text).expect("written");
        let config = Config::load(&[file], std::iter::empty()).expect("valid");
        Logins::new(&config.auth, before).expect("made").expect("there are logins")
    }

    #[test]
    fn a_login_counts_as_long_as_it_would_log_in_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let line = |user: &str, fill: char| format!("{user}:$2y$05${}\n", fill.to_string().repeat(53));
        let both = line("bob", 'a') + &line("eve", 'b');
        let before = logins(dir.path(), &both, "larder", None);
        let token = |seconds: i64| {
            let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
            let expires = i64::try_from(now).expect("a time") + seconds;
            let Value::Object(values) = json!({ "exp": expires }) else { unreachable!("an object") };
            Known::Bearer(Arc::new(Claims { issuer: "ci".into(), values }))
        };
        let (bob, eve) = (Known::User("bob".into()), Known::User("eve".into()));
        let other = line("bob", 'c') + &line("eve", 'b');
        for (users, audience, expected) in [
            (&both, "larder", [true, true, true]),
            (&line("eve", 'b'), "larder", [false, true, true]),
            (&other, "larder", [false, true, true]),
            (&both, "another", [true, true, false]),
        ] {
            let now = logins(dir.path(), users, audience, Some(&before));
            let known = [&bob, &eve, &token(60)].map(|known| now.still_know(&before, known));
            assert_eq!(known, expected, "{users} {audience}");
            assert!(!now.still_know(&before, &token(-60)), "it has ended");
        }
    }
}
