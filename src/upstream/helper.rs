//! Credentials from a program that speaks the docker-credential-helpers protocol: Larder runs the program with `get`;
//! the program reads the server's name from standard input and writes `{"Username", "Secret"}` to standard output.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::clock::{self, Instant};
use crate::config::{self, Login, Secret};
use crate::failure::{Failure, FailureKind};
use crate::program::{self, Reads};

/// How long one run of the program may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long credentials are used that do not state when they expire.
const USUAL_LIFE: Duration = Duration::from_secs(15 * 60);
/// How long credentials are used at most.
const LONGEST_LIFE: Duration = Duration::from_secs(12 * 3600);
/// How long a failure is repeated to further requests before the program is run again.
const FAILURE_LIFE: Duration = Duration::from_secs(5);
/// How long the program is not run again after a refusal that may have other reasons than the login.
const DOUBT_LIFE: Duration = Duration::from_secs(60);
/// The text that the protocol's library prints when there are no credentials for a server.
const NOT_FOUND: &str = "credentials not found";

/// A credential helper and its last answer.
pub struct Helper {
    config: config::Helper,
    said: Mutex<Option<Said>>,
    /// When a login was last doubted: a request with it was refused, perhaps for another reason.
    doubted: Mutex<Option<Instant>>,
}

struct Said {
    login: Result<Option<Arc<Login>>, Failure>,
    until: Instant,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    secret: Secret,
}

impl Helper {
    /// Makes a helper; the program is not run yet.
    pub fn new(config: config::Helper) -> Self {
        Self { config, said: Mutex::new(None), doubted: Mutex::new(None) }
    }

    /// Returns the helper's credentials; `None` if it has none for the server. The program runs at most once at a time.
    pub async fn login(&self) -> Result<Option<Arc<Login>>, Failure> {
        let mut said = self.said.lock().await;
        if let Some(said) = said.as_ref().filter(|said| Instant::now() < said.until) {
            return said.login.clone();
        }
        let run = self.run().await;
        let life = match &run {
            Ok(Some(login)) => life(&login.password, clock::wall()),
            Ok(None) => USUAL_LIFE,
            Err(_) => FAILURE_LIFE,
        };
        let login = run.map(|login| login.map(Arc::new));
        *said = Some(Said { login: login.clone(), until: Instant::now() + life });
        login
    }

    /// Notes that a request with `login` was refused, perhaps because the login expired early: ECR answers 403 then
    /// (rules_img#715). Runs the program again, but not more often than `DOUBT_LIFE` allows, and returns whether it
    /// gives another login.
    pub async fn doubts(&self, login: &Arc<Login>) -> bool {
        {
            let mut doubted = self.doubted.lock().await;
            if doubted.is_some_and(|at| at.elapsed() < DOUBT_LIFE) {
                return false;
            }
            *doubted = Some(Instant::now());
        }
        self.refused(login).await;
        self.login().await.ok().flatten().is_some_and(|new| new != *login)
    }

    /// Notes that the upstream refused `login`: the login is not used again, and the next request runs the program.
    pub async fn refused(&self, login: &Login) {
        let mut said = self.said.lock().await;
        if said.as_ref().is_some_and(|said| matches!(&said.login, Ok(Some(kept)) if **kept == *login)) {
            *said = None;
        }
    }

    async fn run(&self) -> Result<Option<Login>, Failure> {
        let name = self.config.program.display();
        let failed = |why: &dyn std::fmt::Display| {
            Failure::new(FailureKind::Unavailable, format!("credential helper {name}: {why}"))
        };
        let mut command = Command::new(&self.config.program);
        command.arg("get");
        let ran = program::run(command, self.config.server.as_bytes(), Reads::Output, PATIENCE).await;
        let ran = ran.map_err(|error| failed(&error))?;
        if !ran.is_success {
            let said = ran.text();
            if said.contains(NOT_FOUND) {
                tracing::info!(program = %name, server = self.config.server, "the credential helper has nothing for this server");
                return Ok(None);
            }
            // A failing program may print anything. The text goes to the log, unless it looks like an answer, which
            // holds a secret.
            if !said.contains(['{', '"']) {
                tracing::warn!(program = %name, said, "the credential helper failed");
            }
            return Err(failed(&"it failed; the log may say why"));
        }
        let answer: Answer =
            serde_json::from_slice(&ran.said).map_err(|_| failed(&"its answer is not what the protocol says"))?;
        if answer.secret.is_empty() {
            return Ok(None);
        }
        Ok(Some(Login::new(answer.username, answer.secret)))
    }
}

