//! `[storage.s3]`, checked: the bucket in which content is kept beside the cache directory.

use url::Url;

use super::check::Check;
use super::credentials::read_password;
use super::error::ConfigError;
use super::proxy::{Proxies, is_loopback};
use super::raw;
use super::secret::Secret;
use super::shapes::why_no_url;
use super::units::Amount;
use super::web::WebAccess;

/// A bucket of an S3-compatible server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3 {
    pub bucket: String,
    /// `None`: that of AWS for the region.
    pub endpoint: Option<Url>,
    pub region: String,
    /// What the names of all keys begin with, with a slash at its end unless it is empty.
    pub prefix: String,
    /// `None`: the default chain of AWS.
    pub keys: Option<S3Keys>,
    /// Whether clients are sent to the bucket for blobs.
    pub redirect: bool,
    /// Most bytes that files take in the cache directory.
    pub tier_size: Amount,
    pub access: WebAccess,
}

/// The credentials for a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Keys {
    pub id: String,
    pub secret: Secret,
}

const ENDPOINT: &str = "write for example endpoint = \"https://s3.example.com\"";

/// Checks `[storage.s3]`. Returns `None` if there is no such table.
pub fn check(check: &Check<'_>, written: raw::Storage, proxies: &Proxies) -> Result<Option<S3>, ConfigError> {
    let Some(written) = written.s3 else {
        return Ok(None);
    };
    let invalid = |key: &str, message: &str| check.invalid(&["storage", "s3", key], message);
    check_bucket(&written.bucket).map_err(|message| invalid("bucket", message))?;
    let endpoint = match written.endpoint.is_empty() {
        true => None,
        false => Some(endpoint(&written.endpoint).map_err(|message| invalid("endpoint", &message))?),
    };
    let is_word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !is_word(&written.region) {
        let message =
            "this is no region; write for example \"eu-central-1\", or \"us-east-1\" where the server has none";
        return Err(invalid("region", message));
    }
    let prefix = prefix(&written.prefix).map_err(|message| invalid("prefix", message))?;
    let keys = keys(check, &written)?;
    if written.tier_size.of(u64::MAX) == Some(0) {
        let message = "nothing could come in; write \"none\" for no limit, or for example \"100GiB\" or \"50%\"";
        return Err(invalid("tier_size", message));
    }
    let address = endpoint.clone().map_or_else(|| Url::parse("https://s3.amazonaws.com"), Ok);
    let access = match &address {
        Ok(address) => WebAccess::new(check, address, None, proxies),
        Err(error) => Err(error.to_string()),
    };
    let access = access.map_err(|message| invalid("endpoint", &message))?;
    if let Some(endpoint) = &endpoint {
        warn_of_endpoint(check, endpoint, &written.bucket);
    }
    Ok(Some(S3 {
        bucket: written.bucket,
        endpoint,
        region: written.region,
        prefix,
        keys,
        redirect: written.redirect,
        tier_size: written.tier_size,
        access,
    }))
}

/// Checks the credentials.
fn keys(check: &Check<'_>, written: &raw::S3) -> Result<Option<S3Keys>, ConfigError> {
    let invalid = |key: &str, message: &str| check.invalid(&["storage", "s3", key], message);
    Ok(match (written.access_key_id.is_empty(), &written.secret_access_key_file) {
        (true, None) => None,
        (false, None) => {
            let message = "it is missing; write the path of a file with the secret key that belongs to access_key_id";
            return Err(invalid("secret_access_key_file", message));
        }
        (true, Some(_)) => {
            let message =
                "it is missing; write the key that the secret key belongs to, or remove secret_access_key_file";
            return Err(invalid("access_key_id", message));
        }
        (false, Some(path)) => {
            let secret = read_password(check, path).map_err(|message| invalid("secret_access_key_file", &message))?;
            Some(S3Keys { id: written.access_key_id.clone(), secret })
        }
    })
}

/// Checks the name of a bucket: what AWS allows, and what others allow beside that (capital letters and `_`).
fn check_bucket(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is missing; write the name of the bucket");
    }
    let is_fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    match name.bytes().all(is_fine) && (3..=255).contains(&name.len()) {
        true => Ok(()),
        false => Err("this is no name of a bucket; it has 3 or more letters, digits, `-` and `.`, and no URL or path"),
    }
}

fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("this is no URL ({}); {ENDPOINT}", why_no_url(error)))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(format!("a URL that begins with https:// or http:// is needed; {ENDPOINT}"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("there is a user name or password in it; use access_key_id and secret_access_key_file".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() || url.path() != "/" {
        return Err(format!("there is something behind the host; the bucket is a key of its own, and {ENDPOINT}"));
    }
    Ok(url)
}

/// Reads the prefix of keys.
fn prefix(text: &str) -> Result<String, &'static str> {
    let is_fine = |part: &str| {
        let is_plain = part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        is_plain && !part.is_empty() && part != "." && part != ".."
    };
    let trimmed = text.strip_suffix('/').unwrap_or(text);
    match trimmed {
        "" if text.is_empty() => Ok(String::new()),
        _ if trimmed.split('/').all(is_fine) => Ok(format!("{trimmed}/")),
        _ => Err("this is no prefix of keys; write for example \"larder\" or \"caches/larder\""),
    }
}

fn warn_of_endpoint(check: &Check<'_>, endpoint: &Url, bucket: &str) {
    let host = endpoint.host_str().unwrap_or_default();
    let key = ["storage", "s3", "endpoint"];
    if host.strip_prefix(bucket).is_some_and(|rest| rest.starts_with('.')) {
        let message = "it begins with the name of the bucket; Larder adds the bucket itself, as a path, and a server \
                       may take this for a bucket within the bucket";
        check.warn(&key, message);
    }
    if endpoint.scheme() == "http" && !is_loopback(endpoint) {
        check.warn(&key, "it has no TLS: anybody on the way can read the content, though not change it unnoticed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_with_a_slash_and_is_a_path() {
        for (written, read) in [("", ""), ("larder", "larder/"), ("a/b/", "a/b/"), ("a_b.c", "a_b.c/")] {
            assert_eq!(prefix(written), Ok(read.to_owned()));
        }
        for wrong in ["/", "/a", "a//b", "../a", "a b", "a?b", "ä"] {
            assert!(prefix(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_endpoint_is_a_server_and_no_bucket() {
        assert!(endpoint("https://s3.example.com").is_ok() && endpoint("http://[::1]:9000/").is_ok());
        for wrong in
            ["s3.example.com", "s3://larder", "https://s3.example.com/larder", "https://a:b@s3", "https://s3/?x"]
        {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
