//! The last requests for content, each with its reason: for `GET /api/pulls`, `GET /api/events` and the dashboard.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use http::Method;
use tokio::sync::broadcast::{self, Receiver, Sender};

use super::counters::RepositoryCounters;
use super::outcome::{Kind, Outcome};
use super::reason::Reason;
use crate::auth::ShownAddress;

/// How many pulls are kept.
pub const KEPT: usize = 10_000;
/// Pulls that one listener may be behind before it misses some.
const BEHIND: usize = 1_024;

/// One request for content that has been answered.
#[derive(Clone, Debug)]
pub struct Pull {
    /// Its number since the process started, from 1.
    pub id: u64,
    /// When its head arrived.
    pub at: SystemTime,
    /// The client's address.
    pub client: ShownAddress,
    /// The name of the client by its login or certificate, if that decided whether it may read.
    pub user: Option<String>,
    pub user_agent: String,
    pub method: Method,
    /// The path, or the URL at the proxy door; without its query.
    pub path: String,
    /// The repository, if one was found.
    pub repository: Option<Arc<RepositoryCounters>>,
    pub kind: Option<Kind>,
    /// What was asked for, as in `docker pull`: `docker.io/library/alpine:3.20`, or with `@` and a digest.
    pub reference: Option<String>,
    pub status: u16,
    pub reason: Reason,
    /// Bytes of the body that were sent.
    pub bytes: u64,
    /// Whether the body was sent to its end.
    pub is_complete: bool,
    /// The time until the head of the response.
    pub head: Duration,
    /// The time until the end of the response.
    pub took: Duration,
    /// The number of its trace, if the trace is kept.
    pub trace: Option<String>,
}

/// Which pulls a list has.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// A word of [`Outcome`], `refused`, or a status code.
    pub status: Option<String>,
    pub repository: Option<String>,
    /// A part of the reference, path, client, user or user agent, or of the reason's word; in any case of letters.
    pub q: Option<String>,
    /// Only pulls with a smaller number.
    pub before: Option<u64>,
}

impl Pull {
    /// Returns the word of its outcome: `hit`, `miss`, `stale`, `failed` or `refused`.
    pub fn outcome(&self) -> &'static str {
        self.reason.outcome().map_or("refused", Outcome::as_str)
    }

    /// Returns the repository's prefix, as metrics have it; empty if none was found.
    pub fn repository(&self) -> &str {
        self.repository.as_ref().map_or("", |repository| &repository.label)
    }

    /// Returns what took most of the time, in words; `None` for a pull that was quick.
    pub fn slowness(&self) -> Option<String> {
        const QUICK: Duration = Duration::from_secs(1);
        if self.took < QUICK {
            return None;
        }
        let seconds = |span: Duration| format!("{:.1} s", span.as_secs_f64());
        let body = self.took.saturating_sub(self.head);
        if self.head > body {
            return Some(match self.reason {
                Reason::Hit(_) => format!("{} until the cache answered", seconds(self.head)),
                _ => format!("{} until the upstream answered", seconds(self.head)),
            });
        }
        #[allow(clippy::cast_precision_loss)]
        let rate = self.bytes as f64 / body.as_secs_f64().max(0.001) / 1e6;
        Some(match self.reason {
            Reason::Miss(_) => format!(
                "{} for the body, {rate:.1} MB/s: as fast as the upstream sent, or the client took it",
                seconds(body)
            ),
            _ => format!("{} for the body, {rate:.1} MB/s: as fast as the client took it", seconds(body)),
        })
    }

    fn fits(&self, filter: &Filter) -> bool {
        let has_status = |status: &str| {
            self.outcome() == status || self.status.to_string() == status || (status == "denied" && self.status == 403)
        };
        let has_text = |text: &str| {
            let text = text.to_lowercase();
            let has = |field: &str| field.to_lowercase().contains(&text);
            has(self.reference.as_deref().unwrap_or_default())
                || has(&self.path)
                || has(&self.client.to_string())
                || has(self.user.as_deref().unwrap_or_default())
                || has(&self.user_agent)
                || has(self.reason.code())
        };
        filter.status.as_deref().is_none_or(has_status)
            && filter.repository.as_deref().is_none_or(|repository| self.repository() == repository)
            && filter.q.as_deref().is_none_or(has_text)
            && filter.before.is_none_or(|before| self.id < before)
    }
}

/// The last pulls, and who listens to new ones.
#[derive(Debug)]
pub struct Pulls {
    kept: Mutex<Kept>,
    news: Sender<Arc<Pull>>,
}

#[derive(Debug, Default)]
struct Kept {
    pulls: VecDeque<Arc<Pull>>,
    last: u64,
}

