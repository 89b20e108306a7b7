//! What people do to a cache: `larder ls`, `purge`, `pin`, `unpin`, `verify`, and the API pages behind
//! them, on a running instance and on the directory of a stopped one alike.

use crate::support::{Hub, Image, Index, Larder, Options, blob, eventually, get, head, repository_config, request};

const KIB: usize = 1 << 10;

struct Scene {
    hub: Hub,
    larder: Larder,
    image: Image,
}

/// One image, pulled.
async fn scene() -> Scene {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[200 * KIB, 10 * KIB]);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    pull(&larder, "1", &image).await;
    Scene { hub, larder, image }
}

async fn pull(larder: &Larder, tag: &str, image: &Image) {
    assert_eq!(get(larder.manifest_url("hub/team/app", tag)).await.status, 200);
    for digest in image.layer_digests().iter().chain([&image.config_digest()]) {
        assert!(get(larder.blob_url("hub/team/app", digest)).await.complete());
    }
    let objects = image.layers.len() + 2;
    eventually("all of it is stored", async || larder.stats().await["objects"].as_u64() >= Some(objects as u64)).await;
}

impl Scene {
    /// Once as it is, running, and once more stopped.
    async fn stop(&mut self) {
        self.larder.stop().await;
    }

    fn size(&self) -> u64 {
        let blobs: usize = self.image.blobs().iter().map(|blob| blob.len()).sum();
        (blobs + self.image.manifest.bytes.len()) as u64
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cached_is_listed_running_or_stopped() {
    let mut scene = scene().await;
    for _ in 0..2 {
        let listed = scene.larder.run(&["ls", "--json"]).await;
        assert_eq!(listed.code, Some(0), "{listed:?}");
        let images = listed.json();
        assert_eq!(images.as_array().map(Vec::len), Some(1), "{images}");
        let image = &images[0];
        assert_eq!(image["reference"], "hub/team/app:1");
        assert_eq!(image["digest"], scene.image.manifest.digest);
        assert_eq!((&image["objects"], &image["size"]), (&4.into(), &scene.size().into()));
        assert_eq!(image["pinned"], false);

        let text = scene.larder.run(&["ls"]).await.stdout;
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines.len() == 2 && lines[0].starts_with("IMAGE ") && lines[1].starts_with("hub/team/app:1 "),
            "{text}"
        );
        if scene.larder.is_running() {
            scene.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_in_pages_and_platforms_of_an_index_are_a_part_of_it() {
    let hub = Hub::start(Options::default()).await;
    let larder = Larder::start(&repository_config("hub", &[&hub])).await;
    for (name, tag) in [("team/b", "2"), ("team/b", "10"), ("team/a", "1")] {
        hub.push_image(name, tag, &Image::with_layers(1, &[10]));
        assert_eq!(get(larder.manifest_url(&format!("hub/{name}"), tag)).await.status, 200);
    }
    let index = Index::new(5, &["linux/amd64", "linux/arm64"]);
    hub.push_index("team/multi", "1", &index);
    assert_eq!(get(larder.manifest_url("hub/team/multi", "1")).await.status, 200);
    let platform = &index.images[0].manifest.digest;
    assert_eq!(get(larder.manifest_url("hub/team/multi", platform)).await.status, 200);
    let alone = Image::with_layers(9, &[10]);
    let digest = hub.push_untagged("team/z", &alone);
    assert_eq!(get(larder.manifest_url("hub/team/z", &digest)).await.status, 200);

    let expected = [
        "hub/team/a:1".to_owned(),
        "hub/team/b:10".to_owned(),
        "hub/team/b:2".to_owned(),
        "hub/team/multi:1".to_owned(),
        format!("hub/team/z@{digest}"),
    ];
    for page in [1, 2, 100] {
        let mut seen = Vec::new();
        let mut last = String::new();
        loop {
            let answer = request("GET", format!("{}/api/images?n={page}&last={last}", larder.admin_url())).send().await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let answer = answer.json();
            let images = answer["images"].as_array().expect("a list");
            assert!(images.len() <= page);
            seen.extend(images.iter().map(|image| image["reference"].as_str().expect("text").to_owned()));
            match answer["next"].as_str() {
                Some(next) => last = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(seen, expected, "pages of {page}");
    }
    let wrong = get(format!("{}/api/images?m=1", larder.admin_url())).await;
    assert_eq!(wrong.status, 400, "{}", wrong.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_purged_is_gone_running_or_stopped() {
    let mut scene = scene().await;
    let other = Image::with_layers(2, &[30 * KIB]);
    scene.hub.push_image("team/app", "2", &other);
    pull(&scene.larder, "2", &other).await;

    let purged = scene.larder.run(&["purge", "hub/team/app:1", "--json"]).await;
    assert_eq!((purged.code, &purged.json()["objects"]), (Some(0), &4.into()), "{purged:?}");
    let references = async |larder: &Larder| {
        let listed = larder.run(&["ls", "--json"]).await.json();
        let images = listed.as_array().expect("a list").clone();
        images.iter().map(|image| image["reference"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(references(&scene.larder).await, ["hub/team/app:2"]);

    scene.stop().await;
    let purged = scene.larder.run(&["purge", "--all"]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    assert!(purged.stdout.starts_with("purged 3 objects"), "{purged:?}");
    assert!(references(&scene.larder).await.is_empty());

    for (arguments, code) in
        [(&["purge"][..], 2), (&["purge", "x", "--all"], 2), (&["purge", "hub/team/app:-"], 2), (&["pin", "hub"], 2)]
    {
        let wrong = scene.larder.run(arguments).await;
        assert_eq!(wrong.code, Some(code), "{wrong:?}");
        assert!(!wrong.stderr.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_image_is_never_evicted() {
    let hub = Hub::start(Options::default()).await;
    // Pinned by a pattern, by name before it is there, and not at all.
    let images = [1, 2, 3].map(|seed| Image::with_layers(seed, &[300 * KIB]));
    for (tag, image) in ["keep", "named", "other"].iter().zip(&images) {
        hub.push_image("team/app", tag, image);
    }
    let repository = crate::support::RepositoryConfig::new("hub").set(r#"pin = ["^team/app:keep$"]"#).upstream(&hub);
    let mut larder = Larder::start(&format!("[cache]\nmin_free = 0\nmax_size = \"1200KiB\"\n{repository}")).await;
    let pinned = larder.run(&["pin", "hub/team/app:named", "--json"]).await;
    assert_eq!((pinned.code, &pinned.json()["changed"]), (Some(0), &true.into()), "{pinned:?}");
    for (tag, image) in ["keep", "named", "other"].iter().zip(&images) {
        assert_eq!(get(larder.manifest_url("hub/team/app", tag)).await.status, 200);
        for digest in image.layer_digests().iter().chain([&image.config_digest()]) {
            assert!(get(larder.blob_url("hub/team/app", digest)).await.complete());
            eventually("it is stored", async || is_hit(&larder, digest).await).await;
        }
    }
    // Much more than the rest of the room, twice: the second time after a restart.
    for round in 0..2 {
        for seed in 0..5 {
            let digest = hub.push_blob("team/app", blob(100 * (round + 1) + seed, 250 * KIB));
            assert!(get(larder.blob_url("hub/team/app", &digest)).await.complete());
            eventually("it is stored", async || is_hit(&larder, &digest).await).await;
        }
        let kept = [0, 1, 2].map(|at| images[at].layer_digests()[0].clone());
        let hits = [is_hit(&larder, &kept[0]).await, is_hit(&larder, &kept[1]).await, is_hit(&larder, &kept[2]).await];
        assert_eq!(hits, [true, true, false], "round {round}");
        larder.restart().await;
    }
    let listed = larder.run(&["ls", "--json"]).await.json();
    let pinned: Vec<_> = listed.as_array().expect("a list").iter().filter(|image| image["pinned"] == true).collect();
    assert_eq!(pinned.len(), 2, "{listed}");

    // Unpinned, it goes like anything else.
    assert_eq!(
        get(format!("{}/api/pins", larder.admin_url())).await.json()["pins"],
        serde_json::json!(["hub/team/app:named"])
    );
    assert_eq!(larder.run(&["unpin", "hub/team/app:named"]).await.code, Some(0));
    for seed in 0..8 {
        let digest = hub.push_blob("team/app", blob(1000 + seed, 250 * KIB));
        assert!(get(larder.blob_url("hub/team/app", &digest)).await.complete());
        eventually("it is stored", async || is_hit(&larder, &digest).await).await;
    }
    assert!(!is_hit(&larder, &images[1].layer_digests()[0]).await);
    assert!(is_hit(&larder, &images[0].layer_digests()[0]).await);
}

async fn is_hit(larder: &Larder, digest: &str) -> bool {
    head(larder.blob_url("hub/team/app", digest)).await.header("x-cache") == "HIT"
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_and_mends_running_or_stopped() {
    let mut scene = scene().await;
    for round in 0..2 {
        let fine = scene.larder.run(&["verify"]).await;
        assert_eq!(fine.code, Some(0), "{fine:?}");
        assert!(fine.stdout.contains("4 objects") && fine.stdout.contains("all is well"), "{fine:?}");

        // One object damaged, one gone, and a stranger.
        let layers = scene.image.layer_digests();
        std::fs::write(scene.larder.object(&layers[0]), b"rubbish").expect("written");
        std::fs::remove_file(scene.larder.object(&layers[1])).expect("removed");
        let stranger = blob(77 + round, 5_000);
        let digest = crate::support::sha256(&stranger);
        std::fs::create_dir_all(scene.larder.object(&digest).parent().expect("a folder")).expect("made");
        std::fs::write(scene.larder.object(&digest), &stranger).expect("written");

        for (arguments, code) in [(&["verify", "--json"][..], 1), (&["verify", "--repair", "--json"], 0)] {
            let found = scene.larder.run(arguments).await;
            assert_eq!(found.code, Some(code), "{found:?}");
            let report = found.json();
            assert_eq!(report["damaged"]["digests"], serde_json::json!([layers[0]]), "{report}");
            assert_eq!(report["missing"]["digests"], serde_json::json!([layers[1]]), "{report}");
            assert_eq!(report["unknown"]["digests"], serde_json::json!([digest]), "{report}");
        }
        let fine = scene.larder.run(&["verify"]).await;
        assert_eq!(fine.code, Some(0), "{fine:?}");

        // The cache mends itself with the next pull.
        if !scene.larder.is_running() {
            scene.larder.restart().await;
        }
        pull(&scene.larder, "1", &scene.image).await;
        std::fs::remove_file(scene.larder.object(&digest)).expect("removed");
        assert_eq!(scene.larder.run(&["verify", "--repair"]).await.code, Some(0));
        scene.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_refuses_what_it_does_not_understand() {
    let scene = scene().await;
    let admin = scene.larder.admin_url();
    for (method, page, status) in [
        ("PUT", "/api/pins", 400),
        ("PUT", "/api/pins?refrence=a", 400),
        ("PUT", "/api/pins?reference=A", 400),
        ("PUT", "/api/pins?reference=", 400),
        ("DELETE", "/api/cache?reference=hub/team/app:-", 400),
        ("DELETE", "/api/cache?reference=elsewhere/app", 404),
        ("DELETE", "/api/cache?reference=", 400),
        ("POST", "/api/verify?repair=perhaps", 400),
        ("POST", "/api/verify?fix=true", 400),
        ("GET", "/api/verify", 405),
    ] {
        let answer = request(method, format!("{admin}{page}")).send().await;
        assert_eq!(answer.status, status, "{method} {page}: {}", answer.text());
        assert!(answer.json()["error"].is_string(), "{method} {page}: {}", answer.text());
    }
    assert!(is_hit(&scene.larder, &scene.image.layer_digests()[0]).await, "nothing was purged");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_went_and_came_back_is_pinned_all_the_same() {
    let hub = Hub::start(Options::default()).await;
    let image = Image::with_layers(1, &[10 * KIB, 20 * KIB]);
    hub.push_image("team/app", "1", &image);
    let larder = Larder::start(&format!("[cache]\nttl = \"1s\"\n{}", repository_config("hub", &[&hub]))).await;
    pull(&larder, "1", &image).await;
    eventually("it expired", async || larder.stats().await["objects"] == 0).await;
    assert_eq!(larder.run(&["pin", "hub/team/app:1"]).await.code, Some(0));
    pull(&larder, "1", &image).await;
    let listed = larder.run(&["ls", "--json"]).await.json();
    assert_eq!(listed[0]["pinned"], true, "{listed}");
    // Something that is not pinned goes meanwhile, so the time was up.
    let other = hub.push_blob("team/app", blob(9, 10));
    assert!(get(larder.blob_url("hub/team/app", &other)).await.complete());
    eventually("the other is stored", async || larder.stats().await["objects"] == 5).await;
    eventually("the other expired", async || larder.stats().await["objects"] == 4).await;
    assert!(is_hit(&larder, &image.layer_digests()[0]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_removed_under_a_running_instance_is_reported() {
    let mut scene = scene().await;
    std::fs::remove_file(scene.larder.dir().join("larder.db")).expect("removed");
    let verified = scene.larder.run(&["verify"]).await;
    assert_eq!(verified.code, Some(1), "{verified:?}");
    assert!(verified.stdout.contains("larder.db was removed"), "{verified:?}");
    scene.larder.restart().await;
    eventually("all is known again", async || scene.larder.stats().await["objects"] == 4).await;
    assert_eq!(scene.larder.run(&["verify"]).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_verify_removed_is_fetched_again() {
    let scene = scene().await;
    std::fs::write(scene.larder.object(&scene.image.manifest.digest), "junk").expect("written");
    assert_eq!(scene.larder.run(&["verify", "--repair"]).await.code, Some(0));
    let url = scene.larder.manifest_url("hub/team/app", "1");
    let again = get(&url).await;
    assert_eq!((again.header("x-cache"), &again.body), ("MISS", &scene.image.manifest.bytes));
    eventually("it is back", async || {
        std::fs::read(scene.larder.object(&scene.image.manifest.digest)).is_ok_and(|bytes| bytes == again.body)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_beside_the_start_loses_nothing() {
    const OBJECTS: usize = 3000;
    let hub = Hub::start(Options::default()).await;
    let mut larder = Larder::start(&repository_config("hub", &[&hub])).await;
    larder.stop().await;
    for seed in 0..OBJECTS as u64 {
        let content = blob(seed, 20);
        let path = larder.object(&crate::support::sha256(&content));
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, content).expect("written");
    }
    assert_eq!(larder.run(&["verify", "--repair"]).await.code, Some(0));
    for _ in 0..5 {
        larder.restart().await;
        let verified = larder.run(&["verify", "--json"]).await;
        assert_eq!(verified.code, Some(0), "{verified:?}");
        assert_eq!(verified.json()["objects"], OBJECTS);
        assert_eq!(larder.stats().await["objects"], OBJECTS);
        assert!(!larder.log().contains("brought in line"));
    }
}
