//! A Larder in front of one registry with one image.

use tempfile::TempDir;

use crate::support::helper::{credential_helper, path_with};
use crate::support::hub::profiles::{Denial, Limit, Login, Profile};
use crate::support::{
    Auth, Hub, Image, Kind, Larder, Listener, ManifestsAt, Options, RepositoryConfig, eventually, get, head,
};

/// A large layer, of which a copy would be noticed, and a small one.
const LAYERS: [usize; 2] = [200_000, 3_000];
/// The user and the password that it begins with.
const USER: &str = "me";
const PASSWORD: &str = "first";

pub struct Scene {
    pub hub: Hub,
    pub larder: Larder,
    /// Tagged `1`.
    pub image: Image,
    /// As the registry has them.
    pub name: &'static str,
    pub options: Options,
    pub login: Login,
    pub limit: Limit,
    pub denial: Denial,
    helper: TempDir,
}

/// Another repository of the same registry.
pub const OTHER: &str = "other/app";

/// A second repository of Larder's, with the same upstream.
pub const TWIN: &str = "twin";

impl Scene {
    pub async fn of(profile: Profile) -> Self {
        let Profile { mut options, name, login, limit, denial } = profile;
        if login != Login::None {
            options = options.user(USER, PASSWORD).private(name, USER).private(OTHER, USER);
        }
        let hub = Hub::start(options.clone()).await;
        let image = image(1);
        hub.push_image(name, "1", &image);
        let helper = TempDir::new().expect("a directory");
        credential_helper(helper.path(), PASSWORD);
        let keys = match login {
            Login::None => String::new(),
            Login::Password => format!("username = \"{USER}\"\npassword = \"{PASSWORD}\""),
            Login::Helper => "credential_helper = \"test\"".to_owned(),
        };
        let config = |prefix| RepositoryConfig::new(prefix).set("negative_max_age = \"0s\"").upstream_with(&hub, &keys);
        let larder = Larder::builder()
            .config(config("hub"))
            .config(config(TWIN))
            .env("PATH", &path_with(helper.path()))
            .start()
            .await;
        Self { hub, larder, image, name, options, login, limit, denial, helper }
    }

    /// And its image is pulled and stored.
    pub async fn warm(profile: Profile) -> Self {
        let scene = Self::of(profile).await;
        scene.pull().await;
        scene.stored(1).await;
        scene.hub.take_requests();
        scene
    }

    /// All of so many images is in the store.
    pub async fn stored(&self, images: u64) {
        eventually("all is stored", async || self.larder.stats().await["stores"] == 4 * images).await;
    }

    pub fn local(&self) -> String {
        format!("hub/{}", self.name)
    }

    pub fn tag(&self, tag: &str) -> String {
        self.larder.manifest_url(&self.local(), tag)
    }

    /// The whole image, as clients pull it: HEAD of the tag, the manifest by its digest, each blob.
    pub async fn pull(&self) {
        let tagged = head(self.tag("1")).await;
        let manifest = &self.image.manifest;
        assert_eq!(tagged.status, 200, "{}", self.hub.summary());
        assert_eq!(tagged.header("docker-content-digest"), manifest.digest);
        assert_eq!(tagged.header("content-length"), manifest.bytes.len().to_string());
        let answer = get(self.tag(&manifest.digest)).await;
        assert_eq!((answer.status, &answer.body), (200, &manifest.bytes), "{}", self.hub.summary());
        for blob in self.image.blobs() {
            let answer = get(self.larder.blob_url(&self.local(), &crate::support::sha256(&blob))).await;
            assert!(answer.complete() && answer.status == 200, "{}\n{}", answer.status, self.hub.summary());
            assert!(answer.body == blob, "wrong bytes");
        }
    }

    /// Requests that came to the registry itself.
    pub fn asked(&self) -> usize {
        self.hub.count(|request| request.listener == Listener::Registry)
    }

    /// Requests for tokens.
    pub fn asked_for_tokens(&self) -> usize {
        self.hub.count(|request| request.kind == Kind::Token)
    }

    /// Requests to the host that redirects point to.
    pub fn asked_storage(&self) -> usize {
        self.hub.count(|request| request.kind == Kind::Storage)
    }

    /// Requests to that host that the manifest of a tag costs.
    pub fn manifests_from_storage(&self) -> usize {
        usize::from(self.options.manifests_at != ManifestsAt::Registry)
    }

    pub fn has_tokens(&self) -> bool {
        matches!(self.options.auth, Auth::Token(_))
    }

    /// The password was replaced before its time, and the helper knows the new one.
    pub fn replace_password(&self) {
        self.hub.configure(|options| options.users = vec![(USER.to_owned(), "second".to_owned())]);
        credential_helper(self.helper.path(), "second");
    }

    /// How often the helper ran.
    pub fn helper_runs(&self) -> usize {
        std::fs::read_to_string(self.helper.path().join("runs")).map_or(0, |runs| runs.lines().count())
    }
}

pub fn image(seed: u64) -> Image {
    Image::with_layers(seed, &LAYERS)
}
