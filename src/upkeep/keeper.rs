//! The upkeep task: keeps the limits, step by step.
//!
//! Lock order: `leases`, then `ledger`. Neither is held over a system call.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::census::Counting;
use super::clock::{now, past};
use super::desk::Upkeep;
use super::gone::{Gone, Why};
use super::ledger::{Look, Step};
use super::mail::{Ask, Message};
use crate::index::{IndexError, ObjectUse, TakeObject};
use crate::oci::Digest;
use crate::spool::Download;

/// How often uses are taken in and the limits checked.
const TICK: Duration = Duration::from_secs(1);
/// How often Larder looks for abandoned downloads.
const DOWNLOADS: Duration = Duration::from_secs(600);
/// How often the files are compared with the ledger: somebody may have removed some.
const CENSUS: Duration = Duration::from_secs(6 * 3600);
/// Objects that go in one step. A slow disk removes some 370 files a second, and a step is to take less than 50 ms,
/// since others wait for it.
const STEP: usize = 16;
/// How often others are asked between two ticks what they have used of the bucket.
const MOST_ASKED: u32 = 64;
/// Most objects that go in addition to those needed, each time that objects have to go.
const MAX_SPARE: usize = 500;

/// The upkeep task.
pub(super) struct Keeper {
    upkeep: Arc<Upkeep>,
    /// Callers that wait for room, the next one first.
    asks: VecDeque<Ask>,
    /// Comparisons with the files; the first is under way.
    countings: VecDeque<Counting>,
    /// Whether there may be objects to expire.
    is_expiring: bool,
    /// Whether there may be more than the limits allow.
    is_shrinking: bool,
    /// The same for the bucket, where objects may have to expire, too.
    is_shrinking_bucket: bool,
    /// How often others were asked since the last tick what they have used of the bucket.
    asked: u32,
    /// Bytes and objects that are still to go in addition to those needed.
    spare: (u64, usize),
    /// The limit that objects last had to go for.
    why: Why,
    /// Evictions that the log does not have yet.
    gone: Gone,
}

impl Keeper {
    pub fn new(upkeep: Arc<Upkeep>) -> Self {
        Self {
            upkeep,
            asks: VecDeque::new(),
            countings: VecDeque::new(),
            is_expiring: false,
            is_shrinking: false,
            is_shrinking_bucket: false,
            asked: 0,
            spare: (0, 0),
            why: Why::default(),
            gone: Gone::default(),
        }
    }

