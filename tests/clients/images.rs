//! Real images, made without a network: busybox for this machine, an index of two platforms, an artifact that refers to
//! the image.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    http,
    process::{Failure, Invocation, program},
    registry::Registry,
    skopeo::Skopeo,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The type of the artifact that refers to the busybox image.
pub const ARTIFACT_TYPE: &str = "application/vnd.larder.test.note";

/// What [`Images::push_to`] has put into a registry; its digests read `sha256:…`.
pub struct Images {
    /// Manifest of `library/busybox:1.36` and `library/busybox:latest`.
    pub busybox: String,
    /// Index `library/multi:1`, of linux/amd64 and linux/arm64.
    pub multi: String,
    /// Artifact `library/busybox:note`, whose `subject` is [`Images::busybox`].
    pub artifact: String,
    /// The tag of `library/busybox` that lists the image's referrers for registries without the API, as this one.
    pub fallback_tag: String,
}

impl Images {
    /// Makes the images and pushes them.
    pub async fn push_to(registry: &Registry) -> Self {
        Self::try_push_to(registry).await.unwrap()
    }

    async fn try_push_to(registry: &Registry) -> Result<Self, Failure> {
        let layout = Layout::new().await?;
        layout.add_busybox("amd64").await?;
        layout.add_busybox("arm64").await?;
        let [amd64, arm64] = ["amd64", "arm64"].map(|tag| layout.descriptor(tag));
        let busybox = amd64["digest"].as_str().expect("umoci writes digests").to_owned();

        let multi = layout.add_index("multi", vec![on_platform(&amd64, "amd64"), on_platform(&arm64, "arm64")]);
        let artifact = layout.add_artifact("note", &amd64);

        let skopeo = Skopeo::new();
        let host = registry.address();
        for (tag, target) in [
            ("amd64", "library/busybox:1.36"),
            ("amd64", "library/busybox:latest"),
            ("multi", "library/multi:1"),
            ("note", "library/busybox:note"),
        ] {
            skopeo.push_all(&layout.reference(tag), &format!("{host}/{target}")).await?;
        }
        let fallback_tag = busybox.replace(':', "-");
        put_index(registry, &format!("library/busybox/manifests/{fallback_tag}"), &index(vec![artifact.clone()]))
            .await?;
        let artifact = artifact["digest"].as_str().expect("written by this file").to_owned();
        Ok(Self { busybox, multi, artifact, fallback_tag })
    }
}

/// An OCI image layout in a temporary directory.
struct Layout {
    directory: TempDir,
}

impl Layout {
    async fn new() -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("larder-images-").tempdir().expect("a temporary directory");
        let layout = Self { directory };
        layout.umoci(&["init", "--layout", &layout.path("layout")]).await?;
        Ok(layout)
    }

    /// Adds an image, tagged with its architecture. All of them hold this machine's busybox; a file makes them differ.
    async fn add_busybox(&self, architecture: &str) -> Result<(), Failure> {
        let image = format!("{}:{architecture}", self.path("layout"));
        let rootfs = self.path(architecture);
        make_rootfs(Path::new(&rootfs), architecture).expect("the root file system of busybox is made");
        self.umoci(&["new", "--image", &image]).await?;
        self.umoci(&["insert", "--image", &image, &rootfs, "/"]).await?;
        self.umoci(&[
            "config",
            "--image",
            &image,
            "--os=linux",
            &format!("--architecture={architecture}"),
            "--config.env=PATH=/bin",
            "--config.cmd=/bin/sh",
        ])
        .await
    }

    /// Adds an index and returns its digest.
    fn add_index(&self, tag: &str, manifests: Vec<Value>) -> String {
        let descriptor = self.add_blob(INDEX, index(manifests).to_string().as_bytes());
        let digest = descriptor["digest"].as_str().expect("written by this file").to_owned();
        self.tag(tag, descriptor);
        digest
    }

    /// Adds a manifest that refers to `subject`, and returns the descriptor by which a list of referrers names it.
    fn add_artifact(&self, tag: &str, subject: &Value) -> Value {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": self.add_blob("application/vnd.oci.empty.v1+json", b"{}"),
            "layers": [self.add_blob("text/plain", b"busybox is kept in the larder\n")],
            "subject": {"mediaType": MANIFEST, "digest": subject["digest"], "size": subject["size"]},
        });
        let mut descriptor = self.add_blob(MANIFEST, manifest.to_string().as_bytes());
        self.tag(tag, descriptor.clone());
        descriptor["artifactType"] = ARTIFACT_TYPE.into();
        descriptor
    }

    fn add_blob(&self, media_type: &str, content: &[u8]) -> Value {
        let digest = sha256(content);
        let path = self.path(&format!("layout/blobs/{}", digest.replace(':', "/")));
        fs::write(path, content).expect("the layout is writable");
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    }

    fn tag(&self, tag: &str, mut descriptor: Value) {
        let mut index = self.index();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        index["manifests"].as_array_mut().expect("an index has manifests").push(descriptor);
        fs::write(self.path("layout/index.json"), index.to_string()).expect("the layout is writable");
    }

    fn descriptor(&self, tag: &str) -> Value {
        let index = self.index();
        let mut manifests = index["manifests"].as_array().expect("an index has manifests").iter();
        manifests
            .find(|descriptor| descriptor["annotations"]["org.opencontainers.image.ref.name"] == tag)
            .unwrap_or_else(|| panic!("no {tag} in {index}"))
            .clone()
    }

    fn index(&self) -> Value {
        let index = fs::read(self.path("layout/index.json")).expect("umoci makes an index");
        serde_json::from_slice(&index).expect("an index is JSON")
    }

    /// The name by which skopeo finds an image.
    fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.path("layout"))
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("temporary paths are UTF-8").to_owned()
    }

    async fn umoci(&self, arguments: &[&str]) -> Result<(), Failure> {
        Invocation::new(&program("umoci", "umoci"), arguments.iter().copied()).run().await.map(drop)
    }
}

/// The digest of `content`, `sha256:…`.
pub fn sha256(content: &[u8]) -> String {
    let hex: String = digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn index(manifests: Vec<Value>) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
}

/// Puts an index into the registry as it is: skopeo drops the `artifactType` of what it lists.
async fn put_index(registry: &Registry, path: &str, index: &Value) -> Result<(), Failure> {
    let (target, body) = (format!("/v2/{path}"), index.to_string());
    let answer = http::send(&registry.address(), "PUT", &target, &[("Content-Type", INDEX)], body.as_bytes())
        .await
        .map_err(|error| Failure::new(format!("PUT {target}: {error}")))?;
    match answer.status {
        201 => Ok(()),
        _ => Err(Failure::new(format!("PUT {target}: {answer:?}"))),
    }
}

fn on_platform(descriptor: &Value, architecture: &str) -> Value {
    json!({
        "mediaType": descriptor["mediaType"],
        "digest": descriptor["digest"],
        "size": descriptor["size"],
        "platform": {"os": "linux", "architecture": architecture},
    })
}

fn make_rootfs(root: &Path, architecture: &str) -> std::io::Result<()> {
    let bin = root.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy(program("busybox", "busybox-static"), bin.join("busybox"))?;
    fs::set_permissions(bin.join("busybox"), fs::Permissions::from_mode(0o755))?;
    for applet in ["sh", "cat", "echo", "ls", "sha256sum", "uname"] {
        symlink("busybox", bin.join(applet))?;
    }
    fs::create_dir_all(root.join("etc"))?;
    fs::write(root.join("etc/larder"), format!("{architecture}\n"))
}
