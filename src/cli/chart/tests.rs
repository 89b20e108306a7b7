use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;

use super::*;

/// Writes a chart, and returns its folder.
fn chart(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().expect("a directory");
    for (path, text) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }
    dir
}

fn packed(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        // The library's own functions refuse a path that leads out.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        builder.append(&header, text.as_bytes()).expect("appended");
    }
    builder.into_inner().and_then(GzEncoder::finish).expect("packed")
}

fn of(files: &[(&str, &str)]) -> Found {
    named(chart(files).path()).expect("a chart")
}

const CHART: (&str, &str) = ("Chart.yaml", "apiVersion: v2\nname: app\nversion: 1.0.0\nappVersion: v2.1.0\n");

/// The shape of `helm create` (pkg/chart/v2/util/create.go of helm/helm), and of argo-cd (argoproj/argo-helm): a tag
/// that is empty is the chart's `appVersion`, and a repository that is empty is another one of the chart.
#[test]
fn an_image_without_a_tag_has_the_version_of_the_application() {
    let values = "global:\n  image: {repository: quay.io/argoproj/argocd, tag: \"\"}\ncontroller:\n  image:\n    repository: \"\"\n    tag: \"\"\nredis:\n  image:\n    repository: ecr-public.aws.com/docker/library/redis\n    tag: 8.2.3-alpine\n";
    let found = of(&[CHART, ("values.yaml", values)]);
    assert_eq!(
        found.images,
        ["quay.io/argoproj/argocd:v2.1.0", "ecr-public.aws.com/docker/library/redis:8.2.3-alpine"]
    );
    assert!(found.notes.is_empty(), "{found:?}");
    let found = of(&[("Chart.yaml", "name: app\n"), ("values.yaml", "image: {repository: a/b}\n")]);
    assert!(found.images.is_empty() && found.notes[0].contains("a/b has no tag"), "{found:?}");
}

/// kube-prometheus-stack (prometheus-community/helm-charts) has `registry`, `sha`, and keys that end with `Image`;
/// ingress-nginx (kubernetes/ingress-nginx) has `image` for the repository, and a digest.
#[test]
fn the_parts_of_an_image_have_several_names() {
    let digest = "0".repeat(64);
    let values = format!(
        "prometheusOperator:\n  thanosImage:\n    registry: quay.io\n    repository: thanos/thanos\n    tag: v0.42.4\n    sha: \"\"\n  admissionWebhooks:\n    image: {{registry: quay.io, repository: a/webhook, tag: 1.5, sha: \"{digest}\"}}\ncontroller:\n  image:\n    registry: registry.k8s.io\n    image: ingress-nginx/controller\n    tag: \"v1.1.1\"\n    digest: sha256:{digest}\nrepo:\n  repository: https://github.com/a/b\n  tag: main\n"
    );
    let found = of(&[CHART, ("values.yaml", &values)]);
    assert_eq!(
        found.images,
        [
            "quay.io/thanos/thanos:v0.42.4".to_owned(),
            format!("quay.io/a/webhook:1.5@sha256:{digest}"),
            format!("registry.k8s.io/ingress-nginx/controller:v1.1.1@sha256:{digest}"),
        ]
    );
}

/// Bitnami's charts: `global.imageRegistry` holds for all images, and Chart.yaml lists them in an annotation.
#[test]
fn a_global_registry_and_annotations_count() {
    let chart = "name: app\nappVersion: 1.0.0\nannotations:\n  images: |\n    - name: os-shell\n      image: docker.io/bitnami/os-shell:12\n  artifacthub.io/images: |\n    - name: x\n      image: ghcr.io/x/y:3\n";
    let values = "global:\n  imageRegistry: mirror.example\nimage: {registry: docker.io, repository: bitnami/redis, tag: 7.4.1}\n";
    let found = of(&[("Chart.yaml", chart), ("values.yaml", values)]);
    assert_eq!(found.images, ["ghcr.io/x/y:3", "docker.io/bitnami/os-shell:12", "mirror.example/bitnami/redis:7.4.1"]);
}

