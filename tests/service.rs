//! Promise: under systemd it says when it is ready, reloads and stops, and takes the sockets that systemd opened. The
//! protocols are spoken here without systemd: sd_notify(3), sd_listen_fds(3).

use std::collections::VecDeque;
use std::time::Duration;

use tokio::net::UnixDatagram;

use crate::support::{Hub, Image, Larder, Options, get, repository_config};

/// What a service manager hears.
struct Manager {
    socket: UnixDatagram,
    heard: VecDeque<String>,
}

impl Manager {
    /// Waits until a line is said.
    async fn hears(&mut self, line: &str) {
        while !self.heard.iter().any(|said| said == line) {
            let mut bytes = [0; 4096];
            let said = tokio::time::timeout(Duration::from_secs(20), self.socket.recv(&mut bytes)).await;
            let count = said.unwrap_or_else(|_| panic!("{line} was not said, but {:?}", self.heard)).expect("heard");
            self.heard.extend(String::from_utf8_lossy(&bytes[..count]).lines().map(str::to_owned));
        }
        self.heard.clear();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_is_told_when_it_is_ready_reloads_and_stops() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("notify");
    let mut manager = Manager { socket: UnixDatagram::bind(&path).expect("bound"), heard: VecDeque::new() };
    let mut larder = Larder::builder().env("NOTIFY_SOCKET", path.to_str().expect("text")).start().await;
    manager.hears("READY=1").await;
    larder.signal("HUP");
    manager.hears("RELOADING=1").await;
    manager.hears("READY=1").await;
    larder.stop().await;
    manager.hears("STOPPING=1").await;
}

/// Opens two sockets as systemd does, and becomes the program: descriptors from 3 on, with their names.
const ACTIVATE: &str = "
import os, socket, sys
sockets = [socket.create_server(('127.0.0.1', 0)) for name in sys.argv[1].split(':')]
for number, listener in enumerate(sockets):
    # Above those that are about to be replaced.
    os.dup2(listener.fileno(), 100 + number)
for number in range(len(sockets)):
    os.dup2(100 + number, 3 + number, inheritable=True)
    os.close(100 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(sockets)), LISTEN_FDNAMES=sys.argv[1])
os.execv(sys.argv[2], sys.argv[2:])
";

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_systemd_opened_are_the_doors() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[1000]);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::builder()
        .config(repository_config("hub", &[&hub]))
        .through(&["/usr/bin/python3", "-c", ACTIVATE, "larder.socket:larder-admin.socket"])
        // Nothing can be opened there.
        .env("LARDER_SERVER__LISTEN", "192.0.2.1:5000")
        .env("LARDER_ADMIN__LISTEN", "127.0.0.1:1")
        .start()
        .await;
    let manifest = get(larder.manifest_url("hub/team/app", "1")).await;
    assert_eq!((manifest.status, &manifest.body[..]), (200, &image.manifest.bytes[..]));
    assert_eq!(get(format!("{}/readyz", larder.admin_url())).await.status, 200);
}
