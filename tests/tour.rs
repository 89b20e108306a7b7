//! What a new user does first: a small configuration, the commands, a slip here and there.

use std::fs;

use crate::support::{Hub, Image, Larder, Options, RepositoryConfig, eventually, get, repository_config, request};

/// A running Larder with one image, `hub/team/app:1`, in its cache.
async fn with_image(builder: crate::support::larder::Builder) -> (Hub, Larder) {
    let hub = Hub::start(Options::default()).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[1_000]));
    let larder = builder.config(repository_config("hub", &[&hub])).start().await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    eventually("it is listed", async || larder.run(&["ls"]).await.stdout.contains("hub/team/app:1")).await;
    (hub, larder)
}

/// Names of a first part with a dot or a colon are registries for clients: Docker's `splitDockerDomain`
/// (github.com/distribution/reference, normalize.go).
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_unknown_is_named_in_the_answer_and_once_in_the_log() {
    let hub = Hub::start(Options::default()).await;
    let config = RepositoryConfig::new("ghcr.io").upstream(&hub);
    let builder = Larder::builder().config(&config).env("LARDER_SERVER__BUILTIN_REPOSITORIES", "true");
    let larder = builder.start().await;
    for _ in 0..3 {
        // Asked of the default repository, Docker Hub, this would be no 404: the test has no network.
        let answer = get(larder.manifest_url("quay.oi/org/tool", "1")).await;
        let error = answer.json()["errors"][0].clone();
        assert_eq!((answer.status, &error["code"]), (404, &"NAME_UNKNOWN".into()), "{}", answer.text());
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains("did you mean `quay.io`?"), "{message}");
        let answer = get(larder.manifest_url("org/tool", "1") + "?ns=registry.corp.example").await;
        assert_eq!(answer.status, 404, "{}", answer.text());
    }
    for registry in ["quay.oi", "registry.corp.example"] {
        let log = larder.log();
        let lines = log.lines().filter(|line| line.contains("no repository is for") && line.contains(registry));
        assert_eq!(lines.count(), 1, "{registry}");
    }
    assert!(hub.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_instance_is_found_from_any_folder() {
    let (_hub, larder) = with_image(Larder::builder()).await;
    let elsewhere = tempfile::tempdir().expect("a folder");
    let url = larder.admin_url();
    let address = url.trim_start_matches("http://").to_owned();
    let by_option = larder.run_in(elsewhere.path(), &[], &["ls", "--admin", &url]).await;
    let by_variable = larder.run_in(elsewhere.path(), &[("LARDER_ADMIN", &url)], &["ls"]).await;
    fs::write(elsewhere.path().join("larder.toml"), format!("[admin]\nlisten = \"{address}\"")).expect("written");
    let by_file = larder.run_in(elsewhere.path(), &[], &["ls"]).await;
    // The directory is named in a file and in use.
    let file = larder.home().join("other.toml");
    fs::write(&file, format!("[admin]\nlisten = \"{address}\"\n[cache]\ndir = \"cache\"")).expect("written");
    let arguments = ["--config", file.to_str().expect("text"), "ls"];
    let by_directory = larder.run_in(elsewhere.path(), &[], &arguments).await;
    for ran in [by_option, by_variable, by_file, by_directory] {
        assert!(ran.code == Some(0) && ran.stdout.contains("hub/team/app:1"), "{ran:?}");
    }
    let wrong = larder.run_in(elsewhere.path(), &[("LARDER_ADMIN", "127.0.0.1")], &["ls"]).await;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("LARDER_ADMIN"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_of_a_stopped_instance_is_found_beside_its_file() {
    let (_hub, mut larder) = with_image(Larder::builder()).await;
    let address = larder.admin_url().trim_start_matches("http://").to_owned();
    larder.stop().await;
    let file = larder.home().join("other.toml");
    fs::write(&file, format!("[admin]\nlisten = \"{address}\"\n[cache]\ndir = \"cache\"")).expect("written");
    let elsewhere = tempfile::tempdir().expect("a folder");
    let arguments = ["--config", file.to_str().expect("text"), "ls"];
    let ran = larder.run_in(elsewhere.path(), &[], &arguments).await;
    assert!(ran.code == Some(0) && ran.stdout.contains("hub/team/app:1"), "{ran:?}");

    fs::write(elsewhere.path().join("larder.toml"), format!("[admin]\nlisten = \"{address}\"")).expect("written");
    let none = larder.run_in(elsewhere.path(), &[], &["ls"]).await;
    assert_eq!((none.code, none.stdout.as_str()), (Some(1), ""), "{none:?}");
    assert!(none.stderr.contains(&format!("no instance runs at {address}, and there is no cache in")), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_may_begin_with_the_address_of_the_cache() {
    let (_hub, larder) = with_image(Larder::builder()).await;
    let own = larder.url().trim_start_matches("http://").to_owned();
    let image = format!("{own}/hub/team/app:1");
    let pinned = larder.run(&["pin", &image, "--json"]).await;
    assert_eq!((pinned.code, &pinned.json()["reference"]), (Some(0), &"hub/team/app:1".into()), "{pinned:?}");
    assert_eq!(larder.run(&["ls", "--json"]).await.json()[0]["pinned"], true);
    assert_eq!(larder.run(&["unpin", &image]).await.code, Some(0));
    let purged = larder.run(&["purge", &image]).await;
    assert!(purged.code == Some(0) && purged.stdout.starts_with("purged 1 object"), "{purged:?}");
    assert_eq!(larder.run(&["ls", "--json"]).await.json(), serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reference_that_names_nothing_is_an_error_running_or_stopped() {
    let (_hub, mut larder) = with_image(Larder::builder()).await;
    let admin = larder.admin_url();
    for (reference, status) in
        [("hub/team/app:2", 404), ("hub/team/none", 404), ("hug/team/app", 404), ("hub/team/app:-", 400)]
    {
        let answer = request("DELETE", format!("{admin}/api/cache?reference={reference}")).send().await;
        assert_eq!(answer.status, status, "{reference}: {}", answer.text());
    }
    for round in 0..2 {
        for (arguments, said) in [
            (&["purge", "hub/team/app:2"][..], "nothing of `hub/team/app:2` is cached"),
            (&["purge", "hub/team/none"], "nothing of `hub/team/none` is cached"),
            (&["purge", "registry.example/team/app:1"], "nothing of `registry.example/team/app:1` is cached"),
            (&["pin", "registry.example/team/app:1"], "add [repository.\"registry.example\"]"),
            (&["unpin", "hub/team/app:1"], "hub/team/app:1 was not pinned by name"),
        ] {
            let ran = larder.run(arguments).await;
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{arguments:?} {ran:?}");
            assert!(ran.stderr.contains(said), "{ran:?}");
            let ran = larder.run(&[arguments, &["--json"]].concat()).await;
            assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), ""), "{arguments:?} {ran:?}");
            assert!(ran.json()["error"].as_str().is_some_and(|error| error.contains(said)), "{ran:?}");
        }
        let listed = larder.run(&["ls"]).await.stdout;
        assert!(listed.contains("hub/team/app:1"), "nothing was removed: {listed}");
        if round == 0 {
            larder.stop().await;
        }
    }
    let purged = larder.run(&["purge", "--all"]).await;
    assert_eq!(purged.code, Some(0), "{purged:?}");
    assert_eq!(larder.run(&["purge", "--all"]).await.code, Some(0), "an empty cache can be cleared");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_arguments_are_json_where_json_is_asked_for() {
    let larder = Larder::builder().config("").prepare();
    for arguments in [&["purge", "--json"][..], &["ls", "--json", "--frobnicate"], &["pin", "--json"]] {
        let ran = larder.run(arguments).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.json()["error"].as_str().is_some_and(|error| error.contains("Usage:")), "{ran:?}");
    }
    let ran = larder.run(&["purge"]).await;
    assert!(ran.code == Some(2) && ran.stdout.is_empty() && ran.stderr.starts_with("error: "), "{ran:?}");
    fs::write(larder.home().join("larder.toml"), "[server]\nlissen = 1").expect("written");
    for arguments in [&["ls", "--json"][..], &["config", "show", "--json"]] {
        let ran = larder.run(arguments).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.json()["error"].as_str().is_some_and(|error| error.contains("`server.lissen`")), "{ran:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn healthcheck_says_by_its_exit_code_whether_the_instance_is_well() {
    let mut larder = Larder::start("").await;
    for arguments in [&["healthcheck"][..], &["healthcheck", "--ready"]] {
        let ran = larder.run(arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "ok\n"), "{ran:?}");
    }
    larder.stop().await;
    let ran = larder.run(&["healthcheck"]).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("cannot speak to"), "{ran:?}");
}

#[tokio::test]
async fn completions_and_manual_pages_are_made() {
    let larder = Larder::builder().config("").prepare();
    for (shell, mark) in [("bash", "complete -F _larder"), ("zsh", "#compdef larder"), ("fish", "complete -c larder")] {
        let ran = larder.run(&["completions", shell]).await;
        assert!(ran.code == Some(0) && ran.stdout.contains(mark), "{shell}: {ran:?}");
    }
    let ran = larder.run(&["man", "pages/man1"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
    for page in ["larder.1", "larder-ls.1", "larder-config-check.1"] {
        let text = fs::read_to_string(larder.home().join("pages/man1").join(page)).expect(page);
        assert!(text.contains(".TH larder"), "{page}");
    }
}

#[tokio::test]
async fn a_configuration_to_start_from_is_fine_and_overwrites_nothing() {
    let larder = Larder::builder().config("").prepare();
    let printed = larder.run(&["config", "init"]).await;
    let written = larder.run(&["config", "init", "-o", "new.toml"]).await;
    assert_eq!((printed.code, written.code), (Some(0), Some(0)), "{printed:?} {written:?}");
    let file = larder.home().join("new.toml");
    assert_eq!(fs::read_to_string(&file).expect("written"), printed.stdout);
    let checked = larder.run(&["--config", "new.toml", "config", "check"]).await;
    assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "{checked:?}");

    fs::write(&file, "[server]\n# mine").expect("written");
    let again = larder.run(&["config", "init", "-o", "new.toml"]).await;
    assert!(again.code == Some(2) && again.stderr.contains("new.toml exists; write over it with --force"), "{again:?}");
    assert!(fs::read_to_string(&file).expect("there").contains("mine"));
    assert_eq!(larder.run(&["config", "init", "-o", "new.toml", "--force"]).await.code, Some(0));
    assert_eq!(fs::read_to_string(&file).expect("written"), printed.stdout);
}

#[tokio::test]
async fn check_tells_all_mistakes_and_what_is_hardly_meant() {
    let larder = Larder::builder()
        .config("[server]\nlissen = 1\n[cache]\nttl = \"1 year\"\n[repository.docker.io]\nmax_age = \"5m\"")
        .env("LARDER_SERVER_LISTEN", "0.0.0.0:5000")
        .prepare();
    let ran = larder.run(&["config", "check"]).await;
    let lines: Vec<_> = ran.stderr.lines().collect();
    assert_eq!((ran.code, lines.len()), (Some(2), 4), "{ran:?}");
    for (line, said) in
        lines.iter().zip(["did you mean LARDER_SERVER__LISTEN?", ":2: ", ":4: ", "[repository.\"docker.io\"]"])
    {
        assert!(line.starts_with("larder: ") && line.contains(said), "{ran:?}");
    }
    let json = larder.run(&["config", "check", "--json"]).await.json();
    assert_eq!(json["errors"].as_array().map(Vec::len), Some(3), "{json}");
    assert_eq!(json["warnings"].as_array().map(Vec::len), Some(1), "{json}");
    let served = larder.run(&["serve"]).await;
    assert_eq!((served.code, served.stderr.lines().count()), (Some(2), 3), "{served:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_warns_of_what_is_hardly_meant() {
    let larder = Larder::builder().env("LARDER_CACHE_MAX_SIZE", "20GiB").start().await;
    let log = larder.log();
    assert!(log.contains("did you mean LARDER_CACHE__MAX_SIZE?"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_may_come_from_the_environment_and_is_never_shown() {
    let hub = Hub::start(Options::with_basic("me", "geheim")).await;
    hub.push_image("team/app", "1", &Image::with_layers(1, &[10]));
    let login = "username = \"me\"\npassword = { env = \"HUB_TOKEN\" }";
    let config = RepositoryConfig::new("hub").upstream_with(&hub, login);
    let larder = Larder::builder().config(&config).env("HUB_TOKEN", "geheim").start().await;
    assert_eq!(get(larder.manifest_url("hub/team/app", "1")).await.status, 200);
    let shown = larder.run(&["config", "show"]).await;
    assert!(shown.code == Some(0) && shown.stdout.contains("password = \"[hidden]\""), "{shown:?}");
    assert!(!shown.stdout.contains("geheim") && !larder.log().contains("geheim"));
    let unset = Larder::builder().config(&config).prepare().run(&["config", "check"]).await;
    assert!(unset.code == Some(2) && unset.stderr.contains("`HUB_TOKEN` is not set, or is empty"), "{unset:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_admin_door_is_told_what_to_name() {
    let larder = Larder::start("").await;
    let (door, admin) = (larder.url(), larder.admin_url());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("an address");
    let (nobody, tls) = (format!("http://{nobody}"), admin.replace("http:", "https:"));
    let name = "name with --admin where `admin.listen` is";
    for (url, said) in [
        (&nobody, &["Connection refused", "start Larder there", name][..]),
        (&door, &["does not answer as Larder's admin door does, but 404", name]),
        (&tls, &["it does not speak TLS there; write http://"]),
    ] {
        for command in ["ls", "verify"] {
            let ran = larder.run(&[command, "--admin", url]).await;
            assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.lines().count()), (Some(1), "", 1), "{ran:?}");
            assert!(said.iter().all(|said| ran.stderr.contains(said)), "{ran:?}");
            let json = larder.run(&[command, "--admin", url, "--json"]).await;
            assert_eq!((json.code, json.stderr.as_str()), (Some(1), ""), "{json:?}");
            assert_eq!(format!("larder: {}\n", json.json()["error"].as_str().expect("a text")), ran.stderr);
        }
    }
    let health = larder.run(&["healthcheck", "--admin", &nobody]).await;
    assert!(health.code == Some(1) && health.stderr.contains("start Larder there"), "{health:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_reference_is_quoted_with_the_way_out() {
    let larder = Larder::start("").await;
    for (arguments, said) in [
        (["purge", "docker.io/*"], "`docker.io/*`: a repository name is made of lower-case letters"),
        (["purge", "hub/team/*"], "to name all of a name or repository, leave the rest out"),
        (["pin", "Alpine"], "`Alpine`: a repository name is made of lower-case letters"),
        (["pin", "alpine:-"], "`alpine:-`: a tag is 1 to 128 letters"),
    ] {
        let ran = larder.run(&arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.stderr.contains(said), "{ran:?}");
    }
    // As skopeo, podman and crictl write a reference with its transport.
    let ran = larder.run(&["purge", "docker://docker.io/library/alpine:3"]).await;
    assert!(ran.code == Some(1) && ran.stderr.contains("nothing of `docker.io/library/alpine:3`"), "{ran:?}");
}

#[tokio::test]
async fn a_port_that_is_taken_or_no_address_of_the_machine_is_said_with_the_key_to_set() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().map(|address| (address.to_string(), taken)).expect("an address");
    for (key, address, said) in [
        ("LARDER_SERVER__LISTEN", taken.0.as_str(), "server.listen: cannot listen on"),
        ("LARDER_SERVER__LISTEN", &taken.0, "another program listens there"),
        ("LARDER_ADMIN__LISTEN", &taken.0, "admin.listen: cannot listen on"),
        // For documentation: RFC 5737.
        ("LARDER_SERVER__LISTEN", "192.0.2.1:5000", "no network interface of this machine has this address"),
    ] {
        let larder = Larder::builder().config("").env(key, address).prepare();
        let ran = larder.run(&["serve"]).await;
        assert!(ran.code == Some(1) && ran.stderr.contains(said), "{key} {address}: {ran:?}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_or_written_is_said_with_the_way_out() {
    let larder = Larder::builder().config("").prepare();
    fs::create_dir(larder.home().join("folder")).expect("made");
    for (arguments, code, said) in [
        (&["--config", "no.toml", "config", "check"][..], 2, "`larder config init -o no.toml` makes one to start from"),
        (&["config", "check", "no.toml"], 2, "`larder config init -o no.toml` makes one to start from"),
        (&["--config", "folder", "config", "show"], 2, "name a file in it"),
        (&["config", "init", "-o", "folder"], 1, "name a file in it"),
        (&["config", "init", "-o", "folder", "--force"], 1, "name a file in it"),
        (&["config", "init", "-o", "none/new.toml"], 1, "make the folder none first"),
        (&["ls"], 1, "start one with `larder`"),
    ] {
        let ran = larder.run(arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{ran:?}");
        assert!(ran.stderr.contains(said), "{ran:?}");
    }
}

#[tokio::test]
async fn a_file_behind_the_command_is_the_configuration() {
    let larder = Larder::builder().config("").prepare();
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("new.toml"), "[cache]\nttl = \"7d\"").expect("written");
    let checked = larder.run_in(folder.path(), &[], &["config", "check", "new.toml"]).await;
    assert!(checked.code == Some(0) && checked.stdout.starts_with("new.toml: fine"), "{checked:?}");
    let shown = larder.run_in(folder.path(), &[], &["config", "show", "new.toml"]).await;
    assert!(shown.stdout.contains("# new.toml:2"), "{shown:?}");
}

/// What `larder` writes to a terminal, with these variables and no others: `script` (bsdutils, which each Debian has) makes
/// a pseudo-terminal.
fn on_a_terminal(variables: &[(&str, &str)], arguments: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let mut script = std::process::Command::new("script");
    let command = format!("{} {arguments}", env!("CARGO_BIN_EXE_larder"));
    script.args(["--quiet", "--return", "--command", &command, "/dev/null"]).current_dir(folder.path());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let ran = script.env_clear().env("PATH", path).envs(variables.iter().copied()).stdin(std::process::Stdio::null());
    String::from_utf8_lossy(&ran.output().expect("script is installed").stdout).into_owned()
}

/// https://no-color.org: "when present and not an empty string (regardless of its value)". A terminal without colours is
/// TERM=dumb (terminfo(5)).
#[test]
fn colours_are_for_terminals_and_not_where_they_are_unwanted() {
    // Nothing can listen at an address for documentation (RFC 5737), so the start ends with a line of the log.
    let serve = [("LARDER_SERVER__LISTEN", "192.0.2.1:1"), ("LARDER_ADMIN__LISTEN", "127.0.0.1:0")];
    for (arguments, more, said) in
        [("--help", &[][..], "Usage:"), ("lss", &[], "unrecognized subcommand"), ("serve", &serve, "cannot listen on")]
    {
        for (variables, has_colours) in [
            (&[("TERM", "xterm")][..], true),
            (&[("TERM", "xterm"), ("NO_COLOR", "")], true),
            (&[("TERM", "xterm"), ("NO_COLOR", "1")], false),
            (&[("TERM", "xterm"), ("NO_COLOR", "0")], false),
            (&[("TERM", "dumb")], false),
        ] {
            let printed = on_a_terminal(&[variables, more].concat(), arguments);
            assert!(printed.contains(said), "{arguments}: {printed}");
            assert_eq!(printed.contains('\x1b'), has_colours, "{arguments} {variables:?}: {printed}");
        }
        let piped = on_a_terminal(&[&[("TERM", "xterm")], more].concat(), &format!("{arguments} 2>&1 | cat"));
        assert!(piped.contains(said) && !piped.contains('\x1b'), "{arguments}: {piped}");
    }
}
