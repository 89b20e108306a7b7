//! A cache that has seen something of everything.

use crate::support::{
    Fault, Gate, Hub, Image, Index, Larder, On, Options, RateLimit, RepositoryConfig, eventually, get, request,
};

const KIB: usize = 1 << 10;

/// A running cache with pulls of all outcomes.
pub struct Scene {
    pub hub: Hub,
    pub larder: Larder,
    /// The image `hub/team/app:1`, whole in the cache.
    pub app: Image,
    _down: Hub,
}

/// What the pages say a user agent is: text, whatever it looks like.
pub const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x>";

impl Scene {
    pub async fn start(config: &str) -> Self {
        let hub =
            Hub::start(Options { rate_limit: Some(RateLimit::default()), referrers: true, ..Options::default() }).await;
        let down = Hub::start(Options::default()).await;
        let repositories = format!(
            "{}\n{}",
            RepositoryConfig::new("hub").set("max_age = \"1h\"\nnamespace = [\"docker.io\"]").upstream(&hub),
            RepositoryConfig::new("down").set("max_age = \"0s\"").upstream(&down)
        );
        let warm = "[[warm]]\nimages = [\"hub/team/app:*\", \"hub/team/app:>=7\"]\nplatforms = [\"linux/amd64\"]\n\
            [[warm]]\nimages = [\"hub/team/app:1\"]\nevery = \"12h\"\n";
        let larder = Larder::start(format!("{config}\n{repositories}\n{warm}")).await;
        let app = Image::with_layers(1, &[300 * KIB, 20 * KIB]);
        hub.push_image("team/app", "1", &app);
        let scene = Self { hub, larder, app, _down: down };
        scene.pull_all().await;
        scene
    }

    async fn pull_all(&self) {
        let (hub, larder) = (&self.hub, &self.larder);
        self.pull("team/app", "1", &self.app).await;
        self.pull("team/app", "1", &self.app).await;
        // One of three platforms, and one layer of two.
        let many = Index::new(2, &["linux/amd64", "linux/arm64", "linux/s390x"]);
        hub.push_index("team/tool", "3.1", &many);
        assert_eq!(get(larder.manifest_url("hub/team/tool", "3.1")).await.status, 200);
        self.pull("team/tool", &many.images[0].manifest.digest, &many.images[0]).await;
        let part = Image::with_layers(3, &[90 * KIB, 40 * KIB]);
        hub.push_image("team/part", "2026-11", &part);
        assert_eq!(get(larder.manifest_url("hub/team/part", "2026-11")).await.status, 200);
        assert_eq!(get(larder.blob_url("hub/team/part", &part.layer_digests()[0])).await.status, 200);
        // What refers to an image.
        hub.push_untagged(
            "team/app",
            &Image::referrer(&self.app.manifest, "application/vnd.dev.cosign.simplesigning", 4),
        );
        let list = format!("{}/v2/hub/team/app/referrers/{}", larder.url(), self.app.manifest.digest);
        assert_eq!(get(list).await.status, 200);
        // An upstream that fails, with and without a copy.
        self._down.push_image("old/copy", "1", &Image::new(5));
        assert_eq!(get(larder.manifest_url("down/old/copy", "1")).await.status, 200);
        self._down.fault(On::any(), Fault::status(503));
        assert_eq!(get(larder.manifest_url("down/old/copy", "1")).await.status, 200);
        assert_ne!(get(larder.manifest_url("down/old/other", "1")).await.status, 200);
        // What is absent, unknown, and hostile.
        assert_eq!(get(larder.manifest_url("hub/team/none", "1")).await.status, 404);
        assert_eq!(get(larder.manifest_url("registry.example/team/app", "1")).await.status, 404);
        let hostile = request("GET", larder.manifest_url("hub/team/app", "1")).header("user-agent", HOSTILE);
        assert_eq!(hostile.send().await.status, 200);
        self.keep_warm().await;
        eventually("all is stored", async || larder.stats().await["fills_running"] == 0).await;
    }

    /// Runs the schedules; the next runs are hours away.
    async fn keep_warm(&self) {
        for number in [1, 2] {
            let begun = request("POST", self.page(&format!("/api/warm/schedules/{number}"))).send().await;
            // Who may only look cannot begin a run.
            if begun.status != 200 {
                return;
            }
        }
        eventually("the schedules have run", async || {
            let schedules = get(self.page("/api/warm")).await.json()["schedules"].clone();
            schedules.as_array().is_some_and(|all| all.iter().all(|schedule| schedule["last"]["ended"].is_string()))
        })
        .await;
    }

    /// Pulls an image as a client does.
    pub async fn pull(&self, name: &str, reference: &str, image: &Image) {
        let name = format!("hub/{name}");
        let agent = "containerd/2.2.1";
        let ask = async |url: String| request("GET", url).header("user-agent", agent).send().await;
        assert_eq!(ask(self.larder.manifest_url(&name, reference)).await.status, 200);
        for digest in image.layer_digests().iter().chain([&image.config_digest()]) {
            assert!(ask(self.larder.blob_url(&name, digest)).await.complete());
        }
    }

    /// Begins a pull of a large blob that stops half-way, until the gate opens.
    pub async fn begin_large(&self) -> Gate {
        let image = Image::with_layers(9, &[4_000 * KIB]);
        self.hub.push_image("team/large", "1", &image);
        let digest = image.layer_digests().remove(0);
        let gate = self.hub.gate(On::blob().reference(&digest), 2_000_000);
        let url = self.larder.blob_url("hub/team/large", &digest);
        tokio::spawn(async move { get(url).await });
        gate.reached().await;
        gate
    }

    /// The address of a page of the dashboard.
    pub fn page(&self, path: &str) -> String {
        format!("{}{path}", self.larder.admin_url())
    }
}
