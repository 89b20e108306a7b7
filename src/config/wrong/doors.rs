//! Wrong configurations of doors: TLS, certificates, logins, and the clients that may pull.

use super::super::tests::parse;
use super::{refused, repository};

#[test]
fn the_door() {
    refused([
        (
            "[server]\ntrusted_proxies = [\"10.0.0.0/33\"]".to_owned(),
            "2: `server.trusted_proxies[0]`: `10.0.0.0/33` is no network; write for example \"10.0.0.0/8\", \"fd00::/8\" or \"127.0.0.1\"",
        ),
        (
            "[server]\nhosts = [\"http://mirror.lan\"]".to_owned(),
            "2: `server.hosts`: `http://mirror.lan` is no host; write for example hosts = [\"mirror.lan\"]",
        ),
        (
            "[server]\nhosts = [\"*\"]".to_owned(),
            "2: `server.hosts`: `*` would let in every page that has its name lead here; write the names",
        ),
        (
            "[admin]\nread = [\"user:bob\"]".to_owned(),
            "2: `admin.read`: `user:bob`: nobody can log in; add [auth.htpasswd] with a `path`",
        ),
        (
            "[admin]\nread = [\"10.0.0.0/33\"]".to_owned(),
            "2: `admin.read`: `10.0.0.0/33` is not one of \"*\", \"anonymous\", \"user:NAME\", \"oidc:ISSUER:CLAIM=VALUE\", \"cert:NAME\", \"cert:O=NAME\" or a network such as \"10.0.0.0/8\"",
        ),
        (
            "[admin]\nlisten = \"0.0.0.0:17081\"\nread = [\"*\"]".to_owned(),
            "3: `admin.read`: with 0.0.0.0:17081 in `listen` anybody could read what is cached, and for whom; name users or networks",
        ),
        (
            "[admin]\nlisten = \"0.0.0.0:17081\"\nread = [\"loopback\"]".to_owned(),
            "2: `admin.listen`: 0.0.0.0:17081 can be reached from other machines, and `allow` names none of them; listen on a loopback address such as 127.0.0.1:17081, or add allow = [\"user:NAME\"] and [auth.htpasswd]",
        ),
        (
            "[admin]\nhosts = [\"a b\"]".to_owned(),
            "2: `admin.hosts`: `a b` is no host; write for example hosts = [\"mirror.lan\"]",
        ),
        (
            "[server]\nforwarded_header = \"x-real-ip\"".to_owned(),
            "2: `server.forwarded_header`: `x-real-ip` is not one of `x-forwarded-for`, `forwarded`",
        ),
        (
            "[server.tls]\nprivate_key = \"k.pem\"".to_owned(),
            "1: `server.tls.certificate`: it is missing; write for example certificate = \"fullchain.pem\", and take [server.tls] out for plain HTTP",
        ),
        (
            "[server.tls]\ncertificate = [\"a.pem\", \"b.pem\"]\nprivate_key = \"a.key\"".to_owned(),
            "3: `server.tls.private_key`: there are 1 for 2 certificates; each needs its own",
        ),
        (
            "[server.tls]\ncertificate = \"/nowhere/a.pem\"\nprivate_key = \"/nowhere/a.key\"".to_owned(),
            "2: `server.tls.certificate`: cannot read certificates from /nowhere/a.pem: No such file or directory (os error 2)",
        ),
        (
            "[server.tls]\nclient_auth = \"maybe\"".to_owned(),
            "2: `server.tls.client_auth`: `maybe` is not one of `optional`, `required`",
        ),
    ]);
}

