//! Several upstreams for one repository, tried in order.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::answers::BuildError;
use super::client::Upstream;
use super::shared::Shared;
use crate::clock::Instant;
use crate::config;
use crate::failure::{Failure, FailureKind};
use crate::observe::Metrics;
use crate::random;

/// How long the upstreams of a repository together may take: containerd 2.3 gives up 30 s after its request (containerd
/// 574a60700).
const BUDGET: Duration = Duration::from_secs(24);
/// The time added to the timeout of the last upstream, for the token and for a retry, where that timeout exceeds the
/// budget.
const MARGIN: Duration = Duration::from_secs(4);
/// An upstream that was given less time than this is not counted as one that hangs.
const FAIR: Duration = Duration::from_secs(5);
/// The pause before a retry of upstreams whose failure may have passed.
const PAUSE: Duration = Duration::from_millis(200);

/// Returns the pause before a retry, another one each time.
pub fn pause() -> Duration {
    PAUSE.mul_f64(0.5 + random::fraction())
}

/// The upstreams of one repository, in order of preference; never empty.
#[derive(Clone)]
pub struct Upstreams {
    clients: Arc<[Arc<Upstream>]>,
    /// How long each of them may take for a whole answer, with redirects, tokens and the body of a document.
    limits: Arc<[Duration]>,
    /// How long all of them together may take.
    patience: Duration,
}

/// All clients in use. Upstreams with the same configuration share one client, with one health, one budget and one set
/// of tokens, also across a change of the configuration.
#[derive(Default)]
pub struct Clients {
    known: Mutex<Vec<(Duration, Weak<Upstream>)>>,
    shared: Shared,
}

impl Clients {
    /// Makes an empty set of clients.
    pub fn new(shared: Shared) -> Self {
        Self { known: Mutex::default(), shared }
    }

    /// Returns the state that all clients share.
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    fn client(
        &self,
        config: &config::Upstream,
        patience: Duration,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Upstream>, BuildError> {
        let mut clients = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        clients.retain(|(_, client)| client.strong_count() > 0);
        let found = clients.iter().filter(|(theirs, _)| *theirs == patience).filter_map(|(_, client)| client.upgrade());
        if let Some(client) = found.into_iter().find(|client| client.config() == config) {
            return Ok(client);
        }
        let client = Arc::new(Upstream::new(config, patience, metrics.clone(), &self.shared)?);
        clients.push((patience, Arc::downgrade(&client)));
        Ok(client)
    }
}

impl Upstreams {
    /// Takes the clients of a repository's upstreams from `clients`, which makes those that are missing.
    pub fn new(configs: &[config::Upstream], clients: &Clients, metrics: &Arc<Metrics>) -> Result<Self, BuildError> {
        let longest = configs.last().map_or(Duration::ZERO, |config| config.timeout);
        let patience = BUDGET.max(longest + MARGIN);
        let share = BUDGET / u32::try_from(configs.len()).unwrap_or(u32::MAX).max(1);
        // The last upstream may use its whole configured timeout: no other comes after it.
        let is_last = |at: usize| at + 1 == configs.len();
        let upstreams = configs.iter().enumerate().map(|(at, config)| {
            let patience = if is_last(at) { config.timeout } else { config.timeout.min(share) };
            clients.client(config, patience, metrics)
        });
        let limits = configs.iter().enumerate();
        let limits = limits.map(|(at, _)| if is_last(at) { patience } else { share });
        let clients = upstreams.collect::<Result<Vec<_>, _>>()?;
        Ok(Self { clients: clients.into(), limits: limits.collect(), patience })
    }

    /// Returns how long a client waits for the headers of a response.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// Returns the number of upstreams.
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Returns whether there are no upstreams.
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }

    /// Returns the upstreams in the configured order.
    pub fn iter(&self) -> impl Iterator<Item = &Upstream> {
        self.clients.iter().map(AsRef::as_ref)
    }

    /// Returns whether one of the upstreams may be asked for something that no client waits for.
    pub fn have_quota_to_spare(&self) -> bool {
        let now = Instant::now();
        self.iter().any(|upstream| upstream.has_quota_to_spare(now))
    }

    /// Returns the order in which the upstreams are asked: as configured, but of several accounts at one registry the
    /// account with the most left of its rate limit comes first. `preferred` comes before all.
    fn order(&self, preferred: Option<usize>) -> Vec<usize> {
        let now = Instant::now();
        let left: Vec<_> = self.iter().map(|upstream| upstream.left(now)).collect();
        let is_same = |a: usize, b: usize| self[a].config().url == self[b].config().url;
        let mut order = share_load(self.len(), is_same, &left);
        if let Some(at) = preferred.and_then(|preferred| order.iter().position(|&at| at == preferred)) {
            order[..=at].rotate_right(1);
        }
        order
    }

    /// Returns the first answer that any upstream gives, and which upstream gave it. If one fails, for whatever reason,
    /// the next is asked. Of several failures the most telling is returned, so that "not found" means that all of them
    /// said so. Upstreams whose failure may pass are asked once more a moment later. `preferred` is asked first: an
    /// upstream that knew the tag also has the manifest.
    pub async fn first<T, A>(&self, preferred: Option<usize>, ask: impl Fn(usize) -> A) -> Result<(usize, T), Failure>
    where
        A: Future<Output = Result<T, Failure>>,
    {
        self.first_in(&self.order(preferred), ask).await
    }

