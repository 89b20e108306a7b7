//! Certificates by ACME (RFC 8555): obtained, kept on disk, and renewed in time.
//!
//! A certificate that was obtained before is shown from the start, whether the ACME server answers or not. A failure is
//! reported and retried; it is retried at once when the configuration is read again (SIGHUP).

mod door;
mod error;
mod kept;
mod order;
mod proof;
mod shown;

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};

pub use door::DoorError;
pub use error::AcmeError;
pub use shown::Shown;

use crate::clock;
use crate::config;
use crate::observe::Metrics;
use crate::text::one_line;
use door::Doors;
use kept::{Files, Kept};

/// Pause after a failure; each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
/// The same where the server was not even reached, which costs the server nothing: it may be starting, as Larder may
/// be.
const FIRST_UNREACHED: Duration = Duration::from_secs(2);
/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// How often the clock is checked: the clock may be set, and machines sleep.
const LOOK: Duration = Duration::from_secs(3600);
/// How often the disk is tried again, while it does not accept a certificate.
const LONGEST_UNWRITTEN: Duration = Duration::from_secs(300);

/// Makes sure that there is a certificate as the configuration wants it.
pub struct Certificates {
    /// Where accounts and certificates are kept.
    dir: PathBuf,
    shown: Shown,
    wanted: watch::Sender<Option<Arc<config::Acme>>>,
    doors: Mutex<Doors>,
    /// A certificate that the disk has not accepted yet.
    unwritten: Mutex<Option<Unwritten>>,
    metrics: Arc<Metrics>,
}

/// A configuration that is ready to be applied.
pub struct PreparedAcme {
    acme: Option<Arc<config::Acme>>,
    doors: door::NewDoors,
}

/// Why a configuration is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// The configuration files have changed.
    Change,
    /// An operator asked for it: steps that failed are retried at once.
    Demand,
}

struct Unwritten {
    acme: Arc<config::Acme>,
    pem: String,
    kept: Kept,
}

impl Certificates {
    /// Makes an instance whose files are kept below the cache directory.
    pub fn new(cache: &Path, metrics: Arc<Metrics>) -> Self {
        let (wanted, _) = watch::channel(None);
        let (doors, unwritten) = (Mutex::default(), Mutex::default());
        Self { dir: cache.join("acme"), shown: Shown::default(), wanted, doors, unwritten, metrics }
    }

    /// Returns the certificate and the proofs that the registry door shows.
    pub fn shown(&self) -> Shown {
        self.shown.clone()
    }

    /// Does all of [`Certificates::apply`] that can fail.
    pub async fn prepare(&self, acme: Option<&config::Acme>) -> Result<PreparedAcme, DoorError> {
        let listen = match acme.map(|acme| &acme.challenge) {
            Some(config::AcmeChallenge::Http01 { listen }) => listen.as_slice(),
            _ => &[],
        };
        let doors = self.doors.lock().await.prepare(listen)?;
        Ok(PreparedAcme { acme: acme.cloned().map(Arc::new), doors })
    }

    /// Applies another configuration: shows the certificate that is kept for it, and checks at once whether that
    /// certificate will do.
    pub async fn apply(&self, prepared: PreparedAcme, occasion: Occasion) {
        self.doors.lock().await.apply(prepared.doors, &self.shown);
        match &prepared.acme {
            Some(acme) => drop(self.show_kept(acme).await),
            None => self.shown.set(None),
        }
        self.wanted.send_if_modified(|wanted| {
            let is_other = *wanted != prepared.acme;
            *wanted = prepared.acme;
            is_other || occasion == Occasion::Demand
        });
    }