#[test]
fn issuers_of_tokens() {
    let oidc = |more: &str| format!("[auth.oidc.ci]\n{more}");
    let issuer = |more: &str| oidc(&format!("issuer = \"https://ci.example\"\n{more}"));
    let whole = issuer("audience = \"larder\"\n");
    refused([
        (
            oidc("audience = \"larder\""),
            "1: `auth.oidc.ci.issuer`: it is missing; write for example \"https://token.actions.githubusercontent.com\"",
        ),
        (
            issuer(""),
            "1: `auth.oidc.ci.audience`: it is missing: tokens for others would be taken, too; write for example \"larder\", and have tokens made for it",
        ),
        (
            oidc("issuer = \"http://ci.example\"\naudience = \"larder\""),
            "2: `auth.oidc.ci.issuer`: `http://ci.example` does not begin with https://, so that anybody on the way could answer for it",
        ),
        (
            issuer("audience = \"larder\"\njwks_uri = \"keys\""),
            "4: `auth.oidc.ci.jwks_uri`: this is no URL (it does not begin with https://); write for example \"https://issuer.example/jwks\"",
        ),
        (
            oidc("issuer = \"https://me:geheim@ci.example\"\naudience = \"larder\""),
            "2: `auth.oidc.ci.issuer`: there is a user name or password in it, which is not sent; take it out",
        ),
        (
            issuer("audience = \"larder\"\nrequired_claims = { sub = [] }"),
            "4: `auth.oidc.ci.required_claims`: write a claim and its value, or a list of which one is enough",
        ),
        (
            issuer("audience = \"larder\"\nserver_ca_bundle = \"/nowhere/ca.pem\""),
            "4: `auth.oidc.ci.server_ca_bundle`: cannot read certificates from /nowhere/ca.pem: No such file or directory (os error 2)",
        ),
        (
            whole.clone() + &whole.replace("oidc.ci", "oidc.other"),
            "5: `auth.oidc.other.issuer`: `ci` has the same; one table for each issuer",
        ),
        (
            "[auth.oidc.\"a:b\"]".to_owned(),
            "1: `auth.oidc.a:b`: a name without colons and spaces is needed: allow = [\"oidc:NAME\"]",
        ),
        (
            whole.clone() + &repository("client_credentials = \"pass\"\nallow = [\"oidc:ci\"]"),
            "6: `repository.x.allow`: `oidc:ci`: with client_credentials = \"pass\" clients log in as users of the upstream, which decides; take it out",
        ),
        (
            whole.replace("ci.example", "gitlab.com") + &repository(""),
            "4: `repository.x.allow`: `*`: with [auth.oidc.\"ci\"] anybody in the world can have a token of it; say which with `required_claims`, or here with a claim; or write \"anonymous\"",
        ),
        (
            whole.replace("ci.example", "gitlab.com") + &repository("allow = [\"oidc:ci\"]"),
            "5: `repository.x.allow`: `oidc:ci`: anybody in the world can have a token of it; say which with `required_claims`, or here with a claim, as in \"oidc:ci:sub=…\"",
        ),
        (
            whole.replace("oidc.ci", "oidc.company") + &repository("allow = [\"oidc:compny:sub=x\"]"),
            "5: `repository.x.allow`: `oidc:compny:sub=x`: there is no issuer `compny`; did you mean `company`?",
        ),
        (
            repository("allow = [\"oidc:ci\"]"),
            "2: `repository.x.allow`: `oidc:ci`: there is no issuer `ci`; add [auth.oidc.\"ci\"] with its `issuer` and `audience`",
        ),
    ]);
}

#[test]
fn logins_in_a_browser() {
    let login = |more: &str| {
        let issuer = "[auth.oidc.ci]\nissuer = \"https://ci.example\"\naudience = \"larder\"";
        format!("{issuer}\n[auth.oidc.ci.login]\n{more}")
    };
    let named = |more: &str| login(&format!("client_id = \"larder\"\n{more}"));
    refused([
        (
            login(""),
            "4: `auth.oidc.ci.login.client_id`: it is missing; write the name that Larder is registered with at the issuer, such as \"larder\"",
        ),
        (
            named("client_secret = \"x\"\nclient_secret_file = \"y\""),
            "7: `auth.oidc.ci.login.client_secret_file`: `client_secret` gives the secret already; remove one of them",
        ),
        (
            named("client_secret_file = \"/nowhere/secret\""),
            "6: `auth.oidc.ci.login.client_secret_file`: cannot read /nowhere/secret: No such file or directory (os error 2)",
        ),
        (
            named("scopes = [\"openid email\"]"),
            "6: `auth.oidc.ci.login.scopes`: `openid email` is no scope; write each as a text of its own, without spaces",
        ),
        (
            named("session_max_age = \"0s\""),
            "6: `auth.oidc.ci.login.session_max_age`: a login would end at once; write for example \"12h\"",
        ),
        (
            named("client_name = \"x\""),
            "6: unknown key `auth.oidc.ci.login.client_name`; did you mean `auth.oidc.ci.login.client_id`?",
        ),
    ]);
}

