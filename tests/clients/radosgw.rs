//! A real S3 server: the object gateway of Ceph, Debian's `radosgw`, with one monitor and one storage daemon that keeps
//! everything in memory.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{
    http,
    process::{Daemon, Failure, Invocation, program},
    registry::free_port,
};

/// The credentials of its only user.
const ACCESS_KEY: &str = "larder";
const SECRET_KEY: &str = "geheimer-schluessel";

/// What curl signs for a request without a body.
const NO_BODY: &str = "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The number of its only storage daemon.
const OSD: &str = "0f7e4c3a-7c0e-4f64-9b1e-5b1f0a1b2c3d";
/// How often that is started.
const TRIES: u32 = 8;

/// A running gateway with a bucket `larder`; dropping it ends everything and removes it.
pub struct Radosgw {
    port: u16,
    /// In the order in which they end: the gateway first.
    daemons: Vec<Daemon>,
    directory: TempDir,
}

impl Radosgw {
    /// Starts monitor, storage and gateway, and makes a bucket.
    pub async fn start() -> Self {
        let directory = tempfile::Builder::new().prefix("larder-ceph-").tempdir().expect("a temporary directory");
        let mut gateway = Self { port: free_port(), daemons: Vec::new(), directory };
        gateway.try_start().await.unwrap();
        gateway
    }

    /// `[storage.s3]` for it, with more lines.
    pub fn config(&self, lines: &str) -> String {
        let secret = self.root().join("secret");
        fs::write(&secret, SECRET_KEY).expect("written");
        format!(
            "[storage.s3]\nbucket = \"larder\"\nendpoint = \"http://127.0.0.1:{}\"\naccess_key_id = \"{ACCESS_KEY}\"\n\
             secret_access_key_file = \"{}\"\n{lines}\n",
            self.port,
            secret.display()
        )
    }

    /// The keys in the bucket, also those of parts of unfinished uploads, as Ceph's own tool lists them. Without those of
    /// probes, which may be under way.
    pub async fn keys(&self) -> Vec<String> {
        let listed = self.tool("radosgw-admin", &["bucket", "list", "--bucket", "larder"]).await.unwrap();
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
        let names = listed.as_array().expect("a list").iter().map(|entry| entry["name"].as_str().expect("a name"));
        names.filter(|name| !name.contains("/probe.")).map(str::to_owned).collect()
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    fn configuration(&self) -> PathBuf {
        self.root().join("ceph.conf")
    }

    async fn try_start(&mut self) -> Result<(), Failure> {
        let (monitor, fsid) = (free_port(), "5ad7a9c6-3cf5-4a0c-8a7c-0a3f4f0b9d5e");
        let root = self.root().display().to_string();
        fs::create_dir_all(self.root().join("mon")).expect("made");
        // One copy of everything, no logins between its own daemons, nothing outside the directory.
        let text = format!(
            "[global]\nfsid = {fsid}\nmon host = v1:127.0.0.1:{monitor}\nms bind msgr2 = false\n\
             public addr = 127.0.0.1\nauth cluster required = none\nauth service required = none\n\
             auth client required = none\nosd pool default size = 1\nosd pool default min size = 1\n\
             osd pool default pg num = 1\nosd pool default pgp num = 1\nosd pool default pg autoscale mode = off\n\
             mon allow pool size one = true\nmon max pg per osd = 1000\nmon data avail crit = 1\n\
             osd crush chooseleaf type = 0\nosd objectstore = memstore\nmemstore device bytes = 2147483648\n\
             run dir = {root}\nadmin socket =\nkeyring = /dev/null\nmon data = {root}/mon\nosd data = {root}/osd\n\
             rgw data = {root}/rgw\nrgw frontends = beast endpoint=127.0.0.1:{}\n",
            self.port
        );
        fs::write(self.configuration(), text).expect("written");
        let map = format!("{root}/monmap");
        let address = format!("[v1:127.0.0.1:{monitor}]");
        self.tool("monmaptool", &["--create", "--fsid", fsid, "--addv", "a", &address, &map]).await?;
        self.tool("ceph-mon", &["--mkfs", "-i", "a", "--monmap", &map]).await?;
        self.daemon("ceph-mon", "ceph-mon", &["-i", "a", "-f"])?;
        self.tool("ceph", &["osd", "new", OSD]).await?;
        let mut tries = 1;
        while let Err(error) = self.start_storage().await {
            if tries == TRIES {
                return Err(error);
            }
            tries += 1;
        }
        let user = ["user", "create", "--uid", "larder", "--display-name", "larder"];
        let keys = ["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY];
        self.tool("radosgw-admin", &[&user[..], &keys[..]].concat()).await?;
        self.daemon("radosgw", "radosgw", &["-n", "client.rgw.a", "-f"])?;
        let address = format!("127.0.0.1:{}", self.port);
        let gateway = self.daemons.first_mut().expect("it was started");
        gateway.wait_until(|| async { http::send(&address, "GET", "/", &[], b"").await.is_ok() }).await?;
        self.make_bucket().await
    }

    /// Starts the storage daemon, and waits until it is up. Debian's (16.2) now and then ends while it starts: an
    /// exception in a thread, or "wrong fsid".
    async fn start_storage(&mut self) -> Result<(), Failure> {
        let data = self.root().join("osd");
        let _ = fs::remove_dir_all(&data);
        fs::create_dir_all(&data).expect("made");
        self.tool("ceph-osd", &["-i", "0", "--mkfs", "--osd-uuid", OSD]).await?;
        self.daemon("ceph-osd", "ceph-osd", &["-i", "0", "-f"])?;
        let mut storage = self.daemons.remove(0);
        let is_up = async || self.tool("ceph", &["osd", "stat"]).await.is_ok_and(|stat| stat.contains("1 up"));
        storage.wait_until(is_up).await?;
        self.daemons.insert(0, storage);
        Ok(())
    }

    async fn make_bucket(&self) -> Result<(), Failure> {
        let (user, url) = (format!("{ACCESS_KEY}:{SECRET_KEY}"), format!("http://127.0.0.1:{}/larder", self.port));
        let arguments = ["-sSf", "--aws-sigv4", "aws:amz:us-east-1:s3", "-u", &user, "-H", NO_BODY, "-X", "PUT", &url];
        Invocation::new(&program("curl", "curl"), arguments).run().await.map(drop)
    }

    /// Runs one of Ceph's programs to its end.
    async fn tool(&self, name: &str, arguments: &[&str]) -> Result<String, Failure> {
        let binary = program(name, "radosgw");
        let invocation = Invocation::new(&binary, arguments.iter().copied());
        invocation.env("CEPH_CONF", self.configuration()).run().await
    }

    fn daemon(&mut self, name: &str, package: &str, arguments: &[&str]) -> Result<(), Failure> {
        let configuration = self.configuration();
        let environment = [("CEPH_CONF", configuration.to_str().expect("temporary paths are UTF-8"))];
        let log = self.root().join(format!("{name}.log"));
        let daemon = Daemon::spawn(&program(name, package), arguments.iter().copied(), &environment, &log);
        let daemon = daemon.map_err(|error| Failure::new(format!("{name} does not start: {error}")))?;
        self.daemons.insert(0, daemon);
        Ok(())
    }
}