#[test]
fn texts_are_images_where_they_have_a_tag() {
    let values = "image: ghcr.io/a/b:1\nsidecar:\n  image: a/sidecar\n  imageTag: \"2\"\njob: {image: a/untagged}\nextra:\n- {name: x, image: \"a/{{ .Values.x }}:1\"}\nusesImage: true\n";
    let found = of(&[CHART, ("values.yaml", values)]);
    assert_eq!(found.images, ["ghcr.io/a/b:1", "a/sidecar:2"]);
    assert!(found.notes.iter().any(|note| note.contains("a/untagged has no tag")), "{found:?}");
    assert!(
        found.notes.iter().any(|note| note.contains("app.extra[0].image") && note.contains("template")),
        "{found:?}"
    );
}

#[test]
fn what_manifests_name_literally_is_taken_and_what_templates_make_is_noted() {
    let template = "kind: Pod\nspec:\n  containers:\n  - image: \"busybox:1.36\"  # for tests\n  - name: x\n    image: {{ .Values.image.repository }}:{{ .Values.image.tag }}\n  - {name: y}\n  # image: no/comment:1\n";
    let crd = "properties:\n  image:\n    type: string\nspec: {}\n";
    let found =
        of(&[CHART, ("templates/pod.yaml", template), ("crds/x.yaml", crd), ("README.md", "image: not/this:1")]);
    assert_eq!(found.images, ["busybox:1.36"]);
    assert!(found.notes[0].contains("templates make the names of 1 image"), "{found:?}");
}

/// Helm gives a chart below `charts/` the table under its name or alias, and `global`; `condition` leaves it out.
#[test]
fn charts_in_a_chart_have_the_values_that_it_gives_them() {
    let parent = "name: app\ndependencies:\n- {name: db, version: 1.0.0, alias: store, condition: store.enabled}\n- {name: off, version: 1.0.0, condition: off.enabled}\n";
    let values = "global: {imageRegistry: mirror.example}\nstore: {enabled: true, image: {tag: \"16\"}}\noff: {enabled: false}\n";
    let db = "image: {registry: docker.io, repository: library/postgres, tag: \"15\"}\n";
    let files = [("off/Chart.yaml", "name: off\n"), ("off/values.yaml", "image: {repository: a/off, tag: 1}\n")];
    let dir = chart(&[
        ("Chart.yaml", parent),
        ("values.yaml", values),
        ("charts/db/Chart.yaml", "name: db\n"),
        ("charts/db/values.yaml", db),
    ]);
    std::fs::write(dir.path().join("charts/off-1.0.0.tgz"), packed(&files)).expect("written");
    let found = named(dir.path()).expect("a chart");
    assert_eq!(found.images, ["mirror.example/library/postgres:16"]);
    assert_eq!(found.notes, ["off is left out: off.enabled is false"]);
}

#[test]
fn an_archive_is_read_and_none_that_leads_out_of_itself() {
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("app-1.0.0.tgz");
    let write = |bytes: &[u8]| std::fs::File::create(&file).and_then(|mut to| to.write_all(bytes)).expect("written");
    write(&packed(&[("app/Chart.yaml", CHART.1), ("app/values.yaml", "image: {repository: a/b, tag: 1}\n")]));
    assert_eq!(named(&file).expect("a chart").images, ["a/b:1"]);
    write(&packed(&[("app/../../Chart.yaml", CHART.1)]));
    assert!(named(&file).expect_err("it leads out").contains("leads out of the archive"));
    write(b"no archive");
    assert!(named(&file).is_err());
    write(&packed(&[("app/README.md", "")]));
    assert!(named(&file).expect_err("no chart").contains("has no Chart.yaml"));
    let large = "x".repeat(5 << 20) + "y";
    write(&packed(&[("app/values.yaml", &large)]));
    assert!(named(&file).expect_err("too large").contains("larger than 5 MiB"));
}
