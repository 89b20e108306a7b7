use super::*;

/// Reads the configuration of an upstream from the keys of its table.
pub fn upstream(toml: &str) -> config::Upstream {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), format!("[[repository.hub.upstream]]\n{toml}")).expect("written");
    let config = config::Config::load(&[file.path().to_owned()], std::iter::empty()).expect("valid");
    config.repositories[0].upstreams[0].clone()
}

#[test]
fn a_redirect_into_another_network_is_refused_before_it_is_dialled() {
    let transport = |toml: &str| {
        let patience = Duration::from_secs(1);
        Transport::new(&upstream(toml), String::new(), patience, Arc::default(), &Shared::default()).expect("a client")
    };
    let public = transport("url = \"https://1.1.1.1\"\nredirect_hosts = [\"10.0.0.9\"]");
    let from = Url::parse("https://1.1.1.1/v2/x/blobs/y").expect("a URL");
    let redirect = |transport: &Transport, location: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, location.parse().expect("a header"));
        transport.redirect_target(&from, &headers).map(|url| url.to_string())
    };
    assert!(redirect(&public, "/elsewhere").is_ok() && redirect(&public, "https://8.8.8.8/x").is_ok());
    for inside in
        ["http://127.0.0.1/", "http://169.254.169.254/latest/", "http://[::1]/", "http://10.0.0.1/", "http://0x7f.1/"]
    {
        assert!(redirect(&public, inside).is_err(), "{inside}");
    }
    assert!(redirect(&public, "http://10.0.0.9/").is_ok(), "the configuration names it");
    let here = transport("url = \"http://127.0.0.1:5000\"");
    assert!(redirect(&here, "http://127.0.0.3:80/").is_ok() && redirect(&here, "http://169.254.169.254/").is_err());
}

#[test]
fn only_a_storage_is_where_a_blob_is() {
    let digest: Digest = format!("sha256:{}", "ab".repeat(32)).parse().expect("a digest");
    let hex = "ab".repeat(32);
    for (url, expected) in [
        (format!("https://cdn.example/registry-v2/docker/registry/v2/blobs/sha256/ab/{hex}/data?sig=x"), true),
        (format!("https://s3.example/{hex}"), true),
        (format!("https://other.example/v2/team/app/blobs/sha256:{hex}"), false),
        (format!("https://login.example/?back=/sha256/{hex}"), false),
        ("https://login.example/".to_owned(), false),
    ] {
        assert_eq!(is_storage_of(&digest, &Url::parse(&url).expect("a URL")), expected, "{url}");
    }
}
