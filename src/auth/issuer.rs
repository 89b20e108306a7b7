//! The tokens of one OpenID Connect issuer: the issuer's keys, and whether Larder accepts a token.
//!
//! The keys are fetched when they are first needed, when they are an hour old, and when a token was signed with none of
//! them. While the issuer cannot be asked, the known keys are used for a day.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Header, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::{Claims, NotNow, document};
use crate::clock::{self, Instant};
use crate::config::{self, Keys};
use crate::text::one_line;
use crate::web::{WebClient, WebError};

/// How long keys are used before they are fetched again.
const FRESH: Duration = Duration::from_secs(3600);
/// How long keys are used when they cannot be fetched again.
const USABLE: Duration = Duration::from_secs(24 * 3600);
/// Pause between two tries to fetch the keys, however many tokens come.
const PAUSE: Duration = Duration::from_secs(10);
/// How long a token waits for keys.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a token waits for newer keys where the known keys may do.
const IMPATIENCE: Duration = Duration::from_secs(2);
/// Most keys accepted from one issuer.
const MAX_KEYS: usize = 100;
/// How far clocks may differ, in seconds.
const LEEWAY: u64 = 30;

/// The signature algorithms that are accepted. Those with a secret that both sides know are not: such a signature does
/// not prove which side made it.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Verifies the tokens of one issuer.
pub struct Issuer {
    config: config::Issuer,
    client: WebClient,
    known: ArcSwap<Known>,
    /// When a fetch was last begun. The lock is held during a fetch.
    fetching: Arc<Mutex<Option<Instant>>>,
}

/// The keys that were fetched last.
#[derive(Default)]
struct Known {
    keys: Vec<Key>,
    fetched: Option<Instant>,
}

/// A token of an accepted form, and the keys to verify it with.
pub struct Ready<'a> {
    token: &'a str,
    header: Header,
    known: Arc<Known>,
}

