//! The services of an instance: everything that answers requests, made from one configuration, in the order of its
//! dependencies.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::Value;

use crate::access::{Access, Rules, RulesError};
use crate::cache::Cache;
use crate::clock::Instant;
use crate::cluster::{Cluster, ClusterError};
use crate::config::Config;
use crate::failure::Failure;
use crate::index::Lease;
use crate::observe::{Metrics, Reason};
use crate::oci::Reference;
use crate::proxy::{Proxy, ProxyRules};
use crate::random::NoRandomness;
use crate::registry::explain::Explained;
use crate::registry::{ForReplicas, Objects, Registry, Report};
use crate::routing::{OwnNames, Target};
use crate::setup;
use crate::upstream::{BuildError, Clients};
use crate::warm::Warming;
use crate::warm::schedule::Schedules;

/// The name of the lease whose holder runs `[[warm]]`.
const SCHEDULES: &str = "warm";

/// The services, shared by all doors.
pub struct Services {
    pub cache: Arc<Cache>,
    pub metrics: Arc<Metrics>,
    pub access: Arc<Access>,
    pub registry: Arc<Registry>,
    pub proxy: Arc<Proxy>,
    /// This replica and the others; `None`: this Larder is alone.
    pub cluster: Option<Arc<Cluster>>,
    /// When they were made.
    pub begun: Instant,
    objects: Arc<Objects>,
    clients: Clients,
    configuration: Mutex<Arc<Configuration>>,
    /// Brings lists of images into the cache.
    pub warming: Arc<Warming>,
    /// Keeps images warm that the configuration names.
    pub schedules: Schedules,
    registry_door: OnceLock<RegistryDoor>,
}

/// Where the registry door listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryDoor {
    pub addresses: Vec<SocketAddr>,
    pub is_tls: bool,
}

/// What is told of the configuration in force.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    /// All keys with their values and origins, secrets hidden.
    pub shown: Value,
    /// What is allowed in it and hardly meant.
    pub warnings: Vec<String>,
    /// Why a later configuration is not in force.
    pub refused: Option<String>,
    pub for_clients: ForClients,
}

/// What the lines for clients (`larder setup`) say, beside the address.
#[derive(Clone, Debug, Default)]
pub struct ForClients {
    /// The registries that clients name.
    pub registries: Vec<setup::Registry>,
    /// Whether a request that names no registry goes to Docker Hub's repository.
    pub is_hub_default: bool,
    /// The certificates, in PEM form, of the authority that clients do not trust by themselves.
    pub authority: Option<String>,
}

/// The rules of another configuration, for [`Services::apply`].
pub struct Prepared {
    rules: Arc<Rules>,
    proxy: Option<ProxyRules>,
}

