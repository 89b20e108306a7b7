//! A forward proxy that remembers what went through it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A proxy for absolute-form requests and CONNECT; every name leads to `target`.
pub struct ForwardProxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl ForwardProxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("an address");
        let address = listener.local_addr().expect("an address");
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, target, seen.clone()));
            }
        });
        Self { address, heads, serving }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The heads of all first requests of connections so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("not poisoned").clone()
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(mut client: TcpStream, target: SocketAddr, heads: Arc<Mutex<Vec<String>>>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    heads.lock().expect("not poisoned").push(text.clone());
    let mut upstream = TcpStream::connect(target).await?;
    if text.starts_with("CONNECT ") {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        // In origin form, for one request: the next one comes on another connection.
        let (line, rest) = text.split_once("\r\n").unwrap_or_default();
        let mut words = line.split(' ');
        let (method, url) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = url.splitn(4, '/').nth(3).unwrap_or_default();
        // What is for the proxy goes no further (RFC 9110, section 11.7.2).
        let is_own = |line: &&str| line.to_ascii_lowercase().starts_with("proxy-authorization:");
        let rest: Vec<_> = rest.split("\r\n").filter(|line| !is_own(line)).collect();
        let head = format!("{method} /{path} HTTP/1.1\r\nconnection: close\r\n{}", rest.join("\r\n"));
        upstream.write_all(head.as_bytes()).await?;
    }
    tokio::io::copy_bidirectional(&mut client, &mut upstream).await.map(drop)
}
