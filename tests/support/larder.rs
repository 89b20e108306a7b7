//! The real binary as a child process, with a directory of its own.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;

use super::client::get;
use super::eventually;
use super::hub::Hub;

const START_DEADLINE: Duration = Duration::from_secs(20);
/// The doors that every start waits for.
const DOORS: [(&str, &str); 2] = [("registry", "LARDER_SERVER__LISTEN"), ("admin", "LARDER_ADMIN__LISTEN")];

/// The number of a user without rights, and of its group.
pub const NOBODY: u32 = 65534;

/// A running Larder. Killed on drop; its log is printed if the test panics.
#[derive(Debug)]
pub struct Larder {
    setup: Builder,
    directory: TempDir,
    child: Option<Child>,
    log: watch::Receiver<Log>,
    earlier_log: String,
    addresses: Vec<(String, SocketAddr)>,
}

/// What a Larder is started with.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    config: String,
    environment: Vec<(String, String)>,
    keep_ports: bool,
    hosts: Option<String>,
    /// Limits of open files, soft and hard.
    descriptors: Option<(u64, u64)>,
    umask: Option<String>,
    is_unprivileged: bool,
    /// A program that starts it, with its arguments.
    starter: Vec<String>,
    /// What becomes of standard error once it listens.
    reader: Reader,
}

/// Who reads the standard error of a Larder, and for how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reader {
    /// Everything is read.
    #[default]
    Stays,
    /// Nobody reads any more once all doors are listening; the pipe stays open and fills.
    Stops,
    /// The pipe breaks once all doors are listening.
    Goes,
}

/// How a Larder that was not meant to stay ended.
#[derive(Debug)]
pub struct Exit {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub log: String,
}

/// How a command of the command line ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

/// The memory of a process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub resident: u64,
    /// The most it ever was.
    pub peak: u64,
}

#[derive(Debug, Default)]
struct Log {
    text: String,
    doors: Vec<(String, SocketAddr)>,
    ended: bool,
}

impl Builder {
    /// Adds text to `larder.toml`. Listen addresses, cache directory and logging are set by the harness.
    pub fn config(mut self, toml: impl ToString) -> Self {
        self.config.push_str(&toml.to_string());
        self.config.push('\n');
        self
    }

    /// Sets an environment variable; the last value counts, also against the harness's own.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Names that it knows beside those of the machine, as in `/etc/hosts`; needs root.
    pub fn hosts(mut self, lines: &str) -> Self {
        self.hosts = Some(lines.to_owned());
        self
    }

    /// With these limits of open files, soft and hard.
    pub fn descriptors(mut self, soft: u64, hard: u64) -> Self {
        self.descriptors = Some((soft, hard));
        self
    }

    /// Which rights new files do not get, in octal digits.
    pub fn umask(mut self, digits: &str) -> Self {
        self.umask = Some(digits.to_owned());
        self
    }

    /// As a user without rights, in a directory that belongs to this user; needs root.
    pub fn unprivileged(mut self) -> Self {
        self.is_unprivileged = true;
        self
    }

    /// With a clock that is so far off, such as "-1h". The program `faketime` would do the same in a process of its own,
    /// which hands on no signals. `$LIB` is the loader's (`man ld.so`, "Dynamic string tokens").
    pub fn clock(self, off: &str) -> Self {
        let this = self.env("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1").env("FAKETIME", off);
        this.env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Started by this program, which gets the command behind its own arguments.
    pub fn through(mut self, starter: &[&str]) -> Self {
        self.starter = starter.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// What becomes of its standard error.
    pub fn reader(mut self, reader: Reader) -> Self {
        self.reader = reader;
        self
    }

    /// Later starts listen where the first did.
    pub fn keep_ports(mut self) -> Self {
        self.keep_ports = true;
        self
    }

    /// Its directory and configuration, for commands; nothing runs.
    pub fn prepare(self) -> Larder {
        Larder::prepare(self)
    }

    /// Starts it and waits until it listens; panics with its log if it does not.
    pub async fn start(self) -> Larder {
        let mut larder = Larder::prepare(self);
        larder.launch().await;
        larder
    }

    /// Starts it and waits until it ends by itself, e.g. because of a bad configuration.
    pub async fn run_to_exit(self) -> Exit {
        let mut larder = Larder::prepare(self);
        larder.spawn();
        larder.exit("larder to end by itself").await
    }
}

impl Larder {
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// With this configuration.
    pub async fn start(config: impl ToString) -> Self {
        Self::builder().config(config).start().await
    }

    /// Starts one that was prepared.
    pub async fn started(mut self) -> Self {
        self.launch().await;
        self
    }

    /// `http://127.0.0.1:PORT` of the registry door.
    pub fn url(&self) -> String {
        format!("http://{}", self.door("registry"))
    }

    /// `http://127.0.0.1:PORT` of the admin API.
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.door("admin"))
    }

