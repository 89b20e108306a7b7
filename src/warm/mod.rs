//! Warming: brings lists of images into the cache, in the background, as far as the upstreams' quotas allow; lists that
//! people give, and those that the configuration wants to be kept warm.
//!
//! Locks: `jobs`, and the `state` of an image, are each taken alone.

pub mod schedule;
mod wanted;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::stream::{self, StreamExt};
use tokio::sync::Semaphore;
use tracing::{Instrument, Span};

use crate::clock::{self, Instant};
use crate::failure::Failure;
use crate::observe::trace;
use crate::oci::{Platform, Reference};
use crate::registry::Objects;
use crate::registry::warm::Progress;
use crate::routing::Target;

/// Most images of one job.
pub const IMAGES: usize = 1_000;
/// Jobs that are remembered, beside the last one of each schedule.
pub const JOBS: usize = 32;
/// Images of one job that are brought in, or wait for a quota, at once.
const AT_ONCE: usize = 2;
/// Images of people's lists that are brought in at once; those that wait for a quota do not count.
const LISTED: usize = 4;
/// The same of all schedules, which have places of their own so that nobody waits for them.
const SCHEDULED: usize = 2;
/// How often a job that waits for a quota looks for it.
const LOOK: Duration = Duration::from_secs(15);
/// Longest time that a job waits for a quota: those of Docker Hub are renewed within six hours.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Brings lists of images into the cache.
pub struct Warming {
    objects: Arc<Objects>,
    jobs: Mutex<VecDeque<Arc<Job>>>,
    listed: Semaphore,
    scheduled: Semaphore,
    last: AtomicU64,
}

/// A list of images that are brought into the cache.
pub struct Job {
    pub id: u64,
    pub begun: SystemTime,
    /// The schedule that wants it, by its number from 1; `None`: a person does.
    pub schedule: Option<usize>,
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

    /// Returns why it failed.
    pub fn failure(&self) -> Option<Failure> {
        match self.state() {
            State::Failed(failure) => Some(failure),
            _ => None,
        }
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

    /// Waits until its upstreams' quotas allow to bring it in, at most [`LONGEST_WAIT`].
    async fn quota(&self) {
        let begun = Instant::now();
        while let Some(left) = self.rest() {
            if begun.elapsed() > LONGEST_WAIT {
                break;
            }
            self.set(State::Resting(left));
            tokio::time::sleep(left.map_or(LOOK, |left| left.clamp(Duration::from_secs(1), LOOK))).await;
        }
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
        let (listed, scheduled) = (Semaphore::new(LISTED), Semaphore::new(SCHEDULED));
        Self { objects, jobs: Mutex::default(), listed, scheduled, last: AtomicU64::new(0) }
    }

    /// Begins to bring in a list of images. Must be called within a runtime.
    pub fn begin(self: &Arc<Self>, images: Vec<Image>, platforms: Vec<Platform>) -> Result<Arc<Job>, Full> {
        let job = {
            let mut jobs = self.jobs();
            let is_listed = |job: &&Arc<Job>| job.schedule.is_none();
            if jobs.iter().filter(is_listed).count() >= JOBS {
                let ended = jobs.iter().position(|job| job.schedule.is_none() && job.has_ended()).ok_or(Full)?;
                jobs.remove(ended);
            }
            let job = self.make(images, platforms, None);
            jobs.push_back(job.clone());
            job
        };
        let (warming, begun) = (self.clone(), job.clone());
        tokio::spawn(async move { warming.run(&begun).await });
        Ok(job)
    }

    /// Returns a job by its number.
    pub fn job(&self, id: u64) -> Option<Arc<Job>> {
        self.jobs().iter().find(|job| job.id == id).cloned()
    }

    /// Returns all jobs that are remembered, the newest first.
    pub fn all(&self) -> Vec<Arc<Job>> {
        self.jobs().iter().rev().cloned().collect()
    }

    /// Enters the job of a schedule, in the place of the one before.
    fn enter(&self, images: Vec<Image>, platforms: Vec<Platform>, schedule: usize) -> Arc<Job> {
        let mut jobs = self.jobs();
        jobs.retain(|job| job.schedule != Some(schedule));
        let job = self.make(images, platforms, Some(schedule));
        jobs.push_back(job.clone());
        job
    }

    fn make(&self, images: Vec<Image>, platforms: Vec<Platform>, schedule: Option<usize>) -> Arc<Job> {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        Arc::new(Job { id, begun: clock::wall(), schedule, platforms, images })
    }

    /// Takes a job out of the list.
    fn forget(&self, id: u64) {
        self.jobs().retain(|job| job.id != id);
    }

    fn jobs(&self) -> std::sync::MutexGuard<'_, VecDeque<Arc<Job>>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(&self, job: &Arc<Job>) {
        stream::iter(&job.images).for_each_concurrent(AT_ONCE, |image| self.warm(image, job)).await;
        let failed = job.images.iter().filter(|image| image.failure().is_some()).count();
        tracing::info!(id = job.id, schedule = job.schedule, images = job.images.len(), failed, "warmed");
    }

    async fn warm(&self, image: &Image, job: &Job) {
        image.quota().await;
        image.set(State::Waiting);
        let places = if job.schedule.is_some() { &self.scheduled } else { &self.listed };
        // The semaphores are never closed.
        let _place = places.acquire().await;
        image.set(State::Running);
        let (objects, target, reference) = (&self.objects, &image.target, &image.reference);
        let span = trace::of_image("warm", &image.written, &Span::none());
        let (platforms, progress) = (&job.platforms, &image.progress);
        let warmed = match job.schedule {
            None => objects.warm(target, reference, platforms, progress).instrument(span).await,
            Some(_) => objects.keep_warm(target, reference, platforms, progress).instrument(span).await,
        };
        match warmed {
            Ok(()) => image.set(State::Done),
            Err(failure) => {
                let kind = failure.kind.as_str();
                tracing::info!(image = image.written, schedule = job.schedule, kind, %failure, "not warmed");
                image.set(State::Failed(failure));
            }
        }
    }
}
