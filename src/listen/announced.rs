//! The PROXY protocol, versions 1 and 2: a proxy in front that does not read what it carries announces its client in the
//! first bytes of a connection (<https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use proxy_header::{ParseConfig, ProxyHeader};
use tokio::io::{AsyncRead, AsyncReadExt};

/// How long the header may take: a proxy sends it at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// The first bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1, with its end.
const LONGEST_LINE: usize = 107;
/// Most bytes behind the fixed part of version 2: addresses take 36, and certificates of clients some more.
const LONGEST: u16 = 4096;

/// Reads the header, and nothing behind it. Returns the client's address; `None` if the proxy asks for itself, as for a
/// health check.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    tokio::time::timeout(PATIENCE, read_header(stream)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

async fn read_header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut bytes = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut bytes).await?;
    if bytes == SIGNATURE {
        let mut fixed = [0; 4];
        stream.read_exact(&mut fixed).await?;
        let length = u16::from_be_bytes([fixed[2], fixed[3]]);
        if length > LONGEST {
            return Err(wrong("its header is too long"));
        }
        bytes.extend(fixed);
        let at = bytes.len();
        bytes.resize(at + usize::from(length), 0);
        stream.read_exact(&mut bytes[at..]).await?;
    } else if bytes.starts_with(b"PROXY ") {
        while !bytes.ends_with(b"\r\n") {
            if bytes.len() == LONGEST_LINE {
                return Err(wrong("its line is too long"));
            }
            bytes.push(stream.read_u8().await?);
        }
    } else {
        return Err(wrong("it does not begin with a header of the PROXY protocol"));
    }
    let (header, _) = ProxyHeader::parse(&bytes, ParseConfig::default()).map_err(|error| wrong(&error.to_string()))?;
    Ok(header.proxied_address().map(|addresses| addresses.source))
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the address and what is left behind the header.
    fn of(bytes: &[u8]) -> io::Result<(Option<String>, Vec<u8>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let mut rest = bytes;
        let address = runtime.block_on(read(&mut rest))?;
        Ok((address.map(|address| address.to_string()), rest.to_vec()))
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [&SIGNATURE[..], &[0x20 | command, family], &length, rest, b"GET"].concat()
    }

    #[test]
    fn both_versions_name_the_client_and_leave_what_is_behind() {
        // The examples of the specification, sections 2.1 and 2.2.
        let ipv4 = [192, 168, 0, 1, 192, 168, 0, 11, 0xdc, 0x04, 0x01, 0xbb];
        let mut ipv6 = [0; 36];
        (ipv6[15], ipv6[32], ipv6[33]) = (1, 0x13, 0x88);
        // A type-length-value behind the addresses, as balancers of AWS send (PP2_TYPE_AWS).
        let with_more = [&ipv4[..], &[0xea, 0, 2, 1, 2]].concat();
        let known = Some("192.168.0.1:56324");
        for (bytes, expected) in [
            (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\nGET".to_vec(), known),
            (b"PROXY TCP6 ::1 ::1 5000 443\r\nGET".to_vec(), Some("[::1]:5000")),
            (b"PROXY UNKNOWN\r\nGET".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::1 1 2\r\nGET".to_vec(), None),
            (v2(1, 0x11, &ipv4), known),
            (v2(1, 0x11, &with_more), known),
            (v2(1, 0x21, &ipv6), Some("[::1]:5000")),
            // LOCAL: a health check.
            (v2(0, 0x00, &[]), None),
        ] {
            let (address, rest) = of(&bytes).expect("a header");
            assert_eq!((address.as_deref(), &rest[..]), (expected, &b"GET"[..]), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for bytes in [
            &b"GET /v2/ HTTP/1.1\r\n\r\n"[..],
            b"PROXY",
            b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443",
            b"PROXY TCP4 nonsense nonsense 1 2\r\n",
            &[&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(),
            &v2(1, 0x11, &[1]),
            &[&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat(),
        ] {
            assert!(of(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_sent_makes_it_fall(bytes: Vec<u8>, is_v2: bool) {
            let begun = if is_v2 { &SIGNATURE[..] } else { b"PROXY TCP4 " };
            let _ = of(&[begun, &bytes].concat());
        }
    }
}