/// Returns how long a secret may be used: a little less than the lifetime that it states, where it is a JWT or a
/// password of Amazon ECR.
fn life(secret: &Secret, now: SystemTime) -> Duration {
    let Some(expires) = expiry(secret.reveal()) else {
        return USUAL_LIFE;
    };
    let left = (SystemTime::UNIX_EPOCH + Duration::from_secs(expires)).duration_since(now).unwrap_or_default();
    let early = (left / 10).min(Duration::from_secs(300));
    (left - early).min(LONGEST_LIFE)
}

/// Returns when a secret expires, in seconds since 1970, at most a hundred centuries.
fn expiry(secret: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: Option<u64>,
        expiration: Option<u64>,
    }
    let read = |json: Vec<u8>| serde_json::from_slice::<Claims>(&json).ok();
    let jwt = || {
        let payload = secret.split('.').nth(1)?;
        read(BASE64_URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?)?.exp
    };
    let ecr = || read(BASE64_STANDARD.decode(secret).ok()?)?.expiration;
    jwt().or_else(ecr).map(|seconds| seconds.min(316_000_000_000))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn helper(script: &str) -> (tempfile::TempDir, Helper) {
        let dir = tempfile::tempdir().expect("a directory");
        let program = dir.path().join("docker-credential-test");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("executable");
        let helper = Helper::new(config::Helper { program, server: "registry.example".to_owned() });
        (dir, helper)
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_server_and_not_for_each_request() {
        let script =
            r#"cd "$(dirname "$0")"; echo x >> runs; read server; printf '{"Username":"u-%s","Secret":"s"}' "$server""#;
        let (dir, helper) = helper(script);
        for _ in 0..3 {
            let login = helper.login().await.expect("it answers").expect("a login");
            assert_eq!((login.username.as_str(), login.password.reveal()), ("u-registry.example", "s"));
        }
        let runs = || std::fs::read_to_string(dir.path().join("runs")).expect("it ran").lines().count();
        assert_eq!(runs(), 1);
        helper.refused(&Login::new("other", Secret::new("s"))).await;
        helper.login().await.expect("it answers");
        assert_eq!(runs(), 1, "another login was refused");
        helper.refused(&Login::new("u-registry.example", Secret::new("s"))).await;
        helper.login().await.expect("it answers");
        assert_eq!(runs(), 2);
    }

    #[tokio::test]
    async fn a_helper_that_fails_says_why_and_one_that_knows_nothing_is_anonymous() {
        let (_dir, none) = helper("echo 'credentials not found in native keychain'; exit 1");
        assert_eq!(none.login().await.expect("no failure"), None);
        let (_dir, broken) = helper("echo 'no session'; exit 1");
        assert!(broken.login().await.expect_err("a failure").message().ends_with(": it failed; the log may say why"));
        let (_dir, torn) = helper("echo '{\"Secret\":\"geheim\"}'; exit 1");
        assert!(!torn.login().await.expect_err("a failure").message().contains("geheim"));
        let (_dir, strange) = helper("echo geheim");
        assert!(!strange.login().await.expect_err("a failure").message().contains("geheim"));
        let (_dir, endless) = helper("cat /dev/zero");
        assert!(endless.login().await.is_err());
    }

    #[test]
    fn a_secret_is_not_used_past_its_own_end() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let jwt = |claims: &str| Secret::new(format!("h.{}.s", BASE64_URL_SAFE_NO_PAD.encode(claims)));
        let ecr = |claims: &str| Secret::new(BASE64_STANDARD.encode(claims));
        assert_eq!(life(&Secret::new("opaque"), now), USUAL_LIFE);
        assert_eq!(life(&jwt(r#"{"exp":1001000}"#), now), Duration::from_secs(900));
        assert_eq!(life(&jwt(r#"{"exp":999999}"#), now), Duration::ZERO);
        assert_eq!(life(&ecr(r#"{"payload":"x","expiration":1043200}"#), now), Duration::from_secs(43_200 - 300));
        assert_eq!(life(&jwt(r#"{"exp":18446744073709551615}"#), now), LONGEST_LIFE);
        assert_eq!(life(&jwt(r#"{"exp":-1}"#), now), USUAL_LIFE);
    }
}
