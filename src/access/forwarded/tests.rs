use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;

/// The only proxy that the properties trust.
const PROXY: &str = "192.0.2.80";
const CLIENT: &str = "203.0.113.9";

fn forwarding(trusted: &[&str], header: ForwardedHeader) -> Forwarding {
    Forwarding { trusted: trusted.iter().map(|text| text.parse().expect("a network")).collect(), header }
}

fn connected(peer: &str) -> Client {
    Client::connected(SocketAddr::new(peer.parse().expect("an address"), 1))
}

fn seen_by(header: ForwardedHeader, peer: &str, headers: &[(&'static str, &[u8])]) -> (String, bool) {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).expect("a value"));
    }
    let client = forwarding(&["10.0.0.0/8", "fd00::/8", "127.0.0.1/32"], header).client(connected(peer), &map);
    (client.address.to_string(), client.is_secure)
}

fn is(address: &str, is_secure: bool) -> (String, bool) {
    (address.to_owned(), is_secure)
}

#[test]
fn a_stranger_is_not_believed() {
    let forged: [(&str, &[u8]); 3] = [
        ("x-forwarded-for", b"192.0.2.1"),
        ("x-forwarded-proto", b"https"),
        ("forwarded", b"for=192.0.2.1;proto=https"),
    ];
    for header in [ForwardedHeader::XForwardedFor, ForwardedHeader::Forwarded] {
        assert_eq!(seen_by(header, "203.0.113.5", &forged), is("203.0.113.5", false));
        assert_eq!(seen_by(header, "127.0.0.2", &forged), is("127.0.0.2", false));
    }
}

#[test]
fn behind_trusted_proxies_the_last_stranger_is_the_client() {
    let seen = |value: &str| {
        let headers: [(&str, &[u8]); 2] =
            [("x-forwarded-for", value.as_bytes()), ("x-forwarded-proto", b"http, https")];
        seen_by(ForwardedHeader::XForwardedFor, "10.0.0.1", &headers)
    };
    for (value, client) in [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:4711", "192.0.2.1"),
        ("6.6.6.6, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("6.6.6.6,192.0.2.1\t,10.0.0.2", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, ::ffff:10.0.0.7", "192.0.2.1"),
        ("192.0.2.1, fd00::7", "192.0.2.1"),
        // All of them are trusted proxies: the first one is the client.
        ("10.9.9.9", "10.9.9.9"),
        ("10.9.9.9, 10.0.0.2", "10.9.9.9"),
        // What is left of an untrusted or unreadable address is not read.
        ("10.9.9.9, 192.0.2.1, 10.0.0.2", "192.0.2.1"),
        ("garbage, 192.0.2.1", "192.0.2.1"),
    ] {
        assert_eq!(seen(value), is(client, true), "{value}");
    }
}

#[test]
fn what_cannot_be_read_is_nobodys_address() {
    let seen = |value: &[u8]| seen_by(ForwardedHeader::XForwardedFor, "10.0.0.1", &[("x-forwarded-for", value)]).0;
    let unreadable: [&[u8]; 24] = [
        b"",
        b" ",
        b",",
        b"192.0.2.1,",
        b"192.0.2.1, ",
        b"192.0.2.1, , 10.0.0.2",
        b"nonsense",
        b"unknown",
        b"_hidden",
        b"\xff",
        b"192.0.2.1\xff",
        b"192.0.2.1, \xc3\xa4",
        b"fe80::1%eth0",
        b"[fe80::1%1]:80",
        b"192.0.2.1:",
        b"192.0.2.1:65536",
        b"192.0.2.1:+80",
        b"192.0.2.01",
        b"[192.0.2.1]",
        b"[2001:db8::1",
        b"2001:db8::1]",
        b"\"192.0.2.1\"",
        b"for=192.0.2.1",
        // The loopback address of another machine.
        b"127.0.0.1",
    ];
    for value in unreadable {
        assert_eq!(seen(value), "unknown", "{}", String::from_utf8_lossy(value));
    }
    let here: &[(&str, &[u8])] = &[("x-forwarded-for", b"127.0.0.2")];
    assert_eq!(seen_by(ForwardedHeader::XForwardedFor, "127.0.0.1", here).0, "127.0.0.2");
}

#[test]
fn a_proxy_that_says_nothing_asks_for_itself() {
    let other: &[(&str, &[u8])] = &[("forwarded", b"for=192.0.2.1"), ("x-real-ip", b"192.0.2.1")];
    assert_eq!(seen_by(ForwardedHeader::XForwardedFor, "10.0.0.1", other), is("10.0.0.1", false));
    let other: &[(&str, &[u8])] = &[("x-forwarded-for", b"192.0.2.1"), ("x-forwarded-proto", b"https")];
    assert_eq!(seen_by(ForwardedHeader::Forwarded, "10.0.0.1", other), is("10.0.0.1", false));
}

#[test]
fn several_lines_are_one_list() {
    let lines: &[(&str, &[u8])] = &[
        ("x-forwarded-for", b"192.0.2.7"),
        ("x-forwarded-for", b"192.0.2.1, 10.0.0.3"),
        ("x-forwarded-for", b"10.0.0.2"),
    ];
    assert_eq!(seen_by(ForwardedHeader::XForwardedFor, "10.0.0.1", lines).0, "192.0.2.1");
    let lines: &[(&str, &[u8])] =
        &[("forwarded", b"x=\""), ("forwarded", b"for=192.0.2.1"), ("forwarded", b"for=10.0.0.2")];
    assert_eq!(seen_by(ForwardedHeader::Forwarded, "10.0.0.1", lines).0, "192.0.2.1");
    let lines: &[(&str, &[u8])] = &[("forwarded", b"for=192.0.2.1"), ("forwarded", b"x=\"")];
    assert_eq!(seen_by(ForwardedHeader::Forwarded, "10.0.0.1", lines).0, "unknown");
}

#[test]
fn forwarded_is_read_as_its_grammar_says() {
    for (value, client, is_secure) in [
        ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60", false),
        ("For=\"[2001:db8:cafe::17]:4711\"", "2001:db8:cafe::17", false),
        ("for=6.6.6.6;proto=http, FOR=\"[2001:db8::1]:80\";Proto=HTTPS;by=x", "2001:db8::1", true),
        ("for=192.0.2.1;proto=https,for=10.0.0.2;proto=http", "192.0.2.1", false),
        ("for=192.0.2.1;host=\"a,b;c\";proto=https", "192.0.2.1", true),
        ("host=\"a\\\",b\";for=192.0.2.1", "192.0.2.1", false),
        ("for=\"192.0.2.1\"", "192.0.2.1", false),
        ("for=\"192.0.2.\\1\"", "192.0.2.1", false),
        (" for=192.0.2.1 ; proto=https ", "192.0.2.1", true),
        ("proto=https;;for=192.0.2.1;", "192.0.2.1", true),
        ("for=192.0.2.1:80", "192.0.2.1", false),
        ("for=[2001:db8::1]:80", "2001:db8::1", false),
        ("for=\"192.0.2.1:_port\"", "192.0.2.1", false),
        ("for=10.9.9.9, for=10.0.0.2", "10.9.9.9", false),
        (", for=192.0.2.1", "192.0.2.1", false),
    ] {
        let seen = seen_by(ForwardedHeader::Forwarded, "fd00::2", &[("forwarded", value.as_bytes())]);
        assert_eq!(seen, is(client, is_secure), "{value}");
    }
    for value in [
        "",
        "for=",
        "for",
        "192.0.2.1",
        "proto=https",
        "for=unknown",
        "for=\"_gazonk\"",
        "for=192.0.2.1,",
        "for=192.0.2.1;for=192.0.2.2",
        "for = 192.0.2.1",
        "for=\"192.0.2.1",
        "for=\"192.0.2.1\"x",
        "for=192.0.2.1 192.0.2.2",
        "for=\"192.0.2.1\\",
        "f\"r=192.0.2.1",
        "=192.0.2.1",
        "for=192.0.2.1=x",
        // A client opened a quote, and the proxy's own element is inside it.
        "x=\", for=192.0.2.1;host=\";for=10.1.2.3;y=\"\"",
        "for=192.0.2.1;x=\"a, For=9.9.9.9\"",
    ] {
        let seen = seen_by(ForwardedHeader::Forwarded, "fd00::2", &[("forwarded", value.as_bytes())]);
        assert_eq!(seen.0, "unknown", "{value}");
    }
}

/// Bytes that a header can have: parts that matter here, and any others.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let words: &[&[u8]] = &[
        b"10.1.2.3",
        b"127.0.0.1",
        b"192.0.2.80",
        b"[::1]:80",
        b"unknown",
        b"_x",
        b"for=",
        b"For=\"",
        b"proto=https",
        b",",
        b";",
        b"\"",
        b"\\",
        b" ",
        b"=",
        b"\xff",
        b"\t",
        b"x=\"",
        b"10.1.2.3, ",
        b", for=10.1.2.3",
    ];
    let word = prop_oneof![
        4 => prop::sample::select(words).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(prop_oneof![Just(b'\t'), 0x20_u8..0x7f, 0x80_u8..=0xff], 0..6),
    ];
    prop::collection::vec(word, 0..8).prop_map(|words| words.concat())
}

