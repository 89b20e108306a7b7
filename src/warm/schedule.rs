//! What is kept warm by schedule: each `[[warm]]` of the configuration has a task that brings its images in again and
//! again.
//!
//! One process runs all schedules. Where several behave as one cache, that is the one which has the lease: the tasks of
//! the others wait for it, and a run ends with it.
//!
//! Locks: `schedules`, and the `state` of one, are each taken alone.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::wanted::{self, Found};
use super::{Job, Warming};
use crate::access::Access;
use crate::clock::{self, Instant};
use crate::config::WarmSchedule;
use crate::index::{Index, Lease};
use crate::random;

/// A first run begins at a random moment within this part of `every`, and within [`LONGEST_OFFSET`]: caches that were
/// started together do not ask together.
const OFFSET: f64 = 0.1;
const LONGEST_OFFSET: Duration = Duration::from_secs(300);

/// All schedules that run.
pub struct Schedules {
    warming: Arc<Warming>,
    access: Arc<Access>,
    schedules: Mutex<Vec<Arc<Schedule>>>,
    lease: Arc<Lease>,
}

/// Where the schedules run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runs {
    Here,
    /// At the replica with this address.
    At(String),
    /// At none that is known: the one that ran them has ended, and the next one takes over in a moment.
    Nowhere,
}

/// One schedule. Its task ends when it is dropped.
pub struct Schedule {
    pub wanted: WarmSchedule,
    state: Arc<Mutex<State>>,
    now: Arc<Notify>,
    task: JoinHandle<()>,
}

/// What is known of a schedule.
#[derive(Clone, Default)]
pub struct State {
    /// The run that goes on, or else the last one; `None` before the first.
    pub run: Option<Run>,
    /// When the next run begins; `None` while one goes on.
    pub next: Option<Instant>,
}

/// One run of a schedule.
#[derive(Clone)]
pub struct Run {
    pub begun: SystemTime,
    /// `None` while it goes on.
    pub ended: Option<SystemTime>,
    /// What went wrong before there were images to bring in: each with the image as the configuration has it.
    pub problems: Vec<(String, String)>,
    /// `None` as long as tags are listed.
    pub job: Option<Arc<Job>>,
}

impl Schedules {
    /// Creates the service without schedules. `lease`: whoever has it runs them.
    pub fn new(warming: Arc<Warming>, access: Arc<Access>, lease: Lease) -> Self {
        Self { warming, access, schedules: Mutex::default(), lease: Arc::new(lease) }
    }

    /// Sees to it that one of all that share the index runs the schedules, until `stop` is set.
    pub async fn take_turns(&self, index: &dyn Index, stop: watch::Receiver<Option<Duration>>) {
        self.lease.keep(index, || !self.lock().is_empty(), stop).await;
    }

    /// Returns who runs the schedules now.
    pub fn runs(&self) -> Runs {
        match self.lease.other() {
            _ if self.lease.is_mine() => Runs::Here,
            Some(address) => Runs::At(address),
            None => Runs::Nowhere,
        }
    }

    /// Runs these schedules from now on, and no others. One that stays goes on as it was. Must be called within a
    /// runtime.
    pub fn apply(&self, wanted: &[WarmSchedule]) {
        let mut schedules = self.lock();
        let mut before = std::mem::take(&mut *schedules);
        for (at, wanted) in wanted.iter().enumerate() {
            // The number of a schedule is its place, which its task knows.
            let is_same = before.get(at).is_some_and(|schedule| schedule.wanted == *wanted);
            let schedule = if is_same { before[at].clone() } else { self.begin(at + 1, wanted.clone()) };
            schedules.push(schedule);
        }
        before.clear();
    }

    /// Returns all schedules, in the order of the configuration.
    pub fn all(&self) -> Vec<Arc<Schedule>> {
        self.lock().clone()
    }

    /// Begins a run of the schedule with this number (from 1) now, unless one goes on. Returns the schedule.
    pub fn run_now(&self, number: usize) -> Option<Arc<Schedule>> {
        let schedule = self.lock().get(number.checked_sub(1)?).cloned()?;
        if schedule.state().next.is_some() {
            schedule.now.notify_one();
        }
        Some(schedule)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Schedule>>> {
        self.schedules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, number: usize, wanted: WarmSchedule) -> Arc<Schedule> {
        let (state, now) = (Arc::<Mutex<State>>::default(), Arc::<Notify>::default());
        let task = Task {
            number,
            wanted: wanted.clone(),
            state: state.clone(),
            now: now.clone(),
            warming: self.warming.clone(),
            access: self.access.clone(),
            lease: self.lease.clone(),
        };
        Arc::new(Schedule { wanted, state, now, task: tokio::spawn(task.run()) })
    }
}

impl Schedule {
    /// Returns what is known of it.
    pub fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Schedule {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the task of a schedule holds.
struct Task {
    number: usize,
    wanted: WarmSchedule,
    state: Arc<Mutex<State>>,
    now: Arc<Notify>,
    warming: Arc<Warming>,
    access: Arc<Access>,
    lease: Arc<Lease>,
}

/// A job in the list of all jobs, from which it is taken if its schedule ends before it.
struct Entered<'a>(&'a Warming, Arc<Job>);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if !self.1.has_ended() {
            self.0.forget(self.1.id);
        }
    }
}

impl Task {
    async fn run(self) {
        loop {
            self.lease.begins().await;
            tokio::select! {
                never = self.run_again_and_again() => match never {},
                () = self.lease.ends() => {}
            }
            // A run that was broken off is one of whoever comes next.
            self.change(|state| {
                let ended = state.run.take().filter(|run| run.ended.is_some());
                *state = State { run: ended, next: None };
            });
        }
    }

    async fn run_again_and_again(&self) -> Infallible {
        let first = self.wanted.every.mul_f64(OFFSET).min(LONGEST_OFFSET);
        let mut pause = first.mul_f64(random::fraction());
        loop {
            let next = Instant::now() + pause;
            self.change(|state| state.next = Some(next));
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.now.notified() => {}
            }
            self.run_once().await;
            // A wish for a run that came meanwhile is met.
            let _ = self.now.notified().now_or_never();
            pause = self.wanted.every;
        }
    }

    async fn run_once(&self) {
        let run = Run { begun: clock::wall(), ended: None, problems: Vec::new(), job: None };
        self.change(|state| *state = State { run: Some(run), next: None });
        let routing = self.access.rules().routing.clone();
        let Found { images, problems } = wanted::find(&self.warming.objects, &routing, &self.wanted.images).await;
        for (image, why) in &problems {
            tracing::warn!(schedule = self.number, image, why, "not all of it is kept warm");
        }
        let job = self.warming.enter(images, self.wanted.platforms.clone(), self.number);
        let _entered = Entered(&self.warming, job.clone());
        self.change_run(|run| (run.problems, run.job) = (problems, Some(job.clone())));
        self.warming.run(&job).await;
        self.change_run(|run| run.ended = Some(clock::wall()));
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn change_run(&self, change: impl FnOnce(&mut Run)) {
        self.change(|state| {
            if let Some(run) = &mut state.run {
                change(run);
            }
        });
    }
}
