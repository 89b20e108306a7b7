//! What each response tells about an upstream: its health, its record, its rate limit, its metrics.

use std::sync::PoisonError;

use http::{HeaderMap, StatusCode};
use reqwest::Response;

use super::budget::Budget;
use super::errors::{self, Limited};
use super::health::Limits;
use super::line::Begun;
use super::transport::{Ask, Reached, Transport};
use super::who::Who;
use crate::clock::{self, Instant};
use crate::failure::{Failure, FailureKind};
use crate::random;

impl Transport {
    /// Counts a request, and writes its line of the log.
    pub(super) fn count(&self, result: &mut Result<Response, Failure>, since: Instant, line: Option<Begun>) {
        let told = result.as_ref().map(Response::status).map_err(|failure| failure.kind.as_str());
        self.metrics.asked_upstream(self.counted_as(), told, since.elapsed());
        match (line, result) {
            (Some(line), Ok(response)) => line.answered(response),
            (Some(line), Err(failure)) => line.failed(failure),
            (None, _) => {}
        }
    }

    /// Reads which rate limit a 429 is about, and notes it.
    pub(super) async fn rate_limited(&self, response: Response, ask: &Ask<'_>, who: &Who) -> Failure {
        let headers = response.headers().clone();
        let said = self.said(response).await;
        let (limited, failure) = errors::rate_limit(&self.label, &headers, said.as_deref());
        let failure = failure.told(self.tellable(said).as_deref());
        let now = Instant::now();
        if who.is_client() {
            let mut limits = self.limited.get(&who.id()).map_or_else(Limits::default, |(_, _, limits)| limits);
            let until = now + limits.next(&failure);
            self.limited.insert(who.id(), (until, failure.clone(), limits));
            return failure;
        }
        self.read_budget(&headers, now);
        // A 429 to a request that is no pull shows that the limit covers all requests.
        if limited == Limited::Pulls && ask.is_pull {
            self.record().failed(&failure, clock::wall());
            let was_resting = self.health().pulls_resting(now).is_some();
            self.health().pulls_limited(&failure, now);
            if !was_resting {
                tracing::warn!(upstream = %self.label, %failure, "backing off from an upstream for requests that count as pulls");
            }
        } else {
            self.note_failure(&failure, Reached { was_reached: true, since: now }, now);
        }
        failure
    }

    /// Notes the result of a request to the upstream itself.
    pub(super) fn take_note(&self, result: &Result<Response, Failure>, reached: Reached, who: &Who, is_pull: bool) {
        let now = Instant::now();
        match result {
            Ok(response) => {
                if !who.is_client() {
                    self.read_budget(response.headers(), now);
                }
                if is_own_trouble(response.status()) {
                    let failure = errors::status(&self.label, response.status(), response.headers(), None);
                    self.note_failure(&failure, reached, now);
                } else {
                    self.record().answered(now.saturating_duration_since(reached.since), clock::wall());
                    let mut health = self.health();
                    health.answered(now);
                    if is_pull && response.status().is_success() {
                        health.gave_pull(now);
                    }
                }
            }
            // A shortage on our own side tells nothing about the upstream.
            Err(failure) if failure.kind == FailureKind::Busy => {}
            Err(failure) => self.note_failure(failure, reached, now),
        }
    }

    /// Notes a failure in the upstream's health. If Larder backs off because of a timeout, the background task is
    /// started.
    pub fn note_failure(&self, failure: &Failure, reached: Reached, now: Instant) {
        let Reached { was_reached, since } = reached;
        self.record().failed(failure, clock::wall());
        let mut health = self.health();
        let was_resting = health.resting(now).is_some();
        match failure.kind {
            FailureKind::Timeout if !was_reached => health.timed_out(failure, since, now, random::fraction()),
            _ => health.failed(failure, was_reached, now, random::fraction()),
        }
        if let (false, Some((left, why))) = (was_resting, health.resting(now)) {
            tracing::warn!(upstream = %self.label, kind = why.kind.as_str(), %why, "backing off from an upstream for {left:.1?}");
            // Hosts that only clients name are not probed: there may be any number of them.
            if why.kind == FailureKind::Timeout && self.is_known {
                self.probing.begin(&self.me);
            }
        }
    }

    fn read_budget(&self, headers: &HeaderMap, now: Instant) {
        let Some(read) = Budget::read(headers, now) else {
            return;
        };
        self.metrics.quota(self.counted_as(), &self.account, read.limit, read.remaining);
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let was_low = budget.as_ref().is_some_and(|before| before.is_below_floor(now));
        if read.is_below_floor(now) && !was_low {
            tracing::warn!(
                upstream = %self.label,
                account = self.account,
                remaining = read.remaining,
                limit = read.limit,
                "the rate limit is nearly used up; nothing is fetched any more without a client waiting for it"
            );
        }
        *budget = Some(read);
    }
}

/// Returns whether a status is about the upstream and not about the object asked for.
fn is_own_trouble(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
}
