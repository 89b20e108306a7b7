//! Promise: who abuses the protocol ends its own connection and is no trouble to anybody else.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{DEADLINE, Hub, Image, Larder, Options, eventually, get, repository_config};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const MIB: u64 = 1 << 20;

// Types of frames (RFC 9113, section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `GET` of a path, in HPACK without its table (RFC 7541): method and scheme are static entries.
fn get_of(path: &str) -> Vec<u8> {
    let literal = |name: &[u8], value: &str| {
        let length = u8::try_from(value.len()).expect("below 127");
        [name, &[length], value.as_bytes()].concat()
    };
    [vec![0x82, 0x86], literal(&[0x04], path), literal(&[0x01], "localhost")].concat()
}

/// A connection over which frames go as they are.
struct Abuser {
    stream: TcpStream,
}

impl Abuser {
    /// `settings`: pairs of identifier and value.
    async fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let settings: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        stream.write_all(PREFACE).await.expect("sent");
        stream.write_all(&frame(SETTINGS, 0, 0, &settings)).await.expect("sent");
        Self { stream }
    }

    /// Whether it could still be sent.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        timeout(DEADLINE, self.stream.write_all(bytes)).await.is_ok_and(|sent| sent.is_ok())
    }

    /// The next frame: type, flags, stream and payload; `None` at the end.
    async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        timeout(DEADLINE, self.stream.read_exact(&mut head)).await.expect("in time").ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        timeout(DEADLINE, self.stream.read_exact(&mut payload)).await.expect("in time").ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, payload))
    }

    /// Reads to the end; the error code of GOAWAY, if there was one.
    async fn goaway(mut self) -> Option<u32> {
        let mut code = None;
        while let Some((kind, _, _, payload)) = self.frame().await {
            if kind == GOAWAY {
                code = payload.get(4..8).and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?)));
            }
        }
        code
    }
}

async fn scene() -> (Hub, Larder, Image) {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[3_000_000]);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    (hub, larder, image)
}

