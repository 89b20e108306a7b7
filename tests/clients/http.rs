//! As much of an HTTP client as the rig needs: one request per connection, over plain HTTP/1.1.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

/// By this the rig's own requests are known in logs.
pub const USER_AGENT: &str = "larder-rig";

/// A complete answer.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names are in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without its transfer encoding.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Sends a request to `address` (`host:port`) and reads the whole answer.
pub async fn send(
    address: &str,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Response> {
    let is_head = method == "HEAD";
    let mut head = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: {USER_AGENT}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut request = format!("{head}Connection: close\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(body);
    let address = address.to_owned();
    tokio::task::spawn_blocking(move || exchange(&address, &request, is_head))
        .await
        .expect("an HTTP exchange does not panic")
}

fn exchange(address: &str, request: &[u8], is_head: bool) -> io::Result<Response> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(Duration::from_secs(30)))?;
    connection.write_all(request)?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    parse(&answer, is_head).ok_or_else(|| {
        let text = String::from_utf8_lossy(&answer);
        io::Error::other(format!("not a complete HTTP/1.1 answer: {text:.300}"))
    })
}

fn parse(answer: &[u8], is_head: bool) -> Option<Response> {
    let end_of_head = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = str::from_utf8(&answer[..end_of_head]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines
        .map(|line| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())))
        .collect::<Option<Vec<_>>>()?;
    let mut response = Response { status, headers, body: Vec::new() };
    if is_head {
        return Some(response);
    }
    let raw = &answer[end_of_head + 4..];
    response.body = if response.header("transfer-encoding").is_some() {
        dechunk(raw)?
    } else {
        match response.header("content-length") {
            Some(length) => raw.get(..length.parse().ok()?)?.to_vec(),
            None => raw.to_vec(),
        }
    };
    Some(response)
}

fn dechunk(mut raw: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end_of_size = raw.windows(2).position(|window| window == b"\r\n")?;
        let size = str::from_utf8(&raw[..end_of_size]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        raw = &raw[end_of_size + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(raw.get(..size)?);
        raw = raw.get(size + 2..)?;
    }
}
