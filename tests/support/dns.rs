//! A name server that knows one address for every name (RFC 1035, sections 4.1 and 3.4.1).

use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::UdpSocket;

/// A running name server.
pub struct NameServer {
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl NameServer {
    /// Starts one at an address of this machine, on the port that programs ask. Needs root.
    pub async fn start(address: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind((address, 53)).await.expect("the tests run as root, and the address is free");
        let address = socket.local_addr().expect("bound");
        let serving = tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut question).await {
                if let Some(answer) = answer(&question[..length]) {
                    // A client that has left needs none.
                    let _ = socket.send_to(&answer, client).await;
                }
            }
        });
        Self { address, serving }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Answers a question for an address with 127.0.0.1, and any other with nothing.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let name = question.get(HEADER..)?.iter().position(|&byte| byte == 0)? + HEADER + 1;
    let asked = question.get(HEADER..name + 4)?;
    let is_address = question.get(name..name + 4)? == [0, 1, 0, 1];
    let mut answer = question.get(..2)?.to_vec();
    // A response, authoritative, recursion available; one question, and one answer or none.
    answer.extend([0x85, 0x80, 0, 1, 0, u8::from(is_address), 0, 0, 0, 0]);
    answer.extend(asked);
    if is_address {
        // The name of the question, an address, for a minute.
        answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}
