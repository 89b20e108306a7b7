//! Docker Engine: a private dockerd with its own containerd, which knows the mirror as its `registry-mirrors`.

use std::{
    fs,
    path::Path,
    process,
    sync::atomic::{AtomicU16, Ordering},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::process::{Daemon, Failure, Invocation, program};

/// A proxy that never answers: after a mirror's failure dockerd turns to Docker Hub, and must not get there.
const NOWHERE: &str = "http://127.0.0.1:1";

/// A dockerd; dropping it ends it with its containers and removes everything.
pub struct Dockerd {
    daemon: Daemon,
    cgroup: String,
    /// After the daemon: fields are dropped in this order.
    directory: TempDir,
}

impl Dockerd {
    /// Starts one that pulls `docker.io` images through the mirrors at these URLs, and waits until it answers.
    pub async fn start(mirrors: &[&str]) -> Self {
        Self::start_in(mirrors, None).await
    }

    /// One that sees `hosts` and `docker` of a directory in `/etc`.
    pub async fn start_in(mirrors: &[&str], etc: Option<&Path>) -> Self {
        Self::start_with(mirrors, etc, NOWHERE).await
    }

    /// One whose `/etc/docker` is that of a directory with `hosts` and `docker`, and whose configuration is
    /// `docker/daemon.json` there: first the rig's own, then what `prepare` makes of it.
    pub async fn start_prepared(etc: &Path, prepare: impl AsyncFn()) -> Self {
        let mut failure = None;
        for storage_driver in ["overlay2", "vfs"] {
            let (directory, cgroup) = Self::home();
            let file = etc.join("docker/daemon.json");
            let mut configuration = Self::configuration(directory.path(), &cgroup, storage_driver);
            configuration.as_object_mut().expect("an object").remove("registry-mirrors");
            fs::write(&file, configuration.to_string()).expect("dockerd's configuration is written");
            prepare().await;
            match Self::launch(directory, cgroup, &file, Some(etc), NOWHERE).await {
                Ok(dockerd) => return dockerd,
                Err(error) => failure = Some(error),
            }
        }
        panic!("{failure:?}");
    }

    /// One that knows no mirror and goes through a proxy.
    pub async fn start_behind(proxy: &str, etc: &Path) -> Self {
        Self::start_with(&[], Some(etc), proxy).await
    }

    async fn start_with(mirrors: &[&str], etc: Option<&Path>, proxy: &str) -> Self {
        let mut failure = None;
        // overlay2 is what users have; where the file system does not bear it, vfs does.
        for storage_driver in ["overlay2", "vfs"] {
            match Self::try_start(mirrors, etc, proxy, storage_driver).await {
                Ok(dockerd) => return dockerd,
                Err(error) => failure = Some(error),
            }
        }
        panic!("{failure:?}");
    }

    /// Pulls an image.
    pub async fn pull(&self, reference: &str) -> Result<(), Failure> {
        self.docker(&["pull", "--quiet", reference]).await.map(drop)
    }

    /// Logs in to a registry, so that later pulls come with these credentials.
    pub async fn login(&self, registry: &str, user: &str, password: &str) -> Result<(), Failure> {
        self.docker(&["login", "--username", user, "--password", password, registry]).await.map(drop)
    }

    pub async fn logout(&self, registry: &str) -> Result<(), Failure> {
        self.docker(&["logout", registry]).await.map(drop)
    }

    /// Runs a command in a new container of an image that is there already; returns what it prints.
    pub async fn run(&self, reference: &str, command: &[&str]) -> Result<String, Failure> {
        let run = ["run", "--rm", "--pull", "never", "--network", "none", reference];
        self.docker(&[&run, command].concat()).await
    }

    /// Builds an image with the BuildKit that dockerd has in it; returns what a file of the image holds.
    pub async fn build(&self, from: &str, file: &str) -> Result<String, Failure> {
        let context = self.directory.path().join("context");
        let out = self.directory.path().join("out");
        fs::create_dir_all(&context).expect("made");
        let text = format!("FROM {from} AS base\nFROM scratch\nCOPY --from=base {file} /file\n");
        fs::write(context.join("Dockerfile"), text).expect("written");
        let place = |path: &Path| path.to_str().expect("temporary paths are UTF-8").to_owned();
        let output = format!("type=local,dest={}", place(&out));
        docker(self.directory.path(), &["build", "--no-cache", "--output", &output, &place(&context)])
            .env("DOCKER_BUILDKIT", "1")
            .run()
            .await
            .map_err(|failure| failure.with_log_of(&self.daemon))?;
        let built = fs::read_to_string(out.join("file"));
        let _ = fs::remove_dir_all(&out);
        built.map(|text| text.trim().to_owned()).map_err(|error| Failure::new(format!("nothing was built: {error}")))
    }

    /// Runs a program whose `docker` is the client of this dockerd.
    pub async fn run_beside(
        &self,
        program: &str,
        arguments: &[&str],
        environment: &[(&'static str, &str)],
    ) -> Result<String, Failure> {
        let root = self.directory.path();
        let run = Invocation::new(Path::new(program), arguments.iter().copied())
            .env("DOCKER_HOST", socket(root))
            .env("DOCKER_CONFIG", root.join("client"));
        let run = environment.iter().fold(run, |run, (name, value)| run.env(name, value));
        run.run().await.map_err(|failure| failure.with_log_of(&self.daemon))
    }

    /// Runs a command in a running container.
    pub async fn exec(&self, container: &str, command: &[&str]) -> Result<String, Failure> {
        self.docker(&[&["exec", container], command].concat()).await
    }

    /// Starts a container of an image that is there already. Returns its number.
    pub async fn start_container(&self, reference: &str, options: &[&str]) -> Result<String, Failure> {
        let run = ["run", "--detach", "--pull", "never"];
        self.docker(&[&run, options, &[reference]].concat()).await.map(|number| number.trim().to_owned())
    }

    /// Returns what a container has written, to standard output and error: dockerd keeps it in a file.
    pub fn logs(&self, container: &str) -> String {
        let file = self.directory.path().join(format!("data/containers/{container}/{container}-json.log"));
        let lines = fs::read_to_string(file).unwrap_or_default();
        let texts = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        texts.filter_map(|line| line["log"].as_str().map(str::to_owned)).collect()
    }

    /// Stops a container as a user does; fails if it has to be killed.
    pub async fn stop_container(&self, container: &str) -> Result<(), Failure> {
        self.docker(&["stop", "--time", "20", container]).await?;
        let code = self.docker(&["inspect", "--format", "{{.State.ExitCode}}", container]).await?;
        match code.trim() {
            "0" => Ok(()),
            code => Err(Failure::new(format!("it ended with {code}"))),
        }
    }

    /// Forgets what BuildKit keeps for later.
    pub async fn forget_builds(&self) -> Result<(), Failure> {
        self.docker(&["builder", "prune", "--all", "--force"]).await.map(drop)
    }

    /// Removes an image, its layers included.
    pub async fn remove(&self, reference: &str) -> Result<(), Failure> {
        self.docker(&["rmi", "--force", reference]).await?;
        match self.docker(&["images", "--all", "--quiet"]).await?.as_str() {
            "" => Ok(()),
            left => Err(Failure::new(format!("dockerd still holds {left}"))),
        }
    }

    async fn try_start(
        mirrors: &[&str],
        etc: Option<&Path>,
        proxy: &str,
        storage_driver: &str,
    ) -> Result<Self, Failure> {
        let (directory, cgroup) = Self::home();
        let mut configuration = Self::configuration(directory.path(), &cgroup, storage_driver);
        configuration["registry-mirrors"] = json!(mirrors);
        let file = directory.path().join("daemon.json");
        fs::write(&file, configuration.to_string()).expect("dockerd's configuration is written");
        Self::launch(directory, cgroup, &file, etc, proxy).await
    }

    /// A directory and a control group of its own.
    fn home() -> (TempDir, String) {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let directory = tempfile::Builder::new().prefix("larder-docker-").tempdir().expect("a temporary directory");
        let cgroup = format!("larder-docker-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        (directory, cgroup)
    }

    fn configuration(root: &Path, cgroup: &str, storage_driver: &str) -> Value {
        json!({
            "registry-mirrors": [],
            "insecure-registries": ["127.0.0.0/8"],
            "hosts": [socket(root)],
            "data-root": root.join("data"),
            "exec-root": root.join("exec"),
            "pidfile": root.join("pid"),
            "storage-driver": storage_driver,
            "cgroup-parent": format!("/{cgroup}"),
            // Containers get no network, and the machine's stays as it is.
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "ip-forward": false,
            "userland-proxy": false,
        })
    }

    async fn launch(
        directory: TempDir,
        cgroup: String,
        file: &Path,
        etc: Option<&Path>,
        proxy: &str,
    ) -> Result<Self, Failure> {
        let root = directory.path();
        let arguments = ["--config-file", file.to_str().expect("temporary paths are UTF-8")];
        let etc = etc.map_or("", |etc| etc.to_str().expect("temporary paths are UTF-8"));
        let without_proxy = if proxy == NOWHERE { "127.0.0.0/8,.test" } else { "" };
        // daemon.json has keys for this since Docker 23.
        let environment =
            [("HTTP_PROXY", proxy), ("HTTPS_PROXY", proxy), ("NO_PROXY", without_proxy), ("RIG_ETC", etc)];
        let daemon = Daemon::spawn(&program("dockerd", "docker.io"), arguments, &environment, &root.join("log"))
            .map_err(|error| Failure::new(format!("dockerd does not start: {error}")))?;
        let mut dockerd = Self { daemon, cgroup, directory };
        let root = dockerd.directory.path();
        dockerd.daemon.wait_until(|| async { docker(root, &["version"]).run().await.is_ok() }).await?;
        Ok(dockerd)
    }

    async fn docker(&self, arguments: &[&str]) -> Result<String, Failure> {
        docker(self.directory.path(), arguments).run().await.map_err(|failure| failure.with_log_of(&self.daemon))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.daemon.kill();
        // Hierarchies of version 1 lie side by side; version 2 is the directory itself.
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain(["/sys/fs/cgroup".into()]) {
            remove_cgroup(&hierarchy.join(&self.cgroup));
        }
    }
}

/// The client, which asks the dockerd that lives in `root` and knows nobody's credentials.
fn docker(root: &Path, arguments: &[&str]) -> Invocation {
    let socket = socket(root);
    let arguments = ["--host", &socket].into_iter().chain(arguments.iter().copied());
    Invocation::new(&program("docker", "docker.io"), arguments)
        .env("HOME", root)
        .env("DOCKER_CONFIG", root.join("client"))
}

fn socket(root: &Path) -> String {
    format!("unix://{}", root.join("sock").display())
}

/// Removes a group without processes, from its leaves up; the files in it go by themselves.
fn remove_cgroup(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
