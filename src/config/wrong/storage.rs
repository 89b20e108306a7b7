//! Wrong configurations of the bucket.

use super::super::tests::parse;
use super::refused;

/// A bucket, and more lines for it, from line 3 on.
fn s3(lines: &str) -> String {
    format!("[storage.s3]\nbucket = \"larder\"\n{lines}")
}

#[test]
fn a_bucket_that_cannot_be() {
    refused([
        (
            "[storage.s3]\nregion = \"eu-central-1\"".to_owned(),
            "1: `storage.s3.bucket`: it is missing; write the name of the bucket",
        ),
        (
            "[storage.s3]\nbucket = \"s3://larder\"".to_owned(),
            "2: `storage.s3.bucket`: this is no name of a bucket; it has 3 or more letters, digits, `-` and `.`, and no URL or path",
        ),
        (s3("bukket = 1"), "3: unknown key `storage.s3.bukket`; did you mean `storage.s3.bucket`?"),
        (
            s3("endpoint = \"s3.example.com\""),
            "3: `storage.s3.endpoint`: this is no URL (it does not begin with https://); write for example endpoint = \"https://s3.example.com\"",
        ),
        (
            s3("endpoint = \"https://s3.example.com/larder\""),
            "3: `storage.s3.endpoint`: there is something behind the host; the bucket is a key of its own, and write for example endpoint = \"https://s3.example.com\"",
        ),
        (
            s3("region = \"\""),
            "3: `storage.s3.region`: this is no region; write for example \"eu-central-1\", or \"us-east-1\" where the server has none",
        ),
        (
            s3("prefix = \"/larder\""),
            "3: `storage.s3.prefix`: this is no prefix of keys; write for example \"larder\" or \"caches/larder\"",
        ),
        (
            s3("tier_size = 0"),
            "3: `storage.s3.tier_size`: nothing could come in; write \"none\" for no limit, or for example \"100GiB\" or \"50%\"",
        ),
        (
            s3("[cache]\nmax_size = \"50%\""),
            "4: `cache.max_size`: with [storage.s3] it limits what is in the bucket, which has no size of which this could be a share; write for example \"2TiB\" or \"none\", and storage.s3.tier_size for the disk",
        ),
    ]);
}

#[test]
fn a_bucket_and_an_index_on_a_server_go_together() {
    let config = parse(&format!("[index]\nurl = \"postgres://larder@127.0.0.1/larder\"\n{}", s3("")));
    let config = config.expect("a configuration");
    assert!(config.index.is_some() && config.s3.is_some());
}

#[test]
fn half_of_the_credentials_of_a_bucket() {
    refused([
        (
            s3("access_key_id = \"AKIA\""),
            "1: `storage.s3.secret_access_key_file`: it is missing; write the path of a file with the secret key that belongs to access_key_id",
        ),
        (
            s3("secret_access_key_file = \"/secret\""),
            "1: `storage.s3.access_key_id`: it is missing; write the key that the secret key belongs to, or remove secret_access_key_file",
        ),
        (
            s3("access_key_id = \"AKIA\"\nsecret_access_key_file = \"/there/is/none\""),
            "4: `storage.s3.secret_access_key_file`: cannot read /there/is/none: No such file or directory (os error 2)",
        ),
    ]);
}

#[test]
fn the_keys_of_a_bucket_come_from_a_file_and_are_not_shown() {
    let secret = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(secret.path(), "geheim\n").expect("written");
    let keys = format!("access_key_id = \"AKIA\"\nsecret_access_key_file = {:?}", secret.path());
    let config = parse(&s3(&keys)).expect("a configuration");
    let keys = config.s3.as_ref().and_then(|s3| s3.keys.clone()).expect("keys");
    assert_eq!((keys.id.as_str(), keys.secret.reveal()), ("AKIA", "geheim"));
    assert!(!format!("{config:?}").contains("geheim"));
}
