//! Certificates by ACME (RFC 8555): obtained, kept on disk, and renewed while there is time.
//!
//! What was obtained is shown from the start on, whether the ACME server answers or not; a failure is
//! reported and tried again, at once when the configuration is read again (SIGHUP).

mod door;
mod kept;
mod order;
mod proof;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use rustls::sign::CertifiedKey;
use tokio::sync::{Mutex, watch};

pub use door::DoorError;
pub use order::AcmeError;
use proof::Proofs;

use crate::config;
use crate::telemetry::Metrics;
use door::Doors;
use kept::{Files, Kept};

/// After a failure; doubled with each more.
const FIRST_PAUSE: Duration = Duration::from_secs(30);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// The clock is looked at this often: it may be set, and machines sleep.
const LOOK: Duration = Duration::from_secs(3600);

/// What the registry door shows; changes while it runs.
#[derive(Clone, Debug, Default)]
pub struct Shown(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    certificate: ArcSwapOption<CertifiedKey>,
    proofs: Proofs,
}

impl Shown {
    /// The certificate, once there is one.
    pub fn certificate(&self) -> Option<Arc<CertifiedKey>> {
        self.0.certificate.load_full()
    }

    /// What an ACME server wants to see that asks for `domain` (tls-alpn-01), if it was told to.
    pub fn proof(&self, domain: &str) -> Option<Arc<CertifiedKey>> {
        self.0.proofs.certificate(domain)
    }

    fn proofs(&self) -> &Proofs {
        &self.0.proofs
    }
}

/// Sees to it that there is a certificate as the configuration wants it.
pub struct Certificates {
    /// Where accounts and certificates are kept.
    dir: PathBuf,
    shown: Shown,
    wanted: watch::Sender<Option<Arc<config::Acme>>>,
    doors: Mutex<Doors>,
    metrics: Arc<Metrics>,
}

/// A configuration to go by.
pub struct Prepared {
    acme: Option<Arc<config::Acme>>,
    doors: door::Prepared,
}

impl Certificates {
    /// Keeps what it has under the cache directory.
    pub fn new(cache: &Path, metrics: Arc<Metrics>) -> Self {
        let (wanted, _) = watch::channel(None);
        Self { dir: cache.join("acme"), shown: Shown::default(), wanted, doors: Mutex::default(), metrics }
    }

    pub fn shown(&self) -> Shown {
        self.shown.clone()
    }

    /// All that can fail of [`Certificates::apply`].
    pub async fn prepare(&self, acme: Option<&config::Acme>) -> Result<Prepared, DoorError> {
        let listen = match acme.map(|acme| &acme.challenge) {
            Some(config::AcmeChallenge::Http01 { listen }) => listen.as_slice(),
            _ => &[],
        };
        let doors = self.doors.lock().await.prepare(listen).await?;
        Ok(Prepared { acme: acme.cloned().map(Arc::new), doors })
    }

    /// Goes by another configuration from now on: shows what is kept for it, and looks at once whether that
    /// will do.
    pub async fn apply(&self, prepared: Prepared) {
        self.doors.lock().await.apply(prepared.doors, &self.shown);
        match &prepared.acme {
            Some(acme) => drop(self.show_kept(acme).await),
            None => self.shown.0.certificate.store(None),
        }
        self.wanted.send_replace(prepared.acme);
    }

    /// Obtains and renews; runs until the process ends.
    pub async fn run(self: Arc<Self>) {
        let mut wanted = self.wanted.subscribe();
        let mut failures = 0;
        loop {
            let acme = wanted.borrow_and_update().clone();
            let wait = match &acme {
                None => None,
                Some(acme) => match self.look_after(acme).await {
                    Ok(wait) => {
                        failures = 0;
                        Some(wait)
                    }
                    Err(error) => {
                        let pause = (FIRST_PAUSE * 2_u32.saturating_pow(failures)).min(LONGEST_PAUSE);
                        failures += 1;
                        let domains = acme.domains.join(", ");
                        let seconds = pause.as_secs();
                        tracing::error!(%error, domains, "no certificate could be got; the next try is in {seconds} s, or on SIGHUP");
                        Some(pause)
                    }
                },
            };
            let waited = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = wanted.changed() => match changed {
                    Ok(()) => failures = 0,
                    Err(_) => return,
                },
                () = waited => {}
            }
        }
    }

    /// Sees to it that a good certificate is shown; returns when to look again.
    async fn look_after(&self, acme: &Arc<config::Acme>) -> Result<Duration, AcmeError> {
        let now = SystemTime::now();
        if let Some(kept) = self.show_kept(acme).await
            && kept.is_for(&acme.domains)
            && let Ok(left) = kept.due().duration_since(now)
        {
            return Ok(left.min(LOOK));
        }
        let obtained = order::obtain(acme, &self.files(acme), &self.shown).await?;
        tracing::info!(
            domains = acme.domains.join(", "),
            until = httpdate::fmt_http_date(obtained.until()),
            "got a certificate"
        );
        self.show(acme, &obtained);
        let left = obtained.due().duration_since(now).unwrap_or_default();
        // Never without a pause, whatever the server's certificates say.
        Ok(left.clamp(Duration::from_secs(1), LOOK))
    }

    /// Shows the certificate that is on disk, whatever it is worth: it is better than none.
    async fn show_kept(&self, acme: &Arc<config::Acme>) -> Option<Kept> {
        let (files, domain) = (self.files(acme), acme.domains.first().cloned().unwrap_or_default());
        let read = tokio::task::spawn_blocking(move || files.certificate(&domain)).await;
        let kept = match read.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(kept) => kept?,
            Err(error) => {
                tracing::warn!(%error, "the certificate on disk cannot be used; another one is obtained");
                return None;
            }
        };
        self.show(acme, &kept);
        Some(kept)
    }

    fn show(&self, acme: &config::Acme, kept: &Kept) {
        self.shown.0.certificate.store(Some(kept.certified.clone()));
        self.metrics.certificate(acme.domains.first().map_or("", String::as_str), kept.until());
    }

    fn files(&self, acme: &config::Acme) -> Files {
        Files::new(&self.dir, &acme.directory)
    }
}