impl Default for Pulls {
    fn default() -> Self {
        Self { kept: Mutex::default(), news: broadcast::channel(BEHIND).0 }
    }
}

impl Pulls {
    /// Keeps a pull, which gets its number, and tells it to who listens.
    pub fn add(&self, mut pull: Pull) {
        let mut kept = self.kept();
        kept.last += 1;
        pull.id = kept.last;
        let pull = Arc::new(pull);
        let oldest = (kept.pulls.len() >= KEPT).then(|| kept.pulls.pop_front());
        kept.pulls.push_back(pull.clone());
        drop(kept);
        drop(oldest);
        // There may be nobody who listens.
        let _ = self.news.send(pull);
    }

    /// Returns the newest pulls that fit, newest first, at most `n`.
    pub fn list(&self, filter: &Filter, n: usize) -> Vec<Arc<Pull>> {
        // Texts are compared without the lock.
        let pulls: Vec<_> = self.kept().pulls.iter().rev().cloned().collect();
        pulls.into_iter().filter(|pull| pull.fits(filter)).take(n).collect()
    }

    /// Returns the pulls from now on.
    pub fn listen(&self) -> Receiver<Arc<Pull>> {
        self.news.subscribe()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::reason::{Hit, Miss};
    use super::*;

    fn pull(reference: &str, reason: Reason) -> Pull {
        Pull {
            id: 0,
            at: SystemTime::UNIX_EPOCH,
            client: ShownAddress::Connection(([192, 0, 2, 1], 4711).into()),
            user: None,
            user_agent: "containerd/2.1".to_owned(),
            method: Method::GET,
            path: format!("/v2/{reference}"),
            repository: Some(RepositoryCounters::new("docker.io")),
            kind: Some(Kind::Manifest),
            reference: Some(reference.to_owned()),
            status: 200,
            reason,
            bytes: 10,
            is_complete: true,
            head: Duration::ZERO,
            took: Duration::ZERO,
            trace: None,
        }
    }

    #[test]
    fn so_many_are_kept_and_no_more() {
        let pulls = Pulls::default();
        for number in 0..KEPT + 5 {
            pulls.add(pull(&number.to_string(), Reason::Hit(Hit::Stored)));
        }
        let all = pulls.list(&Filter::default(), usize::MAX);
        assert_eq!((all.len(), all[0].id, all[KEPT - 1].id), (KEPT, KEPT as u64 + 5, 6));
    }

    #[test]
    fn a_filter_finds_what_it_says_and_pages_reach_each_pull_once() {
        let pulls = Pulls::default();
        for number in 0..30 {
            let reason = if number % 3 == 0 { Reason::Miss(Miss::Absent) } else { Reason::Hit(Hit::Stored) };
            pulls.add(pull(&format!("Alpine:{number}"), reason));
        }
        let list = |filter: &Filter| pulls.list(filter, 4).iter().map(|pull| pull.id).collect::<Vec<_>>();
        let of = |status: &str| Filter { status: Some(status.to_owned()), ..Filter::default() };
        assert_eq!(list(&of("miss")), [28, 25, 22, 19]);
        assert_eq!(list(&Filter { before: Some(19), ..of("miss") }), [16, 13, 10, 7]);
        assert_eq!(list(&of("200")), [30, 29, 28, 27]);
        assert!(list(&of("404")).is_empty());
        let text = |q: &str| Filter { q: Some(q.to_owned()), ..Filter::default() };
        assert_eq!(list(&text("ALPINE:7")), [8]);
        assert_eq!(list(&text("absent")), [28, 25, 22, 19]);
        assert!(list(&Filter { repository: Some("quay.io".to_owned()), ..Filter::default() }).is_empty());
    }

    #[test]
    fn what_was_slow_is_said() {
        let of = |reason: Reason, head: u64, took: u64| {
            let (head, took) = (Duration::from_millis(head), Duration::from_millis(took));
            Pull { head, took, bytes: 10_000_000, ..pull("a", reason) }.slowness()
        };
        assert_eq!(of(Reason::Hit(Hit::Stored), 1, 900), None);
        assert_eq!(of(Reason::Miss(Miss::Absent), 3_000, 4_000).as_deref(), Some("3.0 s until the upstream answered"));
        let slow_client = of(Reason::Hit(Hit::Stored), 0, 10_000);
        assert_eq!(slow_client.as_deref(), Some("10.0 s for the body, 1.0 MB/s: as fast as the client took it"));
    }

    #[tokio::test]
    async fn who_listens_is_told() {
        let pulls = Pulls::default();
        let mut listener = pulls.listen();
        pulls.add(pull("a", Reason::Hit(Hit::Stored)));
        assert_eq!(listener.recv().await.expect("told").id, 1);
    }
}