async fn serves(larder: &Larder, image: &Image) {
    let tag = get(larder.manifest_url("hub/team/app", "1")).await;
    assert_eq!(tag.body, image.manifest.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_begun_and_taken_back_at_once_cost_little() {
    let (hub, larder, image) = scene().await;
    serves(&larder, &image).await;
    let before = larder.resident_memory().resident;
    let asked = hub.requests().len();
    let mut abuser = Abuser::connect(larder.door("registry"), &[]).await;
    let mut streams = 0_u32;
    for batch in 0..100_u32 {
        let mut bytes = Vec::new();
        for at in 0..100 {
            let number = batch * 100 + at;
            let stream = 2 * number + 1;
            bytes.extend(frame(
                HEADERS,
                END_STREAM | END_HEADERS,
                stream,
                &get_of(&format!("/v2/hub/team/app/manifests/{number}")),
            ));
            bytes.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            streams = number;
        }
        if !abuser.send(&bytes).await {
            break;
        }
    }
    // ENHANCE_YOUR_CALM
    assert_eq!(abuser.goaway().await, Some(0xb), "after {streams} streams");
    serves(&larder, &image).await;
    let more = hub.requests().len() - asked;
    assert!(more < 200, "{more} requests went upstream for nobody");
    let grown = larder.resident_memory().peak.saturating_sub(before);
    assert!(grown < 32 * MIB, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_without_an_end_are_not_kept() {
    let (_hub, larder, image) = scene().await;
    serves(&larder, &image).await;
    let before = larder.resident_memory().resident;
    let mut abuser = Abuser::connect(larder.door("registry"), &[]).await;
    assert!(abuser.send(&frame(HEADERS, END_STREAM, 1, &get_of("/v2/"))).await);
    // A header in pieces: `x: xxx…`.
    let piece = [&[0, 1, b'x', 0x7f, 0x80, 0x7f][..], &vec![b'x'; 16_000]].concat();
    let mut sent = 0_u64;
    while sent < 200 * MIB && abuser.send(&frame(CONTINUATION, 0, 1, &piece)).await {
        sent += piece.len() as u64;
    }
    assert!(sent < 200 * MIB, "it takes what it gets");
    serves(&larder, &image).await;
    let grown = larder.resident_memory().peak.saturating_sub(before);
    assert!(grown < 32 * MIB, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_so_many_streams_and_none_more() {
    let (_hub, larder, image) = scene().await;
    let layer = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
    assert_eq!(get(&layer).await.body.len(), 3_000_000);
    let before = larder.resident_memory().resident;
    let path = format!("/v2/hub/team/app/blobs/{}", image.layer_digests()[0]);
    // SETTINGS_INITIAL_WINDOW_SIZE: nothing may be sent.
    let mut abuser = Abuser::connect(larder.door("registry"), &[(4, 0)]).await;
    let mut bytes = Vec::new();
    for number in 0..400_u32 {
        bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, &get_of(&path)));
    }
    // It may have ended meanwhile.
    abuser.send(&bytes).await;
    let (mut answered, mut refused) = (0, 0);
    while answered + refused < 400 {
        match abuser.frame().await {
            Some((HEADERS, ..)) => answered += 1,
            // REFUSED_STREAM
            Some((RST_STREAM, _, _, code)) if code == 7_u32.to_be_bytes() => refused += 1,
            Some((DATA, ..)) => panic!("there was no room for it"),
            Some((GOAWAY, ..)) | None => break,
            _ => {}
        }
    }
    assert!(answered <= 100, "{answered} at once");
    serves(&larder, &image).await;
    let grown = larder.resident_memory().peak.saturating_sub(before);
    assert!(grown < 24 * MIB, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_settings_without_end_fill_no_memory() {
    let (_hub, larder, image) = scene().await;
    serves(&larder, &image).await;
    let before = larder.resident_memory().resident;
    for one in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut abuser = Abuser::connect(larder.door("registry"), &[]).await;
        let many = one.repeat(10_000);
        // Nothing of what comes back is read: it is not kept for us either.
        for _ in 0..100 {
            let sent = timeout(std::time::Duration::from_millis(500), abuser.stream.write_all(&many)).await;
            if !sent.is_ok_and(|sent| sent.is_ok()) {
                break;
            }
        }
        serves(&larder, &image).await;
    }
    let grown = larder.resident_memory().peak.saturating_sub(before);
    assert!(grown < 32 * MIB, "{grown} bytes more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_that_take_nothing_need_one_open_file_and_keep_nobody_out() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[3_000_000]);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::builder().config(repository_config("hub", &[&hub])).descriptors(256, 256).start().await;
    let layer = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
    eventually("it is stored", async || get(&layer).await.header("x-cache") == "HIT").await;
    let path = format!("/v2/hub/team/app/blobs/{}", image.layer_digests()[0]);
    let mut abusers = Vec::new();
    for _ in 0..11 {
        // SETTINGS_INITIAL_WINDOW_SIZE: nothing may be sent.
        let mut abuser = Abuser::connect(larder.door("registry"), &[(4, 0)]).await;
        let streams = (0..100_u32).flat_map(|at| frame(HEADERS, END_STREAM | END_HEADERS, 2 * at + 1, &get_of(&path)));
        assert!(abuser.send(&streams.collect::<Vec<_>>()).await);
        let mut answered = 0;
        while answered < 100 {
            match abuser.frame().await {
                Some((HEADERS, ..)) => answered += 1,
                Some(_) => {}
                None => panic!("it ended"),
            }
        }
        abusers.push(abuser);
    }
    let open = larder.descriptors().iter().filter(|path| path.starts_with(larder.dir().join("blobs"))).count();
    assert!(open <= 2, "{open} files are open");
    serves(&larder, &image).await;
    assert_eq!(get(format!("{}/healthz", larder.admin_url())).await.status, 200);
}
