//! The promises about images.

use super::scene::{OTHER, Scene, TWIN, image};
use crate::support::hub::profiles::{Again, Login, Profile};
use crate::support::{Fault, Kind, Listener, On, eventually, get, head, request};

/// A first pull brings each byte as it is.
pub async fn cold(profile: Profile) {
    let scene = Scene::of(profile).await;
    scene.pull().await;
    // The whole comes by one transfer, and no credential goes to another host.
    let layer = &scene.image.layer_digests()[0];
    assert!(scene.hub.bytes_sent(layer) <= 200_001, "{}", scene.hub.summary());
    let leaked = |request: &crate::support::Request| {
        request.listener == Listener::Storage && request.header("authorization").is_some()
    };
    assert!(scene.options.redirect != crate::support::Redirect::Absolute || scene.hub.count(leaked) == 0);
}

/// A second pull costs one request upstream in all.
pub async fn warm(profile: Profile) {
    let scene = Scene::warm(profile).await;
    for _ in 0..2 {
        scene.hub.take_requests();
        scene.pull().await;
        let costs = (scene.asked(), scene.asked_for_tokens());
        assert_eq!(costs, (1, 0), "{}", scene.hub.summary());
        assert_eq!(scene.asked_storage(), scene.manifests_from_storage(), "{}", scene.hub.summary());
    }
}

/// With the registry away a pull goes on as before.
pub async fn outage(profile: Profile) {
    let mut scene = Scene::warm(profile).await;
    scene.hub.stop().await;
    scene.pull().await;
    let tagged = get(scene.tag("1")).await;
    assert_eq!((tagged.status, tagged.header("x-cache")), (200, "STALE"));
}

/// A layer that another repository of the registry brought in is not brought in again.
pub async fn shared(profile: Profile) {
    let scene = Scene::warm(profile).await;
    scene.hub.push_image(OTHER, "1", &scene.image);
    let layer = &scene.image.layer_digests()[0];
    let before = scene.hub.bytes_sent(layer);
    // Under another name that the registry has, and in a repository that has to ask on its own.
    for (name, asks) in [(format!("hub/{OTHER}"), 0), (format!("{TWIN}/{OTHER}"), 4)] {
        let manifest = get(scene.larder.manifest_url(&name, &scene.image.manifest.digest)).await;
        assert_eq!((manifest.status, &manifest.body), (200, &scene.image.manifest.bytes), "{}", scene.hub.summary());
        scene.hub.take_requests();
        let url = scene.larder.blob_url(&name, layer);
        let answer = get(&url).await;
        assert_eq!(answer.status, 200, "{name}: {}\n{}", answer.text(), scene.hub.summary());
        assert!(answer.body == scene.image.layers[0], "wrong bytes");
        assert_eq!(answer.header("x-cache"), "HIT");
        assert!(scene.hub.bytes_sent(layer) <= before + 1, "it came again:\n{}", scene.hub.summary());
        assert!(scene.asked() <= asks, "{}", scene.hub.summary());
        // Once it is confirmed nothing is asked.
        scene.hub.take_requests();
        assert_eq!((get(&url).await.status, scene.asked()), (200, 0), "{}", scene.hub.summary());
    }
    // What the registry does not have there is not shown there.
    let nowhere = get(scene.larder.blob_url(&format!("{TWIN}/{OTHER}"), &crate::support::sha256(b"nothing"))).await;
    assert!((400..500).contains(&nowhere.status), "{}", nowhere.status);
}

/// Who asks for a part of what is not here yet gets that part.
pub async fn range(profile: Profile) {
    let scene = Scene::of(profile).await;
    let (layer, content) = (&scene.image.layer_digests()[0], &scene.image.layers[0]);
    let url = scene.larder.blob_url(&scene.local(), layer);
    for (range, from, to) in
        [("bytes=1000-1999", 1_000, 2_000), ("bytes=0-", 0, 200_000), ("bytes=-10", 199_990, 200_000)]
    {
        let answer = request("GET", &url).header("range", range).send().await;
        match answer.status {
            206 => {
                assert!(answer.body == content[from..to], "wrong bytes of {range}");
                assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/200000", to - 1));
            }
            // Without a length nobody can say which part it is.
            200 if !scene.options.sends_lengths => assert!(answer.body == *content, "wrong bytes"),
            other => panic!("{other} for {range}: {}\n{}", answer.text(), scene.hub.summary()),
        }
    }
}

/// Who asks for the whole as a part, as containerd does, sees it begin while it comes.
pub async fn begins(profile: Profile) {
    let scene = Scene::of(profile).await;
    let (layer, content) = (&scene.image.layer_digests()[0], &scene.image.layers[0]);
    let gate = scene.hub.gate(On::any().get().reference(layer), 100_000);
    let url = scene.larder.blob_url(&scene.local(), layer);
    let answer = request("GET", &url).header("range", "bytes=0-").open().await;
    assert!(matches!(answer.status, 200 | 206), "{}\n{}", answer.status, scene.hub.summary());
    gate.open();
    let answer = answer.read_to_end().await;
    assert!(answer.complete() && answer.body == *content, "{:?}", answer.error);
}

