//! Environment variables: what they name, and what is wrong with them.

use std::time::Duration;

use crate::config::Credentials;
use crate::config::environment::misspelt;
use crate::config::tests::{parse, parse_with};

#[test]
fn environment_variables() {
    for (name, value, message) in [
        ("LARDER_SERVER__LISTN", "x", "unknown key `server.listn`; did you mean `server.listen`?"),
        (
            "LARDER_SERVER__MAX_CONNECTIONS",
            "many",
            "`server.max_connections`: a whole number is needed here, not a text",
        ),
        ("LARDER_LOGGING__ACCESS", "maybe", "`logging.access`: true or false is needed here, not a text"),
        (
            "LARDER_CACHE__TTL",
            "60",
            "`cache.ttl`: `60` is no length of time; write for example \"60s\", \"5m\", \"12h\" or \"30d\"",
        ),
        (
            "LARDER_REPOSITORY__X__UPSTREAM",
            "https://me:geheim@x.example",
            "`repository.x.upstream[0]`: a table is needed here, not a text",
        ),
        (
            "LARDER_REPOSITORY__X__UPSTREAM",
            "[{ url = \"https://x\", username = \"me\", password = \"geheim ]",
            "`repository.x.upstream`: a list is needed here, not text that is no valid TOML",
        ),
        (
            "LARDER_REPOSITORY__X__UPSTREAM",
            "[{ url = \"https://x\", username = \"me\", pasword = \"geheim\" }]",
            "unknown key `repository.x.upstream[0].pasword`; did you mean `repository.x.upstream[0].password`?",
        ),
        ("LARDER_SERVER__LISTEN__PORT", "5000", "`server.listen`: a list is needed here, not a table"),
    ] {
        let said = parse_with("", &[(name, value)]).map(|_| ()).expect_err(value);
        assert_eq!(said, format!("environment variable {name}: {message}"), "{value}");
    }
}

/// The message for a variable, without its name.
fn refused_variables(text: &str, environment: &[(&str, &str)]) -> String {
    parse_with(text, environment).map(|_| ()).expect_err("wrong")
}

#[test]
fn a_variable_names_a_repository_with_dots() {
    let config = parse_with(
        "[repository.\"team/my-images\"]\n[[repository.\"team/my-images\".upstream]]\nurl = \"https://a.example\"",
        &[
            ("LARDER_REPOSITORY__DOCKER_IO__MAX_AGE", "5m"),
            ("LARDER_REPOSITORY__DOCKER_IO__UPSTREAM__0__PASSWORD", "geheim"),
            ("LARDER_REPOSITORY__DOCKER_IO__UPSTREAM__0__USERNAME", "me"),
            ("LARDER_REPOSITORY__TEAM_MY_IMAGES__UPSTREAM__0__PARALLEL", "3"),
            ("LARDER_REPOSITORY__TEAM_MY_IMAGES__UPSTREAM__1__URL", "https://b.example"),
        ],
    )
    .expect("valid");
    assert_eq!(config.repositories.len(), 11);
    let repository =
        |prefix: &str| config.repositories.iter().find(|found| found.prefix == prefix).expect("it is there");
    let hub = repository("docker.io");
    assert_eq!(hub.tags.max_age, Duration::from_secs(300));
    let [upstream] = &hub.upstreams[..] else { panic!("{hub:?}") };
    assert_eq!(upstream.url.origin.as_str(), "https://registry-1.docker.io/");
    assert!(matches!(&upstream.credentials, Some(Credentials::Login(login)) if login.password.reveal() == "geheim"));
    let team = repository("team/my-images");
    let [one, two] = &team.upstreams[..] else { panic!("{team:?}") };
    assert_eq!(
        (one.parallel, one.url.origin.as_str(), two.url.origin.as_str()),
        (3, "https://a.example/", "https://b.example/")
    );
}

#[test]
fn a_variable_that_may_mean_two_repositories_is_refused() {
    let text = "[repository.\"a.example\"]\n[repository.\"a-example\"]\nupstream = [{ url = \"https://b.example\" }]";
    let said = refused_variables(text, &[("LARDER_REPOSITORY__A_EXAMPLE__MAX_AGE", "5m")]);
    assert_eq!(
        said,
        "environment variable LARDER_REPOSITORY__A_EXAMPLE__MAX_AGE: `repository.a_example.max_age`: `a_example` may mean \"a-example\" or \"a.example\"; set this in the file, where the two can be told apart"
    );
    let said = refused_variables(text, &[("LARDER_REPOSITORY__DOCKER_IO__UPSTREAM__1__URL", "https://x.example")]);
    assert!(said.ends_with("the list has 0 entries, counted from 0; the next one would be 0"), "{said}");
}