    /// Obtains and renews certificates until `stop`, then withdraws the proofs shown to ACME servers.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<Option<Duration>>) {
        let mut wanted = self.wanted.subscribe();
        let mut failures = 0;
        while stop.borrow().is_none() {
            let acme = wanted.borrow_and_update().clone();
            let interrupted = async {
                tokio::select! {
                    _ = wanted.changed() => {}
                    _ = stop.wait_for(Option::is_some) => {}
                }
            };
            let mut interrupted = pin!(interrupted);
            let Some(acme) = acme else {
                interrupted.await;
                continue;
            };
            let pause = match self.look_after(&acme, &mut interrupted).await {
                Ok(pause) => {
                    failures = 0;
                    pause
                }
                Err(AcmeError::Interrupted) => {
                    failures = 0;
                    continue;
                }
                Err(error) => {
                    let first = if error.is_unreached() { FIRST_UNREACHED } else { FIRST_PAUSE };
                    let pause = (first * 2_u32.saturating_pow(failures)).min(LONGEST_PAUSE);
                    failures += 1;
                    let (error, domains) = (one_line(&error.to_string()), acme.domains.join(", "));
                    let seconds = pause.as_secs();
                    tracing::error!(
                        error,
                        domains,
                        "no certificate could be got; the next try is in {seconds} s, or on SIGHUP"
                    );
                    pause
                }
            };
            tokio::select! {
                () = interrupted => failures = 0,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Makes sure that a valid certificate is shown. Returns how long to wait until the next check.
    async fn look_after(
        &self,
        acme: &Arc<config::Acme>,
        interrupted: impl Future<Output = ()>,
    ) -> Result<Duration, AcmeError> {
        let now = clock::wall();
        if let Some(kept) = self.show_kept(acme).await
            && kept.is_for(&acme.domains)
            && let Ok(left) = kept.due().duration_since(now)
        {
            let is_written = self.unwritten.lock().await.is_none();
            return Ok(left.min(if is_written { LOOK } else { LONGEST_UNWRITTEN }));
        }
        let order::Obtained { pem, kept } = order::obtain(acme, &self.files(acme), &self.shown, interrupted).await?;
        tracing::info!(
            domains = acme.domains.join(", "),
            until = httpdate::fmt_http_date(kept.until()),
            "got a certificate"
        );
        self.show(acme, &kept);
        *self.unwritten.lock().await = Some(Unwritten { acme: acme.clone(), pem, kept: kept.clone() });
        self.write().await;
        let left = kept.due().duration_since(now).unwrap_or_default();
        if left.is_zero() {
            let message = "it is to be renewed as soon as it comes; look at the clocks";
            return Err(AcmeError::Certificate(message.to_owned()));
        }
        Ok(left.min(LONGEST_UNWRITTEN))
    }

    /// Shows the certificate that there is, even an expired one: that is better than none.
    async fn show_kept(&self, acme: &Arc<config::Acme>) -> Option<Kept> {
        self.write().await;
        let unwritten = self.unwritten.lock().await;
        let kept = match unwritten.as_ref().filter(|unwritten| unwritten.is_of(acme)) {
            Some(unwritten) => unwritten.kept.clone(),
            None => self.read(acme).await?,
        };
        self.show(acme, &kept);
        Some(kept)
    }

    async fn read(&self, acme: &config::Acme) -> Option<Kept> {
        let (files, domain) = (self.files(acme), acme.domains.first().cloned().unwrap_or_default());
        let read = tokio::task::spawn_blocking(move || files.certificate(&domain)).await;
        match read.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(kept) => kept,
            Err(error) => {
                tracing::warn!(%error, "the certificate on disk cannot be used; another one is obtained");
                None
            }
        }
    }

    /// Writes the certificate that is not written yet, if the disk accepts it now.
    async fn write(&self) {
        let mut unwritten = self.unwritten.lock().await;
        let Some(Unwritten { acme, pem, .. }) = unwritten.as_ref() else {
            return;
        };
        let (files, domain) = (self.files(acme), acme.domains.first().cloned().unwrap_or_default());
        let pem = pem.clone();
        let written = tokio::task::spawn_blocking(move || files.keep_certificate(&domain, pem.as_bytes())).await;
        match written.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(()) => *unwritten = None,
            Err(error) => {
                tracing::error!(%error, "the certificate cannot be kept on disk; it is shown, and lost with the next stop");
            }
        }
    }

    fn show(&self, acme: &config::Acme, kept: &Kept) {
        self.shown.set(Some(kept.certified.clone()));
        self.metrics.certificate(acme.domains.first().map_or("", String::as_str), kept.until());
    }

    fn files(&self, acme: &config::Acme) -> Files {
        Files::new(&self.dir, &acme.directory)
    }
}

impl Unwritten {
    /// Returns whether this is the certificate that would be read for a configuration.
    fn is_of(&self, acme: &config::Acme) -> bool {
        self.acme.directory == acme.directory && self.acme.domains.first() == acme.domains.first()
    }
}
