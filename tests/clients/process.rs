//! Starting other people's programs: commands with a deadline, daemons that cannot be left behind.
//!
//! Daemons run as the first process of a PID namespace and with their own view of the mounts. Whatever they start
//! (containerd, its shims) dies with them and whatever they mount goes with them, on drop, on panic, and also when the
//! test process itself is killed: the namespace ends as soon as the pipe to the test closes.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

/// How long one command may take, in seconds.
const COMMAND_DEADLINE: &str = "120";
/// How long a daemon may take to get ready.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// The first process of a daemon's namespace.
///
/// `/run` is hidden so that a daemon neither finds the machine's own (dockerd would use a running containerd) nor
/// leaves sockets there. Where `RIG_ETC` names a directory, its `hosts` and `docker` are seen in `/etc`. Reading
/// standard input ends when the test is gone.
const KEEPER: &str = r#"
mount -t tmpfs tmpfs /run || exit 125
if [ -n "$RIG_ETC" ]; then
    mkdir -p /etc/docker && mount --bind "$RIG_ETC/hosts" /etc/hosts && mount --bind "$RIG_ETC/docker" /etc/docker || exit 125
fi
exec 3<&0
"$@" </dev/null 3<&- &
daemon=$!
(read -r _ <&3; kill -KILL $daemon) &
wait $daemon
"#;

/// Runs a command with its own `/var/lib/containers`, see [`Invocation::with_private_containers`]. Where `RIG_CONTAINERS`
/// names a directory, that is seen as `/etc/containers`.
const PRIVATE_CONTAINERS: &str = r#"
mkdir -p /var/lib/containers && mount -t tmpfs tmpfs /var/lib/containers || exit 125
if [ -n "$RIG_CONTAINERS" ]; then
    mkdir -p /etc/containers && mount --bind "$RIG_CONTAINERS" /etc/containers || exit 125
fi
exec "$@"
"#;

/// What went wrong, with all that the programs had to say; `unwrap` prints it with its line breaks.
pub struct Failure(String);

impl Failure {
    /// A failure that is described by `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// The same failure, with the last lines of a daemon's log.
    pub fn with_log_of(self, daemon: &Daemon) -> Self {
        Self(format!("{self}\n{}", daemon.log_tail()))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Finds a program that the Debian package `package` brings.
///
/// A daemon in `/usr/sbin` is found too: users often lack it in their `PATH`. Debian's own is preferred to what else
/// may be installed, as the versions of client and daemon then belong together.
///
/// # Panics
/// When it is not installed: a promise that cannot be checked is not kept.
pub fn program(name: &str, package: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    ["/usr/bin", "/usr/sbin"]
        .into_iter()
        .map(PathBuf::from)
        .chain(env::split_paths(&path))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("`{name}` is missing; install it: apt-get install {package}"))
}

/// One run of a program.
pub struct Invocation {
    program: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(&'static str, PathBuf)>,
    private_containers: bool,
}

impl Invocation {
    /// A run of `program` with `arguments`.
    pub fn new<'a>(program: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            program: program.to_owned(),
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            environment: Vec::new(),
            private_containers: false,
        }
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &'static str, value: impl Into<PathBuf>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Lets the program see an empty `/var/lib/containers` that vanishes with it.
    ///
    /// There podman, skopeo and buildah remember, whatever storage they are given, where they have seen which blob; a
    /// pull must neither profit from that nor leave it behind.
    pub fn with_private_containers(mut self) -> Self {
        self.private_containers = true;
        self
    }

    /// Runs it to its end and returns its standard output, trimmed.
    pub async fn run(self) -> Result<String, Failure> {
        let shown = format!("{} {}", self.program.display(), self.arguments.join(" "));
        let mut command = self.into_command();
        // Not on the test's own threads: these may be the ones that serve the program.
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .expect("running a command does not panic")
            .map_err(|error| Failure(format!("`{shown}` does not start: {error}")))?;
        let stdout = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() {
            return Ok(stdout);
        }
        let how = match output.status.code() {
            Some(124) => format!("did not end within {COMMAND_DEADLINE} s"),
            _ => format!("failed ({})", output.status),
        };
        let stderr = String::from_utf8_lossy(&output.stderr);
        Err(Failure(format!("`{shown}` {how}\n--- stdout\n{stdout}\n--- stderr\n{}", stderr.trim())))
    }

    fn into_command(self) -> Command {
        // `timeout` makes a process group and ends all of it, which `std` alone cannot.
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", COMMAND_DEADLINE]);
        if self.private_containers {
            command.args(["unshare", "--mount", "sh", "-c", PRIVATE_CONTAINERS, "sh"]);
        }
        command.arg(&self.program).args(&self.arguments).envs(self.environment).stdin(Stdio::null());
        command
    }
}

/// A running daemon; dropping it kills it with all its descendants.
pub struct Daemon {
    keeper: Child,
    /// Held open: the daemon lives as long as this pipe.
    lifeline: Option<ChildStdin>,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program`, with its output appended to the file `log`.
    pub fn spawn<'a>(
        program: &Path,
        arguments: impl IntoIterator<Item = &'a str>,
        environment: &[(&str, &str)],
        log: &Path,
    ) -> io::Result<Self> {
        let output = fs::File::options().create(true).append(true).open(log)?;
        let mut keeper = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", KEEPER, "sh"])
            .arg(program)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let lifeline = keeper.stdin.take();
        Ok(Self { keeper, lifeline, log: log.to_owned() })
    }

    /// Waits until `is_ready` says so; fails when the daemon ends before, or takes too long.
    pub async fn wait_until<F>(&mut self, mut is_ready: impl FnMut() -> F) -> Result<(), Failure>
    where
        F: Future<Output = bool>,
    {
        let deadline = Instant::now() + START_DEADLINE;
        while !is_ready().await {
            if let Ok(Some(status)) = self.keeper.try_wait() {
                return Err(Failure(format!("the daemon ended before it was ready ({status})")).with_log_of(self));
            }
            if Instant::now() > deadline {
                return Err(Failure("the daemon does not get ready".to_owned()).with_log_of(self));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Ends it, and everything it has started, at once.
    pub fn kill(&mut self) {
        drop(self.lifeline.take());
        let deadline = Instant::now() + Duration::from_secs(5);
        while matches!(self.keeper.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        // With `--kill-child` this takes the whole namespace along; after a clean end it does nothing.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(40)..];
        format!("--- the end of {}\n{}", self.log.display(), tail.join("\n"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}
