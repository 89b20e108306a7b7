//! Several Larders that share an index and behave as one cache.
//!
//! - [`home`]: the order in which the replicas are asked for something; pure.
//! - [`members`]: the task that says that this replica is alive, and hears which others are.
//! - [`peer`]: a request to another replica.
//! - [`origin`]: other replicas as the origin of a blob, before the upstreams.
//!
//! A replica asks those that are before it in the order of what it looks for, and then those that have it stored, which
//! then wait for nothing. Two replicas with different views of who is alive therefore never wait for each other: the
//! order of the rest is the same in both.

pub mod home;
mod members;
mod origin;
mod peer;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_lc_rs::hmac;
use http::HeaderName;
use tokio::sync::watch;

use crate::cache::flight::Flights;
use crate::clock::Instant;
use crate::config;
use crate::index::{Index, Replica};
use crate::observe::Metrics;
use crate::oci::Digest;
use crate::random::{self, NoRandomness};
use crate::web::{dial, tls};
use home::{Key, Number, weight};

pub use origin::is_final;
pub use peer::Copy;

/// The page on which a replica tells of itself; behind it, after a slash, an object may be named.
pub const REPORT: &str = "/replica";
/// The scheme of `Authorization`: the proof that a request is from a replica of the cluster.
pub const SCHEME: &str = "Larder-Replica";
/// Names the repository that a replica asks for another one, by its prefix.
pub const REPOSITORY: HeaderName = HeaderName::from_static("larder-repository");
/// The number of the process that is asked. Another process may have its address by now.
pub const EPOCH: HeaderName = HeaderName::from_static("larder-epoch");
/// The address of the client for which a replica asks.
pub const CLIENT: HeaderName = HeaderName::from_static("larder-client");
/// The value of `Cache-Control` that asks for nothing but what is stored (RFC 9111, section 5.2.1.7).
pub const ONLY_STORED: &str = "only-if-cached";
/// In a response: the kind of the failure, as [`FailureKind::as_str`](crate::failure::FailureKind::as_str) has it.
pub const FAILURE: HeaderName = HeaderName::from_static("larder-failure");

/// How long opening a connection to another replica may take. They are near.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a replica is not asked that could not be connected to.
const REST: Duration = Duration::from_secs(2);
/// How often the system asks whether the other side of a connection that brings nothing is still there; after three
/// questions without an answer it is not. So a replica whose machine is gone is known within about three seconds.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// How long the index may take to say who has an object: clients wait.
const PATIENCE: Duration = Duration::from_millis(500);
/// Idle connections that are kept to each replica.
const IDLE: usize = 32;

/// Why there can be no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("cluster: {0}")]
    Tls(#[from] rustls::Error),
    #[error("cluster: {0}")]
    Http(#[from] reqwest::Error),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// What is asked of another replica: something of a name, for a client.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The repository's prefix.
    pub repository: String,
    pub name: String,
    /// The address by which the client is counted.
    pub client: Option<IpAddr>,
    /// Whether the replica is to give only what it has stored, and to wait for nothing.
    pub only_stored: bool,
}

/// This replica and the others.
pub struct Cluster {
    me: Replica,
    my_number: Number,
    /// `None`: certificates prove who asks.
    key: Option<hmac::Key>,
    client: reqwest::Client,
    /// The others that are alive, as of the last time the index told.
    others: watch::Sender<Arc<[Other]>>,
    /// Replicas that could not be connected to, until when they are not asked.
    resting: Mutex<HashMap<Replica, Instant>>,
    /// Whether a silent replica is there.
    probes: Flights<Replica, ()>,
    index: Arc<dyn Index>,
    metrics: Arc<Metrics>,
}

/// Another replica.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Other {
    replica: Replica,
    number: Number,
}

