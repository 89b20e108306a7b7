//! Warming: brings lists of images into the cache, in the background, as far as the upstreams' quotas allow.
//!
//! Locks: `jobs`, and the `state` of an image, are each taken alone.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt};
use tokio::sync::Semaphore;

use crate::clock::{self, Instant};
use crate::failure::Failure;
use crate::oci::Reference;
use crate::registry::Objects;
use crate::registry::warm::{Platform, Progress};
use crate::routing::Target;

/// Most images of one job.
pub const IMAGES: usize = 1_000;
/// Jobs that are remembered.
const JOBS: usize = 32;
/// Jobs that run at once; others wait for them.
const RUNNING: usize = 2;
/// Images of one job that are brought in at once.
const AT_ONCE: usize = 2;
/// How often a job that waits for a quota looks for it.
const LOOK: Duration = Duration::from_secs(15);
/// Longest time that a job waits for a quota: those of Docker Hub are renewed within six hours.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Brings lists of images into the cache.
pub struct Warming {
    objects: Arc<Objects>,
    jobs: Mutex<VecDeque<Arc<Job>>>,
    running: Arc<Semaphore>,
    last: AtomicU64,
}

/// A list of images that are brought into the cache.
pub struct Job {
    pub id: u64,
    pub begun: SystemTime,
    pub platforms: Vec<Platform>,
    pub images: Vec<Image>,
}

/// One image of a job.
pub struct Image {
    pub target: Target,
    pub reference: Reference,
    /// As it is written in a pull.
    pub written: String,
    pub progress: Progress,
    state: Mutex<State>,
}

/// How far an image is.
#[derive(Clone, Debug)]
pub enum State {
    Waiting,
    Running,
    /// The upstream's quota is used up; with how long that lasts, as far as it is known.
    Resting(Option<Duration>),
    Done,
    Failed(Failure),
}

/// All places for jobs are taken by jobs that have not ended.
#[derive(Debug, thiserror::Error)]
#[error("{JOBS} lists are being warmed already; try again when one has ended")]
pub struct Full;

impl Image {
    /// Creates an image that waits.
    pub fn new(target: Target, reference: Reference, written: String) -> Self {
        Self { target, reference, written, progress: Progress::default(), state: Mutex::new(State::Waiting) }
    }

    /// Returns how far it is.
    pub fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Returns whether its upstreams' quotas are used up, and how long that lasts.
    fn rest(&self) -> Option<Option<Duration>> {
        let now = Instant::now();
        let statuses: Vec<_> = self.target.repository.upstreams.iter().map(|upstream| upstream.status()).collect();
        let is_used_up = |status: &crate::upstream::Status| {
            status.pulls_resting.is_some() || status.budget.as_ref().is_some_and(|budget| budget.is_below_floor(now))
        };
        if statuses.is_empty() || !statuses.iter().all(is_used_up) {
            return None;
        }
        Some(statuses.iter().filter_map(|status| status.pulls_resting.as_ref().map(|(left, _)| *left)).min())
    }
}

impl Job {
    /// Returns whether nothing of it is left to do.
    pub fn has_ended(&self) -> bool {
        self.images.iter().all(|image| matches!(image.state(), State::Done | State::Failed(_)))
    }
}

impl Warming {
    /// Creates the service; nothing is warmed yet.
    pub fn new(objects: Arc<Objects>) -> Self {
        let running = Arc::new(Semaphore::new(RUNNING));
        Self { objects, jobs: Mutex::default(), running, last: AtomicU64::new(0) }
    }

    /// Begins to bring in a list of images. Must be called within a runtime.
    pub fn begin(&self, images: Vec<Image>, platforms: Vec<Platform>) -> Result<Arc<Job>, Full> {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let job = Arc::new(Job { id, begun: clock::wall(), platforms, images });
        {
            let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
            if jobs.len() >= JOBS {
                let ended = jobs.iter().position(|job| job.has_ended()).ok_or(Full)?;
                jobs.remove(ended);
            }
            jobs.push_back(job.clone());
        }
        let (objects, running, begun) = (self.objects.clone(), self.running.clone(), job.clone());
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _place = running.acquire_owned().await;
            run(&objects, &begun).await;
        });
        Ok(job)
    }

    /// Returns a job by its number.
    pub fn job(&self, id: u64) -> Option<Arc<Job>> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.iter().find(|job| job.id == id).cloned()
    }
}

async fn run(objects: &Arc<Objects>, job: &Arc<Job>) {
    stream::iter(&job.images).for_each_concurrent(AT_ONCE, |image| warm(objects, image, &job.platforms)).await;
    let failed = job.images.iter().filter(|image| matches!(image.state(), State::Failed(_))).count();
    tracing::info!(id = job.id, images = job.images.len(), failed, "warmed");
}

async fn warm(objects: &Arc<Objects>, image: &Image, platforms: &[Platform]) {
    let begun = Instant::now();
    while let Some(left) = image.rest() {
        if begun.elapsed() > LONGEST_WAIT {
            break;
        }
        image.set(State::Resting(left));
        tokio::time::sleep(left.map_or(LOOK, |left| left.clamp(Duration::from_secs(1), LOOK))).await;
    }
    image.set(State::Running);
    match objects.warm(&image.target, &image.reference, platforms, &image.progress).await {
        Ok(()) => image.set(State::Done),
        Err(failure) => {
            tracing::info!(image = image.written, kind = failure.kind.as_str(), %failure, "not warmed");
            image.set(State::Failed(failure));
        }
    }
}