/// Why no services can be made from a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    #[error(transparent)]
    Rules(#[from] RulesError),
    #[error(transparent)]
    Proxy(#[from] BuildError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

impl Services {
    /// Makes the services of a configuration.
    pub fn new(config: &Config, cache: Arc<Cache>, metrics: Arc<Metrics>) -> Result<Self, ServicesError> {
        let clients = Clients::default();
        let Prepared { rules, proxy } = prepare(config, &clients, &metrics, None)?;
        let access = Arc::new(Access::new(rules)?);
        let cluster =
            config.cluster.as_ref().map(|config| Cluster::new(config, cache.index(), metrics.clone()).map(Arc::new));
        let cluster = cluster.transpose()?;
        if let Some(cluster) = cluster.clone() {
            cache.share_uploads(Box::new(move |digest| cluster.is_home(digest)));
        }
        let objects = Arc::new(Objects::new(&cache, &clients, &metrics, cluster.as_ref()));
        let registry = Registry::new(access.clone(), objects.clone(), cache.clone(), metrics.clone());
        let proxy = Proxy::new(proxy, access.clone(), objects.clone(), (cache.clone(), metrics.clone()));
        let (registry, proxy, configuration) = (Arc::new(registry), Arc::new(proxy), Mutex::default());
        let (warming, registry_door) = (Arc::new(Warming::new(objects.clone())), OnceLock::new());
        let lease = if cluster.is_some() { Lease::shared(SCHEDULES) } else { Lease::always() };
        let schedules = Schedules::new(warming.clone(), access.clone(), lease);
        Ok(Self {
            cache,
            metrics,
            access,
            registry,
            proxy,
            cluster,
            begun: Instant::now(),
            objects,
            clients,
            configuration,
            warming,
            schedules,
            registry_door,
        })
    }

    /// Returns what answers other replicas; `None`: this Larder is alone. `is_secure`: whether their door speaks TLS.
    /// `report`: what this replica tells of itself.
    pub fn for_replicas(&self, is_secure: bool, report: Report) -> Option<ForReplicas> {
        let cluster = self.cluster.clone()?;
        Some(ForReplicas::new(cluster, self.access.clone(), self.objects.clone(), (is_secure, report)))
    }

    /// Returns what is told of the configuration in force.
    pub fn configuration(&self) -> Arc<Configuration> {
        self.configuration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets what is told of the configuration in force.
    pub fn tell_configuration(&self, told: Configuration) {
        *self.configuration.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(told);
    }

    /// Says what would happen if an image were pulled now. Asks no upstream.
    pub async fn explain(&self, target: &Target, reference: &Reference) -> Explained {
        self.objects.explain(target, reference).await
    }

    /// Asks the upstream about an image now. Returns how that went.
    pub async fn refresh(&self, target: &Target, reference: &Reference) -> Result<Reason, Failure> {
        self.objects.refresh(target, reference).await.map(|state| state.reason())
    }

    /// Makes the services of the default configuration, with the cache in `dir`.
    #[cfg(test)]
    pub fn in_directory(dir: &std::path::Path) -> Self {
        let environment = [("LARDER_CACHE__DIR".to_owned(), dir.display().to_string())];
        let config = Config::load(&[], environment.into_iter()).expect("valid");
        let metrics = Arc::new(Metrics::default());
        let cache = Arc::new(Cache::open(&config, metrics.clone()).expect("a cache"));
        Self::new(&config, cache, metrics).expect("services")
    }

    /// Sets the addresses at which this process listens: Larder sends no requests there, whatever leads there.
    pub fn listens_at(&self, addresses: &[SocketAddr]) {
        self.clients.shared().ours.set(addresses);
    }

    /// Sets where the registry door listens; a later call changes nothing, as the door stays where it is.
    pub fn opens_registry(&self, door: RegistryDoor) {
        let _ = self.registry_door.set(door);
    }

    /// Returns where the registry door listens; `None` before it is open.
    pub fn registry_door(&self) -> Option<&RegistryDoor> {
        self.registry_door.get()
    }

    /// Returns the addresses and names at which clients reach the registry door.
    pub fn own_names(&self) -> OwnNames {
        self.access.rules().own.at(&self.clients.shared().ours)
    }

    /// Returns what [`Self::apply`] takes. Whatever can fail, fails here.
    pub fn prepare(&self, config: &Config) -> Result<Prepared, ServicesError> {
        prepare(config, &self.clients, &self.metrics, Some(&self.access.rules()))
    }

    /// Answers by another configuration from now on. Running transfers end as they began. Upstreams whose configuration
    /// is unchanged keep what is known about them.
    pub fn apply(&self, prepared: Prepared) {
        self.access.apply(prepared.rules);
        self.proxy.apply(prepared.proxy);
        // Last: until then a request may still note what an upstream of before said.
        self.objects.clear();
    }
}

fn prepare(
    config: &Config,
    clients: &Clients,
    metrics: &Arc<Metrics>,
    before: Option<&Rules>,
) -> Result<Prepared, ServicesError> {
    let rules = Arc::new(Rules::new(config, clients, metrics, before)?);
    let proxy = ProxyRules::new(config, &rules, clients, metrics)?;
    Ok(Prepared { rules, proxy })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::WarmSchedule;

    const HOUR: Duration = Duration::from_secs(3_600);
    /// What a run that asks no upstream may take.
    const MOMENT: Duration = Duration::from_secs(1);

    /// No repository is for the image, so that a run asks no upstream.
    fn hourly(image: &str) -> WarmSchedule {
        WarmSchedule { images: vec![image.parse().expect("an image")], platforms: Vec::new(), every: HOUR }
    }

    #[tokio::test(start_paused = true)]
    async fn a_schedule_runs_soon_and_then_an_hour_after_the_end_of_each_run() {
        let dir = tempfile::tempdir().expect("a directory");
        let services = Services::in_directory(dir.path());
        services.schedules.apply(&[hourly("nowhere.example/a:1")]);
        let schedule = services.schedules.all().remove(0);
        assert!(schedule.state().run.is_none(), "caches that start together do not ask together");
        // A tenth of `every`, and at most five minutes.
        tokio::time::sleep(Duration::from_secs(300) + MOMENT).await;
        let mut last = schedule.state().run.expect("a run").ended.expect("it has ended");
        for _ in 0..3 {
            tokio::time::sleep(HOUR + MOMENT).await;
            let run = schedule.state().run.expect("a run");
            let pause = run.begun.duration_since(last).expect("later");
            assert!(pause >= HOUR && pause < HOUR + MOMENT, "{pause:?}");
            assert!(run.problems[0].1.contains("no repository serves"), "{:?}", run.problems);
            last = run.ended.expect("it has ended");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_schedule_that_stays_goes_on_and_one_that_is_gone_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let services = Services::in_directory(dir.path());
        let (stays, goes) = (hourly("nowhere.example/a:1"), hourly("nowhere.example/b:1"));
        services.schedules.apply(&[stays.clone(), goes]);
        let before = services.schedules.all();
        services.schedules.apply(&[stays]);
        let after = services.schedules.all();
        assert!(after.len() == 1 && Arc::ptr_eq(&before[0], &after[0]));
        assert!(services.schedules.run_now(2).is_none());
        let gone = Arc::downgrade(&before[1]);
        drop(before);
        assert!(gone.upgrade().is_none(), "nothing else holds it, and its task ends with it");
    }
}
