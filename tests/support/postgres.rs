//! A PostgreSQL server of a test's own, and PgBouncer before it in transaction mode: Debian's, in a directory of their
//! own, on Unix sockets, as an unprivileged user. Unit tests use this file, too.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// `nobody`: neither program runs as root.
const USER: u32 = 65_534;
/// How long the server may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Runs a program until standard input ends, also because the test's process was killed. Then the directory goes,
/// unless the last word was to keep it. The program is continued first, in case it was stopped.
const RUN: &str = r#"dir=$1; signal=$2; shift 2
"$@" </dev/null >>"$dir/log" 2>&1 & program=$!
echo $program
read -r word
kill -CONT $program $(cat /proc/$program/task/$program/children 2>/dev/null) 2>/dev/null
kill -$signal $program 2>/dev/null
wait $program
[ "$word" = keep ] || rm -rf "$dir""#;

/// A running server.
pub struct Postgres {
    /// The folder of the server's socket and data.
    dir: PathBuf,
    /// The folder of PgBouncer's socket.
    bouncer_dir: PathBuf,
    /// It is in the name of the socket, too.
    port: AtomicU16,
    server: Mutex<Option<Running>>,
    bouncer: Mutex<Option<Running>>,
}

struct Running {
    /// The shell; its standard input keeps the program.
    shell: Child,
    program: u32,
}

impl Running {
    fn start(dir: &Path, signal: &str, program: &[&str]) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", RUN, "sh"]).arg(dir).arg(signal).args(program);
        as_user(&mut shell).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = shell.spawn().expect("a shell");
        let mut line = String::new();
        let out = shell.stdout.take().expect("it is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("its number");
        Self { program: line.trim().parse().expect("a number"), shell }
    }

    /// Sends a signal to the program and to the processes that it has started.
    fn signal(&self, signal: &str) {
        let children = format!("/proc/{0}/task/{0}/children", self.program);
        let children = fs::read_to_string(children).unwrap_or_default();
        let all = children.split_whitespace().map(str::to_owned).chain([self.program.to_string()]);
        let _ = Command::new("kill").arg(format!("-{signal}")).args(all).stderr(Stdio::null()).status();
    }

    /// Ends the program. `keep`: whether its directory stays.
    fn end(mut self, keep: bool) {
        if let Some(mut input) = self.shell.stdin.take()
            && keep
        {
            let _ = input.write_all(b"keep\n");
        }
        let _ = self.shell.wait();
    }
}

/// Lets a command run as the user, if this is root.
fn as_user(command: &mut Command) -> &mut Command {
    let is_root = fs::metadata("/proc/self").map(|of| std::os::unix::fs::MetadataExt::uid(&of) == 0).unwrap_or(false);
    if is_root { command.uid(USER).gid(USER).current_dir("/") } else { command.current_dir("/") }
}

/// Makes a directory that belongs to the user.
fn folder() -> PathBuf {
    let dir = tempfile::Builder::new().prefix("larder-pg-").tempdir().expect("a directory").keep();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).expect("permitted");
    let _ = chown(&dir, Some(USER), Some(USER));
    dir
}

/// Returns a program of the server, which Debian keeps in a folder for each version.
fn program(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").map(|all| all.flatten().map(|entry| entry.path()).collect());
    let mut versions: Vec<_> = versions.unwrap_or_default();
    versions.sort();
    let found = versions.iter().rev().map(|version| version.join("bin").join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("no {name}: install the packages of tests/clients/packages.txt, as ./test does"))
}

