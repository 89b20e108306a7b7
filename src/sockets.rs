//! Listening sockets.

use std::io;
use std::net::SocketAddr;

use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted; the kernel allows no more than `net.core.somaxconn`.
const BACKLOG: u32 = 1024;

/// Opens a listening socket at `address`, one of a door's addresses `all`. An IPv6 socket takes IPv4 connections, too,
/// unless the door has an IPv4 address with the same port: only then can both be open.
pub fn listen(address: SocketAddr, all: &[SocketAddr]) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restart must not wait for the end of earlier connections.
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        let is_shared = all.iter().any(|other| other.is_ipv4() && other.port() == address.port());
        sockopt::set_ipv6_v6only(&socket, is_shared)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Returns what to do about an address at which nothing can listen, or nothing where the reason says it all.
pub fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another program listens there, perhaps another Larder: stop it or set another port"
        }
        io::ErrorKind::AddrNotAvailable => {
            "; no network interface of this machine has this address; 0.0.0.0 and [::] stand for all that there are"
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 are for root and for programs with CAP_NET_BIND_SERVICE: set a higher port"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel refuses a second wildcard socket of one port, unless the one for IPv6 is for IPv6 alone (ipv6(7)).
    #[tokio::test]
    async fn one_port_can_be_open_for_ipv4_and_ipv6() {
        // A port that is free for IPv4 may be taken for IPv6; so there is more than one try.
        let both = (0..50).find_map(|_| {
            let four = listen("0.0.0.0:0".parse().ok()?, &[]).ok()?;
            let port = four.local_addr().ok()?.port();
            let all = [SocketAddr::from(([0; 4], port)), SocketAddr::from(([0; 16], port))];
            Some((listen(all[1], &all).ok()?, four))
        });
        let (six, four) = both.expect("both are open");
        assert_eq!(six.local_addr().expect("bound").port(), four.local_addr().expect("bound").port());
    }

    #[tokio::test]
    async fn an_ipv6_address_alone_takes_ipv4_too() {
        let address = "[::]:0".parse().expect("an address");
        let six = listen(address, &[address]).expect("open");
        assert!(!sockopt::ipv6_v6only(&six).expect("an option"));
    }
}
