//! Which version of a client there is.

use std::fmt;
use std::str::FromStr;

use super::Client;

/// The version of a program: major, minor, patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FromStr for Version {
    type Err = String;

    /// Reads the first version in a text: of `containerd --version`, or of a Debian package (`5:29.1.2-1~debian.13`).
    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split(|c: char| c.is_whitespace() || c == ':' || c == ',');
        let version = words.filter_map(|word| Self::of_word(word.trim_start_matches('v'))).next();
        version.ok_or_else(|| "write it as 2.1 or 28.5.2".to_owned())
    }
}

impl Version {
    fn of_word(word: &str) -> Option<Self> {
        let numbers = word.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
        let mut parts = numbers.split('.').map(str::parse::<u32>);
        let (major, minor) = (parts.next()?.ok()?, parts.next()?.ok()?);
        Some(Self(major, minor, parts.next().and_then(Result::ok).unwrap_or(0)))
    }
}

/// What dpkg-query(1) is to show of each package, for [`installed`].
pub const SHOWN: &str = "${db:Status-Status} ${Package} ${Version}\n";

/// Returns the Debian packages that a client comes in, the likeliest first.
pub fn packages(client: Client) -> &'static [&'static str] {
    match client {
        Client::Docker => &["docker-ce", "docker.io"],
        Client::Containerd => &["containerd.io", "containerd"],
        Client::Podman => &["podman", "skopeo", "buildah"],
        Client::Buildkit | Client::K3s | Client::Rke2 | Client::Kind => &[],
    }
}

/// Returns the client's version by what dpkg-query shows of its packages.
pub fn installed(client: Client, shown: &str) -> Option<Version> {
    let of = |package: &str| {
        shown.lines().find_map(|line| {
            let mut words = line.split(' ');
            let is_it = words.next() == Some("installed") && words.next() == Some(package);
            words.next().filter(|_| is_it)?.parse().ok()
        })
    };
    packages(client).iter().find_map(|package| of(package))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_and_packages_write_them() {
        for (text, expected) in [
            ("containerd github.com/containerd/containerd/v2 v2.1.9 0123abc", Version(2, 1, 9)),
            ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", Version(1, 6, 20)),
            ("Docker version 20.10.24+dfsg1, build 5d6db84", Version(20, 10, 24)),
            ("k3s version v1.29.3+k3s1 (8aecc26b)\ngo version go1.21.8", Version(1, 29, 3)),
            ("5:29.1.2-1~debian.13~trixie", Version(29, 1, 2)),
            ("2.2", Version(2, 2, 0)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "latest", "2", "docker"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_removed_package_is_not_installed() {
        let shown = "config-files docker.io 26.1.5\ninstalled docker-ce 5:29.1.2-1\nnot-installed podman \n";
        assert_eq!(installed(Client::Docker, shown), Some(Version(29, 1, 2)));
        assert_eq!(installed(Client::Docker, "config-files docker.io 26.1.5\n"), None);
        assert_eq!(installed(Client::Podman, shown), None);
    }
}