    /// The address that a door logged: "registry", "admin", "proxy"…
    pub fn door(&self, name: &str) -> SocketAddr {
        let log = self.log.borrow();
        let found = log.doors.iter().find(|(door, _)| door == name);
        found.unwrap_or_else(|| panic!("no door {name} is listening")).1
    }

    /// `URL/v2/NAME/manifests/REFERENCE`
    pub fn manifest_url(&self, name: &str, reference: &str) -> String {
        format!("{}/v2/{name}/manifests/{reference}", self.url())
    }

    /// `URL/v2/NAME/blobs/DIGEST`
    pub fn blob_url(&self, name: &str, digest: &str) -> String {
        format!("{}/v2/{name}/blobs/{digest}", self.url())
    }

    /// The working directory, with `larder.toml` in it.
    pub fn home(&self) -> &Path {
        self.directory.path()
    }

    /// The cache directory.
    pub fn dir(&self) -> PathBuf {
        self.directory.path().join("cache")
    }

    /// The file of a complete object.
    pub fn object(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        self.dir().join("blobs").join(algorithm).join(&hex[..2]).join(hex)
    }

    /// Whether these objects are stored, and counted as such: their files are there before that.
    pub async fn has_stored(&self, digests: &[String]) -> bool {
        digests.iter().all(|digest| self.object(digest).exists()) && self.stats().await["fills_running"] == 0
    }

    /// Everything logged so far, over all starts.
    pub fn log(&self) -> String {
        format!("{}{}", self.earlier_log, self.log.borrow().text)
    }

