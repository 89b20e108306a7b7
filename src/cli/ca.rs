//! `larder ca`: the certificate that clients of the proxy door have to trust.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use super::error::CommandError;
use super::output::{complain, print, print_json};
use crate::ca::Ca as Authority;
use crate::config::{self, Config, ProxyDoor};

#[derive(Debug, clap::Args)]
pub struct Ca {
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// The output as JSON.
#[derive(Serialize)]
struct Said<'a> {
    file: PathBuf,
    name: &'a str,
    sha256: String,
    not_after: String,
    pem: &'a str,
}

/// Runs `larder ca`.
pub fn run(files: &[PathBuf], arguments: &Ca) -> Result<(), CommandError> {
    let config = Config::load(files, config::environment()).map_err(|error| CommandError::Usage(error.to_string()))?;
    let Some(door) = &config.proxy else {
        let message = "the proxy door is off, and clients of the registry door need no such certificate; add [proxy] to the configuration to open it";
        return Err(CommandError::Usage(message.to_owned()));
    };
    let ca = Authority::open(&door.ca_dir).map_err(|error| CommandError::Failed(error.to_string()))?;
    if arguments.json {
        let said = Said {
            file: absolute(&ca),
            name: ca.certificate().name(),
            sha256: ca.sha256(),
            not_after: date(ca.certificate().until),
            pem: ca.pem(),
        };
        return print_json(&said);
    }
    // Standard output gets only the certificate, so that it can be redirected to where it is needed.
    print(ca.pem())?;
    complain(&help(&ca, door));
    Ok(())
}

fn absolute(ca: &Authority) -> PathBuf {
    std::path::absolute(ca.file()).unwrap_or_else(|_| ca.file().to_owned())
}

fn date(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

fn help(ca: &Authority, door: &ProxyDoor) -> String {
    let address = door.listen.first().copied().unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 17080)));
    let proxy = match address.ip().is_unspecified() {
        true => format!("http://THIS-HOST:{}", address.port()),
        false => format!("http://{address}"),
    };
    let (file, name, until) = (absolute(ca), ca.certificate().name(), date(ca.certificate().until));
    let (file, sha256) = (file.display(), ca.sha256());
    format!(
        r#"
This is {file}: "{name}", good until {until}
SHA-256 {sha256}

Clients that pull through {proxy} have to trust it. Never hand out ca.key beside it.

On the whole machine:
  Debian, Ubuntu   cp {file} /usr/local/share/ca-certificates/larder.crt && update-ca-certificates
  RHEL, Fedora     cp {file} /etc/pki/ca-trust/source/anchors/larder.crt && update-ca-trust
  Alpine           cp {file} /usr/local/share/ca-certificates/larder.crt && update-ca-certificates

Docker: as above, or for one registry only: cp {file} /etc/docker/certs.d/REGISTRY/ca.crt
  With the classic store Docker Hub is asked with the system's authorities alone. With the containerd store (Docker 28
  and later) it is docker.io/, and `ca` in /etc/docker/certs.d/_default/hosts.toml is for all registries.
  Then in /etc/docker/daemon.json, and restart it (the variables of your own shell do not reach dockerd):
  {{ "proxies": {{ "http-proxy": "{proxy}", "https-proxy": "{proxy}", "no-proxy": "localhost" }} }}
  Before Docker 23:  systemctl edit docker:  [Service]
                                             Environment=HTTP_PROXY={proxy} HTTPS_PROXY={proxy}

containerd: as above for the whole machine, or `ca` in /etc/containerd/certs.d/REGISTRY/hosts.toml
  systemctl edit containerd:  [Service]
                              Environment=HTTP_PROXY={proxy} HTTPS_PROXY={proxy}

BuildKit and programs in Go (crane, cosign, oras, helm, apptainer): as above. They read one file of authorities, the
  system's or SSL_CERT_FILE=FILE: with that, FILE has to hold the others too (cat the two)

Podman, Skopeo, Buildah: as above, or cp {file} /etc/containers/certs.d/REGISTRY/larder.crt
  HTTPS_PROXY={proxy} HTTP_PROXY={proxy} podman pull …

curl    HTTPS_PROXY={proxy} curl --cacert {file} …
npm     npm config set proxy {proxy} && npm config set https-proxy {proxy} && npm config set cafile {file}
pip     PIP_PROXY={proxy} PIP_CERT={file} pip install …
"#
    )
}