impl Postgres {
    /// Makes a server and starts it, and PgBouncer before it. The user `larder` has the password `secret`, which is asked
    /// for only of the user `stranger`.
    pub fn start() -> Self {
        let (dir, bouncer_dir) = (folder(), folder());
        let data = dir.join("data");
        let mut initdb = Command::new(program("initdb"));
        // Neither this order of letters nor that of the machine is that of bytes.
        let order = ["--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US", "--encoding=UTF8"];
        initdb.args(order).args(["-U", "larder", "--auth=trust", "--no-sync", "-D"]).arg(&data);
        let made = as_user(&mut initdb).stdin(Stdio::null()).output().expect("initdb");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let access = "local all stranger scram-sha-256\nlocal all all trust\nhost all all 127.0.0.1/32 trust\n";
        write(&data.join("pg_hba.conf"), access);
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nmax_connections = 300\n\
             deadlock_timeout = '100ms'\nshared_buffers = '32MB'\nmin_wal_size = '32MB'\n",
            dir.display()
        );
        let mut file = fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).expect("settings");
        file.write_all(settings.as_bytes()).expect("written");
        let ini = format!(
            "[databases]\n* = host={} port=5432\n[pgbouncer]\npool_mode = transaction\nauth_type = trust\n\
             auth_file = {1}/users\nunix_socket_dir = {1}\nlisten_port = 5432\nlisten_addr =\n\
             default_pool_size = 4\nserver_login_retry = 1\nlogfile = {1}/pgbouncer.log\n",
            dir.display(),
            bouncer_dir.display()
        );
        write(&bouncer_dir.join("pgbouncer.ini"), &ini);
        write(&bouncer_dir.join("users"), "\"larder\" \"\"\n");
        let postgres =
            Self { dir, bouncer_dir, port: AtomicU16::new(5432), server: Mutex::default(), bouncer: Mutex::default() };
        postgres.restart();
        let ini = postgres.bouncer_dir.join("pgbouncer.ini");
        let bouncer = ["/usr/sbin/pgbouncer", ini.to_str().expect("text")];
        assert!(Path::new(bouncer[0]).exists(), "no pgbouncer: install the packages of tests/clients/packages.txt");
        *lock(&postgres.bouncer) = Some(Running::start(&postgres.bouncer_dir, "TERM", &bouncer));
        postgres.wait(&postgres.bouncer_dir);
        postgres
    }

    /// Starts the server again after [`Self::kill`].
    pub fn restart(&self) {
        let (server, data) = (program("postgres"), self.dir.join("data"));
        let command = [server.to_str().expect("text"), "-D", data.to_str().expect("text")];
        *lock(&self.server) = Some(Running::start(&self.dir, "QUIT", &command));
        self.wait(&self.dir);
    }

    fn wait(&self, socket: &Path) {
        let begun = Instant::now();
        let mut ready = Command::new(program("pg_isready"));
        let port = if socket == self.dir { self.port.load(Ordering::Relaxed) } else { 5432 };
        ready.arg("-q").arg("-h").arg(socket).args(["-U", "larder", "-d", "postgres", "-p", &port.to_string()]);
        while !ready.status().is_ok_and(|status| status.success()) {
            let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(begun.elapsed() < START, "the server does not start: {log}");
        }
    }

    /// Returns the URL of a database, as the configuration has it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres:///{database}?user=larder&host={}", self.dir.display())
    }

    /// The same, by way of PgBouncer.
    pub fn bouncer_url(&self, database: &str) -> String {
        format!("postgres:///{database}?user=larder&host={}", self.bouncer_dir.display())
    }

    /// Runs SQL, and returns what it prints: a line for each row.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        let mut psql = Command::new(program("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "larder", "-d", database, "-c", sql]);
        psql.args(["-p", &self.port.load(Ordering::Relaxed).to_string()]);
        let done = psql.arg("-h").arg(&self.dir).stdin(Stdio::null()).output().expect("psql");
        assert!(done.status.success(), "{sql}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// Returns what the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).expect("a log")
    }

    /// Makes an empty database.
    pub fn create(&self, database: &str) {
        self.sql("postgres", &format!("CREATE DATABASE {database}"));
    }

    /// Lets the server be reached by TLS, too, at 127.0.0.1. Returns the port.
    pub fn listen_with_tls(&self, certificate: &str, key: &str) -> u16 {
        let data = self.dir.join("data");
        write(&data.join("server.crt"), certificate);
        write(&data.join("server.key"), key);
        fs::set_permissions(data.join("server.key"), fs::Permissions::from_mode(0o600)).expect("permitted");
        // Nobody else is given this port so soon.
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let port = free.expect("a port").port();
        let mut file = fs::OpenOptions::new().append(true).open(data.join("postgresql.conf")).expect("settings");
        let settings = format!("listen_addresses = '127.0.0.1'\nport = {port}\nssl = on\n");
        file.write_all(settings.as_bytes()).expect("written");
        self.kill();
        self.port.store(port, Ordering::Relaxed);
        self.restart();
        port
    }

    /// Stops the server and all its processes: it takes connections, and answers nothing.
    pub fn stop(&self) {
        lock(&self.server).as_ref().expect("it runs").signal("STOP");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        lock(&self.server).as_ref().expect("it runs").signal("CONT");
    }

    /// Kills the server.
    pub fn kill(&self) {
        if let Some(running) = lock(&self.server).take() {
            running.signal("QUIT");
            running.end(true);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        for running in [&self.bouncer, &self.server] {
            if let Some(running) = lock(running).take() {
                running.end(false);
            }
        }
        // As after [`Self::kill`].
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn write(file: &Path, text: &str) {
    fs::write(file, text).expect("written");
    let _ = chown(file, Some(USER), Some(USER));
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
