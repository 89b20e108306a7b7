//! `GET /api/events`: what happens now, as server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Interval;

use super::door::Person;
use super::fills;
use super::problem::{ErrorBody, Problem};
use super::pulls::PullEntry;
use super::stats;
use crate::access::browser::Shown;
use crate::observe::Pull;
use crate::services::Services;

/// Most listeners at once: each keeps a connection.
const LISTENERS: usize = 16;
/// How often the running transfers and the statistics are told.
const EVERY: Duration = Duration::from_secs(1);

/// The places for listeners.
#[derive(Clone)]
pub struct Listeners(Arc<Semaphore>);

impl Default for Listeners {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LISTENERS)))
    }
}

struct Listener {
    services: Arc<Services>,
    /// The session by which the listener came in.
    session: Option<Arc<Shown>>,
    pulls: Receiver<Arc<Pull>>,
    ticks: Interval,
    /// Events that are ready to be sent.
    ready: Vec<Event>,
    _place: OwnedSemaphorePermit,
}

/// What happens now
///
/// Server-sent events: `pull` with each answered request, as in `/api/pulls`; `fills` and `stats` once a second, as in
/// `/api/fills` and `/api/cache/stats`; `missed` with a number where the listener was too slow for so many pulls.
#[utoipa::path(get, path = "/api/events", tag = "pulls", responses(
    (status = 200, description = "the events", content_type = "text/event-stream", body = String),
    (status = 503, body = ErrorBody)))]
pub async fn show(
    State(services): State<Arc<Services>>,
    Extension(listeners): Extension<Listeners>,
    Extension(person): Extension<Person>,
) -> Response {
    let Ok(place) = listeners.0.clone().try_acquire_owned() else {
        return Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many listen already; try again later")
            .into_response();
    };
    let pulls = services.metrics.pulls.listen();
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let listener = Listener { services, session: person.session, pulls, ticks, ready: Vec::new(), _place: place };
    let events = stream::unfold(listener, async |mut listener| {
        let event = listener.next().await?;
        Some((Ok::<_, Infallible>(event), listener))
    });
    let events = Sse::new(events).keep_alive(KeepAlive::default());
    // nginx would collect the events otherwise.
    ([(header::CACHE_CONTROL, "no-store"), (header::HeaderName::from_static("x-accel-buffering"), "no")], events)
        .into_response()
}

impl Listener {
    async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.ready.pop() {
            return Some(event);
        }
        tokio::select! {
            pull = self.pulls.recv() => match pull {
                Ok(pull) => Some(event("pull", &PullEntry::from(&*pull)).id(pull.id.to_string())),
                Err(RecvError::Lagged(missed)) => Some(event("missed", &missed)),
                Err(RecvError::Closed) => None,
            },
            _ = self.ticks.tick() => {
                let access = &self.services.access;
                if self.session.as_ref().is_some_and(|shown| !access.browsers.may_still_look(&access.rules(), shown)) {
                    return None;
                }
                self.ready.push(event("stats", &stats::of(&self.services)));
                Some(event("fills", &fills::list(&self.services)))
            }
        }
    }
}

fn event(name: &str, data: &impl serde::Serialize) -> Event {
    // These types have no maps with odd keys, which are all that JSON cannot hold.
    let data = serde_json::to_string(data).unwrap_or_default();
    Event::default().event(name).data(data)
}