impl Cluster {
    /// Makes this replica. It is known to no other yet.
    pub fn new(config: &config::Cluster, index: Arc<dyn Index>, metrics: Arc<Metrics>) -> Result<Self, ClusterError> {
        let mut epoch = [0; 8];
        random::fill(&mut epoch)?;
        let address = config.advertise.as_str().trim_end_matches('/').to_owned();
        let tls = config.tls.as_ref().map(|tls| tls.client.clone()).unwrap_or_default();
        let client = dial::client(tls::client_config(&tls)?, CONNECT)
            .http1_only()
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(2)
            .pool_max_idle_per_host(IDLE)
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self {
            my_number: Number::of(&address),
            me: Replica { address, epoch: u64::from_le_bytes(epoch) },
            key: (!config.token.is_empty())
                .then(|| hmac::Key::new(hmac::HMAC_SHA256, config.token.reveal().as_bytes())),
            client,
            others: watch::Sender::new(Arc::default()),
            resting: Mutex::default(),
            probes: Flights::default(),
            index,
            metrics,
        })
    }

    /// Returns how this replica is known to the others.
    pub fn me(&self) -> &Replica {
        &self.me
    }

    /// Returns the others that are alive, each with whether it could not be connected to a moment ago.
    pub fn others(&self) -> Vec<(Replica, bool)> {
        let others = self.others.borrow().clone();
        others.iter().map(|other| (other.replica.clone(), self.rests(&other.replica))).collect()
    }

    fn rests(&self, replica: &Replica) -> bool {
        self.resting().get(replica).is_some_and(|until| Instant::now() < *until)
    }

    /// Returns whether a request for a path is from another replica and meant for this process. `proof`: by what it shows
    /// that, in hexadecimal.
    pub fn lets_in(&self, proof: Option<&str>, epoch: Option<&str>, path: &str) -> bool {
        if epoch != Some(self.me.epoch.to_string().as_str()) {
            return false;
        }
        let Some(key) = &self.key else {
            return true;
        };
        let proof = proof.and_then(hex);
        proof.is_some_and(|proof| hmac::verify(key, &signed(&self.me, path), &proof).is_ok())
    }

    /// Returns the proof that a request for a path is from a replica of this cluster. The token itself is never sent:
    /// whoever answers at the address in the place of the replica learns nothing that another replica takes.
    fn proof(&self, replica: &Replica, path: &str) -> Option<String> {
        let tag = hmac::sign(self.key.as_ref()?, &signed(replica, path));
        Some(tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Returns the replicas to ask for something, its home first; none if it is at home here.
    pub fn before_me(&self, key: Key) -> Vec<Replica> {
        let others = self.others.borrow().clone();
        let mine = (weight(self.my_number, key), &self.me.address);
        let weigh = |other: &Other| (weight(other.number, key), other.replica.address.clone());
        let mut before: Vec<_> = others.iter().map(|other| (weigh(other), &other.replica)).collect();
        before.retain(|((weight, address), _)| (*weight, address) > mine);
        before.sort_by(|(a, _), (b, _)| b.cmp(a));
        before.into_iter().map(|(_, replica)| replica.clone()).filter(|replica| !self.rests(replica)).collect()
    }

    /// Returns whether this replica is the home of an object.
    pub fn is_home(&self, digest: &Digest) -> bool {
        self.before_me(Key::of_object(digest)).is_empty()
    }

    /// Returns some of the replicas that have an object stored, as the index knows.
    pub async fn holders(&self, digest: &Digest) -> Vec<Replica> {
        // An index that is away says so itself; a slow one is not waited for.
        let holders = tokio::time::timeout(PATIENCE, self.index.holders(digest)).await;
        holders.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Notes that a replica could not be connected to.
    fn is_gone(&self, replica: &Replica) {
        let now = Instant::now();
        let mut resting = self.resting();
        resting.retain(|_, until| now < *until);
        resting.insert(replica.clone(), now + REST);
    }

    /// Waits until a replica is no longer said to be alive.
    async fn until_gone(&self, replica: &Replica) {
        let mut others = self.others.subscribe();
        let is_gone = |others: &Arc<[Other]>| others.iter().all(|other| other.replica != *replica);
        if others.wait_for(is_gone).await.is_err() {
            std::future::pending().await
        }
    }

    fn resting(&self) -> MutexGuard<'_, HashMap<Replica, Instant>> {
        self.resting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the proof of a request is about.
fn signed(replica: &Replica, path: &str) -> Vec<u8> {
    format!("larder\n{}\n{}\n{path}", replica.address, replica.epoch).into_bytes()
}

/// Reads bytes in hexadecimal.
fn hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?, 16).ok())
        .collect()
}
