//! Which version of a client there is.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::{Client, Found, SetupError};

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

/// Where dpkg notes what is installed (dpkg(1), "Files").
const DPKG: &str = "/var/lib/dpkg/status";

/// Returns the client's version by the list of installed Debian packages.
pub fn installed(client: Client, found: &dyn Found) -> Result<Option<Version>, SetupError> {
    let packages: &[&str] = match client {
        Client::Docker => &["docker-ce", "docker.io"],
        Client::Containerd => &["containerd.io", "containerd"],
        Client::Podman => &["podman", "skopeo", "buildah"],
        Client::Buildkit | Client::K3s | Client::Rke2 | Client::Kind => return Ok(None),
    };
    let status = found.text(Path::new(DPKG))?.unwrap_or_default();
    Ok(packages.iter().find_map(|package| of_package(&status, package)))
}

fn of_package(status: &str, package: &str) -> Option<Version> {
    let field = |paragraph: &str, name: &str| {
        let line = paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map(str::to_owned)
    };
    let paragraph = status.split("\n\n").find(|paragraph| {
        field(paragraph, "Package").as_deref() == Some(package)
            && field(paragraph, "Status").is_some_and(|status| status.ends_with(" installed"))
    })?;
    field(paragraph, "Version")?.parse().ok()
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
        let status = "Package: docker.io\nStatus: deinstall ok config-files\nVersion: 26.1.5\n\nPackage: docker-ce\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5:29.1.2-1\n";
        assert_eq!(of_package(status, "docker.io"), None);
        assert_eq!(of_package(status, "docker-ce"), Some(Version(29, 1, 2)));
        assert_eq!(of_package(status, "docker"), None);
    }
}
