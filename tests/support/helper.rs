//! A credential helper: a program that gives a password.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Writes `docker-credential-test`, which gives this password of the user `me` and notes that it ran in the file `runs`.
pub fn credential_helper(dir: &Path, password: &str) -> PathBuf {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let answer = write("answer", &format!(r#"{{"ServerURL":"x","Username":"me","Secret":"{password}"}}"#));
    let script =
        format!("#!/bin/sh\nread server\necho \"$1 $server\" >> {0}/runs\ncat {1}\n", dir.display(), answer.display());
    let program = write("docker-credential-test", &script);
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("executable");
    program
}

/// `PATH` with the helper's directory before all others.
pub fn path_with(dir: &Path) -> String {
    format!("{}:{}", dir.display(), std::env::var("PATH").expect("a PATH"))
}
