//! Applies a changed configuration while Larder is running.

use std::collections::HashSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::Signal;

use super::setup::address;
use super::systemd::{self, State};
use crate::acme::{Certificates, Occasion};
use crate::clock;
use crate::config::{AcmeChallenge, Config, Loaded, Secret, Sources, Watch};
use crate::listen::Tls;
use crate::observe::Metrics;
use crate::observe::log::Log;
use crate::services::{Configuration, Services};
use crate::x509::Certificate;

/// How often the files are looked at. A change is applied when two looks in a row see the same.
const LOOK: Duration = Duration::from_millis(500);

/// The parts of a running instance that a change of the configuration reaches.
pub struct Reached {
    pub services: Arc<Services>,
    pub tls: Tls,
    pub certificates: Arc<Certificates>,
    pub log: Arc<Log>,
    /// The addresses of the doors, which stay as they are.
    pub doors: Vec<SocketAddr>,
}

/// Watches the configuration and applies its changes.
pub struct Reload {
    sources: Sources,
    reached: Reached,
    /// The configuration in force.
    config: Arc<Mutex<Config>>,
    /// The files that were not empty at the start.
    begun_with: Vec<PathBuf>,
}

impl Reload {
    /// Creates a `Reload` for a running instance. `begun_with`: the files from [`Self::written`] at the start.
    pub fn new(sources: Sources, begun_with: Vec<PathBuf>, reached: Reached, config: Arc<Mutex<Config>>) -> Self {
        Self { sources, reached, config, begun_with }
    }

    /// Returns those of the configuration's own files that are not empty. Blocks.
    pub fn written(sources: &Sources) -> Vec<PathBuf> {
        let is_written = |file: &PathBuf| fs::read_to_string(file).is_ok_and(|text| !text.trim().is_empty());
        sources.files().into_iter().filter(is_written).collect()
    }

    /// Applies the configuration when it changes, or on SIGHUP, which also opens the log file again; runs until the process ends. A configuration that
    /// cannot be used changes nothing and is reported once.
    pub async fn run(self, mut watch: Watch, mut hangups: Signal) {
        let mut looks = tokio::time::interval(LOOK);
        let this = Arc::new(self);
        loop {
            let is_told = tokio::select! {
                _ = looks.tick() => false,
                _ = hangups.recv() => true,
            };
            if is_told {
                this.reached.log.reopen();
            }
            let reload = this.clone();
            let looked = tokio::task::spawn_blocking(move || {
                let has_changed = watch.has_changed();
                if is_told || has_changed {
                    systemd::tell(State::Reloading);
                    watch.settle();
                    let read_at = clock::wall();
                    let files = reload.load(if is_told { Occasion::Demand } else { Occasion::Change });
                    watch.follow(files, read_at);
                    systemd::tell(State::Ready);
                }
                watch
            });
            match looked.await {
                Ok(next) => watch = next,
                Err(error) => {
                    tracing::error!(%error, "the configuration is not watched any more; restart to change it");
                    return;
                }
            }
        }
    }

    /// Reads and applies the configuration. Returns the files to watch from now on. Blocks.
    fn load(&self, occasion: Occasion) -> Vec<PathBuf> {
        let Loaded { config, warnings, files } = self.sources.load();
        tell(&warnings);
        let services = &self.reached.services;
        let applied = match self.emptied() {
            Some(file) => Err(format!("{} is gone or empty, which would mean the built-in defaults", file.display())),
            None => config.map_err(|errors| errors.to_string().replace('\n', "; ")).and_then(|config| {
                let for_clients = address::for_clients(&config);
                self.apply(config, occasion).map(|()| for_clients)
            }),
        };
        match applied {
            Ok(for_clients) => {
                services.metrics.reloaded(true);
                let shown = shown(&self.sources);
                services.tell_configuration(Configuration { shown, warnings, refused: None, for_clients });
            }
            Err(error) => {
                services.metrics.reloaded(false);
                let refused = Some(error.clone());
                services.tell_configuration(Configuration { refused, ..(*services.configuration()).clone() });
                tracing::error!(%error, "the changed configuration cannot be used; the one before stays in force");
            }
        }
        files
    }

    /// Returns a file that was not empty at the start and is now empty or gone. Such a file is taken as being replaced,
    /// and not as a wish for the built-in defaults.
    fn emptied(&self) -> Option<&Path> {
        let is_empty =
            |file: &&PathBuf| fs::read_to_string(file).is_ok_and(|text| text.trim().is_empty()) || !file.exists();
        self.begun_with.iter().find(is_empty).map(PathBuf::as_path)
    }

