//! Promise: Larder comes to an upstream with the credentials it is given, in whatever way the upstream wants them.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::helper::credential_helper as helper;
use crate::support::{
    Auth, Authority, Fault, Hub, Image, Larder, Listener, On, Options, RepositoryConfig, TlsFront, TokenPlace,
    TokenService, eventually, get, repository_config,
};

const PRIVATE: &str = "team/private";

async fn private_hub(options: Options) -> (Hub, Image) {
    let hub = Hub::start(options.user("me", "first").private(PRIVATE, "me")).await;
    let image = Image::new(1);
    hub.push_image(PRIVATE, "1", &image);
    hub.push_image(PRIVATE, "2", &Image::new(2));
    (hub, image)
}

fn change_password(hub: &Hub, password: &str) {
    hub.configure(|options| options.users = vec![("me".to_owned(), password.to_owned())]);
    hub.expire_tokens();
}

async fn pulls(larder: &Larder, tag: &str) -> u16 {
    get(larder.manifest_url("hub/team/private", tag)).await.status
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("written");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_file_is_read_without_its_newline_and_again_when_it_changes() {
    let dir = TempDir::new().expect("a directory");
    let (hub, _) = private_hub(Options::with_basic("other", "x")).await;
    let file = write(dir.path(), "password", "first\r\n");
    let keys = format!("username = \"me\"\npassword_file = \"{}\"", file.display());
    let larder = Larder::start(RepositoryConfig::new("hub").upstream_with(&hub, &keys)).await;
    assert_eq!(pulls(&larder, "1").await, 200);

    change_password(&hub, "second");
    assert_eq!(pulls(&larder, "2").await, 403);
    write(dir.path(), "password", "second\n");
    eventually("the new password is used", async || pulls(&larder, "2").await == 200).await;
    assert!(!larder.log().contains("second"), "the password is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_helper_is_asked_once_and_again_when_its_password_is_refused() {
    for options in [Options::with_basic("other", "x"), Options::with_tokens()] {
        let dir = TempDir::new().expect("a directory");
        let (hub, _) = private_hub(options).await;
        helper(dir.path(), "first");
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").expect("a PATH"));
        let config = RepositoryConfig::new("hub").upstream_with(&hub, "credential_helper = \"test\"");
        let larder = Larder::builder().config(config).env("PATH", &path).start().await;
        for _ in 0..3 {
            assert_eq!(pulls(&larder, "1").await, 200);
        }
        let runs = || std::fs::read_to_string(dir.path().join("runs")).expect("it ran");
        assert_eq!(runs(), format!("get {}\n", hub.address()));

        // As when a cloud's password of twelve hours was replaced before its time.
        change_password(&hub, "second");
        helper(dir.path(), "second");
        assert_eq!(pulls(&larder, "2").await, 200);
        assert_eq!(runs().lines().count(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_taken_from_the_configuration_of_docker() {
    let dir = TempDir::new().expect("a directory");
    let service = TokenService { refuses_post: None, ..TokenService::default() };
    let (hub, _) = private_hub(Options { auth: Auth::Token(service), ..Options::default() }).await;
    hub.configure(|options| options.identity_tokens = vec![("identity".to_owned(), "me".to_owned())]);
    let host = hub.address();
    let program = helper(dir.path(), "first");
    let helper_name = "test";
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").expect("a PATH"));
    assert!(program.exists());
    for (what, document) in [
        ("a login", format!(r#"{{"auths":{{"http://{host}/v2/":{{"auth":"bWU6Zmlyc3Q="}}}}}}"#)),
        ("a name and password", format!(r#"{{"auths":{{"{host}":{{"username":"me","password":"first"}}}}}}"#)),
        ("an identity token", format!(r#"{{"auths":{{"{host}":{{"auth":"bWU6","identitytoken":"identity"}}}}}}"#)),
        ("a helper for the host", format!(r#"{{"credHelpers":{{"{host}":"{helper_name}"}}}}"#)),
        ("a store", format!(r#"{{"auths":{{"{host}":{{}}}},"credsStore":"{helper_name}"}}"#)),
    ] {
        let file = write(dir.path(), "config.json", &document);
        let keys = format!("docker_config = \"{}\"", file.display());
        let config = RepositoryConfig::new("hub").upstream_with(&hub, &keys);
        let larder = Larder::builder().config(config).env("PATH", &path).start().await;
        assert_eq!(pulls(&larder, "1").await, 200, "{what}\n{}", hub.summary());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_had_by_get_or_by_post_as_the_service_wants_it() {
    for (refuses_get, refuses_post, keys) in [
        (None, Some(405), "username = \"me\"\npassword = \"first\""),
        (Some(405), None, "username = \"me\"\npassword = \"first\""),
        (Some(404), None, "username = \"me\"\npassword = \"first\""),
        (Some(400), None, "username = \"me\"\npassword = \"first\""),
        (Some(405), None, "username = \"<token>\"\npassword = \"identity\""),
        (None, None, "username = \"<token>\"\npassword = \"identity\""),
    ] {
        let service = TokenService { refuses_get, refuses_post, ..TokenService::default() };
        let (hub, image) = private_hub(Options { auth: Auth::Token(service), ..Options::default() }).await;
        hub.configure(|options| options.identity_tokens = vec![("identity".to_owned(), "me".to_owned())]);
        let larder = Larder::start(RepositoryConfig::new("hub").upstream_with(&hub, keys)).await;
        assert_eq!(pulls(&larder, "1").await, 200, "{refuses_get:?} {refuses_post:?}\n{}", hub.summary());
        let blob = get(larder.blob_url("hub/team/private", &image.layer_digests()[0])).await;
        assert_eq!(blob.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_with_its_own_authority_may_ask_for_a_certificate() {
    let dir = TempDir::new().expect("a directory");
    let (ours, theirs) = (Authority::new(dir.path(), "ours"), Authority::new(dir.path(), "theirs"));
    let server = ours.issue("127.0.0.1");
    let (client, stranger) = (ours.issue("client"), theirs.issue("stranger"));
    let hub = Hub::start(Options::default()).await;
    hub.push_image(PRIVATE, "1", &Image::new(1));
    let (open, closed) =
        (TlsFront::start(&hub, &server, None).await, TlsFront::start(&hub, &server, Some(&ours)).await);
    let ca = |authority: &Authority| format!("server_ca_bundle = \"{}\"\n", authority.file().display());
    let identity = |files: &crate::support::Certificate| {
        format!(
            "client_certificate = \"{}\"\nclient_private_key = \"{}\"\n",
            files.certificate.display(),
            files.key.display()
        )
    };
    for (url, keys, status) in [
        (open.url(), ca(&ours), 200),
        (open.url(), String::new(), 502),
        (open.url(), ca(&theirs), 502),
        (open.url(), "insecure_skip_verify = true".to_owned(), 200),
        (closed.url(), ca(&ours) + &identity(&client), 200),
        (closed.url(), ca(&ours), 502),
        (closed.url(), ca(&ours) + &identity(&stranger), 502),
    ] {
        let larder = Larder::start(RepositoryConfig::new("hub").upstream_url(&url, &keys)).await;
        let answer = get(larder.manifest_url("hub/team/private", "1")).await;
        assert_eq!(answer.status, status, "{keys}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_challenges_get_a_truthful_error_and_no_credentials() {
    let deep = format!("Bearer {}", "realm=\"\\\"".repeat(2000));
    let huge = format!(r#"Bearer realm="http://127.0.0.1:1/{}",service="x""#, "a".repeat(20_000));
    let many = "Basic realm=x, ".repeat(500) + "Negotiate";
    for (challenges, answers) in [
        (vec![], &[403][..]),
        (vec!["Bearer"], &[403]),
        (vec![r#"Bearer realm="""#], &[403]),
        (vec![r#"Bearer realm="not a url""#], &[403]),
        (vec![r#"Bearer realm="ftp://127.0.0.1/token""#], &[403]),
        (vec![r#"Bearer realm="file:///etc/passwd""#], &[403]),
        (vec![r#"Bearer realm="http://127.0.0.1:1/token",service="x""#], &[502]),
        (vec![r#"Bearer realm="http://does-not-exist.invalid/token""#], &[502]),
        (vec![r#"Bearer realm=""nested"",service="a"b""#], &[403]),
        (vec!["Negotiate", "Digest realm=\"x\", nonce=\"y\""], &[403]),
        (vec![deep.as_str()], &[403]),
        (vec![huge.as_str()], &[403, 502]),
        (vec![many.as_str()], &[403]),
    ] {
        let options = Options::with_tokens();
        let (hub, _) = private_hub(options).await;
        let headers: Vec<_> = challenges.iter().map(|challenge| ("www-authenticate", *challenge)).collect();
        hub.fault(On::manifest().before_auth(), Fault::reply(401, &headers, "no"));
        let config = RepositoryConfig::new("hub").upstream_with(&hub, "username = \"me\"\npassword = \"first\"");
        let mut larder = Larder::start(config).await;
        let answer = get(larder.manifest_url("hub/team/private", "1")).await;
        let shown = challenges.first().map(|challenge| challenge.chars().take(60).collect::<String>());
        assert!(answers.contains(&answer.status), "{} for {shown:?}: {}", answer.status, answer.text());
        assert!(larder.is_running());
        hub.clear_faults();
        // A realm that cannot be reached is left alone for a moment.
        eventually("it recovers", async || pulls(&larder, "2").await == 200).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_token_answers_get_a_truthful_error_or_a_way_round() {
    let long = format!(r#"{{"token":"{}"}}"#, "t".repeat(2 << 20));
    let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for (status, headers, body, answers) in [
        (200, vec![], "", &[502][..]),
        (200, vec![], "no json", &[502]),
        (200, vec![], "[]", &[502]),
        (200, vec![], "{}", &[403]),
        (200, vec![], r#"{"token":""}"#, &[403]),
        (200, vec![], r#"{"token":7}"#, &[502]),
        (200, vec![], r#"{"token":null,"access_token":null}"#, &[403]),
        (200, vec![], r#"{"token":"line\nbreak"}"#, &[403]),
        (200, vec![], nested.as_str(), &[502]),
        (200, vec![], long.as_str(), &[502]),
        (401, vec![], r#"{"details":"incorrect username or password"}"#, &[403]),
        (403, vec![], "", &[403]),
        (404, vec![], "", &[404]),
        (500, vec![], "", &[502]),
        (302, vec![("location", "/token")], "", &[502]),
        (307, vec![("location", "http://127.0.0.1:1/token")], "", &[502]),
        (429, vec![("retry-after", "0")], "slow down", &[429]),
    ] {
        let (hub, _) = private_hub(Options::with_tokens()).await;
        hub.fault(On::token(), Fault::reply(status, &headers, body));
        let config = RepositoryConfig::new("hub").upstream_with(&hub, "username = \"me\"\npassword = \"first\"");
        let mut larder = Larder::start(config).await;
        let answer = get(larder.manifest_url("hub/team/private", "1")).await;
        let shown: String = body.chars().take(60).collect();
        assert!(answers.contains(&answer.status), "{} for {status} {shown}: {}", answer.status, answer.text());
        let asked = hub.count(|request| request.listener == Listener::Token);
        assert!((1..=4).contains(&asked), "{asked} token requests for {status} {shown}");
        assert!(larder.is_running() && !larder.log().contains("first\""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_lives_of_tokens_do_no_harm() {
    for life in ["-5", "1e300", "0", "\"300\"", "\"soon\"", "{}", "[1]", "null", "true", "99999999999999999999"] {
        let odd_life = Some(serde_json::from_str(life).expect("JSON"));
        let service = TokenService { odd_life, ..TokenService::default() };
        let (hub, _) = private_hub(Options { auth: Auth::Token(service), ..Options::default() }).await;
        let config = RepositoryConfig::new("hub").upstream_with(&hub, "username = \"me\"\npassword = \"first\"");
        let larder = Larder::start(config).await;
        assert_eq!((pulls(&larder, "1").await, pulls(&larder, "2").await), (200, 200), "{life}");
        hub.expire_tokens();
        assert_eq!(pulls(&larder, "2").await, 200, "{life}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_not_hammered_at_the_token_service() {
    let place = TokenPlace::Registry;
    let service = TokenService { place, ..TokenService::default() };
    let (hub, _) = private_hub(Options { auth: Auth::Token(service), ..Options::default() }).await;
    let config = RepositoryConfig::new("hub").upstream_with(&hub, "username = \"me\"\npassword = \"wrong\"");
    let larder = Larder::start(config).await;
    for _ in 0..20 {
        assert_eq!(pulls(&larder, "1").await, 403);
    }
    let asked = hub.count_on(On::token());
    assert!(asked <= 3, "{asked} attempts to log in");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_at_once_cost_one_token_and_a_refused_one_is_replaced_once() {
    let hub = Hub::start(Options::with_tokens()).await;
    for number in 0..20 {
        hub.push_image("team/app", &number.to_string(), &Image::new(number));
    }
    let larder = Larder::start(repository_config("hub", &[&hub])).await;
    let pull_all = async || {
        let pulls = (0..20).map(|number| get(larder.manifest_url("hub/team/app", &number.to_string())));
        let answers = futures_util::future::join_all(pulls).await;
        assert!(answers.iter().all(|answer| answer.status == 200));
        hub.take_requests().iter().filter(|request| request.listener == Listener::Token).count()
    };
    assert_eq!(pull_all().await, 1);
    assert_eq!(pull_all().await, 0);
    hub.expire_tokens();
    assert_eq!(pull_all().await, 1);
}