struct Key {
    id: Option<String>,
    /// The only algorithm that the key is for, where the key states one.
    algorithm: Option<Algorithm>,
    key: DecodingKey,
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Anybody could have made the token.
    #[error("{0}")]
    Forged(&'static str),
    /// The token may be the issuer's, but it is not for here and now.
    #[error("{0}")]
    NotForUs(String),
    #[error(transparent)]
    NotNow(#[from] NotNow),
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

impl Issuer {
    /// Makes an issuer whose keys are not fetched yet.
    pub fn new(config: config::Issuer) -> Result<Arc<Self>, WebError> {
        let client = WebClient::new(&config.access)?;
        Ok(Arc::new(Self { config, client, known: ArcSwap::default(), fetching: Arc::default() }))
    }

    /// Returns whether this issuer has this configuration.
    pub fn is_of(&self, config: &config::Issuer) -> bool {
        self.config == *config
    }

    /// Returns the issuer's name in the configuration.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Returns whether this issuer's tokens name `issuer` as their issuer (`iss`).
    pub fn is(&self, issuer: &str) -> bool {
        self.config.issuer == issuer
    }

    /// Gets the keys to verify a token, which may take a while. Fails at once for a token of a form that is not
    /// accepted.
    pub async fn ready<'a>(self: &Arc<Self>, token: &'a str) -> Result<Ready<'a>, Refused> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refused::Forged("it is no JWT"))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(Refused::Forged("its algorithm is not one that we take"));
        }
        if header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
            return Err(Refused::Forged("it has extensions that we do not know"));
        }
        let known = self.known_for(&header).await?;
        Ok(Ready { token, header, known })
    }

    /// Returns how people log in to the dashboard by this issuer, if they can.
    pub fn login(&self) -> Option<&config::BrowserLogin> {
        self.config.login.as_ref()
    }

    /// Returns whether claims that were verified before would be accepted now, whatever their age: they are this
    /// issuer's, and are as the configuration requires.
    pub fn still_takes(&self, claims: &Claims) -> bool {
        let issuer = claims.values.get("iss").and_then(Value::as_str);
        *claims.issuer == *self.config.name
            && issuer == Some(&self.config.issuer)
            && self.config.required.iter().all(|rule| claims.fulfil(rule))
    }

    /// Returns the claims of a token for Larder's audience, if the token is valid.
    pub async fn claims(self: &Arc<Self>, ready: &Ready<'_>) -> Result<Claims, Refused> {
        self.claims_for(ready, &self.config.audience).await
    }

    /// Returns the claims of a token for one of these audiences, if the token is valid.
    pub async fn claims_for(self: &Arc<Self>, ready: &Ready<'_>, audience: &[String]) -> Result<Claims, Refused> {
        let Ready { token, header, known } = ready;
        match self.verify_by(known, token, header, audience) {
            // The issuer may have replaced its keys. The newest keys decide.
            Err(Refused::Forged(_)) if !known.is_younger(PAUSE) => {
                let newer = self.fetched(IMPATIENCE).await;
                match newer.is_younger(PAUSE) {
                    true => self.verify_by(&newer, token, header, audience),
                    false => Err(Refused::NotForUs("its signature is wrong, or the keys known are old".to_owned())),
                }
            }
            told => told,
        }
    }

    fn verify_by(&self, known: &Known, token: &str, header: &Header, audience: &[String]) -> Result<Claims, Refused> {
        // This is no guess: the token may be signed with a key so new that Larder has not fetched it.
        let mut refused = Refused::NotForUs("no key of the issuer is the one it was signed with".to_owned());
        for key in known.keys.iter().filter(|key| key.may_verify(header)) {
            match self.verify(token, header.alg, &key.key, audience) {
                Err(Refused::Forged(why)) => refused = Refused::Forged(why),
                told => return told,
            }
        }
        Err(refused)
    }

    fn verify(
        &self,
        token: &str,
        algorithm: Algorithm,
        key: &DecodingKey,
        audience: &[String],
    ) -> Result<Claims, Refused> {
        let mut validation = Validation::new(algorithm);
        validation.leeway = LEEWAY;
        validation.validate_nbf = true;
        validation.set_issuer(&[&self.config.issuer]);
        validation.set_audience(audience);
        validation.set_required_spec_claims(&["exp", "iss", "aud"]);
        let decoded = jsonwebtoken::decode::<Map<String, Value>>(token, key, &validation);
        let values = decoded.map_err(|error| match error.kind() {
            ErrorKind::ExpiredSignature => Refused::NotForUs("it has expired".to_owned()),
            ErrorKind::ImmatureSignature => Refused::NotForUs("it is not good yet".to_owned()),
            ErrorKind::InvalidAudience => Refused::NotForUs("it is for another audience".to_owned()),
            ErrorKind::MissingRequiredClaim(claim) => Refused::NotForUs(format!("it has no claim `{claim}`")),
            ErrorKind::InvalidClaimFormat(claim) => Refused::NotForUs(format!("its claim `{claim}` is malformed")),
            ErrorKind::Json(_) | ErrorKind::Utf8(_) => Refused::NotForUs("its content is malformed".to_owned()),
            _ => Refused::Forged("its signature is wrong"),
        })?;
        let claims = Claims { issuer: self.config.name.as_str().into(), values: values.claims };
        // The library also accepts a list of issuers.
        if claims.values.get("iss").and_then(Value::as_str) != Some(&self.config.issuer) {
            return Err(Refused::NotForUs("it is of another issuer".to_owned()));
        }
        let is_made = claims.values.get("iat").and_then(Value::as_f64).is_none_or(|made| made <= latest());
        if !is_made {
            return Err(Refused::NotForUs("it was made in the future".to_owned()));
        }
        match self.config.required.iter().find(|rule| !claims.fulfil(rule)) {
            Some(rule) => Err(Refused::NotForUs(format!("its claim `{}` is not as required", rule.claim))),
            None => Ok(claims),
        }
    }

    /// Returns keys that include the key for this header, if the issuer has that key.
    async fn known_for(self: &Arc<Self>, header: &Header) -> Result<Arc<Known>, NotNow> {
        let known = self.known.load_full();
        let has_one = known.has_one_for(header);
        if known.is_younger(FRESH) && has_one {
            return Ok(known);
        }
        let patience = if known.is_younger(USABLE) && has_one { IMPATIENCE } else { PATIENCE };
        let known = self.fetched(patience).await;
        match known.is_younger(USABLE) {
            true => Ok(known),
            false => Err(NotNow::Issuer(self.config.name.as_str().into())),
        }
    }

    /// Returns the newest keys that are there in time.
    async fn fetched(self: &Arc<Self>, patience: Duration) -> Arc<Known> {
        self.begin_to_fetch();
        // The task that fetches holds this lock until it is done.
        drop(tokio::time::timeout(patience, self.fetching.lock()).await);
        self.known.load_full()
    }

    /// Fetches the keys in a task of its own, unless another task does so or a fetch was tried a moment ago.
    fn begin_to_fetch(self: &Arc<Self>) {
        let Ok(mut tried) = self.fetching.clone().try_lock_owned() else {
            return;
        };
        if tried.is_some_and(|tried| tried.elapsed() < PAUSE) {
            return;
        }
        *tried = Some(Instant::now());
        let this = self.clone();
        tokio::spawn(async move {
            let issuer = &this.config.name;
            match this.ask().await {
                Ok(keys) => {
                    tracing::info!(issuer, keys = keys.len(), "fetched the keys of an issuer of tokens");
                    this.known.store(Arc::new(Known { keys, fetched: Some(Instant::now()) }));
                }
                Err(error) => {
                    tracing::warn!(issuer, error = one_line(&error), "cannot fetch the keys of an issuer of tokens")
                }
            }
            drop(tried);
        });
    }

    async fn ask(&self) -> Result<Vec<Key>, String> {
        let jwks = match &self.config.keys {
            Keys::At(url) => url.clone(),
            Keys::Discovered(at) => {
                let found: Discovery = document::get(&self.client, at).await?;
                if found.issuer != self.config.issuer {
                    return Err(document::of_another(at));
                }
                document::endpoint(at, "jwks_uri", &found.jwks_uri)?
            }
        };
        let set: KeySet = document::get(&self.client, &jwks).await?;
        // A key that Larder does not understand does not spoil the others.
        Ok(set.keys.into_iter().filter_map(Key::read).take(MAX_KEYS).collect())
    }
}

