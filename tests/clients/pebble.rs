//! An ACME server: Debian's `pebble`, with a name server that calls every name this machine.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::PathBuf};

use tempfile::TempDir;

use super::{
    process::{Daemon, program},
    registry::free_port,
};
use crate::support::{Authority, Certificate, https};

/// Where a certificate authority will be, and what it needs; running or not.
pub struct Pebble {
    directory: TempDir,
    authority: Authority,
    own: Certificate,
    ports: [u16; 4],
    running: Vec<Daemon>,
}

/// What decides whether it is convinced and what it gives.
#[derive(Clone, Copy, Debug)]
pub struct Looks {
    /// Where it looks for tls-alpn-01.
    pub tls: SocketAddr,
    /// Where it looks for http-01.
    pub http: SocketAddr,
    /// How long its certificates are good, in seconds.
    pub validity: u64,
    /// Name and key (in base64) of the account that all have to belong to.
    pub external: Option<(&'static str, &'static str)>,
}

impl Looks {
    pub fn at(address: SocketAddr) -> Self {
        Self { tls: address, http: address, validity: 3600 * 24 * 90, external: None }
    }
}

impl Pebble {
    /// Chooses its addresses; nothing runs yet.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("larder-pebble-").tempdir().expect("a temporary directory");
        let authority = Authority::new(directory.path(), "web");
        let own = authority.issue("127.0.0.1");
        Self { directory, authority, own, ports: [(); 4].map(|()| free_port()), running: Vec::new() }
    }

    /// `directory` and `ca_bundle` of `[server.tls.acme]`.
    pub fn config(&self) -> String {
        let bundle = self.authority.file();
        format!("directory = \"{}/dir\"\nca_bundle = \"{}\"\n", self.url(), bundle.display())
    }

    /// A program for `dns_hook`, which writes down how it is called.
    pub fn hook(&self) -> PathBuf {
        let file = self.directory.path().join("hook");
        let text = format!(
            "#!/bin/bash\n\
             echo \"$*\" >>{}\n\
             case $2 in\n\
             present) path=set-txt body=\"{{\\\"host\\\":\\\"$4.\\\",\\\"value\\\":\\\"$5\\\"}}\" ;;\n\
             cleanup) path=clear-txt body=\"{{\\\"host\\\":\\\"$4.\\\"}}\" ;;\n\
             esac\n\
             exec 3<>/dev/tcp/127.0.0.1/{}\n\
             printf 'POST /%s HTTP/1.0\\r\\nContent-Length: %d\\r\\n\\r\\n%s' $path ${{#body}} \"$body\" >&3\n\
             grep -q '200 OK' <&3\n",
            self.calls_file().display(),
            self.ports[3]
        );
        fs::write(&file, text).expect("written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("made executable");
        file
    }

    /// How the hook was called.
    pub fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.calls_file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Starts it; it knows nothing of an earlier life.
    pub async fn start(&mut self, looks: Looks) {
        let [acme, management, names, hook] = self.ports;
        let external = looks.external.map_or_else(String::new, |(name, key)| {
            format!(", \"externalAccountBindingRequired\": true, \"externalAccountMACKeys\": {{\"{name}\": \"{key}\"}}")
        });
        let configuration = format!(
            "{{\"pebble\": {{\"listenAddress\": \"127.0.0.1:{acme}\", \"managementListenAddress\": \"127.0.0.1:{management}\",\
             \"certificate\": \"{}\", \"privateKey\": \"{}\", \"httpPort\": {}, \"tlsPort\": {},\
             \"certificateValidityPeriod\": {}{external}}}}}",
            self.own.certificate.display(),
            self.own.key.display(),
            looks.http.port(),
            looks.tls.port(),
            looks.validity
        );
        let file = self.directory.path().join("pebble.json");
        fs::write(&file, configuration).expect("written");
        let log = |name: &str| self.directory.path().join(name);
        let (names, hook) = (format!("127.0.0.1:{names}"), format!("127.0.0.1:{hook}"));
        let arguments = [
            "-defaultIPv6",
            "",
            "-dns01",
            &names,
            "-management",
            &hook,
            "-http01",
            "",
            "-https01",
            "",
            "-tlsalpn01",
            "",
        ];
        let name_server = Daemon::spawn(&program("pebble-challtestsrv", "pebble"), arguments, &[], &log("names"));
        let mut name_server = name_server.expect("the name server starts");
        let is_open = |address: String| async move { tokio::net::TcpStream::connect(address).await.is_ok() };
        name_server.wait_until(|| is_open(hook.clone())).await.unwrap();
        let arguments = ["-config", file.to_str().expect("temporary paths are UTF-8"), "-dnsserver", &names];
        let acme = Daemon::spawn(&program("pebble", "pebble"), arguments, &[("PEBBLE_VA_NOSLEEP", "1")], &log("acme"));
        let mut acme = acme.expect("the ACME server starts");
        let client = https(&self.authority.file(), None).build().expect("a client");
        let url = format!("{}/dir", self.url());
        acme.wait_until(|| async { client.get(&url).send().await.is_ok() }).await.unwrap();
        self.running = vec![name_server, acme];
    }

    pub fn stop(&mut self) {
        self.running.clear();
    }

    /// A file with the root of the certificates that it gives.
    pub async fn root(&self) -> PathBuf {
        let client = https(&self.authority.file(), None).build().expect("a client");
        let url = format!("https://127.0.0.1:{}/roots/0", self.ports[1]);
        let root = client.get(url).send().await.expect("an answer").text().await.expect("a body");
        let file = self.directory.path().join("root.pem");
        fs::write(&file, root).expect("written");
        file
    }

    fn calls_file(&self) -> PathBuf {
        self.directory.path().join("calls")
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports[0])
    }
}