/// `docker run --env-file` passes quotes on as they are written (moby#46773); files from Windows have CR at the ends of
/// lines.
#[test]
fn quotes_and_line_ends_of_an_env_file_are_refused() {
    for (value, message) in [
        ("\"/var/lib/larder\"", "the quotes around it belong to the value"),
        ("'/var/lib/larder'", "the quotes around it belong to the value"),
        ("/var/lib/larder\r", "it ends with the line end of the file"),
        ("/var/lib/larder\n", "it ends with the line end of the file"),
    ] {
        let said = refused_variables("", &[("LARDER_CACHE__DIR", value)]);
        let expected = format!("environment variable LARDER_CACHE__DIR: `cache.dir`: {message}");
        assert!(said.starts_with(&expected) && !said.contains("/var/lib"), "{said}");
    }
    let said = refused_variables("", &[("LARDER_REPOSITORY__DOCKER_IO__MAX_AGE", "5m\r")]);
    assert!(said.contains("it ends with the line end"), "{said}");
}

/// Kubernetes sets `<SERVICE>_SERVICE_HOST`, `<SERVICE>_PORT_5000_TCP_ADDR` and the like for each service of the
/// namespace (its documentation: Service, environment variables).
#[test]
fn a_variable_that_looks_like_a_slip_is_warned_of() {
    let said = |name: &str| misspelt(&[(name.to_owned(), String::new())]).pop();
    for (name, meant) in [
        ("LARDER_SERVER_LISTEN", "LARDER_SERVER__LISTEN"),
        ("LARDER_CACHE_MAX_SIZE", "LARDER_CACHE__MAX_SIZE"),
        ("LARDER_SERVER_TLS_PRIVATE_KEY", "LARDER_SERVER__TLS__PRIVATE_KEY"),
        ("LARDER_REPOSITORY_DOCKER_IO_MAX_AGE", "LARDER_REPOSITORY__DOCKER_IO__MAX_AGE"),
    ] {
        let warning = said(name).unwrap_or_else(|| panic!("{name} is not warned of"));
        assert!(warning.ends_with(&format!("did you mean {meant}?")), "{warning}");
    }
    for name in [
        "LARDER_ADMIN",
        "LARDER_PORT",
        "LARDER_SERVICE_HOST",
        "LARDER_PORT_5000_TCP_ADDR",
        "LARDER_ADMIN_SERVICE_PORT",
        "LARDER_PROXY_PORT_17080_TCP",
        "LARDER_SERVER__LISTEN",
        "LARDER_REPOSITORY_SERVICE_HOST",
        "OTHER_SERVER_LISTEN",
        "LARDER_A_B_C_D_E_F_G_H_I_J_K",
    ] {
        assert_eq!(said(name), None, "{name}");
    }
}

#[test]
fn a_secret_of_the_file_may_be_in_the_environment() {
    let text = "[[repository.x.upstream]]\nurl = \"https://x.example\"\nusername = \"me\"\npassword = { env = \"HUB_PASSWORD\" }\nheaders = { env = \"prod\", X-Key = { env = \"X_KEY\" } }";
    let config = parse_with(text, &[("HUB_PASSWORD", "geheim"), ("X_KEY", "schluessel")]).expect("valid");
    let upstream = &config.repositories[0].upstreams[0];
    assert!(matches!(&upstream.credentials, Some(Credentials::Login(login)) if login.password.reveal() == "geheim"));
    let header =
        |name: &str| upstream.headers.iter().find(|(of, _)| of == name).expect("there").1.to_str().expect("text");
    assert_eq!((header("env"), header("x-key")), ("prod", "schluessel"), "a header may be called env");
    let said = refused_variables(text, &[("HUB_PASSWORD", "\"geheim\"")]);
    let [password, key] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert!(
        password.starts_with(
            "larder.toml:4: `repository.x.upstream[0].password`: the environment variable `HUB_PASSWORD`: the quotes"
        ),
        "{said}"
    );
    assert_eq!(
        key,
        "larder.toml:5: `repository.x.upstream[0].headers.X-Key`: the environment variable `X_KEY` is not set, or is empty"
    );
    assert!(!said.contains("geheim"), "{said}");
    let said = parse("[cache]\ndir = { env = \"DIR\" }").map(|_| ()).expect_err("no secret");
    assert_eq!(said, "larder.toml:2: `cache.dir`: a text in quotes is needed here, not a table");
}