    /// Returns the answer of one upstream alone, for requests that no other upstream understands; like
    /// [`Upstreams::first`] otherwise.
    pub async fn only<T, A>(&self, at: usize, ask: impl Fn(usize) -> A) -> Result<(usize, T), Failure>
    where
        A: Future<Output = Result<T, Failure>>,
    {
        self.first_in(&[at], ask).await
    }

    async fn first_in<T, A>(&self, order: &[usize], ask: impl Fn(usize) -> A) -> Result<(usize, T), Failure>
    where
        A: Future<Output = Result<T, Failure>>,
    {
        let deadline = tokio::time::Instant::now() + self.patience;
        let (told, passing) = match self.first_of(order, deadline, &ask).await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        if passing.is_empty() {
            return Err(told);
        }
        tokio::time::sleep(pause()).await;
        self.first_of(&passing, deadline, &ask).await.map_err(|(again, _)| told.more_telling(again))
    }

    /// Asks each upstream once. A failure comes with the upstreams that are worth a retry.
    async fn first_of<T, A>(
        &self,
        order: &[usize],
        deadline: tokio::time::Instant,
        ask: &impl Fn(usize) -> A,
    ) -> Result<(usize, T), (Failure, Vec<usize>)>
    where
        A: Future<Output = Result<T, Failure>>,
    {
        let mut failed: Option<Failure> = None;
        let mut passing = Vec::new();
        for &at in order {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let limit = self.limits[at].min(left);
            let answer = match tokio::time::timeout(limit, ask(at)).await {
                Ok(answer) => answer,
                // The upstreams before it left it too little time, which is no fault of its own.
                Err(_) if left < self.limits[at] && left < FAIR => Err(self[at].had_no_time(limit)),
                Err(_) => Err(self[at].took_too_long(limit)),
            };
            match answer {
                Ok(answer) => return Ok((at, answer)),
                Err(failure) => {
                    tracing::debug!(upstream = self[at].label(), kind = failure.kind.as_str(), %failure, "an upstream failed");
                    if failure.is_passing {
                        passing.push(at);
                    }
                    failed = Some(match failed {
                        Some(earlier) => earlier.more_telling(failure),
                        None => failure,
                    });
                }
            }
        }
        let none = || Failure::new(FailureKind::Unavailable, "no upstream is configured");
        Err((failed.unwrap_or_else(none), passing))
    }
}

/// Returns `0..count`, where upstreams at the same registry swap places: the one with the most left comes first.
fn share_load(count: usize, is_same: impl Fn(usize, usize) -> bool, left: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for first in 0..count {
        let places: Vec<usize> = (0..count).filter(|&at| is_same(at, first)).collect();
        if places.first() != Some(&first) || places.len() < 2 {
            continue;
        }
        let mut members = places.clone();
        // The sort is stable: equal upstreams stay in the configured order.
        members.sort_by(|&a, &b| left[b].total_cmp(&left[a]));
        for (place, member) in places.into_iter().zip(members) {
            order[place] = member;
        }
    }
    order
}

impl std::ops::Index<usize> for Upstreams {
    type Output = Upstream;

    fn index(&self, at: usize) -> &Upstream {
        &self.clients[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_upstream_for_which_no_time_was_left_is_not_taken_for_one_that_hangs() {
        let config =
            |port: u16| crate::upstream::transport::tests::upstream(&format!("url = \"http://127.0.0.1:{port}\""));
        let configs: Vec<_> = (1..=6).map(config).collect();
        let upstreams = Upstreams::new(&configs, &Clients::default(), &Arc::default()).expect("clients");
        let begun = tokio::time::Instant::now();
        let is_resting = |at: usize| upstreams[at].status().resting.is_some();
        // Whether each has to rest when the next one is asked: a rest may end before all were asked.
        let rested = Mutex::new(Vec::new());
        let ask = |at: usize| {
            rested.lock().expect("no panic").extend(at.checked_sub(1).map(is_resting));
            std::future::pending::<Result<(), Failure>>()
        };
        let answer = upstreams.first(None, ask).await;
        assert_eq!(answer.expect_err("none").kind, FailureKind::Timeout);
        assert!(begun.elapsed() <= BUDGET + Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(*rested.lock().expect("no panic"), [true; 5]);
        assert!(!is_resting(5));
    }

    #[test]
    fn accounts_at_one_registry_take_turns_by_what_is_left() {
        // 0, 1 and 3 are accounts at one registry, 2 is at another.
        let is_same = |a: usize, b: usize| (a == 2) == (b == 2);
        assert_eq!(share_load(4, is_same, &[1.0, 1.0, 1.0, 1.0]), [0, 1, 2, 3]);
        assert_eq!(share_load(4, is_same, &[0.2, 0.5, 0.0, 0.9]), [3, 1, 2, 0]);
        assert_eq!(share_load(2, |a, b| a == b, &[0.0, 1.0]), [0, 1], "different registries keep their order");
        assert_eq!(share_load(1, |_, _| true, &[0.0]), [0]);
    }
}
