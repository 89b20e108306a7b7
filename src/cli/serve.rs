//! `larder serve`: builds everything in the order of its dependencies, then opens the doors.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch as channel;
use tokio::task::JoinSet;

use super::error::WRONG_CONFIGURATION;
use super::output::lines;
use super::reload::{Reached, Reload, acme_door, count_certificates, shown, tell};
use super::setup::address;
use super::systemd::{self, Sockets, State};
use crate::acme::{Certificates, Occasion, Shown};
use crate::ca::Ca;
use crate::cache::Cache;
use crate::clock;
use crate::config::{self, Config, Loaded, Sources, Watch};
use crate::descriptors::{self, Shares};
use crate::listen::Tls;
use crate::observe::Metrics;
use crate::observe::log::Log;
use crate::services::{Configuration, RegistryDoor, Services};
use crate::telemetry::Traces;
use crate::{admin, listen, ops};

type AnyError = Box<dyn std::error::Error>;

/// Runs `larder serve` until the process is told to stop.
pub fn run(files: &[PathBuf]) -> ExitCode {
    let sockets = match Sockets::take_all() {
        Ok(sockets) => sockets,
        Err(error) => {
            complain(&format!("a socket that systemd handed over cannot be used: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let sources = Sources::new(files, config::environment());
    // The watch begins before the configuration is read, so that no change during the start is missed.
    let mut watch = Watch::new(sources.files_to_watch());
    let read_at = clock::wall();
    let begun_with = Reload::written(&sources);
    let Loaded { config, warnings, files } = sources.load();
    watch.follow(files, read_at);
    let config = match config {
        Ok(config) => config,
        Err(errors) => {
            let _ = write!(std::io::stderr(), "{}", lines(&errors.to_string()));
            return ExitCode::from(WRONG_CONFIGURATION);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start threads: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let (log, traces) = match begin_to_report(&config, runtime.handle()) {
        Ok(begun) => begun,
        Err(error) => {
            complain(&error);
            return ExitCode::from(WRONG_CONFIGURATION);
        }
    };
    tell(&warnings);
    let for_clients = address::for_clients(&config);
    let told = Configuration { shown: shown(&sources), warnings, refused: None, for_clients };
    let ended = start(&runtime, config, sockets, Files { sources, begun_with, watch, told }, log.clone());
    traces.iter().for_each(Traces::end);
    // The next request for an object continues a fill that is still running now.
    runtime.shutdown_background();
    if let Err(error) = &ended {
        tracing::error!(%error, "larder cannot run");
    }
    log.lines().flush();
    if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells why there is no start, as long as there is no log. Standard error may be closed.
fn complain(error: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "larder: {error}");
}

/// The files that the configuration came from.
struct Files {
    sources: Sources,
    /// The files that were not empty.
    begun_with: Vec<PathBuf>,
    watch: Watch,
    told: Configuration,
}

/// Begins the log and the traces.
fn begin_to_report(config: &Config, runtime: &Handle) -> Result<(Arc<Log>, Option<Traces>), AnyError> {
    let traces = config.telemetry.as_ref().map(|telemetry| Traces::begin(telemetry, runtime)).transpose()?;
    let log = Log::init(&config.logging, traces.as_ref().map(Traces::layer))?;
    Ok((Arc::new(log), traces))
}

fn start(runtime: &Runtime, config: Config, sockets: Sockets, files: Files, log: Arc<Log>) -> Result<(), AnyError> {
    descriptors::raise();
    if !clock::is_plausible() {
        tracing::warn!("{}", ops::WRONG_CLOCK);
    }
    let metrics = Arc::new(Metrics::new(log.lines().health().clone()));
    // The index may begin tasks.
    let entered = runtime.enter();
    let cache = Arc::new(Cache::open(&config, metrics.clone())?);
    drop(entered);
    let services = Arc::new(Services::new(&config, cache, metrics)?);
    runtime.block_on(serve(config, sockets, services, files, log))
}

async fn serve(
    config: Config,
    sockets: Sockets,
    services: Arc<Services>,
    files: Files,
    log: Arc<Log>,
) -> Result<(), AnyError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangups = signal(SignalKind::hangup())?;
    tokio::spawn(reopen(signal(SignalKind::user_defined1())?, log.clone()));
    services.cache.forget_what_was_private(&config).await.map_err(|failure| failure.to_string())?;
    let certificates = Arc::new(Certificates::new(&config.cache.dir, services.metrics.clone()));
    let wanted = config.server.tls.as_ref().and_then(|tls| tls.acme.as_ref());
    count_certificates(&config, &services.metrics);
    certificates.apply(certificates.prepare(wanted).await?, Occasion::Change).await;
    let tls = Tls::new(config.server.tls.as_ref(), certificates.shown())?;
    let doors = Doors::bind(&config, sockets, tls.clone()).await?;
    let addresses = doors.addresses()?;
    services.listens_at(&[&addresses[..], acme_door(&config)].concat());
    services.opens_registry(RegistryDoor { addresses: doors.registry()?, is_tls: config.server.tls.is_some() });
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        dir = %config.cache.dir.display(),
        repositories = config.repositories.len(),
        "ready"
    );

    services.tell_configuration(files.told);
    let (stop, stopped) = channel::channel(None);
    let upkeep = tokio::spawn(services.cache.clone().look_after());
    let doors = doors.serve((&config.server, config.cluster.as_ref()), &services, &stopped)?;
    let taking_part = tokio::spawn(take_part(services.clone(), stopped.clone()));
    services.schedules.apply(&config.warm);
    let current = Arc::new(Mutex::new(config));
    let Files { sources, begun_with, watch, .. } = files;
    let keeping = tokio::spawn(certificates.clone().run(stopped));
    let reach = Reached { services: services.clone(), tls, certificates, log, doors: addresses };
    let reload = Reload::new(sources, begun_with, reach, current.clone());
    let reloading = tokio::spawn(reload.run(watch, hangups));
    tokio::task::spawn_blocking(|| systemd::tell(State::Ready));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::task::spawn_blocking(|| systemd::tell(State::Stopping));
    tracing::info!("stopping; running transfers may end within server.shutdown_grace");
    reloading.abort();
    services.schedules.apply(&[]);
    let grace = current.lock().unwrap_or_else(PoisonError::into_inner).server.shutdown_grace;
    stop.send_replace(Some(grace));
    let ended = async { tokio::join!(doors.join_all(), keeping, taking_part) };
    let ended = tokio::time::timeout(grace, ended).await;
    if ended.is_err() {
        tracing::warn!("not everything ended in time");
    }
    upkeep.abort();
    services.cache.close().await;
    Ok(())
}

/// Takes part in the cluster, if there is one.
async fn take_part(services: Arc<Services>, stopped: channel::Receiver<Option<Duration>>) {
    if let Some(cluster) = services.cluster.clone() {
        let index = services.cache.index();
        let turns = services.schedules.take_turns(&*index, stopped.clone());
        tokio::join!(cluster.take_part(stopped), turns);
    }
}

/// Opens the log file again at each SIGUSR1.
async fn reopen(mut signals: Signal, log: Arc<Log>) {
    while signals.recv().await.is_some() {
        log.reopen();
    }
}

/// The listening sockets of all doors, with what the doors need.
struct Doors {
    registry: Vec<TcpListener>,
    tls: Tls,
    /// For other replicas.
    cluster: Vec<TcpListener>,
    proxy: Vec<TcpListener>,
    /// `None`: there is no proxy door.
    ca: Option<Arc<Ca>>,
    admin: Vec<TcpListener>,
}

impl Doors {
    /// Opens the doors. Sockets that systemd hands over take the place of the addresses of their door.
    async fn bind(config: &Config, mut sockets: Sockets, tls: Tls) -> Result<Self, AnyError> {
        let ca = match config.proxy.as_ref().map(|door| door.ca_dir.clone()) {
            Some(dir) => Some(Arc::new(tokio::task::spawn_blocking(move || Ca::open(&dir)).await??)),
            None => None,
        };
        let mut open = |door, addresses: &[SocketAddr]| match sockets.take(door) {
            handed if handed.is_empty() => Ok(listen::bind(door, addresses)?),
            handed => listen::adopt(door, handed).map_err(AnyError::from),
        };
        let proxy = match &config.proxy {
            Some(door) => open("proxy", &door.listen)?,
            None => Vec::new(),
        };
        let registry = open("registry", &config.server.listen)?;
        let admin = open("admin", &config.admin.listen)?;
        let cluster = match &config.cluster {
            Some(cluster) => listen::bind("cluster", &cluster.listen)?,
            None => Vec::new(),
        };
        if !sockets.take("proxy").is_empty() {
            tracing::warn!("systemd handed over a socket for the proxy door, but there is no [proxy]");
        }
        Ok(Self { registry, tls, cluster, proxy, ca, admin })
    }

    fn addresses(&self) -> std::io::Result<Vec<SocketAddr>> {
        [&self.proxy, &self.registry, &self.admin, &self.cluster]
            .into_iter()
            .flatten()
            .map(TcpListener::local_addr)
            .collect()
    }

    fn registry(&self) -> std::io::Result<Vec<SocketAddr>> {
        self.registry.iter().map(TcpListener::local_addr).collect()
    }

    /// Serves all doors, each until `stopped` says so.
    fn serve(
        self,
        (server, cluster): (&config::Server, Option<&config::Cluster>),
        services: &Arc<Services>,
        stopped: &channel::Receiver<Option<Duration>>,
    ) -> Result<JoinSet<()>, AnyError> {
        let shares = Shares::now();
        let handler: listen::Handler = Arc::new(admin::handler(services.clone()));
        let admin = (listen::Places::new(shares.admin), listen::Crowd::new(None));
        let proxy = self.ca.map(|ca| listen::Door::Proxy(services.proxy.clone(), ca));
        let registry = listen::RegistryDoor {
            registry: services.registry.clone(),
            tls: self.tls,
            is_announced: server.proxy_protocol,
        };
        let times = listen::Times::new(server);
        let replicas = for_replicas(cluster, services)?;
        // Several others may fill as much as this one does.
        let near = (listen::Places::new(4 * shares.fills), listen::Crowd::new(None));
        let all = [
            (self.registry, Some(listen::Door::Registry(registry)), limits(server, shares.registry)),
            (self.cluster, replicas, near),
            (self.proxy, proxy, limits(server, shares.proxy)),
            (self.admin, Some(listen::Door::Admin(handler)), admin),
        ];
        let mut serving = JoinSet::new();
        for (listeners, door, (places, crowd)) in all {
            // The proxy door and that for replicas can be missing, and then have no listener.
            let Some(door) = door else { continue };
            for listener in listeners {
                let (door, places, crowd) = (door.clone(), places.clone(), crowd.clone());
                let metrics = services.metrics.clone();
                serving.spawn(listen::serve(listener, door, metrics, places, crowd, times, stopped.clone()));
            }
        }
        Ok(serving)
    }
}

/// Makes the door for other replicas.
fn for_replicas(cluster: Option<&config::Cluster>, services: &Arc<Services>) -> Result<Option<listen::Door>, AnyError> {
    let tls = cluster.and_then(|cluster| cluster.tls.as_ref());
    let told = services.clone();
    let report = move |digest| {
        let told = told.clone();
        async move { admin::replicas::report_for_replicas(&told, digest).await }.boxed()
    };
    let Some(behind) = services.for_replicas(tls.is_some(), Arc::new(report)) else {
        return Ok(None);
    };
    let behind = Arc::new(behind);
    let handler: listen::Handler = Arc::new(move |request, from| {
        let behind = behind.clone();
        Box::pin(async move { behind.handle(request, from).await })
    });
    let tls = Tls::new(tls.map(|tls| &tls.server), Shown::default())?;
    Ok(Some(listen::Door::Replicas(handler, tls)))
}

/// Returns the limits on the connections of a door, in total and for each address. `share`: how many connections there
/// are file descriptors for.
fn limits(server: &config::Server, share: usize) -> (Arc<listen::Places>, Arc<listen::Crowd>) {
    let most = server.max_connections.map_or(share, |limit| limit.min(share));
    (listen::Places::new(most), listen::Crowd::new(server.max_connections_per_address))
}
