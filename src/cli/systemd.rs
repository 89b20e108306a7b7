//! What systemd hands over to a service and wants to know of it: sd_listen_fds(3), sd_notify(3). Without systemd, there
//! are no sockets and nobody to tell.

use std::io;
use std::net::TcpListener;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Listening sockets that systemd opened, each for a door.
#[derive(Debug, Default)]
pub struct Sockets(Vec<(&'static str, TcpListener)>);

impl Sockets {
    /// Takes the sockets of the environment. To be called once, before there is another thread.
    pub fn take_all() -> io::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut handed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for number in 0..handed.len() {
            let door = door_of(names.next().unwrap_or_default());
            if let Some(listener) = handed.take_tcp_listener(number)? {
                listener.set_nonblocking(true)?;
                sockets.push((door, listener));
            }
        }
        Ok(Self(sockets))
    }

    /// Takes the sockets for a door: `registry`, `proxy` or `admin`.
    pub fn take(&mut self, door: &str) -> Vec<TcpListener> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(|(of, _)| *of == door);
        self.0 = left;
        taken.into_iter().map(|(_, listener)| listener).collect()
    }
}

/// Returns the door that a socket is for, by its `FileDescriptorName=`, which is the name of its unit by default.
fn door_of(name: &str) -> &'static str {
    match name.trim_end_matches(".socket").trim_start_matches("larder-") {
        "proxy" => "proxy",
        "admin" => "admin",
        _ => "registry",
    }
}

/// What a service manager is told.
#[derive(Clone, Copy, Debug)]
pub enum State {
    /// All doors are open, or the configuration was read again.
    Ready,
    /// The configuration is being read again.
    Reloading,
    Stopping,
}

/// Tells the service manager, if there is one. Blocks.
pub fn tell(state: State) {
    let told = match state {
        State::Ready => sd_notify::notify(&[NotifyState::Ready]),
        State::Reloading => {
            NotifyState::monotonic_usec_now().and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now]))
        }
        State::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
    };
    if let Err(error) = told {
        tracing::warn!(%error, ?state, "the service manager (NOTIFY_SOCKET) cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_for_the_door_of_its_name_and_else_for_the_registrys() {
        for (name, door) in [
            ("", "registry"),
            ("larder.socket", "registry"),
            ("registry", "registry"),
            ("larder-proxy.socket", "proxy"),
            ("proxy", "proxy"),
            ("admin", "admin"),
        ] {
            assert_eq!(door_of(name), door, "{name}");
        }
    }
}