#[test]
fn certificates_by_acme() {
    let acme = |more: &str| format!("[server.tls.acme]\n{more}");
    let named = |more: &str| acme(&format!("domains = \"a.example\"\n{more}"));
    refused([
        (acme(""), "1: `server.tls.acme.domains`: it is missing; write for example domains = [\"mirror.example.com\"]"),
        (
            acme("domains = [\"a.example\", \"A.example\"]"),
            "2: `server.tls.acme.domains`: `A.example` is there twice; remove one of them",
        ),
        (
            acme("domains = \"127.0.0.1\""),
            "2: `server.tls.acme.domains`: `127.0.0.1` is no domain; write for example \"mirror.example.com\"",
        ),
        (
            acme("domains = \"*.a.example\""),
            "2: `server.tls.acme.domains`: `*.a.example` can only be had with challenge = \"dns-01\"",
        ),
        (
            acme("domains = \"a.example,b.example\""),
            "2: `server.tls.acme.domains`: `a.example,b.example` is no domain; write for example \"mirror.example.com\"",
        ),
        (
            acme("domains = \"x..example\""),
            "2: `server.tls.acme.domains`: `x..example` is no domain; write for example \"mirror.example.com\"",
        ),
        (
            acme("challenge = \"dns-01\"\ndns_hook = [\"true\"]\ndomains = \"*.*.example\""),
            "4: `server.tls.acme.domains`: `*.*.example` is no domain; write for example \"mirror.example.com\"",
        ),
        (
            named("challenge = \"http-01\"\nhttp_listen = [\"0.0.0.0:80\", \"0.0.0.0:80\"]"),
            "4: `server.tls.acme.http_listen`: 0.0.0.0:80 is there twice; remove one of them",
        ),
        (
            named("challenge = \"http-01\"\nhttp_listen = \"127.0.0.1:5000\""),
            "4: `server.tls.acme.http_listen`: 127.0.0.1:5000 is in `server.listen` too; choose another port",
        ),
        (
            named("challenge = \"dns-01\"\ndns_hook = [\"/dev/null\"]"),
            "4: `server.tls.acme.dns_hook`: there is no program `/dev/null`; install it into the PATH or write its path",
        ),
        (named("email = \"me\""), "3: `server.tls.acme.email`: `me` is no mail address"),
        (
            named("challenge = \"dns\""),
            "3: `server.tls.acme.challenge`: `dns` is not one of `tls-alpn-01`, `http-01`, `dns-01`",
        ),
        (
            named("challenge = \"dns-01\""),
            "1: `server.tls.acme.dns_hook`: it is missing; write the program that sets the record, for example [\"/usr/local/bin/dns-hook\"]",
        ),
        (
            named("challenge = \"dns-01\"\ndns_hook = [\"/nowhere/hook\"]"),
            "4: `server.tls.acme.dns_hook`: there is no program `/nowhere/hook`; install it into the PATH or write its path",
        ),
        (
            named("dns_hook = [\"true\"]"),
            "3: `server.tls.acme.dns_hook`: it goes with challenge = \"dns-01\"; take it out",
        ),
        (
            named("http_listen = \"0.0.0.0:80\""),
            "3: `server.tls.acme.http_listen`: it goes with challenge = \"http-01\"; take it out",
        ),
        (
            named("eab_key_id = \"x\""),
            "1: `server.tls.acme.eab_hmac_key_file`: it is missing; the authority gave out both together",
        ),
        (
            named("eab_hmac_key_file = \"x\""),
            "1: `server.tls.acme.eab_key_id`: it is missing; `eab_hmac_key_file` is the key to it",
        ),
        (
            named("directory = \"http://acme.example/directory\""),
            "3: `server.tls.acme.directory`: `http://acme.example/directory` does not begin with https://, so that anybody on the way could answer for it",
        ),
        (
            format!("[server.tls]\ncertificate = \"a.pem\"\n{}", named("")),
            "2: `server.tls.certificate`: [server.tls.acme] gets the certificate; take one of the two out",
        ),
    ]);
}