impl Known {
    fn is_younger(&self, age: Duration) -> bool {
        self.fetched.is_some_and(|fetched| fetched.elapsed() < age)
    }

    fn has_one_for(&self, header: &Header) -> bool {
        self.keys.iter().any(|key| key.may_verify(header))
    }
}

impl Key {
    /// Reads a key; `None` if it is no public key for signatures.
    fn read(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        if jwk.common.public_key_use.as_ref().is_some_and(|for_what| *for_what != PublicKeyUse::Signature) {
            return None;
        }
        let algorithm = match jwk.common.key_algorithm {
            Some(named) => Some(named.to_string().parse::<Algorithm>().ok().filter(|one| ALGORITHMS.contains(one))?),
            None => None,
        };
        let key = DecodingKey::from_jwk(&jwk).ok().filter(|key| key.family() != AlgorithmFamily::Hmac)?;
        Some(Self { id: jwk.common.key_id, algorithm, key })
    }

    fn may_verify(&self, header: &Header) -> bool {
        let is_named = header.kid.is_none() || self.id.is_none() || header.kid == self.id;
        let is_for = self.algorithm.is_none_or(|algorithm| algorithm == header.alg);
        is_named && is_for && self.key.family() == header.alg.family()
    }
}

/// Returns the latest time, in seconds since 1970, at which a token can have been made.
#[allow(clippy::cast_precision_loss)]
fn latest() -> f64 {
    let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (now.as_secs() + LEEWAY) as f64
}