    fn apply(&self, config: Config, occasion: Occasion) -> Result<(), String> {
        // The steps that can fail come first, and of these the one that cannot be undone comes last.
        let Reached { services, tls, certificates, log, doors } = &self.reached;
        let runtime = tokio::runtime::Handle::current();
        let acme = config.server.tls.as_ref().and_then(|tls| tls.acme.as_ref());
        let acme = runtime.block_on(certificates.prepare(acme)).map_err(|error| error.to_string())?;
        let handshakes = tls.prepare(config.server.tls.as_ref()).map_err(|error| error.to_string())?;
        let prepared = services.prepare(&config).map_err(|error| error.to_string())?;
        let forgetting = services.cache.forget_what_was_private(&config);
        runtime.block_on(forgetting).map_err(|failure| failure.to_string())?;
        services.listens_at(&[&doors[..], acme_door(&config)].concat());
        services.apply(prepared);
        count_certificates(&config, &services.metrics);
        runtime.block_on(certificates.apply(acme, occasion));
        tls.set(handshakes);
        runtime.block_on(services.cache.configure(&config));
        services.schedules.apply(&config.warm);
        log.set_level(&config.logging.level);
        let mut current = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        for key in needs_restart(&current, &config) {
            tracing::warn!(key, "this change takes effect with the next start");
        }
        tracing::info!(repositories = config.repositories.len(), "the configuration was read again");
        // Values that take effect only at a start stay as they were.
        let (server, admin, dir) = (current.server.listen.clone(), current.admin.clone(), current.cache.dir.clone());
        *current = config;
        current.server.listen = server;
        current.admin = admin;
        current.cache.dir = dir;
        Ok(())
    }
}

/// Returns the configuration in effect, as `larder config show --json` prints it. It was read a moment ago; where it
/// has changed since and is wrong now, nothing is shown until it is right again.
pub fn shown(sources: &Sources) -> serde_json::Value {
    sources.effective().ok().and_then(|effective| serde_json::to_value(effective).ok()).unwrap_or_default()
}

/// Logs what is allowed in a configuration and hardly meant.
pub fn tell(warnings: &[String]) {
    for warning in warnings {
        tracing::warn!(warning, "the configuration");
    }
}

/// Sets the metrics for the expiry of the certificates in files. ACME sets those of its own certificates.
pub fn count_certificates(config: &Config, metrics: &Metrics) {
    let tls = config.server.tls.as_ref();
    let acme = tls.and_then(|tls| tls.acme.as_ref()).and_then(|acme| acme.domains.first().cloned());
    let mut names: HashSet<_> = acme.into_iter().collect();
    for certified in tls.iter().flat_map(|tls| &tls.certificates) {
        let leaf = certified.cert.first().and_then(|leaf| Certificate::read(leaf).ok());
        if let Some(leaf) = leaf {
            metrics.certificate(leaf.name(), leaf.until);
            names.insert(leaf.name().to_owned());
        }
    }
    metrics.keep_certificates(&names);
}

/// Returns the addresses at which the door for ACME's http-01 listens.
pub fn acme_door(config: &Config) -> &[SocketAddr] {
    match config.server.tls.as_ref().and_then(|tls| tls.acme.as_ref()).map(|acme| &acme.challenge) {
        Some(AcmeChallenge::Http01 { listen }) => listen,
        _ => &[],
    }
}

fn listens(config: &Config) -> Option<&[SocketAddr]> {
    config.proxy.as_ref().map(|door| door.listen.as_slice())
}

/// Returns whether the index is to be elsewhere. A changed password of a file is taken by the next connection.
fn is_other_index(before: &Config, after: &Config) -> bool {
    let without_password = |config: &Config| {
        let mut server = config.index.clone();
        server
            .iter_mut()
            .filter(|server| server.password_file.is_some())
            .for_each(|server| server.password = Secret::default());
        server
    };
    without_password(before) != without_password(after)
}

/// Returns the changed keys that take effect only at the next start, since they belong to open sockets and files.
fn needs_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let changes = [
        ("server.listen", before.server.listen != after.server.listen),
        ("server.max_connections", before.server.max_connections != after.server.max_connections),
        (
            "server.max_connections_per_address",
            before.server.max_connections_per_address != after.server.max_connections_per_address,
        ),
        ("server.proxy_protocol", before.server.proxy_protocol != after.server.proxy_protocol),
        ("server.idle_timeout", before.server.idle_timeout != after.server.idle_timeout),
        ("server.stall_timeout", before.server.stall_timeout != after.server.stall_timeout),
        ("admin.listen", before.admin.listen != after.admin.listen),
        ("cache.dir", before.cache.dir != after.cache.dir),
        ("index", is_other_index(before, after)),
        ("proxy.listen", listens(before) != listens(after)),
        ("proxy.ca_dir", before.proxy.as_ref().zip(after.proxy.as_ref()).is_some_and(|(a, b)| a.ca_dir != b.ca_dir)),
        ("logging.file", before.logging.file != after.logging.file),
        ("logging.format", before.logging.format != after.logging.format),
        ("storage.s3", before.s3 != after.s3),
        ("cluster", before.cluster != after.cluster),
        ("telemetry", before.telemetry != after.telemetry),
    ];
    changes.into_iter().filter(|(_, is_changed)| *is_changed).map(|(key, _)| key).collect()
}