    /// Runs a command with this Larder's configuration and doors, whether it runs or not.
    pub async fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = self.command();
        command.args(arguments).stdin(Stdio::null());
        for (door, variable) in DOORS {
            if let Some((_, address)) = self.addresses.iter().find(|(name, _)| name == door) {
                command.env(variable, address.to_string());
            }
        }
        Self::end_of(command).await
    }

    /// Runs a line of a shell.
    pub async fn shell(&self, line: &str) -> Ran {
        let mut command = Command::new("bash");
        command.args(["-c", line]).stdin(Stdio::null()).current_dir(self.home());
        Self::end_of(command).await
    }

    async fn end_of(mut command: Command) -> Ran {
        let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let output = output.expect("the larder binary can be started");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs a command in another folder, with only these variables and without naming this Larder's configuration.
    pub async fn run_in(&self, folder: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(arguments).stdin(Stdio::null()).current_dir(folder).env_clear();
        command.envs(environment.iter().copied());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        Self::end_of(command).await
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("larder is running").id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|status| status.is_none()))
    }

    /// Writes a new `larder.toml` over the old one, without a restart.
    pub fn write_config(&mut self, toml: impl ToString) {
        self.setup.config = toml.to_string();
        std::fs::write(self.config_path(), &self.setup.config).expect("the configuration can be written");
    }

    /// Kills it at once, as a power cut would.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends SIGTERM and waits for the end.
    pub async fn stop(&mut self) -> Exit {
        self.signal("TERM");
        self.exit("larder to end after SIGTERM").await
    }

    /// Sends a signal by name: "TERM", "HUP", "STOP"…
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIG{name} could not be sent");
    }

    /// Stops it if it runs, and starts it again with the same directory and configuration.
    pub async fn restart(&mut self) {
        if self.is_running() {
            self.stop().await;
        }
        self.launch().await;
    }

    /// `GET /api/cache/stats`
    pub async fn stats(&self) -> serde_json::Value {
        let answer = get(format!("{}/api/cache/stats", self.admin_url())).await;
        assert_eq!(answer.status, 200, "stats: {}", answer.text());
        answer.json()
    }

    /// `GET /metrics`
    pub async fn metrics(&self) -> String {
        let answer = get(format!("{}/metrics", self.admin_url())).await;
        assert_eq!(answer.status, 200, "metrics: {}", answer.text());
        answer.text()
    }

    /// What its open descriptors lead to.
    pub fn descriptors(&self) -> Vec<PathBuf> {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("larder is running");
        open.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok()).collect()
    }

    pub fn resident_memory(&self) -> Memory {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("larder is running");
        let kibibytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("the kernel counts memory");
            let number = line.trim().trim_end_matches("kB").trim();
            number.parse::<u64>().expect("a number of kB") * 1024
        };
        Memory { resident: kibibytes("VmRSS:"), peak: kibibytes("VmHWM:") }
    }

    fn prepare(setup: Builder) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (_, log) = watch::channel(Log::default());
        let larder = Self { setup, directory, child: None, log, earlier_log: String::new(), addresses: Vec::new() };
        std::fs::write(larder.config_path(), &larder.setup.config).expect("the configuration can be written");
        if larder.setup.is_unprivileged {
            std::os::unix::fs::chown(larder.home(), Some(NOBODY), Some(NOBODY)).expect("the tests run as root");
        }
        larder
    }

    fn config_path(&self) -> PathBuf {
        self.directory.path().join("larder.toml")
    }

    async fn launch(&mut self) {
        self.spawn();
        let waited = self.log.wait_for(|log| log.ended || is_listening(log));
        let in_time = timeout(START_DEADLINE, waited).await.is_ok();
        let doors = {
            let log = self.log.borrow();
            // The log itself is printed on drop.
            assert!(is_listening(&log) || !log.ended, "larder ended while it was starting");
            assert!(in_time, "larder did not listen within {START_DEADLINE:?}");
            log.doors.clone()
        };
        self.addresses = doors;
    }

    /// The binary with this Larder's configuration.
    fn command(&self) -> Command {
        let mut command = match (&self.setup.hosts, self.setup.descriptors) {
            (None, None) if self.setup.is_unprivileged => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
                command.uid(NOBODY).gid(NOBODY);
                command
            }
            (None, None) if self.setup.umask.is_some() => {
                let digits = self.setup.umask.as_deref().unwrap_or_default();
                let mut command = Command::new("sh");
                command.args(["-c", "umask \"$0\" && exec \"$@\"", digits, env!("CARGO_BIN_EXE_larder")]);
                command
            }
            (None, None) if !self.setup.starter.is_empty() => {
                let mut command = Command::new(&self.setup.starter[0]);
                command.args(&self.setup.starter[1..]).arg(env!("CARGO_BIN_EXE_larder"));
                command
            }
            (None, None) => Command::new(env!("CARGO_BIN_EXE_larder")),
            (None, Some((soft, hard))) => {
                let mut command = Command::new("sh");
                command.args(["-c", &format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"")]);
                command.arg(env!("CARGO_BIN_EXE_larder"));
                command
            }
            (Some(hosts), _) => {
                let file = self.directory.path().join("hosts");
                std::fs::write(&file, format!("127.0.0.1 localhost\n{hosts}\n")).expect("written");
                let mut command = Command::new("unshare");
                command.args(["--mount", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
                command.arg(file).arg(env!("CARGO_BIN_EXE_larder"));
                command
            }
        };
        command.arg("--config").arg(self.config_path()).current_dir(self.directory.path());
        // Nothing of the developer's environment: proxies, credentials, other LARDER_ variables.
        command.env_clear().env("HOME", self.directory.path()).env("RUST_BACKTRACE", "1");
        for name in ["PATH", "LD_LIBRARY_PATH", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.env("LARDER_CACHE__DIR", self.dir());
        if self.setup.config.contains("[repository.") {
            // Without this, names that the test's repositories do not have would be asked of the real Docker Hub.
            command.env("LARDER_SERVER__BUILTIN_REPOSITORIES", "false");
        }
        command.env("LARDER_LOGGING__LEVEL", "debug").env("LARDER_LOGGING__FORMAT", "json");
        command.envs(self.setup.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn spawn(&mut self) {
        self.earlier_log = self.log();
        let mut command = self.command();
        command.arg("serve");
        for (door, variable) in DOORS {
            let before = self.addresses.iter().find(|(name, _)| name == door).filter(|_| self.setup.keep_ports);
            command.env(variable, before.map_or("127.0.0.1:0".to_owned(), |(_, address)| address.to_string()));
        }
        // A test's own doors go before these.
        command.envs(self.setup.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());

        let mut child = command.spawn().expect("the larder binary can be started");
        let stderr = child.stderr.take().expect("stderr is piped");
        let (sender, log) = watch::channel(Log::default());
        let reader = self.setup.reader;
        std::thread::spawn(move || read_log(stderr, reader, &sender));
        self.child = Some(child);
        self.log = log;
    }

    async fn exit(&mut self, what: &str) -> Exit {
        let status: Mutex<Option<ExitStatus>> = Mutex::new(None);
        let child = Mutex::new(self.child.as_mut().expect("larder was started"));
        eventually(what, || async {
            let ended = child.lock().expect("no panic while held").try_wait().expect("a child can be waited for");
            *status.lock().expect("no panic while held") = ended;
            ended.is_some()
        })
        .await;
        self.child = None;
        // What it said last may still be in the pipe.
        let _ = timeout(START_DEADLINE, self.log.wait_for(|log| log.ended)).await;
        let status = status.into_inner().expect("no panic while held").expect("it has ended");
        Exit { code: status.code(), signal: status.signal(), log: self.log.borrow().text.clone() }
    }
}

impl Drop for Larder {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("--- log of larder ---\n{}--- end of the log ---", self.log());
        }
    }
}

