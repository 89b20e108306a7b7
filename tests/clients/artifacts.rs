//! What registries hold beside images to run, pushed as its own tools would: files, a chart, a template; and an image
//! that is its own description.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use tempfile::TempDir;

use super::{
    http,
    images::sha256,
    process::{Invocation, program},
    registry::Registry,
};

/// What a client leaves in a directory: contents by path.
pub type Files = BTreeMap<String, Vec<u8>>;

/// Pushes an image to `library/shelf:1`; returns its blobs by the hex digits of their digests.
///
/// Its manifest says its own type, which umoci's do not everywhere and python-dxf has to know.
pub async fn image(registry: &Registry) -> Files {
    let small = archive(&["-z"], &[("etc/larder", "empty\n")]).await;
    let large = archive(&[], &[("srv/flour", &"of wheat\n".repeat(300_000))]).await;
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    let blobs = [config.to_string().into_bytes(), small.clone(), large.clone()];
    let artifact = Artifact {
        config_type: "application/vnd.oci.image.config.v1+json",
        config,
        layers: vec![
            ("application/vnd.oci.image.layer.v1.tar+gzip", "small", small),
            ("application/vnd.oci.image.layer.v1.tar", "large", large),
        ],
    };
    artifact.push_to(registry, "library/shelf", "1").await;
    blobs.map(|blob| (sha256(&blob).replace("sha256:", ""), blob)).into()
}

/// Pushes two files to `library/files:1`.
pub async fn files(registry: &Registry) -> Files {
    let files = [("flour.txt", b"of wheat\n".repeat(300_000)), ("salt.bin", vec![0, 255, 13, 10, 0])];
    let layers = files.clone().map(|(title, content)| ("application/octet-stream", title, content)).into();
    let artifact = Artifact { config_type: "application/vnd.unknown.config.v1+json", config: json!({}), layers };
    artifact.push_to(registry, "library/files", "1").await;
    files.map(|(title, content)| (title.to_owned(), content)).into()
}

/// Pushes a chart to `library/pantry:1.0.0`; a client leaves its archive.
pub async fn chart(registry: &Registry) -> Files {
    let about = "apiVersion: v2\nname: pantry\nversion: 1.0.0\n";
    let bytes = archive(&["-z"], &[("pantry/Chart.yaml", about), ("pantry/values.yaml", "shelves: 3\n")]).await;
    let artifact = Artifact {
        config_type: "application/vnd.cncf.helm.config.v1+json",
        config: json!({"apiVersion": "v2", "name": "pantry", "version": "1.0.0"}),
        layers: vec![("application/vnd.cncf.helm.chart.content.v1.tar+gzip", "pantry-1.0.0.tgz", bytes.clone())],
    };
    artifact.push_to(registry, "library/pantry", "1.0.0").await;
    [("pantry-1.0.0.tgz".to_owned(), bytes)].into()
}

/// Pushes a template of Dev Containers to `library/kitchen:1`; a client leaves what is in it, but not its description.
pub async fn template(registry: &Registry) -> Files {
    let about = r#"{"id": "kitchen", "version": "1.0.0", "name": "Kitchen"}"#;
    let (path, container) = (".devcontainer/devcontainer.json", r#"{"image": "busybox:1.36"}"#);
    let bytes = archive(&[], &[("devcontainer-template.json", about), (path, container)]).await;
    let layers = vec![("application/vnd.devcontainers.layer.v1+tar", "devcontainer-template-kitchen.tgz", bytes)];
    let artifact = Artifact { config_type: "application/vnd.devcontainers", config: json!({}), layers };
    artifact.push_to(registry, "library/kitchen", "1").await;
    [(path.to_owned(), container.as_bytes().to_vec())].into()
}

/// What a manifest lists.
struct Artifact {
    /// The type of the configuration, by which clients know what it is.
    config_type: &'static str,
    config: Value,
    /// Type, title and content of each layer.
    layers: Vec<(&'static str, &'static str, Vec<u8>)>,
}

impl Artifact {
    /// Puts it into the registry.
    async fn push_to(&self, registry: &Registry, name: &str, tag: &str) {
        let mut layers = Vec::new();
        for (media_type, title, content) in &self.layers {
            let mut layer = put_blob(registry, name, media_type, content).await;
            layer["annotations"] = json!({"org.opencontainers.image.title": title});
            layers.push(layer);
        }
        let config = put_blob(registry, name, self.config_type, self.config.to_string().as_bytes()).await;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        let (target, body) = (format!("/v2/{name}/manifests/{tag}"), manifest.to_string());
        let head = [("Content-Type", media_type)];
        let answer = http::send(&registry.address(), "PUT", &target, &head, body.as_bytes()).await.expect("an answer");
        assert_eq!(answer.status, 201, "{answer:?}");
    }
}

/// Puts a blob into the registry and returns its descriptor.
async fn put_blob(registry: &Registry, name: &str, media_type: &str, content: &[u8]) -> Value {
    let (address, digest) = (registry.address(), sha256(content));
    let begin = format!("/v2/{name}/blobs/uploads/");
    let begun = http::send(&address, "POST", &begin, &[], b"").await.expect("an answer");
    let place = begun.header("location").unwrap_or_else(|| panic!("nothing was begun: {begun:?}"));
    let target = format!("{}&digest={digest}", place.trim_start_matches(&registry.url()));
    let answer = http::send(&address, "PUT", &target, &[], content).await.expect("an answer");
    assert_eq!(answer.status, 201, "{answer:?}");
    json!({"mediaType": media_type, "digest": digest, "size": content.len()})
}

/// A tar archive of files, by `tar` with `options`, such as `-z`.
async fn archive(options: &[&str], files: &[(&str, &str)]) -> Vec<u8> {
    let made = TempDir::new().expect("a temporary directory");
    let (root, out) = (made.path().join("root"), made.path().join("out.tar"));
    for (path, text) in files {
        let file = root.join(path);
        fs::create_dir_all(file.parent().expect("a file is in a directory")).expect("made");
        fs::write(file, text).expect("written");
    }
    let [root, out_path] = [&root, &out].map(|path| path.to_str().expect("temporary paths are UTF-8"));
    let mut arguments = vec!["-c", "-f", out_path, "-C", root];
    arguments.extend(options);
    arguments.extend(files.iter().map(|(path, _)| *path));
    Invocation::new(&program("tar", "tar"), arguments).run().await.unwrap();
    fs::read(out).expect("tar wrote it")
}
