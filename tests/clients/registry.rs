//! The upstream: Debian's `docker-registry`, with a log of what it was asked.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use tempfile::TempDir;

use super::{
    http,
    process::{Daemon, Failure, program},
};

/// A `docker-registry` with its own storage; dropping it ends it and removes everything.
pub struct Registry {
    daemon: Option<Daemon>,
    port: u16,
    /// How much of the log [`Registry::clear_requests`] has put aside.
    seen: usize,
    directory: TempDir,
}

impl Registry {
    /// Starts an empty registry on a free port and waits until it answers.
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("larder-registry-").tempdir().expect("a temporary directory");
        let mut registry = Self { daemon: None, port: 0, seen: 0, directory };
        let mut failure = None;
        // The port is free when it is looked for, not necessarily when the registry binds it.
        for _ in 0..5 {
            registry.port = free_port();
            match registry.try_start().await {
                Ok(()) => return registry,
                Err(error) => failure = Some(error),
            }
        }
        panic!("{failure:?}");
    }

    /// Its address, `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its URL, `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Takes it off the network; what it holds stays. Connections to it are then refused.
    pub fn stop(&mut self) {
        self.daemon = None;
    }

    /// Brings it back, at the same address, with what it held.
    pub async fn start_again(&mut self) {
        self.try_start().await.unwrap();
    }

    /// Method and request target of all requests since [`Registry::clear_requests`], in order of completion.
    /// Those of the rig itself are left out.
    pub async fn requests(&self) -> Vec<(String, String)> {
        self.settled_requests().await.split_off(self.seen)
    }

    /// Forgets the requests made so far.
    pub async fn clear_requests(&mut self) {
        self.seen = self.settled_requests().await.len();
    }

    async fn try_start(&mut self) -> Result<(), Failure> {
        let root = self.directory.path();
        let configuration = root.join("config.yml");
        let address = self.address();
        let text = format!(
            "version: 0.1\n\
             log: {{level: warn, accesslog: {{disabled: false}}}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}, delete: {{enabled: true}}}}\n\
             http: {{addr: '{address}', secret: larder, headers: {{X-Larder-Rig: ['{}']}}}}\n",
            root.join("data").display(),
            root.display()
        );
        fs::write(&configuration, text).expect("the registry's configuration is written");
        let binary = program("docker-registry", "docker-registry");
        let configuration = configuration.to_str().expect("temporary paths are UTF-8");
        let mut daemon = Daemon::spawn(&binary, ["serve", configuration], &[], &self.log())
            .map_err(|error| Failure::new(format!("docker-registry does not start: {error}")))?;
        daemon
            .wait_until(|| async {
                // Its own name, lest another one that was quicker to take the port is mistaken for it.
                let answer = http::send(&address, "GET", "/v2/", &[], b"").await;
                answer.is_ok_and(|answer| answer.header("x-larder-rig") == root.to_str())
            })
            .await?;
        self.daemon = Some(daemon);
        Ok(())
    }

    /// The whole log, when nothing has been added to it for a moment: a line is written after its answer was sent.
    async fn settled_requests(&self) -> Vec<(String, String)> {
        let mut before = None;
        loop {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            if before == Some(log.len()) {
                return log.lines().filter_map(parse_access_line).collect();
            }
            before = Some(log.len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }
}

/// Reads `127.0.0.1 - - [date] "GET /v2/ HTTP/1.1" 200 2 "" "agent"`; the registry's other lines look different. The
/// rig's own requests do not count.
fn parse_access_line(line: &str) -> Option<(String, String)> {
    if line.contains(http::USER_AGENT) {
        return None;
    }
    let (_, request) = line.split_once("] \"")?;
    let mut words = request.split(' ');
    let method = words.next()?.to_owned();
    let target = words.next()?.to_owned();
    words.next()?.starts_with("HTTP/").then_some((method, target))
}

/// A port that nothing listens on, below those that the system hands out by itself: so no connection and no other
/// test's `127.0.0.1:0` takes it while the registry is stopped.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 10_000).expect("below 10,000");
    (0..10_000)
        .map(|_| 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000)
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .expect("one of 10,000 ports is free")
}