    /// Works until no caller is left. With `is_keeping`, it also works of its own accord.
    pub async fn run(mut self, mut mailbox: mpsc::Receiver<Message>, is_keeping: bool) {
        self.load().await;
        if is_keeping {
            self.countings.push_back(Counting::of_our_own());
        }
        let mut ticks = every(TICK, Duration::ZERO);
        let mut downloads = every(DOWNLOADS, Duration::ZERO);
        let mut censuses = every(CENSUS, CENSUS);
        loop {
            loop {
                match mailbox.try_recv() {
                    Ok(message) => self.take(message).await,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.gone.tell(),
                }
            }
            if is_keeping && is_due(&mut ticks) {
                self.tick().await;
            }
            if is_keeping && is_due(&mut downloads) {
                self.clear_downloads().await;
            }
            if is_keeping && is_due(&mut censuses) {
                self.countings.push_back(Counting::of_our_own());
            }
            if let Some(ask) = self.asks.pop_front() {
                self.serve(ask).await;
            }
            if self.gone.is_due() {
                self.gone.tell();
            }
            if !self.step().await && self.asks.is_empty() {
                self.gone.tell();
                tokio::select! {
                    message = mailbox.recv() => match message {
                        Some(message) => self.take(message).await,
                        None => return,
                    },
                    () = tokio::time::sleep(TICK), if is_keeping => {}
                }
            }
        }
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Reserve(ask) => self.asks.push_back(ask),
            Message::Census { is_repair, done } => self.countings.push_back(Counting::new(is_repair, Some(done))),
            // A caller that has left needs no answer.
            Message::RefreshPins { done } => drop(done.send(self.refresh_pins().await)),
            Message::Load { done } => {
                self.load().await;
                self.countings.push_back(Counting::of_our_own());
                let _ = done.send(());
            }
        }
    }

    /// Reads the objects of the index, in the order of their last use. The census finds those that cannot be read.
    async fn load(&self) {
        let read = async {
            self.refresh_pins().await?;
            // Rows queued a moment ago have to be read, too.
            self.read_objects().await
        };
        if let Err(error) = read.await {
            self.failed("what is stored cannot be read from the index", &error);
        }
        self.upkeep.ledger().set_loaded();
        self.upkeep.publish_totals();
        self.look_again().await;
        self.upkeep.set_loaded(true);
    }

    /// Reads all objects of the index into the ledger.
    async fn read_objects(&self) -> Result<(), IndexError> {
        let upkeep = self.upkeep.clone();
        let by_repository = upkeep.ledger().limits().classes.count() > 1;
        let each: TakeObject = Box::new(move |object| {
            let mut ledger = upkeep.ledger();
            let class = ledger.limits().classes.longest(object.repositories);
            // Without a bucket, what was in one counts as a file, until the comparison with the files.
            match object.is_uploaded && ledger.has_bucket() {
                true => {
                    ledger.known_uploaded(object.digest, object.size, class, past(object.last_use));
                    if object.has_file && !ledger.has_file(&object.digest) {
                        ledger.take_in_file(&object.digest);
                    }
                }
                false => ledger.known(object.digest, object.size, class, past(object.last_use)),
            }
        });
        self.upkeep.parts().index.objects_by_use(by_repository, each).await
    }

    /// Does the work of a tick: takes in uses, finds out pins, looks at the disk.
    async fn tick(&mut self) {
        let uses = self.upkeep.take_in_uses();
        if !uses.is_empty() {
            self.upkeep.apply(uses).await;
        }
        if let Err(error) = self.refresh_pins().await {
            self.failed("what is pinned cannot be found out", &error);
        }
        self.look_again().await;
        self.is_expiring = true;
        self.is_shrinking = true;
        self.is_shrinking_bucket = true;
        self.asked = 0;
    }

    /// Takes one step of the work that the task does of its own accord. Returns whether there may be more.
    async fn step(&mut self) -> bool {
        if self.is_expiring {
            self.is_expiring = self.expire().await;
            return true;
        }
        if self.is_shrinking || self.spare != (0, 0) {
            if let Err(error) = self.shrink().await {
                self.failed("the cache cannot be kept within its limits", &error);
                (self.is_shrinking, self.spare) = (false, (0, 0));
            }
            return true;
        }
        if self.is_shrinking_bucket {
            self.is_shrinking_bucket = self.shrink_bucket().await;
            return true;
        }
        let Some(counting) = self.countings.front_mut() else {
            return false;
        };
        if counting.step(&self.upkeep).await {
            self.countings.pop_front();
        }
        true
    }

    /// Takes a step towards the room that a caller waits for. If that is not enough, the caller goes to the end of the
    /// queue: an object for which very many others have to go keeps no small object waiting.
    async fn serve(&mut self, mut ask: Ask) {
        if ask.done.is_closed() {
            return;
        }
        match self.make_room(&mut ask).await {
            Ok(Some(true)) => drop(ask.done.send(Ok(Some(ask.held)))),
            Ok(Some(false)) => drop(ask.done.send(Ok(None))),
            Ok(None) => self.asks.push_back(ask),
            Err(error) => drop(ask.done.send(Err(error))),
        }
    }

    /// Returns whether the room is reserved now; `None`: not yet; `false`: there is no room.
    async fn make_room(&mut self, ask: &mut Ask) -> io::Result<Option<bool>> {
        if !self.upkeep.ledger().is_loaded() {
            // After a change of the configuration, the index has to be read anew; the message for that is on its way.
            tokio::task::yield_now().await;
            return Ok(None);
        }
        // An object that was just requested must not be the first to go. A fill does not wait until that is written.
        self.upkeep.take_in_uses().into_iter().for_each(|used| self.upkeep.parts().index.note(used));
        let (mut look, abandoned) = self.look().await?;
        let rest = ask.wanted - ask.held.bytes;
        self.relieve(rest, &mut look, abandoned).await?;
        let (step, bytes) = {
            let leases = self.upkeep.leases();
            let mut ledger = self.upkeep.ledger();
            self.why = ledger.why(rest, &look);
            let before = ledger.totals().1;
            let is_busy = |digest: &Digest| leases.contains_key(digest);
            let step = ledger.step(ask.wanted, &mut ask.held.bytes, &look, STEP, now(), is_busy);
            (step, before - ledger.totals().1)
        };
        match step {
            Step::NoRoom => return Ok(Some(false)),
            Step::Reserved => {}
            Step::Evict { victims, is_enough } => {
                self.evict(&victims, bytes, self.why).await;
                ask.has_evicted = true;
                if !is_enough {
                    return Ok(None);
                }
            }
        }
        if ask.has_evicted {
            self.spare = (self.upkeep.ledger().spare(look.total), MAX_SPARE);
        }
        Ok(Some(true))
    }

    /// Removes files that are worth less than any object: a damaged index that was kept for people to look at, and
    /// downloads that no fill continues.
    async fn relieve(&self, wanted: u64, look: &mut Look, mut abandoned: Vec<Download>) -> io::Result<()> {
        let needed = |look: &Look| self.upkeep.ledger().needed(wanted, look);
        if needed(look) == 0 {
            return Ok(());
        }
        look.free += self.upkeep.parts().index.remove_aside().await.map_err(io::Error::other)?;
        abandoned.sort_by_key(|download| std::cmp::Reverse(download.since));
        while needed(look) > 0
            && let Some(download) = abandoned.pop()
        {
            self.upkeep.parts().spool.remove(&download.digest).await?;
            look.abandoned -= download.bytes;
            look.free += download.bytes;
        }
        if needed(look) > 0 && self.refresh_pins().await.is_err() {
            tracing::warn!("what is pinned could not be found out; what is known of it holds");
        }
        Ok(())
    }

    /// Takes a step down to the limits, and below them if something had to go.
    async fn shrink(&mut self) -> io::Result<()> {
        let (mut look, abandoned) = self.look().await?;
        self.relieve(0, &mut look, abandoned).await?;
        let needed = self.upkeep.ledger().needed(0, &look);
        if needed > 0 {
            self.why = self.upkeep.ledger().why(0, &look);
        }
        if needed > 0 && self.spare == (0, 0) {
            self.spare = (self.upkeep.ledger().spare(look.total), MAX_SPARE);
        }
        let most = if needed > 0 { STEP } else { STEP.min(self.spare.1) };
        let (victims, freed, bytes) = self.victims(needed.max(self.spare.0), most);
        self.evict(&victims, bytes, self.why).await;
        let beyond = freed.saturating_sub(needed);
        self.spare = (self.spare.0.saturating_sub(beyond), self.spare.1.saturating_sub(victims.len()));
        if self.spare.0 == 0 || self.spare.1 == 0 || victims.is_empty() {
            self.spare = (0, 0);
        }
        self.is_shrinking = needed > freed && !victims.is_empty();
        Ok(())
    }

    /// Takes a step of expiring objects. Returns whether there may be more.
    async fn expire(&mut self) -> bool {
        let (expired, bytes) = {
            let leases = self.upkeep.leases();
            let mut ledger = self.upkeep.ledger();
            let before = ledger.totals().1;
            let expired = ledger.expire(STEP, now(), |digest| leases.contains_key(digest));
            (expired, before - ledger.totals().1)
        };
        self.evict(&expired, bytes, Why::Ttl).await;
        expired.len() == STEP
    }

    /// Returns the objects to go, the disk space that they take, and their bytes.
    fn victims(&self, bytes: u64, most: usize) -> (Vec<Digest>, u64, u64) {
        let leases = self.upkeep.leases();
        let mut ledger = self.upkeep.ledger();
        let before = ledger.totals().1;
        let (victims, freed) = ledger.evict(bytes, most, now(), |digest| leases.contains_key(digest));
        (victims, freed, before - ledger.totals().1)
    }

    /// Removes rows first, then files. A reader that has a file open goes on reading. `bytes`: what the objects have
    /// together. Of an object that is in the bucket, only the file goes.
    async fn evict(&mut self, files: &[Digest], bytes: u64, why: Why) {
        let (copies, copied, victims) = self.upkeep.ledger().part_files(files);
        self.upkeep.forget_files(&copies).await;
        self.remove_files(&copies).await;
        if victims.is_empty() {
            self.upkeep.publish_totals();
            return;
        }
        self.tell_of(&victims, bytes.saturating_sub(copied), why).await;
        self.upkeep.forget(&victims).await;
        self.remove_files(&victims).await;
        self.upkeep.parts().metrics.evictions.inc_by(victims.len() as u64);
        self.upkeep.publish_totals();
    }

    /// Takes a step of taking out of the bucket what expires or is beyond the limit. Returns whether there may be more.
    async fn shrink_bucket(&mut self) -> bool {
        if !self.upkeep.keeping().is_on() {
            return false;
        }
        match self.hear_of_uses().await {
            // What is next now, nobody has been asked about. It has to end: the clocks of others may be ahead for ever.
            Ok(news) if news > 0 && self.asked < MOST_ASKED => {
                self.asked += 1;
                return true;
            }
            Ok(_) => {}
            Err(error) => {
                // The index says itself that it is away.
                tracing::debug!(%error, "what others have used in the bucket cannot be found out; nothing leaves it");
                return false;
            }
        }
        let (expired, evicted, bytes) = {
            let leases = self.upkeep.leases();
            self.upkeep.ledger().shrink_bucket(STEP, now(), |digest| leases.contains_key(digest))
        };
        let mut left = 0;
        for (victims, bytes, why) in [(&expired, 0, Why::Ttl), (&evicted, bytes, Why::MaxSize)] {
            if !victims.is_empty() {
                self.tell_of(victims, bytes, why).await;
                let gone = self.upkeep.forget_uploaded(victims).await;
                self.upkeep.ledger().remove(&gone);
                self.remove_files(&gone).await;
                self.upkeep.parts().metrics.evictions.inc_by(gone.len() as u64);
                left += victims.len() - gone.len();
            }
        }
        self.upkeep.publish_totals();
        // Where something could not go, the next tick tries again.
        left == 0 && expired.len() + evicted.len() >= STEP
    }

    /// Takes in when the others that share the bucket last used what is the next to leave it. Returns of how many objects
    /// that was news.
    async fn hear_of_uses(&self) -> Result<usize, IndexError> {
        let next = self.upkeep.ledger().next_to_leave_bucket(STEP, now());
        if next.is_empty() {
            return Ok(0);
        }
        let uses = self.upkeep.parts().index.uses(next.iter().map(|(digest, _)| *digest).collect()).await?;
        let mut ledger = self.upkeep.ledger();
        let mut is_news = |(digest, used): (&Digest, &ObjectUse)| {
            ledger.used_elsewhere(digest, past(used.last_use), &used.repositories)
        };
        Ok(uses.iter().map(|used| usize::from(is_news(used))).sum())
    }

    async fn remove_files(&self, files: &[Digest]) {
        if files.is_empty() {
            return;
        }
        if let Err(error) = self.upkeep.parts().store.remove(files).await {
            self.upkeep.parts().metrics.errors.inc();
            tracing::error!(%error, "cannot remove an object; the next comparison with the files takes it in again");
        }
    }

    /// Notes for the log what goes, and why.
    async fn tell_of(&mut self, victims: &[Digest], bytes: u64, why: Why) {
        // Names are for people only: without them, the objects go all the same.
        let names = match self.gone.wants_names(why) {
            true => Some(self.upkeep.parts().index.names(victims.to_vec()).await),
            false => None,
        };
        let has_failed = matches!(names, Some(Err(_)));
        self.gone.add(why, victims.len(), bytes, names.and_then(Result::ok).unwrap_or_default());
        if has_failed {
            self.gone.give_up_names();
        }
    }

    /// Returns the present state of the disk, and the downloads that no fill continues.
    async fn look(&self) -> io::Result<(Look, Vec<Download>)> {
        let parts = self.upkeep.parts();
        // In this order, so that bytes written meanwhile are missing from the free ones, and do not count as written
        // before.
        let released = self.upkeep.ledger().released();
        let downloads = parts.spool.list().await?;
        let capacity = parts.store.capacity().await?;
        let bytes = parts.index.bytes().await.map_err(io::Error::other)?;
        parts.metrics.index_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        // What a server keeps takes none of this disk.
        let index = if parts.index.is_on_server() { 0 } else { bytes };
        let is_running = |download: &Download| parts.cached.is_coming_in(&download.digest);
        let (running, abandoned): (Vec<_>, Vec<_>) = downloads.into_iter().partition(is_running);
        let bytes = |downloads: &[Download]| downloads.iter().map(|download| download.bytes).sum();
        let look = Look {
            total: capacity.total,
            free: capacity.free,
            index,
            running: bytes(&running),
            abandoned: bytes(&abandoned),
            released,
        };
        self.upkeep.bound_index(look.total);
        Ok((look, abandoned))
    }

    /// Notes the present state of the disk, for callers that find plenty of room by it.
    async fn look_again(&self) {
        match self.look().await {
            Ok((look, _)) => {
                self.upkeep.ledger().looked(look);
                self.publish_disk();
            }
            Err(error) => self.failed("cannot tell how full the disk is", &error),
        }
    }

    async fn clear_downloads(&self) {
        let max_age = self.upkeep.ledger().limits().partial_ttl.max(DOWNLOADS);
        if let Err(error) = self.upkeep.parts().spool.clear(max_age).await {
            self.failed("abandoned downloads cannot be removed", &error);
        }
    }

    /// Finds out anew which objects are pinned, if that may have changed.
    async fn refresh_pins(&self) -> Result<(), IndexError> {
        if !self.upkeep.take_pins_changed() {
            return Ok(());
        }
        let limits = self.upkeep.ledger().limits().clone();
        let rules = limits.rules.clone();
        let pinned =
            self.upkeep.parts().index.pinned(rules.repositories(), Box::new(move |key| rules.match_tag(key))).await;
        let (pinned, has_named_pins) = pinned.inspect_err(|_| self.upkeep.pins_changed())?;
        self.upkeep.ledger().set_pinned(pinned, has_named_pins, now());
        Ok(())
    }

    fn publish_disk(&self) {
        let (parts, look, most) = {
            let ledger = self.upkeep.ledger();
            (self.upkeep.parts(), ledger.last_look(), ledger.most())
        };
        let clamp = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        parts.metrics.disk_bytes.set(clamp(look.total));
        parts.metrics.disk_free.set(clamp(look.free));
        parts.metrics.cache_limit.set(clamp(most.unwrap_or(0)));
        let dropped = parts.index.dropped();
        parts.metrics.index_writes_dropped.inc_by(dropped.saturating_sub(parts.metrics.index_writes_dropped.get()));
    }

    fn failed(&self, what: &str, error: &dyn std::error::Error) {
        self.upkeep.parts().metrics.errors.inc();
        tracing::error!(error = %error, "{what}");
    }
}

/// Returns an interval of `period` whose first tick comes after `first`.
fn every(period: Duration, first: Duration) -> Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + first, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// Returns whether an interval has come to its next tick.
fn is_due(interval: &mut Interval) -> bool {
    use futures_util::FutureExt;
    interval.tick().now_or_never().is_some()
}