fn read_log(stderr: ChildStderr, fate: Reader, sender: &watch::Sender<Log>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while !(fate != Reader::Stays && is_listening(&sender.borrow()))
        && reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0)
    {
        let text = String::from_utf8_lossy(&line).into_owned();
        sender.send_modify(|log| {
            log.doors.extend(door_of(&text));
            log.text.push_str(&text);
        });
        line.clear();
    }
    if fate == Reader::Stops {
        // For as long as the tests run.
        std::mem::forget(reader);
    }
    sender.send_modify(|log| log.ended = true);
}

fn is_listening(log: &Log) -> bool {
    DOORS.iter().all(|(door, _)| log.doors.iter().any(|(name, _)| name == door))
}

/// The door and address, if the line says that one is listening.
fn door_of(line: &str) -> Option<(String, SocketAddr)> {
    let record: serde_json::Value = serde_json::from_str(line).ok()?;
    let fields = &record["fields"];
    if fields["message"] != "listening" {
        return None;
    }
    Some((fields["door"].as_str()?.to_owned(), fields["address"].as_str()?.parse().ok()?))
}

/// The TOML of one repository.
///
/// ```ignore
/// RepositoryConfig::new("docker.io").set(r#"max_age = "60s""#).upstream(&hub)
/// ```
///
/// Unless a test sets `prefetch`, nothing comes in behind a pull, other than by the default: most tests count what the
/// upstream is asked, or hold one of its answers. `tests/prefetch.rs` is about the default, and the real clients of
/// `tests/clients` run with it.
#[derive(Clone, Debug)]
pub struct RepositoryConfig {
    prefix: String,
    keys: String,
    upstreams: String,
    has_default_prefetch: bool,
}

impl RepositoryConfig {
    /// The key is the local path prefix.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), keys: String::new(), upstreams: String::new(), has_default_prefetch: false }
    }

    /// With the default of `prefetch`.
    pub fn default_prefetch(mut self) -> Self {
        self.has_default_prefetch = true;
        self
    }

    /// Adds lines to the repository's own table.
    pub fn set(mut self, toml: &str) -> Self {
        self.keys.push_str(toml);
        self.keys.push('\n');
        self
    }

    /// Adds a hub as the next upstream.
    pub fn upstream(self, hub: &Hub) -> Self {
        self.upstream_with(hub, "")
    }

    /// Adds a hub as the next upstream, with more lines for it: credentials, timeouts…
    pub fn upstream_with(self, hub: &Hub, toml: &str) -> Self {
        self.upstream_url(&hub.url(), toml)
    }

    /// Adds any URL as the next upstream.
    pub fn upstream_url(mut self, url: &str, toml: &str) -> Self {
        let table = format!("[[repository.\"{}\".upstream]]\nurl = \"{url}\"\n{toml}\n", self.prefix);
        self.upstreams.write_str(&table).expect("writing to a String cannot fail");
        self
    }
}

impl std::fmt::Display for RepositoryConfig {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let is_set = self.has_default_prefetch || self.keys.contains("prefetch");
        let prefetch = if is_set { "" } else { "prefetch = \"off\"\n" };
        write!(out, "[repository.\"{}\"]\n{prefetch}{}\n{}", self.prefix, self.keys, self.upstreams)
    }
}

/// A repository with these hubs as its upstreams, in order.
pub fn repository_config(prefix: &str, hubs: &[&Hub]) -> String {
    hubs.iter().fold(RepositoryConfig::new(prefix), |config, hub| config.upstream(hub)).to_string()
}
