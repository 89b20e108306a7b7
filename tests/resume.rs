//! Promise: what has been transferred is never transferred again, however often Larder dies on the way; and nothing is
//! served as whole before it is.

use crate::support::{Fault, Hub, Larder, On, Options, blob, client, eventually, head, repository_config};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;
const KILLS: u64 = 20;
/// What is on its way when the kill comes. A kill in the middle of a free flow would measure the buffers of the loopback,
/// which are larger than all that may be lost.
const ON_ITS_WAY: u64 = 256 << 10;

/// Random byte counts, one in each twentieth of the object; the same each time.
fn kill_points() -> impl Iterator<Item = u64> {
    let part = SIZE / KILLS;
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    (0..KILLS).map(move |at| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        at * part + ON_ITS_WAY + (random >> 33) % (part - ON_ITS_WAY)
    })
}

/// Waits until Larder takes no more bytes off the network: all that was sent has come.
async fn stands_still(larder: &Larder) {
    let before = std::sync::Mutex::new(None);
    eventually("the fill stands still", async || {
        let now = larder.stats().await["bytes_fetched"].as_u64();
        before.lock().expect("no panic while held").replace(now) == Some(now)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_killed_at_twenty_random_points_is_never_served_in_part_and_costs_five_percent_at_most() {
    let hub = Hub::start(Options::default()).await;
    let content = blob(1, SIZE as usize);
    let digest = hub.push_blob("team/app", content.clone());
    let mut larder = Larder::start(&repository_config("hub", &[&hub])).await;
    // Slow enough that further connections are opened: there are several ranges to be taken up again.
    hub.fault(On::blob().get(), Fault::Throttle { bytes_per_second: 16 * MIB, chunk: 64 << 10 });
    let supply = hub.supply(On::blob().get());

    for point in kill_points() {
        let client = client::open(larder.blob_url("hub/team/app", &digest)).await;
        assert_eq!((client.status, client.header("x-cache")), (200, "MISS"));
        let client = tokio::spawn(client.compare(content.clone()));
        supply.send_up_to(point - ON_ITS_WAY).await;
        stands_still(&larder).await;
        supply.send_up_to(point).await;
        larder.kill9();
        let (came, is_whole) = client.await.expect("not a wrong byte");
        assert!(came < SIZE && !is_whole, "{came} bytes were given as the whole after {point} were sent");

        larder.restart().await;
        let answer = head(larder.blob_url("hub/team/app", &digest)).await;
        assert_eq!((answer.status, answer.header("x-cache")), (200, "MISS"), "after {point} bytes");
        assert_eq!(larder.stats().await["objects"], 0, "after {point} bytes");
    }

    supply.open();
    let client = client::open(larder.blob_url("hub/team/app", &digest)).await;
    assert_eq!(client.compare(content.clone()).await, (SIZE, true));
    eventually("the blob is stored", async || larder.stats().await["stores"] == 1).await;
    let sent = hub.bytes_sent(&digest);
    println!("{} of {SIZE} bytes were sent twice", sent - SIZE);
    assert!(sent <= SIZE + SIZE / 20, "{sent} bytes for {SIZE}");
    let client = client::open(larder.blob_url("hub/team/app", &digest)).await;
    assert_eq!(client.header("x-cache"), "HIT");
    assert_eq!(client.compare(content).await, (SIZE, true));
    assert_eq!(hub.bytes_sent(&digest), sent);
}