fn lines() -> impl Strategy<Value = Vec<(bool, Vec<u8>)>> {
    prop::collection::vec((any::<bool>(), value()), 0..5)
}

fn name_of(is_forwarded: bool) -> HeaderName {
    if is_forwarded { FORWARDED } else { X_FORWARDED_FOR }
}

fn append(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    headers.append(name, HeaderValue::from_bytes(value).expect("bytes that a header can have"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn whatever_a_stranger_sends_its_address_stays(sent in lines(), reads_forwarded in any::<bool>()) {
        let header = if reads_forwarded { ForwardedHeader::Forwarded } else { ForwardedHeader::XForwardedFor };
        let mut headers = HeaderMap::new();
        for (is_forwarded, value) in &sent {
            append(&mut headers, name_of(*is_forwarded), value);
        }
        let client = forwarding(&[&format!("{PROXY}/32")], header).client(connected(CLIENT), &headers);
        prop_assert_eq!(client.address.to_string(), CLIENT);
        prop_assert!(!client.is_secure);
    }

    /// Whatever a client sends, a proxy appends to the configured header or sets it, as nginx does with
    /// `$proxy_add_x_forwarded_for` (which joins all lines of the client) and `$remote_addr`, or adds a line of its
    /// own, as HAProxy does. The other header passes unchanged.
    #[test]
    fn behind_a_proxy_a_client_is_itself_or_unknown(
        sent in lines(),
        reads_forwarded in any::<bool>(),
        how in 0..3,
        hosts in value(),
    ) {
        let header = if reads_forwarded { ForwardedHeader::Forwarded } else { ForwardedHeader::XForwardedFor };
        let name = name_of(reads_forwarded);
        let mut own: Vec<Vec<u8>> = Vec::new();
        let mut headers = HeaderMap::new();
        for (is_forwarded, value) in sent {
            match is_forwarded == reads_forwarded {
                true => own.push(value),
                false => append(&mut headers, name_of(is_forwarded), &value),
            }
        }
        let element = match reads_forwarded {
            // The client chooses the host; it is quoted as the grammar demands.
            true => {
                let mut element = format!("for={CLIENT};host=\"").into_bytes();
                for &byte in &hosts {
                    element.extend(if b"\"\\".contains(&byte) { vec![b'\\', byte] } else { vec![byte] });
                }
                [element, b"\";proto=http".to_vec()].concat()
            }
            false => CLIENT.as_bytes().to_vec(),
        };
        match how {
            0 => append(&mut headers, name, &element),
            1 => append(&mut headers, name, &[own, vec![element]].concat().join(&b", "[..])),
            _ => {
                own.iter().for_each(|line| append(&mut headers, name.clone(), line));
                append(&mut headers, name, &element);
            }
        }
        let client = forwarding(&[&format!("{PROXY}/32")], header).client(connected(PROXY), &headers);
        let address = client.address.to_string();
        prop_assert!(address == CLIENT || address == "unknown", "{address} of {headers:?}");
        if !reads_forwarded {
            prop_assert_eq!(address, CLIENT);
        }
    }
}