#[test]
fn who_may_pull() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let plain = file("plain", "bob:secret\n");
    let twice = file("twice", &format!("bob:{HASH}\n\nbob:{HASH}\n"));
    let costly = file("costly", &format!("bob:{}\n", HASH.replace("$05$", "$31$")));
    let empty = file("empty", "# nobody\n");
    let users = |path: &str| format!("[auth.htpasswd]\npath = \"{path}\"");
    for (path, why) in [
        (&plain, format!("{plain}:1: the password is not hashed with bcrypt; make the line with `htpasswd -B`")),
        (&twice, format!("{twice}:3: the user stands twice; take one line out")),
        (
            &costly,
            format!("{costly}:1: its bcrypt cost makes each login take minutes; make the line with `htpasswd -B`"),
        ),
        (&empty, format!("{empty} has no user; add one with `htpasswd -B`")),
    ] {
        let said = parse(&users(path)).map(|_| ()).expect_err(path);
        assert_eq!(said, format!("larder.toml:2: `auth.htpasswd.path`: {why}"));
        assert!(!said.contains("secret"));
    }
    refused([
        (
            "[auth.htpasswd]".to_owned(),
            "1: `auth.htpasswd.path`: it is missing; make the file with `htpasswd -B -c htpasswd NAME`",
        ),
        (repository("allow = []"), "2: `repository.x.allow`: nobody could pull; write for example allow = [\"*\"]"),
        (
            repository("allow = [\"bob\"]"),
            "2: `repository.x.allow`: `bob` is not one of \"*\", \"anonymous\", \"user:NAME\", \"oidc:ISSUER:CLAIM=VALUE\", \"cert:NAME\", \"cert:O=NAME\" or a network such as \"10.0.0.0/8\"",
        ),
        (
            repository("allow = [\"user:bob\"]"),
            "2: `repository.x.allow`: `user:bob`: nobody can log in; add [auth.htpasswd] with a `path`",
        ),
        (
            repository("allow = [\"cert:ci\"]"),
            "2: `repository.x.allow`: `cert:ci`: clients are not asked for certificates; add `client_ca_bundle` to [server.tls]",
        ),
        (
            repository("client_credentials = \"pass\"\nallow = [\"user:bob\"]"),
            "3: `repository.x.allow`: `user:bob`: with client_credentials = \"pass\" clients log in as users of the upstream, which decides; take it out",
        ),
    ]);
}

const HASH: &str = "$2y$05$2l/MHZxq.k0BTsORQzVQ9uLCLpVkZLNsCV2lnHYV2hKNFVTMmQLLi";

#[test]
fn the_proxy_door() {
    refused([
        (
            "[allowlist]\nenabled = true\ndomains = [\"ghcr.io\"]".to_owned(),
            "2: `allowlist.enabled`: it is for the proxy door, which is off; add [proxy]",
        ),
        (
            "[cache]\npatterns = [\"x\"]".to_owned(),
            "2: `cache.patterns`: it is for the proxy door, which is off; add [proxy]",
        ),
        (
            "[proxy]\nintercept = [\"https://ghcr.io\"]".to_owned(),
            "2: `proxy.intercept`: `https://ghcr.io` is no host; write for example ghcr.io, ghcr.io:443, *.example.com, or *",
        ),
        (
            "[proxy]\nca_dir = \"\"".to_owned(),
            "2: `proxy.ca_dir`: it is empty; write for example ca_dir = \"/var/lib/larder-ca\"",
        ),
        (
            "[proxy]\nlisten = \"127.0.0.1:5000\"".to_owned(),
            "2: `proxy.listen`: 127.0.0.1:5000 is in `server.listen` too; choose another port",
        ),
        (
            "[proxy]\n[allowlist]\nenabled = true".to_owned(),
            "2: `allowlist.domains`: it is empty, so that the proxy would lead nowhere; write for example domains = [\"ghcr.io\"]",
        ),
        (
            "[proxy]\n[allowlist]\ndomains = [\"a b\"]".to_owned(),
            "3: `allowlist.domains`: `a b` is no host; write for example ghcr.io, *.docker.io, registry.example.com:5000, or 10.0.0.0/8",
        ),
        (
            "[headers.\"ghcr.io\".set]\nHost = \"geheim\"".to_owned(),
            "1: `headers.\"ghcr.io\".set`: `host` is not for a configuration to set: it is about each message or connection",
        ),
    ]);
}