/// What is named by sha512 is had as well, and shared.
pub async fn sha512(profile: Profile) {
    let scene = Scene::warm(profile).await;
    let content = crate::support::blob(7, 150_000);
    let digest = crate::support::sha512(&content);
    for name in [scene.name, OTHER] {
        scene.hub.push_blob_as(name, &digest, content.clone());
    }
    let url = scene.larder.blob_url(&scene.local(), &digest);
    let asked = head(&url).await;
    assert_eq!(asked.status, 200, "{}", scene.hub.summary());
    assert!(matches!(asked.header("content-length"), "150000" | ""), "{}", asked.header("content-length"));
    let answer = get(&url).await;
    assert!(answer.status == 200 && answer.body == content, "{}\n{}", answer.status, scene.hub.summary());
    eventually("it is stored", async || scene.larder.stats().await["stores"] == 5).await;
    let shared = get(scene.larder.blob_url(&format!("{TWIN}/{OTHER}"), &digest)).await;
    assert!(shared.status == 200 && shared.body == content, "{}\n{}", shared.status, scene.hub.summary());
    assert_eq!(shared.header("x-cache"), "HIT");
}

/// A registry or storage that fails once fails nobody's pull.
pub async fn hiccup(profile: Profile) {
    let scene = Scene::of(profile).await;
    // Each for another object: who asks once more fails with the second failure.
    let (config, layer) = (scene.image.config_digest(), &scene.image.layer_digests()[0]);
    for on in [On::manifest(), On::blob().reference(&config), On::storage().reference(layer)] {
        scene.hub.fault(on.clone().get().times(1), Fault::status(503));
        scene.hub.fault(on.head().times(1), Fault::status(502));
    }
    scene.pull().await;
}

/// A limit is told as one, and what is cached is served through it.
pub async fn limit(profile: Profile) {
    let scene = Scene::warm(profile).await;
    scene.hub.push_image(scene.name, "2", &image(2));
    // The pull that began with a HEAD is over.
    assert_eq!(get(scene.tag("1")).await.status, 200);
    scene.hub.fault(On::any(), Fault::reply(429, scene.limit.headers, scene.limit.body));
    let refused = get(scene.tag("2")).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "TOOMANYREQUESTS"), "{}", refused.text());
    let after = refused.header("retry-after");
    match scene.limit.again {
        Again::Unsaid => assert_eq!(after, "", "the registry says nothing of it"),
        Again::AtOnce => assert!(matches!(after, "" | "0" | "1"), "{after}"),
        Again::Seconds(seconds) => {
            assert!(after.parse::<u64>().is_ok_and(|after| (1..=seconds).contains(&after)), "{after}");
        }
    }
    let cached = get(scene.tag("1")).await;
    assert_eq!((cached.status, cached.header("x-cache")), (200, "STALE"), "{}", cached.text());
    assert_eq!(cached.body, scene.image.manifest.bytes);
}

/// Why an image is refused is told in the registry's words.
pub async fn reason(profile: Profile) {
    let scene = Scene::of(profile).await;
    let denial = scene.denial;
    let media_type = match denial.body.as_bytes().first() {
        Some(b'{') => "application/json",
        Some(b'<') => "text/html",
        _ => "text/plain",
    };
    scene.hub.fault(On::manifest(), Fault::reply(denial.status, &[("content-type", media_type)], denial.body));
    let refused = get(scene.tag("1")).await;
    match denial.status {
        403 => assert_eq!((refused.status, refused.error_code().as_str()), (403, "DENIED"), "{}", refused.text()),
        _ => assert!((400..600).contains(&refused.status), "{}", refused.status),
    }
    assert!(refused.text().contains(denial.words), "{}", refused.text());
}

/// After the end of a token one new one is fetched, and no request fails.
pub async fn ended(profile: Profile) {
    let scene = Scene::warm(profile).await;
    scene.hub.push_image(scene.name, "2", &image(2));
    match scene.login {
        Login::Helper => scene.replace_password(),
        _ => scene.hub.expire_tokens(),
    }
    goes_on(&scene).await;
}

/// As after its end, where a token is taken back before it.
pub async fn revoked(profile: Profile) {
    let scene = Scene::warm(profile).await;
    scene.hub.push_image(scene.name, "2", &image(2));
    scene.hub.revoke_tokens();
    goes_on(&scene).await;
}

/// The token of a moment ago is none any more.
async fn goes_on(scene: &Scene) {
    let (given, runs) = (scene.hub.tokens_given(), scene.helper_runs());
    let answer = get(scene.tag("2")).await;
    assert_eq!((answer.status, &answer.body), (200, &image(2).manifest.bytes), "{}", scene.hub.summary());
    let layer = &image(2).layer_digests()[0];
    let answer = get(scene.larder.blob_url(&scene.local(), layer)).await;
    assert!(answer.status == 200 && answer.body == image(2).layers[0], "{}\n{}", answer.status, scene.hub.summary());
    let expected = usize::from(scene.has_tokens());
    assert_eq!(scene.hub.tokens_given() - given, expected, "tokens given\n{}", scene.hub.summary());
    assert!(scene.helper_runs() <= runs + 1, "the helper ran {} times", scene.helper_runs());
    // And all is as before.
    scene.hub.take_requests();
    assert_eq!(head(scene.tag("1")).await.status, 200);
    assert_eq!((scene.asked(), scene.asked_for_tokens()), (1, 0), "{}", scene.hub.summary());
    assert_eq!(scene.hub.count(|request| request.kind == Kind::Other), 0);
}
