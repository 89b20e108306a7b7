//! What a client sees: routes, headers, ranges, lists, freshness, and the admin door.

use futures_util::future::join_all;

use crate::support::{
    Connection, Fault, Hub, Image, Kind, Larder, On, Options, RepositoryConfig, blob, eventually, get, head,
    repository_config, request, sha512,
};

async fn scene(options: Options, more: &str) -> (Hub, Larder, Image) {
    let hub = Hub::start(options).await;
    let image = Image::new(1);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(&RepositoryConfig::new("hub").set(more).upstream(&hub).to_string()).await;
    (hub, larder, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn all_ways_of_routing_lead_to_the_same_content() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::new(1);
    hub.push_image("library/app", "1", &image);
    hub.push_image("deep/er/and/deeper", "1", &image);
    let config = RepositoryConfig::new("docker.io")
        .set("namespace = [\"docker.io\"]\nhosts = [\"hub.mirror.example\"]\nscopes = [\"^deep/\"]")
        .upstream(&hub);
    let larder = Larder::start(&config.to_string()).await;
    for path in [
        "/v2/docker.io/library/app/manifests/1",
        "/docker.io/v2/library/app/manifests/1",
        "/v2/docker.io/app/manifests/1",
        "/v2/library/app/manifests/1?ns=docker.io",
        "/v2/app/manifests/1?ns=docker.io",
        "/v2/docker.io/library/app/manifests/1?ns=docker.io",
        "/v2/deep/er/and/deeper/manifests/1",
        "/v2/app/manifests/1",
    ] {
        let answer = get(format!("{}{path}", larder.url())).await;
        assert_eq!((answer.status, &answer.body), (200, &image.manifest.bytes), "{path}");
        let namespace = if path.contains("ns=") { "docker.io" } else { "" };
        assert_eq!(answer.headers.get("oci-namespace").map_or("", |value| value.to_str().expect("text")), namespace);
    }
    let url = larder.manifest_url("library/app", "1");
    let answer = request("GET", &url).header("host", "hub.mirror.example:5000").send().await;
    assert_eq!(answer.body, image.manifest.bytes);
    let answer = request("GET", &url).http2().send().await;
    assert_eq!(answer.body, image.manifest.bytes);
    for base in ["/v2", "/v2/", "/docker.io/v2/"] {
        let answer = get(format!("{}{base}", larder.url())).await;
        assert_eq!((answer.status, answer.header("docker-distribution-api-version")), (200, "registry/2.0"), "{base}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_say_how_the_cache_stood_to_them() {
    let (mut hub, larder, image) = scene(Options::default(), "").await;
    let digest = &image.layer_digests()[0];
    let (tag, layer) = (larder.manifest_url("hub/team/app", "1"), larder.blob_url("hub/team/app", digest));
    for url in [&tag, &layer] {
        let miss = get(url).await;
        assert_eq!((miss.header("x-cache"), miss.header("cache-status")), ("MISS", "larder; fwd=miss; detail=absent"));
    }
    eventually("the blob is stored", async || head(&layer).await.header("x-cache") == "HIT").await;
    for (url, digest, why) in [(&tag, &image.manifest.digest, "unchanged"), (&layer, digest, "stored")] {
        let hit = get(url).await;
        let status = format!("larder; hit; detail={why}");
        assert_eq!((hit.header("x-cache"), hit.header("cache-status")), ("HIT", status.as_str()));
        assert_eq!(hit.header("docker-content-digest"), digest);
        assert_eq!(hit.header("etag"), format!("\"{digest}\""));
        assert!(hit.header("x-cache-date").ends_with('Z') && hit.header("age").parse::<u64>().is_ok());
        let same = request("GET", url).header("if-none-match", format!("\"x\", W/\"{digest}\"")).send().await;
        assert_eq!((same.status, same.body.len()), (304, 0));
    }
    hub.stop().await;
    let stale = head(&tag).await;
    assert_eq!((stale.status, stale.header("x-cache")), (200, "STALE"));
    assert!(stale.header("cache-status").starts_with("larder; fwd=stale"));
    assert!(stale.header("warning").starts_with("299 - \"larder serves an old copy: "));
    assert_eq!(stale.header("content-length"), image.manifest.bytes.len().to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_every_form_are_exact() {
    let (hub, larder, image) = scene(Options::default(), "").await;
    let digest = hub.push_blob("team/app", blob(5, 500_000));
    let content = blob(5, 500_000);
    let url = larder.blob_url("hub/team/app", &digest);
    for _ in ["coming", "stored"] {
        for (range, from, to) in [
            ("bytes=0-9", 0, 10),
            ("bytes=100-", 100, 500_000),
            ("bytes=-7", 499_993, 500_000),
            ("bytes=499999-600000", 499_999, 500_000),
        ] {
            let answer = request("GET", &url).header("range", range).send().await;
            assert_eq!(answer.status, 206, "{range}");
            assert!(answer.body == content[from..to], "{range}");
            assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/500000", to - 1));
        }
        let answer = request("GET", &url).header("range", "bytes=0-3,10-12").send().await;
        assert_eq!(answer.status, 206);
        let boundary = answer.header("content-type").split_once("boundary=").expect("a boundary").1.to_owned();
        let part = |range: &str, bytes: &[u8]| {
            let mut part = format!("\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {range}/500000\r\n\r\n").into_bytes();
            part.extend_from_slice(bytes);
            part
        };
        let mut expected = [part("0-3", &content[..4]), part("10-12", &content[10..13])].concat();
        expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        assert_eq!(answer.body, expected);
        assert_eq!(answer.header("content-length"), expected.len().to_string());
        eventually("it is stored", async || head(&url).await.header("x-cache") == "HIT").await;
    }
    let other = request("GET", &url).header("range", "bytes=0-1").header("if-range", "\"other\"").send().await;
    assert_eq!((other.status, other.body.len()), (200, 500_000));
    drop(image);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_downloads_nothing() {
    let (hub, larder, image) = scene(Options::with_redirects(), "").await;
    let digest = &image.layer_digests()[0];
    let answer = head(larder.blob_url("hub/team/app", digest)).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, image.layers[0].len().to_string().as_str()));
    assert_eq!(hub.count(|request| request.method == "GET"), 0, "{}", hub.summary());
    assert_eq!(hub.bytes_sent(digest), 0);
    assert_eq!(head(larder.manifest_url("hub/team/app", "nope")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn sha512_is_served_and_verified() {
    let (hub, larder, _) = scene(Options::default(), "").await;
    let content = blob(3, 100_000);
    let digest = sha512(&content);
    hub.push_blob_as("team/app", &digest, content.clone());
    let url = larder.blob_url("hub/team/app", &digest);
    assert_eq!(get(&url).await.body, content);
    eventually("it is stored", async || head(&url).await.header("x-cache") == "HIT").await;
    assert_eq!(get(&url).await.body, content);
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_checked_as_often_as_configured() {
    for (config, tag, checks) in [
        ("", "1", 3),
        ("max_age = \"1h\"", "1", 1),
        ("immutable_tags = true", "1", 1),
        ("immutable_tags = true\nimmutable_tags_exclusions = [\"^1$\"]", "1", 3),
    ] {
        let (hub, larder, _) = scene(Options::default(), config).await;
        for _ in 0..3 {
            assert_eq!(get(larder.manifest_url("hub/team/app", tag)).await.status, 200);
        }
        assert_eq!(hub.count_on(On::manifest().head()), checks, "{config}");
        assert_eq!(hub.count_on(On::manifest().get()), 1, "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_tag_is_fetched_once_and_a_deleted_one_served_or_dropped() {
    for (config, after_deletion) in [("", 200), ("on_upstream_404 = \"drop\"", 404)] {
        let (hub, larder, _) = scene(Options::default(), config).await;
        let url = larder.manifest_url("hub/team/app", "1");
        assert_eq!(get(&url).await.status, 200);
        let moved = Image::new(2);
        hub.push_image("team/app", "1", &moved);
        for _ in 0..2 {
            assert_eq!(get(&url).await.body, moved.manifest.bytes);
        }
        assert_eq!(hub.count_on(On::manifest().get()), 2);
        hub.delete_tag("team/app", "1");
        assert_eq!(get(&url).await.status, after_deletion, "{config}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absence_is_remembered_for_a_while() {
    let (hub, larder, _) = scene(Options::default(), "negative_max_age = \"1h\"").await;
    let urls = [
        larder.manifest_url("hub/team/app", "nope"),
        larder.blob_url("hub/team/app", &crate::support::sha256(b"nothing like it")),
    ];
    for (url, code) in urls.iter().zip(["MANIFEST_UNKNOWN", "BLOB_UNKNOWN"]) {
        for _ in 0..3 {
            let answer = get(url).await;
            assert_eq!((answer.status, answer.error_code().as_str()), (404, code));
        }
    }
    assert_eq!(hub.requests().len(), 2, "{}", hub.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_pass_through_and_outlive_the_upstream() {
    let (mut hub, larder, image) = scene(Options::default(), "").await;
    for tag in ["2", "3"] {
        hub.tag("team/app", tag, &image.manifest.digest);
    }
    let url = format!("{}/v2/hub/team/app/tags/list", larder.url());
    let first = get(format!("{url}?n=2")).await;
    assert_eq!(first.json()["tags"], serde_json::json!(["1", "2"]));
    let link = first.header("link").to_owned();
    assert!(link.starts_with("</v2/hub/team/app/tags/list?") && link.ends_with("; rel=\"next\""), "{link}");
    let next = link.trim_start_matches('<').split_once('>').expect("a link").0.to_owned();
    assert_eq!(get(format!("{}{next}", larder.url())).await.json()["tags"], serde_json::json!(["3"]));
    hub.stop().await;
    let stale = get(format!("{url}?n=2")).await;
    assert_eq!((stale.status, stale.header("x-cache")), (200, "STALE"));
    assert_eq!(stale.json()["tags"], serde_json::json!(["1", "2"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_come_from_the_api_or_from_the_fallback_tag() {
    for has_api in [true, false] {
        let options = Options { referrers: has_api, ..Options::default() };
        let (mut hub, larder, image) = scene(options, "").await;
        let subject = &image.manifest.digest;
        let referrer = Image::referrer(&image.manifest, "application/x.signature", 7);
        hub.push_untagged("team/app", &referrer);
        if !has_api {
            let list = serde_json::json!({ "schemaVersion": 2, "manifests": [{
                "mediaType": referrer.manifest.media_type, "digest": referrer.manifest.digest,
                "size": referrer.manifest.bytes.len(), "artifactType": "application/x.signature" }] });
            let index = crate::support::Manifest::new(list.to_string(), "application/vnd.oci.image.index.v1+json");
            hub.push_manifest("team/app", Some(&subject.replace(':', "-")), &index);
        }
        let url = format!("{}/v2/hub/team/app/referrers/{subject}", larder.url());
        let of_type = format!("{url}?artifactType=application/x.signature");
        let of_other = format!("{url}?artifactType=application/x.other");
        let count = |answer: &crate::support::Answer| answer.json()["manifests"].as_array().map(Vec::len);
        for _ in ["up", "down"] {
            assert_eq!(count(&get(&url).await), Some(1));
            assert_eq!(count(&get(&of_type).await), Some(1));
            let other = get(&of_other).await;
            assert_eq!((count(&other), other.header("oci-filters-applied")), (Some(0), "artifactType"));
            hub.stop().await;
        }
        let unknown = format!("{}/v2/hub/team/app/referrers/{}", larder.url(), crate::support::sha256(b"x"));
        assert_eq!(get(unknown).await.status, 502, "an outage is no empty list");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn content_of_one_repository_is_shown_in_another_only_if_its_upstream_has_it() {
    let (a, b) = (Hub::start(Options::default()).await, Hub::start(Options::default()).await);
    let image = Image::new(1);
    a.push_image("team/app", "1", &image);
    let b_config = RepositoryConfig::new("b").set("negative_max_age = \"0s\"").upstream(&b).to_string();
    let larder = Larder::start(&(repository_config("a", &[&a]) + &b_config)).await;
    let digest = &image.layer_digests()[0];
    assert_eq!(get(larder.blob_url("a/team/app", digest)).await.status, 200);
    assert_eq!(get(larder.manifest_url("a/team/app", "1")).await.status, 200);
    eventually("it is stored", async || larder.stats().await["stores"] == 2).await;

    assert_eq!(get(larder.blob_url("b/team/app", digest)).await.status, 404);
    assert_eq!(get(larder.manifest_url("b/team/app", &image.manifest.digest)).await.status, 404);
    b.push_image("team/app", "1", &image);
    assert_eq!(get(larder.blob_url("b/team/app", digest)).await.header("x-cache"), "HIT");
    assert_eq!(get(larder.manifest_url("b/team/app", &image.manifest.digest)).await.header("x-cache"), "HIT");
    // A blob that HEAD does not find is asked for once more, by its first byte: nothing is downloaded.
    let downloads =
        |request: &crate::support::Request| request.method == "GET" && request.header("range") != Some("bytes=0-0");
    assert_eq!(b.count(downloads), 0, "{}", b.summary());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_lists_what_is_cached() {
    let (hub, larder, image) = scene(Options::default(), "").await;
    hub.push_image("team/b", "1", &image);
    let url = format!("{}/v2/_catalog", larder.url());
    assert_eq!(get(&url).await.json()["repositories"], serde_json::json!([]));
    for name in ["hub/team/app", "hub/team/b"] {
        get(larder.manifest_url(name, "1")).await;
    }
    let both = serde_json::json!(["hub/team/app", "hub/team/b"]);
    eventually("both are listed", async || get(&url).await.json()["repositories"] == both).await;
    let page = get(format!("{url}?n=1")).await;
    assert_eq!(page.json()["repositories"], serde_json::json!(["hub/team/app"]));
    assert_eq!(page.header("link"), "</v2/_catalog?n=1&last=hub%2Fteam%2Fapp>; rel=\"next\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_door_counts_and_clears() {
    let (hub, larder, image) = scene(Options::default(), "max_age = \"1h\"").await;
    let tag = larder.manifest_url("hub/team/app", "1");
    let layer = larder.blob_url("hub/team/app", &image.layer_digests()[0]);
    for url in [&tag, &layer] {
        get(url).await;
    }
    eventually("both are stored", async || larder.stats().await["stores"] == 2).await;
    get(&tag).await;
    let stats = larder.stats().await;
    let size = image.manifest.bytes.len() + image.layers[0].len();
    assert_eq!(stats["current_size"], size);
    assert_eq!((&stats["hits"], &stats["misses"], &stats["objects"]), (&1.into(), &2.into(), &2.into()));
    assert_eq!(stats["bytes_fetched"], size);
    assert_eq!(stats["repositories"]["hub"]["bytes_served"], size + image.manifest.bytes.len());
    assert!(
        larder
            .metrics()
            .await
            .contains("larder_requests_total{repository=\"hub\",kind=\"manifest\",outcome=\"hit\"} 1")
    );
    for page in ["healthz", "readyz"] {
        assert_eq!(get(format!("{}/{page}", larder.admin_url())).await.status, 200);
    }

    let clear = |query: &str| request("DELETE", format!("{}/api/cache{query}", larder.admin_url())).send();
    assert_eq!(clear("?refrence=hub/team/app:1").await.status, 400);
    assert_eq!(clear("?reference=hub/team/app:-").await.status, 400);
    assert_eq!(clear("?repository=UPPER").await.status, 400);
    assert_eq!(larder.stats().await["objects"], 2);
    assert_eq!(clear("?reference=hub/team/app:1").await.json()["status"], "ok");
    hub.take_requests();
    assert_eq!(get(&tag).await.header("x-cache"), "MISS");
    assert_eq!(get(&layer).await.header("x-cache"), "MISS");
    assert_eq!(hub.count(|request| request.kind == Kind::Blob), 1);
    eventually("both are stored", async || larder.stats().await["objects"] == 2).await;
    assert_eq!(clear("").await.status, 200);
    let stats = larder.stats().await;
    assert_eq!((&stats["objects"], &stats["current_size"]), (&0.into(), &0.into()));
    hub.fault(On::any(), Fault::Drop);
    assert_eq!(get(&layer).await.status, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_of_every_size_are_exact_one_after_the_other_and_side_by_side() {
    let hub = Hub::start(Options::default()).await;
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    // Read, mapped in one frame, in several, and at the edges of both.
    let sizes = [1, 65_535, 65_536, 65_537, (1 << 20) - 1, 1 << 20, 5_000_003, 40 << 20];
    let blobs: Vec<_> = (0..).zip(sizes).map(|(seed, size)| blob(seed, size)).collect();
    let urls: Vec<_> =
        blobs.iter().map(|blob| larder.blob_url("hub/team/app", &hub.push_blob("team/app", blob.clone()))).collect();
    for url in &urls {
        assert!(get(url).await.complete());
        eventually("it is stored", async || head(url).await.header("x-cache") == "HIT").await;
    }
    for connection in [Connection::http1(&urls[0]).await, Connection::http2(&urls[0]).await] {
        // The small and the large in turn, twice, and a part of each.
        for (url, blob) in urls.iter().zip(&blobs).chain(urls.iter().zip(&blobs).rev()) {
            let answer = request("GET", url).send_on(&connection).await;
            assert!(answer.complete() && answer.body == *blob, "{} {:?}", answer.status, answer.error);
            assert_eq!(answer.header("x-cache"), "HIT");
            let (from, until) = (blob.len() / 3, blob.len() / 3 * 2 + 1);
            let part = request("GET", url).header("range", format!("bytes={from}-{}", until - 1));
            let part = part.send_on(&connection).await;
            assert!(part.complete() && part.body == blob[from..until], "{} {:?}", part.status, part.error);
        }
    }
    let connection = Connection::http2(&urls[0]).await;
    let all = join_all(urls.iter().map(|url| request("GET", url).send_on(&connection))).await;
    for (answer, blob) in all.iter().zip(&blobs) {
        assert!(answer.complete() && answer.body == *blob, "{} {:?}", answer.status, answer.error);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_is_checked_behind_the_clients_back() {
    let (hub, larder, image) = scene(Options::default(), "stale_while_revalidate = \"1h\"").await;
    let tag = larder.manifest_url("hub/team/app", "1");
    assert_eq!(get(&tag).await.body, image.manifest.bytes);
    let moved = Image::new(2);
    hub.push_image("team/app", "1", &moved);
    // The upstream is held: who asks is served what is there, and one check waits for all.
    let hold = hub.hold(On::manifest().head());
    hub.take_requests();
    for _ in 0..5 {
        let answer = get(&tag).await;
        assert_eq!((answer.header("x-cache"), &answer.body), ("HIT", &image.manifest.bytes));
    }
    hold.wait_for(1).await;
    assert_eq!(hub.count_on(On::manifest()), 1, "{}", hub.summary());
    hold.open();
    eventually("the new one is served", async || get(&tag).await.body == moved.manifest.bytes).await;
}
